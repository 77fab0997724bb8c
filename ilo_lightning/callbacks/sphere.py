"""Keep latents and noise maps on the spheres on which a Gaussian lives in high dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..generators.base import LatentPoint, variable_of
from ..problem import InverseProblem
from ..projections import project_sphere


def on_sphere(name: str, tensor: Tensor) -> Tensor:
    """A latent ``(B, K, D)``: each of the K vectors at norm √D. Anything else, such as a noise map ``(B, 1, H, W)``:
    the whole tensor of an image at the norm √(its number of entries)."""
    dims = (-1,) if variable_of(name) == "latent" else tuple(range(1, tensor.ndim))
    return project_sphere(tensor, math.sqrt(math.prod(tensor.shape[dim] for dim in dims)), dims)


def project_to_spheres(point: LatentPoint, variables: Sequence[str]) -> LatentPoint:
    """The point with every tensor of ``variables`` on its sphere."""
    return point.update(
        {name: on_sphere(name, tensor) for name, tensor in point.tensors.items() if variable_of(name) in variables}
    )


def standardized(tensor: Tensor) -> Tensor:
    """Each image's tensor with mean 0 and variance 1."""
    dims = tuple(range(1, tensor.ndim))
    tensor = tensor - tensor.mean(dim=dims, keepdim=True)
    return tensor * tensor.square().mean(dim=dims, keepdim=True).clamp_min(1e-12).rsqrt()


class Spheres(pl.Callback):
    """After each step, put the free tensors of ``variables`` back on their spheres (PULSE, Menon et al. 2020), and
    those of ``standardize`` back to mean 0 and variance 1 (StyleGAN2's projector, Karras et al. 2020)."""

    def __init__(self, variables: Sequence[str], standardize: Sequence[str] = ()):
        self.variables, self.standardize = tuple(variables), tuple(standardize)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: object) -> None:
        for name, parameter in pl_module.variables.items():
            if parameter.requires_grad and variable_of(name) in self.variables:
                parameter.copy_(on_sphere(name, parameter))
            if parameter.requires_grad and variable_of(name) in self.standardize:
                parameter.copy_(standardized(parameter))
