"""What is optimised, when, and how far it may move. Plain data, validated once; imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VARIABLES = ("latent", "activation", "rgb", "noise")
"""What the points of our generators hold; a method may name them although a generator has only some."""
OPTIMIZERS = ("adam", "adamw", "sgd")
NOISE_STARTS = ("random", "zero")
RADIUS_MODES = ("relative", "absolute")
CENTERS = ("previous",)
DATA_FITS = ("mse", "perceptual", "dead_zone")
"""The terms of a method's data fit."""


class ScheduleError(ValueError):
    """A schedule that can't be run; the message names the field, its value and the remedy."""


def _number(name: str, value: Any, *, positive: bool = False, finite: bool = False) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not ok or value < 0 or (positive and value == 0) or (finite and math.isinf(value)):
        kind = "finite number" if finite else "number"
        raise ScheduleError(f"{name}={value}: expected a {kind} {'greater than' if positive else 'at least'} 0")


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ScheduleError(f"{name}={value}: expected a whole number, 0 or more")
    return value


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ScheduleError(f"{name}={value}: expected one of {', '.join(choices)}")
    return value


@dataclass(frozen=True)
class Stage:
    """One optimisation over a latent point at one layer.

    Args:
        layer: entry layer of the generator.
        steps: optimisation steps.
        lr: peak learning rate of the cosine ramp (see ``ramp``).
        free: names of the variables that are optimised, among those a point at this layer has.
        radii: per variable, the l1 radius around its value when the stage begins.
        relative: whether radii are fractions of that value's own l1 norm, image by image.
        lr_scale: per variable, a factor on ``lr``.
        noise_maps: only the first so many noise maps are free; None: all that remain.
        optimizer: one of ``OPTIMIZERS``.
    """

    layer: int
    steps: int
    lr: float
    free: tuple[str, ...] = ("latent", "activation", "rgb")
    radii: Mapping[str, float] = field(default_factory=dict)
    relative: bool = True
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    noise_maps: int | None = None
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        _count("method.layers", self.layer)
        _count("method.steps", self.steps)
        _number("method.lr", self.lr, positive=True, finite=True)
        for name, radius in self.radii.items():
            _number("method.radius" if name == "activation" else f"method.radii.{name}", radius)
        for name, scale in self.lr_scale.items():
            _number(f"method.lr_scale.{name}", scale, finite=True)
        if self.noise_maps is not None:
            _count("method.noise_maps", self.noise_maps)
        _choice("method.optimizer", self.optimizer, OPTIMIZERS)
        if not self.free:
            raise ScheduleError("method.free=[]: name at least one variable to optimise")

    def frees(self, variable: str, index: int | None = None) -> bool:
        """Whether this stage optimises a variable (of noise: the map ``index``)."""
        if variable not in self.free:
            return False
        return index is None or self.noise_maps is None or index < self.noise_maps

    def ramp(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (from 0): ``(½ - ½cos(π·min(1, (1-t)/0.75)))·min(1, t/0.05)`` at the
        step's midpoint ``t = (step + ½)/steps``, so that no step is taken with learning rate 0 (StyleGAN2's ramp)."""
        t = min((step + 0.5) / max(self.steps, 1), 1.0)
        return (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / 0.75))) * min(1.0, t / 0.05)


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

    @property
    def steps(self) -> int:
        """Steps of all stages: generator evaluations but one, the last, of the final point."""
        return sum(stage.steps for stage in self.stages)


def _per_stage(name: str, value: Any, stages: int) -> list[Any]:
    """A scalar for all stages, or a list with one entry per stage."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != stages:
            raise ScheduleError(
                f"{name}={list(value)}: {len(value)} entries for {stages} stages (method.layers); "
                "give one entry per stage, or one number for all"
            )
        return list(value)
    return [value] * stages


