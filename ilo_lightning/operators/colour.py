"""What is lost of colours and brightness: colourisation, clipped highlights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ForwardOperator, LinearOperator, check_image_shape, is_number

REC_601 = (0.299, 0.587, 0.114)


class Greyscale(LinearOperator):
    """Only the brightness is seen, y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601): the image is to be coloured.

    Args:
        image_shape: (3, H, W).

    Raises:
        ValueError: if the images don't have three channels.
    """

    measures_pictures = True
    keeps_range = True

    _weights: Tensor

    def __init__(self, image_shape: Sequence[int]) -> None:
        channels, height, width = check_image_shape(image_shape)
        if channels != 3:
            raise ValueError(
                f"task.operator: images of shape {(channels, height, width)} have no colours to give back; "
                "colourisation is for a generator of 3 channels"
            )
        super().__init__((channels, height, width), (1, height, width))
        self.register_buffer("_weights", torch.tensor(REC_601)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """The grey images ``(B, 1, H, W)``."""
        return (self._weights.to(image.dtype) * image).sum(dim=1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each channel's weight times y."""
        return self._weights.to(y.dtype) * y

    def picture(self, y: Tensor) -> Tensor:
        """y itself: the grey picture."""
        return y


class Clipping(ForwardOperator):
    """An over-exposed picture: y = clip(gain · (x + 1) - 1, -1, 1), so that intensities above 1/gain are lost in white.

    Not linear; where y is clipped, its gradient is 0.

    Args:
        image_shape: (C, H, W).
        gain: how much too long the exposure was, finite and > 0.

    Raises:
        ValueError: if ``gain`` is something else.
    """

    measures_pictures = True
    keeps_range = True

    def __init__(self, image_shape: Sequence[int], gain: float = 2.0) -> None:
        if not is_number(gain) or gain <= 0:
            raise ValueError(f"task.gain={gain!r}: expected a finite number > 0")
        shape = check_image_shape(image_shape)
        super().__init__(shape, shape)
        self.gain = float(gain)

    def forward(self, image: Tensor) -> Tensor:
        """The clipped images ``(B, C, H, W)``."""
        return (self.gain * (image + 1) - 1).clamp(-1, 1)

    def picture(self, y: Tensor) -> Tensor:
        """y itself: the clipped picture."""
        return y

    def extra_repr(self) -> str:
        return f"gain={self.gain}"
