"""What the reconstruction looked like at the end of each stage."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..problem import InverseProblem


class PictureStrip(pl.Callback):
    """Decodes the stage's last point. For the eye only: it doesn't count as an evaluation of the optimisation."""

    def __init__(self) -> None:
        self.pictures: list[Tensor] = []
        """Images ``(B, C, H, W)`` in [-1, 1] (not clipped) at the end of each stage, on the CPU."""

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        self.pictures.append(pl_module.generator(pl_module.point).cpu())

    def state_dict(self) -> dict[str, Any]:
        return {"pictures": self.pictures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pictures = list(state_dict["pictures"])
