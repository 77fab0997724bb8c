"""Which points a sweep has, and in which folders: decided from their overrides, before anything is run.

SWEEP/plan-1a2b3c4d.json    the points of one command; a sweep that was extended has several plans
SWEEP/POINT/                a point: what was swept, then a hash of all that it computes
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from ..identity import PLACEMENT, SIZES, identity, is_below, without
from .shard import Shard

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override  # `ilo status` imports nothing heavy

UNNAMED = (*PLACEMENT, "trainer")
"""Overrides that are not in the name of its folder; a trainer's precision is in the hash."""
MAX_NAME = 120
_OF_A_SIZE = re.compile(r"\$\{.*(?<![\w.])\.*sizes?\b")
"""A reference to what an experiment's size sets, however it is written."""


@dataclass(frozen=True)
class Point:
    """A point, or a shard of one.

    Args:
        folder: below the sweep's.
        shard: ``i/n``.
        overrides: all that makes it, as on the command line.
    """

    folder: str
    shard: str = "1/1"
    overrides: Sequence[str] = field(default=(), compare=False)

    @property
    def label(self) -> str:
        """How it is named in messages."""
        return self.folder if self.shard == "1/1" else f"{self.folder} (shard {self.shard})"


@dataclass(frozen=True)
class Plan:
    """The points of one command.

    Args:
        command: its overrides, before they were swept.
        directory: the working directory it was given in; paths in overrides are relative to it.
    """

    command: Sequence[str]
    directory: str
    points: Sequence[Point]

    def write(self, sweep: Path) -> None:
        """The same plan is the same file; another one lies beside it."""
        content = {
            "command": list(self.command),
            "directory": self.directory,
            "points": [asdict(p) for p in self.points],
        }
        name = f"plan-{identity({'points': content['points']})[:8]}.json"
        write_atomically(sweep / name, json.dumps(content, indent=1) + "\n")


