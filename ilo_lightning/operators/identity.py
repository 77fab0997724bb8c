"""Denoising: the whole image is seen, through noise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import LinearOperator, check_image_shape


class Denoising(LinearOperator):
    """The identity, A = I: what there is to solve is in the noise.

    Args:
        image_shape: (C, H, W).

    Raises:
        ValueError: if ``image_shape`` is not three positive integers.
    """

    measures_pictures = True
    keeps_range = True

    def __init__(self, image_shape: Sequence[int]) -> None:
        shape = check_image_shape(image_shape)
        super().__init__(shape, shape)

    def forward(self, image: Tensor) -> Tensor:
        """The images themselves, ``(B, C, H, W)``; not a copy."""
        return image

    def adjoint(self, y: Tensor) -> Tensor:
        """y itself; not a copy."""
        return y

    def picture(self, y: Tensor) -> Tensor:
        """y itself: the noisy picture."""
        return y
