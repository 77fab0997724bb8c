"""Resumed = uninterrupted, bit for bit, with a kill at every step; and a request to stop is honoured between steps."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback

from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.interrupt import Interrupted, StopRequest, listen
from ilo_lightning.method import Method
from ilo_lightning.reconstruction import Reconstruction
from ilo_lightning.solve import solve
from tests.test_methods import method
from tests.test_solve import KEYS, ilo, problem


class Killed(BaseException):
    pass


class KillAt(Callback):
    """Dies after step ``step``, either before or after the callbacks at the end of that step have run."""

    def __init__(self, step: int, hook: str):
        self.step, self.hook = step, hook

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if self.hook == "before" and trainer.global_step == self.step:
            raise Killed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.hook == "start" and trainer.global_step == self.step:
            raise Killed

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if self.hook == "stage" and trainer.global_step == self.step:
            raise Killed


def run(the_method: Method, path: Path | None, callbacks=(), every_steps: int = 1) -> Reconstruction:
    """Everything built anew, as after a restart."""
    generator, operator, measurement = problem(dtype=torch.float32)
    checkpoint = None if path is None else ResumeCheckpoint(path, every_seconds=1e9, every_steps=every_steps)
    return solve(generator, operator, measurement, the_method, KEYS, seed=1, checkpoint=checkpoint, callbacks=callbacks)


def assert_same(a: Reconstruction, b: Reconstruction) -> None:
    for x, y in zip(a.solutions, b.solutions, strict=True):
        assert x.point.layer == y.point.layer and x.point.space == y.point.space
        assert all(torch.equal(x.point[name], tensor) for name, tensor in y.point.tensors.items())
        assert torch.equal(x.history, y.history)
        for field in ("data_fit", "evaluations", "stage"):
            assert x.info[field] == y.info[field], field
    assert (a.posterior is None) == (b.posterior is None)
    if a.posterior is not None and b.posterior is not None:
        assert torch.equal(a.posterior.mean, b.posterior.mean) and torch.equal(a.posterior.std, b.posterior.std)
        assert all(torch.equal(x, y) for x, y in zip(a.posterior.pictures, b.posterior.pictures, strict=True))
    assert len(a.strip) == len(b.strip)
    assert all(torch.equal(x, y) for x, y in zip(a.strip, b.strip, strict=True))


SCHEDULES = {
    "ilo": ilo(),
    "csgm": ilo(layers=[0], steps=[5], lr=[0.1], radii={}, noise_maps=None),
    "single steps and repeats": ilo(layers=[0, 0, 1, 2], steps=[1, 2, 1, 3], lr=0.1, radii={}, noise_maps=2),
    "range": ilo(steps=[2, 2, 2], center="range", range_steps=3, penalties={"deviation": 0.1}),
    "projector": method("projector", steps=[5]),
    "three spaces": method("three_phase", steps=[2, 1, 2], restarts=2, noise="random"),
    "samples": method("langevin", steps=[2, 6], sigma=0.1, samples=3),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_kill_at_every_step_changes_nothing(name: str, tmp_path: Path):
    method = SCHEDULES[name]
    expected = run(method, None)
    for hook in ("before", "start", "stage"):
        for step in range(method.schedule.steps):
            path = tmp_path / f"{hook}-{step}.ckpt"
            try:
                run(method, path, [KillAt(step, hook)])
            except Killed:
                assert step == 0 or path.exists()
            assert_same(run(method, path), expected)


def test_kill_after_kill(tmp_path: Path):
    """Dying at every single step in a row, with a checkpoint every second step, still arrives at the same result."""
    method = SCHEDULES["ilo"]
    path = tmp_path / "last.ckpt"
    deaths = 0
    for step in range(1, method.schedule.steps):
        with pytest.raises(Killed):
            run(method, path, [KillAt(step, "before")], every_steps=2)
        deaths += 1
    assert deaths == 11
    assert_same(run(method, path, every_steps=2), run(method, None))


def test_a_finished_run_can_be_resumed_for_its_result(tmp_path: Path):
    """Killed after the last step, before anything was written: no step is repeated, and the result is the same."""
    method = SCHEDULES["ilo"]
    path = tmp_path / "last.ckpt"
    first = run(method, path)
    assert_same(run(method, path, [KillAt(step, "before") for step in range(12)]), first)


@pytest.mark.parametrize("step", [2, 4, 12], ids=["mid-stage", "end of stage", "end"])
def test_a_request_to_stop_saves_and_leaves(step: int, tmp_path: Path):
    method = SCHEDULES["ilo"]
    path = tmp_path / "last.ckpt"
    stop = StopRequest()

    class Ask(Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            if trainer.global_step == step:
                stop.signum = signal.SIGTERM

    generator, operator, measurement = problem(dtype=torch.float32)
    checkpoint = ResumeCheckpoint(path, every_seconds=1e9, stop=stop)
    with pytest.raises(Interrupted) as interruption:
        solve(generator, operator, measurement, method, KEYS, seed=1, checkpoint=checkpoint, callbacks=[Ask()])
    assert interruption.value.exit_code == 143
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == step
    assert_same(run(method, path), run(method, None))


def test_the_checkpoint_leaves_out_the_frozen_networks(tmp_path: Path):
    run(SCHEDULES["ilo"], tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"variables.{name}" for name in ("activation", "rgb", "latent", "noise_3", "noise_4")}


def test_signals_are_noted_and_handlers_restored():
    before = signal.getsignal(signal.SIGTERM)
    with listen() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is before
