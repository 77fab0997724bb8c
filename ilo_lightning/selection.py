"""One point out of several, chosen by measurements that none of them was fitted to.

A part of y is held out, at random (cross-validation, for inverse problems: Ward 2009). Candidates are solved with the
rest, and what they predict for the part says which to trust: the best of them, or the mean of their images with the
weights that predict it best (stacking, Wolpert 1992; Breiman 1996). Candidates err in different ways, so that a mean
is nearer to the truth than most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .generators.base import LatentPoint, LayeredGenerator, advance, decode
from .losses import DataFit, deviation, mean_squared_error
from .method import Method
from .metrics import finite_or_none
from .operators.base import ForwardOperator, Measurement
from .problem import InverseProblem
from .projections import project_simplex
from .randomness import generator_for
from .schedule import Schedule, ScheduleError

RIDGE = 0.3
"""Pulls the weights of a mean towards equal ones, in units of the candidates' mean squared error there."""
ITERATIONS = 500
SAME = 1e-10
"""Mean squared difference, of pixels in [-1, 1], below which images are the same."""
ALONE = (
    "only one measurement is made of an image, and none can be held out; give method.radius a number, and use "
    "method.restarts=1"
)


def check_selection(method: Method, operator: ForwardOperator) -> None:
    """Refuse to hold out parts of what can't be split, before any work.

    Raises:
        ScheduleError: naming the remedy.
    """
    if not method.selects:
        return
    weight = operator.weight.cpu().expand(1, *operator.output_shape)
    if int(_observed(weight).sum()) < 2:
        raise ScheduleError(f"method.select={method.select}: {ALONE}")
    if not operator.can_hold_out:
        raise ScheduleError(
            f"method.select={method.select}: what {type(operator).__name__} gives can't be split into a part to fit "
            "and a part to choose by; give method.radius a number, and use method.restarts=1 or method.select=null"
        )


def how(method: Method, operator: ForwardOperator, generator: LayeredGenerator) -> str | None:
    """The selection that a method makes: the mean of images has the mean of their measurements only where A is affine,
    and the mean of points is near to the mean of their images only below the codes."""
    if not method.selects:
        return None
    return method.select if operator.affine and generator.num_layers > 1 else "holdout"


def hold_out(
    measurement: Measurement, keys: Sequence[str], seed: int, fraction: float
) -> tuple[Measurement, Measurement]:
    """Split the observed entries of each image's y: what is left, and what is held out.

    All channels of a pixel, where y ``(B, C, H, W)`` is a picture, go together. Each part has the y of the whole, and
    weights of 0 for the other part's entries.

    Args:
        keys: one string per image, from which with ``seed`` its split comes.
        fraction: of the entries, in (0, 1); at least one is held out, and one left.

    Raises:
        ScheduleError: if only one entry of an image was observed.
    """
    weight = measurement.weight.expand_as(measurement.y)
    chosen = []
    for key, observed in zip(keys, _observed(weight.cpu()), strict=True):
        places = observed.flatten().nonzero().flatten()
        if len(places) < 2:
            raise ScheduleError(f"method.select: {ALONE}")
        count = min(max(1, round(fraction * len(places))), len(places) - 1)
        order = torch.randperm(len(places), generator=generator_for(seed, key, "held out"))
        mask = torch.zeros(observed.numel(), dtype=torch.bool)
        mask[places[order[:count]]] = True
        chosen.append(mask.view(observed.shape))
    held = torch.stack(chosen).to(weight.device)
    held = held.unsqueeze(1) if weight.ndim == 4 else held
    return replace(measurement, weight=weight * ~held), replace(measurement, weight=weight * held)


def _observed(weight: Tensor) -> Tensor:
    """Which entries were observed; of pictures ``(B, C, H, W)``, which pixels."""
    return (weight.amax(dim=1) if weight.ndim == 4 else weight) > 0


def one_of(predictions: Tensor, held: Measurement) -> Tensor:
    """Weights ``(B, K)`` that are 1 for the candidate with the least squared error on what was held out, else 0.

    Args:
        predictions: ``(B, K, *output_shape)``.
    """
    errors = _deviations(predictions, held).square().sum(dim=2)
    best = errors.nan_to_num(nan=torch.inf).argmin(dim=1)
    return torch.nn.functional.one_hot(best, errors.shape[1]).to(errors)


def mean_of(predictions: Tensor, held: Measurement) -> Tensor:
    """Weights ``(B, K)``, >= 0 with sum 1, of the mean of candidates that has the least squared error on what was held
    out (stacking with Breiman's constraint), with a ridge towards equal ones. A candidate that isn't finite has none.

    Args:
        predictions: ``(B, K, *output_shape)``, of an affine operator.
    """
    deviations = _deviations(predictions, held).double()
    finite = deviations.isfinite().all(dim=2)
    deviations = torch.where(finite[:, :, None], deviations, 0.0)
    products = deviations @ deviations.transpose(1, 2)  # of weights a with sum 1: the squared error is a' products a
    count = finite.sum(dim=1).clamp_min(1)
    scale = products.diagonal(dim1=1, dim2=2).sum(dim=1) / count
    scale = torch.where(scale > 0, scale, 1.0)
    matrix = products / scale[:, None, None] + RIDGE * torch.eye(products.shape[1]).to(products)
    step = 1 / torch.linalg.matrix_norm(matrix, ord=2)
    root = (RIDGE * step).sqrt()
    momentum = ((1 - root) / (1 + root))[:, None]
    weights = ahead = finite.to(products) / count[:, None]
    for _ in range(ITERATIONS):  # projected gradient, accelerated (Nesterov's constant scheme, strongly convex)
        before = weights
        weights = project_simplex(ahead - step[:, None] * (matrix @ ahead[:, :, None])[:, :, 0], finite)
        ahead = weights + momentum * (weights - before)
    return weights.to(predictions.dtype)


