"""The console script ``ilo``: one subcommand per line of ``COMMANDS``, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# name: (module, its function from arguments to exit code, usage, what it does)
COMMANDS = {
    "solve": ("main", "solve", "[OVERRIDES]", "reconstruct images, as `python run.py` does; see `ilo solve --help`"),
    "measure": ("main", "measure", "[OVERRIDES]", "only measure images, to reconstruct them elsewhere from y alone"),
    "score": ("scoring", "main", "RUN --truth PATH", "score the reconstructions of a run against their true pictures"),
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
    """Dispatch to a subcommand and exit with its code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
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
    sys.exit(2)


if __name__ == "__main__":
    main()
