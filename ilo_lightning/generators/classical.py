"""What was there before learned generators, as generators: an image is its pixels, or its wavelet coefficients. With a
penalty on the code the same engine solves the classical problems: total variation, the Lasso."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators.base import check_image_shape
from .base import LatentPoint, LayeredGenerator

DB4 = (
    0.23037781330885523, 0.7148465705525415, 0.6308807679295904, -0.02798376941698385,
    -0.18703481171888114, 0.030841381835986965, 0.032883011666982945, -0.010597401784997278,
)  # fmt: skip
"""Scaling filter of Daubechies' orthonormal wavelet with four vanishing moments (Daubechies 1988, table 1)."""


class Pixels(LayeredGenerator):
    """The image is its own code: ``latent`` is ``(B, C, H, W)``, and G the identity.

    Args:
        image_shape: (C, H, W).
    """

    spaces = ("pixels",)
    num_layers = 1

    def __init__(self, image_shape: Sequence[int]):
        super().__init__()
        self.image_shape = check_image_shape(image_shape)
        self.register_buffer("place", torch.empty(0), persistent=False)  # says on which device it is
        self.eval()

    def sample(self, rngs: Sequence[torch.Generator], space: str | None = None) -> LatentPoint:
        space = self.check_space(space)
        noise = [2 * torch.rand(self.image_shape, generator=rng, dtype=self.dtype) - 1 for rng in rngs]
        return LatentPoint(0, {"latent": torch.stack(noise).to(self.device)}, space)

    def advance(self, point: LatentPoint, layer: int) -> LatentPoint:
        self.check_layer(point, layer)
        return point

    def forward(self, point: LatentPoint) -> Tensor:
        return point["latent"]


class Wavelets(Pixels):
    """The image is made of Daubechies wavelets: ``latent`` holds the coefficients of an orthonormal transform, periodic
    at the borders, with the coarsest scale in its corner.

    Args:
        image_shape: (C, H, W); both sides divisible by ``2^levels``.
        levels: scales; None: as many as the sides allow down to 8 pixels, at most 4.

    Raises:
        ValueError: for sides that can't be halved so often.
    """

    spaces = ("wavelets",)
    filter: Tensor

    def __init__(self, image_shape: Sequence[int], levels: int | None = None):
        super().__init__(image_shape)
        _, height, width = self.image_shape
        if levels is None:
            halvings = math.gcd(height, width)
            levels = max(0, min(4, (halvings & -halvings).bit_length() - 1, int(math.log2(min(height, width) / 8))))
        if levels < 0 or height % 2**levels or width % 2**levels:
            raise ValueError(f"levels={levels}: {height}×{width} can't be halved so often; choose fewer")
        self.levels = levels
        low = torch.tensor(DB4, dtype=torch.float64)
        high = low.flip(0) * torch.tensor([1.0, -1.0] * (len(DB4) // 2), dtype=torch.float64)
        self.register_buffer("filter", torch.stack([low, high])[:, None].float())

    def forward(self, point: LatentPoint) -> Tensor:
        """The synthesis: from the coarsest scale up, rows, then columns."""
        image = point["latent"]
        for level in reversed(range(self.levels)):
            height, width = (side >> level for side in self.image_shape[1:])
            corner = image[:, :, :height, :width]
            corner = self._join(self._join(corner, 2), 3)
            image = F.pad(corner, (0, self.image_shape[2] - width, 0, self.image_shape[1] - height)) + (
                image * self._outside(height, width, image)
            )
        return image

    def _outside(self, height: int, width: int, like: Tensor) -> Tensor:
        """1 outside of the corner, 0 in it."""
        mask = torch.ones(self.image_shape[1:], dtype=like.dtype, device=like.device)
        mask[:height, :width] = 0
        return mask

    def _join(self, x: Tensor, axis: int) -> Tensor:
        """Low and high half-band along an axis, one after the other, put together; periodic."""
        lines = x.transpose(axis, -1)
        shape, taps = lines.shape, self.filter.shape[-1]
        bands = lines.reshape(-1, 2, shape[-1] // 2)
        long = F.conv_transpose1d(bands, self.filter.to(x), stride=2)  # (n - 2) + taps entries
        rest = long[..., shape[-1] :]
        joined = long[..., : shape[-1]]
        for start in range(0, taps - 2, shape[-1]):
            piece = rest[..., start : start + shape[-1]]
            joined = joined + F.pad(piece, (0, shape[-1] - piece.shape[-1]))
        return joined.reshape(shape).transpose(axis, -1)
