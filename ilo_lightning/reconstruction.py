"""What comes out of a batch: solutions out of its fits, and the pictures of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .callbacks import PosteriorSamples
from .fits import Fit
from .generators.base import LatentPoint, LayeredGenerator, decode
from .method import Method
from .metrics import finite_or_none
from .randomness import derive_seed
from .selection import Selection
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


def reconstruction_of(
    generator: LayeredGenerator,
    method: Method,
    names: Sequence[str],
    seed: int,
    info: Mapping[str, Any],
    search: Fit,
    selection: Selection | None,
    refit: Fit | None,
) -> Reconstruction | None:
    """Solutions out of the fits; None if nothing was evaluated."""
    best, copies = search.best, method.copies
    if best.fit is None or best.score is None or best.step is None or best.stages is None:
        return None
    images = len(names) // copies
    ranked = _ranking(method, search, selection)
    chosen = (ranked + torch.arange(images) * copies).tolist()
    points, steps, fits = best.points, best.step.view(images, copies).cpu(), best.fit.cpu()
    depth = [[point.layer for point in points[i * copies : (i + 1) * copies]] for i in range(images)]
    layers = [stage.layer for stage in method.schedule.stages]
    stages, seconds = list(search.stages), search.seconds
    evaluations, looks = search.evaluations * copies, search.looks * copies
    final = [points[i] for i in chosen]
    kept: list[int | None] = [int(steps[i, copy]) for i, copy in enumerate(ranked.tolist())]
    fit, course = fits[chosen], search.course[:, chosen]
    balls = [_ball(final[image], int(best.stages[copy]), method) for image, copy in enumerate(chosen)]
    if search.posterior is not None:
        looks += search.posterior.count
    if selection is not None:
        looks += copies + 1
        final, fit = [selection.point.select([i]) for i in range(images)], selection.fit.cpu()
        kept = [None] * images
    if refit is not None and refit.best.fit is not None and refit.best.step is not None:
        final, fit = refit.best.points, refit.best.fit.cpu()
        kept = [len(search.course) + step for step in refit.best.step.tolist()]
        course = torch.cat([course, refit.course])
        stages += [len(layers)] * len(refit.stages)
        layers.append(final[0].layer)
        seconds, evaluations = seconds + refit.seconds, evaluations + refit.evaluations
        looks += refit.looks
    evaluations += -(-looks // 3)  # without a gradient, a third of an evaluation each
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
                "data_fit": finite_or_none(fit[image]),
                "evaluations": evaluations,
                "seconds": round(seconds, 3),
                "stage": stages,
                "layers": layers,
                "kept": {"layer": final[image].layer, "step": kept[image], **balls[image]},
                "generator": dict(generator.provenance),
                **_ranked(int(ranked[image]), method, selection is not None),
                **({"selection": selection.info(image, method, depth[image], steps[image])} if selection else {}),
                **_found(fit[image], method),
                **_fault(course[:, image], stages),
            },
        )
        for image in range(images)
    ]
    return Reconstruction(solutions, [], search.posterior if search.posterior and search.posterior.count else None)


def _ranking(method: Method, search: Fit, selection: Selection | None) -> Tensor:
    """``(B,)``: which copy of each image was the best, or weighs most."""
    if selection is not None:
        return selection.weights.argmax(dim=1).cpu()
    assert search.best.score is not None
    return search.best.score.nan_to_num(nan=torch.inf).view(-1, method.copies).argmin(dim=1).cpu()


@torch.no_grad()
def pictures_of(
    generator: LayeredGenerator,
    method: Method,
    search: Fit,
    selection: Selection | None,
    refit: Fit | None,
    at_once: int | None = None,
) -> list[Tensor]:
    """Per stage, the images at its end: those of the copy that weighs most, and of the refit."""
    ranked = _ranking(method, search, selection)
    chosen = ranked + torch.arange(len(ranked)) * method.copies
    ends = [point.select(chosen) for point in search.ends] + (refit.ends if refit else [])
    return [decode(generator, point.to(generator.device), at_once).cpu() for point in ends]


def _ranked(copy: int, method: Method, selected: bool) -> dict[str, Any]:
    """Which start, and which radius, of the copy that was the best by ``method.rank``."""
    if selected:
        return {}
    count = max(len(method.candidates), 1)
    return {
        **({"restart": copy // count} if method.restarts > 1 else {}),
        **({"radius": method.candidates[copy % count]} if method.candidates else {}),
    }


def _ball(point: LatentPoint, stage: int, method: Method) -> dict[str, float]:
    """On a single path, the radius of the ball that the kept point's activation is in."""
    radii = {} if method.candidates or method.selects else method.schedule[stage].radii
    return {"radius": radii["activation"]} if "activation" in radii and "activation" in point.tensors else {}


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