def _deviations(predictions: Tensor, held: Measurement) -> Tensor:
    """``(B, K, n)``: of each prediction from y, by the root of the weight."""
    weight = held.weight.expand_as(held.y).flatten(1)
    return (predictions.flatten(2) - held.y.flatten(1)[:, None]) * weight.sqrt()[:, None]


def combine(points: LatentPoint, weights: Tensor) -> LatentPoint:
    """The mean of the points ``(B·K)`` of one layer with weights ``(B, K)``; K points of an image are neighbours."""
    images, copies = weights.shape

    def mean(tensor: Tensor) -> Tensor:
        each = tensor.view(images, copies, *tensor.shape[1:])
        weight = weights.to(tensor).view(images, copies, *[1] * (tensor.ndim - 1))
        return torch.where(weight > 0, weight * each, 0.0).sum(dim=1)  # also where one that doesn't count isn't finite

    return points.map(mean)


def restraint(
    images: Tensor, weights: Tensor, point: LatentPoint, residual: Tensor, anchor: float, points: float
) -> Callable[[LatentPoint, Tensor], Tensor]:
    """What holds the refit at the mean of the candidates, as a mean squared error: of a point p and its image x
    ``residual · (anchor · ‖x - mean‖² / spread + points · ‖p - point‖₁ / ‖point‖₁)``. The squares are means over
    pixels; the last term is the penalty ``deviation``. The more the candidates disagree, the less the mean of their
    images says; the less y was predicted, the less y says.

    Args:
        images: of the candidates, ``(B, K, C, H, W)``.
        weights: ``(B, K)``.
        point: mean of the candidates' points.
        residual: ``(B,)``: mean squared error on what was held out.
        anchor: strength of the first term.
        points: of the second.
    """
    share = weights.to(images)[:, :, None, None, None]
    kept = torch.where(share > 0, images, 0.0)
    mean = (share * kept).sum(dim=1)
    finite = images.flatten(2).isfinite().all(dim=2)
    squares = (images - mean[:, None]).flatten(2).square().mean(dim=2)
    spread = torch.where(finite, squares, 0.0).sum(dim=1) / finite.sum(dim=1).clamp_min(1)
    # Of candidates that are all the same, or all not finite, the mean says nothing.
    known = residual.isfinite() & (spread > SAME)
    unit = torch.where(known, residual, 0.0)
    scale = torch.where(known, anchor * residual / torch.where(known, spread, 1.0), 0.0)
    mean = torch.where(known[:, None, None, None], mean, 0.0)

    def held(current: LatentPoint, image: Tensor) -> Tensor:
        device = image.device
        distance = (image - mean.to(device)).square().flatten(1).mean(dim=1)
        moved = deviation(current, point.to(device))
        return scale.to(device) * distance + points * unit.to(device) * torch.where(known.to(device), moved, 0.0)

    return held


@dataclass(frozen=True)
class Selection:
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
        found: Sequence[LatentPoint],
        at_once: int | None = None,
    ) -> Selection:
        """Decode the points that were found, of all copies, at the generator's deepest layer, and compare what they
        predict."""
        deepest = generator.num_layers - 1
        spaces = [stage.space for stage in method.schedule.stages if stage.space is not None]

        def deep(point: LatentPoint) -> LatentPoint:
            """As the last stage would have it, whatever stage it is from."""
            point = point.to(generator.device)
            return advance(generator, generator.convert(point, spaces[-1]) if spaces else point, deepest, at_once)

        points = LatentPoint.cat([deep(point) for point in found])
        pictures = decode(generator, points, at_once)
        held, copies = held.to(pictures.device), method.copies
        predictions = operator(pictures)
        predictions = predictions.view(len(held), copies, *predictions.shape[1:])
        pictures = pictures.view(len(held), copies, *pictures.shape[1:])
        way = how(method, operator, generator)
        assert way is not None
        weights = (mean_of if way == "stacking" else one_of)(predictions, held)
        mean = combine(points, weights)
        # As images without weight may not be finite, neither may what they predict.
        counted = torch.where(weights[:, :, None] > 0, predictions.flatten(2), 0.0)
        residual = mean_squared_error(torch.einsum("bk,bkn->bn", weights, counted).view_as(held.y), held)
        own = data_fit(operator(decode(generator, mean, at_once)), measurement.to(pictures.device))
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
        at_once: int | None = None,
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
            at_once=at_once,
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
            "held_out_residual": finite_or_none(self.residual[image].sqrt()),
        }
