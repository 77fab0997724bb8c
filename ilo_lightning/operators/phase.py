"""Phase retrieval: only the magnitude of a diffraction pattern is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import generator_for
from .base import ForwardOperator, check_image_shape, check_seed, is_number

LARGEST = 64
"""Oversampling; from 2 to 4 on, more says little."""


class PhaseRetrieval(ForwardOperator):
    """``y = |F P D v|`` of the intensities ``v = (x + 1) / 2``, channel by channel.

    D multiplies each pixel by a random phase (a diffuser of known shape, Fannjiang and Liao 2012), P surrounds the
    image by zeros, and F is the unitary discrete Fourier transform: ‖y‖ = ‖v‖. The phases of the pattern are lost.

    Args:
        image_shape: (C, H, W).
        oversampling: number of measured magnitudes per pixel, in 1 … 64; each axis is padded by its square root,
            rounded up to whole pixels. For real images 2 and more leave only a sign open, which v >= 0 settles.
        seed: of the phases, shared by all images.

    Raises:
        ValueError: if ``oversampling`` or ``seed`` is something else.
    """

    _diffuser: Tensor

    def __init__(self, image_shape: Sequence[int], oversampling: float = 4.0, seed: int = 0) -> None:
        channels, height, width = check_image_shape(image_shape)
        if not is_number(oversampling) or not 1 <= oversampling <= LARGEST:
            raise ValueError(f"task.oversampling={oversampling!r}: expected a number in 1 … {LARGEST}")
        padded = [math.ceil(size * math.sqrt(oversampling) - 1e-9) for size in (height, width)]
        super().__init__((channels, height, width), (channels, *padded))
        rng = generator_for(check_seed(seed), "phase retrieval")
        angle = torch.rand(height, width, generator=rng, dtype=torch.float64) * (2 * math.pi)
        # As real numbers, or `.to(dtype)` would take their imaginary part away.
        self.register_buffer("_diffuser", torch.stack([angle.cos(), angle.sin()], dim=-1).to(torch.float32))

    def forward(self, image: Tensor) -> Tensor:
        """Magnitudes ``(B, C, H', W')``, >= 0, zero frequency first."""
        exact = image if image.dtype == torch.float64 else image.float()  # complex numbers have no half precision
        lit = (exact + 1) / 2 * torch.view_as_complex(self._diffuser.to(exact.dtype))
        return torch.fft.fft2(lit, s=self.output_shape[1:], norm="ortho").abs().to(image.dtype)

    def picture(self, y: Tensor) -> Tensor:
        """The pattern on a logarithmic scale, zero frequency in the middle, from its least to its greatest value."""
        pattern = torch.fft.fftshift(y, dim=(-2, -1)).clamp_min(0).log1p()
        low, high = pattern.amin(dim=(1, 2, 3), keepdim=True), pattern.amax(dim=(1, 2, 3), keepdim=True)
        return (pattern - low) / (high - low).clamp_min(1e-12) * 2 - 1
