"""A solution on disk: the latent point of one image, and how it was found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import write_atomically
from .generators.base import LatentPoint, LayeredGenerator

FORMAT = "ilo_lightning.solution/1"


class SolutionError(ValueError):
    """A file that is not a solution, or not one of this generator."""


@dataclass(frozen=True)
class Solution:
    """The best point found for one image.

    Args:
        point: batch of one, with its layer and space.
        history: ``(steps,)`` data fit of the point before each step.
        info: JSON values: image, method, seeds, resolved configuration, versions, generator and its SHA-256, data fit,
            evaluations, seconds, stage of each step.
    """

    point: LatentPoint
    history: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header; whole under its name, or not at all."""
        header = {
            "format": FORMAT,
            "layer": str(self.point.layer),
            "space": self.point.space,
            "info": json.dumps(self.info),
        }
        tensors = {f"point.{name}": t.detach().cpu().contiguous() for name, t in self.point.tensors.items()}
        tensors["history"] = self.history.detach().cpu().contiguous()
        write_atomically(path, save(tensors, metadata=header))

    @classmethod
    def load(cls, path: str | Path) -> Solution:
        """Read a solution.

        Raises:
            SolutionError: if the file is missing, damaged or something else.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise SolutionError(f"{path}: not a readable solution ({error})") from error
        if header.get("format") != FORMAT:
            raise SolutionError(f"{path}: its header has format {header.get('format')!r}, expected {FORMAT!r}")
        prefix = "point."
        point = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            layer, space, info = int(header["layer"]), header["space"], json.loads(header["info"])
            return cls(LatentPoint(layer, point, space), tensors["history"], info)
        except (KeyError, ValueError) as error:
            raise SolutionError(f"{path}: header and tensors don't make a solution ({error})") from error

    @torch.no_grad()
    def decode(self, generator: LayeredGenerator) -> Tensor:
        """The reconstruction ``(C, H, W)``: this file's point, decoded on its own (batch 1), not clipped.

        Raises:
            SolutionError: if the generator has other weights, or another label, than the one that found the point.
        """
        expected, given = self.info.get("generator", {}).get("sha256"), generator.provenance.get("sha256")
        if expected and given and expected != given:
            raise SolutionError(
                f"this solution belongs to the generator with SHA-256 {expected[:12]}…, not to {given[:12]}…; "
                f"load the checkpoint {self.info['generator'].get('checkpoint')}"
            )
        labels = [made.get("label") for made in (self.info.get("generator", {}), generator.provenance)]
        if None not in labels and labels[0] != labels[1]:
            raise SolutionError(f"this solution belongs to the label {labels[0]}, not {labels[1]}; see generator.label")
        return generator(self.point.to(generator.device))[0]
