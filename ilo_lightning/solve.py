"""Solve one batch: a measurement and a method in, one Trainer.fit, solutions out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor

from .callbacks import BestIterate, PosteriorSamples, ResumeCheckpoint
from .callbacks.progress import Display, QuietDisplay
from .callbacks.sphere import project_to_spheres
from .compatibility import check_method
from .fits import Fit, Fits
from .generators.base import LatentPoint, LayeredGenerator, variable_of
from .losses import data_fits, mean_squared_error
from .operators.base import ForwardOperator, Measurement
from .problem import DataFit, InverseProblem
from .randomness import derive_seed, generator_for
from .schedule import Method, Schedule, ScheduleError
from .selection import check_selection, combine, hold_out, how, mean_of, one_of, restraint
from .solution import Solution


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
        )
    except (RuntimeError, MemoryError) as error:
        raise SolveError(_describe(error, 0, method, images), None) from error
    fits = Fits(method, trainer or {}, callbacks, loggers, log_every, display or QuietDisplay())
    first = fits.run(
        problem,
        BestIterate(method.rank, last=method.keep != "best"),
        checkpoint.of("search") if checkpoint is not None and held is not None and method.refit else checkpoint,
    )
    selection, again = None, None
    if held is not None and first.broken is None:
        refit = None
        try:
            last = data_fit[-1] if isinstance(data_fit, Sequence) else data_fit
            selection = _Selection.make(generator, operator, measurement, held, method, last, first)
            if method.refit is not None:
                refit = selection.problem(generator, operator, measurement, method, last, keys, seed)
        except Exception as error:  # whatever a user's own module raises: the search isn't lost
            first.broken = error
        if refit is not None:
            again = fits.run(refit, BestIterate("loss"), checkpoint, first)
    broken = first.broken or (again.broken if again else None)
    reconstruction = _reconstruction(generator, method, names, seed, info or {}, first, selection, again)
    if reconstruction is not None:
        try:
            strip = _pictures(generator, method, first, selection, again)
            reconstruction = replace(reconstruction, strip=strip)
        except Exception as error:  # of a user's own generator: what was found isn't lost
            broken = broken or error
    if broken is not None:
        done = len(first.course) + (len(again.course) if again else 0)
        raise SolveError(_describe(broken, done, method, images), reconstruction) from broken
    assert reconstruction is not None
    return reconstruction


@dataclass(frozen=True)
class _Selection:
    """What became of the copies of each image: weights ``(B, K)``, the point that is their mean, its data fit, the mean
    squared error of the mean of their images on what was held out ``(B,)``, and what holds the refit there."""

    how: str
    weights: Tensor
    point: LatentPoint
    fit: Tensor
    residual: Tensor
    restraint: Callable[[LatentPoint, Tensor], Tensor]

    @classmethod
    @torch.no_grad()
    def make(
        cls,
        generator: LayeredGenerator,
        operator: ForwardOperator,
        measurement: Measurement,
        held: Measurement,
        method: Method,
        data_fit: DataFit,
        fit: Fit,
    ) -> _Selection:
        """Decode the copies' points at the generator's deepest layer, and compare what they predict."""
        deepest = generator.num_layers - 1
        points = LatentPoint.cat([generator.advance(p.to(generator.device), deepest) for p in fit.best.points])
        pictures = generator(points)
        held, copies = held.to(pictures.device), method.copies
        predictions = operator(pictures)
        predictions = predictions.view(len(held), copies, *predictions.shape[1:])
        pictures = pictures.view(len(held), copies, *pictures.shape[1:])
        way = how(method, operator)
        assert way is not None
        weights = (mean_of if way == "stacking" else one_of)(predictions, held)
        mean = combine(points, weights)
        # As images without weight may not be finite, neither may what they predict.
        counted = torch.where(weights[:, :, None] > 0, predictions.flatten(2), 0.0)
        residual = mean_squared_error(torch.einsum("bk,bkn->bn", weights, counted).view_as(held.y), held)
        own = data_fit(operator(generator(mean)), measurement.to(pictures.device))
        held_there = restraint(pictures, weights, mean, residual, method.anchor, method.refit_deviation)
        return cls(way, weights, mean, own, residual, held_there)

    def problem(
        self,
        generator: LayeredGenerator,
        operator: ForwardOperator,
        measurement: Measurement,
        method: Method,
        data_fit: DataFit,
        keys: Sequence[str],
        seed: int,
    ) -> InverseProblem:
        """The refit: all measurements, from the mean on."""
        assert method.refit is not None
        return InverseProblem(
            generator,
            operator,
            measurement,
            Schedule((replace(method.refit, layer=self.point.layer),)),
            self.point,
            data_fit,
            draws=lambda *purpose: [generator_for(seed, key, "refit", *purpose) for key in keys],
            restraint=self.restraint,
        )

    def info(self, image: int, method: Method, layers: Sequence[int], steps: Tensor) -> dict[str, Any]:
        """For the solution: what was tried (of each copy the layer and step of its best iterate), what it counts, and
        how well it predicts what was held out."""
        radii = list(method.candidates) * method.restarts if method.candidates else None
        return {
            "how": self.how,
            **({"radii": radii} if radii else {}),
            "weights": [round(value, 4) for value in self.weights[image].tolist()],
            "layers": list(layers),
            "steps": steps.tolist(),
            "layer": self.point.layer,
            "held_out_residual": _finite(self.residual[image].sqrt()),
        }


def _reconstruction(
    generator: LayeredGenerator,
    method: Method,
    names: Sequence[str],
    seed: int,
    info: Mapping[str, Any],
    first: Fit,
    selection: _Selection | None,
    again: Fit | None,
) -> Reconstruction | None:
    """Solutions out of the fits; None if nothing was evaluated."""
    best, copies = first.best, method.copies
    if best.fit is None or best.score is None or best.step is None:
        return None
    images = len(names) // copies
    ranked = _ranking(method, first, selection)
    chosen = (ranked + torch.arange(images) * copies).tolist()
    points, steps, fits = best.points, best.step.view(images, copies).cpu(), best.fit.cpu()
    depth = [[point.layer for point in points[i * copies : (i + 1) * copies]] for i in range(images)]
    layers = [stage.layer for stage in method.schedule.stages]
    stages, seconds, evaluations = list(first.stages), first.seconds, first.evaluations * copies
    final = [points[i] for i in chosen]
    fit, course = fits[chosen], first.course[:, chosen]
    if first.posterior is not None:
        evaluations += -(-first.posterior.count // 3)  # the samples' pictures, as below
    if selection is not None:
        evaluations += -(-(copies + 1) // 3)  # looks without a gradient, a third of an evaluation each
        final, fit = [selection.point.select([i]) for i in range(images)], selection.fit.cpu()
    if again is not None and again.best.fit is not None:
        final, fit = again.best.points, again.best.fit.cpu()
        course = torch.cat([course, again.course])
        stages += [len(layers)] * len(again.stages)
        layers.append(final[0].layer)
        seconds, evaluations = seconds + again.seconds, evaluations + again.evaluations
    solutions = [
        Solution(
            final[image].to("cpu"),
            course[:, image].clone(),
            {
                **info,
                "method": method.name,
                "key": names[image * copies],
                "seed": seed,
                "image_seed": derive_seed(seed, str(names[chosen[image]]), "initial point"),
                "data_fit": _finite(fit[image]),
                "evaluations": evaluations,
                "seconds": round(seconds, 3),
                "stage": stages,
                "layers": layers,
                "generator": dict(generator.provenance),
                **_ranked(int(ranked[image]), method, selection is not None),
                **({"selection": selection.info(image, method, depth[image], steps[image])} if selection else {}),
                **_found(fit[image], method),
                **_fault(course[:, image], stages),
            },
        )
        for image in range(images)
    ]
    return Reconstruction(solutions, [], first.posterior if first.posterior and first.posterior.count else None)


def _ranking(method: Method, first: Fit, selection: _Selection | None) -> Tensor:
    """``(B,)``: which copy of each image was the best, or weighs most."""
    if selection is not None:
        return selection.weights.argmax(dim=1).cpu()
    assert first.best.score is not None
    return first.best.score.nan_to_num(nan=torch.inf).view(-1, method.copies).argmin(dim=1).cpu()


@torch.no_grad()
def _pictures(
    generator: LayeredGenerator, method: Method, first: Fit, selection: _Selection | None, again: Fit | None
) -> list[Tensor]:
    """Per stage, the images at its end: those of the copy that weighs most, and of the refit."""
    ranked = _ranking(method, first, selection)
    chosen = ranked + torch.arange(len(ranked)) * method.copies
    ends = [point.select(chosen) for point in first.ends] + (again.ends if again else [])
    return [generator(point.to(generator.device)).cpu() for point in ends]


def _finite(value: Tensor) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(value) if bool(value.isfinite()) else None


def _ranked(copy: int, method: Method, selected: bool) -> dict[str, Any]:
    """Which start, and which radius, of the copy that was the best by ``method.rank``."""
    if selected:
        return {}
    count = max(len(method.candidates), 1)
    return {
        **({"restart": copy // count} if method.restarts > 1 else {}),
        **({"radius": method.candidates[copy % count]} if method.candidates else {}),
    }


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


def _describe(error: Exception, step: int, method: Method, images: int) -> str:
    """One line on what broke the optimisation off, and what may help."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    message = f"broken off at step {step + 1} of {method.steps}: {type(error).__name__}: {first_line}"
    memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or re.search(
        r"out of memory|can't allocate memory|not enough memory|bad_alloc", str(error), re.IGNORECASE
    )
    if memory:
        copies = f", {method.copies} copies of each" if method.copies > 1 else ""
        message += f"; out of memory with {images} images{copies} at once: lower data.batch_size, in another folder"
    return message
