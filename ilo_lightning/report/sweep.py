"""What a sweep directory holds: its points, read as far as they can be read, and what is wrong with them.

A point is one configuration; its folder, at any depth, is what `pipeline` writes. Nothing here needs a finished sweep:
of a point that was broken off, the batches that it finished are read.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..sweeps import status
from ..sweeps.lease import clock_ahead
from ..sweeps.shard import Shard

Row = dict[str, Any]

DONE, RUNNING, FAILED, UNFINISHED, MISSING = STATES = (
    status.DONE, status.RUNNING, status.FAILED, "unfinished", status.MISSING
)  # fmt: skip
"""A point is unfinished if it has some of its results, missing if it has none, and nobody works on it."""

_MARKS = ("config.yaml", "run.json", "results.jsonl", "batches")
_STATUS = re.compile(r"status(-\d+-of-\d+)?\.json")  # of a point, or of one shard of it
_FIELDS = [
    *((name, str) for name in ("image", "digest", "task", "commit", "finished", "folder", "error", "fault")),
    *((name, int) for name in ("index", "seed", "operator_seed", "batch", "batch_size")),
    *((name, dict) for name in ("versions", "protocols", "baseline")),
]
_NUMBERS = (int, float)
_INSIDES = ("images", "batches", "logs", "wandb")  # of points; they hold no points
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former, ten times as fast, comes with PyYAML's wheels


class SweepError(ValueError):
    """A directory that can't be read as a sweep; the message names it and the remedy."""


@dataclass(frozen=True)
class Problem:
    """Something that a reader of the results must know, in one line.

    Args:
        message: names the folder or file.
        lost: whether results that are there could not be used.
    """

    message: str
    lost: bool = False


@dataclass
class Point:
    """One configuration.

    Args:
        sweep: the directory that was asked for, as it was given.
        name: of the point's folder below it.
        config: the resolved configuration, empty if it is lost.
        whole: whether that is all of it.
        identity: SHA-256 (hex) of what makes its results these results, if that is known.
        state: one of `STATES`.
        error: why it failed.
        rows: of results.jsonl, one per image.
    """

    sweep: str
    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    identity: str | None = None
    state: str = MISSING
    error: str | None = None
    rows: list[Row] = field(default_factory=list)


def read_sweeps(directories: Sequence[str | Path], problems: list[Problem]) -> Iterator[Point]:
    """The points below the directories, in the order of their names; what is wrong with them is added to ``problems``.

    Raises:
        SweepError: if a directory is none, or holds no point.
    """
    seen: set[Path] = set()
    for given in directories:
        directory, count = Path(given), 0
        if not directory.is_dir():
            there = "not a directory" if directory.exists() else "no such directory"
            raise SweepError(f"{given}: {there}; give the folder of a run or of a sweep (hydra.sweep.dir)")
        planned: set[Path] = set()
        for folder in _find(directory, problems, planned):
            resolved = folder.resolve()
            if resolved in seen:
                count += 1
            elif point := read_point(folder, _name(folder, directory), str(given), problems):
                seen.add(resolved)
                count += 1
                yield point
        for folder in sorted(planned, key=lambda path: natural(str(path))):
            if folder.resolve() not in seen:
                count += 1
                yield Point(str(given), _name(folder, directory), folder)
        if not count:
            raise SweepError(
                f"{given}: holds no results, for no folder in it has a config.yaml, results.jsonl or batches of a run; "
                "give the folder of a run or of a sweep (hydra.sweep.dir)"
            )


def _name(folder: Path, directory: Path) -> str:
    relative = folder.relative_to(directory)
    return relative.as_posix() if relative.parts else directory.resolve().name


def _find(directory: Path, problems: list[Problem], planned: set[Path]) -> Iterator[Path]:
    """Folders that look like points; to ``planned`` go those that a sweep means to have, begun or not.

    A link to a folder isn't followed: its points would count twice.
    """
    try:
        with os.scandir(directory) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError as error:
        problems.append(Problem(f"{directory}: can't be listed ({error.strerror or error}); left out", lost=True))
        return
    if any(name in _MARKS or _STATUS.fullmatch(name) for name in found):
        yield directory
    for name in sorted(found, key=natural):
        if name.startswith("plan-") and name.endswith(".json"):
            planned.update(directory / folder for folder in _planned(directory / name))
        elif found[name] and not name.startswith(".") and name not in _INSIDES:
            yield from _find(directory / name, problems, planned)


