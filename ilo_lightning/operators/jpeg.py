"""JPEG: the image is seen as a compressed file shows it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .base import ForwardOperator, check_image_shape, is_integer


class JPEG(ForwardOperator):
    """The picture that a JPEG file of this quality holds, written and read by libjpeg (through Pillow).

    Rounding has no useful gradient, so there the image passes straight through (Bengio et al. 2013, arXiv 1308.3432):
    forward is the file's picture, and the gradient is that of the identity on [-1, 1].

    Args:
        image_shape: (C, H, W) with 1 or 3 channels.
        quality: an integer in 1 … 100; the lower, the smaller the file.

    Raises:
        ValueError: if ``quality`` or the number of channels is something else.
    """

    measures_pictures = True
    keeps_range = True
    straight_through = True

    def __init__(self, image_shape: Sequence[int], quality: int = 10) -> None:
        shape = check_image_shape(image_shape)
        if shape[0] not in (1, 3):
            raise ValueError(f"image_shape={list(image_shape)}: a JPEG file has 1 or 3 channels")
        if not is_integer(quality) or not 1 <= quality <= 100:
            raise ValueError(f"task.quality={quality!r}: expected an integer in 1 … 100")
        super().__init__(shape, shape)
        self.quality = int(quality)

    def forward(self, image: Tensor) -> Tensor:
        """The decompressed images ``(B, C, H, W)``, with 256 levels from -1 to 1."""
        inside = image.clamp(-1, 1)
        pixels = ((inside.detach() + 1) * 127.5).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        seen = torch.from_numpy(
            np.stack([self._through_a_file(picture) for picture in pixels]) if len(pixels) else pixels
        )
        return inside + (seen.permute(0, 3, 1, 2).to(image) / 127.5 - 1 - inside).detach()

    def _through_a_file(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``(H, W, C)``, compressed and decompressed."""
        file = BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(pixels.shape)

    def picture(self, y: Tensor) -> Tensor:
        """y itself: the file's picture."""
        return y

    def extra_repr(self) -> str:
        return f"quality={self.quality}"
