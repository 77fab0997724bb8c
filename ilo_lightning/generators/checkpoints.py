"""Generator checkpoints on disk: safetensors with a JSON header that says how to build the network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..files import locate, write_atomically
from .stylegan2 import StyleGAN2
from .stylegan2_layers import fir_kernel

FORMAT = "ilo_lightning.stylegan2/1"


class CheckpointError(ValueError):
    """A file that is not a checkpoint this package can load; the message says why and what to do."""


def save_generator(generator: StyleGAN2, path: str | Path, provenance: dict | None = None) -> None:
    """Write weights, statistics, configuration and ``provenance`` (JSON values) to one safetensors file."""
    header = {"format": FORMAT, "config": json.dumps(generator.config), "provenance": json.dumps(provenance or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    write_atomically(path, save(tensors, metadata=header))


def load_generator(checkpoint: str | Path, recompute: bool = False) -> StyleGAN2:
    """The frozen generator of a checkpoint written by ``save_generator``: eval mode, no gradients to weights.

    ``checkpoint`` may begin with ``pkg://`` (see ``files.locate``). The result's ``provenance`` says where it came
    from: the path as given, and the file's SHA-256. ``recompute``: see ``StyleGAN2.recompute``.

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
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"generator.checkpoint={checkpoint}: not a readable safetensors file ({error})"
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"generator.checkpoint={checkpoint}: its header has format {header.get('format')!r}, expected {FORMAT!r}"
        )
    try:
        config = json.loads(header["config"])
        with torch.device("meta"):
            generator = StyleGAN2(**config)
        generator.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()
        raise CheckpointError(
            f"generator.checkpoint={checkpoint}: header and tensors don't make a StyleGAN2 ({' '.join(first_line[:2])})"
        ) from error
    generator.fir = fir_kernel(4.0, generator.config["resample_filter"]).to(generator.const)
    generator.recompute = recompute
    generator.provenance = {"checkpoint": str(checkpoint), "sha256": sha256(path)}
    return generator.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
