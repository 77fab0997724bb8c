"""What is added to the data fit: how unlikely, or how far off, a latent point is. Per image, lower is better.

Each takes ``(generator, point, center, image)``: the current point, the centre of its stage, and what the point makes;
it gives ``(B,)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..generators.base import LatentPoint, LayeredGenerator, is_made, variable_of

_TINY = 1e-9


class PenaltyError(ValueError):
    """A penalty that means nothing for a point; the message says why."""


def geocross(codes: Tensor) -> Tensor:
    """GEOCROSS (PULSE, Menon et al., CVPR 2020): how far the K codes of an image, ``(B, K, D)``, lie from each other
    on their sphere, ``(B,)``.

    ``mean over all K² pairs of (2 · atan2(‖X - Y‖, ‖X + Y‖))² · 512 / 8``: for codes of one norm, their squared
    geodesic distance on the unit sphere; 149 for 18 random directions. A pair of a code with itself adds 0, and is
    left out of the sum, since its gradient isn't defined.
    """
    count = codes.shape[1] if codes.ndim == 3 else 1
    if count < 2:
        raise PenaltyError(
            "compares the codes of the layers, and there is only one; leave it at 0, or use a space with a code per "
            "layer (StyleGAN2: method.space=w_plus)"
        )
    first, second = torch.triu_indices(count, count, offset=1, device=codes.device)
    x, y = codes[:, first], codes[:, second]
    apart, together = ((each.square().sum(dim=-1) + _TINY).sqrt() for each in (x - y, x + y))
    return (2 * torch.atan2(apart, together)).square().sum(dim=1) * (2 / count**2 * 512 / 8)


def _geocross(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    """Of the latents as they are optimised."""
    return geocross(_latent(point))


def _geocross_styles(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    """Of the w that they stand for; a single code stands for the same w at every layer."""
    latent = _latent(point)
    return geocross(generator.codes(point) if latent.ndim == 3 and latent.shape[1] > 1 else latent)


def _latent_norm(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    """``‖z‖²`` (CSGM, Bora et al., ICML 2017)."""
    return _latent(point).square().flatten(1).sum(dim=1)


def _latent_l1(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    """``‖z‖₁ / n``, the mean of the n absolute values: of wavelet coefficients, the Lasso's (Tibshirani 1996)."""
    return _latent(point).abs().flatten(1).mean(dim=1)


def _total_variation(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    """Mean over pixels and channels of the length of the image's gradient, by forward differences (isotropic total
    variation; Rudin, Osher & Fatemi 1992)."""
    down = F.pad(image.diff(dim=2), (0, 0, 0, 1))
    right = F.pad(image.diff(dim=3), (0, 1))
    return (down.square() + right.square() + _TINY).sqrt().flatten(1).mean(dim=1)


def _noise_regularity(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    """How much the noise maps resemble their own shifts: a signal, where there should be noise (StyleGAN2, Karras et
    al., CVPR 2020, appendix D): ``Σ mean(n · shift(n))²`` over both axes and a pyramid of each map down to 8×8."""
    maps = [tensor for name, tensor in point.tensors.items() if variable_of(name) == "noise"]
    if not maps:
        raise PenaltyError("the generator has no noise maps at this layer; leave it at 0")
    total = torch.zeros(point.batch_size, dtype=maps[0].dtype, device=maps[0].device)
    for noise in maps:
        while True:
            for axis in (2, 3):
                total = total + (noise * noise.roll(1, axis)).flatten(1).mean(dim=1).square()
            if noise.shape[-1] <= 8:
                break
            noise = F.avg_pool2d(noise, 2) * 2  # four pixels have half the standard deviation of one
    return total


def _deviation(generator: LayeredGenerator, point: LatentPoint, center: LatentPoint, image: Tensor) -> Tensor:
    return deviation(point, center)


def deviation(point: LatentPoint, center: LatentPoint) -> Tensor:
    """``(B,)``: ``‖x - c‖₁ / ‖c‖₁`` of the activation and the RGB skip (of all but codes and noise), summed: how far
    the point has left what the layers above can make, as a sparse additive deviation (as in DMILO; Zheng,
    Li & Liu, ICML 2025, whose deviation is a variable of its own). Where c is zero, there is
    no unit to measure it in, and nothing is added."""
    names = [name for name in point.tensors if is_made(name)]
    total = torch.zeros(point.batch_size, dtype=next(iter(point.tensors.values())).dtype)
    total = total.to(next(iter(point.tensors.values())).device)
    for name in names:
        norm = center[name].flatten(1).abs().sum(dim=1)
        moved = (point[name] - center[name]).flatten(1).abs().sum(dim=1)
        total = total + torch.where(norm > 0, moved / torch.where(norm > 0, norm, 1.0), 0.0)
    return total


def _latent(point: LatentPoint) -> Tensor:
    if "latent" not in point.tensors:
        raise PenaltyError(f"there is no latent code at layer {point.layer} in space {point.space}; leave it at 0")
    return point["latent"]


PENALTIES: dict[str, Callable[[LayeredGenerator, LatentPoint, LatentPoint, Tensor], Tensor]] = {
    "geocross": _geocross,
    "geocross_styles": _geocross_styles,
    "latent_norm": _latent_norm,
    "latent_l1": _latent_l1,
    "total_variation": _total_variation,
    "noise_regularity": _noise_regularity,
    "deviation": _deviation,
}
