"""Pictures side by side: which columns a comparison has, and what is written under them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.synthetic_sweep import Sweep
from ilo_lightning.report.collect import collect
from ilo_lightning.report.grids import Grid, grids
from ilo_lightning.report.pictures import gather
from ilo_lightning.report.summary import summarise
from ilo_lightning.report.units import units


def grid_of(sweep: Path, folder: Path) -> Grid:
    collection = collect([sweep])
    together = units(collection.points)
    (grid,) = grids(collection, summarise(collection), together, gather(collection, together, None, folder))
    return grid


def test_a_path_ends_in_its_solution_and_not_twice(tmp_path: Path):
    """The last stage's picture is the solution's: whatever was rounded differently, it has no column of its own."""
    Sweep(fractions=(0.1,), radii=(0.1,), pictures=True).write(tmp_path / "s")
    for image in (tmp_path / "s").glob("*/images/*"):
        for stage, picture in enumerate(("measurement", "truth", "reconstruction")):
            shutil.copy(image / f"{picture}.png", image / f"stage-{stage}.png")
    grid = grid_of(tmp_path / "s", tmp_path / "r")
    assert grid.columns == ["measurement", "csgm", "ilo, stage 1", "ilo, stage 2", "ilo", "truth"]
    for row in grid.rows.values():
        assert row["ilo, stage 1"][0] == row["measurement"][0] and row["ilo, stage 2"][0] == row["truth"][0]


def test_under_a_picture_is_its_psnr_or_the_probability_of_the_class(tmp_path: Path):
    (point,) = Sweep(fractions=(0.1,), radii=(0.1,), pictures=True).write(tmp_path / "s")
    rows = [json.loads(line) for line in (point / "results.jsonl").read_text().splitlines()]
    said = {name: row["ilo"][1] for name, row in grid_of(tmp_path / "s", tmp_path / "r").rows.items()}
    assert said == {row["image"]: f"{row['metrics']['psnr']:.2f} dB" for row in rows}
    for row in rows:
        row["metrics"]["probability"] = 0.25
    for path in (point / "results.jsonl", *point.glob("batches/*.jsonl")):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = grid_of(tmp_path / "s", tmp_path / "r")
    assert {row["ilo"][1] for row in grid.rows.values()} == {"p 0.25"}
    assert {row["measurement"][1] for row in grid.rows.values()} == {""}
