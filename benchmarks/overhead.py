"""What the engine costs beyond the arithmetic: solve() against a bare loop that does the same steps.

    python benchmarks/overhead.py --json overhead.json

Both run ``conf/method/ilo.yaml`` on ``faces64``, inpainting, a batch of 8 random images: forward, backward, Adam,
spheres, l1 projection, best iterate. solve() also keeps its history, checkpoints and stage pictures. The two alternate;
the row ``overhead_fraction`` is the median over pairs of (engine / bare - 1).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bare_loop import bare_loop
from common import publish, row, setting_of

from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.operators import GaussianNoise, measure
from ilo_lightning.solve import solve


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    setting = setting_of("trainer=cpu", "task=inpainting", "method=ilo", "method.radius=0.05")
    generator, operator, method = setting.generator, setting.operator, setting.method
    rngs = [torch.Generator().manual_seed(i) for i in range(arguments.batch)]
    with torch.no_grad():
        truth = generator(generator.sample(rngs, "z"))
    measurement = measure(operator, GaussianNoise(0.0), truth, rngs)
    keys = [str(i) for i in range(arguments.batch)]

    with tempfile.TemporaryDirectory() as folder:

        def engine() -> None:
            checkpoint = ResumeCheckpoint(Path(folder) / "last.ckpt")
            checkpoint.path.unlink(missing_ok=True)
            solve(generator, operator, measurement, method, keys, checkpoint=checkpoint, trainer=setting.trainer)

        def bare() -> None:
            bare_loop(generator, operator, measurement, method, keys, seed=0)

        engine()  # warm up
        bare()
        pairs = [(seconds(engine), seconds(bare)) for _ in range(arguments.pairs)]
    steps, case = method.schedule.steps, f"faces64/batch{arguments.batch}"
    ratios = [a / b - 1 for a, b in pairs]
    rows = [
        row(case, "overhead_fraction", statistics.median(ratios), "1"),
        row(case, "overhead_fraction_min", min(ratios), "1"),
        row(case, "overhead_fraction_max", max(ratios), "1"),
        row(case, "seconds_per_step_engine", statistics.median(a for a, _ in pairs) / steps, "s"),
        row(case, "seconds_per_step_bare", statistics.median(b for _, b in pairs) / steps, "s"),
    ]
    publish("overhead", rows, arguments.json)


if __name__ == "__main__":
    main()
