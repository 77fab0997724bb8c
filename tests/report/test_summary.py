"""Means over images, compared with what the plain files give by the definition."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks.synthetic_sweep import Sweep
from ilo_lightning import metrics
from ilo_lightning.report.collect import collect
from ilo_lightning.report.settings import name_of, settings, telling, text_of, varying
from ilo_lightning.report.summary import HIGHER_IS_BETTER, Summary, summarise


def by_definition(sweep: Path, metric: str) -> dict[tuple[Any, ...], tuple[float, float]]:
    """(fraction, sigma, method, radius) to mean and half-width: first over seeds for each image, then over images."""
    values: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for results in sweep.rglob("results.jsonl"):
        config = OmegaConf.load(results.parent / "config.yaml")
        for row in map(json.loads, results.read_text().splitlines()):
            for outcome, section in ((row, config.method), (row["baseline"], config.baseline)):
                key = (config.task.fraction, config.task.noise.sigma, section.name, section.radius)
                values[key][row["digest"]].append(outcome["metrics"][metric])
    return {
        key: metrics.mean_and_interval([sum(seeds) / len(seeds) for seeds in images.values()])
        for key, images in values.items()
    }


def summary_of(*sweeps: Path) -> Summary:
    return summarise(collect(sweeps))


@pytest.mark.parametrize("metric", ["psnr", "mse", "ssim"])
def test_means_and_intervals(metric: str, tmp_path: Path):
    Sweep(fractions=(0.05, 0.1), sigmas=(0.0, 0.1), radii=(0.05, 0.2), seeds=(0, 1, 2), images=5).write(tmp_path)
    summary = summary_of(tmp_path)
    assert summary.problem_keys == ("task", "task.fraction", "task.noise.sigma")
    assert summary.solver_keys == ("method", "method.radius")
    expected = by_definition(tmp_path, metric)
    assert len(summary.groups) == len(expected) == 2 * 2 * 3
    for group in summary.groups:
        mean, half = expected[(*group.problem[1:], *group.solver)]
        assert group.means[metric].value == pytest.approx(mean, rel=1e-12)
        assert group.means[metric].half == pytest.approx(half, rel=1e-9)
        assert (group.images, group.failed) == (5, 0)


def test_repeating_a_result_does_not_narrow_its_interval(tmp_path: Path):
    """CSGM is run beside ILO at every radius, with the same result."""
    Sweep(radii=(0.1,), images=5).write(tmp_path / "one")
    Sweep(radii=(0.05, 0.1, 0.2, 0.5), images=5).write(tmp_path / "many")
    one, many = summary_of(tmp_path / "one"), summary_of(tmp_path / "many")
    means = [{g.problem: g.means for g in s.groups if g.solver[0] == "csgm"} for s in (one, many)]
    assert means[0] == means[1] and len(means[0]) == 2


def test_one_image_has_no_interval(tmp_path: Path):
    Sweep(images=1, seeds=(0, 1)).write(tmp_path)
    assert {group.means["psnr"].half for group in summary_of(tmp_path).groups} == {None}


def test_seconds_are_per_image(tmp_path: Path):
    Sweep(images=4, batch_size=4, baseline=False, fractions=(0.1,), radii=(0.1,)).write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "0" / "results.jsonl").read_text().splitlines()]
    (group,) = summary_of(tmp_path).groups
    assert group.means["seconds"].value == pytest.approx(sum(row["seconds"] / 4 for row in rows) / 4)


@pytest.mark.parametrize("metric", ["psnr", "mse", "ssim"])
def test_the_best_of_each_problem(metric: str, tmp_path: Path):
    Sweep(fractions=(0.05, 0.1), radii=(0.02, 0.1, 0.5)).write(tmp_path)
    summary = summary_of(tmp_path)
    best = summary.best(metric)
    assert [(g.problem[1], g.solver) for g in best] == [(0.05, ("ilo", 0.1)), (0.1, ("ilo", 0.1))]
    for winner in best:
        for group in summary.groups:
            if group.problem == winner.problem and group is not winner:
                difference = winner.means[metric].value - group.means[metric].value
                assert difference > 0 if metric in HIGHER_IS_BETTER else difference < 0


def test_a_method_without_rival_is_not_the_best(tmp_path: Path):
    Sweep(radii=(0.1,), baseline=False).write(tmp_path)
    assert summary_of(tmp_path).best("psnr") == []


def test_a_group_with_fewer_images_does_not_compete(tmp_path: Path):
    Sweep(fractions=(0.1,), radii=(0.02, 0.1)).write(tmp_path)
    results = tmp_path / "1" / "results.jsonl"
    shutil.rmtree(tmp_path / "1" / "batches")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows[0] = {"index": 0, "image": "0000", "digest": rows[0]["digest"], "error": "out of memory"}
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summary_of(tmp_path)
    states = {group.solver: (group.images, group.failed, group.same_images) for group in summary.groups}
    assert states[("ilo", 0.1)] == (2, 1, False)
    assert states[("ilo", 0.02)] == (3, 0, True)
    assert states[("csgm", None)] == (3, 0, True)  # its other run has all images
    assert [group.solver for group in summary.best("psnr")] == [("ilo", 0.02)]


def test_a_group_with_other_seeds_does_not_compete(tmp_path: Path):
    """The noise of y is the seed's, too."""
    Sweep(fractions=(0.1,), radii=(0.1,), seeds=(0, 1), baseline=False).write(tmp_path / "a")
    Sweep(fractions=(0.1,), radii=(0.3,), seeds=(0,), baseline=False).write(tmp_path / "b")
    for seed in (0, 1, 2):
        Sweep(fractions=(0.2,), radii=(0.1, 0.3)[seed % 2 :][:1], seeds=(seed,), baseline=False).write(
            tmp_path / f"c{seed}"
        )
    groups = {(g.problem[1], g.solver[1]): (g.seeds, g.same_images) for g in summary_of(tmp_path).groups}
    assert groups == {(0.1, 0.1): (2, True), (0.1, 0.3): (1, False), (0.2, 0.1): (2, True), (0.2, 0.3): (1, False)}
    assert summary_of(tmp_path).best("psnr") == []