def read_plans(sweep: Path, damaged: list[Path] | None = None) -> list[Plan]:
    """The plans of a sweep, in the order in which they were last begun; what can't be read is left out, and added to
    ``damaged``."""
    plans = []
    for path in sorted(sweep.glob("plan-*.json"), key=lambda path: path.stat().st_mtime):
        try:
            plans.append(_parse(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            if damaged is not None:
                damaged.append(path)
    return plans


def _parse(text: str) -> Plan:
    """Raises ValueError, KeyError or TypeError for what is no plan."""
    content = json.loads(text)
    plan = Plan(content["command"], content["directory"], [Point(**point) for point in content["points"]])
    for point in plan.points:
        Shard.parse(point.shard)
    words = [plan.directory, *plan.command]
    words += [word for point in plan.points for word in (point.folder, *point.overrides)]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("not a plan")
    return plan


def key_of(override: str) -> str:
    """The dotted key that an override sets."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def shard_of(overrides: Sequence[str]) -> str | None:
    """The value of ``data.shard``; None for everything."""
    value = _value("data.shard", overrides)
    return None if value in (None, "", "null") else value


def force_of(overrides: Sequence[str]) -> bool:
    """Whether points are to be done anew.

    Raises:
        ValueError: where that is neither true nor false.
    """
    value = (_value("force", overrides) or "false").lower()
    if value not in ("true", "false", "null"):
        raise ValueError(f"force={value}: expected true or false")
    return value == "true"


def unforced(overrides: Sequence[str]) -> list[str]:
    """Without any ``force``."""
    return [override for override in overrides if key_of(override) != "force"]


def _value(key: str, overrides: Sequence[str]) -> str | None:
    values = [override.partition("=")[2].strip("'\"") for override in overrides if key_of(override) == key]
    return values[-1] if values else None


def digest_of(base: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """A hash of all that a point computes, as far as its configuration tells: 12 hexadecimal digits.

    Args:
        base: the configuration as its groups give it.
        values: dotted key -> value that it gets instead.
    """
    tree = copy.deepcopy(dict(base))
    for key, value in values.items():
        *path, last = key.split(".")
        place: Any = tree
        for name in path:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
        else:  # an entry of a list, say
            tree[f"{key}="] = value
    return identity(without(_sized(tree), PLACEMENT))[:12]


def _sized(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration with what an experiment's size sets, for its table: a longer table makes no new points of old."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    table = {key: tree[key] for key in SIZES if key in tree}

    def told(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: told(each) for key, each in value.items()}
        if isinstance(value, list):
            return [told(each) for each in value]
        if isinstance(value, str) and _OF_A_SIZE.search(value):
            found = OmegaConf.create({**table, "found": value})
            return OmegaConf.to_container(found, resolve=True)["found"]  # type: ignore[index,call-overload]
        return value

    try:
        return told(without(tree, SIZES))
    except OmegaConfBaseException:  # a table that refers to what is outside
        return tree


def folder_of(digest: str, overrides: Sequence[str], swept: Collection[str], known: Mapping[str, str]) -> str:
    """The name of a point's folder: readable, then its digest. Neither a shell nor Hydra wants it quoted.

    Args:
        swept: the keys whose values differ in the sweep.
        known: digest -> name, of folders that exist or were planned; a point keeps its folder when a sweep is extended.
    """
    if digest in known:
        return known[digest]
    named = [o.lstrip("+~") for o in overrides if key_of(o) in swept and not is_below(key_of(o), UNNAMED)]
    parts = (re.sub(r"[^A-Za-z0-9_.-]+", "_", override.replace("=", "-", 1)) for override in named)
    return f"{'+'.join(parts)[:MAX_NAME].strip('_.+-') or 'point'}-{digest}"


def known_folders(sweep: Path) -> dict[str, str]:
    """Digest -> name of the points' folders that a sweep has, or has planned."""
    names = [entry.name for entry in sweep.iterdir() if entry.is_dir()] if sweep.is_dir() else []
    names += [point.folder for plan in read_plans(sweep) for point in plan.points]
    return {name[-12:]: name for name in names if re.fullmatch(r".*-[0-9a-f]{12}", name)}


def alternatives(
    params: Mapping[str, Any], either: Sequence[Mapping[str, Any]], arguments: Sequence[Override]
) -> list[list[str]]:
    """The overrides of each of a sweep's grids: ``params`` and one of ``either``, and then the command line's.

    Where the command line chooses from a group that tells the alternatives apart (``task=denoising``), those with
    another choice are left out.

    Args:
        arguments: the command line, parsed.

    Raises:
        ValueError: if it chooses what no alternative has.
    """
    own = [{key: _word(value) for key, value in each.items()} for each in either] or [{}]
    groups = {key for each in own for key in each if "." not in key}
    chosen = {o.key_or_group: values_of(o) for o in arguments if o.package is None and o.key_or_group in groups}
    for key, values in chosen.items():
        known = list(dict.fromkeys(each[key] for each in own if key in each))
        if unknown := [value for value in values if value not in known]:
            raise ValueError(f"{key}={','.join(unknown)}: this experiment knows {', '.join(known)}")
    return [
        [f"{key}={value}" for key, value in {**{k: _word(v) for k, v in params.items()}, **each}.items()]
        + [o.input_line or "" for o in arguments if o.package is not None or o.key_or_group not in {*chosen} & {*each}]
        for each in own
        if all(each[key] in values for key, values in chosen.items() if key in each)
    ]


def values_of(override: Override) -> list[str]:
    """What an override sets, or each of the values that it sweeps."""
    if override.is_discrete_sweep():
        return [value.strip("'\"") for value in override.sweep_string_iterator()]
    return [str(override.value())]


def _word(value: Any) -> str:
    """A value of a configuration as an override has it."""
    return "null" if value is None else str(value)


def sweep_name(command: Sequence[str], params: Mapping[str, str], either: Sequence[Mapping[str, str]] = ()) -> str:
    """A name for a sweep that the same command gives again."""
    counted = sorted(override for override in command if not is_below(key_of(override), UNNAMED))
    chosen = [override.partition("=")[2] for override in counted if override.startswith("experiment=")]
    name = re.sub(r"[^\w.-]+", "_", chosen[0]) if chosen else "sweep"
    more = {"either": [dict(each) for each in either]} if either else {}
    return f"{name}-{identity({'command': counted, 'params': dict(params), **more})[:8]}"


def quoted(value: str) -> str:
    """A string as the value of an override: Hydra takes backslashes as they are, but for those before a quote."""
    if re.fullmatch(r"[A-Za-z/.][A-Za-z0-9_/.+@-]*", value):
        return value
    return "'" + re.sub(r"(\\*)(')", r"\1\1\\\2", re.sub(r"(\\+)$", r"\1\1", value)) + "'"


def command_line(overrides: Sequence[str], *more: str) -> str:
    """What to type in a shell."""
    return " ".join(["ilo", "solve", *(shlex.quote(word) for word in (*overrides, *more))])


def folders(sweep: Path) -> Iterator[Path]:
    """Every folder of a point below a sweep's, at any depth, whether planned or not."""
    pending = [sweep]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if names & {"run.json", "config.yaml"} or any(re.fullmatch(r"status(-\d+-of-\d+)?\.json", n) for n in names):
            yield folder
        else:
            pending += [entry for entry in reversed(entries) if entry.is_dir() and not entry.name.startswith(".")]
