"""What logging costs: the time it takes out of a run's steps, and what it takes beside them.

    python benchmarks/logging_cost.py --json logging_cost.json

Runs ``conf/method/ilo.yaml`` on ``faces64``, inpainting, a batch of 8 images, with each logger as it is configured (a
point every 10 steps; W&B offline). The ratios are within one run, so that other work on the machine weighs little. Per
logger, the median over runs:

logging_overhead_fraction  (time of the steps spent in logging + CPU time of the logger's own threads and processes
                           meanwhile) / (time of the steps without their logging)
waiting_fraction           the first of the two alone: how much longer the run takes if there is a core to spare
seconds_per_run            once per run and not per step: beginning, pictures, table and end

Exit code 1 if the first is more than 1 % at the default interval, that is unless an override sets ``logger.every``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from common import Limit, Row, publish, row
from hydra import compose, initialize_config_module

from ilo_lightning.building import build
from ilo_lightning.callbacks import Curves
from ilo_lightning.callbacks.progress import QuietDisplay
from ilo_lightning.job import build_log
from ilo_lightning.loggers import RunLog
from ilo_lightning.pipeline import run

LOGGERS = ("wandb", "tensorboard", "csv")


def cpu_seconds_beside_us() -> float:
    """CPU time so far of this process's other threads, and of its child processes with all of theirs (Linux)."""
    us = threading.get_native_id()
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(us)]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                tasks += (process / "task").iterdir()
        except OSError:  # it has ended
            continue
    nanoseconds = 0
    for task in tasks:
        try:
            nanoseconds += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return nanoseconds / 1e9


@dataclass
class Times:
    """Seconds of one run."""

    steps: float = 0.0
    waiting: float = 0.0
    beside: float = 0.0
    per_run: float = 0.0


def timed(times: Times) -> type[Curves]:
    """Curves that note how long they take, and what goes on beside the steps."""

    class Timed(Curves):
        def on_train_start(self, *arguments: Any) -> None:
            times.beside -= cpu_seconds_beside_us()
            times.steps -= time.perf_counter()

        def on_train_batch_end(self, *arguments: Any) -> None:
            began = time.perf_counter()
            super().on_train_batch_end(*arguments)
            times.waiting += time.perf_counter() - began

        def on_train_end(self, *arguments: Any) -> None:
            times.steps += time.perf_counter()
            times.beside += cpu_seconds_beside_us()

    return Timed


class TimedLog(RunLog):
    """Another log, whose calls outside of the steps are timed."""

    def __init__(self, log: RunLog, times: Times):
        super().__init__(every=log.every)

        def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                began = time.perf_counter()
                try:
                    return function(*arguments)
                finally:
                    times.per_run += time.perf_counter() - began

            return call

        for name in ("begin", "loggers", "picture", "batch", "finish", "close"):
            setattr(self, name, clocked(getattr(log, name)))


def measure(logger: str, images: Path, overrides: list[str]) -> Times:
    """One run with a logger."""
    times = Times()
    with tempfile.TemporaryDirectory() as name, initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        folder = Path(name)
        config = compose("config", [f"logger={logger}", f"data.path={images}", "trainer=cpu", "method=ilo", *overrides])
        setting = build(config)
        log = TimedLog(build_log(config, setting, folder), times)
        with mock.patch("ilo_lightning.fits.Curves", timed(times)):
            run(setting, folder, QuietDisplay(), log=log)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--loggers", nargs="+", choices=LOGGERS, default=LOGGERS)
    parser.add_argument("--override", nargs="+", default=[], help="further overrides of the configuration")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        pixels = np.random.default_rng(0).integers(0, 256, (arguments.batch, 64, 64, 3), dtype=np.uint8)
        np.savez(images, images=pixels)
        for logger in arguments.loggers:
            found = [measure(logger, images, arguments.override) for _ in range(arguments.runs)]
            case = f"{logger}/faces64/batch{arguments.batch}"

            def median(ratio: Callable[[Times], float], found: list[Times] = found) -> float:
                return statistics.median(map(ratio, found))

            rows += [
                row(
                    case,
                    "logging_overhead_fraction",
                    median(lambda t: (t.waiting + t.beside) / (t.steps - t.waiting)),
                    "1",
                ),
                row(case, "waiting_fraction", median(lambda t: t.waiting / (t.steps - t.waiting)), "1"),
                row(case, "seconds_per_run", median(lambda t: t.per_run), "s"),
                row(case, "seconds_of_steps", median(lambda t: t.steps), "s"),
            ]
    default = not any(override.lstrip("+").startswith("logger.every=") for override in arguments.override)
    limits = [Limit("logging_overhead_fraction", 0.01)] if default else []
    publish("logging_cost", rows, arguments.json, limits)


if __name__ == "__main__":
    main()
