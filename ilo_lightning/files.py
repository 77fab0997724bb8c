"""Files appear under their final name whole, or not at all."""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import importlib.resources
import os
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE_PREFIX = "pkg://"


class WriteError(OSError):
    """A file that can't be written, by ``write_atomically`` or ``pack``; whoever raises another OSError was reading."""


def locate(path: str | Path) -> Path:
    """A path as users write it: ``pkg://package/file`` is a file inside an installed package, ``~`` the home folder."""
    text = str(path)
    if text.startswith(PACKAGE_PREFIX):
        package, _, name = text.removeprefix(PACKAGE_PREFIX).partition("/")
        return Path(str(importlib.resources.files(package).joinpath(name)))
    return Path(text).expanduser()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise WriteError(f"{path}: {error}") from error
        raise WriteError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write next to ``path``, fsync, then rename onto it. A crash at any moment leaves the old file or the new one.

    Raises:
        WriteError: naming the path.
    """
    path = Path(path)
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with _writing(path):
        _write(path, data)


def _write(path: Path, data: bytes) -> None:
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


def pack(source: Path, path: Path) -> None:
    """Write all files below ``source`` into one zip file, not compressed (pictures are already). Atomic.

    Raises:
        WriteError: naming the path.
    """
    with _writing(path):
        _pack(source, path)


def _pack(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for file in sorted(source.rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(source).as_posix())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_stored(run: Path, row: Mapping[str, Any], name: str) -> bytes:
    """A file of one image of a run, such as ``figure.png``, wherever it is: in the image's folder, or packed.

    Args:
        row: of the run's results.jsonl.

    Raises:
        FileNotFoundError: if it is in neither.
    """
    member = f"{row['folder']}/{name}"
    if (run / member).exists():
        return (run / member).read_bytes()
    path = run / "batches" / f"{row.get('batch') or 0:04d}.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FileNotFoundError(f"{path}: {error}") from error


@contextmanager
def unpacked(run: Path, pattern: str) -> Iterator[Path]:
    """The folder ``images`` of a run, or, where batches are packed, one for a while with all its files that match."""
    archives = sorted((run / "batches").glob("*.zip"))
    if not archives:
        yield run / "images"
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in archives:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if fnmatch.fnmatch(member.rpartition("/")[2], pattern):
                        archive.extract(member, folder)
        for file in (run / "images").glob(f"*/{pattern}"):  # of batches that are not packed
            target = Path(folder, "images", file.parent.name, file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.absolute())
        yield Path(folder) / "images"


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


def place(value: Any) -> str | None:
    """The absolute path that a value of a configuration names, if it names one."""
    if not isinstance(value, str) or not value or "\n" in value or len(value) > 4096:
        return None
    try:
        path = os.path.abspath(locate(value))
    except (ValueError, ModuleNotFoundError, RuntimeError):
        return None
    return path if os.path.exists(path) or (os.sep in value and glob.has_magic(value)) else None
