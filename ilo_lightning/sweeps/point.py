"""Work on a configuration point, or on a shard of it, alone, and say in its folder what becomes of it.

FOLDER/status.json     see ``status``
FOLDER/.lease          while somebody works in it (.lease-2-of-4 on a shard), see ``lease``
"""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import exit_codes, slurm
from ..errors import titled
from ..interrupt import Interrupted, StopRequest, Taken
from . import status as statuses
from .lease import HEARTBEAT, STALE, Held, Holder, Lease
from .shard import Shard
from .status import DONE, FAILED, INTERRUPTED

SKEW = 60.0
"""Seconds between the clocks of a machine and of its file server that are worth a warning."""


class Busy(RuntimeError):
    """Another process works in this folder, on some of the same batches."""


class Work:
    """What the worker tells about its end: ``error`` for the status, and how many images are done and failed."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.images: Mapping[str, int] | None = None


@contextmanager
def working(
    folder: Path,
    shard: Shard,
    enter: Callable[[bool], None],
    stop: StopRequest,
    inputs: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[Work]:
    """Hold the shard of a point; its status is kept.

    Args:
        enter: called first, while no other process enters this folder, with whether others work in it.
        stop: asked to stop if the work is taken over by somebody else.
        inputs, overrides: for the status.

    Raises:
        Busy: if another process works on a shard that overlaps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease, entrance = Lease(folder / f".lease{shard.suffix}"), Lease(folder / ".entrance")
    try:
        entrance.acquire(wait=STALE + HEARTBEAT)
        try:
            others = statuses.workers(folder)
            for other, held in others:
                if other.overlaps(shard):
                    raise held
            enter(bool(others))
            lease.acquire()
        finally:
            entrance.release()
    except Held as held:
        raise Busy(str(held)) from None
    _check_clock(lease.path)
    earlier = [status.attempt for status in statuses.read(folder) if status.shard == str(shard)]
    status = statuses.begin(lease.holder, shard, overrides, inputs, max(earlier, default=0) + 1)
    statuses.write(folder, status)
    work = Work()
    with lease.kept(stop.lose):
        try:
            yield work
        except Taken:
            raise
        except Interrupted as error:
            statuses.write(folder, status.end(INTERRUPTED, error.exit_code, str(error)))
            raise
        except (KeyboardInterrupt, SystemExit):
            statuses.write(folder, status.end(INTERRUPTED, 128 + (stop.signum or 2), "interrupted"))
            raise
        except BaseException as error:
            trace = "".join(traceback.format_exception(error))
            code = exit_codes.SOME_FAILED if isinstance(error, OSError) else exit_codes.CRASHED
            statuses.write(folder, status.end(FAILED, code, titled(error), traceback=trace))
            raise
        state, code = (DONE, exit_codes.DONE) if work.error is None else (FAILED, exit_codes.SOME_FAILED)
        statuses.write(folder, status.end(state, code, work.error, images=work.images))
        statuses.unite(folder, shard)


def refused(folder: Path, shard: Shard, error: str, overrides: Sequence[str], exit_code: int) -> None:
    """Record that a point could not be begun. A folder with a run in it keeps its status."""
    if not (folder / "run.json").exists() and not statuses.workers(folder):
        status = statuses.begin(Holder.here(), shard, overrides)
        statuses.write(folder, status.end(FAILED, exit_code, error))


def force_word(force: object) -> str | None:
    """``force=true`` as a word that a requeued job has again: what was begun with a word is not begun anew by it. None
    for ``force=false``.

    Raises:
        ValueError: for anything else but such a word.
    """
    if force is None or force is False:
        return None
    if isinstance(force, str) and re.fullmatch(r"(call|job) \d+", force):
        return force
    if force is not True:
        raise ValueError(f"force={force}: expected true or false")
    return f"job {slurm.job_id()}" if slurm.job_id() else f"{time.time_ns()}"


def _check_clock(path: Path) -> None:
    ahead = path.stat().st_mtime - time.time()
    if abs(ahead) > SKEW:
        warnings.warn(
            f"clock skew: the file server's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this "
            "machine's; times in status.json and results.jsonl are this machine's, nothing else depends on them",
            stacklevel=2,
        )
