"""Data fits: per image, how badly a predicted measurement disagrees with the observed one."""

from __future__ import annotations

from torch import Tensor

from ..operators.base import Measurement


def mean_squared_error(prediction: Tensor, measurement: Measurement) -> Tensor:
    """Weighted mean of the squared error over the observed entries, ``(B,)``.

    ``Σ w (A(x) - y)² / Σ w`` with the measurement's weights w: entries of weight 0 (behind a mask, held out) don't
    count, neither in the sum nor in the mean. In squared units of y.
    """
    weight = measurement.weight
    squares = (prediction - measurement.y).square() * weight
    return squares.flatten(1).sum(dim=1) / weight.expand_as(squares).flatten(1).sum(dim=1)
