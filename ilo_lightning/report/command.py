"""``ilo collect`` and ``ilo report``: from the files of sweeps, finished or not. Neither imports torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..exit_codes import DONE, REFUSED, SOME_FAILED
from ..files import write_atomically
from .sweep import FAILED, STATES, Problem, SweepError
from .units import units

if TYPE_CHECKING:
    from .collect import Collection

MANIFEST = "files.json"
"""In a report's folder: the files it consists of, so that the next report can remove those that it doesn't have."""


def collect(arguments: Sequence[str]) -> int:
    """``ilo collect SWEEP_DIR...``. Returns the exit code: 0 done, 2 refused, 3 done without what could not be read."""
    parser = argparse.ArgumentParser(
        prog="ilo collect", description="Collect the results of sweeps, finished or not, into one table."
    )
    parser.add_argument("sweep", nargs="+", metavar="SWEEP_DIR", help="folder of a sweep, or of one run")
    parser.add_argument(
        "-o", "--output", type=Path, help=".parquet or .csv; default: collected.parquet in SWEEP_DIR (here, if several)"
    )
    parser.add_argument("--all-settings", action="store_true", help="a column per setting, not only for what varies")
    options = parser.parse_args(arguments)
    from .collect import collect, table, write_table

    output = options.output
    if output is None:
        output = Path(options.sweep[0] if len(options.sweep) == 1 else ".") / "collected.parquet"
    try:
        collection = collect(options.sweep)
        frame = table(collection, options.all_settings)
        write_table(frame, output)
    except (SweepError, ValueError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{output}: can't be written ({error.strerror or error}); choose another --output")
    _tell(collection)
    print(f"table: {output} ({len(frame)} rows, {len(frame.columns)} columns)")
    return _exit_code(collection.problems)


def report(arguments: Sequence[str]) -> int:
    """``ilo report SWEEP_DIR...``. Returns the exit code: 0 done, 2 refused, 3 done without what could not be read."""
    parser = argparse.ArgumentParser(
        prog="ilo report",
        description="Tables (Markdown, LaTeX), plots (PNG, SVG) and a static HTML page about sweeps, finished or not.",
    )
    parser.add_argument("sweep", nargs="+", metavar="SWEEP_DIR", help="folder of a sweep, or of one run")
    parser.add_argument("-o", "--output", type=Path, help="folder; default: report in SWEEP_DIR (here, if several)")
    parser.add_argument("--title", help="default: the name of SWEEP_DIR")
    parser.add_argument(
        "--images",
        type=_count,
        default=8,
        metavar="N",
        help="pictures of the first N images of each point are copied into the report (default 8); `all` for all",
    )
    options = parser.parse_args(arguments)
    from .collect import collect

    folder = options.output or Path(options.sweep[0] if len(options.sweep) == 1 else ".") / "report"
    title = options.title or ", ".join(Path(name).resolve().name for name in options.sweep)
    try:
        known = _known_files(folder)
        collection = collect(options.sweep)
        _write_report(collection, folder, title, options.images, known)
    except SweepError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{folder}: can't be written ({error.strerror or error}); choose another --output")
    _tell(collection)
    print(f"report: {folder / 'index.html'}")
    return _exit_code(collection.problems)


def _write_report(collection: Collection, folder: Path, title: str, images: int | None, known: Sequence[str]) -> None:
    from .grids import drawn, grids
    from .page import page
    from .pictures import gather
    from .plots import draw, plots, rendered
    from .summary import summarise
    from .typeset import latex, markdown

    summary = summarise(collection)
    together = units(collection.points)
    files = ["tables.md", "tables.tex", "index.html"]
    write_atomically(folder / MANIFEST, json.dumps(sorted(known), indent=0))  # from now on the folder is a report
    write_atomically(folder / "tables.md", markdown(summary, title))
    write_atomically(folder / "tables.tex", latex(summary, title))
    figures = []
    for plot in plots(summary):
        figure = draw(plot)
        svg = rendered(figure, "svg")
        for suffix, content in (("png", rendered(figure, "png")), ("svg", svg)):
            files.append(f"plots/{plot.name}.{suffix}")
            write_atomically(folder / files[-1], content)
        figures.append((plot, svg.decode()))
    pictures = gather(collection, together, images, folder)
    files += sorted(
        {
            path
            for entry in pictures
            for path in (entry.measurement, entry.truth, *entry.solved.values(), *entry.path)
            if path
        }
    )
    compared = grids(collection, summary, together, pictures)
    for grid in compared:
        files.append(f"figures/{grid.name}.png")
        write_atomically(folder / files[-1], drawn(grid, folder, collection.problems))
    write_atomically(folder / "index.html", page(title, collection, summary, together, figures, pictures, compared))
    for name in set(known) - set(files):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / MANIFEST, json.dumps(sorted(files), indent=0))


def _known_files(folder: Path) -> list[str]:
    """Of the report that is there.

    Raises:
        SweepError: if the folder holds something else, of which nothing must be overwritten.
    """
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(names, list):
            raise ValueError("no list")
        return [name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SweepError(f"--output {folder}: is no report, and not empty; choose another folder") from None
        return []
    except (ValueError, TypeError):
        raise SweepError(f"--output {folder}: its {MANIFEST} is damaged; delete the folder or choose another") from None


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more, or `all`")
    return int(text)


def _tell(collection: Collection) -> None:
    """How far the sweep is, and what a reader must know."""
    together = units(collection.points)
    states = [unit.state for unit in together]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    print(f"{len(states)} point{'s' * (len(states) != 1)}: {counts}")
    for unit in together:
        if unit.state == FAILED:
            print(f"failed: {unit.name}: {unit.error}", file=sys.stderr)
    for problem in collection.problems:
        print(f"{'warning' if problem.lost else 'note'}: {problem.message}", file=sys.stderr)


def _exit_code(problems: Sequence[Problem]) -> int:
    return SOME_FAILED if any(problem.lost for problem in problems) else DONE


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return REFUSED
