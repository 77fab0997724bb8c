"""Super-resolution: the image is seen at a lower resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .base import LinearOperator, check_image_shape, is_integer

MAX_FACTOR = 64


class SuperResolution(LinearOperator):
    """The image reduced ``factor`` times in height and width, by one explicit matrix per axis: y = R_h x R_wᵀ.

    Every factor is centred: pixel i of y lies over the middle of pixels ``factor · i … factor · (i + 1) - 1`` of x.
    Factor 1 is the identity, exactly.

    Args:
        image_shape: (C, H, W).
        factor: an integer in 1 … 64 that divides H and W.
        kernel: ``"bicubic"``, the cubic convolution of Keys (1981) with a = -1/2, stretched by the factor against
            aliasing (as Pillow and torch's ``interpolate(antialias=True)`` do it); ``"area"``, the mean over blocks.

    Raises:
        ValueError: if ``factor`` is not such an integer, or ``kernel`` is neither.
    """

    measures_pictures = True

    _rows: Tensor
    _columns: Tensor

    def __init__(self, image_shape: Sequence[int], factor: int = 4, kernel: str = "bicubic") -> None:
        channels, height, width = check_image_shape(image_shape)
        if not is_integer(factor) or not 1 <= factor <= MAX_FACTOR:
            raise ValueError(f"task.factor={factor!r}: expected an integer in 1 … {MAX_FACTOR}")
        if height % factor or width % factor:
            divisors = [n for n in range(1, MAX_FACTOR + 1) if height % n == 0 and width % n == 0]
            raise ValueError(
                f"task.factor={factor!r}: it doesn't divide the image's {height}x{width} pixels; "
                f"use one of {', '.join(map(str, divisors))}, or resize the images"
            )
        if kernel not in KERNELS:
            raise ValueError(f"task.kernel={kernel!r}: expected one of {', '.join(KERNELS)}")
        factor = int(factor)
        super().__init__((channels, height, width), (channels, height // factor, width // factor))
        self.factor = factor
        self.kernel = kernel
        self.keeps_range = kernel == "area" or factor == 1  # the bicubic kernel overshoots
        self.register_buffer("_rows", reduction_matrix(height, factor, kernel).to(torch.float32))
        self.register_buffer("_columns", reduction_matrix(width, factor, kernel).to(torch.float32))

    def forward(self, image: Tensor) -> Tensor:
        """The low-resolution images, ``(B, C, H/factor, W/factor)``; the images themselves at factor 1."""
        if self.factor == 1:
            return image
        return self._rows.to(image.dtype) @ (image @ self._columns.to(image.dtype).T)

    def adjoint(self, y: Tensor) -> Tensor:
        """R_hᵀ y R_w, ``(B, C, H, W)``."""
        if self.factor == 1:
            return y
        return (self._rows.to(y.dtype).T @ y) @ self._columns.to(y.dtype)

    def picture(self, y: Tensor) -> Tensor:
        """y itself: the low-resolution picture."""
        return y


def reduction_matrix(size: int, factor: int, kernel: str) -> Tensor:
    """The float64 matrix ``(size // factor, size)`` that reduces one axis; each row sums to 1, at the borders too.

    Row i weighs input pixel j by ``kernel(d / factor)``, where d is the distance between the centre of j and the
    centre of output pixel i, both in input pixels.
    """
    inputs = torch.arange(size, dtype=torch.float64) + 0.5
    outputs = factor * (torch.arange(size // factor, dtype=torch.float64) + 0.5)
    weights = KERNELS[kernel]((inputs - outputs[:, None]) / factor)
    return weights / weights.sum(dim=1, keepdim=True)


def _bicubic(t: Tensor) -> Tensor:
    """Keys 1981, equation 15: the cubic convolution kernel with a = -1/2, of support [-2, 2]."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def _area(t: Tensor) -> Tensor:
    """The box of width 1."""
    return (t.abs() < 0.5).to(t.dtype)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _bicubic, "area": _area}
