"""Solve one batch: a measurement and a method in, one Trainer.fit, solutions out."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from .callbacks import (
    BestIterate,
    Curves,
    History,
    L1Projection,
    PictureStrip,
    PlugAndPlay,
    PosteriorSamples,
    Progress,
    ResumeCheckpoint,
    Spheres,
    StageSchedule,
)
from .callbacks.plug_and_play import check_bm3d
from .callbacks.progress import Display, QuietDisplay
from .callbacks.sphere import project_to_spheres
from .generators.base import LatentPoint, LayeredGenerator, variable_of
from .interrupt import Interrupted
from .losses import data_fits
from .losses.penalties import PENALTIES, PenaltyError
from .operators.base import ForwardOperator, Measurement
from .problem import DataFit, InverseProblem, index_of
from .randomness import derive_seed, generator_for
from .schedule import VARIABLES, Method, ScheduleError
from .solution import Solution

# What doesn't change the optimisation: not limit_train_batches, accumulate_grad_batches, gradient_clip_val, max_time, …
TRAINER_ARGUMENTS = ("accelerator", "precision", "deterministic", "benchmark", "detect_anomaly", "profiler")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # the others would cast the point, and not the generator


@dataclass(frozen=True)
class Reconstruction:
    """What came out of one batch.

    Args:
        solutions: one per image.
        strip: per stage, the images ``(B, C, H, W)`` at its end, in [-1, 1] (not clipped).
        posterior: of a method that keeps samples, what they have in common.
    """

    solutions: list[Solution]
    strip: list[Tensor]
    posterior: PosteriorSamples | None = None


class SolveError(RuntimeError):
    """Something broke the optimisation off; ``reconstruction`` holds the best points found before, if there were any.
    The cause is chained."""

    def __init__(self, message: str, reconstruction: Reconstruction | None):
        super().__init__(message)
        self.reconstruction = reconstruction


def check_method(method: Method, generator: LayeredGenerator) -> None:
    """Refuse a method that this generator can't serve, before any long work.

    Raises:
        ScheduleError: for layers, spaces and variables that the generator doesn't have.
    """
    name, stages = type(generator).__name__, method.schedule.stages
    if method.space is not None and method.space not in generator.spaces:
        raise ScheduleError(f"method.space={method.space}: {name} has {', '.join(generator.spaces)}")
    for stage in stages:
        if stage.layer >= generator.num_layers:
            kept = [stage for stage in stages if stage.layer < generator.num_layers]
            remedy = "; use " + " ".join(
                f"method.{field}={json.dumps([getattr(stage, part) for stage in kept], separators=(',', ':'))}"
                for field, part in (("layers", "layer"), ("steps", "steps"), ("lr", "lr"))
            )
            raise ScheduleError(
                f"method.layers={stage.layer}: {name} has layers 0 … {generator.num_layers - 1}{remedy if kept else ''}"
            )
    with torch.no_grad():
        point = generator.sample([torch.Generator().manual_seed(0)], method.space)
        seen: set[str] = set()
        if method.start == "mean":
            point = generator.mean(point)
        for index, stage in enumerate(stages):
            if index and stage.space is not None and stage.space != stages[index - 1].space:
                try:
                    point = generator.convert(point, stage.space)
                except ValueError as error:
                    raise ScheduleError(f"method.space={[each.space for each in stages]}: {error}") from error
            point = generator.advance(point, stage.layer)
            for penalty in stage.penalties:
                try:
                    PENALTIES[penalty](generator, point, point, generator(point))
                except PenaltyError as error:
                    raise ScheduleError(f"method.penalties.{penalty} at layer {stage.layer}: {error}") from error
            if stage.jitter and "latent" not in point.tensors:
                raise ScheduleError(f"method.jitter={stage.jitter}: there is no latent code in space {point.space}")
            if stage.bm3d is not None:
                check_bm3d(stage.bm3d, point.space, generator.image_shape)
            variables = {variable_of(tensor) for tensor in point.tensors}
            if not any(stage.frees(variable_of(tensor), index_of(tensor)) for tensor in point.tensors):
                maps = f" with method.noise_maps={stage.noise_maps}" if "noise" in stage.free else ""
                raise ScheduleError(
                    f"method.free={list(stage.free)}{maps}: nothing to optimise at layer {stage.layer}, "
                    f"which has {', '.join(sorted(point.tensors))}"
                )
            seen |= variables
    # Variables that only deeper layers have may be named by a method that doesn't go there.
    deepest = generator.num_layers - 1
    if stages[-1].layer < deepest:
        with torch.no_grad():
            seen |= {
                variable_of(tensor) for tensor in generator.advance(point, min(stages[-1].layer + 1, deepest)).tensors
            }
    for field, named in (
        ("method.free", {variable for stage in stages for variable in stage.free}),
        ("method.radii", {variable for stage in stages for variable in stage.radii}),
        ("method.lr_scale", {variable for stage in stages for variable in stage.lr_scale}),
        ("method.spheres", set(method.spheres)),
        ("method.standardize", set(method.standardize)),
        ("method.reset", {variable for stage in stages for variable in stage.reset}),
    ):
        for variable in sorted(named - seen - set(VARIABLES), key=str):
            raise ScheduleError(f"{field}: unknown variable {variable!r}; {name} has {', '.join(sorted(seen))}")
    spaces = {method.space or generator.spaces[0], *(stage.space for stage in stages)}
    if "latent" in method.spheres and spaces & {"w", "w_plus"}:
        space = min(spaces & {"w", "w_plus"})
        raise ScheduleError(
            f"method.spheres=[latent]: codes in {space} aren't Gaussian and lie on no sphere; use gaussian_w_plus or z"
        )
    if method.noise == "zero" and "noise" in method.spheres:
        raise ScheduleError("method.spheres=[noise]: maps that start at zero lie on no sphere; use method.noise=random")
    if method.noise == "zero" and "noise" in method.standardize:
        raise ScheduleError(
            "method.standardize=[noise]: maps that start at zero have no variance; use method.noise=random"
        )
    if method.noise == "zero" and any("noise" in stage.radii and stage.relative for stage in stages):
        raise ScheduleError(
            "method.radii.noise with method.radius_mode=relative: maps that start at zero have the norm 0, "
            "and could never move; use method.noise=random or method.radius_mode=absolute"
        )


def initial_point(generator: LayeredGenerator, method: Method, rngs: Sequence[torch.Generator]) -> LatentPoint:
    """Where a method starts: a random point per random generator, or the mean of its space, on its spheres."""
    with torch.no_grad():
        point = generator.sample(rngs, method.space)
        if method.start == "mean":
            point = generator.mean(point)
        if method.noise == "zero":
            point = point.update(
                {name: torch.zeros_like(t) for name, t in point.tensors.items() if variable_of(name) == "noise"}
            )
        return project_to_spheres(point, method.spheres)


def _fitting(start: LatentPoint, generator: LayeredGenerator, method: Method, images: int) -> LatentPoint:
    """A given start as this batch needs it."""
    if start.batch_size not in (1, images):
        raise ValueError(f"init holds {start.batch_size} images for a measurement of {images}; expected 1 or {images}")
    if start.layer > method.schedule[0].layer:
        raise ValueError(
            f"init is at layer {start.layer}, deeper than the first stage's {method.schedule[0].layer}; "
            "leave out the stages above it"
        )
    point = start.map(lambda tensor: tensor.to(generator.device, generator.dtype))
    point = point if point.batch_size == images else point.repeat(images)
    with torch.no_grad():
        return project_to_spheres(point, method.spheres)


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that make no Trainer, or one that would run another optimisation, before any long work.

    Raises:
        ValueError: naming what can be set, or with Lightning's own words.
    """
    for name, value in arguments.items():
        if name not in TRAINER_ARGUMENTS:
            raise ValueError(f"trainer.{name}={value}: can't be set; expected {', '.join(TRAINER_ARGUMENTS)}")
    if str(arguments.get("precision", PRECISIONS[0])) not in PRECISIONS:
        raise ValueError(f"trainer.precision={arguments['precision']}: expected one of {', '.join(PRECISIONS)}")
    with _quiet_lightning():
        try:
            _new_trainer(arguments, max_epochs=1, logger=False, enable_checkpointing=False)
        except Exception as error:  # whatever Lightning and its accelerators raise
            raise ValueError(f"trainer={dict(arguments)}: {error}") from error


