"""Tell the Trainer's loggers how the optimisation goes."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from ..generators.base import variable_of
from ..problem import InverseProblem
from .history import History
from .l1_projection import L1Projection

ON_SURFACE = 0.999
"""From this fraction of the radius on, an image counts as on the surface: projections are exact, sums round."""


class Curves(pl.Callback):
    """Gives the loggers a point every so many steps, and at the last step of every stage. Means over the images:

    loss        what the optimiser minimises
    data_fit    the measurement residual, of the point before the step
    distance_V  how far variable V is from the centre of its l1 ball after the step, as a fraction of the radius
    surface_V   the fraction of images that are on the ball's surface: where it is 1, the radius decides the result
    lr          learning rate of the step
    stage, layer

    A logger that fails says so in one line and is not asked again.

    Args:
        history, projection: the callbacks that keep the course and the balls; they run before this one.
        every: steps between two points.
        before: steps, and stages, that came before this fit.
    """

    def __init__(self, history: History, projection: L1Projection, every: int = 10, before: tuple[int, int] = (0, 0)):
        self.history, self.projection, self.every, self.before = history, projection, every, before
        self._failed: list[Logger] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: InverseProblem, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = len(self.history.fit) - 1
        if not trainer.loggers or (step % self.every and not trainer.is_last_batch):
            return
        metrics = self._measure(pl_module, outputs["loss"])
        for logger in trainer.loggers:
            if logger not in self._failed:
                try:
                    logger.log_metrics(metrics, step=self.before[0] + step)
                except Exception as error:  # whatever it is: a log is no reason to lose the work
                    self._failed.append(logger)
                    print(
                        f"{type(logger).__name__}: {type(error).__name__}: {error}; going on without", file=sys.stderr
                    )

    def _measure(self, problem: InverseProblem, loss: torch.Tensor) -> dict[str, float]:
        fit = self.history.fit[-1]
        means = {"loss": loss.detach() / len(fit), "data_fit": fit.mean()}
        balls: dict[str, list[torch.Tensor]] = {}
        for name, distance in self.projection.distances(problem).items():
            balls.setdefault(variable_of(name), []).append(distance)
        for variable, distances in balls.items():
            together = torch.stack(distances)
            means[f"distance_{variable}"] = together.mean()
            means[f"surface_{variable}"] = (together >= ON_SURFACE).to(fit.dtype).mean()
        values = torch.stack([value.to(fit.dtype) for value in means.values()]).tolist()  # a GPU is waited for once
        return {
            **dict(zip(means, values, strict=True)),
            "lr": self.history.lr[-1],
            "stage": float(self.before[1] + problem.stage_index),
            "layer": float(problem.stage.layer),
        }
