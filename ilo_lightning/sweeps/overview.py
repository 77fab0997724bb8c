"""``ilo status``: which points of a sweep are done, run, failed or are missing, and what to type to do the rest."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..exit_codes import DONE as ALL_DONE
from ..exit_codes import REFUSED, SOME_FAILED
from . import status
from .lease import clock_ahead
from .plan import Plan, Point, command_line, folders, quoted, read_plans
from .point import SKEW
from .shard import Shard
from .status import DONE, FAILED, MISSING, RUNNING, STATES, Finding

SHOWN = 20
"""Points listed per state, unless ``--all``."""


@dataclass(frozen=True)
class Entry:
    """A point or a shard of one, what its folder says, and the plan that it comes from: None if there is none."""

    point: Point
    finding: Finding
    plan: Plan | None

    def command(self, sweep: Path) -> str | None:
        """What does this point alone."""
        if self.plan is None:
            return None
        redo = command_line(self.point.overrides, f"hydra.run.dir={quoted(str(sweep.absolute() / self.point.folder))}")
        return _there(self.plan.directory, redo)


def entries(sweep: Path, ahead: float | None = None, damaged: list[Path] | None = None) -> list[Entry]:
    """Every point of a sweep: those that were planned, in that order, then others that are there.

    Args:
        ahead: of the file server's clock (see ``lease.look``).
        damaged: plans that can't be read are added to it.
    """
    planned: dict[Point, Plan] = {point: plan for plan in read_plans(sweep, damaged) for point in plan.points}
    found = [
        Entry(point, status.find(sweep / point.folder, Shard.parse(point.shard), ahead), plan)
        for point, plan in planned.items()
    ]
    names = {point.folder for point in planned}
    for folder in folders(sweep):
        name = os.path.relpath(folder, sweep)
        if name not in names:
            found.append(Entry(Point(name), status.find(folder, ahead=ahead), None))
    return found


def main(arguments: Sequence[str]) -> int:
    """``ilo status SWEEP_DIR``. Returns the exit code: 0 all done, 2 no such folder, 3 something is not done."""
    parser = argparse.ArgumentParser(prog="ilo status", description="What is done of a sweep, and how to do the rest.")
    parser.add_argument("sweep", type=Path, help="folder of a sweep (hydra.sweep.dir)")
    parser.add_argument("--all", action="store_true", help=f"list all points, and not only {SHOWN} per state")
    parser.add_argument("--json", action="store_true", help="a line of JSON per point instead")
    options = parser.parse_args(arguments)
    sweep: Path = options.sweep
    if not sweep.is_dir():
        print(f"error: {sweep}: no such folder; name one of hydra.sweep.dir, such as multirun/NAME", file=sys.stderr)
        return REFUSED
    ahead = clock_ahead(sweep)
    if ahead is not None and abs(ahead) > SKEW:
        print(f"clock skew: this machine and the file server differ by {abs(ahead):.0f} s", file=sys.stderr)
    damaged: list[Path] = []
    found = entries(sweep, ahead, damaged)
    for path in damaged:
        print(f"{path}: damaged; which points were planned in it can't be told", file=sys.stderr)
    if not found:
        print(f"error: {sweep}: holds no points of a sweep", file=sys.stderr)
        return REFUSED
    if options.json:
        for entry in found:
            print(json.dumps(_as_json(entry, sweep)))
    else:
        _show(sweep, found, len(found) if options.all else SHOWN)
    return ALL_DONE if all(entry.finding.state == DONE for entry in found) else SOME_FAILED


def _as_json(entry: Entry, sweep: Path) -> dict[str, object]:
    return {
        "point": entry.point.folder,
        "shard": entry.point.shard,
        "state": entry.finding.state,
        "note": entry.finding.note,
        "command": entry.command(sweep),
    }


def _show(sweep: Path, found: Sequence[Entry], limit: int) -> None:
    counts = Counter(entry.finding.state for entry in found)
    print(
        f"{sweep}: {len(found)} points: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    )
    for state in (RUNNING, FAILED, MISSING):
        chosen = [entry for entry in found if entry.finding.state == state]
        if chosen:
            print(f"\n{state}:")
        for entry in chosen[:limit]:
            note = f": {entry.finding.note}" if entry.finding.note else ""
            print(f"  {entry.point.label}{note}")
            if state == FAILED and (command := entry.command(sweep)):
                print(f"    {command}")
        if len(chosen) > limit:
            print(f"  … and {len(chosen) - limit} more (--all)")
    versions = Counter(s.version for entry in found for s in entry.finding.statuses if s.version != __version__)
    for version, count in versions.items():
        print(f"\n{count} points were made by ilo-lightning {version}, this is {__version__}")
    plans = {id(entry.plan): entry.plan for entry in found if entry.plan and entry.finding.state in (FAILED, MISSING)}
    if plans:
        print("\ndo what is missing or failed:")
        for plan in plans.values():
            command = command_line(["-m", *plan.command], f"hydra.sweep.dir={quoted(str(sweep.absolute()))}")
            print(f"  {_there(plan.directory, command)}")
    elif counts[MISSING] or counts[FAILED]:
        print("\nno plan-*.json says how these came about")


def _there(directory: str, command: str) -> str:
    return command if directory == os.getcwd() else f"cd {shlex.quote(directory)} && {command}"
