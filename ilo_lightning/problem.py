"""An inverse problem as a LightningModule: one training step is one optimisation step of a batch of latent points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .generators.base import LatentPoint, LayeredGenerator, advance, decode, index_of, is_made, variable_of
from .losses import DataFit, mean_squared_error
from .losses.penalties import PENALTIES
from .operators.base import ForwardOperator, Measurement
from .optimizers import Langevin, NormalizedDescent
from .precision import full_precision
from .randomness import generator_for
from .schedule import Schedule, Stage

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
Draws = Callable[..., Sequence[torch.Generator]]


class InverseProblem(pl.LightningModule):
    """Find latent points whose images, measured by ``operator``, agree with ``measurement``.

    One epoch is one stage of the schedule. The loss is the *sum* over images of the data fit and the stage's penalties,
    so that images of a batch don't influence each other. The generator and the operator are frozen and stay out of the
    module registry (or every checkpoint would carry them); the point's tensors are the module's parameters, the free
    ones with gradients.

    Args:
        generator: a frozen generator.
        operator: the forward model A.
        measurement: y of the batch, with its weights.
        schedule: the stages.
        point: where to start, at a layer no deeper than the first stage's.
        data_fit: ``losses.mean_squared_error`` unless told; or one for each stage.
        draws: one random generator per image for what is drawn on the way, from the words that say what for.
        truth: the images ``(B, C, H, W)``, for ``rank: truth`` only; nothing is optimised for it.
        radii: ``(B,)``, of the stages' ``auto`` variables.
        held_out: the measurement with other weights, for ``rank: held_out`` only; nothing is optimised for it.
        restraint: more of the loss ``(B,)``, from points and their images; it says nothing about their data fit.
        project: puts a point back into the sets of the method (its spheres).
        at_once: images that the generator makes at a time, see ``generators.base.decode``.
    """

    def __init__(
        self,
        generator: LayeredGenerator,
        operator: ForwardOperator,
        measurement: Measurement,
        schedule: Schedule,
        point: LatentPoint,
        data_fit: DataFit | Sequence[DataFit] | None = None,
        draws: Draws | None = None,
        project: Callable[[LatentPoint], LatentPoint] = lambda point: point,
        truth: Tensor | None = None,
        radii: Tensor | None = None,
        held_out: Measurement | None = None,
        restraint: Callable[[LatentPoint, Tensor], Tensor] | None = None,
        at_once: int | None = None,
    ):
        super().__init__()
        self._frozen: dict[str, Any] = {"generator": generator, "operator": operator}
        self.measurement = measurement
        self.schedule = schedule
        self.data_fits = (
            data_fit if isinstance(data_fit, Sequence) else [data_fit or mean_squared_error] * len(schedule)
        )
        self.draws = draws or (lambda *purpose: [generator_for(i, *purpose) for i in range(point.batch_size)])
        self.project = project
        self.truth = truth
        self.radii = radii
        self.held_out = held_out
        self.restraint = restraint
        self.at_once = at_once
        self.evaluations = 0
        """Generator evaluations with a gradient, spent so far on every image of the batch."""
        self.looks = 0
        """Those without."""
        self.last_fit: Tensor | None = None
        """Data fit ``(B,)`` of the point before the latest update."""
        self.last_loss: Tensor | None = None
        """Loss ``(B,)`` of the same, with the stage's penalties."""
        self.last_error: Tensor | None = None
        """Mean squared error ``(B,)`` of its image, where the truth is given."""
        self.last_squares: Tensor | None = None
        """Mean squared error ``(B,)`` of its measurement, in a stage that stops by it."""
        self.last_held_out: Tensor | None = None
        """Data fit ``(B,)`` of what was held out, where something was."""
        self.variables = nn.ParameterDict()
        self._start = point.detach()
        self._origin = self._start
        self._center: LatentPoint | None = None
        self.enter(0)

    @property
    def generator(self) -> LayeredGenerator:
        return self._frozen["generator"]

    @property
    def operator(self) -> ForwardOperator:
        return self._frozen["operator"]

    @property
    def stage(self) -> Stage:
        return self.schedule[self.stage_index]

    @property
    def point(self) -> LatentPoint:
        """The current point. Its tensors are the live parameters."""
        return LatentPoint(self.stage.layer, dict(self.variables.items()), self._space)

    @property
    def parent(self) -> LatentPoint:
        """The previous stage's solution, from which this stage advanced."""
        return self._start

    @property
    def center(self) -> LatentPoint:
        """Of the stage's balls and of its deviation penalty: the stage's first point, or the nearest to it in the
        range of the layers above."""
        if self._center is None:
            self._center = self._first()
        return self._center

    @torch.no_grad()
    def _first(self) -> LatentPoint:
        """This stage's first point: the parent, advanced to the stage's layer, in the stage's space."""
        stage, point = self.stage, self._start
        if (space := self.schedule.conversion(self.stage_index, point.space)) is not None:
            point = self.generator.convert(point, space)
        deeper = stage.layer > point.layer
        point = advance(self.generator, point, stage.layer, self.at_once)
        if deeper and stage.reset:
            point = point.update(
                {name: torch.zeros_like(t) for name, t in point.tensors.items() if variable_of(name) in stage.reset}
            )
        return point

    def enter(self, index: int) -> None:
        """Begin stage ``index``: advance the current point to its layer and choose what is free."""
        if self.variables:
            self._start = self.point.detach()
            if self._start.layer == self.schedule[0].layer:
                self._origin = self._start
        self.stage_index = index
        self._center = first = self._first()
        self._space = first.space
        self._set_variables(first.detach())
        # Right behind the codes the solution is in their range.
        if self.stage.center == "range" and self._start.layer > self._origin.layer:
            self._center = self._range(first)

    def _range(self, target: LatentPoint) -> LatentPoint:
        """What the layers above ``target`` can make that is nearest to it (ILO, Algorithm 1, lines 5-6): ``argmin Σ
        ‖advance(z) - target‖² / ‖target‖²``, summed over activation and RGB skip, each in units of its own norm, over
        the free variables of the last stage at the codes' layer. Each step counts as an evaluation. The search begins
        at the code that was found last, whose image is the range's own."""
        stage = self.stage
        first = [each for each in self.schedule.stages if each.layer == self._origin.layer][-1]
        free = {name: tensor.clone().requires_grad_() for name, tensor in self._origin.tensors.items()
                if first.frees(variable_of(name), index_of(name))}  # fmt: skip
        compared = [name for name in target.tensors if is_made(name)]
        scale = {name: target[name].flatten(1).square().sum(1).clamp_min(1e-12) for name in compared}
        optimizer = torch.optim.Adam(list(free.values()), lr=first.lr)
        best, distance = self._origin, torch.full_like(next(iter(scale.values())), torch.inf)
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, replace(first, steps=stage.range_steps).factor)
        for step in range(stage.range_steps + 1):
            point = self._origin.update(free)
            with torch.enable_grad():
                made = advance(self.generator, point, stage.layer, self.at_once)
                error = torch.stack(
                    [(made[name] - target[name]).flatten(1).square().sum(1) / scale[name] for name in compared]
                ).sum(0)
            closer = error.detach() < distance
            distance = torch.where(closer, error.detach(), distance)
            best = point.detach().where(closer, best)
            if step == stage.range_steps:
                break
            # What only deeper layers look at, such as their noise maps, has no gradient and stays.
            gradients = torch.autograd.grad(error.sum(), list(free.values()), allow_unused=True)
            for tensor, gradient in zip(free.values(), gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
            ramp.step()
            self.evaluations += 1
            with torch.no_grad():
                for name, tensor in self.project(self._origin.update(free).detach()).tensors.items():
                    if name in free:
                        free[name].copy_(tensor)
        self._origin = best
        with torch.no_grad():
            return advance(self.generator, best, stage.layer, self.at_once).detach()

    def _set_variables(self, point: LatentPoint) -> None:
        stage = self.stage
        self.variables = nn.ParameterDict(
            {
                name: nn.Parameter(tensor, requires_grad=stage.frees(variable_of(name), index_of(name)))
                for name, tensor in point.tensors.items()
            }
        )

    def forward(self, point: LatentPoint) -> Tensor:
        """Images of a point; counts as one evaluation, or one look."""
        if torch.is_grad_enabled():
            self.evaluations += 1
        else:
            self.looks += 1
        return decode(self.generator, point, self.at_once)

    def evaluate(self, step: int | None = None) -> Tensor:
        """Loss ``(B,)`` of the current point; counts as one evaluation, or one look.

        Args:
            step: of the stage, which says how much noise is laid on the code; None: none, as after the last step.
        """
        stage, point = self.stage, self.point
        if step is not None and stage.jitter:
            point = self._jittered(point, step)
        data_fit = self.data_fits[self.stage_index]
        image = self(point)
        with full_precision(image.device):  # in which y was measured, and fits are ranked
            image = image.to(torch.promote_types(image.dtype, torch.float32))
            prediction = self.operator(image)
            fit = data_fit(prediction, self.measurement)
        loss = fit
        if stage.floor:
            loss = loss.clamp_min(stage.floor)
        if stage.sigma is not None:
            loss = loss * (self._observed() / (2 * stage.sigma**2))
        for name, weight in stage.penalties.items():
            loss = loss + weight * PENALTIES[name](self.generator, self.point, self.center, image)
        if self.restraint is not None:
            loss = loss + self.restraint(self.point, image)
        self.last_fit, self.last_loss = fit.detach(), loss.detach()
        if stage.enough is not None:
            self.last_squares = mean_squared_error(prediction.detach(), self.measurement)
        if self.held_out is not None:
            self.last_held_out = data_fit(prediction.detach(), self.held_out).detach()
        if self.truth is not None:
            self.last_error = (image.detach().clamp(-1, 1) - self.truth).flatten(1).square().mean(1)
        return loss

    def _observed(self) -> Tensor:
        """``(B,)``: how many entries of y were observed, each counted with its weight."""
        y, weight = self.measurement.y, self.measurement.weight
        return weight.expand_as(y).flatten(1).sum(dim=1)

    def _jittered(self, point: LatentPoint, step: int) -> LatentPoint:
        """The point with this step's noise on its code."""
        size = self.stage.jitter_at(step) * self.generator.spread(point.space)
        rngs = self.draws("jitter", self.stage_index, step)
        latent = point["latent"]
        noise = [torch.randn(latent.shape[1:], generator=rng, dtype=latent.dtype) for rng in rngs]
        return point.update({"latent": latent + size * torch.stack(noise).to(latent.device)})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.evaluate(batch_idx).sum()

    def train_dataloader(self) -> range:
        """The steps of the stage (there is no data to load: the measurement is the problem's own)."""
        return range(self.schedule[self.trainer.current_epoch].steps)

    def configure_optimizers(self) -> dict[str, Any]:
        stage = self.stage
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.variables.items():
            if parameter.requires_grad:
                groups.setdefault(variable_of(name), []).append(parameter)
        parameters: list[dict[str, Any]] = [
            {"params": group, "lr": stage.lr * stage.lr_scale.get(n, 1.0)} for n, group in groups.items()
        ]
        if stage.optimizer == "langevin":
            index = self.stage_index
            optimizer = Langevin(parameters, stage.lr, lambda step: self.draws("langevin", index, step))
        elif stage.optimizer == "normalized":
            for group, name in zip(parameters, groups, strict=True):  # each code, and each scale of a filter
                group["axes"] = {"latent": 1, "style": 0}.get(name)
            optimizer = NormalizedDescent(parameters, stage.lr)
        else:
            optimizer = OPTIMIZERS[stage.optimizer](parameters, lr=stage.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, stage.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        for module in self._frozen.values():
            module.to(self.device)
        self.measurement = self.measurement.to(self.device)
        self.truth = None if self.truth is None else self.truth.to(self.device)
        self.radii = None if self.radii is None else self.radii.to(self.device)
        self.held_out = None if self.held_out is None else self.held_out.to(self.device)
        self._start, self._origin = self._start.to(self.device), self._origin.to(self.device)
        self._center = None if self._center is None else self._center.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = self.stage.center == "range"  # by a search that isn't done again
        checkpoint["problem"] = {
            "stage": self.stage_index,
            "evaluations": self.evaluations,
            "space": self._space,
            "parent": self._start.packed(),
            "origin": self._origin.packed(),
            "center": self._center.packed() if found and self._center is not None else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the parameters of the saved stage: Lightning then fills them, and builds their optimiser."""
        saved = checkpoint["problem"]
        self.stage_index, self.evaluations, self._space = saved["stage"], saved["evaluations"], saved["space"]
        self._start = LatentPoint(**saved["parent"]).to(self.device)
        self._origin = LatentPoint(**saved["origin"]).to(self.device)
        self._center = None if saved["center"] is None else LatentPoint(**saved["center"]).to(self.device)
        prefix = "variables."
        tensors = {
            name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)
        }
        self._set_variables(LatentPoint(self.stage.layer, tensors, self._space).detach())
