"""What is shown while it runs: every step is counted once, whatever was done before."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning import Callback
from rich.console import Console
from rich.progress import Progress as RichProgress

from ilo_lightning import pipeline
from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.callbacks.progress import PlainDisplay, QuietDisplay, RichDisplay, display
from ilo_lightning.data.images import load_images
from ilo_lightning.interrupt import Interrupted, StopRequest
from ilo_lightning.method import Method
from ilo_lightning.observations import Simulated
from ilo_lightning.operators import GaussianNoise, Inpainting
from ilo_lightning.solve import solve
from tests.networks import small_stylegan2
from tests.test_resume import KillAt, Killed
from tests.test_solve import KEYS, ilo, problem

METHOD = ilo()  # 4 + 3 + 5 steps
BASELINE = ilo(name="csgm", layers=[0], steps=[6], lr=[0.1], radii={}, noise_maps=None)


class Recording(QuietDisplay):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, float | None]] = []
        self.ended: list[tuple[str, float]] = []

    def step(self, stage: str, steps: int, fit: float | None) -> None:
        self.steps.append((stage, steps, fit))

    def end_stage(self, stage: str, fit: float, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append((stage, fit))


def run(shown, checkpoint: ResumeCheckpoint | None = None, callbacks: list[Callback] | None = None):
    generator, operator, measurement = problem()
    return solve(
        generator, operator, measurement, METHOD, KEYS, checkpoint=checkpoint, callbacks=callbacks or [], display=shown
    )


def rich_display(total: int) -> tuple[RichProgress, RichDisplay]:
    """On a terminal that exists only in memory."""
    bars = RichProgress(console=Console(file=io.StringIO(), force_terminal=True, width=100))
    return bars, RichDisplay(bars, total)


def test_every_step_is_told_once_with_its_stage():
    shown = Recording()
    result = run(shown)
    fits = [sum(s.history[i].item() for s in result.solutions) / len(KEYS) for i in range(METHOD.schedule.steps)]
    counts: dict[str, int] = {}
    done = 0
    for stage, steps, fit in shown.steps:
        counts[stage] = counts.get(stage, 0) + steps
        done += steps
        assert fit == pytest.approx(fits[done - 1])
    names = [f"stage {i + 1}/3 (layer {i})" for i in range(3)]
    assert counts == dict(zip(names, (4, 3, 5), strict=True))
    assert shown.ended == [(name, pytest.approx(fits[last])) for name, last in zip(names, (3, 6, 11), strict=True)]


def test_plain_lines_are_one_per_stage(capsys: pytest.CaptureFixture[str]):
    shown = PlainDisplay()
    shown.begin("batch 1/1  ilo")
    run(shown)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines):
        assert re.fullmatch(rf"batch 1/1  ilo  stage {i + 1}/3 \(layer {i}\)  data fit [\d.e+-]+  [\d.]+ s", line), line


@pytest.mark.parametrize("killed_at", [None, 2, 4, 9], ids=str)
def test_the_bar_reaches_its_total(killed_at: int | None, tmp_path: Path):
    checkpoint = ResumeCheckpoint(tmp_path / "last.ckpt", every_seconds=1e9, every_steps=1)
    if killed_at is not None:
        with pytest.raises(Killed):
            run(QuietDisplay(), checkpoint, [KillAt(killed_at, "before")])
    bars, shown = rich_display(METHOD.schedule.steps)
    with bars:
        shown.begin("batch 1/1  ilo")
        run(shown, checkpoint)
    (task,) = bars.tasks
    assert task.finished and task.completed == METHOD.schedule.steps
    assert task.description == "batch 1/1  ilo"


def test_the_bar_counts_a_fit_that_was_finished_before(tmp_path: Path):
    checkpoint = ResumeCheckpoint(tmp_path / "last.ckpt")
    run(QuietDisplay(), checkpoint)
    bars, shown = rich_display(METHOD.schedule.steps)
    run(shown, checkpoint)
    assert bars.tasks[0].completed == METHOD.schedule.steps


class StopAfter(QuietDisplay):
    """Asks to stop when so many steps were told."""

    def __init__(self, steps: int, stop: StopRequest):
        self.left, self.stop = steps, stop

    def step(self, stage: str, steps: int, fit: float | None) -> None:
        self.left -= steps
        if self.left <= 0:
            self.stop.signum = 15


def setting_of(pictures: Path, baseline: Method | None) -> pipeline.Setting:
    generator = small_stylegan2()
    operator, images = Inpainting(generator.image_shape), load_images(pictures, generator.image_shape)
    return pipeline.Setting(
        config={},
        generator=generator,
        operator=operator,
        method=METHOD,
        baseline=baseline,
        observations=Simulated(images, operator, GaussianNoise(0.0), 0, generator.dtype),
        batch_size=1,
        trainer={"accelerator": "cpu"},
    )


@pytest.mark.parametrize("stopped_after", [None, 3, 8, 20, 40], ids=str)
def test_a_run_s_bar_reaches_its_total(stopped_after: int | None, tmp_path: Path):
    """Also with batches or a baseline that were finished before, and with a batch in which nothing can be read."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    (pictures / "1.png").write_bytes(b"not a picture")
    setting = setting_of(pictures, BASELINE)
    total = len(setting.batches) * setting.steps_per_batch
    assert total == 3 * (12 + 6)
    if stopped_after is not None:
        stop = StopRequest()
        with pytest.raises(Interrupted):
            pipeline.run(setting, tmp_path / "run", StopAfter(stopped_after, stop), stop)
    bars, shown = rich_display(total)
    rows = pipeline.run(setting, tmp_path / "run", shown)
    assert ["error" in row for row in rows] == [False, True, False]
    assert bars.tasks[0].completed == total
    assert [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()] == rows


def test_the_display_suits_standard_output(monkeypatch: pytest.MonkeyPatch):
    with display(7) as shown:
        assert isinstance(shown, PlainDisplay)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with display(7) as shown:
        assert isinstance(shown, RichDisplay)
        assert shown.bars.tasks[0].total == 7
