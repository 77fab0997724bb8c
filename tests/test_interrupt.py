"""What a signal means, with and without SLURM."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ilo_lightning import slurm
from ilo_lightning.exit_codes import REQUEUE, SOME_FAILED
from ilo_lightning.interrupt import Interrupted, Taken, listen
from tests.test_run import arguments, comparable, rows_of


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This process is a SLURM job; the list says what is asked of SLURM."""
    asked: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(slurm, "requeue", lambda job: asked.append(f"requeue {job}") or True)
    return asked


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_outside_slurm_every_signal_ends_the_run(signum: signal.Signals):
    with listen() as stop:
        stop.check()
        signal.raise_signal(signum)
        with pytest.raises(Interrupted) as interruption:
            stop.check()
    assert interruption.value.exit_code == 128 + signum
    if signum != signal.SIGUSR2:
        assert stop.pass_on(3) == 3  # nobody to tell


@pytest.mark.parametrize("preempted", [True, False])
def test_a_preempted_job_requeues_itself_and_a_cancelled_one_leaves(
    preempted: bool, job: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "preempted", lambda job: preempted)
    with listen() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
        assert job == [], "not before everything is saved"
    assert stop.pass_on(143) == 143
    assert job == (["requeue 4711"] if preempted else [])


def test_who_can_t_ask_stays_until_it_is_killed(job: list[str], monkeypatch: pytest.MonkeyPatch):
    """Inside a container there may be no scontrol, and who leaves while it is preempted is not requeued."""
    monkeypatch.setattr(slurm, "preempted", lambda job: None)
    with listen() as stop:
        signal.raise_signal(signal.SIGTERM)
        stop.check()
        stop.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            stop.check()


def test_who_listened_before_hears_of_it_afterwards():
    """submitit's handler requeues the job and exits."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: heard.append(signum))
    try:
        with listen() as stop:
            signal.raise_signal(signal.SIGUSR2)
            with pytest.raises(Interrupted):
                stop.check()
            assert heard == []
        assert stop.pass_on(140) == 140
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("countdown", "code", "words"),
    [
        (3, REQUEUE, "no scontrol here: exit code 75 asks to be requeued"),
        (0, SOME_FAILED, "error: Job not requeued because: timed-out too many times."),
    ],
)
def test_at_its_time_limit_in_a_container(
    countdown: int, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """submitit's own handler, where there is no scontrol: it counts the time limits, the exit code asks."""
    submitit = pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    from submitit.core.job_environment import SignalHandler
    from submitit.core.utils import DelayedSubmission, JobPaths

    class Again:
        def __call__(self) -> None: ...

        def checkpoint(self) -> DelayedSubmission:
            return DelayedSubmission(self)

    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("submitit"), "handlers", [])  # they hold another test's output,
    monkeypatch.setattr(logging.getLogger("submitit"), "propagate", False)  # and so may the root's
    submission = DelayedSubmission(Again())
    submission.set_timeout(1, countdown)
    handler = SignalHandler(submitit.slurm.slurm.SlurmJobEnvironment(), JobPaths(tmp_path, "4711"), submission)
    before = signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
    try:
        with listen() as stop:
            signal.raise_signal(signal.SIGUSR2)
        assert stop.pass_on(140) == code
    finally:
        signal.signal(signal.SIGUSR2, before)
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    (saved,) = tmp_path.glob("*submitted.pkl")
    assert DelayedSubmission.load(saved)._timeout_countdown == countdown - 1


def test_who_lost_the_work_stops():
    with listen() as stop:
        stop.lose()
        with pytest.raises(Taken, match="taken over by another process"):
            stop.check()


ANSWERS = """
JobId=4711 JobName=ilo JobState={state} Reason=None
   StartTime=2026-11-24T18:26:08 EndTime=Unknown PreemptEligibleTime=2026-11-24T18:26:08
   {preempt}
"""


@pytest.mark.parametrize(
    ("state", "preempt", "expected"),
    [
        ("RUNNING", "PreemptTime=2026-11-24T18:26:10 SuspendTime=None", True),
        ("RUNNING", "PreemptTime=2026-11-24T18:20:00 SuspendTime=None", False),  # an earlier time
        ("RUNNING", "PreemptTime=None", False),
        ("RUNNING", "", False),
        ("COMPLETING", "PreemptTime=2026-11-24T18:26:10", False),
    ],
)
def test_how_slurm_s_answer_is_read(state: str, preempt: str, expected: bool, tmp_path: Path, monkeypatch):
    answer = tmp_path / "scontrol"
    answer.write_text(f"#!/bin/sh\ncat <<'X'\n{ANSWERS.format(state=state, preempt=preempt)}\nX\n")
    answer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.preempted("4711") is expected


def test_without_slurm_nobody_knows(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.preempted("4711") is slurm.is_running("4711") is slurm.states(["4711"]) is None
    assert slurm.is_unfinished(["4711"]) and not slurm.requeue("4711")


@pytest.mark.slow
def test_a_process_stopped_by_sigusr2_goes_on_where_it_was(checkpoint: Path, pictures: Path, tmp_path: Path):
    long = ["method.steps=[60,60,60]", "checkpoint_every_seconds=0.05", "data.limit=1"]
    command = [
        sys.executable,
        "-m",
        "ilo_lightning.cli",
        "solve",
        *arguments(checkpoint, pictures, tmp_path / "a", *long),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "a" / "batches" / "0000-ilo.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR2)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGUSR2, errors
    assert "interrupted by SIGUSR2" in errors and "Traceback" not in errors
    from ilo_lightning.main import main

    for folder in ("a", "b"):
        assert main(arguments(checkpoint, pictures, tmp_path / folder, *long)) == 0
    assert comparable(rows_of(tmp_path / "a")) == comparable(rows_of(tmp_path / "b"))


def test_ctrl_c_at_the_interpreter_s_end_changes_nothing():
    """The command is over and its exit code said; what is tidied up then prints no traceback."""
    code = (
        "import os, signal, weakref; from ilo_lightning.cli import main\n"
        "class Any: pass\n"
        "kept = Any(); weakref.finalize(kept, os.kill, os.getpid(), signal.SIGINT)\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
