"""What independent StyleGAN2 implementations computed, and the weights they computed it from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilo_lightning.generators.stored import Storage, StoredTensor
from ilo_lightning.generators.stylegan2 import StyleGAN2
from ilo_lightning.generators.stylegan2_layouts import convert, match

FOLDER = Path(__file__).parent / "fixtures" / "stylegan2"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Fixture:
    """Hyper-parameters with the shapes of the state dict, and inputs and outputs."""

    name: str
    record: dict[str, Any]
    arrays: dict[str, Tensor]

    @property
    def layout(self) -> str:
        return self.record["format"]

    def state(self) -> dict[str, Tensor]:
        """The state dict in the layout of its implementation: normal numbers seeded by the place of their key, scaled
        as trained weights are, and the up-sampling filters."""
        state = {}
        for number, key in enumerate(sorted(self.record["shapes"])):
            rng = np.random.Generator(np.random.PCG64(1000 + number))
            values = torch.from_numpy(rng.standard_normal(self.record["shapes"][key], dtype=np.float32))
            state[key] = _SCALED[self.layout](key, values)
        return state

    def noise(self) -> dict[str, Tensor]:
        return {name: array for name, array in self.arrays.items() if name.startswith("noise_")}


def load_fixture(name: str, folder: Path = FOLDER) -> Fixture:
    record = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as arrays:
        return Fixture(name, record, {key: torch.from_numpy(arrays[key]).float() for key in arrays.files})


def stored(state: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """A state dict as a file would hold it."""
    return {
        name: StoredTensor(
            Storage(tensor.dtype, tensor.numel(), lambda tensor=tensor: tensor.numpy().tobytes()),
            0,
            tuple(tensor.shape),
            tuple(tensor.stride()),
        )
        for name, tensor in state.items()
    }


def converted(fixture: Fixture) -> StyleGAN2:
    """Our network with the fixture's weights, not by way of a file."""
    state = stored(fixture.state())
    settings = {"conv_clamp": fixture.record.get("conv_clamp")} if fixture.layout == "nvidia" else None
    config, tensors = convert(match(state, settings), state)
    generator = StyleGAN2(**config)
    unfitted = {name: tensor for name, tensor in generator.state_dict().items() if name.startswith(("w_", "gauss"))}
    if "mapping.w_avg" in state:
        unfitted["w_mean"] = state["mapping.w_avg"].load()
    generator.load_state_dict({**unfitted, **tensors})
    return generator.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _rosinality(key: str, values: Tensor) -> Tensor:
    if ".kernel" in key:
        return _fir() * (4 if key.startswith(("convs", "to_rgbs")) else 1)
    if key.startswith("style.") and key.endswith(".weight"):
        return 100 * values
    if key.endswith("modulation.bias"):
        return 1 + 0.1 * values
    return 0.1 * values if key.endswith(("noise.weight", ".bias")) else values


def _nvidia(key: str, values: Tensor) -> Tensor:
    if "resample_filter" in key:
        return _fir()
    if key.startswith("mapping.fc") and key.endswith(".weight"):
        return 100 * values
    if key.endswith("affine.bias"):
        return 1 + 0.1 * values
    return 0.1 * values if key.endswith(("noise_strength", "w_avg", ".bias")) else values


def _fir() -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


_SCALED = {"rosinality": _rosinality, "nvidia": _nvidia}
