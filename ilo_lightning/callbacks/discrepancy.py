"""Leave an image as it is once it agrees with y as well as the noise lets the truth agree."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..problem import InverseProblem


class Discrepancy(pl.Callback):
    """An image whose mean squared error has come down to ``Stage.enough``, the noise's variance, is done: no later step
    moves it. What is fitted beyond that is noise (Morozov's discrepancy principle, 1966).

    Runs after the projections. The other images of the batch go on.
    """

    def __init__(self) -> None:
        self.done: Tensor | None = None
        """``(B,)``: which images are."""
        self._kept: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        if self.done is not None:  # what a checkpoint held comes back on the CPU
            self.done = self.done.to(pl_module.device)

    @torch.no_grad()
    def on_before_backward(self, trainer: pl.Trainer, pl_module: InverseProblem, loss: Tensor) -> None:
        enough, fit = pl_module.stage.enough, pl_module.last_fit
        if enough is None or fit is None:
            return
        reached = fit <= enough
        self.done = reached if self.done is None else self.done | reached
        if bool(self.done.any()):
            self._kept = {name: p.detach().clone() for name, p in pl_module.variables.items() if p.requires_grad}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: object) -> None:
        for name, kept in self._kept.items():
            assert self.done is not None
            parameter = pl_module.variables[name]
            parameter.copy_(torch.where(self.done.view(-1, *[1] * (parameter.ndim - 1)), kept, parameter))
        self._kept = {}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]