def _new_trainer(arguments: Mapping[str, Any], **more: Any) -> pl.Trainer:
    """A Trainer whose epochs are the stages of one batch."""
    accelerator = arguments.get("accelerator", "auto")
    if accelerator == "auto":  # Lightning's own choice includes MPS, which has no float64 for the projections
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    return pl.Trainer(
        **{**arguments, "accelerator": accelerator},
        devices=1,  # parallelism is over jobs and within the batch
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # under SLURM too: requeueing is the launcher's business
        **more,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning tells every Trainer's user, and what doesn't apply to this training loop."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    loggers += [logging.getLogger("pytorch_lightning.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*`srun` command is available.*",  # the launcher's business, as above
                ".*ended before the epoch ended and your dataloader is not resumable.*",  # the loader is range(steps)
                ".*is smaller than the logging interval.*",
                ".*Found .* module.* in eval mode.*",
                ".*GPU available but not used.*",
                ".*`srun` command is available.*",
                ".*treespec.*LeafSpec.*",  # Lightning 2.6 against torch 2.14
                ".*The `srun` command is available.*",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def solve(
    generator: LayeredGenerator,
    operator: ForwardOperator,
    measurement: Measurement,
    method: Method,
    keys: Sequence[str],
    seed: int = 0,
    *,
    init: Solution | LatentPoint | None = None,
    data_fit: DataFit | Sequence[DataFit] | None = None,
    truth: Tensor | None = None,
    checkpoint: ResumeCheckpoint | None = None,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    log_every: int = 10,
    display: Display | None = None,
    info: Mapping[str, Any] | None = None,
) -> Reconstruction:
    """Reconstruct a batch of images from their measurement.

    Args:
        generator: frozen generator.
        operator: the forward model A.
        measurement: y of the batch.
        method: schedule, start and constraints; see ``check_method``.
        keys: one string per image that identifies it (a content hash), from which with ``seed`` its randomness comes,
            so that neither its place nor its batch matters.
        seed: of the run.
        init: start here instead of at a random point, at a layer no deeper than the first stage's: as many images as
            the measurement has, or one for all. It is put on the method's spheres first.
        data_fit: what to minimise, or one for each stage; unless told, what the method's weights say.
        truth: the images ``(B, C, H, W)``, which ``method.rank`` truth needs; they choose, and are not optimised for.
        checkpoint: where and when to save; if its file exists, the optimisation goes on from there.
        trainer: further arguments of ``pytorch_lightning.Trainer``: accelerator, precision, …
        callbacks: further callbacks, after the project's own.
        loggers: Lightning loggers that get what ``callbacks.Curves`` tells, every ``log_every`` steps.
        display: where progress is shown.
        info: JSON values to store with every solution.

    Returns:
        Solutions in the order of ``keys``, and what each stage ended with. Where the data fit of an image left the
        finite numbers, the ``info`` of its solution has a ``fault``; the solution is the best before.

    Raises:
        ScheduleError: if the generator can't serve the method.
        SolveError: if a step failed: out of memory, an error in a user's module.
        Interrupted: if ``checkpoint.stop`` was set; the checkpoint is saved.
    """
    start = init.point if isinstance(init, Solution) else init
    data_fit = data_fits(method) if data_fit is None else data_fit
    check_method(method if start is None else replace(method, space=start.space), generator)
    if len(keys) != len(measurement):
        raise ValueError(f"{len(keys)} keys for a measurement of {len(measurement)} images")
    images, restarts = len(keys), method.restarts
    if method.rank == "truth" and truth is None:
        raise ScheduleError("method.rank=truth: the true images aren't known here; use method.rank=data_fit")
    truth = truth.repeat_interleave(restarts, dim=0) if method.rank == "truth" and truth is not None else None
    if restarts > 1:  # copies of one image next to each other, each with its own randomness
        measurement = measurement.select([image for image in range(images) for _ in range(restarts)])
        keys = [f"{key}#{n}" if n else key for key in keys for n in range(restarts)]
    if start is not None:
        start = start if start.batch_size == 1 else start.repeat(restarts)
        start = _fitting(start, generator, method, len(measurement))
    try:
        rngs = [generator_for(seed, key, "initial point") for key in keys]
        point = initial_point(generator, method, rngs) if start is None else start
        problem = InverseProblem(
            generator,
            operator,
            measurement,
            method.schedule,
            point,
            data_fit,
            draws=lambda *purpose, keys=tuple(keys): [generator_for(seed, key, *purpose) for key in keys],
            project=lambda point: project_to_spheres(point, method.spheres),
            truth=truth,
        )
    except (RuntimeError, MemoryError) as error:
        raise SolveError(_describe(error, 0, method.schedule.steps, len(keys)), None) from error
    best = BestIterate(method.rank, last=method.keep != "best")
    projection, history, strip = L1Projection(), History(), PictureStrip()
    spheres = Spheres(method.spheres, method.standardize)
    own: list[Callback] = [StageSchedule(), best, spheres, PlugAndPlay(), projection, history, strip]
    posterior = PosteriorSamples(method.sample_steps()) if method.keep == "samples" else None
    if posterior is not None:
        own.append(posterior)
    if loggers:
        own.append(Curves(history, projection, log_every))
    own += [Progress(display or QuietDisplay()), *callbacks]
    resume = None
    if checkpoint is not None:
        own.append(checkpoint)
        resume = checkpoint.found()
    with _quiet_lightning():
        fit = _new_trainer(
            trainer or {},
            max_epochs=len(method.schedule),
            callbacks=own,
            logger=list(loggers) or False,
            enable_checkpointing=checkpoint is not None,
            default_root_dir=checkpoint.path.parent if checkpoint else None,
        )
        broken: Exception | None = None
        try:
            fit.fit(problem, ckpt_path=resume, weights_only=True)
        except SystemExit:
            # Lightning's way out at SIGTERM or a second SIGINT, where it comes before ResumeCheckpoint's.
            if checkpoint is not None:
                checkpoint.stop.check()
            raise
        except Interrupted:
            raise
        except Exception as error:
            broken = error
    courses = torch.stack(history.fit).cpu() if history.fit else torch.zeros(0, len(keys))
    reconstruction = None
    if best.fit is not None and best.score is not None:
        scores = best.score.nan_to_num(nan=torch.inf).view(images, restarts)
        chosen = (scores.argmin(dim=1).cpu() + torch.arange(images) * restarts).tolist()
        points = best.points
        solutions = [
            Solution(
                points[i].to("cpu"),
                courses[:, i].clone(),
                {
                    **(info or {}),
                    "method": method.name,
                    "key": keys[i // restarts * restarts],
                    "seed": seed,
                    "image_seed": derive_seed(seed, str(keys[i]), "initial point"),
                    "data_fit": _finite(best.fit[i]),
                    "evaluations": problem.evaluations * restarts,
                    "seconds": round(history.seconds, 3),
                    "stage": history.stage,
                    "layers": [stage.layer for stage in method.schedule.stages],
                    "generator": dict(generator.provenance),
                    **({"restart": i % restarts} if restarts > 1 else {}),
                    **_found(best.fit[i], method),
                    **_fault(courses[:, i], history.stage),
                },
            )
            for i in chosen
        ]
        reconstruction = Reconstruction(
            solutions,
            [pictures[chosen] for pictures in strip.pictures],
            posterior if posterior and posterior.count else None,
        )
    if broken is not None:
        raise SolveError(_describe(broken, len(courses), method.schedule.steps, len(keys)), reconstruction) from broken
    assert reconstruction is not None
    return reconstruction


def _finite(value: Tensor) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if bool(value.isfinite()) else None


def _found(fit: Tensor, method: Method) -> dict[str, bool]:
    """With a floor under the data fit, whether it was reached: PULSE's "found within eps"."""
    floor = method.schedule.stages[-1].floor
    return {"found": bool(fit <= floor)} if floor else {}


def _fault(course: Tensor, stages: Sequence[int]) -> dict[str, str]:
    """``fault`` for an image whose data fit was not finite at some step."""
    steps = (~course.isfinite()).nonzero().flatten().tolist()
    if not steps:
        return {}
    return {
        "fault": f"data fit not finite from step {steps[0] + 1} on (stage {stages[steps[0]] + 1}); kept the best "
        "before; lower method.lr"
    }


def _describe(error: Exception, step: int, steps: int, images: int) -> str:
    """One line on what broke the optimisation off, and what may help."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    message = f"broken off at step {step + 1} of {steps}: {type(error).__name__}: {first_line}"
    memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or re.search(
        r"out of memory|can't allocate memory|not enough memory|bad_alloc", str(error), re.IGNORECASE
    )
    if memory:
        message += f"; out of memory with {images} images at once: lower data.batch_size, in another folder"
    return message
