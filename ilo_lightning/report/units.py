"""Points as a reader sees them: one whose results are in several folders is one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .sweep import DONE, FAILED, MISSING, RUNNING, UNFINISHED, Point

_BEST_FIRST = (DONE, RUNNING, UNFINISHED, FAILED, MISSING)  # of two folders that hold the same


@dataclass(frozen=True)
class Unit:
    """One configuration.

    Args:
        numbers: of its points in the collection.
        state: the best of its folders'.
    """

    numbers: tuple[int, ...]
    name: str
    state: str
    error: str | None


def units(points: Sequence[Point]) -> list[Unit]:
    """In the order of their first folders."""
    groups: dict[str, list[int]] = {}
    for number, point in enumerate(points):
        groups.setdefault(point.identity or f"number {number}", []).append(number)
    prefixes = _prefixes(list(dict.fromkeys(point.sweep for point in points)))
    return [_unit(points, numbers, prefixes) for numbers in groups.values()]


def _prefixes(sweeps: Sequence[str]) -> dict[str, str]:
    """Of the names of points, by sweep: none for a single one, folder names where they tell the sweeps apart."""
    short = [Path(sweep).resolve().name for sweep in sweeps]
    names = short if len(set(short)) == len(sweeps) else sweeps
    return {sweep: f"{name}/" if len(sweeps) > 1 else "" for sweep, name in zip(sweeps, names, strict=True)}


def _unit(points: Sequence[Point], numbers: Sequence[int], prefixes: Mapping[str, str]) -> Unit:
    best = min((points[number] for number in numbers), key=lambda point: _BEST_FIRST.index(point.state))
    first = points[numbers[0]]
    name = f"{prefixes[first.sweep]}{first.name}{f' (+{len(numbers) - 1})' if len(numbers) > 1 else ''}"
    return Unit(tuple(numbers), name, best.state, best.error)
