"""3×3 convolution with a quarter of the multiplications: Winograd's minimal filtering F(4×4, 3×3).

Winograd, *Arithmetic Complexity of Computations* (1980); for convolutional networks: Lavin and Gray, *Fast Algorithms
for Convolutional Neural Networks*, CVPR 2016. A 4×4 tile of the output is ``Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A`` for the filter g
and the 6×6 tile d of the input; summed over input channels, the products are 36 matrix products.

The interpolation points are 0, ±√½, ±√2, ∞. With the usual 0, ±1, ±2, ∞ the rounding error is six times as large; with
these a convolution of 256 channels is off by 1.4e-6 (root mean square, of its standard deviation), against 2e-7 of a
direct one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE, WINDOW = 4, 6
POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2.0), -math.sqrt(2.0))
TILES_AT_ONCE = 1024
"""So many tiles make efficient matrix products; more would only take more memory."""


def _toom_cook() -> tuple[Tensor, Tensor, Tensor]:
    """Aᵀ ``(4, 6)``, G ``(6, 3)`` and Bᵀ ``(6, 6)`` for ``POINTS`` and ∞, in float64."""
    a, g, b = np.zeros((TILE, WINDOW)), np.zeros((WINDOW, 3)), np.zeros((WINDOW, WINDOW))
    for i, point in enumerate(POINTS):
        others = np.array([other for other in POINTS if other != point])
        a[:, i] = point ** np.arange(TILE)
        g[i] = point ** np.arange(3) / np.prod(point - others)
        b[i, :-1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(POINTS)[::-1]
    return torch.from_numpy(a), torch.from_numpy(g), torch.from_numpy(b)


_A, _G, _B = _toom_cook()


def transform_filters(weight: Tensor) -> Tensor:
    """``G g Gᵀ`` of the filters ``(out, in, 3, 3)``, as ``(36, in, out)`` in their own type."""
    outputs, inputs = weight.shape[:2]
    gg = torch.kron(_G, _G).to(weight.device)  # (36, 9)
    filters = gg @ weight.permute(2, 3, 1, 0).reshape(9, -1).double()
    return filters.to(weight.dtype).view(WINDOW**2, inputs, outputs)


def convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Correlate ``(B, in, H, W)`` with ``transform_filters(weight)``, padding 1: ``F.conv2d(x, weight, padding=1)``.

    The result is in channels_last.
    """
    batch, channels, height, width = x.shape
    outputs = filters.shape[2]
    down, across = -(-height // TILE), -(-width // TILE)
    bb, aa = (torch.kron(matrix, matrix).to(x) for matrix in (_B, _A))
    result = x.new_empty(batch, down, TILE, across, TILE, outputs)
    images = max(1, TILES_AT_ONCE // (down * across))
    for part, out in zip(x.split(images), result.split(images), strict=True):
        padding = (0, 0, 1, across * TILE + 1 - width, 1, down * TILE + 1 - height)
        padded = F.pad(part.permute(0, 2, 3, 1), padding)
        windows = padded.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE)  # (b, down, across, in, 6, 6)
        windows = windows.permute(4, 5, 0, 1, 2, 3).reshape(WINDOW**2, -1)
        products = torch.bmm((bb @ windows).view(WINDOW**2, -1, channels), filters)  # (36, tiles, out)
        tiles = (aa @ products.view(WINDOW**2, -1)).view(TILE, TILE, len(part), down, across, outputs)
        out.copy_(tiles.permute(2, 3, 0, 4, 1, 5))
    result = result.view(batch, down * TILE, across * TILE, outputs)[:, :height, :width]
    return result.permute(0, 3, 1, 2)
