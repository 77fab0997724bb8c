"""Scores of several images and methods, as a table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import metrics
from .summary import OPTIMISED, OPTIMISED_MEANS

FEW = 16
"""Up to so many images, each has a line of its own."""


class _Console(Console):
    """Rich ends the process when nobody reads its output any more; a table is no reason to."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def print_scores(title: str, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """A line per image and method, where there are few; then, per method, the mean ± 1.96 standard errors.

    Args:
        title: above the table.
        outcomes: each with ``image``, ``method`` and ``metrics`` (name to a number or None), and where it is known
            ``data_fit``, ``evaluations``, ``optimised`` (names that are marked) and ``protocols`` (of its metrics).
    """
    console = _Console(width=None if sys.stdout.isatty() else 160)
    names = list(outcomes[0]["metrics"])
    further = [name for name in ("data_fit", "evaluations") if name in outcomes[0]]
    images = list(dict.fromkeys(outcome["image"] for outcome in outcomes))
    table = Table(title=f"{title}, {len(images)} image{'s' * (len(images) > 1)}")
    table.add_column("image")
    table.add_column("method")
    for name in (*names, *further):
        table.add_column(name.replace("_", " "), justify="right")

    def add(first: str, method: str, scores: Sequence[str], group: Sequence[Mapping[str, Any]]) -> None:
        fits = [outcome["data_fit"] for outcome in group if outcome.get("data_fit") is not None]
        cells = {
            "data_fit": _number(sum(fits) / len(fits) if fits else None, 3),
            "evaluations": str(group[0].get("evaluations")),
        }
        table.add_row(first, method, *scores, *(cells[name] for name in further))

    def mark(outcome: Mapping[str, Any], name: str) -> str:
        return OPTIMISED if name in outcome.get("optimised", ()) else ""

    if len(images) <= FEW:
        for outcome in outcomes:
            scores = [_number(outcome["metrics"].get(name)) + mark(outcome, name) for name in names]
            add(outcome["image"], outcome["method"], scores, [outcome])
    if len(images) > 1:
        table.add_section()
        for method in dict.fromkeys(outcome["method"] for outcome in outcomes):
            group = [outcome for outcome in outcomes if outcome["method"] == method]
            scores = []
            for name in names:
                values = [o["metrics"][name] for o in group if o["metrics"].get(name) is not None]
                mean, half = metrics.mean_and_interval(values) if values else (None, None)
                scores.append(f"{_number(mean)} ± {_number(half, 2)}{mark(group[0], name)}")
            add("mean ± 1.96 s.e.", method, scores, group)
    console.print(table)
    protocols = {**metrics.PROTOCOLS}
    for outcome in outcomes:
        protocols.update(outcome.get("protocols", {}))
    notes = [f"{name}: {protocols[name]}" for name in names]
    if any(mark(outcome, name) for outcome in outcomes for name in names):
        notes.append(f"{OPTIMISED}: {OPTIMISED_MEANS}")
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None, digits: int = 4) -> str:
    """A diverged image has none; nor is there an interval for one image."""
    return "-" if value is None else f"{value:.{digits}g}"
