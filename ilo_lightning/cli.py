"""The console script ``ilo``: one subcommand per line of ``COMMANDS``, imported when it is called."""

from __future__ import annotations

import atexit
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from .exit_codes import REFUSED

# name: (module, its function from arguments to exit code, usage, what it does)
COMMANDS = {
    "solve": ("main", "solve", "[OVERRIDES]", "reconstruct images, as `python run.py` does; see `ilo solve --help`"),
    "measure": ("main", "measure", "[OVERRIDES]", "only measure images, to reconstruct them elsewhere from y alone"),
    "convert": ("converting", "main", "SRC DST.safetensors", "a StyleGAN2 of others (.pt, .pkl) as safetensors"),
    "score": ("scoring", "main", "RUN --truth PATH", "score the reconstructions of a run against their true pictures"),
    "build-ops": ("build_ops", "main", "[cpu] [cuda] [--force]", "compile the kernels ahead of their first use"),
    "doctor": ("doctor", "main", "", "what this machine has, what would be used, what is missing where"),
    "status": ("sweeps.overview", "main", "SWEEP_DIR", "what is done, running, failed or missing of a sweep"),
    "collect": ("report.command", "collect", "SWEEP_DIR...", "all results of sweeps, finished or not, in one table"),
    "report": ("report.command", "report", "SWEEP_DIR...", "tables, plots and an HTML page about sweeps"),
    "dashboard": ("dashboard", "main", "SWEEP [--dry-run]", "save a Weights & Biases workspace for a sweep"),
    "check-operator": ("checks.operators", "main", "_target_=… [k=v …]", "check the laws of an operator of your own"),
    "check-generator": ("checks.generators", "main", "_target_=… [k=v …]", "check the laws of a generator of your own"),
}


def usage() -> str:
    """What ``ilo --help`` prints."""
    lines = [f"  {f'{name} {usage}':36} {text}" for name, (_, _, usage, text) in COMMANDS.items()]
    lines += [f"  {'--version':36} print the version", f"  {'--help':36} print this"]
    return "\n".join(["usage: ilo COMMAND [ARGUMENTS]", "", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Dispatch to a subcommand and exit with its code; 130 after Ctrl-C, 141 where nobody reads what it prints."""
    _make_output_dependable()
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("interrupted by SIGINT", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `ilo check-operator … | head`
        sys.exit(141)  # as of a process that SIGPIPE ended
    finally:
        _flush()
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # nothing is left that Ctrl-C could stop


def _make_output_dependable() -> None:
    """File names needn't be printable, and a terminal needn't know ±: neither is a reason to lose a result."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the descriptor was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Whoever read standard output may be gone (`ilo solve | head`): say nothing about it at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> None:
    command = argv[0] if argv else "--help"
    if command in COMMANDS:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a user's own modules; Python does this for `python -m`, not for scripts
        module, function, _, _ = COMMANDS[command]
        sys.exit(getattr(importlib.import_module(f"ilo_lightning.{module}"), function)(argv[1:]))
    if command in ("-h", "--help"):
        print(usage(), end="")
        sys.exit(0)
    if command == "--version":
        from . import __version__

        print(__version__)
        sys.exit(0)
    print(f"error: unknown command {command!r}\n{usage()}", end="", file=sys.stderr)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
