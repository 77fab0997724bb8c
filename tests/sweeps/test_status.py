"""What a point's folder says about it."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from ilo_lightning.interrupt import Interrupted, StopRequest, Taken
from ilo_lightning.sweeps import lease, point, status
from ilo_lightning.sweeps.lease import Holder, Lease
from ilo_lightning.sweeps.point import Busy, force_word, refused, working
from ilo_lightning.sweeps.shard import Shard
from ilo_lightning.sweeps.status import DONE, FAILED, MISSING, RUNNING, begin, find


def work(folder: Path, shard: str = "1/1", end: BaseException | str | None = None, results: bool = True) -> None:
    """What a worker does: ends well, or with a failed image, or in an exception."""
    with working(folder, Shard.parse(shard), lambda others: None, StopRequest(), overrides=["seed=0"]) as done:
        if isinstance(end, BaseException):
            raise end
        done.error, done.images = end, {"done": 2, "failed": int(end is not None)}
        if results:
            (folder / "results.jsonl").touch()


def test_a_point_nobody_began_is_missing(tmp_path: Path):
    assert find(tmp_path).state == find(tmp_path / "nowhere").state == MISSING


def test_a_point_that_is_done(tmp_path: Path):
    work(tmp_path)
    found = find(tmp_path)
    assert found.state == DONE and found.statuses[0].images == {"done": 2, "failed": 0}
    assert sorted(os.listdir(tmp_path)) == ["results.jsonl", "status.json"]


@pytest.mark.parametrize(
    ("end", "state", "note", "code"),
    [
        ("1 of 3 images: broken", FAILED, "1 of 3 images: broken", 3),
        (RuntimeError("out of memory\nmore"), FAILED, "RuntimeError: out of memory", 1),
        (OSError("No space left"), FAILED, "OSError: No space left", 3),
        (Interrupted(15), MISSING, "interrupted by SIGTERM", 143),
        (KeyboardInterrupt(), MISSING, "interrupted", 130),
    ],
    ids=str,
)
def test_how_work_ends(end, state: str, note: str, code: int, tmp_path: Path):
    with nullcontext() if isinstance(end, str) else pytest.raises(type(end)):
        work(tmp_path, end=end)
    found = find(tmp_path)
    assert (found.state, found.note, found.statuses[0].exit_code) == (state, note, code)
    assert not (tmp_path / ".lease").exists()
    assert ("RuntimeError" in (found.statuses[0].traceback or "")) == isinstance(end, RuntimeError)
    work(tmp_path)
    assert find(tmp_path).state == DONE and find(tmp_path).statuses[0].attempt == 2


def test_who_lost_the_work_says_nothing(tmp_path: Path):
    with pytest.raises(Taken):
        work(tmp_path, end=Taken())
    assert json.loads((tmp_path / "status.json").read_text())["state"] == RUNNING


def test_running_is_who_holds_the_lease(tmp_path: Path):
    """A killed process leaves "running" behind."""
    holder = Holder.here()
    status.write(tmp_path, begin(holder, Shard()))
    assert find(tmp_path).state == MISSING and "was killed" in str(find(tmp_path).note)
    held = Lease(tmp_path / ".lease")
    held.acquire()
    assert find(tmp_path).state == find(tmp_path, ahead=0.0).state == RUNNING
    held.release()


def test_done_needs_the_results(tmp_path: Path):
    work(tmp_path)
    (tmp_path / "results.jsonl").unlink()
    assert find(tmp_path).state == MISSING and find(tmp_path).note == "its results are gone"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"state": "finished"}',
        '{"state": "done", "shard": "x"}',
        '{"state": "done", "shard": "3/2"}',
        '{"state": "done", "shard": null}',
        '{"state": "done", "attempt": "2"}',
        '{"state": "done", "images": 3}',
        '{"state": "done", "images": {"done": "2"}}',
        '{"state": "done", "inputs": []}',
        '{"state": "done", "inputs": {"/a": 1}}',
        '{"state": "done", "version": null}',
        '{"state": "failed", "error": 7}',
        '{"state": "failed", "exit_code": "x"}',
    ],
)
def test_a_damaged_status_is_none(text: str, tmp_path: Path):
    """Nobody stumbles over it, and it says so."""
    work(tmp_path)
    (tmp_path / "status.json").write_text(text)
    (tmp_path / "results.jsonl").unlink()
    assert find(tmp_path).state == MISSING and "its status.json is damaged" in str(find(tmp_path).note)
    assert find(tmp_path, Shard(1, 2)).state == MISSING
    work(tmp_path)
    assert find(tmp_path).state == DONE and find(tmp_path).statuses[0].attempt == 1


def test_every_status_that_was_written_is_read(tmp_path: Path):
    for number, state in enumerate((RUNNING, DONE, FAILED, status.INTERRUPTED), 1):
        said = begin(Holder.here(), Shard(number, 4), ["seed=0"], {"/a": "b"}, number)
        if state != RUNNING:
            said = said.end(state, 3, "broken", traceback="long", images={"done": 1, "failed": 1})
        status.write(tmp_path, said)
        assert said in status.read(tmp_path)
    assert len(status.read(tmp_path)) == 4


def test_shards_become_one_status(tmp_path: Path):
    for index in (1, 3):
        work(tmp_path, f"{index}/3", results=False)
    assert find(tmp_path).state == MISSING and find(tmp_path).note == "2 of 3 shards done"
    assert find(tmp_path, Shard(1, 3)).state == DONE and find(tmp_path, Shard(2, 3)).state == MISSING
    with pytest.raises(RuntimeError):
        work(tmp_path, "2/3", RuntimeError("bad"))
    assert find(tmp_path).state == find(tmp_path, Shard(2, 3)).state == FAILED
    assert find(tmp_path, Shard(1, 3)).state == DONE
    work(tmp_path, "2/3")
    found = find(tmp_path)
    assert found.state == find(tmp_path, Shard(2, 3)).state == DONE
    assert [entry.images for entry in found.statuses] == [{"done": 6, "failed": 0}]
    assert sorted(os.listdir(tmp_path)) == ["results.jsonl", "status.json"]


def test_what_was_begun_whole_may_be_done_in_shards(tmp_path: Path):
    with pytest.raises(Interrupted):
        work(tmp_path, end=Interrupted(15))
    work(tmp_path, "1/2", results=False)
    work(tmp_path, "2/2")
    assert find(tmp_path).state == DONE


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ("1/1", "1/1", True),
        ("1/2", "1/2", True),
        ("1/2", "2/2", False),
        ("1/2", "1/1", True),
        ("1/2", "3/4", True),
        ("1/2", "2/4", False),
    ],
)
def test_only_disjoint_shards_are_worked_on_together(first: str, second: str, meet: bool, tmp_path: Path):
    with working(tmp_path, Shard.parse(first), lambda others: None, StopRequest()):
        seen: list[bool] = []
        if meet:
            with (
                pytest.raises(Busy, match=f"process {os.getpid()}"),
                working(tmp_path, Shard.parse(second), seen.append, StopRequest()),
            ):
                pass
            assert seen == []
        else:
            with working(tmp_path, Shard.parse(second), seen.append, StopRequest()):
                assert seen == [True]


def test_a_refusal_at_the_entrance_leaves_no_trace(tmp_path: Path):
    def refuse(others: bool) -> None:
        raise ValueError("another run")

    with pytest.raises(ValueError, match="another run"), working(tmp_path, Shard(), refuse, StopRequest()):
        pass
    assert os.listdir(tmp_path) == []


def test_a_refusal_is_recorded_where_there_is_no_run(tmp_path: Path):
    refused(tmp_path, Shard(), "method.radius=-1: expected …", ["method.radius=-1"], 2)
    assert find(tmp_path).state == FAILED and find(tmp_path).statuses[0].exit_code == 2
    work(tmp_path)
    (tmp_path / "run.json").touch()
    refused(tmp_path, Shard(), "holds another run", [], 2)
    assert find(tmp_path).state == DONE


def test_a_skewed_clock_is_worth_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = time.time()
    monkeypatch.setattr(point.time, "time", lambda: now - 300)
    with pytest.warns(UserWarning, match=r"clock skew: the file server's clock is 30\d s ahead of this machine's"):
        work(tmp_path)
    assert find(tmp_path).state == DONE


def test_a_status_that_can_t_be_written_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status, "write_atomically", full)
    with pytest.warns(UserWarning, match="No space left on device.*going on"):
        work(tmp_path)


def test_the_word_of_a_forced_job(monkeypatch: pytest.MonkeyPatch):
    """A job that is requeued is the same call; another call is not."""
    assert force_word(False) is force_word(None) is None
    assert force_word("call 7") == "call 7"
    for wrong in ("no", "0", 0, 1, "call"):
        with pytest.raises(ValueError, match=f"force={wrong}: expected true or false"):
            force_word(wrong)
    assert force_word(True) != force_word(True)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert force_word(True) == force_word(True) == "job 4711"


def test_an_old_worker_on_another_host_is_presumed_dead(tmp_path: Path):
    """``ilo status`` and the next worker agree."""
    holder = replace(Holder.here(), machine="elsewhere", job=None)
    status.write(tmp_path, begin(holder, Shard()))
    held = Lease(tmp_path / ".lease", holder)
    held.acquire()
    assert find(tmp_path).state == RUNNING
    old = time.time() - lease.STALE - 60
    os.utime(held.path, (old, old))
    assert find(tmp_path).state == find(tmp_path, ahead=0.0).state == MISSING
    work(tmp_path)
    assert find(tmp_path).state == DONE
