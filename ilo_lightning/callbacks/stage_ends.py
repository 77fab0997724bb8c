"""Where each stage ended."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from ..generators.base import LatentPoint
from ..problem import InverseProblem


class StageEnds(pl.Callback):
    """Keeps the last point of every stage, for pictures of the way: they are decoded when it is known of which copies
    anyone wants to see them."""

    def __init__(self) -> None:
        self.points: list[LatentPoint] = []
        """On the CPU."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        self.points.append(pl_module.point.detach().to("cpu"))

    def state_dict(self) -> dict[str, Any]:
        return {"points": [point.packed() for point in self.points]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = [LatentPoint(**point) for point in state_dict["points"]]
