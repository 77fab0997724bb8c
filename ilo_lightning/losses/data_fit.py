"""Data fits: per image, how badly a predicted measurement disagrees with the observed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method import Method
from ..operators.base import Measurement
from ..operators.classifier import Classifier
from ..schedule import ScheduleError


class DataFit(Protocol):
    """How badly a prediction A(G(z)) disagrees with a measurement: one number ``(B,)`` per image, lower is better."""

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor: ...


def mean_squared_error(prediction: Tensor, measurement: Measurement) -> Tensor:
    """Weighted mean of the squared error over the observed entries, ``(B,)``.

    ``Σ w (A(x) - y)² / Σ w`` with the measurement's weights w: entries of weight 0 (behind a mask, held out) don't
    count, neither in the sum nor in the mean. In squared units of y.
    """
    return _weighted_mean((prediction - measurement.y).square(), measurement)


def cross_entropy(prediction: Tensor, measurement: Measurement) -> Tensor:
    """``-Σ_k w_k y_k log p_k``, ``(B,)``, of probabilities y and p = A(x) ``(B, K)``; in nats.

    Zero only for ``p = y`` one-hot. A p that is 0 counts as the least number of its type, so that the fit is finite.
    """
    logs = prediction.clamp_min(torch.finfo(prediction.dtype).tiny).log()
    return -(measurement.y * measurement.weight * logs).sum(dim=1)


@dataclass(frozen=True)
class TargetFit:
    """Cross-entropy of what a classifier takes a picture for, and a class that it is to be; ``(B,)``, in nats.

    For operators whose A(x) is a picture; what was measured has no say. Not a module, so that a ``LightningModule``
    that holds it doesn't take the network into its checkpoints.

    Args:
        classifier: of pictures; it follows them to their device.
        target: ``(1, K)``, or one ``(B, K)`` for each picture.
    """

    classifier: Classifier
    target: Tensor

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Of all classes, ``(B, K)``."""
        return self._logits(prediction).softmax(dim=1)

    def _logits(self, prediction: Tensor) -> Tensor:
        if self.classifier.weight.device != prediction.device:
            self.classifier.to(prediction.device)
        return self.classifier.logits(prediction)

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor:
        logits = self._logits(prediction)
        return F.cross_entropy(logits, self.target.to(logits).expand_as(logits), reduction="none")


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

    terms: Mapping[str, DataFit]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor:
        parts = [weight * self.terms[name](prediction, measurement) for name, weight in self.weights.items() if weight]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def data_fits(method: Method, more: Mapping[str, DataFit] | None = None) -> list[WeightedFit]:
    """What a method minimises, stage by stage.

    Args:
        more: the terms that need a network: ``perceptual``, ``cross_entropy``.

    Raises:
        ScheduleError: if one that has a weight isn't there.
    """
    terms = {"mse": mean_squared_error, "dead_zone": DeadZone(method.dead_zone), **(more or {})}
    for name, weight in method.data_fit.items():
        if weight and name not in terms:
            raise ScheduleError(
                f"method.data_fit.{name}={weight:g}: there is no network here that it could be by; use 0"
            )
    return [WeightedFit(terms, stage.data_fit) for stage in method.schedule.stages]


def _weighted_mean(errors: Tensor, measurement: Measurement) -> Tensor:
    errors, weight = errors * measurement.weight, measurement.weight
    return errors.flatten(1).sum(dim=1) / weight.expand_as(errors).flatten(1).sum(dim=1)
