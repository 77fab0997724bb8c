"""One worker at a time: among processes that race, after deaths, across machines, and with clocks that are wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ilo_lightning import slurm
from ilo_lightning.sweeps import lease as module
from ilo_lightning.sweeps.lease import STALE, Held, Holder, Lease, is_alive, look, server_time


def elsewhere(**changes) -> Holder:
    """A process on another machine, of which nothing can be asked."""
    return replace(Holder.here(), host="node17", machine="node17 boot", job=None, **changes)


def held_by(path: Path, holder: Holder, age: float = 0.0) -> None:
    path.write_text(json.dumps(asdict(holder)))
    now = server_time(path.parent)
    os.utime(path, (now - age, now - age))


def test_it_is_held_until_it_is_released(tmp_path: Path):
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    first.acquire()
    with pytest.raises(Held, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    first.release()  # not its own any more
    with pytest.raises(Held):
        first.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_gets_it(tmp_path: Path):
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    first.acquire()
    threading.Timer(0.3, first.release).start()
    second.acquire(wait=60)
    assert look(second.path).holder == second.holder


RACE = """
import sys, time
from pathlib import Path
from ilo_lightning.sweeps.lease import Held, Lease
folder, me = Path(sys.argv[1]), sys.argv[2]
done = 0
while done < 5:
    lease = Lease(folder / "lease")
    try:
        lease.acquire(wait=60)
    except Held:
        continue
    (folder / "inside").mkdir()   # fails if anybody else is
    time.sleep(0.002)
    (folder / "inside").rmdir()
    done += 1
    if done < 5 or me != "0":
        lease.release()           # process 0 dies with it
"""


def test_processes_that_race_are_inside_one_at_a_time(tmp_path: Path):
    """And one that dies inside is succeeded by exactly one other."""
    workers = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), str(i)]) for i in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4


def test_a_killed_process_holds_nothing(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from ilo_lightning.sweeps.lease import Lease\n"
    code += "Lease(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(600)"
    path = tmp_path / "lease"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(Held):
            Lease(path).acquire()
        process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
        Lease(path).acquire()  # though the parent hasn't looked after its zombie yet


def test_a_process_number_that_is_used_again_holds_nothing(tmp_path: Path):
    path = tmp_path / "lease"
    held_by(path, replace(Holder.here(), started="1"))
    lease = Lease(path)
    lease.acquire()
    assert json.loads(path.read_text())["started"] == lease.holder.started != "1"


@pytest.mark.parametrize(("age", "alive"), [(0, True), (STALE - 5, True), (STALE + 5, False), (-3600, True)])
def test_on_another_machine_signs_of_life_count(age: float, alive: bool, tmp_path: Path):
    path = tmp_path / "lease"
    held_by(path, elsewhere(), age)
    if alive:
        with pytest.raises(Held, match="node17"):
            Lease(path).acquire()
    else:
        Lease(path).acquire()


def test_a_clock_that_is_wrong_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ages are differences of time stamps that the file server gave."""
    path = tmp_path / "lease"
    held_by(path, elsewhere(), age=30)
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    assert look(path).age == pytest.approx(30, abs=2)
    with pytest.raises(Held):
        Lease(path).acquire()


@pytest.mark.parametrize(
    ("answer", "alive"), [(["RUNNING"], True), (["COMPLETING"], True), (["PENDING"], False), (["FAILED"], False)]
)
def test_slurm_is_asked_about_a_job(answer: list[str], alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slurm, "states", lambda jobs: answer if list(jobs) == ["4711_3"] else None)
    path = tmp_path / "lease"
    held_by(path, replace(elsewhere(), job="4711_3"), age=1)
    assert is_alive(look(path)) == alive


@pytest.mark.parametrize("answer", [None, []])
def test_where_slurm_doesn_t_know_signs_of_life_count(
    answer: list | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "states", lambda jobs: answer)
    path = tmp_path / "lease"
    for age, alive in ((1, True), (STALE + 5, False)):
        held_by(path, replace(elsewhere(), job="4711"), age)
        assert is_alive(look(path)) == alive


def test_a_requeued_job_succeeds_itself_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(slurm, "states", lambda jobs: ["RUNNING"])
    path = tmp_path / "lease"
    held_by(path, replace(elsewhere(), job="4711", restarts=0), age=1)
    with pytest.raises(Held):
        Lease(path).acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Lease(path).acquire()


def test_a_full_disk_leaves_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty one would be somebody's, for five minutes."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Lease(tmp_path / "lease").acquire()
    assert not (tmp_path / "lease").exists()
    Lease(tmp_path / "lease").acquire()


def test_a_lease_that_is_half_written_is_held(tmp_path: Path):
    path = tmp_path / "lease"
    path.write_text('{"host": "no')
    with pytest.raises(Held, match="somebody"):
        Lease(path).acquire()
    os.utime(path, (1, 1))
    Lease(path).acquire()


@pytest.mark.parametrize("how", ["taken", "removed", "folder removed"])
def test_who_lost_it_is_told(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    folder = tmp_path / "run"
    folder.mkdir()
    lease, lost = Lease(folder / "lease"), threading.Event()
    lease.acquire()
    with lease.kept(lost.set):
        assert not lost.wait(0.1)
        lease.path.unlink()
        if how == "taken":
            held_by(lease.path, elsewhere())
        elif how == "folder removed":
            folder.rmdir()
        assert lost.wait(60)
    assert lease.path.exists() == (how == "taken")  # it is not the loser's to release


def test_signs_of_life_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    lease = Lease(tmp_path / "lease")
    lease.acquire()
    with lease.kept(lambda: None):
        os.utime(lease.path, (1, 1))
        while lease.path.stat().st_mtime < 2:
            time.sleep(0.01)
    assert not lease.path.exists()
