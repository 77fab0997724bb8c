"""The best point of each image over all stages."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..generators.base import LatentPoint
from ..problem import InverseProblem


class BestIterate(pl.Callback):
    """Remembers, per image, the point with the lowest data fit seen so far.

    A step's data fit belongs to the point *before* its update, so the point is copied before the optimiser moves it.
    When the fit ends, the final point is evaluated once more.

    Args:
        rank: what is compared: the ``data_fit`` alone, so that neither regularisers nor the true image have a say, or
            the ``loss`` with its penalties; the data fit of what was ``held_out``; or the squared error to the
            ``truth``, where an experiment gives it.
        last: keep the last point instead, whatever it is worth.
    """

    def __init__(self, rank: str = "data_fit", last: bool = False) -> None:
        self.rank, self.last = rank, last
        self.fit: Tensor | None = None
        """Data fit ``(B,)`` of the best points."""
        self.score: Tensor | None = None
        """What they are ranked by, ``(B,)``."""
        self.step: Tensor | None = None
        """How many steps led to them, ``(B,)``."""
        self.stages: Tensor | None = None
        """In which stage they are points, ``(B,)``: in the next one, where a stage's last step led to them."""
        self._steps = 0
        self._stage = -1
        self._points: list[LatentPoint] = []  # batch-1 points of the stages before
        self._batch: LatentPoint | None = None  # of this stage, as one batch: cheap to update

    def on_fit_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        if self.fit is not None and self._batch is not None:
            device = pl_module.device  # what a checkpoint held comes back on the CPU
            self.fit, self.score = self.fit.to(device), None if self.score is None else self.score.to(device)
            self.step = None if self.step is None else self.step.to(device)
            self.stages = None if self.stages is None else self.stages.to(device)
            self._batch = self._batch.to(device)
            self._points = [point.to(device) for point in self._points]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: InverseProblem, loss: Tensor) -> None:
        self.observe(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        pl_module.to(trainer.strategy.root_device)  # Lightning has just moved it to the CPU, away from the generator
        # In the precision of the steps, or two precisions would be ranked together.
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            pl_module.evaluate()
        self.observe(pl_module)

    @torch.no_grad()
    def observe(self, problem: InverseProblem) -> None:
        """Compare the latest data fit, and keep the current point of each image that improved."""
        fit = problem.last_fit
        scores = {"loss": problem.last_loss, "truth": problem.last_error, "held_out": problem.last_held_out}
        score = scores.get(self.rank, fit)
        assert fit is not None and score is not None
        if self.fit is None or self.score is None:
            self.fit, self.score = torch.full_like(fit, torch.inf), torch.full_like(score, torch.inf)
            self.step = torch.zeros(len(fit), dtype=torch.long, device=fit.device)
            self.stages = torch.zeros_like(self.step)
        first = problem.stage_index != self._stage
        if first:
            if self._batch is not None:
                self._points = self.points
            self._stage = problem.stage_index
            self._batch = problem.point.detach()
        assert self._batch is not None and self.step is not None and self.stages is not None
        improved = score.isfinite() if self.last else score < self.score
        self.fit, self.score = torch.where(improved, fit, self.fit), torch.where(improved, score, self.score)
        self.step = torch.where(improved, self._steps, self.step)
        self.stages = torch.where(improved, self._stage, self.stages)
        self._steps += 1
        if not first:
            for name, tensor in problem.point.tensors.items():
                mask = improved.view(-1, *[1] * (tensor.ndim - 1))
                kept = self._batch[name]
                torch.where(mask, tensor, kept, out=kept)

    @property
    def points(self) -> list[LatentPoint]:
        """The best points, one batch-1 point per image, each with its own layer."""
        assert self._batch is not None and self.stages is not None
        here = (self.stages == self._stage).tolist()
        # The very first observation has no earlier point to fall back on, even where its data fit isn't finite.
        return [
            self._batch.select([i]) if is_here or not self._points else self._points[i]
            for i, is_here in enumerate(here)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {
            "fit": self.fit,
            "score": self.score,
            "step": self.step,
            "stages": self.stages,
            "steps": self._steps,
            "stage": self._stage,
            "points": [point.packed() for point in self._points],
            "batch": self._batch and self._batch.packed(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fit, self.score, self.stages = state_dict["fit"], state_dict["score"], state_dict["stages"]
        self._stage, self.step, self._steps = state_dict["stage"], state_dict["step"], state_dict["steps"]
        self._points = [LatentPoint(**point) for point in state_dict["points"]]
        self._batch = state_dict["batch"] and LatentPoint(**state_dict["batch"])