def test_what_is_written_alike_is_equally_good(tmp_path: Path):
    Sweep(fractions=(0.1,), radii=(0.1, 0.3), baseline=False).write(tmp_path)
    summary = summary_of(tmp_path)
    (first, second) = (group.means["psnr"].value for group in summary.groups)
    assert [len(summary.best("psnr", digits)) for digits in (-3, 12)] == [2, 1] and first != second


def test_numbers_are_in_the_order_of_their_size(tmp_path: Path):
    Sweep(fractions=(0.1, 0.02, 0.005), radii=(0.5, 0.05, 0.1), baseline=False).write(tmp_path)
    summary = summary_of(tmp_path)
    order = [(group.problem[1], group.solver[1]) for group in summary.groups]
    assert order == sorted(order)


def test_an_integer_is_the_same_setting_as_its_float(tmp_path: Path):
    Sweep(sigmas=(0.0,), fractions=(0.1,), radii=(1.0,), baseline=False).write(tmp_path / "a")
    Sweep(sigmas=(0,), fractions=(0.1,), radii=(1,), seeds=(1,), baseline=False).write(tmp_path / "b")
    assert len(summary_of(tmp_path / "a", tmp_path / "b").groups) == 1


def test_what_is_computed_tells_points_apart_and_where_does_not(tmp_path: Path):
    Sweep(fractions=(0.1,), radii=(0.1,), baseline=False).write(tmp_path / "a")
    moved = {"logger": {"factory": "wandb", "every": 5}, "checkpoint_every_seconds": 5}
    moved |= {"trainer": {"accelerator": "gpu", "precision": "32-true"}}
    Sweep(fractions=(0.1,), radii=(0.1,), seeds=(1,), baseline=False, more=moved).write(tmp_path / "b")
    assert len(summary_of(tmp_path).groups) == 1
    exact = {"trainer": {"accelerator": "cpu", "precision": "64-true"}}
    Sweep(fractions=(0.1,), radii=(0.1,), seeds=(1,), baseline=False, more=exact).write(tmp_path / "c")
    summary = summary_of(tmp_path)
    assert summary.solver_keys == ("method", "trainer.precision") and len(summary.groups) == 2


def test_settings_of_a_baseline_have_the_method_s_names():
    config = {"seed": 1, "method": {"name": "ilo", "lr": [0.1]}, "baseline": {"name": "csgm", "radii": {"rgb": None}}}
    assert settings(config) == {"seed": 1, "method.name": "ilo", "method.lr": "[0.1]"}
    assert settings(config, "baseline") == {"seed": 1, "method.name": "csgm", "method.radii.rgb": None}


def test_who_judges_makes_no_other_solver():
    """Nor does a perceptual network that a method gives no weight; one that it minimises does."""
    task = {"name": "denoising"}

    def point(weight: object, network: str, judge: object) -> dict:
        method = {"name": "csgm", "data_fit": {"mse": 1, "perceptual": weight}}
        return settings(
            {"task": task, "method": method, "perceptual": {"name": network}, "metrics": {"perceptual": judge}}
        )

    networks, judges = ("none", "stlpips_alex"), ("auto", "none", ["stlpips_vgg"])
    unused = [point(0, network, judge) for network in networks for judge in judges]
    assert telling(unused) == [] == telling([point([0, 0], network, "auto") for network in networks])
    for weight in (1, [0, 0.5]):
        assert telling([point(weight, network, "auto") for network in networks]) == ["perceptual.name"]


def test_varying_and_telling():
    base = {"task.name": "t", "method.name": "m", "method.lr": 0.1}
    entries = [
        base | {"method.radius": radius, "method.radii.rgb": radius, "task.fraction": fraction, "method.steps": steps}
        for radius in (0.1, 0.2)
        for fraction, steps in ((0.1, "[10]"), (0.5, "[50]"))
    ]
    assert varying(entries) == ["task.fraction", "method.radius", "method.steps"]
    assert telling(entries) == ["task.fraction", "method.radius"]  # the steps follow from the fraction
    assert varying([entries[0]]) == telling([entries[0]]) == []
    flags = [base | {"method.fast": flag} for flag in (True, 1, 0)]
    assert varying(flags) == ["method.fast"]


def test_names_and_values_are_those_of_the_field():
    assert name_of("task.noise.sigma") == "noise σ"
    assert name_of("method.lr_scale.rgb", ["method.radii.rgb", "method.lr_scale.rgb"]) == "lr scale.rgb"
    assert name_of("method.colour") == "colour"
    assert text_of("[50, 50, 50]") == "3×50" and text_of("[50]") == "50" and text_of("[1, 2]") == "1, 2"
    assert text_of("[broken") == "[broken" and text_of("[]") == "[]"
    assert text_of(None) == "–" and text_of(0.05) == "0.05" and text_of(True) == "true"
    assert text_of("a.b.GaussianNoise", "task.noise._target_") == "GaussianNoise"
    assert math.isclose(float(text_of(1e-7)), 1e-7)
