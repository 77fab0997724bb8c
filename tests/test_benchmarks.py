"""The benchmarks run, and write what their readers expect."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import common
from benchmarks.usual_stylegan2 import UsualStyleGAN2
from tests.networks import small_stylegan2


def run(script: str, *arguments: str, repository: Path, json_path: Path) -> dict:
    command = [sys.executable, str(repository / "benchmarks" / script), *arguments, "--json", str(json_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    record = json.loads(json_path.read_text())
    assert set(record) >= {"benchmark", "machine", "versions", "commit", "rows"}
    missed = [verdict for verdict in record["limits"] if not verdict["kept"]]  # times of a busy machine prove nothing
    assert done.returncode == bool(missed) and done.stdout.count("MISSED") == len(missed), done.stderr
    assert all(set(row) == {"case", "metric", "value", "unit"} for row in record["rows"])
    return record


def write_images(path: Path, count: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    np.savez(path, images=images)
    return path


ROWS = [common.row("a/1", "seconds", 2.0, "s"), common.row("b/1", "seconds", 3.0, "s"), common.row("b/1", "x", 9, "1")]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ([], []),
        ([common.Limit("seconds", 3.0)], [True, True]),
        ([common.Limit("seconds", 2.5)], [True, False]),
        ([common.Limit("seconds", 2.5, case="a/1")], [True]),
        ([common.Limit("seconds", 1.0, case="a/1"), common.Limit("x", 9)], [False, True]),
        ([common.Limit("seconds", least=2.5), common.Limit("x", 10, least=9)], [False, True, True]),
    ],
)
def test_a_limit_that_is_missed_is_said_and_is_the_exit_code(
    limits: list[common.Limit], kept: list[bool], tmp_path: Path, capsys: pytest.CaptureFixture
):
    with nullcontext() if all(kept) else pytest.raises(SystemExit) as exit:
        common.publish("some", ROWS, tmp_path / "x.json", limits)
    assert exit is None or exit.value.code == 1
    record = json.loads((tmp_path / "x.json").read_text())
    assert [verdict["kept"] for verdict in record["limits"]] == kept and record["rows"] == ROWS
    printed = capsys.readouterr().out
    assert (printed.count("kept"), printed.count("MISSED")) == (kept.count(True), kept.count(False))


@pytest.mark.slow
def test_quality(repository: Path, tmp_path: Path):
    images = write_images(tmp_path / "noise.npz", 2)
    small = ["--evaluations=40", "--override", "data.batch_size=1"]
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
    done = subprocess.run([*command, "--override", "baseline.evaluations=100"], capture_output=True, text=True)
    assert done.returncode != 0 and "unequal numbers of evaluations" in done.stderr


@pytest.mark.slow
def test_regimes(repository: Path, tmp_path: Path):
    images, cell = write_images(tmp_path / "noise.npz", 2), "denoising/0.3"
    arguments = [f"--screen={images}", f"--images={images}", f"--cache={tmp_path / 'cache'}", "--evaluations=40"]
    record = run("regimes.py", *arguments, f"--cells={cell}", repository=repository, json_path=tmp_path / "r.json")
    values = {(row["case"], row["metric"]): row["value"] for row in record["rows"]}
    screened = [metric for case, metric in values if case == "screen"]
    assert len(screened) == 10
    best = max(values[cell, metric] for metric in screened[:3])
    assert values[cell, "auto_minus_best_baseline_db"] == pytest.approx(values[cell, "psnr_ilo"] - best)
    oracle = values[cell, f"psnr_ilo_fixed@{values[cell, 'oracle_radius']}"]
    assert values[cell, "auto_minus_oracle_radius_db"] == pytest.approx(values[cell, "psnr_ilo"] - oracle)
    assert values["all", "auto_minus_best_baseline_db"] == values[cell, "auto_minus_best_baseline_db"]
    again = run("regimes.py", *arguments, "--only=table", repository=repository, json_path=tmp_path / "t.json")
    assert again["rows"] == record["rows"], "from the cache alone"


@pytest.mark.slow
def test_budget(repository: Path, tmp_path: Path):
    images, task = write_images(tmp_path / "noise.npz", 2), "denoising_0.2"
    arguments = [f"--tune={images}", f"--images={images}", f"--cache={tmp_path / 'cache'}", "--tune-limit=1"]
    arguments += [f"--tasks={task}", "--seeds=0", "--candidates=csgm_400", f"--plot={tmp_path / 'b.png'}"]
    small = ["--override", "method.evaluations=40"]
    record = run("budget.py", *arguments, *small, repository=repository, json_path=tmp_path / "b.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert {row["case"] for row in record["rows"]} == {task}
    assert values["mse_ratio"] == pytest.approx(values["mse_default"] / values["mse_published"])
    for work in ("evaluations", "seconds"):
        fraction = values[f"{work}_default"] / values[f"{work}_published"]
        reached = values["mse_ratio"] <= 1
        assert values[f"{work}_fraction"] == (pytest.approx(fraction) if reached else None)
    assert values["evaluations_csgm_400"] == pytest.approx(40 + 2 / 3)
    assert (tmp_path / "b.png").stat().st_size > 0


@pytest.mark.slow
def test_overhead(repository: Path, tmp_path: Path):
    record = run("overhead.py", "--batch=1", "--pairs=1", repository=repository, json_path=tmp_path / "o.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    expected = values["seconds_per_step_engine"] / values["seconds_per_step_bare"] - 1
    assert values["overhead_fraction"] == pytest.approx(expected)


@pytest.mark.slow
def test_checkpoint_cost(repository: Path, tmp_path: Path):
    small = ["--batch=2", "--runs=1", "--override", "method.steps=[4,4,4,4]"]
    record = run("checkpoint_cost.py", *small, repository=repository, json_path=tmp_path / "c.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert values["checkpoint_overhead_fraction"] == pytest.approx(values["seconds_per_checkpoint"] / 30)
    assert values["checkpoint_overhead_fraction"] <= values["checkpoint_overhead_fraction_max"]
    assert values["checkpoint_bytes_per_image"] > 4 * 512 and values["seconds_per_image_step"] > 0
    (limit,) = record["limits"]
    assert limit["kept"] == (values["checkpoint_overhead_fraction"] <= 0.02)


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
    assert record["limits"] == [], "not the default interval"


@pytest.mark.slow
def test_sweep_simulation(repository: Path, tmp_path: Path):
    """Much goes wrong, and nothing is lost or done twice; the files are those of docs/cluster.md."""
    size = ["--points=60", "--images=40", "--batch-size=10", "--nodes=1", "--harshness=30", f"--folder={tmp_path}"]
    record = run("sweep_simulation.py", *size, repository=repository, json_path=tmp_path / "s.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert values["batches_lost"] == values["batches_done_twice"] == 0
    assert values["preempted"] > 0 and values["killed"] > 0 and values["attempts"] > 60
    assert 0 <= values["files_per_point"] - (4 + 2 * 4) < 0.1


@pytest.mark.slow
def test_generator(repository: Path, tmp_path: Path):
    images = write_images(tmp_path / "noise.npz", 400)
    arguments = [f"--images={images}", "--samples=300"]
    record = run("generator.py", *arguments, repository=repository, json_path=tmp_path / "g.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert values["frechet_thumbnails"] > values["frechet_thumbnails_floor"] > 0


@pytest.mark.slow
def test_l1_projection(cpu_kernels, repository: Path, tmp_path: Path):
    arguments = ["--coordinates", "1000", "100000", "--repeats=1"]
    record = run("l1_projection.py", *arguments, repository=repository, json_path=tmp_path / "l1.json")
    values = {(row["case"], row["metric"]): row["value"] for row in record["rows"]}
    assert {case for case, _ in values} == {"1000", "100000"}
    for case in ("1000", "100000"):
        expected = values[case, "l1_seconds_sort"] / values[case, "l1_seconds"]
        assert values[case, "l1_speedup_vs_sort"] == pytest.approx(expected)
        assert values[case, "l1_kernel"] == 1


@pytest.mark.slow
def test_collect(repository: Path, tmp_path: Path):
    arguments = ["--rows", "20", "40", "--images=5", "--runs=1"]
    record = run("collect.py", *arguments, repository=repository, json_path=tmp_path / "c.json")
    values = {(row["case"], row["metric"]): row["value"] for row in record["rows"]}
    assert {case for case, _ in values} == {"20", "40"}
    assert all(values[case, name] > 0 for case in ("20", "40") for name in ("seconds", "peak_memory_bytes"))


@pytest.mark.slow
def test_step_time(repository: Path, tmp_path: Path):
    small = ["--networks=faces64", "--batches", "1", "2", "--rounds=1", "--no-l1"]
    record = run("step_time.py", *small, repository=repository, json_path=tmp_path / "s.json")
    values = {(row["case"], row["metric"]): row["value"] for row in record["rows"]}
    first, layers = "faces64/batch1/layer0", [f"faces64/batch1/layer{layer}" for layer in range(5)]
    for metric in ("seconds_per_step", "fraction_of_gemm", "peak_memory_bytes"):
        assert all(values[layer, metric] > 0 for layer in layers)
    expected = values[first, "seconds_per_step_reference"] / values[first, "seconds_per_step"]
    assert values[first, "speedup_vs_reference"] == pytest.approx(expected)
    assert values[first, "image_error"] < 1e-4
    for metric in ("seconds_per_step", "peak_memory_bytes"):
        assert values["faces64/batch2/layer0", f"{metric}_decode_1"] > 0 and (first, f"{metric}_decode_1") not in values


@pytest.mark.slow
def test_startup(repository: Path, tmp_path: Path):
    record = run("startup.py", "--starts=1", repository=repository, json_path=tmp_path / "s.json")
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert values["seconds_to_help"] > 0
    parts = [value for metric, value in values.items() if metric.startswith("seconds_to_first_step_")]
    assert len(parts) == 5 and min(parts) >= 0
    assert sum(parts) == pytest.approx(values["seconds_to_first_step"])


def test_the_usual_implementation_agrees():
    """The yardstick of step_time.py: the same image and the same gradients, to float64 precision."""
    generator = small_stylegan2(32)
    usual = UsualStyleGAN2(generator)
    point = generator.sample([torch.Generator().manual_seed(seed) for seed in (0, 1)], "w_plus")
    point = point.map(lambda tensor: tensor.requires_grad_())
    results = []
    for network in (generator, usual):
        image = network(point)
        results.append([image, *torch.autograd.grad(image.pow(3).sum(), list(point.tensors.values()))])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
