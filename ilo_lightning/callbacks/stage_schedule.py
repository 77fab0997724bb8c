"""Advance to the next layer when an epoch begins."""

from __future__ import annotations

import pytorch_lightning as pl

from ..problem import InverseProblem


class StageSchedule(pl.Callback):
    """Epoch k is stage k: advance the point to its layer, and give the new point a new optimiser.

    Idempotent, since Lightning may or may not announce the epoch again after a resume.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        if pl_module.stage_index != trainer.current_epoch:
            pl_module.enter(trainer.current_epoch)
            trainer.strategy.setup_optimizers(trainer)
