"""State dicts from disk, for networks whose code the user has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import locate
from .checkpoints import CheckpointError, sha256


def read_state_dict(checkpoint: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file or of a state dict that ``torch.save`` wrote, and their provenance
    (path and SHA-256). Nothing that a file carries is executed.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds something else.
    """
    try:
        path = locate(checkpoint)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"generator.checkpoint={checkpoint}: {error}; after pkg:// comes the name of an installed package"
        ) from error
    if not path.is_file():
        raise CheckpointError(f"generator.checkpoint={checkpoint}: no such file")
    try:
        tensors: Any
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"generator.checkpoint={checkpoint}: can't be read ({error})") from error
    except Exception as error:  # what torch raises for a damaged or a refused file is not documented
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"generator.checkpoint={checkpoint}: no state dict that can be read safely "
            f"({type(error).__name__}: {reason}); save it with torch.save(network.state_dict(), path)"
        ) from error
    if isinstance(tensors, Mapping) and not _is_state_dict(tensors):
        inside = [value for value in tensors.values() if _is_state_dict(value)]  # beside an epoch, a loss, …
        tensors = inside[0] if len(inside) == 1 else {}
    if not _is_state_dict(tensors):
        raise CheckpointError(f"generator.checkpoint={checkpoint}: holds no state dict (names with tensors)")
    return dict(tensors), {"checkpoint": str(checkpoint), "sha256": sha256(path)}


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def load_weights(network: nn.Module, checkpoint: str | Path) -> dict[str, str]:
    """Load a file's tensors into a network; returns their provenance.

    Raises:
        CheckpointError: if the file can't be read, or its names or shapes differ from the network's.
    """
    tensors, provenance = read_state_dict(checkpoint)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing, unknown = [n for n in expected if n not in given], [n for n in given if n not in expected]
    other = [f"{n} {given[n]} for {expected[n]}" for n in expected if n in given and given[n] != expected[n]]
    differences = [
        f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has unknown", unknown), ("has", other))
        if names
    ]
    if differences:
        raise CheckpointError(f"generator.checkpoint={checkpoint}: does not fit these blocks: {'; '.join(differences)}")
    network.load_state_dict(tensors)
    return provenance
