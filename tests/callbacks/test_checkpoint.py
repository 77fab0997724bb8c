"""The file from which a run resumes: when it is saved, and that a failure to save harms nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.reconstruction import Reconstruction
from ilo_lightning.solve import solve
from tests.test_resume import assert_same
from tests.test_solve import KEYS, ilo, problem

METHOD = ilo()  # 4 + 3 + 5 steps


class Counting(ResumeCheckpoint):
    """Notes after which steps it saved."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.saved: list[int] = []

    def save(self, trainer) -> None:
        super().save(trainer)
        assert torch.load(self.path, weights_only=True)["global_step"] == trainer.global_step
        self.saved.append(trainer.global_step)


def run(checkpoint: ResumeCheckpoint | None) -> Reconstruction:
    generator, operator, measurement = problem(dtype=torch.float32)
    return solve(generator, operator, measurement, METHOD, KEYS, seed=1, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"every_seconds": 1e9}, []),
        ({"every_seconds": 0.0}, list(range(1, 13))),
        ({"every_seconds": 1e9, "every_steps": 3}, [3, 6, 9, 12]),
        ({"every_seconds": 1e9, "every_steps": 7}, [7]),
    ],
    ids=["never due", "always due", "every third step", "the end of a stage"],
)
def test_when_it_is_saved(arguments: dict, steps: list[int], tmp_path: Path):
    checkpoint = Counting(tmp_path / "last.ckpt", **arguments)
    run(checkpoint)
    assert checkpoint.saved == steps


def test_time_is_counted_from_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A clock that advances a second per step, and two seconds between two saves."""
    now = [0.0]
    monkeypatch.setattr("ilo_lightning.callbacks.checkpoint.time.monotonic", lambda: now[0])

    class Ticking(Counting):
        def on_train_batch_end(self, *args) -> None:
            now[0] += 1.0
            super().on_train_batch_end(*args)

    checkpoint = Ticking(tmp_path / "last.ckpt", every_seconds=2.0)
    run(checkpoint)
    assert checkpoint.saved == [2, 4, 6, 8, 10, 12]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_a_file(checkpoint, path, *args, **kwargs):
    Path(path).write_bytes(b"half")
    full_disk()


@pytest.mark.parametrize(
    ("where", "failing"),
    [
        ("lightning_fabric.plugins.io.torch_io._atomic_save", half_a_file),
        ("torch.save", full_disk),
        ("ilo_lightning.callbacks.checkpoint.os.fsync", full_disk),
        ("ilo_lightning.callbacks.checkpoint.os.replace", full_disk),
    ],
    ids=["half written", "not written", "not synchronised", "not renamed"],
)
@pytest.mark.parametrize("last_good", [0, 5])
def test_a_failed_save_keeps_the_old_file(
    where: str, failing, last_good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The run warns and goes on, nothing half-written stays, and the old file still resumes to the same result."""
    path = tmp_path / "last.ckpt"

    class DiskFillsUp(ResumeCheckpoint):
        def save(self, trainer) -> None:
            if trainer.global_step > last_good:
                monkeypatch.setattr(where, failing)
            super().save(trainer)

    with pytest.warns(UserWarning, match=r"last\.ckpt: can't be saved .*No space left.*going on"):
        finished = run(DiskFillsUp(path, every_seconds=0.0))
    monkeypatch.undo()
    assert_same(finished, run(None))
    assert os.listdir(tmp_path) == (["last.ckpt"] if last_good else [])
    if last_good:
        assert torch.load(path, weights_only=True)["global_step"] == last_good
    assert_same(run(ResumeCheckpoint(path)), run(None))
