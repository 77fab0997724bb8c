"""Stay in a small l1 ball around what the previous layers can make."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..generators.base import variable_of
from ..problem import InverseProblem
from ..projections import project_l1_ball


class L1Projection(pl.Callback):
    """After each step, project every free tensor that has a radius onto its l1 ball (ILO, Algorithm 1).

    The centre is the stage's first point, the previous stage's solution advanced to this layer, or what the layers
    above can make of it (``InverseProblem.center``). A relative radius is a fraction of the centre's own l1 norm, image
    by image. The radius of a stage's ``auto`` variables is each image's own (``InverseProblem.radii``).
    """

    def __init__(self) -> None:
        self._stage: int | None = None
        self._radii: dict[str, Tensor] = {}

    def _radii_of(self, problem: InverseProblem) -> dict[str, Tensor]:
        """Radius ``(B,)`` of every constrained tensor, worked out once per stage."""
        if self._stage != problem.stage_index:
            self._stage, self._radii = problem.stage_index, {}
            for name, parameter in problem.variables.items():
                auto = variable_of(name) in problem.stage.auto
                radius = problem.radii if auto else problem.stage.radii.get(variable_of(name))
                if radius is not None and parameter.requires_grad:
                    center = problem.center[name].flatten(1)
                    scale = center.abs().sum(dim=1) if problem.stage.relative else torch.ones_like(center[:, 0])
                    # An image that is no longer finite has no ball: leave it to itself.
                    self._radii[name] = torch.nan_to_num(radius * scale, nan=torch.inf)
        return self._radii

    @torch.no_grad()
    def distances(self, problem: InverseProblem) -> dict[str, Tensor]:
        """Distance ``(B,)`` of each constrained tensor from its centre, as a fraction of its radius."""
        found = {}
        for name, radius in self._radii_of(problem).items():
            distance = (problem.variables[name] - problem.center[name]).flatten(1).abs().sum(dim=1)
            found[name] = torch.where(radius > 0, distance / radius, 1.0)  # a ball of one point is all surface
        return found

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: InverseProblem, batch: object, batch_idx: int
    ) -> None:
        # A stage whose ball isn't centred on its first point may begin outside of it.
        if batch_idx == 0 and pl_module.stage.center == "range":
            self.on_train_batch_end(trainer, pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: object) -> None:
        for name, radius in self._radii_of(pl_module).items():
            parameter = pl_module.variables[name]
            parameter.copy_(project_l1_ball(parameter, radius, pl_module.center[name]))
