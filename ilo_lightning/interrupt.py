"""Signals that ask a run to stop: remembered by the handler, acted upon between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop by ``signum``; what it had is saved."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def check(self) -> None:
        """Raise ``Interrupted`` if so."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM in a ``StopRequest``. A second signal takes the previous handler's way out."""
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
