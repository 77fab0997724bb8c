"""Comparisons to look at: for each problem a picture with a row per image and a column per method."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .collect import Collection
from .pictures import Comparison
from .settings import name_of, text_of
from .summary import Summary
from .sweep import Problem
from .units import Unit

ROWS, COLUMNS, GRIDS = 8, 10, 24  # more can't be looked at; what is left out is said
MEASURED, TRUTH = "measurement", "truth"


@dataclass
class Grid:
    """The pictures of one problem.

    Args:
        name: of its file.
        title: the problem.
        columns: titles, from the measurement to the truth.
        rows: per image, column to (picture's path below the report's folder, what is said of it: the PSNR, or, where
            there was a classifier, the probability of the class).
        note: what is left out.
    """

    name: str
    title: str
    columns: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    note: str = ""


def grids(
    collection: Collection, summary: Summary, units: Sequence[Unit], pictures: Sequence[Comparison]
) -> list[Grid]:
    """One per problem with several methods or images to compare. Of several seeds the first is shown."""
    said = _said(collection)
    problem_keys = [key for key in summary.problem_keys if key != "task"]
    solver_keys = [key for key in summary.solver_keys if key not in ("method", "code", "protocol")]
    found: dict[str, Grid] = {}
    for comparison in pictures:
        number = units[comparison.unit].numbers[0]
        for role in ("baseline", "method"):
            settings = collection.settings[number].get(role)
            method = str(settings and settings.get("method.name"))
            if settings is None or method not in comparison.solved:
                continue
            words = [f"{name_of(key, summary.keys)} {text_of(settings[key], key)}"
                     for key in problem_keys if settings.get(key) is not None]  # fmt: skip
            title = ", ".join([str(settings.get("task.name")), *words])
            grid = found.setdefault(title, Grid(re.sub(r"[^\w.-]+", "-", title), title))
            words = [f"{name_of(key, summary.keys)} {text_of(settings[key], key)}"
                     for key in solver_keys if settings.get(key) is not None]  # fmt: skip
            column = ", ".join([method, *words])
            stages = comparison.path[:-1] if role == "method" else []  # where the path ends the solution is
            titles = [f"{column}, stage {number}" for number in range(1, len(stages) + 1)]
            grid.columns += [each for each in (*titles, column) if each not in grid.columns]
            row = grid.rows.setdefault(comparison.image, {})
            for each, path in zip(titles, stages, strict=True):
                row.setdefault(each, (path, ""))
            for name, path in ((MEASURED, comparison.measurement), (TRUTH, comparison.truth)):
                if path:
                    row.setdefault(name, (path, ""))
            row.setdefault(column, (comparison.solved[method], said.get((number, comparison.image, method), "")))
    shown = [grid for grid in found.values() if len(grid.columns) > 1 or len(grid.rows) > 1]
    trimmed = [_trimmed(grid) for grid in shown[:GRIDS]]
    if len(shown) > GRIDS:
        trimmed[-1].note += f" The other {len(shown) - GRIDS} problems are not drawn."
    return trimmed


def _said(collection: Collection) -> dict[tuple[int, str, str], str]:
    """What is written under a picture."""
    found: dict[tuple[int, str, str], str] = {}
    for metric, form in (("psnr", "{:.2f} dB"), ("probability", "p {:.2f}")):
        if metric in collection.metrics:
            rows = collection.rows.select("number", "image", "method", metric).drop_nulls()
            found |= {(number, image, method): form.format(value) for number, image, method, value in rows.iter_rows()}
    return found


def _trimmed(grid: Grid) -> Grid:
    left = []
    if len(grid.columns) > COLUMNS:
        left.append(f"the first {COLUMNS} of {len(grid.columns)} methods")
    if len(grid.rows) > ROWS:
        left.append(f"the first {ROWS} of {len(grid.rows)} images")
    names = set().union(*grid.rows.values())
    columns = [MEASURED] * (MEASURED in names) + grid.columns[:COLUMNS] + [TRUTH] * (TRUTH in names)
    rows = dict(list(grid.rows.items())[:ROWS])
    return Grid(grid.name, grid.title, columns, rows, f"Only {' and '.join(left)}." if left else "")


def drawn(grid: Grid, folder: Path, problems: list[Problem]) -> bytes:
    """The grid as a PNG; every pixel is a sharp square. The same grid gives the same bytes. A picture that can't be
    read leaves its place empty, and is added to ``problems``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    side = 1.5
    head = 0.08 + 0.12 * max(_wrapped(column).count("\n") + 1 for column in grid.columns)
    width, height = side * len(grid.columns), side * 1.14 * len(grid.rows) + head
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    for line, row in enumerate(grid.rows.values()):
        for place, column in enumerate(grid.columns):
            bottom = 1 - (head + side * 1.14 * (line + 1)) / height
            axes = figure.add_axes((place / len(grid.columns) + 0.002, bottom + side * 0.14 / height,
                                    1 / len(grid.columns) - 0.004, side * 0.985 / height))  # fmt: skip
            axes.set_axis_off()
            if line == 0:
                axes.set_title(_wrapped(column), fontsize=7, pad=3)
            if column in row:
                path, said = row[column]
                try:
                    with Image.open(folder / path) as picture:
                        axes.imshow(picture.convert("RGB"), interpolation="nearest")
                except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged PNG
                    problems.append(Problem(f"{grid.title}, {column}: a picture is damaged ({error})", lost=True))
                if said:
                    axes.text(0.5, -0.02, said, fontsize=7, ha="center", va="top", transform=axes.transAxes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _wrapped(title: str) -> str:
    import textwrap

    return textwrap.fill(title, 20)
