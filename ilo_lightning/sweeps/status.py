"""What became of a point: ``status.json`` in its folder, and ``status-2-of-4.json`` while it is done in shards."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import write_atomically
from .lease import Held, Holder, is_alive, look
from .shard import Shard

RUNNING, DONE, FAILED, INTERRUPTED, MISSING = "running", "done", "failed", "interrupted", "missing"
STATES = (DONE, RUNNING, FAILED, MISSING)
"""Of a point, where a status has INTERRUPTED instead of MISSING."""
RESULTS = "results.jsonl"
"""A point's file of all its rows, once every batch was worked on."""


@dataclass(frozen=True)
class Status:
    """Of a point, or of one shard of it.

    Args:
        state: running, done, failed (``error`` says why) or interrupted (the same command goes on).
        exit_code: of the command, as in ``main``; None while it runs.
        images: how many are done, and how many failed.
        attempt: how many times it was begun.
        inputs: every file and folder that the configuration names, with its stamp (see ``inputs``).
        overrides: of the command line.
    """

    state: str
    error: str | None = None
    traceback: str | None = None
    exit_code: int | None = None
    shard: str = "1/1"
    images: Mapping[str, int] | None = None
    attempt: int = 1
    host: str | None = None
    pid: int | None = None
    job: str | None = None
    gpus: str | None = None
    started: str | None = None
    ended: str | None = None
    version: str = __version__
    inputs: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()

    def end(self, state: str, exit_code: int, error: str | None = None, **more: Any) -> Status:
        """The same, over."""
        return replace(self, state=state, exit_code=exit_code, error=error, ended=_now(), **more)


def begin(
    holder: Holder,
    shard: Shard,
    overrides: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    attempt: int = 1,
) -> Status:
    """The status of work that begins now."""
    return Status(
        RUNNING,
        shard=str(shard),
        attempt=attempt,
        host=holder.host,
        pid=holder.pid,
        job=holder.job,
        gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        started=_now(),
        inputs=dict(inputs or {}),
        overrides=list(overrides),
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write(folder: Path, status: Status) -> None:
    """Where that fails (a full disk), warn: results don't depend on it."""
    path = folder / f"status{Shard.parse(status.shard).suffix}.json"
    try:
        write_atomically(path, json.dumps(asdict(status), indent=1) + "\n")
    except OSError as error:
        warnings.warn(f"{path}: can't be written ({error}); going on", stacklevel=2)


def read(folder: Path, damaged: list[str] | None = None) -> list[Status]:
    """Of a point and its shards; what can't be read is left out, and its name added to ``damaged``."""
    found = []
    try:
        names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"status(-\d+-of-\d+)?\.json", name))
    except OSError:
        return []
    for name in names:
        try:
            found.append(_parse((folder / name).read_text()))
        except (OSError, ValueError):
            if damaged is not None:
                damaged.append(name)
    return found


_WORDS = ("error", "traceback", "host", "job", "gpus", "started", "ended")


def _parse(text: str) -> Status:
    """Raises ValueError for what is no status, or not all of one."""
    entries, known = json.loads(text), {entry.name for entry in fields(Status)}
    if not isinstance(entries, dict) or entries.get("state") not in (RUNNING, DONE, FAILED, INTERRUPTED):
        raise ValueError("no status")
    status = Status(**{key: value for key, value in entries.items() if key in known})
    Shard.parse(status.shard)
    images, stamps = status.images or {}, status.inputs
    kinds = ((status.shard, str), (status.version, str), (status.attempt, int), (status.overrides, list | tuple))
    kinds += ((status.exit_code, int | None), (images, dict), (stamps, dict))
    kinds += tuple((getattr(status, name), str | None) for name in _WORDS)
    whole = all(isinstance(value, kind) for value, kind in kinds)
    whole = whole and all(isinstance(count, int) for count in images.values())
    if not whole or not all(isinstance(stamp, str) for stamp in stamps.values()):
        raise ValueError("not all of a status")
    return status


def unite(folder: Path, shard: Shard) -> None:
    """One status for the whole point, once every shard of it is done and its results are there."""
    statuses = read(folder)
    mine = [status for status in statuses if status.shard == str(shard)]
    if not mine or mine[0].state != DONE or not (folder / RESULTS).is_file():
        return
    if shard.count > 1:
        siblings = [status for status in statuses if Shard.parse(status.shard).count == shard.count]
        if any(status.state != DONE for status in siblings):
            return
        images = {
            key: sum((status.images or {}).get(key, 0) for status in siblings)
            for key in sorted({key for status in siblings for key in status.images or {}})
        }
        write(folder, replace(mine[0], shard=str(Shard()), images=images))
    for suffix in {Shard.parse(status.shard).suffix for status in statuses} - {""}:
        (folder / f"status{suffix}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Finding:
    """What a point's folder says: its state (running, done, failed or missing), and what is to be said about that."""

    state: str
    note: str | None
    statuses: Sequence[Status]


def find(folder: Path, shard: Shard | None = None, ahead: float | None = None) -> Finding:
    """The state of a point, or of one shard of it.

    Args:
        ahead: of the file server's clock, where known (see ``lease.look``).
    """
    damaged: list[str] = []
    statuses = read(folder, damaged)
    finished = (folder / RESULTS).is_file()
    if shard is not None and shard.count > 1:
        own = [status for status in statuses if status.shard == str(shard)]
        whole = [status for status in statuses if status.shard == str(Shard())]
        statuses = own or whole
        finished = finished or bool(own)
    running = [status for status in statuses if status.state == RUNNING]
    for status in running:
        held = look(folder / f".lease{Shard.parse(status.shard).suffix}", ahead)
        if held is not None and is_alive(held, ask=ahead is None):
            job = f", job {status.job}" if status.job else ""
            return Finding(RUNNING, f"on {status.host}{job}, since {status.started}", statuses)
    failed = [status for status in statuses if status.state == FAILED]
    if failed:
        return Finding(FAILED, failed[0].error, statuses)
    if finished and all(status.state == DONE for status in statuses):
        return Finding(DONE, None, statuses)
    stopped = [status for status in statuses if status.state == INTERRUPTED]
    if running:
        note = f"its process on {running[0].host} was killed"
    elif stopped:
        note = stopped[0].error
    elif statuses and Shard.parse(statuses[0].shard).count > 1:
        note = f"{len(statuses)} of {Shard.parse(statuses[0].shard).count} shards done"
    elif damaged:
        note = f"its {damaged[0]} is damaged; the same command goes on from its files"
    else:
        note = "its results are gone" if statuses else None
    return Finding(MISSING, note, statuses)


def workers(folder: Path, ahead: float | None = None) -> list[tuple[Shard, Held]]:
    """Who works in a folder, on which shard."""
    found = []
    for path in folder.glob(".lease*"):
        match = re.fullmatch(r"\.lease(?:-(\d+)-of-(\d+))?", path.name)
        held = look(path, ahead) if match else None
        if match and held and is_alive(held):
            found.append((Shard(int(match[1]), int(match[2])) if match[1] else Shard(), held))
    return found
