"""Whether deficits are below a margin in each of several cells at once: Holm's procedure, with bounds that agree.

In cell i of m, n images have paired differences to each of several others, with mean d, standard error s and unknown
true mean μ. The null hypothesis H_i: max μ ≥ margin ("the deficit to one of them is not below the margin") is tested by
Student's t on n - 1 degrees of freedom to each, p = P(T ≤ (d - margin) / s), and the largest of these is p_i: the
intersection-union test (Berger, Technometrics 24, 1982), of the cell's own level however many others there are.

Holm (1979): with p_(1) ≤ … ≤ p_(m), reject H_(1), H_(2), … as long as p_(j) ≤ level / (m - j + 1), and stop at the
first that isn't. The probability of any wrong rejection is at most ``level``, however the cells depend on each other.

The upper bounds are those of Strassburger and Bretz (Statistics in Medicine 27, 2008) and Guilbaud (Biometrical Journal
50, 2008), which invert this procedure. With u_i(a) the largest of d + t_{1-a, n-1}·s in cell i, and r
hypotheses retained:

- r > 0: a retained cell has the bound u_i(level / r), which is above the margin; a rejected cell has the margin itself.
- r = 0: every cell has min(margin, u_i(level / m)).

All m bounds hold together with probability 1 - level, and a bound is at most the margin just where Holm rejects. The
price is that a rejected cell's bound says no more than "below the margin" while any other cell is retained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

Cell = Sequence[Sequence[float]]
"""Paired differences to each of the others."""


def p_value(differences: Sequence[float], margin: float) -> float:
    """Of the hypothesis that the mean difference is at least ``margin``; at least two differences."""
    error, excess = _standard_error(differences), statistics.fmean(differences) - margin
    if error == 0:
        return 0.0 if excess < 0 else 1.0
    return float(student.cdf(excess / error, len(differences) - 1))


def upper_bound(differences: Sequence[float], level: float) -> float:
    """One-sided ``1 - level`` upper bound on the mean difference, of this cell alone."""
    quantile = float(student.isf(level, len(differences) - 1))
    return statistics.fmean(differences) + quantile * _standard_error(differences)


def cell_p_value(cell: Cell, margin: float) -> float:
    """Of the hypothesis that one of the mean differences is at least ``margin``."""
    return max(p_value(differences, margin) for differences in cell)


def cell_upper_bound(cell: Cell, level: float) -> float:
    """One-sided ``1 - level`` upper bound on the largest mean difference, of this cell alone."""
    return max(upper_bound(differences, level) for differences in cell)


def holm_adjusted(p: Sequence[float]) -> list[float]:
    """The least level at which Holm's procedure rejects each hypothesis."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def simultaneous_upper_bounds(cells: Sequence[Cell], margin: float, level: float = 0.05) -> list[float]:
    """Upper bounds on the largest mean of each cell that hold together and agree with Holm's procedure; see this
    module."""
    adjusted = holm_adjusted([cell_p_value(cell, margin) for cell in cells])
    retained = sum(p > level for p in adjusted)
    if not retained:
        return [min(margin, cell_upper_bound(cell, level / len(cells))) for cell in cells]
    return [
        cell_upper_bound(cell, level / retained) if p > level else margin
        for cell, p in zip(cells, adjusted, strict=True)
    ]


def _standard_error(differences: Sequence[float]) -> float:
    return statistics.stdev(differences) / math.sqrt(len(differences))
