"""What benchmarks conclude: Holm's procedure and its bounds, results computed once, work that is counted."""

from __future__ import annotations

import importlib
import json
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.cache import computed_once, stored
from benchmarks.noninferiority import (
    cell_p_value,
    cell_upper_bound,
    holm_adjusted,
    p_value,
    simultaneous_upper_bounds,
    upper_bound,
)
from ilo_lightning.pipeline import parts_of


def closed_test(p: list[float]) -> list[float]:
    """Holm's procedure by its definition as a closed test: the largest Bonferroni p-value of all subsets with i."""
    subsets = [s for size in range(1, len(p) + 1) for s in combinations(range(len(p)), size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_closed_test_of_bonferroni(seed: int):
    rng = np.random.default_rng(seed)
    p = (rng.random(rng.integers(1, 8)) ** 3).tolist()
    assert holm_adjusted(p) == pytest.approx(closed_test(p))


def test_holm_by_hand():
    """At 5 %: 0.01 ≤ 0.05/4 and 0.013 ≤ 0.05/3 are rejected; 0.03 > 0.05/2 stops it, so that 0.04 is retained too."""
    assert holm_adjusted([0.04, 0.01, 0.03, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm_adjusted([0.2, 0.2]) == pytest.approx([0.4, 0.4])


def cells_of(means: list[list[float]], images: int = 12, seed: int = 0) -> list[list[list[float]]]:
    """Differences of the same images to one or several others per cell, which have much in common."""
    rng = np.random.default_rng(seed)
    noise = [0.3 * rng.standard_normal(images) for _ in means]
    return [
        [(mean + shared + 0.1 * n * rng.standard_normal(images)).tolist() for n, mean in enumerate(cell)]
        for cell, shared in zip(means, noise, strict=True)
    ]


def test_one_cell_is_students_test():
    ((cell,),) = cells_of([[0.1]])
    result = stats.ttest_1samp(cell, 0.2, alternative="less")
    assert p_value(cell, 0.2) == pytest.approx(result[1])
    high = result.confidence_interval(0.95).high
    assert upper_bound(cell, 0.05) == pytest.approx(high)
    assert simultaneous_upper_bounds([[cell]], 5.0) == pytest.approx([high]), "rejected: no more than the bound itself"


def test_a_cell_is_as_good_as_the_worst_of_its_comparisons():
    """Also where that is not the one with the largest mean."""
    steady, wild = [0.10, 0.11, 0.09, 0.10, 0.10, 0.10], [-0.9, 1.0, -0.8, 0.9, 0.1, 0.0]
    assert np.mean(wild) < np.mean(steady)
    for cell in ([steady, wild], [wild, steady]):
        assert cell_p_value(cell, 0.2) == p_value(wild, 0.2) > p_value(steady, 0.2)
        assert cell_upper_bound(cell, 0.05) == upper_bound(wild, 0.05) > 0.2 > upper_bound(steady, 0.05)
        assert simultaneous_upper_bounds([cell], 0.2) == [upper_bound(wild, 0.05)]


@pytest.mark.parametrize("seed", range(20))
def test_a_bound_is_below_the_margin_just_where_holm_rejects(seed: int):
    cells = cells_of([[-0.3], [-0.1, -0.2], [0.0, 0.1, -0.1], [0.1], [0.3, 0.0]], seed=seed)
    bounds = simultaneous_upper_bounds(cells, 0.2)
    adjusted = holm_adjusted([cell_p_value(cell, 0.2) for cell in cells])
    assert [bound <= 0.2 for bound in bounds] == [p <= 0.05 for p in adjusted]
    retained = sum(p > 0.05 for p in adjusted)
    for cell, bound, p in zip(cells, bounds, adjusted, strict=True):
        assert bound == (0.2 if p <= 0.05 else cell_upper_bound(cell, 0.05 / retained))


def test_where_all_are_rejected_bounds_are_bonferronis_or_the_margin():
    cells = [*cells_of([[-2.0], [-1.5, -1.6]]), [[0.15, 0.16, 0.14, 0.17, 0.13, 0.15]]]
    first, second, third = simultaneous_upper_bounds(cells, 0.2)
    assert (first, second) == (cell_upper_bound(cells[0], 0.05 / 3), cell_upper_bound(cells[1], 0.05 / 3))
    assert third <= 0.2


def test_all_bounds_hold_together_as_often_as_they_say():
    """Also where every mean is at the margin, the hardest case, and whatever else a cell is compared with."""
    for truth in ([[0.2]] * 4, [[0.1], [0.2, 0.2, 0.2], [0.3, 0.1], [-1.0]]):
        wrong = 0
        for seed in range(400):
            bounds = simultaneous_upper_bounds(cells_of(truth, 6, seed), 0.2)
            wrong += any(max(means) > bound for means, bound in zip(truth, bounds, strict=True))
        assert wrong / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_equal_differences_have_no_doubt():
    assert (p_value([0.1, 0.1], 0.2), p_value([0.2, 0.2], 0.2)) == (0, 1)
    assert simultaneous_upper_bounds([[[0.125, 0.125]]], 0.2) == [0.125]


@pytest.mark.parametrize("damage", [None, "other parts", "half a file", "another file"])
def test_a_result_is_computed_once_unless_it_is_of_something_else(damage: str | None, tmp_path: Path):
    path, calls = tmp_path / "a" / "b.json", []

    def compute() -> dict:
        calls.append(1)
        return {"psnr": (1.5, 2.5)}

    parts = {"images": ["x"], "version": "1"}
    assert stored(path, parts) is None
    assert computed_once(path, parts, compute) == {"psnr": [1.5, 2.5]}
    if damage == "other parts":
        parts = parts | {"version": "2"}
    elif damage == "half a file":
        path.write_text(path.read_text()[:40])
    elif damage == "another file":
        path.write_text("[]")
    assert computed_once(path, parts, compute) == stored(path, parts) == {"psnr": [1.5, 2.5]}
    assert len(calls) == (1 if damage is None else 2)


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """A benchmark as a module, which finds its siblings as when it is run."""
    monkeypatch.syspath_prepend(repository / "benchmarks")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images)
    return tmp_path / "noise.npz"


@pytest.mark.slow
def test_regimes_resumed_are_regimes_uninterrupted(script, pictures: Path, tmp_path: Path):
    regimes = script("regimes")
    cells, methods = ["denoising/0.3", "super_resolution/32"], ["csgm_mse", "three_phase"]

    def study(folder: str, evaluations: int = 3):
        return regimes.Study(pictures, 2, tmp_path / folder, ["trainer=cpu", f"method.evaluations={evaluations}"])

    def results(folder: str) -> dict[str, dict]:
        records = {str(p.relative_to(tmp_path / folder)): json.loads(p.read_text())
                   for p in (tmp_path / folder).rglob("*.json")}  # fmt: skip
        return {name: record["result"] for name, record in records.items()}

    study("whole").run(cells, methods)
    study("parts").run(cells[1:], methods[:1])
    assert study("parts").stored(cells, methods).keys() == {"super_resolution/32"}
    study("parts").run(cells, methods)
    assert results("parts") == results("whole") and len(results("whole")) == 4
    assert study("parts").stored(cells, methods) == study("whole").stored(cells, methods)
    assert study("parts", evaluations=4).stored(cells, methods) == {}, "found with another budget"
    study("parts", evaluations=4).run(cells[:1], methods[:1])
    assert study("parts").stored(cells, methods)[cells[0]].keys() == {"three_phase"}, "done anew"


def test_regimes_table(script):
    regimes = script("regimes")
    radii = {name: [20.0 + i, 21.0 + i] for i, name in enumerate(regimes.WITH_RADIUS)}
    found = {
        "inpainting/0.5": {"ilo": [26.0, 27.5], "a": [25.5, 26.5], "b": [30.0, 10.0], **radii},
        "denoising/0.3": {"ilo": [20.0, 21.0], "a": [20.5, 21.0], "b": [21.0, 22.0]},
        "denoising/0.6": {"a": [20.0, 20.0]},
    }
    values = {(entry["case"], entry["metric"]): entry["value"] for entry in regimes.table([found], ["a", "b"])}
    assert values["inpainting/0.5", "psnr_ilo"] == 26.75 and values["denoising/0.6", "psnr_a"] == 20
    assert values["inpainting/0.5", "auto_minus_best_baseline_db"] == 0.75, "b has the lower mean"
    assert values["denoising/0.3", "auto_minus_best_baseline_db"] == -1
    assert values["all", "auto_minus_best_baseline_db"] == -0.125
    assert values["inpainting/0.5", "oracle_radius"] == 1.0
    assert values["inpainting/0.5", "auto_minus_oracle_radius_db"] == 26.75 - 25.5
    assert ("denoising/0.3", "oracle_radius") not in values
    assert values["denoising/0.3", "auto_deficit_upper_bound_db"] > 0.2
    assert values["denoising/0.3", "auto_deficit_p_holm"] == 1


def test_regimes_table_pools_the_sets_in_which_all_methods_were_run(script):
    regimes = script("regimes")
    radii = {name: [20.0 + i] for i, name in enumerate(regimes.WITH_RADIUS)}
    first = {"inpainting/0.5": {"ilo": [26.0, 27.5], "a": [25.5, 26.5]}}
    second = {"inpainting/0.5": {"ilo": [30.0], "a": [33.0], **radii}, "inpainting/0.2": {"ilo": [9.0]}}
    third = {"inpainting/0.5": {"a": [1.0]}}
    rows = regimes.table([first, second, third], ["a"])
    values = {(entry["case"], entry["metric"]): entry["value"] for entry in rows}
    cell = "inpainting/0.5"
    assert values[cell, "auto_minus_best_baseline_db"] == pytest.approx((0.5 + 1 - 3) / 3)
    assert values[cell, "images_auto_minus_best_baseline_db"] == 3
    assert values[cell, "auto_minus_oracle_radius_db"] == 30 - 25
    assert values[cell, "images_auto_minus_oracle_radius_db"] == 1
    assert values[cell, "psnr_ilo"] == pytest.approx((26 + 27.5 + 30) / 3)
    assert values["inpainting/0.2", "psnr_ilo"] == 9
    together = {"inpainting/0.5": {"ilo": [26.0, 27.5, 30.0], "a": [25.5, 26.5, 33.0]}}
    alone = {(e["case"], e["metric"]): e["value"] for e in regimes.table([together], ["a"])}
    assert values[cell, "auto_deficit_upper_bound_db"] == alone[cell, "auto_deficit_upper_bound_db"]


def test_regimes_bound_is_of_the_worst_of_the_three_and_not_of_the_best_mean(script):
    regimes, rng = script("regimes"), np.random.default_rng(0)
    ilo = 25 + rng.standard_normal(12)
    near, wild = ilo + 0.02 + 0.001 * rng.standard_normal(12), ilo + rng.permutation([-2, 2] * 6)
    rows = regimes.table(
        [{"inpainting/0.5": {"ilo": ilo.tolist(), "a": near.tolist(), "b": wild.tolist()}}], ["a", "b"]
    )
    values = {entry["metric"]: entry["value"] for entry in rows if entry["case"] == "inpainting/0.5"}
    assert values["auto_minus_best_baseline_db"] == pytest.approx(ilo.mean() - near.mean())
    worst = stats.ttest_1samp(wild - ilo, 0.2, alternative="less")
    assert values["auto_deficit_p_holm"] == pytest.approx(worst.pvalue)
    assert values["auto_deficit_upper_bound_db"] == pytest.approx(worst.confidence_interval(0.95).high)


def test_regimes_judges_a_comparison_just_where_it_is_whole(script):
    regimes = script("regimes")
    radii = {name: [20.0, 21.0] for name in regimes.WITH_RADIUS}
    for with_baseline, with_radii in ((True, False), (False, True), (True, True)):
        found = {"ilo": [26.0, 27.5], **({"a": [25.5, 26.5]} if with_baseline else {}), **(radii if with_radii else {})}
        whole = regimes.judged_by(regimes.table([dict.fromkeys(regimes.CELLS, found)], ["a"]))
        metrics = {limit.metric for limit in whole}
        assert ("auto_deficit_upper_bound_db" in metrics, "auto_minus_oracle_radius_db" in metrics) == (
            with_baseline,
            with_radii,
        )
        some = dict.fromkeys(list(regimes.CELLS)[1:], found)
        assert regimes.judged_by(regimes.table([some], ["a"])) == []


def test_regimes_says_where_a_better_radius_may_lie_beyond(script):
    regimes = script("regimes")
    for best, said in ((regimes.RADII[0], True), (regimes.RADII[1], False), (regimes.RADII[-1], True)):
        radii = {name: [21.0 if name == f"ilo_fixed@{best}" else 20.0] * 2 for name in regimes.WITH_RADIUS}
        rows = regimes.table([{"inpainting/0.5": {"ilo": [26.0, 27.5], **radii}}], [])
        assert regimes.beyond(rows) == (["inpainting/0.5"] if said else [])


def test_the_three_are_chosen_where_all_were_screened(script):
    regimes = script("regimes")
    whole = {name: [float(i)] for i, name in enumerate(regimes.BASELINES)}
    partial = {regimes.BASELINES[0]: [100.0]}
    assert list(regimes.screen_means({"x": whole, "y": partial}))[:3] == list(regimes.BASELINES[:-4:-1])
    assert regimes.screen_means({"y": partial}) == {}


def test_budget_counts_work_and_looks_at_the_truth_without_changing_anything(script, pictures: Path):
    budget, common = script("budget"), script("common")
    setting = common.setting_of("trainer=cpu", "task=denoising", "method=csgm", "method.steps=3",
                                f"data.path={pictures}")  # fmt: skip
    outcome = budget.solved(setting, [0, 1])
    evaluations, seconds, errors = zip(*outcome["course"], strict=True)
    assert evaluations == (1, 2, 3) and list(seconds) == sorted(seconds) and seconds[-1] < outcome["seconds"]
    assert outcome["evaluations"] == pytest.approx(3 + 2 / 3), "and one last look, and the picture of the stage's end"
    seen = common.observed(setting, [0, 1])
    plain = common.solutions_of(setting, setting.method, seen)
    error = ((common.decoded(setting, plain).clamp(-1, 1) - common.truth_of(seen)) / 2).square().mean()
    assert outcome["mse"] == pytest.approx(float(error), rel=1e-5)
    start = common.setting_of("trainer=cpu", "task=denoising", "method=csgm", "method.steps=1",
                              "method.lr=1e-9", f"data.path={pictures}")  # fmt: skip
    assert errors[0] == pytest.approx(budget.solved(start, [0, 1])["mse"], rel=1e-4), "that of the first point"


def test_budget_reports_fractions_only_where_the_error_is_reached(script, capsys: pytest.CaptureFixture):
    budget = script("budget")
    published = [
        {"mse": 0.02, "errors": {"0": 0.01, "1": 0.03}, "evaluations": 1200.0, "seconds": 12.0},
        {"mse": 0.04, "errors": {"0": 0.03, "1": 0.05}, "evaluations": 1200.0, "seconds": 8.0},
    ]
    for mse, reached in ((0.03, True), (0.033, False)):
        errors = {"0": mse - 0.011, "1": mse + 0.011}
        default = [{"mse": mse, "errors": errors, "evaluations": 300.0, "seconds": 4.0}] * 2
        rows = budget.table("t", {"default": default, "published": published}, 0.2)
        values = {entry["metric"]: entry["value"] for entry in rows}
        assert values["mse_ratio"] == pytest.approx(mse / 0.03)
        interval = stats.ttest_rel([mse - 0.011, mse + 0.011], [0.02, 0.04]).confidence_interval(0.9)
        assert values["mse_ratio_upper_bound"] == pytest.approx(1 + interval.high / 0.03)
        fractions = torch.tensor([values["evaluations_fraction"], values["seconds_fraction"]])
        expected = torch.tensor([0.25, 0.4]) if reached else torch.full((2,), torch.nan)
        torch.testing.assert_close(fractions, expected, equal_nan=True)
        assert ("has not reached" in capsys.readouterr().out) != reached


def test_what_identifies_a_result(script, pictures: Path):
    common = script("common")
    make = common.setting_of
    base = ["task=denoising", f"data.path={pictures}"]
    parts = parts_of(make(*base))
    assert parts == parts_of(make(*base)) != parts_of(make(*base, "method.lr=0.2"))
    built = script("cache").parts
    one_path = [*base, "method.radius=0.1"]
    assert built(make(*one_path)) == built(make(*one_path, "method.anchor=0.5", "method.refit_steps=3")), "no refit"
    assert built(make(*one_path)) == built(make(*one_path, "method.steps=[14,14,14,14]")), "however it is said"
    assert built(make(*one_path)) != built(make(*one_path, "method.steps=[14,14,14,15]"))
    assert built(make(*base)) != built(make(*base, "method.anchor=0.5"))
    assert len(parts["images"]) == 2 and parts["images"] != parts_of(make(*base, "data.limit=1"))["images"]
