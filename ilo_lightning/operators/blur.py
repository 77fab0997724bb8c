"""Blur: the image is seen through a known point spread function."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LinearOperator, check_image_shape, is_number


class Blur(LinearOperator):
    """Each channel correlated with one kernel; beyond its border the image is mirrored.

    Args:
        image_shape: (C, H, W).
        kernel: ``(h, w)``, both odd, non-negative, not zero; it is divided by its sum.

    Raises:
        ValueError: if the kernel is something else, or reaches further than the image's mirror image.
    """

    measures_pictures = True
    keeps_range = True

    _kernel: Tensor

    def __init__(self, image_shape: Sequence[int], kernel: Tensor | Sequence[Sequence[float]]) -> None:
        shape = check_image_shape(image_shape)
        try:
            taps = torch.as_tensor(kernel, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"task.kernel={kernel}: expected rows of numbers, all equally long ({error})") from error
        if taps.ndim != 2 or not all(size % 2 for size in taps.shape):
            raise ValueError(f"task.kernel of shape {tuple(taps.shape)}: expected (height, width), both odd")
        if not bool((taps.isfinite() & (taps >= 0)).all()) or not bool(taps.sum() > 0):
            raise ValueError("task.kernel: expected finite numbers >= 0 that are not all 0")
        for reach, size in zip((taps.shape[0] // 2, taps.shape[1] // 2), shape[1:], strict=True):
            if reach >= size:
                raise ValueError(
                    f"task.kernel of shape {tuple(taps.shape)}: reaches {reach} pixels, and the image is {size} pixels "
                    "long; take a smaller kernel"
                )
        super().__init__(shape, shape)
        self.register_buffer("_kernel", (taps / taps.sum()).to(torch.float32))

    def forward(self, image: Tensor) -> Tensor:
        """The blurred images ``(B, C, H, W)``."""
        rows, columns = (size // 2 for size in self._kernel.shape)
        planes = F.pad(image.flatten(0, 1)[:, None], (columns, columns, rows, rows), mode="reflect")
        return F.conv2d(planes, self._kernel.to(image.dtype)[None, None]).reshape(image.shape)

    def picture(self, y: Tensor) -> Tensor:
        """y itself: the blurred picture."""
        return y


class GaussianBlur(Blur):
    """A Gaussian point spread function, cut off at 4 σ.

    Args:
        image_shape: (C, H, W).
        sigma: standard deviation in pixels, finite and > 0.

    Raises:
        ValueError: if ``sigma`` is something else, or the kernel is too large for the image.
    """

    def __init__(self, image_shape: Sequence[int], sigma: float = 2.0) -> None:
        if not is_number(sigma) or sigma <= 0:
            raise ValueError(f"task.sigma={sigma!r}: expected a finite number of pixels > 0")
        largest = (min(check_image_shape(image_shape)[1:]) - 1) / 4
        if sigma > largest:
            raise ValueError(f"task.sigma={sigma:g}: reaches beyond the image's mirror image; use at most {largest:g}")
        reach = math.ceil(4 * sigma)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
        super().__init__(image_shape, taps[:, None] * taps)


class MotionBlur(Blur):
    """The camera moved straight and evenly while the shutter was open.

    Args:
        image_shape: (C, H, W).
        length: of the path in pixels, finite and > 0.
        angle: its direction in degrees, counter-clockwise from the right.

    Raises:
        ValueError: if ``length`` or ``angle`` is something else, or the path is too long for the image.
    """

    def __init__(self, image_shape: Sequence[int], length: float = 9.0, angle: float = 45.0) -> None:
        if not is_number(length) or length <= 0:
            raise ValueError(f"task.length={length!r}: expected a finite number of pixels > 0")
        if not is_number(angle):
            raise ValueError(f"task.angle={angle!r}: expected a finite number of degrees")
        largest = 2 * (min(check_image_shape(image_shape)[1:]) - 2)
        if length > largest:
            raise ValueError(f"task.length={length:g}: reaches beyond the image's mirror image; use at most {largest}")
        super().__init__(image_shape, path_kernel(float(length), math.radians(angle)))


def path_kernel(length: float, angle: float, samples_per_pixel: int = 64) -> Tensor:
    """A straight path of ``length`` pixels through the middle, each of its points shared bilinearly by four pixels."""
    reach = math.ceil(length / 2) + 1
    count = max(2, math.ceil(length * samples_per_pixel))
    along = (torch.arange(count, dtype=torch.float64) + 0.5) / count * length - length / 2
    rows, columns = reach - along * math.sin(angle), reach + along * math.cos(angle)
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for row in (0, 1):
        for column in (0, 1):
            share = (1 - (rows - rows.floor() - row).abs()) * (1 - (columns - columns.floor() - column).abs())
            kernel.index_put_((rows.floor().long() + row, columns.floor().long() + column), share, accumulate=True)
    return kernel