@dataclass(frozen=True)
class Method:
    """A named schedule with its start and its constraints.

    Args:
        name: what results are filed under.
        schedule: the stages.
        space: latent space at layer 0; None: the generator's default.
        spheres: variables kept on their spheres: each latent vector on radius √dim, each noise map on √(H·W).
        noise: noise maps start ``random`` (drawn per image) or ``zero``.
        data_fit: weight of each of ``DATA_FITS`` in what is minimised, and by which iterates are ranked.
        dead_zone: errors of up to this cost nothing in the term ``dead_zone``.
    """

    name: str
    schedule: Schedule
    space: str | None = None
    spheres: tuple[str, ...] = ()
    noise: str = "random"
    data_fit: Mapping[str, float] = field(default_factory=lambda: {"mse": 1.0})
    dead_zone: float = 0.1

    def __post_init__(self) -> None:
        _number("method.dead_zone", self.dead_zone, finite=True)
        if not isinstance(self.data_fit, Mapping):
            raise ScheduleError(f"method.data_fit={self.data_fit}: expected a weight per term, such as {{mse: 1}}")
        for name, weight in self.data_fit.items():
            _choice("method.data_fit", name, DATA_FITS)
            _number(f"method.data_fit.{name}", weight, finite=True)
        if not any(self.data_fit.values()):
            raise ScheduleError(
                f"method.data_fit={dict(self.data_fit)}: nothing is minimised; use method.data_fit.mse=1"
            )
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ScheduleError(f"method.name={self.name}: expected letters, digits, _ . + -: files are named after it")

    @classmethod
    def from_config(
        cls,
        name: str,
        layers: Sequence[int],
        steps: int | Sequence[int],
        lr: float | Sequence[float],
        free: Sequence[str],
        radius: float | Sequence[float] | None = None,
        radius_mode: str = "relative",
        radii: Mapping[str, float | Sequence[float] | None] | None = None,
        lr_scale: Mapping[str, float] | None = None,
        noise_maps: int | Sequence[int] | None = None,
        center: str = "previous",
        optimizer: str | Sequence[str] = "adam",
        space: str | None = None,
        spheres: Sequence[str] = (),
        noise: str = "random",
        data_fit: Mapping[str, float] | None = None,
        dead_zone: float = 0.1,
    ) -> Method:
        """Build a method from the fields of ``conf/method/*.yaml``.

        Where a field takes a list or a number, a list has one entry per stage, and a number holds for all stages.

        Args:
            name: what results are filed under.
            layers: entry layer of each stage; they never decrease.
            steps: optimisation steps; a stage with none is left out.
            lr: peak of each stage's cosine ramp.
            free: the variables that are optimised, among those that a point has at the stage's layer.
            radius: l1 radius of the activation around its value when the stage begins; null: no ball.
            radius_mode: ``relative``: radii are fractions of that value's own l1 norm, image by image; or ``absolute``.
            radii: the same for the other variables.
            lr_scale: per variable, a factor on ``lr``.
            noise_maps: only the first so many noise maps are free, where ``free`` has ``noise``; null: all that remain.
            center: of the ball: ``previous``, the previous stage's solution, advanced to this layer.
            optimizer: ``adam``, ``adamw`` or ``sgd``.
            space: latent space at layer 0; null: the generator's default.
            spheres: variables kept on their spheres: each latent vector at norm √dim, each noise map at √(H·W).
            noise: noise maps start ``random`` (drawn per image) or ``zero``.
            data_fit: weight of ``mse``, ``perceptual`` (by the network of ``perceptual=…``) and ``dead_zone`` in what
                is minimised; {mse: 1} unless given.
            dead_zone: errors of up to this cost nothing in the term ``dead_zone``; in units of y.

        Raises:
            ScheduleError: naming the field, its value and the remedy.
        """
        if isinstance(layers, str) or not isinstance(layers, Sequence) or not len(layers):
            raise ScheduleError(
                f"method.layers={layers}: expected a list of entry layers, one per stage, such as [0,1,2]"
            )
        for field_name, value in (("free", free), ("spheres", spheres)):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ScheduleError(f"method.{field_name}={value}: expected a list of variables, such as [latent]")
        for field_name, value in (("radii", radii), ("lr_scale", lr_scale)):
            if value is not None and not isinstance(value, Mapping):
                raise ScheduleError(
                    f"method.{field_name}={value}: expected a number per variable, such as {{rgb: 0.1}}"
                )
        count = len(layers)
        _choice("method.radius_mode", radius_mode, RADIUS_MODES)
        _choice("method.center", center, CENTERS)
        _choice("method.noise", noise, NOISE_STARTS)
        if "activation" in (radii or {}):
            raise ScheduleError("method.radii.activation: give the activation's radius as method.radius")
        bounds = {"activation": radius, **(radii or {})}
        per_stage_radii = {
            variable: _per_stage(
                "method.radius" if variable == "activation" else f"method.radii.{variable}", value, count
            )
            for variable, value in bounds.items()
        }
        columns = zip(
            layers,
            _per_stage("method.steps", steps, count),
            _per_stage("method.lr", lr, count),
            _per_stage("method.noise_maps", noise_maps, count),
            _per_stage("method.optimizer", optimizer, count),
            strict=True,
        )
        stages = tuple(
            Stage(
                layer=layer,
                steps=stage_steps,
                lr=stage_lr,
                free=tuple(free),
                radii={name: values[i] for name, values in per_stage_radii.items() if values[i] is not None},
                relative=radius_mode == "relative",
                lr_scale=dict(lr_scale or {}),
                noise_maps=maps,
                optimizer=stage_optimizer,
            )
            for i, (layer, stage_steps, stage_lr, maps, stage_optimizer) in enumerate(columns)
        )
        fit = {"mse": 1.0} if data_fit is None else data_fit
        return cls(name, Schedule(stages), space, tuple(spheres), noise, fit, dead_zone)
