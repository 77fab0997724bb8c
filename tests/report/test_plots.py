"""Plots: what is drawn is what was summarised."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.synthetic_sweep import Sweep
from ilo_lightning.report.collect import collect
from ilo_lightning.report.plots import CURVES, PANELS, Curve, Plot, draw, plots, rendered
from ilo_lightning.report.summary import Mean, Summary, summarise


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    Sweep(fractions=(0.01, 0.05, 0.1), sigmas=(0.0, 0.05), radii=(0.02, 0.1), seeds=(0, 1)).write(tmp_path / "s")
    return summarise(collect([tmp_path / "s"]))


def named(summary: Summary) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(summary)}


def test_a_plot_per_metric_and_swept_setting(summary: Summary):
    swept = ("task.fraction", "task.noise.sigma", "method.radius")  # costs hardly differ
    metrics = ("psnr", "mse", "ssim", "residual")
    assert set(named(summary)) == {f"{metric}-against-{x}" for metric in metrics for x in swept}


def test_costs_that_hardly_differ_are_no_axis(tmp_path: Path):
    for name, seconds in (("near", 1.05), ("far", 1.3)):
        (first, second) = Sweep(fractions=(0.1,), radii=(0.1, 0.2), baseline=False).write(tmp_path / name)
        change(second, seconds=seconds * rows(first)[0]["seconds"])
        change(first, seconds=rows(first)[0]["seconds"])
    assert "psnr-against-seconds" not in named(summarise(collect([tmp_path / "near"])))
    assert "psnr-against-seconds" in named(summarise(collect([tmp_path / "far"])))


def rows(point: Path) -> list[dict]:
    return [json.loads(line) for line in (point / "results.jsonl").read_text().splitlines()]


def change(point: Path, places: Sequence[int] | None = None, **fields) -> None:
    """Other values in the rows of a point (of some images)."""
    found = rows(point)
    for place, row in enumerate(found):
        if places is None or place in places:
            row.update(fields)
    for path in (point / "results.jsonl", *point.glob("batches/*.jsonl")):
        path.write_text("".join(json.dumps(row) + "\n" for row in found))


def test_what_tables_do_not_compare_is_not_drawn_and_that_is_said(tmp_path: Path):
    points = Sweep(fractions=(0.1, 0.2), radii=(0.1, 0.2), baseline=False).write(tmp_path)
    (curves,) = named(summarise(collect([tmp_path])))["psnr-against-task.fraction"].panels.values()
    assert [len(curve.points) for curve in curves] == [2, 2]
    for point in points[1::2]:
        change(point, optimised=["ssim"])
    change(points[0], places=[1], error="no", metrics={})
    summary = summarise(collect([tmp_path]))
    plot = named(summary)["psnr-against-task.fraction"]
    (curves,) = plot.panels.values()
    assert [[place for place, _ in curve.points] for curve in curves] == [[0.1, 0.2], [0.2]]
    assert (
        plot.note == "Not drawn: results of ilo with other or fewer images or seeds than the rest of their problem (†)."
    )
    plot = named(summary).get("ssim-against-task.fraction")
    assert plot is None, "one point of each is left"


def test_a_method_looks_alike_in_all_plots_of_a_report(tmp_path: Path):
    Sweep(fractions=(0.05, 0.1), sigmas=(0.0,), radii=(0.1,)).write(tmp_path / "a")
    Sweep(fractions=(0.05, 0.1), sigmas=(0.1,), radii=(0.1,), baseline=False).write(tmp_path / "b")
    looks: dict[str, set] = {}
    for plot in plots(summarise(collect([tmp_path]))):
        figure = draw(plot)
        for curve in {curve.label: curve for panel in plot.panels.values() for curve in panel}.values():
            drawn = [line for axes in figure.axes for line in axes.lines if line.get_label() == curve.label]
            looks.setdefault(curve.method, set()).update((line.get_color(), line.get_marker()) for line in drawn)
    assert looks.keys() == {"csgm", "ilo"} and all(len(look) == 1 for look in looks.values())


def test_no_ball_is_a_level_line_of_its_own(tmp_path: Path):
    """Beside the curve of the same method over radii."""
    *_, last = Sweep(fractions=(0.1,), radii=(0.1, 0.3, 0.5), baseline=False).write(tmp_path)
    config = OmegaConf.load(last / "config.yaml")
    config.method.radius = None
    OmegaConf.save(config, last / "config.yaml")
    plot = named(summarise(collect([tmp_path])))["psnr-against-method.radius"]
    (curves,) = plot.panels.values()
    assert [curve.label for curve in curves] == ["ilo, l1 radius none", "ilo"]
    assert [[place for place, _ in curve.points] for curve in curves] == [[None], [0.1, 0.3]]
    figure = draw(plot)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"ilo", "ilo, l1 radius none"}


def test_curves_are_the_means(summary: Summary):
    plot = named(summary)["psnr-against-task.fraction"]
    assert set(plot.panels) == {"compressed sensing, noise σ 0", "compressed sensing, noise σ 0.05"}
    for title, curves in plot.panels.items():
        assert [curve.label for curve in curves] == ["csgm", "ilo, l1 radius 0.02", "ilo, l1 radius 0.1"]
        for curve in curves:
            assert [place for place, _ in curve.points] == [0.01, 0.05, 0.1]
            for place, mean in curve.points:
                sigma = float(title.rpartition(" ")[2])
                radius = float(curve.label.rpartition(" ")[2]) if curve.method == "ilo" else None
                (group,) = [g for g in summary.groups if g.problem[1:] == (place, sigma) and g.solver[1] == radius]
                assert mean == group.means["psnr"]


def test_the_figure_shows_the_curves_and_their_bands(summary: Summary):
    plot = named(summary)["psnr-against-task.fraction"]
    figure = draw(plot)
    panels = [axes for axes in figure.axes if axes.has_data()]
    assert len(panels) == 2
    for axes, curves in zip(panels, plot.panels.values(), strict=True):
        lines = [line for line in axes.lines if len(np.asarray(line.get_xdata()))]
        for line, curve in zip(lines, curves, strict=True):
            assert list(line.get_xdata()) == [place for place, _ in curve.points]
            assert list(line.get_ydata()) == [mean.value for _, mean in curve.points]
        for band, curve in zip(axes.collections, curves, strict=True):
            drawn = np.asarray(band.get_paths()[0].vertices)
            for place, mean in curve.points:
                ys = drawn[np.isclose(drawn[:, 0], place), 1]
                assert ys.min() == pytest.approx(mean.value - (mean.half or 0))
                assert ys.max() == pytest.approx(mean.value + (mean.half or 0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        curve.label for curve in next(iter(plot.panels.values()))
    ]


def test_no_two_methods_look_alike_however_many_there_are():
    names = [f"method {n}" for n in range(CURVES)]
    curves = [Curve(name, name, [(0.1, Mean(1.0, None)), (0.5, Mean(2.0, None))]) for name in names]
    figure = draw(Plot("psnr-against-x", "psnr", "task.fraction", "x", {"": curves}))
    lines = figure.axes[0].lines[: len(names)]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == len(names)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)  # the legend's line alone


def test_what_has_no_radius_is_a_level_line_in_the_plot_against_it(summary: Summary):
    plot = named(summary)["mse-against-method.radius"]
    assert len(plot.panels) == 3 * 2
    for curves in plot.panels.values():
        assert {curve.label: [place for place, _ in curve.points] for curve in curves} == {
            "csgm": [None],
            "ilo": [0.02, 0.1],
        }


def test_nothing_swept_is_nothing_to_plot(tmp_path: Path):
    Sweep(fractions=(0.1,), radii=(0.1,), baseline=False).write(tmp_path)
    assert list(plots(summarise(collect([tmp_path])))) == []


def test_errors_over_several_decades_have_a_logarithmic_scale(tmp_path: Path):
    Sweep(fractions=(0.001, 0.9), sigmas=(0.0, 0.4), radii=(0.1,), images=5).write(tmp_path)
    figures = {name: draw(plot) for name, plot in named(summarise(collect([tmp_path]))).items()}
    assert figures["mse-against-task.fraction"].axes[0].get_yscale() == "log"
    assert figures["mse-against-task.fraction"].axes[0].get_xscale() == "log"
    assert figures["psnr-against-task.fraction"].axes[0].get_yscale() == "linear"
    assert figures["psnr-against-task.noise.sigma"].axes[0].get_xscale() == "linear"


def test_what_is_left_out_is_said(tmp_path: Path):
    Sweep(fractions=[0.01 * i for i in range(1, 8)], sigmas=(0.0, 0.1)).write(tmp_path)
    plot = named(summarise(collect([tmp_path])))["psnr-against-method.radius"]
    assert len(plot.panels) == PANELS and plot.note == "Only the first 12 of 14 problems."


def test_files_are_pictures_and_the_same_each_time(summary: Summary):
    plot = named(summary)["ssim-against-task.noise.sigma"]
    svg = rendered(draw(plot), "svg")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg == rendered(draw(plot), "svg")
    picture = Image.open(io.BytesIO(rendered(draw(plot), "png")))
    assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 16
