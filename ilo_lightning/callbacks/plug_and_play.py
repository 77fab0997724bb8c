"""A denoiser in place of a prior: BM3D of the image after each step."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ..problem import InverseProblem
from ..schedule import ScheduleError

SMALLEST = 16
"""Pixels of a side: BM3D compares blocks of 8×8, and the package crashes where there is only one."""
LICENCE = (
    "BM3D is Tampere University's, free for non-commercial use only; publications that use it must refer to its authors"
)


class PlugAndPlay(pl.Callback):
    """After each step of a stage with ``bm3d``, replace the image, which must be its own code, by BM3D of it.

    After a gradient step on the data fit this is proximal gradient descent with a denoiser in place of the proximal
    map: plug-and-play (Venkatakrishnan et al. 2013; Kamilov et al. 2017).
    """

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: object) -> None:
        sigma = pl_module.stage.bm3d
        if sigma is not None:
            for parameter in pl_module.variables.values():
                parameter.copy_(denoised(parameter, sigma))


def denoised(images: Tensor, sigma: float) -> Tensor:
    """BM3D of images ``(B, C, H, W)`` in [-1, 1] with noise of deviation ``sigma``; one that isn't finite stays."""
    values = ((images + 1) / 2).double().cpu().numpy()
    results = [_bm3d(image, sigma / 2) if np.isfinite(image).all() else image for image in values]
    return (2 * torch.from_numpy(np.stack(results)) - 1).to(images)


def check_bm3d(sigma: float, space: str, shape: tuple[int, int, int]) -> None:
    """Refuse images that aren't their own code or are too small, or a missing package, before any work.

    Raises:
        ScheduleError: saying what would do.
    """
    if space != "pixels":
        raise ScheduleError(f"method.bm3d={sigma}: BM3D needs the image as code, not {space}; use generator=pixels")
    if min(shape[1:]) < SMALLEST:
        raise ScheduleError(
            f"method.bm3d={sigma}: images of {shape[1]}×{shape[2]} are too small for BM3D, which needs "
            f"{SMALLEST}×{SMALLEST}; use larger ones, or method.bm3d=null"
        )
    _package()


@functools.cache
def _package() -> Any:
    """The package ``bm3d``; its licence is told once."""
    try:
        import bm3d
    except ImportError as error:
        raise ScheduleError("method.bm3d: needs the package bm3d; pip install 'ilo-lightning[bm3d]'") from error
    print(f"method.bm3d: {LICENCE}", file=sys.stderr)
    return bm3d


def _bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """BM3D of one image ``(C, H, W)`` in [0, 1]; of colours, in luminance and chrominances."""
    bm3d = _package()
    profile = bm3d.BM3DProfile()
    profile.num_threads = 1  # several add up in another order each time
    if _is_coloured(image):
        return bm3d.bm3d_rgb(image.transpose(1, 2, 0), sigma, profile).transpose(2, 0, 1)
    return np.stack([bm3d.bm3d(channel, sigma, profile) for channel in image])


def _is_coloured(image: np.ndarray) -> bool:
    """Whether an image has three channels that differ. The package scales each of the opponent colours to [0, 1], and
    divides by 0 where one is the same all over."""
    if len(image) != 3:
        return False
    red, green, blue = image
    return all(float(np.ptp(colour)) > 1e-9 for colour in (red + green + blue, red - blue, red - 2 * green + blue))
