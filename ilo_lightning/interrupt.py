"""Signals that ask a run to stop: remembered by the handler, acted upon between two steps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from . import slurm
from .exit_codes import REQUEUE, SOME_FAILED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # submitit asks by SIGUSR2


class Interrupted(Exception):
    """The run was asked to stop by ``signum``; what it had is saved."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class Taken(Interrupted):
    """Another process has taken over the work, since this one gave no sign of life for minutes."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)
        self.args = ("taken over by another process, after this one gave no sign of life for minutes",)
        self.exit_code = SOME_FAILED


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.preempted = False
        self._taken = False

    def lose(self) -> None:
        """Stop because the work is somebody else's now."""
        self._taken = True

    def check(self) -> None:
        """Raise ``Interrupted`` if so.

        SIGTERM in a SLURM job may mean preemption: who leaves then is not requeued unless it asks for that. Where SLURM
        can't be asked (inside a container) the run goes on until it is killed, and SLURM requeues it.
        """
        if self._taken:
            raise Taken
        job = slurm.job_id()
        if self.signum == signal.SIGTERM and job is not None:
            preempted = slurm.preempted(job)
            if preempted is None:
                self.signum = None
            self.preempted = bool(preempted)
        if self.signum is not None:
            raise Interrupted(self.signum)

    def pass_on(self, code: int) -> int:
        """When everything is saved: have the job requeued, by SLURM itself or by whoever listened to the signal before
        (submitit, whose handler counts the time limits, asks SLURM and exits).

        Args:
            code: the exit code so far.

        Returns:
            The exit code: ``REQUEUE`` where the handler counted, but has no ``scontrol`` to ask with.
        """
        job = slurm.job_id()
        if self.preempted and job is not None:
            slurm.requeue(job)
        elif self.signum == signal.SIGUSR2 and callable(signal.getsignal(signal.SIGUSR2)):
            try:
                signal.raise_signal(signal.SIGUSR2)
            except Exception as error:
                if isinstance(error, FileNotFoundError) and error.filename == "scontrol":  # inside a container
                    print(f"no scontrol here: exit code {REQUEUE} asks to be requeued", file=sys.stderr)
                    return REQUEUE
                # At its limit too often, say. The job ends by itself, so that submitit keeps what became of it.
                print(f"error: {error}", file=sys.stderr)
                return SOME_FAILED
        return code


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Note ``SIGNALS`` in a ``StopRequest``. A second signal takes the previous handler's way out."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {int(signum): signal.getsignal(signum) for signum in SIGNALS}

    def handler(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        signal.signal(signum, previous[signum])

    for signum in SIGNALS:
        signal.signal(signum, handler)
    try:
        yield request
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
