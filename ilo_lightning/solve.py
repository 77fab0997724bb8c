"""Solve one batch: search, selection, refit; a measurement and a method in, solutions out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor

from .callbacks import BestIterate, ResumeCheckpoint
from .callbacks.progress import Display, QuietDisplay
from .callbacks.sphere import project_to_spheres
from .compatibility import check_method
from .errors import titled
from .fits import Fits
from .generators.base import LatentPoint, LayeredGenerator, variable_of
from .losses import DataFit, data_fits
from .method import Method
from .operators.base import ForwardOperator, Measurement
from .problem import InverseProblem
from .randomness import generator_for
from .reconstruction import Reconstruction, pictures_of, reconstruction_of
from .schedule import ScheduleError
from .selection import Selection, check_selection, hold_out
from .solution import Solution


class SolveError(RuntimeError):
    """Something broke the optimisation off; ``reconstruction`` holds the best points found before, if there were any.
    The cause is chained."""

    def __init__(self, message: str, reconstruction: Reconstruction | None):
        super().__init__(message)
        self.reconstruction = reconstruction


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
    at_once: int | None = None,
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
        at_once: images that the generator makes at a time, of the copies of all images; less memory for half as much
            time again. None: all.

    Returns:
        Solutions in the order of ``keys``, and what each stage ended with. Where the data fit of an image left the
        finite numbers, the ``info`` of its solution has a ``fault``; the solution is the best before.

    Raises:
        ScheduleError: if the generator can't serve the method.
        ValueError: if ``keys`` or ``init`` don't fit the measurement.
        SolveError: if something failed after that: out of memory, an error in a user's module, one measurement only.
        Interrupted: if ``checkpoint.stop`` was set; the checkpoint is saved.
    """
    start = init.point if isinstance(init, Solution) else init
    data_fit = data_fits(method) if data_fit is None else data_fit
    check_method(method if start is None else replace(method, space=start.space), generator)
    check_selection(method, operator)
    if len(keys) != len(measurement):
        raise ValueError(f"{len(keys)} keys for a measurement of {len(measurement)} images")
    if method.rank == "truth" and truth is None:
        raise ScheduleError("method.rank=truth: the true images aren't known here; use method.rank=data_fit")
    images, copies = len(keys), method.copies
    fitted, held = measurement, None
    if method.selects:
        try:
            fitted, held = hold_out(measurement, keys, seed, method.held_out)
        except ScheduleError as error:  # where y has masks of its own
            raise SolveError(str(error), None) from error
    # Copies of one image next to each other, each with its own randomness.
    every = [image for image in range(images) for _ in range(copies)]
    names = [f"{key}#{n}" if n else key for key in keys for n in range(copies)]
    if start is not None:
        start = _fitting(start, generator, method, images).select(every)
    try:
        rngs = [generator_for(seed, name, "initial point") for name in names]
        problem = InverseProblem(
            generator,
            operator,
            fitted.select(every) if copies > 1 else fitted,
            method.schedule,
            initial_point(generator, method, rngs) if start is None else start,
            data_fit,
            draws=lambda *purpose: [generator_for(seed, name, *purpose) for name in names],
            project=lambda point: project_to_spheres(point, method.spheres),
            truth=truth[every] if method.rank == "truth" and truth is not None else None,
            radii=torch.tensor(method.candidates).repeat(images * method.restarts) if method.candidates else None,
            held_out=held.select(every) if held is not None and method.rank == "held_out" else None,
            at_once=at_once,
        )
    except (RuntimeError, MemoryError) as error:
        raise SolveError(_describe(error, 0, method, images, at_once), None) from error
    fits = Fits(method, trainer or {}, callbacks, loggers, log_every, display or QuietDisplay())
    search = fits.run(
        problem,
        BestIterate(method.rank, last=method.keep != "best"),
        checkpoint.of("search") if checkpoint is not None and method.refit is not None else checkpoint,
    )
    selection, refit = None, None
    if held is not None and search.broken is None:
        refit_problem = None
        try:
            last = data_fit[-1] if isinstance(data_fit, Sequence) else data_fit
            points = search.best.points
            selection = Selection.make(generator, operator, measurement, held, method, last, points, at_once)
            if method.refit is not None:
                refit_problem = selection.problem(generator, operator, measurement, method, last, keys, seed, at_once)
        except Exception as error:  # whatever a user's own module raises: the search isn't lost
            search.broken = error
        if refit_problem is not None:
            refit = fits.run(refit_problem, BestIterate("loss"), checkpoint, search)
    broken = search.broken or (refit.broken if refit else None)
    reconstruction = reconstruction_of(generator, method, names, seed, info or {}, search, selection, refit)
    if reconstruction is not None:
        try:
            strip = pictures_of(generator, method, search, selection, refit, at_once)
            reconstruction = replace(reconstruction, strip=strip)
        except Exception as error:  # of a user's own generator: what was found isn't lost
            broken = broken or error
    if broken is not None:
        done = len(search.course) + (len(refit.course) if refit else 0)
        raise SolveError(_describe(broken, done, method, images, at_once), reconstruction) from broken
    assert reconstruction is not None
    return reconstruction


def _describe(error: Exception, step: int, method: Method, images: int, at_once: int | None) -> str:
    """One line on what broke the optimisation off, and what may help."""
    message = f"broken off at step {step + 1} of {method.steps}: {titled(error)}"
    memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or re.search(
        r"out of memory|can't allocate memory|not enough memory|bad_alloc", str(error), re.IGNORECASE
    )
    if memory:
        copies = f", {method.copies} copies of each" if method.copies > 1 else ""
        go_on = "" if at_once == 1 else "go on with data.decode_batch_size=1, or "
        message += (
            f"; out of memory with {images} images{copies} at once: {go_on}lower data.batch_size, in another folder"
        )
    return message
