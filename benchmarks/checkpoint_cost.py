"""What resuming costs: the share of a run's time that goes into its checkpoints, at the default interval.

    python benchmarks/checkpoint_cost.py --json checkpoint_cost.json

Runs ``conf/method/ilo.yaml`` on ``faces64``, inpainting random images, and times saves in the middle: serialising,
writing, synchronising, renaming, in ``--folder`` (name one on the file system that your jobs use). A run saves once per
interval, so ``checkpoint_overhead_fraction`` is (median seconds of a save / seconds between two). Exit code 1 if that
is more than 2 %.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import Limit, publish, row, setting_of

from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.operators import GaussianNoise, measure
from ilo_lightning.solve import solve


class Timed(ResumeCheckpoint):
    """Notes how long each save took, and how large the file was."""

    def __init__(self, path: Path, every_steps: int):
        super().__init__(path, every_seconds=1e9, every_steps=every_steps)
        self.seconds: list[float] = []
        self.bytes = 0

    def save(self, trainer) -> None:
        begin = time.perf_counter()
        super().save(trainer)
        self.seconds.append(time.perf_counter() - begin)
        self.bytes = max(self.bytes, self.path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--every", type=float, help="seconds between two saves; the default of conf/config.yaml")
    parser.add_argument("--folder", type=Path, help="where to write; the system's folder for temporary files")
    parser.add_argument("--override", nargs="*", default=[], help="further settings, as for run.py")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    setting = setting_of("trainer=cpu", "task=inpainting", "method=ilo", "method.radius=0.05", *arguments.override)
    generator, operator, method = setting.generator, setting.operator, setting.method
    every = arguments.every or setting.checkpoint_every_seconds
    rngs = [torch.Generator().manual_seed(i) for i in range(arguments.batch)]
    with torch.no_grad():
        truth = generator(generator.sample(rngs, "z"))
    measurement = measure(operator, GaussianNoise(0.0), truth, rngs)
    keys = [str(i) for i in range(arguments.batch)]
    saves: list[float] = []
    steps: list[float] = []
    size = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for _ in range(arguments.runs):
            checkpoint = Timed(Path(folder) / "last.ckpt", every_steps=max(1, method.schedule.steps // 8))
            begin = time.perf_counter()
            solve(generator, operator, measurement, method, keys, checkpoint=checkpoint, trainer=setting.trainer)
            rest = time.perf_counter() - begin - sum(checkpoint.seconds)
            checkpoint.path.unlink()
            saves += checkpoint.seconds
            steps.append(rest / method.schedule.steps / arguments.batch)
            size = max(size, checkpoint.bytes)
    case = f"faces64/batch{arguments.batch}"
    rows = [
        row(case, "checkpoint_overhead_fraction", statistics.median(saves) / every, "1"),
        row(case, "checkpoint_overhead_fraction_max", max(saves) / every, "1"),
        row(case, "seconds_per_checkpoint", statistics.median(saves), "s"),
        row(case, "checkpoint_bytes_per_image", size / arguments.batch, "B"),
        row(case, "seconds_per_image_step", statistics.median(steps), "s"),
    ]
    publish("checkpoint_cost", rows, arguments.json, [Limit("checkpoint_overhead_fraction", 0.02)])


if __name__ == "__main__":
    main()
