"""One worker at a time, across machines that share nothing but a folder.

A lease is a small file that says who holds it and whose time stamp the holder renews every 30 seconds. It is created
with ``O_EXCL``, which is atomic on local file systems, NFS and Lustre. A holder that died is recognised at once on its
own machine (by its process) and under SLURM (by its job), elsewhere after five minutes without a sign of life. All time
stamps compared are the file server's, so that skewed clocks don't matter.

What can't be excluded: a holder that was frozen for five minutes, or cut off from the file server, wakes up to find its
lease taken. It notices within 30 seconds and stops. Nothing is lost then, since results are the same whoever computes
them, and appear whole; only up to 30 seconds of work are done twice.
"""

from __future__ import annotations

import functools
import json
import os
import random
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import slurm

HEARTBEAT = 30.0
STALE = 300.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Args:
        machine: where its process id means something: host, boot and process namespace.
        started: of the process, in clock ticks since the boot; None where the system doesn't tell.
        job: SLURM job, and how often it was requeued; None outside SLURM.
        token: unique to this holding.
    """

    host: str
    machine: str
    pid: int
    started: str | None
    job: str | None
    restarts: int
    token: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(
            socket.gethostname(), _machine(), pid, _started(pid), slurm.job_id(), slurm.restarts(), uuid.uuid4().hex
        )

    def __str__(self) -> str:
        job = f"job {self.job} on " if self.job else ""
        return f"{job}{self.host}, process {self.pid}"

    def is_alive(self, ask: bool = True) -> bool | None:
        """Whether it still works; None where nothing here can tell. ``ask``: SLURM too."""
        if self.machine == _machine():
            return _started(self.pid) == self.started if self.started else _exists(self.pid)
        if self.job is not None and self.job == slurm.job_id():
            return self.restarts == slurm.restarts()  # a requeued job's earlier processes are gone
        return slurm.is_running(self.job) if ask and self.job is not None else None


class Held(RuntimeError):
    """Somebody else holds the lease."""

    def __init__(self, path: Path, holder: Holder | None, age: float):
        super().__init__(f"{holder or 'somebody'} (last sign of life {max(age, 0):.0f} s ago)")
        self.path, self.holder, self.age = path, holder, age


class Lease:
    """The lease ``path``, held by this process between ``acquire`` and ``release``."""

    def __init__(self, path: Path, holder: Holder | None = None):
        self.path, self.holder = path, holder or Holder.here()

    def acquire(self, wait: float = 0.0) -> None:
        """Take it, from a dead holder too.

        Args:
            wait: for so many seconds, if somebody holds it.

        Raises:
            Held: if somebody still does.
        """
        deadline = time.monotonic() + wait
        while not self._create():
            held = look(self.path)
            if held is None:
                continue
            if is_alive(held):
                if time.monotonic() >= deadline:
                    raise held
                time.sleep(random.uniform(0.05, 0.15))
            else:
                self._remove(held.holder)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(asdict(self.holder)))
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk: an empty lease would be somebody's for five minutes
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _remove(self, dead: Holder | None) -> None:
        """Remove a dead holder's file, and no other: of several that found it dead, one at a time looks again."""
        mutex = self.path.with_name(f"{self.path.name}.removing")
        try:
            os.close(os.open(mutex, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            if _age(mutex) > STALE:
                mutex.unlink(missing_ok=True)
            time.sleep(random.uniform(0.01, 0.05))
            return
        try:
            if _read(self.path) == dead:
                self.path.unlink(missing_ok=True)
        finally:
            mutex.unlink(missing_ok=True)

    def renew(self) -> bool:
        """Give a sign of life. Returns whether the lease is still this process's."""
        try:
            if _parse(self.path.read_text()) != self.holder:
                return False
            os.utime(self.path)
        except FileNotFoundError:  # somebody removed it, or the whole folder
            return False
        except OSError:  # the file server is away, for the others too
            pass
        return True

    def release(self) -> None:
        """Give it back, if it is still this process's."""
        if _read(self.path) == self.holder:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def kept(self, lost: Callable[[], None]) -> Iterator[None]:
        """Renew the lease in the background, and release it in the end; ``lost`` is called once if it is taken."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT):
                if not self.renew():
                    lost()
                    return

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.release()


def look(path: Path, ahead: float | None = None) -> Held | None:
    """Who holds a lease, and since when without a sign of life; None if nobody does.

    Args:
        ahead: by how many seconds the file server's clock is ahead of this machine's, where that is known already.
    """
    holder = _read(path)
    try:
        return Held(path, holder, _age(path) if ahead is None else time.time() + ahead - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def is_alive(held: Held, ask: bool = True) -> bool:
    """Whether a holder still works, as far as can be told; ``ask``: SLURM too, even after a recent sign of life."""
    alive = held.holder.is_alive(ask or held.age > 2 * HEARTBEAT) if held.holder else None
    return held.age < STALE if alive is None else alive


def server_time(folder: Path) -> float:
    """Now, by the clock that stamps files in ``folder``: the file server's.

    Raises:
        OSError: if nothing can be written there.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now.", suffix=".part") as file:
        return os.stat(file.name).st_mtime


def clock_ahead(folder: Path) -> float | None:
    """By how many seconds the file server's clock is ahead of this machine's; None if nothing can be written there."""
    try:
        return server_time(folder) - time.time()
    except OSError:
        return None


def _age(path: Path) -> float:
    stamp = path.stat().st_mtime
    try:
        return server_time(path.parent) - stamp
    except OSError:  # nothing can be written there
        return time.time() - stamp


def _read(path: Path) -> Holder | None:
    try:
        return _parse(path.read_text())
    except OSError:
        return None


def _parse(text: str) -> Holder | None:
    """None for what is still being written."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


@functools.cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie holds nothing
    except (OSError, IndexError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
