"""Inpainting: some of the pixels are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..randomness import generator_for
from .base import (
    LinearOperator,
    check_fraction,
    check_image_shape,
    check_seed,
    is_integer,
    is_number,
)

CENTRE_BOX = (0.25, 0.25, 0.5, 0.5)


class Inpainting(LinearOperator):
    """y = mask · x, with the mask as weight, so that unobserved pixels never count.

    The tasks are those of ILO (Daras et al. 2021): a box is missing, or all but a random fraction of the pixels. At
    most one of ``box``, ``mask`` and ``fraction`` is given; none means the centre box. All channels of a pixel are
    observed together.

    Args:
        image_shape: (C, H, W).
        box: the hole, ``[top, left, height, width]``: four floats in [0, 1] are fractions of the image's height and
            width (edges are rounded to whole pixels), four ints are pixels.
        mask: path of a PNG of the image's size, white (>= half) where a pixel is observed and black in the hole; or a
            boolean tensor or array ``(H, W)``, true where observed.
        fraction: fraction of the pixels that are observed, in (0, 1]: exactly ``round(fraction · H · W)`` of them, at
            least one, chosen by ``seed``. With the same seed, more pixels contain the fewer.
        seed: which random pixels (>= 0).

    Raises:
        ValueError: if more than one of the three is given; if a value is out of its range; if the box is empty or not
            inside the image; if the mask can't be read or has another size; if nothing is observed.
    """

    measures_pictures = True
    keeps_range = True

    def __init__(
        self,
        image_shape: Sequence[int],
        box: Sequence[float] | None = None,
        mask: str | Path | Tensor | np.ndarray | None = None,
        fraction: float | None = None,
        seed: int = 0,
    ) -> None:
        shape = check_image_shape(image_shape)
        size = shape[1:]
        seed = check_seed(seed)
        given = [
            f"task.{name}"
            for name, value in (("box", box), ("mask", mask), ("fraction", fraction))
            if value is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: expected at most one of them; set the others to null")
        if mask is not None:
            observed = _mask_of(mask, size)
        elif fraction is not None:
            observed = _random_pixels(check_fraction(fraction), size, seed)
        else:
            observed = _outside_box(CENTRE_BOX if box is None else box, size)
        super().__init__(shape, shape, weight=observed.to(torch.float32)[None, None])

    def forward(self, image: Tensor) -> Tensor:
        """mask · x, ``(B, C, H, W)``: 0 in the hole."""
        return self._weight.to(image.dtype) * image

    def adjoint(self, y: Tensor) -> Tensor:
        """mask · y: a mask is its own adjoint."""
        return self(y)

    def picture(self, y: Tensor) -> Tensor:
        """The masked picture, ``(B, C, H, W)``: 0 (mid grey) in the hole."""
        return self(y)


def _outside_box(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """A boolean ``(H, W)`` that is false inside ``[top, left, height, width]``."""
    if isinstance(box, str) or not isinstance(box, Sequence) or len(box) != 4:
        raise ValueError(f"task.box={box!r}: expected [top, left, height, width]")
    pixels = all(is_integer(value) for value in box)
    fractions = all(is_number(value) and not is_integer(value) for value in box)
    if not pixels and not fractions:
        raise ValueError(
            f"task.box={list(box)!r}: expected four finite numbers, all floats (fractions of height and width) or all "
            "integers (pixels); write 0.0 and 1.0 for fractions of 0 and 1"
        )
    top, left, height, width = box
    limits = (1, 1) if fractions else size
    for start, length, limit in ((top, height, limits[0]), (left, width, limits[1])):
        if start < 0 or length < 0 or start + length > limit:
            raise ValueError(
                f"task.box={list(box)!r}: not inside the image; [top, left, height, width] must be >= 0, with "
                f"top + height <= {limits[0]} and left + width <= {limits[1]}"
            )
    scale = size if fractions else (1, 1)
    rows = slice(_nearest(top * scale[0]), _nearest((top + height) * scale[0]))
    columns = slice(_nearest(left * scale[1]), _nearest((left + width) * scale[1]))
    if rows.start == rows.stop or columns.start == columns.stop:
        raise ValueError(
            f"task.box={list(box)!r}: this box is empty in an image of {size[0]}x{size[1]} pixels; enlarge it"
        )
    observed = torch.ones(size, dtype=torch.bool)
    observed[rows, columns] = False
    if not bool(observed.any()):
        raise ValueError(f"task.box={list(box)!r}: it covers the whole image; leave some pixels to observe")
    return observed


def _nearest(position: float) -> int:
    """The nearest integer, halves up: Python's round() sends 0.5 and 2.5 down, 1.5 up."""
    return math.floor(position + 0.5)


def _random_pixels(fraction: float, size: tuple[int, int], seed: int) -> Tensor:
    """A boolean ``(H, W)`` with ``round(fraction · H · W)`` true entries, at least one."""
    height, width = size
    count = max(1, round(fraction * height * width))
    order = torch.randperm(height * width, generator=generator_for(seed, "Inpainting", "pixels", height, width))
    observed = torch.zeros(height * width, dtype=torch.bool)
    observed[order[:count]] = True
    return observed.view(size)


def _mask_of(mask: str | Path | Tensor | np.ndarray, size: tuple[int, int]) -> Tensor:
    """A boolean ``(H, W)`` out of a PNG's path, a boolean tensor or a boolean array; its size must be ``size``."""
    if isinstance(mask, (str, Path)):
        field = f"task.mask={str(mask)!r}"
        observed = _read_mask(Path(mask), field)
    else:
        field = "task.mask"
        is_tensor = isinstance(mask, Tensor) and mask.dtype == torch.bool
        is_array = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not is_tensor and not is_array:
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise ValueError(f"{field}: expected the path of a PNG or a boolean tensor or array (H, W), got {kind}")
        observed = mask.cpu().clone() if isinstance(mask, Tensor) else torch.from_numpy(mask.copy())
    if tuple(observed.shape) != size:
        raise ValueError(
            f"{field}: the mask has (height, width) {tuple(observed.shape)}, the image {size}; resize the mask to "
            f"{size[1]}×{size[0]} pixels (width × height)"
        )
    if not bool(observed.any()):
        raise ValueError(f"{field}: the mask is black everywhere; leave some pixels to observe (white)")
    return observed


def _read_mask(path: Path, field: str) -> Tensor:
    """A boolean ``(H, W)``: true where the PNG is white (at least half)."""
    try:
        with Image.open(path.expanduser(), formats=["PNG"]) as image:
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError(f"{field}: the mask has transparent pixels; paint it in opaque black and white")
            if image.mode.startswith("I"):  # 16 bits: convert("L") would clip, not scale
                return torch.from_numpy(np.asarray(image) >= 1 << 15)
            return torch.from_numpy(np.asarray(image.convert("L")) >= 128)
    except UnidentifiedImageError as error:
        raise ValueError(f"{field}: this is not a PNG image; convert the mask to PNG") from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some kinds of damage
        raise ValueError(f"{field}: the mask can't be read ({error})") from error
