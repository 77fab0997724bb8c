"""The compiled kernels: built once into torch's extension cache, loaded into the process.

A build is named by a hash of its sources and of what it is built for, appears under its name whole or not at all, and
is made by one process at a time, under a lock that the operating system lets go of when its holder dies. So any number
of processes may start at once, and any of them may be killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import exclusive
from . import toolchain
from .toolchain import Unavailable

PATIENCE_SECONDS = 900  # for another process's build; then something is wrong with it

_loaded: dict[str, Path] = {}
_refused: dict[str, str] = {}
_loading = threading.RLock()


def cache_folder() -> Path:
    """$TORCH_EXTENSIONS_DIR, else where torch itself keeps extensions; ours in a folder of their own."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named:
        return Path(named) / "ilo_lightning"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "torch_extensions" / "ilo_lightning"


def library(kind: str) -> Path:
    """Where the library of this version of the sources is, or would be."""
    return cache_folder() / f"{kind}-{toolchain.key(kind)}" / f"ilo_{kind}.so"


def build(kind: str, force: bool = False) -> Path:
    """The library, compiled if it isn't there yet; one line on standard error says so.

    Args:
        kind: ``cpu`` or ``cuda``.
        force: compile even if it is there.

    Raises:
        Unavailable: with the reason, if it can't be compiled.
    """
    target = library(kind)
    if target.exists() and not force:
        return target
    rules = toolchain.ninja_file(kind, target.name)
    began = time.time()
    try:
        with exclusive(target.parent / ".lock", patience=PATIENCE_SECONDS):
            # while this process waited, the one that held the lock may have done the work
            if not target.exists() or (force and target.stat().st_mtime < began):
                _compile(kind, target, rules)
    except BlockingIOError:
        raise Unavailable(f"another process holds {target.parent / '.lock'} since {PATIENCE_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"{target.parent}: can't be written ({error}); set TORCH_EXTENSIONS_DIR") from None
    return target


def _compile(kind: str, target: Path, rules: str) -> None:
    """Under the lock: compile aside, then rename."""
    for left in target.parent.glob("building-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix="building-"))
    try:
        (folder / "build.ninja").write_text(rules)
        print(f"ilo: compiling the {kind} kernels, once, into {target.parent}", file=sys.stderr, flush=True)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS", "").isdigit() else []
        done = subprocess.run(
            [toolchain.ninja(), "-C", folder, *jobs], capture_output=True, text=True, errors="replace"
        )
        log = done.stdout + done.stderr
        if done.returncode != 0:
            (target.parent / "build.log").write_text(log)
            lines = [line.strip() for line in log.splitlines()]
            first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
            raise Unavailable(f"compiling failed: {first} (more in {target.parent / 'build.log'})")
        with open(folder / target.name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(kind: str, may_build: bool) -> str | None:
    """Load the library into this process, once. It is compiled first if it isn't there and ``may_build``.

    Returns:
        None when it is loaded, else the reason why it isn't. A reason other than not being built yet is kept for the
        life of the process.
    """
    if kind in _loaded:
        return None
    with _loading:
        if kind in _loaded:
            return None
        if kind not in _refused:
            try:
                if kind == "cuda" and not torch.cuda.is_available():
                    raise Unavailable("no CUDA device")
                path = library(kind)
                if not path.exists():
                    if not may_build:
                        return NOT_BUILT
                    build(kind)
                torch.ops.load_library(str(path))
                _loaded[kind] = path
                return None
            except Unavailable as reason:
                _refused[kind] = str(reason)
            except OSError as error:  # made for another system
                _refused[kind] = f"{library(kind)} can't be loaded ({error}); try `ilo build-ops --force`"
        return _refused[kind]


NOT_BUILT = "not compiled yet: `ilo build-ops` does it"


def loaded() -> list[str]:
    """The kinds of kernels in this process."""
    return sorted(_loaded)


@dataclass(frozen=True)
class Status:
    """Whether a kind of kernels can be used, and why, or why not."""

    usable: bool
    reason: str


def status(kind: str) -> Status:
    """What `load` would find, without compiling or loading anything."""
    if kind in _loaded:
        return Status(True, f"loaded from {_loaded[kind]}")
    if kind in _refused:
        return Status(False, _refused[kind])
    try:
        if kind == "cuda" and not torch.cuda.is_available():
            raise Unavailable("no CUDA device" if torch.version.cuda else "this PyTorch is built without CUDA")
        path = library(kind)
        if path.exists():
            return Status(True, f"compiled: {path}")
        toolchain.ninja_file(kind, path.name)
        toolchain.ninja()
    except Unavailable as reason:
        return Status(False, str(reason))
    return Status(False, NOT_BUILT)
