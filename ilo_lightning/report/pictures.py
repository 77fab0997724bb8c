"""The pictures that a page shows, each once, under names that say their content."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import read_stored
from .collect import Collection
from .units import Unit

FOLDER = "pictures"


@dataclass(frozen=True)
class Comparison:
    """The pictures of one image of a unit, as paths below the report's folder; None for what isn't there.

    Args:
        image: its name in the results.
        solved: by method.
        path: of the method, its pictures after each stage, where those are a path.
    """

    unit: int
    image: str
    measurement: str | None
    truth: str | None
    solved: dict[str, str]
    path: list[str] = field(default_factory=list)


def gather(collection: Collection, units: Sequence[Unit], limit: int | None, folder: Path) -> list[Comparison]:
    """Copy the pictures of the first ``limit`` images of each unit into ``folder``.

    The truth is the same file for all units, and a measurement or a reconstruction that is pixel by pixel that of
    another unit's is its file: that is how the page knows what can be compared.

    Raises:
        OSError: if the folder can't be written.
    """
    import polars as pl

    unit_of = {number: index for index, unit in enumerate(units) for number in unit.numbers}
    rows = collection.rows.filter(pl.col("folder").is_not_null() & pl.col("image").is_not_null())
    rows = rows.with_columns(pl.col("number").replace_strict(unit_of, return_dtype=pl.Int64).alias("unit"))
    images = rows.group_by("unit", "image", maintain_order=True).agg(
        pl.col("number", "folder", "batch", "index").first(), pl.col("method", "role")
    )
    images = images.sort("unit", "index", "image", maintain_order=True)
    if limit is not None:
        images = images.filter(pl.int_range(pl.len()).over("unit") < limit)
    store = _Store(folder)
    found = []
    for row in images.iter_rows(named=True):
        run = collection.points[row["number"]].folder
        solved = {}
        for method, role in zip(row["method"], row["role"], strict=True):
            suffix = "" if role == "method" else f"-{method}"
            if path := store.add(run, row, f"reconstruction{suffix}.png"):
                solved[method] = path
        measurement, truth = (store.add(run, row, f"{name}.png") for name in ("measurement", "truth"))
        if measurement or truth or solved:
            stages = (store.add(run, row, f"stage-{number}.png") for number in itertools.count())
            path = [name for name in itertools.takewhile(bool, stages) if name]
            found.append(Comparison(row["unit"], row["image"], measurement, truth, solved, path))
    return found


class _Store:
    """Files under the hash of their content."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, run: Path, row: Mapping[str, Any], picture: str) -> str | None:
        try:
            content = read_stored(run, row, picture)
        except OSError:  # deleted, or never made
            return None
        name = f"{hashlib.sha256(content).hexdigest()[:20]}.png"
        target = self.folder / FOLDER / name
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return f"{FOLDER}/{name}"
