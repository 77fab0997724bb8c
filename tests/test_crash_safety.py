"""Kills and signals at random moments of real runs: nothing under its final name is ever half, nothing is lost."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ilo_lightning.operators import Measurement
from ilo_lightning.solution import Solution
from tests.test_run import arguments, comparable, rows_of
from tests.warm import WarmCommand
from tests.whole import check_folder

pytestmark = pytest.mark.slow

# Three pictures in two batches, two methods; a checkpoint after every step.
METHODS = ["method.steps=[6,4,6]", "method@baseline=csgm", "baseline.steps=[8]", "checkpoint_every_seconds=1e-6"]
WRITES = 120
"""Calls of fsync and replace, about: of a run that begins anew, some more."""


@dataclass
class Run:
    """A command, and what it gives if nobody interrupts it. ``seconds``: the shortest time that took so far, since the
    first run may have been slowed down by others, and signals are sent while a run lasts."""

    ilo: WarmCommand
    command: list[str]
    expected: dict[str, Any]
    seconds: float

    def start(self, folder: Path, **how: Any):
        return self.ilo.start("solve", *self.command, f"hydra.run.dir={folder}", cwd=folder.parent, **how)

    @contextmanager
    def timed(self, folder: Path) -> Iterator[None]:
        """Learn how long a run takes, if it begins anew and comes to its end."""
        anew, began = not folder.exists(), time.monotonic()
        yield
        if anew and (folder / "results.jsonl").exists():
            self.seconds = min(self.seconds, time.monotonic() - began)

    def check(self, folder: Path) -> None:
        """The run in a folder has finished, with the same results bit for bit."""
        assert check_folder(folder) == []
        assert not list(folder.rglob("*.ckpt"))
        found = results(folder)
        assert found.keys() == self.expected.keys()
        for name, expected in self.expected.items():
            assert found[name] == expected, name


def results(folder: Path) -> dict[str, Any]:
    """Everything that a run found, without what the clock says, and the commit: somebody may be editing files."""
    rows = [{key: value for key, value in row.items() if key != "commit"} for row in comparable(rows_of(folder))]
    found: dict[str, Any] = {"results.jsonl": rows}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".png":
            found[name] = path.read_bytes()
        elif path.name.startswith("solution"):
            solution = Solution.load(path)
            tensors = {**solution.point.tensors, "history": solution.history}
            info = {key: value for key, value in solution.info.items() if key not in ("seconds", "commit")}
            found[name] = (solution.point.layer, {key: bits(tensor) for key, tensor in tensors.items()}, info)
        elif path.name == "measurement.safetensors":
            measurement, info = Measurement.load(path)
            found[name] = (bits(measurement.y), bits(measurement.weight), info)
    return found


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.fixture(scope="module")
def run(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    command = [word for word in arguments(checkpoint, pictures, folder, *METHODS) if "hydra.run.dir" not in word]
    with WarmCommand() as ilo:
        began = time.monotonic()
        done = ilo.run("solve", *command, f"hydra.run.dir={folder}", cwd=folder.parent)
        seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        yield Run(ilo, command, results(folder), seconds)


def shell_code(done: subprocess.CompletedProcess[str]) -> int:
    """As a shell sees it: a process that a signal killed has 128 + the signal."""
    return 128 - done.returncode if done.returncode < 0 else done.returncode


@pytest.mark.parametrize("when", ["any time", "a write"])
def test_killed_again_and_again(when: str, run: Run, tmp_path: Path):
    """Fifteen kills at random times, and fifteen right before the file system is asked for something. Each restart goes
    on from what is there; whenever one comes to the end, the next begins anew."""
    rng = random.Random(when)
    folder = tmp_path / "run"
    kills = ends = halves = 0
    while kills < 15:
        with run.timed(folder):
            process = run.start(folder, **({"die_at": rng.randint(1, WRITES)} if when == "a write" else {}))
            if when == "any time":
                time.sleep(rng.uniform(0.1, 1) * run.seconds)
                process.kill(signal.SIGKILL)
            done = process.wait()
        assert shell_code(done) in (0, 137), done.stderr
        assert "Traceback" not in done.stderr
        if done.returncode:
            kills += 1
            halves += bool(check_folder(folder)) if folder.exists() else 0
        else:
            ends += 1
            run.check(folder)
            shutil.rmtree(folder)
    done = run.start(folder).wait()
    assert done.returncode == 0, done.stderr
    run.check(folder)
    print(f"{kills} kills, {halves} of them in the middle of a file; {ends + 1} runs came to their end")
    assert ends > 0
    assert halves > 0 or when == "any time"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_again_and_again(signum: signal.Signals, code: int, run: Run, tmp_path: Path):
    """At random times, from the first moment to the last: the exit code says so, and the next call goes on."""
    rng = random.Random(int(signum))
    folder = tmp_path / "run"
    stops, slowest = 0, 0.0
    while stops < 6:
        with run.timed(folder):
            process = run.start(folder)
            time.sleep(rng.uniform(0.05, 1) * run.seconds)
            process.kill(signum)
            asked = time.monotonic()
            done = process.wait()
        assert shell_code(done) in (0, code), done.stderr
        assert "Traceback" not in done.stderr
        if shell_code(done) == code:
            stops, slowest = stops + 1, max(slowest, time.monotonic() - asked)
            if folder.exists():
                # SIGTERM before the run has begun is the system's own; after that nothing half is left.
                assert check_folder(folder) == [] or done.returncode < 0
        else:
            run.check(folder)
            shutil.rmtree(folder)
    assert run.start(folder).wait().returncode == 0
    run.check(folder)
    print(f"{stops} stops, the slowest within {slowest:.2f} s")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_measuring_interrupted(signum: signal.Signals, code: int, run: Run, tmp_path: Path):
    """`ilo measure` writes whole files or none, too."""
    rng = random.Random(int(signum))
    for index in range(5):
        folder = tmp_path / f"y{index}"
        process = run.ilo.start("measure", *run.command, f"hydra.run.dir={folder}", cwd=tmp_path)
        time.sleep(rng.uniform(0.05, 0.5) * run.seconds)
        process.kill(signum)
        done = process.wait()
        assert shell_code(done) in (0, code) and "Traceback" not in done.stderr
        check_folder(folder)
