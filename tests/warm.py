"""The real ``ilo`` in real processes, without importing PyTorch anew for each of them.

A server process imports everything once, starts no thread, and forks for every command. The child runs the entry point
to the interpreter's own end: its exit code, signals, standard output and errors are those of ``ilo`` on a terminal.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULES = (
    "ilo_lightning.job",
    "ilo_lightning.measuring",
    "ilo_lightning.scoring",
    "ilo_lightning.checks.generators",
    "ilo_lightning.checks.operators",
    "ilo_lightning.generators.dcgan",
    "ilo_lightning.generators.mnist_vae",
    "ilo_lightning.refusal",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.optim.lr_scheduler",
)


class WarmProcess:
    """One command that was started.

    Args:
        pid: of its process.
    """

    def __init__(self, server: subprocess.Popen[str], pid: int, folder: Path):
        self._server, self.pid, self._folder = server, pid, folder

    def kill(self, signum: int) -> None:
        """Send it a signal; none is hit if it has ended, for its number is taken until ``wait``."""
        os.kill(self.pid, signum)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end. A negative return code is the signal that killed it."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write("wait\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        out, err = ((self._folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return subprocess.CompletedProcess([str(self.pid)], os.waitstatus_to_exitcode(status), out, err)


class WarmCommand:
    """Starts commands, one at a time. A context manager: the server ends with it."""

    def __enter__(self) -> WarmCommand:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._count = 0
        # PYTHONUNBUFFERED: what a killed process has said is in its file.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *args: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._folder.cleanup()

    def start(self, *arguments: str | Path, cwd: Path, **how: Any) -> WarmProcess:
        """Start ``ilo ARGUMENTS`` in the folder ``cwd``.

        Args:
            environment: variables to set.
            address_space: bytes that the process may map beyond what it has mapped when it begins (``RLIMIT_AS``).
            stdout: a file to write standard output to, or ``"|"`` for a pipe that nobody reads from.
            die_at: kill itself by SIGKILL instead of calling ``os.fsync`` or ``os.replace`` for the n-th time (from 1).
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        request = {"arguments": [str(word) for word in arguments], "cwd": str(cwd), "folder": str(folder), **how}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return WarmProcess(self._server, int(self._server.stdout.readline()), folder)

    def run(self, *arguments: str | Path, cwd: Path, **how: Any) -> subprocess.CompletedProcess[str]:
        """Start a command and wait for its end."""
        return self.start(*arguments, cwd=cwd, **how).wait()


def serve() -> Mapping[str, Any]:
    """Fork for every line of standard input; returns in the children only."""
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        print(pid, flush=True)
        sys.stdin.readline()  # "wait"
        print(os.waitpid(pid, 0)[1], flush=True)
    sys.exit(0)


def become(request: Mapping[str, Any]) -> None:
    """Make this process look as if ``ilo`` had just been started."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    out, err = (os.open(f"{request['folder']}/{name}", flags) for name in ("out", "err"))
    if request.get("stdout") == "|":
        reader, out = os.pipe()
        os.close(reader)
    elif "stdout" in request:
        out = os.open(request["stdout"], os.O_WRONLY)
    for descriptor, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(descriptor, target)
    os.chdir(request["cwd"])
    os.environ.update(request.get("environment", {}))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell started with &
    sys.argv = ["ilo", *request["arguments"]]
    if "address_space" in request:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + request["address_space"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if "die_at" in request:
        _die_at(request["die_at"])


def _die_at(count: int) -> None:
    left = count

    def deadly(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)


if __name__ == "__main__":
    from importlib import import_module

    for module in MODULES:
        import_module(module)
    sys.path.pop(0)  # the folder of this file
    become(serve())
    import ilo_lightning.cli

    ilo_lightning.cli.main()
