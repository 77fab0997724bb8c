"""The benchmarks run, and write what their readers expect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def run(script: str, *arguments: str, repository: Path, json_path: Path) -> dict:
    command = [sys.executable, str(repository / "benchmarks" / script), *arguments, "--json", str(json_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(json_path.read_text())
    assert set(record) >= {"benchmark", "machine", "versions", "commit", "rows"}
    assert all(set(row) == {"case", "metric", "value", "unit"} for row in record["rows"])
    return record


def write_images(path: Path, count: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    np.savez(path, images=images)
    return path


@pytest.mark.slow
def test_quality(repository: Path, tmp_path: Path):
    images = write_images(tmp_path / "noise.npz", 2)
    small = ["--override", "method.steps=[1,1,1,1]", "baseline.steps=[4]", "data.batch_size=1"]
    record = run("quality.py", f"--images={images}", *small, repository=repository, json_path=tmp_path / "q.json")
    tasks = ("inpainting_box", "random_pixels_10", "super_resolution_x4", "denoising_0.2", "circulant_10")
    assert {row["case"] for row in record["rows"]} == {f"noise/{task}" for task in tasks}
    values = {(row["case"], row["metric"]): row["value"] for row in record["rows"]}
    for task in tasks:
        ilo, csgm, difference = (
            values[f"noise/{task}", name] for name in ("psnr_ilo", "psnr_csgm", "ilo_minus_csgm_db")
        )
        assert difference == pytest.approx(ilo - csgm)


@pytest.mark.slow
def test_quality_refuses_unequal_budgets(repository: Path, tmp_path: Path):
    images = write_images(tmp_path / "noise.npz", 1)
    command = [sys.executable, str(repository / "benchmarks" / "quality.py"), f"--images={images}"]
    done = subprocess.run([*command, "--override", "method.steps=1"], capture_output=True, text=True)
    assert done.returncode != 0 and "unequal numbers of evaluations" in done.stderr


@pytest.mark.slow
def test_overhead(repository: Path, tmp_path: Path):
    record = run("overhead.py", "--batch=1", "--pairs=1", repository=repository, json_path=tmp_path / "o.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    expected = values["seconds_per_step_engine"] / values["seconds_per_step_bare"] - 1
    assert values["overhead_fraction"] == pytest.approx(expected)


@pytest.mark.slow
def test_generator(repository: Path, tmp_path: Path):
    images = write_images(tmp_path / "noise.npz", 400)
    arguments = [f"--images={images}", "--samples=300"]
    record = run("generator.py", *arguments, repository=repository, json_path=tmp_path / "g.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert values["frechet_thumbnails"] > values["frechet_thumbnails_floor"] > 0


@pytest.mark.slow
def test_logging_cost(repository: Path, tmp_path: Path):
    arguments = ["--batch=1", "--runs=1", "--override", "method.steps=[3,3,3,3]", "logger.every=1"]
    record = run("logging_cost.py", *arguments, repository=repository, json_path=tmp_path / "l.json")
    values = {(row["case"], row["metric"]): row["value"] for row in record["rows"]}
    for logger in ("wandb", "tensorboard", "csv"):
        case = f"{logger}/faces64/batch1"
        assert 0 < values[case, "waiting_fraction"] <= values[case, "logging_overhead_fraction"]
        assert values[case, "seconds_of_steps"] > 0
    assert values["wandb/faces64/batch1", "seconds_per_run"] > values["csv/faces64/batch1", "seconds_per_run"]
