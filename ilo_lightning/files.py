"""Files appear under their final name whole, or not at all."""

from __future__ import annotations

import fcntl
import importlib.resources
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE_PREFIX = "pkg://"


def locate(path: str | Path) -> Path:
    """A path as users write it: ``pkg://package/file`` is a file inside an installed package, ``~`` the home folder."""
    text = str(path)
    if text.startswith(PACKAGE_PREFIX):
        package, _, name = text.removeprefix(PACKAGE_PREFIX).partition("/")
        return Path(str(importlib.resources.files(package).joinpath(name)))
    return Path(text).expanduser()


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write next to ``path``, fsync, then rename onto it. A crash at any moment leaves the old file or the new one."""
    path = Path(path)
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private; results are shared like any other file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(path: str | Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``; the operating system lets go of it when the process ends, however it ends.

    Args:
        patience: seconds to wait for another process that holds it.

    Raises:
        BlockingIOError: if another process holds it still.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)  # rather than a blocking call, which would not see Ctrl-C
        yield
