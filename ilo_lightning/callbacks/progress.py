"""Say how far the optimisation is: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ..problem import InverseProblem


class Display(Protocol):
    """Where progress is shown. ``total`` steps of a whole run are announced once; each batch tells its steps."""

    def begin(self, title: str) -> None:
        """A new batch of images begins."""

    def step(self, stage: str, steps: int, fit: float | None) -> None:
        """``steps`` more steps are done, in ``stage``, with this mean data fit."""

    def end_stage(self, stage: str, fit: float, seconds: float) -> None:
        """A stage ended."""


class QuietDisplay:
    """Shows nothing."""

    def begin(self, title: str) -> None: ...

    def step(self, stage: str, steps: int, fit: float | None) -> None: ...

    def end_stage(self, stage: str, fit: float, seconds: float) -> None: ...


class PlainDisplay(QuietDisplay):
    """A line per stage, for logs."""

    def __init__(self) -> None:
        self.title = ""

    def begin(self, title: str) -> None:
        self.title = title

    def end_stage(self, stage: str, fit: float, seconds: float) -> None:
        with suppress(OSError):  # nobody reads it any more (`| head`), or the disk that it goes to is full
            print(f"{self.title}  {stage}  data fit {fit:.3g}  {seconds:.1f} s", flush=True)


class RichDisplay(QuietDisplay):
    """One live bar over all steps of the run, with stage, data fit and time left."""

    def __init__(self, bars: RichProgress, total: int):
        self.bars = bars
        self.task = bars.add_task("", total=total, stage="", fit="")

    def begin(self, title: str) -> None:
        self.bars.update(self.task, description=title)

    def step(self, stage: str, steps: int, fit: float | None) -> None:
        shown = "" if fit is None else f"data fit {fit:.3g}"
        self.bars.update(self.task, advance=steps, stage=stage, fit=shown)


@contextmanager
def display(total: int) -> Iterator[Display]:
    """The display that suits standard output, for a run of ``total`` steps."""
    if not sys.stdout.isatty():
        yield PlainDisplay()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}  {task.fields[fit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(), transient=True) as bars:
        yield RichDisplay(bars, total)


class Progress(pl.Callback):
    """Tells a display about the steps, at most every ``interval`` seconds (reading the loss synchronises a GPU)."""

    def __init__(self, display: Display, interval: float = 0.1):
        self.display, self.interval = display, interval
        self._shown_at, self._began, self._pending = 0.0, time.monotonic(), 0
        self._trained = False

    @staticmethod
    def _describe(problem: InverseProblem) -> str:
        return f"stage {problem.stage_index + 1}/{len(problem.schedule)} (layer {problem.stage.layer})"

    def on_train_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        self._pending = trainer.global_step  # what a resumed run finds done already
        self._began, self._trained = time.monotonic(), True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: Any) -> None:
        self._pending += 1
        now = time.monotonic()
        if now - self._shown_at >= self.interval:
            assert pl_module.last_fit is not None
            self.display.step(self._describe(pl_module), self._pending, float(pl_module.last_fit.mean()))
            self._shown_at, self._pending = now, 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        assert pl_module.last_fit is not None
        fit, now = float(pl_module.last_fit.mean()), time.monotonic()
        self.display.step(self._describe(pl_module), self._pending, fit)
        self.display.end_stage(self._describe(pl_module), fit, now - self._began)
        self._pending, self._began = 0, now

    def on_fit_end(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        if not self._trained:  # all steps were done already
            self.display.step(self._describe(pl_module), trainer.global_step, None)
