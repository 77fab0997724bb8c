"""An inverse problem as a LightningModule: one training step is one optimisation step of a batch of latent points."""

from __future__ import annotations

from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .generators.base import LatentPoint, LayeredGenerator, variable_of
from .operators.base import ForwardOperator, Measurement
from .schedule import Schedule, Stage

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class DataFit(Protocol):
    """How badly a prediction A(G(z)) disagrees with a measurement: one number ``(B,)`` per image, lower is better."""

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor: ...


def index_of(name: str) -> int | None:
    """The index of a tensor within its variable: 3 for ``"noise_3"``, None for ``"activation"``."""
    suffix = name.rpartition("_")[2]
    return int(suffix) if suffix.isdigit() else None


class InverseProblem(pl.LightningModule):
    """Find latent points whose images, measured by ``operator``, agree with ``measurement``.

    One epoch is one stage of the schedule. The loss is the *sum* over images of the data fit, so that images of a batch
    don't influence each other. The generator and the operator are frozen and stay out of the module registry (or every
    checkpoint would carry them); the point's tensors are the module's parameters, the free ones with gradients.

    Args:
        generator: a frozen generator.
        operator: the forward model A.
        measurement: y of the batch, with its weights.
        schedule: the stages.
        point: where to start, at a layer no deeper than the first stage's.
        data_fit: ``losses.mean_squared_error`` unless told.
    """

    def __init__(
        self,
        generator: LayeredGenerator,
        operator: ForwardOperator,
        measurement: Measurement,
        schedule: Schedule,
        point: LatentPoint,
        data_fit: DataFit | None = None,
    ):
        super().__init__()
        from .losses import mean_squared_error

        self._frozen: dict[str, Any] = {"generator": generator, "operator": operator}
        self.measurement = measurement
        self.schedule = schedule
        self.data_fit = data_fit or mean_squared_error
        self.evaluations = 0
        """Generator evaluations spent so far on every image of the batch."""
        self.last_fit: Tensor | None = None
        """Data fit ``(B,)`` of the point before the latest update."""
        self.variables = nn.ParameterDict()
        self._start = point.detach()
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
        return LatentPoint(self.stage.layer, dict(self.variables.items()), self._start.space)

    @property
    def parent(self) -> LatentPoint:
        """The previous stage's solution, from which this stage advanced."""
        return self._start

    @property
    def center(self) -> LatentPoint:
        """This stage's first point: the parent, advanced to the stage's layer."""
        if self._center is None:
            with torch.no_grad():
                self._center = self.generator.advance(self._start, self.stage.layer)
        return self._center

    def enter(self, index: int) -> None:
        """Begin stage ``index``: advance the current point to its layer and choose what is free."""
        if self.variables:
            self._start = self.point.detach()
        self.stage_index = index
        self._center = None
        self._set_variables(self.center.detach())

    def _set_variables(self, point: LatentPoint) -> None:
        stage = self.stage
        self.variables = nn.ParameterDict(
            {
                name: nn.Parameter(tensor, requires_grad=stage.frees(variable_of(name), index_of(name)))
                for name, tensor in point.tensors.items()
            }
        )

    def forward(self, point: LatentPoint) -> Tensor:
        """Images of a point; counts as one evaluation."""
        self.evaluations += 1
        return self.generator(point)

    def evaluate(self) -> Tensor:
        """Data fit ``(B,)`` of the current point; counts as one evaluation."""
        fit = self.data_fit(self.operator(self(self.point)), self.measurement)
        self.last_fit = fit.detach()
        return fit

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.evaluate().sum()

    def train_dataloader(self) -> range:
        """The steps of the stage (there is no data to load: the measurement is the problem's own)."""
        return range(self.schedule[self.trainer.current_epoch].steps)

    def configure_optimizers(self) -> dict[str, Any]:
        stage = self.stage
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.variables.items():
            if parameter.requires_grad:
                groups.setdefault(variable_of(name), []).append(parameter)
        optimizer = OPTIMIZERS[stage.optimizer](
            [{"params": group, "lr": stage.lr * stage.lr_scale.get(name, 1.0)} for name, group in groups.items()],
            lr=stage.lr,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, stage.ramp)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        for module in self._frozen.values():
            module.to(self.device)
        self.measurement = self.measurement.to(self.device)
        self._start, self._center = self._start.to(self.device), None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["problem"] = {
            "stage": self.stage_index,
            "evaluations": self.evaluations,
            "parent": {"layer": self._start.layer, "space": self._start.space, "tensors": dict(self._start.tensors)},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the parameters of the saved stage: Lightning then fills them, and builds their optimiser."""
        saved = checkpoint["problem"]
        self.stage_index = saved["stage"]
        self.evaluations = saved["evaluations"]
        self._start = LatentPoint(**saved["parent"]).to(self.device)
        self._center = None
        prefix = "variables."
        tensors = {
            name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)
        }
        self._set_variables(LatentPoint(self.stage.layer, tensors, self._start.space).detach())
