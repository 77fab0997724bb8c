"""The course of the optimisation, image by image."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..problem import InverseProblem


class History(pl.Callback):
    """Keeps the data fit of every image at every step, with its stage and learning rate."""

    def __init__(self) -> None:
        self.fit: list[Tensor] = []
        """Data fit ``(B,)`` at each step, of the point before the update."""
        self.stage: list[int] = []
        self.lr: list[float] = []
        self.seconds = 0.0
        """Time spent between the first step and the last, over all runs that led here."""
        self._next_lr, self._clock = 0.0, time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        if self.fit:  # what a checkpoint held comes back on the CPU
            self.fit = list(torch.stack(self.fit).to(pl_module.device).unbind())

    def on_train_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        self._clock = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: InverseProblem, batch: Any, batch_idx: int) -> None:
        self._next_lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: InverseProblem, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert pl_module.last_fit is not None
        self.fit.append(pl_module.last_fit)
        self.stage.append(pl_module.stage_index)
        self.lr.append(self._next_lr)
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def state_dict(self) -> dict[str, Any]:
        return {
            "fit": torch.stack(self.fit) if self.fit else None,
            "stage": self.stage,
            "lr": self.lr,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fit = [] if state_dict["fit"] is None else list(state_dict["fit"].unbind())
        self.stage, self.lr = list(state_dict["stage"]), list(state_dict["lr"])
        self.seconds = state_dict["seconds"]