def _planned(plan: Path) -> list[str]:
    try:
        names = [str(point["folder"]) for point in json.loads(plan.read_text())["points"]]
        return [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
    except (OSError, ValueError, TypeError, KeyError):  # `ilo status` says so
        return []


def natural(text: str) -> list[tuple[int, int | str]]:
    """Sorting key under which 2 comes before 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part]


def read_point(folder: Path, name: str, sweep: str, problems: list[Problem]) -> Point | None:
    """One point; None for a folder that holds something else."""
    point = Point(sweep, name, folder)
    config = _read(folder / "config.yaml", problems)
    record = _read(folder / "run.json", problems)
    statuses = [_read(path, problems) for path in sorted(folder.glob("status*.json")) if _STATUS.fullmatch(path.name)]
    parts: Row = record["parts"] if isinstance(record.get("parts"), dict) else {}
    reader = _Rows(folder, problems)
    if not (config or record or statuses or reader.found):
        return None
    if config and not (record or statuses or reader.found) and not {"task", "method"} <= config.keys():
        return None  # another program's config.yaml
    known = {key: parts[key] for key in ("task", "method", "baseline", "seed") if key in parts}
    point.config, point.whole = config or known, bool(config)
    point.identity = record.get("identity")
    images = parts.get("images")
    expected = len(images) if isinstance(images, list) else None
    point.rows = reader.read(expected)
    _add_scores(folder, point.rows, problems)
    if point.rows and not point.config:
        problems.append(Problem(f"{folder}: config.yaml and run.json are gone; its results have no settings"))
    elif point.rows and not (folder / "config.yaml").exists():
        problems.append(Problem(f"{folder}: config.yaml is gone; its settings are those that run.json has"))
    if point.rows and not point.identity:
        problems.append(Problem(f"{folder}: run.json is gone; whether it repeats another point can't be told"))
    _judge(point, statuses, reader.final, expected, problems)
    return point


def _judge(point: Point, statuses: Sequence[Row], final: bool, expected: int | None, problems: list[Problem]) -> None:
    """The point's state, from what is there, and where that leaves it open, from what it says of itself."""
    failed = [row for row in point.rows if "error" in row]
    readable = len(point.rows) - len([row for row in failed if "image" not in row])
    if final and (expected is None or readable >= expected):
        point.state = FAILED if len(failed) == len(point.rows) else DONE
    else:
        point.state = UNFINISHED if point.rows else MISSING
    said = {entry.get("state") for entry in statuses}
    whole = [entry.get("shard", str(Shard())) for entry in statuses] == [str(Shard())]
    if FAILED in said:
        point.state = FAILED
    elif RUNNING in said and point.state in (UNFINISHED, MISSING):
        finding = status.find(point.folder, ahead=clock_ahead(point.folder) or 0.0)
        if finding.state == RUNNING:
            point.state = RUNNING
        else:
            problems.append(Problem(f"{point.folder}: {finding.note}; `ilo status` says how to go on"))
    elif said == {DONE} and whole and point.state in (UNFINISHED, MISSING):
        count = f"{len(point.rows)} of {expected} images have" if expected else f"{len(point.rows)} images have"
        problems.append(Problem(f"{point.folder}: status.json says done, but {count} results; was a part deleted?"))
    if point.state == FAILED:
        reasons = [entry["error"] for entry in statuses if entry.get("error")] + [row["error"] for row in failed]
        point.error = str(reasons[0]) if reasons else "no reason is recorded"


def _read(path: Path, problems: list[Problem]) -> Row:
    """A JSON or YAML mapping; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else _parse_yaml(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        problems.append(Problem(f"{path}: can't be read ({error.strerror or error})", lost=True))
        return {}
    except (ValueError, yaml.YAMLError):
        problems.append(Problem(f"{path}: is damaged; read without it", lost=True))
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(f"{path}: is damaged; read without it", lost=True))
        return {}
    return value


def _parse_yaml(text: str) -> Any:
    """Section by section, since most sections of a sweep's configurations are the same, and parsing takes a millisecond
    for each. What is parsed is shared: not to be changed.

    Raises:
        yaml.YAMLError: if it is none.
    """
    found: Row = {}
    try:
        for section in re.split(r"^(?=[^\s#-])", text, flags=re.MULTILINE):
            found |= _parse_section(section) or {}
    except (yaml.YAMLError, TypeError, ValueError):  # sections that refer to each other, or a damaged file
        return yaml.load(text, _LOADER)
    return found


@functools.lru_cache(maxsize=4096)
def _parse_section(text: str) -> Any:
    return yaml.load(text, _LOADER)


class _Rows:
    """The rows of a point. results.jsonl is enough if it is whole and nothing failed; otherwise a later call may have
    finished batches that it doesn't know of."""

    def __init__(self, folder: Path, problems: list[Problem]):
        self.results, self.batches, self.problems = folder / "results.jsonl", folder / "batches", problems
        self.found = self.results.exists() or self.batches.is_dir()
        self.final = False

    def read(self, expected: int | None) -> list[Row]:
        rows, damaged = self._parse(self.results) if self.results.exists() else ([], False)
        self.final = bool(rows) and not damaged
        good = [row for row in rows if "error" not in row and "fault" not in row]
        if self.final and len(good) == len(rows) and (expected is None or len(rows) >= expected):
            return rows
        known = {row["index"]: row for row in rows}
        try:
            found = [path for path in self.batches.glob("*.jsonl") if not path.name.startswith(".")]
        except OSError:
            found = []
        # What was finished counts more than what there was when it was broken off.
        for path in sorted(found, key=lambda path: (not path.stem.endswith("-fault"), path.name)):
            known |= {row["index"]: row for row in self._parse(path)[0]}
        return [known[index] for index in sorted(known)]

    def _parse(self, path: Path) -> tuple[list[Row], bool]:
        """The good rows of a file, and whether there are others."""
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            self.problems.append(Problem(f"{path}: can't be read ({error.strerror or error})", lost=True))
            return [], True
        rows, damaged = [], []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                check_row(row)
                rows.append(row)
            except ValueError:
                damaged.append(number)
        if damaged:
            many = f"lines {', '.join(map(str, damaged[:5]))}{' …' if len(damaged) > 5 else ''} are"
            which = f"line {damaged[0]} is" if len(damaged) == 1 else many
            self.problems.append(Problem(f"{path}: {which} damaged; the other {len(rows)} are read", lost=True))
        return rows, bool(damaged)


def check_row(row: Any) -> None:
    """Raises ValueError unless ``row`` is a line of results.jsonl."""
    if not isinstance(row, dict) or row.get("index") is None:
        raise ValueError("not a row")
    for name, kind in _FIELDS:
        value = row.get(name)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{name} is not what it should be")
    if "error" not in row:
        _check_outcome(row)
        if row.get("baseline"):
            _check_outcome(row["baseline"])


def _check_outcome(outcome: Row) -> None:
    metrics, stages, optimised = outcome.get("metrics"), outcome.get("stages") or [], outcome.get("optimised") or []
    kept, selection = outcome.get("kept") or {}, outcome.get("selection") or {}
    if type(metrics) is not dict or type(stages) is not list or type(outcome.get("method")) is not str:
        raise ValueError("no outcome")
    if type(kept) is not dict or type(selection) is not dict or type(optimised) is not list:
        raise ValueError("nothing that tells how it came about")
    values = [*metrics.values(), outcome.get("data_fit"), outcome.get("evaluations"), outcome.get("seconds")]
    values += [kept.get("radius"), selection.get("held_out_residual")]
    if any(type(name) is not str for name in optimised):
        raise ValueError("no names")
    if any(type(kept.get(name)) not in (int, type(None)) for name in ("layer", "step")):
        raise ValueError("kept nowhere")
    if type(outcome.get("found")) not in (bool, type(None)):
        raise ValueError("neither found nor not")
    values += [stage.get("psnr") if type(stage) is dict else "" for stage in stages]
    for value in values:
        if value is not None and type(value) not in _NUMBERS:
            raise ValueError("not a number")


def _add_scores(folder: Path, rows: list[Row], problems: list[Problem]) -> None:
    """What `ilo score` found, where the results lack metrics because the truth was not known then."""
    path = folder / "scores.jsonl"
    if not rows or not path.exists():
        return
    scores: dict[tuple[str, str], Row] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            score = json.loads(line)
            scores[score["image"], score["method"]] = score
    except (OSError, ValueError, TypeError, KeyError):
        problems.append(Problem(f"{path}: is damaged; read as far as possible", lost=True))
    for row in rows:
        for outcome in (row, row.get("baseline") or {}):
            score = scores.get((str(row.get("image")), str(outcome.get("method"))))
            if score and isinstance(score.get("metrics"), dict) and not {*score["metrics"]} <= {*outcome["metrics"]}:
                outcome["metrics"] = {**score["metrics"], **outcome["metrics"]}
                row["protocols"] = {**(score.get("protocols") or {}), **(row.get("protocols") or {})}
