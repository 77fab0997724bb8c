"""How long until something happens: ``python run.py --help``, and the first optimisation step of the default run.

    python benchmarks/startup.py --json startup.json

Each is started as a process of its own, on a warm disk (the first start isn't counted). Rows, medians over the starts:
``seconds_to_help``, to its end; ``seconds_to_first_step``, from the start of the process until the first step is taken;
and the parts of the latter: ``…_interpreter`` (Python and Hydra), ``…_compose`` (the configuration), ``…_imports``
(PyTorch, Lightning, the package), ``…_build`` (generator and images, and a rehearsal of every stage) and ``…_step``
(measurement, Trainer, the step). ``cpu_seconds_to_help`` and ``cpu_seconds_to_first_step`` are the processor's time,
which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
LANDMARKS = ("interpreter", "compose", "imports", "build", "step")


def default_run() -> None:
    """What run.py does, until the first step is taken; prints when each landmark was passed (seconds since 1970)."""
    from ilo_lightning import main

    passed = {"interpreter": time.time()}

    def note_before(module: Any, name: str, landmark: str) -> None:
        function = getattr(module, name)

        def noting(*arguments: Any) -> Any:
            passed[landmark] = time.time()
            return function(*arguments)

        setattr(module, name, noting)

    def run(job: Any, config: Any) -> None:
        from ilo_lightning import job as job_module
        from ilo_lightning import problem

        passed["imports"] = time.time()
        note_before(job_module, "run", "build")

        def first_step(*_: Any) -> None:
            passed["step"] = time.time()
            print(json.dumps(passed), flush=True)
            os._exit(0)

        hooked: Any = problem.InverseProblem
        hooked.on_train_batch_end = first_step
        original(job, config)

    note_before(main, "reuse_memory", "compose")
    original, main._run = main._run, run
    main.main()


def timed(command: Sequence[str]) -> tuple[float, float, float, str]:
    """When it was started (seconds since 1970), wall-clock and processor seconds of a command, and its output."""
    before, started, begin = os.times(), time.time(), time.perf_counter()
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY).stdout
    seconds, after = time.perf_counter() - begin, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return started, seconds, spent, output


def time_help() -> dict[str, float]:
    _, seconds, spent, _ = timed([sys.executable, "run.py", "--help"])
    return {"seconds_to_help": seconds, "cpu_seconds_to_help": spent}


def time_first_step() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        started, _, spent, output = timed([sys.executable, __file__, "--default-run", f"hydra.run.dir={folder}/run"])
    passed = [started, *(json.loads(output.splitlines()[-1])[landmark] for landmark in LANDMARKS)]
    parts = {
        f"seconds_to_first_step_{landmark}": after - before
        for landmark, before, after in zip(LANDMARKS, passed, passed[1:], strict=False)
    }
    return {"seconds_to_first_step": passed[-1] - started, **parts, "cpu_seconds_to_first_step": spent}


def main() -> None:
    if sys.argv[1:2] == ["--default-run"]:
        sys.argv[1:] = sys.argv[2:]
        return default_run()
    from common import publish, row  # imports PyTorch, which is what a default run is timed for

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for measure in (time_help, time_first_step):
        measure()
        starts = [measure() for _ in range(arguments.starts)]
        rows += [row("default", name, statistics.median(start[name] for start in starts), "s") for name in starts[0]]
    publish("startup", rows, arguments.json)


if __name__ == "__main__":
    main()
