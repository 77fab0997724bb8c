"""Leave an image as it is once it agrees with y as well as the noise lets the truth agree."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..problem import InverseProblem


class Discrepancy(pl.Callback):
    """An image whose mean squared error has come down to ``Stage.enough``, the noise's variance, is done: no step moves
    it. What is fitted beyond that is noise (Morozov's discrepancy principle, 1966).

    Runs after the projections. The other images of the batch go on.
    """

    def __init__(self) -> None:
        self._done: Tensor | None = None
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_before_backward(self, trainer: pl.Trainer, pl_module: InverseProblem, loss: Tensor) -> None:
        enough, squares = pl_module.stage.enough, pl_module.last_squares
        self._kept = {}
        if enough is not None and squares is not None:
            self._done = squares <= enough
            if bool(self._done.any()):
                self._kept = {name: p.detach().clone() for name, p in pl_module.variables.items() if p.requires_grad}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: object) -> None:
        for name, kept in self._kept.items():
            assert self._done is not None
            parameter = pl_module.variables[name]
            parameter.copy_(torch.where(self._done.view(-1, *[1] * (parameter.ndim - 1)), kept, parameter))
