"""Data fits: per image, how badly a predicted measurement disagrees with the observed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..operators.base import Measurement

Term = Callable[[Tensor, Measurement], Tensor]
"""A data fit: of a prediction and a measurement, one number ``(B,)`` per image."""


def mean_squared_error(prediction: Tensor, measurement: Measurement) -> Tensor:
    """Weighted mean of the squared error over the observed entries, ``(B,)``.

    ``Σ w (A(x) - y)² / Σ w`` with the measurement's weights w: entries of weight 0 (behind a mask, held out) don't
    count, neither in the sum nor in the mean. In squared units of y.
    """
    return _weighted_mean((prediction - measurement.y).square(), measurement)


@dataclass(frozen=True)
class DeadZone:
    """Errors of up to α cost nothing; beyond, their square: ``Σ w max(|A(x) - y| - α, 0)² / Σ w``, ``(B,)``.

    The square of the deadzone-linear penalty (Boyd and Vandenberghe, Convex Optimization, 2004, section 6.1.2), which
    is the squared ε-insensitive loss of support vector regression. For noise that stays below about α, whatever its
    law: what fits to within it is not fitted any closer. With α = 0, the mean squared error.

    Args:
        alpha: in units of y.
    """

    alpha: float = 0.1

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor:
        beyond = ((prediction - measurement.y).abs() - self.alpha).clamp(min=0)
        return _weighted_mean(beyond.square(), measurement)


@dataclass(frozen=True)
class WeightedFit:
    """``Σ weight · term``, ``(B,)``. Terms without weight are not computed.

    Args:
        terms: by name.
        weights: of them, >= 0.
    """

    terms: Mapping[str, Term]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor:
        parts = [weight * self.terms[name](prediction, measurement) for name, weight in self.weights.items() if weight]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def _weighted_mean(errors: Tensor, measurement: Measurement) -> Tensor:
    errors, weight = errors * measurement.weight, measurement.weight
    return errors.flatten(1).sum(dim=1) / weight.expand_as(errors).flatten(1).sum(dim=1)
