"""What is optimised, when, and how far it may move. Plain data, validated once; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VARIABLES = ("latent", "style", "activation", "rgb", "noise")
"""What the points of our generators hold; a method may name them although a generator has only some."""
OPTIMIZERS = ("adam", "adamw", "sgd", "normalized", "langevin")
RAMPS = ("cosine", "one_cycle", "constant")
PENALTIES = (
    "geocross", "geocross_styles", "latent_norm", "latent_l1", "total_variation", "noise_regularity", "deviation",
)  # fmt: skip
"""What can be added to the loss; see ``losses.penalties``."""
CENTERS = ("previous", "range")
DATA_FITS = ("mse", "perceptual", "dead_zone", "cross_entropy")
"""The terms of a method's data fit."""
MOST = 10**9
"""Of what is counted: steps, evaluations."""


class ScheduleError(ValueError):
    """A schedule that can't be run; the message names the field, its value and the remedy."""


def check_number(name: str, value: Any, *, positive: bool = False, finite: bool = False) -> None:
    """Refuse, with ScheduleError, what is no number at least 0."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not ok or value < 0 or (positive and value == 0) or (finite and math.isinf(value)):
        kind = "finite number" if finite else "number"
        raise ScheduleError(f"{name}={value}: expected a {kind} {'greater than' if positive else 'at least'} 0")


def check_count(name: str, value: Any, least: int = 0) -> int:
    """A whole number of ``least`` or more; anything else is refused with ScheduleError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ScheduleError(f"{name}={value}: expected a whole number, {least} or more")
    if value > MOST:
        raise ScheduleError(f"{name}={value}: expected a whole number up to {MOST}, which would take years")
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of ``choices``; anything else is refused with ScheduleError."""
    if value not in choices:
        raise ScheduleError(f"{name}={value}: expected one of {', '.join(choices)}")
    return value


@dataclass(frozen=True)
class Stage:
    """One optimisation over a latent point at one layer.

    Args:
        layer: entry layer of the generator.
        steps: optimisation steps.
        lr: peak learning rate of the ramp.
        free: names of the variables that are optimised, among those a point at this layer has.
        radii: per variable, the l1 radius around its value when the stage begins.
        auto: the variables whose radius is the candidate's, and not in ``radii``.
        relative: whether radii are fractions of that value's own l1 norm, image by image.
        lr_scale: per variable, a factor on ``lr``.
        noise_maps: only the first so many noise maps are free; None: all that remain.
        optimizer: one of ``OPTIMIZERS``.
        ramp: one of ``RAMPS``, see ``factor``.
        rampdown: of the cosine ramp: the last part of the stage, in which it falls.
        space: latent space of the code from this stage on; None: as it is.
        center: of the balls: ``previous``, the stage's first point; or ``range``, what the layers above can make of it.
        range_steps: of the search for that, with ``center`` range.
        reset: variables set to zero when the stage begins (which breaks continuity).
        penalties: weight of each of ``PENALTIES`` in the loss.
        data_fit: weight of each of ``DATA_FITS`` in what is minimised, and by which iterates are ranked.
        floor: data fits below it count as it: what agrees so well is not optimised further.
        sigma: standard deviation of the measurement's noise; with it the loss is an energy, -log of the likelihood.
        jitter: Gaussian noise on the code, in standard deviations of w, that fades as ``max(0, 1 - t/0.75)²``.
        bm3d: standard deviation of the noise that BM3D takes out of the image after each step; None: no BM3D.
        enough: a mean squared error with which an image is left as it is; None: none is.
    """

    layer: int
    steps: int
    lr: float
    free: tuple[str, ...] = ("latent", "activation", "rgb")
    radii: Mapping[str, float] = field(default_factory=dict)
    auto: tuple[str, ...] = ()
    relative: bool = True
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    noise_maps: int | None = None
    optimizer: str = "adam"
    ramp: str = "cosine"
    rampdown: float = 0.75
    space: str | None = None
    center: str = "previous"
    range_steps: int = 0
    reset: tuple[str, ...] = ()
    penalties: Mapping[str, float] = field(default_factory=dict)
    data_fit: Mapping[str, float] = field(default_factory=lambda: {"mse": 1.0})
    floor: float = 0.0
    sigma: float | None = None
    jitter: float = 0.0
    bm3d: float | None = None
    enough: float | None = None

    def __post_init__(self) -> None:
        check_count("method.layers", self.layer)
        check_count("method.steps", self.steps)
        check_number("method.lr", self.lr, positive=True, finite=True)
        for name, radius in self.radii.items():
            check_number("method.radius" if name == "activation" else f"method.radii.{name}", radius)
        for name, scale in self.lr_scale.items():
            check_number(f"method.lr_scale.{name}", scale, finite=True)
        if self.noise_maps is not None:
            check_count("method.noise_maps", self.noise_maps)
        check_choice("method.optimizer", self.optimizer, OPTIMIZERS)
        check_choice("method.ramp", self.ramp, RAMPS)
        check_number("method.rampdown", self.rampdown, positive=True, finite=True)
        if self.rampdown > 1:
            raise ScheduleError(f"method.rampdown={self.rampdown}: expected a part of the stage, in (0, 1]")
        check_choice("method.center", self.center, CENTERS)
        check_count("method.range_steps", self.range_steps)
        for name, weight in self.penalties.items():
            check_choice("method.penalties", name, PENALTIES)
            check_number(f"method.penalties.{name}", weight, finite=True)
        for name, weight in self.data_fit.items():
            check_choice("method.data_fit", name, DATA_FITS)
            check_number(f"method.data_fit.{name}", weight, finite=True)
        weighed = {name: weight for name, weight in self.data_fit.items() if weight}
        if not weighed:
            raise ScheduleError(
                f"method.data_fit={dict(self.data_fit)}: nothing is minimised; use method.data_fit.mse=1"
            )
        if self.sigma and weighed != {"mse": 1}:
            raise ScheduleError(
                f"method.data_fit={weighed}: with method.sigma the loss is the likelihood of Gaussian noise, which is "
                "the mean squared error alone; use method.data_fit={mse: 1} or method.sigma=null"
            )
        check_number("method.floor", self.floor, finite=True)
        check_number("method.jitter", self.jitter, finite=True)
        if self.bm3d == 0:
            raise ScheduleError(
                f"method.bm3d={self.bm3d}: there is no noise to take out; give the measurement's, e.g. "
                "task.noise.sigma=0.1, or method.bm3d=0.1 where the task has none or doesn't know it"
            )
        if self.bm3d is not None:
            check_number("method.bm3d", self.bm3d, positive=True, finite=True)
        if self.sigma == 0 or (self.sigma is None and self.optimizer == "langevin"):
            raise ScheduleError(
                f"method.sigma={'null' if self.sigma is None else self.sigma}: "
                "samples of the posterior need noise on the measurement; give its standard "
                "deviation, e.g. task.noise.sigma=0.1, or method.sigma=0.1 where the task doesn't know it"
            )
        if self.sigma is not None:
            check_number("method.sigma", self.sigma, positive=True, finite=True)
        if self.center == "range" and self.reset:
            raise ScheduleError(
                f"method.reset={list(self.reset)}: what is set to zero isn't in the range of the layers above; use "
                "method.reset=[], or method.center=previous"
            )
        if not self.free:
            raise ScheduleError("method.free=[]: name at least one variable to optimise")

    def frees(self, variable: str, index: int | None = None) -> bool:
        """Whether this stage optimises a variable (of noise: the map ``index``)."""
        if variable not in self.free:
            return False
        return variable != "noise" or index is None or self.noise_maps is None or index < self.noise_maps

    def time(self, step: float) -> float:
        """Where ``step`` (from 0) lies in the stage: its midpoint, in (0, 1), so that no step is taken with learning
        rate 0."""
        return min((step + 0.5) / max(self.steps, 1), 1.0)

    def factor(self, step: float) -> float:
        """Factor on the learning rate at ``step``, at time t.

        ``cosine``: StyleGAN2's ramp ``(½ - ½cos(π·min(1, (1-t)/rampdown)))·min(1, t/0.05)``. ``one_cycle``: from a
        tenth up to 1 at t = 0.45, back to a tenth at 0.9, and down to a thousandth (PULSE). ``constant``: 1.
        """
        t = self.time(step)
        if self.ramp == "constant":
            return 1.0
        if self.ramp == "one_cycle":
            return 1 - 0.9 * abs(t / 0.45 - 1) if t < 0.9 else 0.1 - 0.99 * (t - 0.9)
        return (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / self.rampdown))) * min(1.0, t / 0.05)

    def jitter_at(self, step: float) -> float:
        """Standard deviation of the noise on the code at ``step``, in those of w (StyleGAN2, appendix D)."""
        return self.jitter * max(0.0, 1.0 - self.time(step) / 0.75) ** 2


@dataclass(frozen=True)
class Schedule:
    """The ordered stages. Stages without steps are dropped; layers never decrease.

    Raises:
        ScheduleError: if nothing is left to do, or a layer comes after a deeper one.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        stages = tuple(stage for stage in self.stages if stage.steps > 0)
        if not stages:
            raise ScheduleError(
                f"method.steps={[stage.steps for stage in self.stages]}: at least one stage needs a step"
            )
        layers = [stage.layer for stage in self.stages]
        if layers != sorted(layers):
            raise ScheduleError(f"method.layers={layers}: layers can't decrease; sort them (repeats are fine)")
        object.__setattr__(self, "stages", stages)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int) -> Stage:
        return self.stages[index]

    def conversion(self, index: int, space: str) -> str | None:
        """The space that a code in ``space`` is brought to as stage ``index`` begins; None: it stays as it is. What the
        first stage begins with is never converted, so that a given start may be in a space of its own."""
        asked = [stage.space for stage in self.stages[:index] if stage.space is not None]
        wanted = self.stages[index].space
        return wanted if index and wanted is not None and wanted != (asked[-1] if asked else space) else None

    @property
    def steps(self) -> int:
        """Steps of all stages: generator evaluations but one, the last, of the final point."""
        return sum(stage.steps for stage in self.stages)
