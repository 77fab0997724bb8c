"""A method: a schedule with its start, its constraints and what it keeps. Plain data, validated once; imports no
torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .evaluations import searches_of
from .schedule import DATA_FITS, Schedule, ScheduleError, Stage, check_choice, check_count, check_number

STARTS = ("random", "mean")
NOISE_STARTS = ("random", "zero")
KEEPS = ("best", "last", "samples")
RANKS = ("data_fit", "loss", "held_out", "truth")
SELECTS = ("holdout", "stacking")


@dataclass(frozen=True)
class Method:
    """A named schedule with its start and its constraints.

    Args:
        name: what results are filed under.
        schedule: the stages.
        space: latent space at layer 0; None: the generator's default.
        spheres: variables kept on their spheres: each latent vector on radius √dim, each noise map on √(H·W).
        standardize: variables brought to mean 0 and variance 1 after each step, each tensor of an image on its own.
        noise: noise maps start ``random`` (drawn per image) or ``zero``.
        start: the code starts ``random`` (drawn per image) or at the ``mean`` of its space.
        restarts: how many starts are tried per image, side by side; one is kept, or what ``select`` makes of them.
        keep: the solution is the ``best`` iterate, the ``last``, or the last of several ``samples``.
        rank: what iterates and restarts are ranked by: the ``data_fit``, the ``loss`` with its penalties, the data fit
            of what is ``held_out``, or the ``truth``, which only an experiment knows.
        samples, burn_in: with ``keep`` samples: how many, and which part of the last stage comes before the first.
        dead_zone: errors of up to this cost nothing in the term ``dead_zone``.
        candidates: radii of the stages' ``auto`` variables that are tried per image, side by side.
        select: what becomes of several starts and candidates: by how well they predict measurements that were held out,
            one is chosen (``holdout``), or their weighted mean taken (``stacking``); None: the best by ``rank``.
        held_out: the part of the measurements.
        refit: the stage that goes on from there with all measurements, whatever its layer says at the generator's
            deepest; None: none.
        refit_deviation, anchor: how strongly its point, and its image, are held where it begins, see ``selection``.
    """

    name: str
    schedule: Schedule
    space: str | None = None
    spheres: tuple[str, ...] = ()
    noise: str = "random"
    standardize: tuple[str, ...] = ()
    start: str = "random"
    restarts: int = 1
    keep: str = "best"
    rank: str = "data_fit"
    samples: int = 0
    burn_in: float = 0.0
    dead_zone: float = 0.1
    candidates: tuple[float, ...] = ()
    select: str | None = None
    held_out: float = 0.1
    refit: Stage | None = None
    refit_deviation: float = 1.0
    anchor: float = 0.03

    def __post_init__(self) -> None:
        check_number("method.dead_zone", self.dead_zone, finite=True)
        self._check_selection()
        if self.keep == "best" and any(stage.data_fit != self.schedule[0].data_fit for stage in self.schedule.stages):
            raise ScheduleError(
                f"method.data_fit={[dict(stage.data_fit) for stage in self.schedule.stages]}: "
                "iterates of stages that minimise different things can't be ranked; use "
                "method.keep=last, or one weight for all stages"
            )
        stages = self.schedule.stages
        moving = len(stages) > 1 and any("deviation" in stage.penalties for stage in stages)
        if (
            self.keep == "best"
            and self.rank == "loss"
            and (moving or any(stage.penalties != self.schedule[0].penalties for stage in stages))
        ):
            raise ScheduleError(
                f"method.rank=loss: the stages have other penalties, {[dict(stage.penalties) for stage in stages]}"
                f"{', and a deviation from other points' if moving else ''}, and their losses can't be ranked; use "
                "method.rank=data_fit, or method.keep=last"
            )
        if len({stage.space for stage in stages}) > 1 and any(stage.center == "range" for stage in stages):
            raise ScheduleError(
                f"method.center=range: it is looked for in one space, and the stages have "
                f"{', '.join(str(stage.space) for stage in stages)}; use method.center=previous, or one method.space"
            )
        for stage in stages:
            held = stage.radii or stage.auto or stage.penalties.get("deviation")
            if stage.center == "range" and stage.layer > self.schedule[0].layer and not held:
                raise ScheduleError(
                    f"method.center=range: at layer {stage.layer} there is neither a ball nor a deviation that it "
                    "could be the centre of; give method.radius, or use method.center=previous"
                )
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ScheduleError(f"method.name={self.name}: expected letters, digits, _ . + -: files are named after it")
        check_choice("method.noise", self.noise, NOISE_STARTS)
        check_choice("method.start", self.start, STARTS)
        check_choice("method.keep", self.keep, KEEPS)
        check_choice("method.rank", self.rank, RANKS)
        if not 1 <= check_count("method.restarts", self.restarts) <= 100:
            raise ScheduleError(f"method.restarts={self.restarts}: expected 1, which is one start, to 100")
        if self.restarts > 1 and self.start == "mean" and self.noise == "zero":
            raise ScheduleError(
                f"method.restarts={self.restarts}: with method.start=mean and method.noise=zero all starts are the same"
            )
        check_number("method.burn_in", self.burn_in, finite=True)
        if self.burn_in >= 1:
            raise ScheduleError(f"method.burn_in={self.burn_in}: expected a part of the last stage, in [0, 1)")
        if self.keep != "samples" and self.samples:
            raise ScheduleError(f"method.samples={self.samples}: nothing samples; use method=langevin, or 0")
        if self.keep == "samples":
            kept = math.floor((1 - self.burn_in) * self.schedule.stages[-1].steps)
            if not 1 <= check_count("method.samples", self.samples) <= kept:
                raise ScheduleError(
                    f"method.samples={self.samples}: expected 1 to {max(kept, 0)}, what the last stage's steps leave "
                    f"after method.burn_in={self.burn_in}"
                )
            if self.restarts > 1:
                raise ScheduleError(f"method.restarts={self.restarts}: samples aren't ranked; use method.restarts=1")
            if self.candidates:
                raise ScheduleError("method.radius=auto: samples aren't ranked; give one method.radius, or null")
            if self.schedule.stages[-1].optimizer != "langevin":
                raise ScheduleError(
                    f"method.optimizer={self.schedule.stages[-1].optimizer}: the last stage's points are samples with "
                    "langevin only; use it there, or method.keep=best"
                )
            if self.spheres:
                raise ScheduleError(
                    f"method.spheres={list(self.spheres)}: points that are put on spheres are no samples of the "
                    "posterior; use method.spheres=[]"
                )
        if self.keep == "best" and any(stage.jitter for stage in self.schedule.stages):
            raise ScheduleError(
                f"method.jitter={max(stage.jitter for stage in self.schedule.stages)}: "
                "what is ranked is the code with its noise, and what is kept the code without; use "
                "method.keep=last"
            )

    def _check_selection(self) -> None:
        for candidate in self.candidates:
            check_number("method.candidates", candidate)
        auto = {variable for stage in self.schedule.stages for variable in stage.auto}
        if auto and not self.candidates:
            raise ScheduleError("method.candidates=[]: method.radius=auto needs radii to choose from, or give a radius")
        check_number("method.held_out", self.held_out, positive=True)
        if self.held_out >= 1:
            raise ScheduleError(f"method.held_out={self.held_out}: expected a part of the measurements, in (0, 1)")
        check_number("method.refit_deviation", self.refit_deviation, finite=True)
        check_number("method.anchor", self.anchor, finite=True)
        if self.select is not None:
            check_choice("method.select", self.select, SELECTS)
            if self.keep == "samples":
                raise ScheduleError(f"method.select={self.select}: samples aren't ranked; use method.select=null")
        elif len(self.candidates) > 1 and self.rank != "truth":
            raise ScheduleError(
                f"method.select=null: which of {len(self.candidates)} radii fits best what it was fitted to says "
                "nothing; use method.select=stacking, or give one method.radius"
            )
        if self.refit is not None and not self.selects:
            raise ScheduleError(
                f"method.refit={self.refit.steps} steps: nothing is selected that it could begin with; use "
                "method.refit=false, or method.select=stacking with several radii or starts"
            )
        if self.rank == "held_out" and not self.selects:
            raise ScheduleError(
                "method.rank=held_out: nothing is held out; use method.select=holdout, with method.radius=auto or "
                "several method.restarts"
            )

    @property
    def copies(self) -> int:
        """Of every image, solved side by side: one per start and candidate."""
        return self.restarts * max(len(self.candidates), 1)

    @property
    def selects(self) -> bool:
        """Whether measurements are held out: there must be something to choose from."""
        return self.select is not None and self.copies > 1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Of the schedule, and the refit."""
        return (*self.schedule.stages, self.refit) if self.refit else self.schedule.stages

    @property
    def steps(self) -> int:
        """Of all these stages: of one copy, and of the refit."""
        return sum(stage.steps for stage in self.stages)

    @property
    def data_fit(self) -> dict[str, float]:
        """The largest weight of each of ``DATA_FITS`` in a stage."""
        stages = self.schedule.stages
        return {name: max(stage.data_fit.get(name, 0.0) for stage in stages) for name in DATA_FITS}

    @property
    def evaluations(self) -> int:
        """Generator evaluations per image that its steps take, all copies and the refit together."""
        stages = self.schedule.stages
        layers, centers = [stage.layer for stage in stages], [stage.center for stage in stages]
        search = self.copies * (self.schedule.steps + searches_of(layers, centers) * stages[0].range_steps)
        return search + self.steps - self.schedule.steps

    def sample_steps(self) -> list[int]:
        """Of the last stage, the steps after which a sample is taken: evenly spaced, the last one included."""
        steps = self.schedule.stages[-1].steps
        span = steps - math.floor(self.burn_in * steps)
        return [steps - 1 - (self.samples - 1 - i) * span // self.samples for i in range(self.samples)]
