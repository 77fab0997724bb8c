"""Everything a run needs, built and checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .compatibility import check_method
from .fits import check_trainer
from .generators.base import LayeredGenerator
from .losses import DataFit, PerceptualFit, PerceptualNet, TargetFit, WeightedFit, cross_entropy, data_fits
from .method import Method
from .observations import Observations, Simulated
from .operators import ForwardOperator
from .rehearsal import (
    check_generator_attributes,
    check_operator_attributes,
    one_line,
    rehearse_generator,
    rehearse_operator,
)
from .schedule import ScheduleError
from .selection import check_selection
from .solve import initial_point
from .sweeps.shard import Shard


class RunError(ValueError):
    """A run that can't begin; the message names the field, its value and the remedy."""


@dataclass(frozen=True)
class Setting:
    """Everything a run needs, built and checked.

    Args:
        config: resolved configuration (JSON values), without what only changes how a run is done; but for the places
            of files it makes the run's identity.
        method: what is run; ``baseline``, if any, is run first on the same measurements.
        trainer: further arguments of ``pytorch_lightning.Trainer``.
        perceptual: the perceptual term of the methods' data fits; None where no method gives it weight.
        target: the class that pictures are to be of, where a task names one beside its operator.
        judges: networks whose distances to the truth are among the metrics.
        shard: the batches that are worked on; the others may be anywhere else.
        force: begin anew what was begun without this word; None: go on.
        inputs, overrides: for the status (see ``sweeps.status``).
        pack: put the files of a batch's images into one.
        yaml: the whole configuration, for config.yaml.
    """

    config: Mapping[str, Any]
    generator: LayeredGenerator
    operator: ForwardOperator
    method: Method
    observations: Observations
    baseline: Method | None = None
    batch_size: int = 8
    decode_batch_size: int | None = None
    seed: int = 0
    checkpoint_every_seconds: float = 30.0
    trainer: Mapping[str, Any] | None = None
    perceptual: PerceptualFit | None = None
    target: TargetFit | None = None
    judges: Sequence[PerceptualNet] = ()
    shard: Shard = field(default_factory=Shard)
    force: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    pack: bool = False
    yaml: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.pack, bool):
            raise RunError(f"pack={self.pack}: expected true or false")
        if not _is_whole(self.batch_size) or self.batch_size < 1:
            raise RunError(f"data.batch_size={self.batch_size}: expected a whole number, at least 1")
        if self.decode_batch_size is not None and (not _is_whole(self.decode_batch_size) or self.decode_batch_size < 1):
            raise RunError(
                f"data.decode_batch_size={self.decode_batch_size}: expected a whole number, at least 1, or null for all"
            )
        if not _is_whole(self.seed):
            raise RunError(f"seed={self.seed}: expected a whole number")
        if not isinstance(self.checkpoint_every_seconds, int | float) or not self.checkpoint_every_seconds > 0:
            raise RunError(f"checkpoint_every_seconds={self.checkpoint_every_seconds}: expected seconds, more than 0")
        check_trainer(self.trainer or {})
        check_generator_attributes(self.generator)
        check_operator_attributes(self.operator)
        for section, method in (("method", self.method), ("baseline", self.baseline)):
            if method is not None:
                _check_method(section, method, self.generator, self.operator)
                self._check_networks(section, method)
                if method.rank == "truth" and not isinstance(self.observations, Simulated):
                    raise RunError(
                        f"{section}.rank=truth: only y is given here, and no truth; use {section}.rank=data_fit"
                    )
                self._check_probabilities(section, method)
        if self.baseline is not None and self.baseline.name == self.method.name:
            raise RunError(
                f"method@baseline={self.baseline.name}: the same name as the method; give one another, "
                f"such as method.name={self.method.name}_2, or choose another method"
            )
        with torch.no_grad():
            point = initial_point(self.generator, self.method, [torch.Generator().manual_seed(0)])
            rehearse_operator(self.operator, rehearse_generator(self.generator, point))

    def _check_networks(self, field: str, method: Method) -> None:
        """Refuse networks that can't look at what they are to compare, or of which one would judge only itself."""
        weight = method.data_fit.get("perceptual", 0)
        if weight and self.perceptual is None:
            raise RunError(
                f"{field}.data_fit.perceptual={weight:g}: perceptual=none is no network; choose one, such as "
                f"perceptual=stlpips_alex, or use {field}.data_fit.perceptual=0"
            )
        if weight and self.perceptual is not None:
            self.perceptual.check(self.operator, field)
        names = [net.name for net in self.judges]
        if names and set(names) <= set(self.optimised(method)):
            other = "stlpips_vgg" if "stlpips_vgg" not in names else "stlpips_alex"
            raise RunError(
                f"metrics.perceptual={','.join(names)}: the network that {field} {method.name} optimises would be the "
                f"only one that judges it; add another: metrics.perceptual=[{','.join([*names, other])}]"
            )

    def _check_probabilities(self, field: str, method: Method) -> None:
        """Refuse a cross-entropy of what are no probabilities, and a target that nothing pursues."""
        weight, name = method.data_fit["cross_entropy"], type(self.operator).__name__
        if weight and self.target is None and self.operator.classifier is None:
            raise RunError(
                f"{field}.data_fit.cross_entropy={weight:g}: what {name} gives are no probabilities of classes, and "
                f"task.classifier names none; use "
                f"{field}.data_fit.cross_entropy=0, or task=classifier or task=morphing"
            )
        if not weight and self.target is not None:
            raise RunError(
                f"{field}.data_fit.cross_entropy=0: nothing pursues the class that the task names; give it weight, or "
                "use task=denoising"
            )
        same_shape = tuple(self.operator.output_shape) == self.operator.input_shape
        if weight and self.target is not None and not (same_shape and self.operator.measures_pictures):
            raise RunError(f"task.operator: {name} gives no picture that task.classifier could look at")

    def data_fits(self, method: Method) -> list[WeightedFit]:
        """What a method minimises, stage by stage."""
        more: dict[str, DataFit] = {"cross_entropy": self.target or cross_entropy}
        if self.perceptual:
            more["perceptual"] = self.perceptual
        return data_fits(method, more)

    def optimised(self, method: Method) -> list[str]:
        """The networks that a method optimises, whose distances say little about its results."""
        return [self.perceptual.net.name] if self.perceptual and method.data_fit.get("perceptual") else []

    @property
    def networks(self) -> list[PerceptualNet]:
        """Every one that has a part in the results."""
        return [*([self.perceptual.net] if self.perceptual else []), *self.judges]

    @property
    def methods(self) -> list[Method]:
        return [self.method] if self.baseline is None else [self.baseline, self.method]

    @property
    def batches(self) -> list[range]:
        count = len(self.observations)
        return [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]

    @property
    def own_batches(self) -> list[tuple[int, range]]:
        """Of the shard, with their numbers."""
        return [(index, members) for index, members in enumerate(self.batches) if self.shard.holds(index)]

    @property
    def steps_per_batch(self) -> int:
        return sum(method.steps for method in self.methods)

    @property
    def task_name(self) -> str:
        return str(self.config.get("task", {}).get("name", type(self.operator).__name__))


def _check_method(field: str, method: Method, generator: LayeredGenerator, operator: ForwardOperator) -> None:
    """``check_method`` and ``check_selection``, naming the field of the configuration that holds the method."""
    try:
        check_method(method, generator)
        check_selection(method, operator)
        check_linear(method, operator)
    except ScheduleError as error:
        raise RunError(renamed(str(error), field)) from error
    except Exception as error:  # whatever a user's own generator raises
        raise RunError(f"generator: fails on its way through the layers of {field} ({one_line(error)})") from error


def check_linear(method: Method, operator: ForwardOperator) -> None:
    """Refuse plug-and-play steps with BM3D, whose gradient steps are of a linear A."""
    levels = [stage.bm3d for stage in method.stages if stage.bm3d is not None]
    if levels and not operator.affine:
        raise ScheduleError(
            f"method.bm3d={levels[0]:g}: A isn't linear ({type(operator).__name__}), as its steps need; use "
            "method=total_variation, which takes any"
        )


def renamed(message: str, field: str) -> str:
    """A message about a method, for the field that holds it: ``baseline``, say."""
    if field == "method":
        return message
    return re.sub(r"\bmethod\.", f"{field}.", re.sub(r"\bmethod=", f"method@{field}=", message))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
