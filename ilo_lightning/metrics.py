"""How good a reconstruction is. Every metric has one pinned protocol, whose description is reported with the number.

Images are ``(B, C, H, W)`` in [-1, 1]; what lies outside is clipped. They are mapped to [0, 1], so the data range is 1.
Everything but perceptual distances is computed in float64, per image; no image influences another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .losses import PerceptualNet
    from .operators.base import Measurement

_SSIM_WINDOW = 11
_SSIM_STRIP = 64  # rows

PROTOCOLS: dict[str, str] = {
    "mse": "mean squared error over all pixels and channels of an image, clipped to [-1, 1] and mapped to [0, 1]",
    "psnr": "10·log10(1 / mse) in dB per image: data range 1 on [0, 1]; infinite for identical images",
    "ssim": (
        "torchmetrics' SSIM on [0, 1], data range 1, Gaussian window 11×11 with sigma 1.5, k1 0.01, k2 0.03; "
        "reflected borders count, channels averaged"
    ),
    "residual": (
        "root of the weighted mean of (A(x) - y)² over the observed entries, in units of y; x as saved, not clipped; "
        "needs no truth"
    ),
    "probability": (
        "that the classifier gives the class asked for (without one, the likeliest of y), for A of the picture clipped "
        "to [-1, 1]; needs no truth"
    ),
}
"""Of a perceptual distance: ``PerceptualNet.protocol``."""


def mse(x: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error on [0, 1], ``(B,)`` in float64. See `PROTOCOLS`.

    Raises:
        ValueError: if the two are not batches of images of one shape.
    """
    x, truth = _unit_range(x, truth)
    return (x - truth).square().flatten(1).mean(dim=1)


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``(B,)`` in float64; infinity for identical images. See `PROTOCOLS`.

    Raises:
        ValueError: if the two are not batches of images of one shape.
    """
    return -10 * mse(x, truth).log10()


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), ``(B,)`` in float64. See `PROTOCOLS`.

    Raises:
        ValueError: if the two are not batches of images of one shape, or smaller than the 11×11 window.
    """
    x, truth = _unit_range(x, truth)
    if not _fits_window(x):
        raise ValueError(f"SSIM needs images of at least {_SSIM_WINDOW}×{_SSIM_WINDOW} pixels, got {tuple(x.shape)}")
    if len(x) == 0:
        return x.new_zeros(0)
    from torchmetrics.functional.image import structural_similarity_index_measure

    # The average is taken here because torchmetrics has changed, between releases, how much of the border it counts;
    # strip by strip because it takes 600 numbers for every pixel, 5 GB for 1024² at once.
    total, height = x.new_zeros(len(x)), x.shape[2]
    for start in range(0, height, _SSIM_STRIP):
        first = max(0, min(start, height - _SSIM_WINDOW) - _SSIM_WINDOW)
        window = slice(first, start + _SSIM_STRIP + _SSIM_WINDOW)
        result = structural_similarity_index_measure(
            x[:, :, window],
            truth[:, :, window],
            sigma=1.5,
            kernel_size=_SSIM_WINDOW,
            data_range=1.0,
            k1=0.01,
            k2=0.03,
            return_full_image=True,
        )
        total += result[1][:, :, start - first :][:, :, :_SSIM_STRIP].sum(dim=(1, 2, 3))
    return total / x[0].numel()


def residual(prediction: Tensor, measurement: Measurement) -> Tensor:
    """How far A(x) is from y, ``(B,)`` in float64; 0 where all observed entries agree. See `PROTOCOLS`."""
    from .losses import mean_squared_error

    return mean_squared_error(prediction.detach().double(), measurement.to(prediction.device, torch.float64)).sqrt()


def probability(given: Tensor, asked: Tensor) -> Tensor:
    """Of the probabilities that a classifier gives, ``(B, K)``, that of the likeliest class in ``asked`` ``(1 or B,
    K)``: ``(B,)`` in float64. See `PROTOCOLS`."""
    classes = asked.to(given.device).argmax(dim=1, keepdim=True)
    return given.detach().double().gather(1, classes.expand(len(given), 1))[:, 0]


def perceptual(x: Tensor, truth: Tensor, nets: Iterable[PerceptualNet]) -> dict[str, list[float]]:
    """Distances to the truth by networks: name -> one number per image.

    Raises:
        ValueError: if the two are not batches of images of one shape.
    """
    x, truth = (2 * image.float() - 1 for image in _unit_range(x, truth))
    with torch.no_grad():
        return {net.name: net(x, truth).tolist() for net in nets}


def evaluate(x: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """All that need only the two: name -> one number per image. SSIM is left out for images below 11×11 pixels.

    Raises:
        ValueError: if the two are not batches of images of one shape.
    """
    values = {"mse": mse(x, truth), "psnr": psnr(x, truth)}
    if _fits_window(x):
        values["ssim"] = ssim(x, truth)
    return {name: value.tolist() for name, value in values.items()}


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean, and 1.96 standard errors of it: an interval of 95 % for many images, 93 % for 16, 91 % for 8.

    The half-width is NaN where it isn't defined: for a single value, and among infinities.

    Raises:
        ValueError: if there are no values.
    """
    values = [float(value) for value in values]
    if not values:
        raise ValueError("the mean of no values is not defined")
    n = len(values)
    mean = sum(values) / n
    if n == 1 or not math.isfinite(mean):
        return mean, math.nan
    variance = math.fsum((value - mean) * (value - mean) for value in values) / (n - 1)
    return mean, 1.96 * math.sqrt(variance / n)


def _unit_range(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != truth.shape or x.ndim != 4:
        raise ValueError(f"expected two batches (B, C, H, W) of one shape, got {(*x.shape,)}, {(*truth.shape,)}")
    first, second = ((image.detach().double().clamp(-1, 1) + 1) / 2 for image in (x, truth))
    return first, second


def _fits_window(x: Tensor) -> bool:
    return min(x.shape[-2:]) >= _SSIM_WINDOW


def finite_or_none(value: float | Tensor) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
