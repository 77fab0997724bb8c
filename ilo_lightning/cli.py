"""The console script ``ilo``: ``ilo solve`` takes the same overrides as ``python run.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """\
usage: ilo COMMAND [ARGUMENTS]

  solve [OVERRIDES]   reconstruct images; takes Hydra overrides, see `ilo solve --help`
  --version           print the version
  --help              print this
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Dispatch to a subcommand and exit with its code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    command = argv[0] if argv else "--help"
    if command == "solve":
        from .main import main as solve

        sys.exit(solve(argv[1:], program="ilo solve"))
    if command in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0)
    if command == "--version":
        from . import __version__

        print(__version__)
        sys.exit(0)
    print(f"error: unknown command {command!r}\n{USAGE}", end="", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
