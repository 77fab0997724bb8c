"""What `ilo collect` takes for so many rows: time, with the start of the interpreter, and memory at its peak.

    python benchmarks/collect.py --json collect.json

A row is an image × point × method. The sweep is made up, in the form of a real one (synthetic_sweep.py): by
default points of 100 images, each reconstructed by ILO and CSGM, in batches of 8. Times are medians of the runs:
``seconds`` on the clock, ``cpu_seconds`` of the processor, which a busy machine changes less. Exit code 1 if 100,000
rows take more than 10 s or 2 GiB. Linux only.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Limit, publish, row
from synthetic_sweep import Sweep

# A child's ru_maxrss begins with what its parent had, which is torch here; VmHWM is its own.
CHILD = """
import sys
from ilo_lightning.cli import main
try:
    main(sys.argv[1:])
finally:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


def collect(sweep: Path) -> tuple[float, float, int, int]:
    """Seconds, CPU seconds, peak memory in bytes and rows of one `ilo collect`, in a process of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, "collect", str(sweep)], capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"ilo collect exited {done.returncode}: {done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    import polars as pl

    rows = pl.scan_parquet(sweep / "collected.parquet").select(pl.len()).collect().item()
    return seconds, cpu, int(done.stderr.split()[-1]) * 1024, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--images", type=int, default=100, help="per point")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    published = []
    for wanted in arguments.rows:
        points, rest = divmod(wanted, 2 * arguments.images)
        if rest or not points:
            parser.error(f"--rows {wanted}: expected a multiple of {2 * arguments.images}, 2 methods × --images")
        with tempfile.TemporaryDirectory() as folder:
            Sweep(fractions=(0.1,), radii=(0.1,), seeds=range(points), images=arguments.images).write(Path(folder))
            runs = [collect(Path(folder)) for _ in range(arguments.runs)]
        if any(rows != wanted for *_, rows in runs):
            raise SystemExit(f"{wanted} rows were made, {runs[0][2]} collected")
        published += [
            row(str(wanted), "seconds", statistics.median(seconds for seconds, *_ in runs), "s"),
            row(str(wanted), "cpu_seconds", statistics.median(cpu for _, cpu, *_ in runs), "s"),
            row(str(wanted), "peak_memory_bytes", max(memory for *_, memory, _ in runs), "B"),
        ]
    limits = [Limit("seconds", 10.0, case="100000"), Limit("peak_memory_bytes", 2 * 2**30, case="100000")]
    publish("collect", published, arguments.json, limits)


if __name__ == "__main__":
    main()
