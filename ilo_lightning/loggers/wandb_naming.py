"""What a W&B run is called, and by what numbers runs are compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..identity import PLACEMENT, is_below
from ..metrics import mean_and_interval
from .base import RunInfo


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the runs table sorts by: means over the images, 95 % half-widths of the metrics, how many failed.

    Args:
        rows: of results.jsonl. Those with ``error`` have no numbers, and count as failed like those with ``fault``.
    """
    done = [row for row in rows if "error" not in row]
    found: dict[str, float] = {"images": len(rows), "failed": sum("error" in row or "fault" in row for row in rows)}
    for prefix, outcomes in (("", done), ("baseline/", [row["baseline"] for row in done if row.get("baseline")])):
        columns: dict[str, list[float]] = {}
        for outcome in outcomes:
            values = {**outcome["metrics"], **{name: outcome[name] for name in ("data_fit", "evaluations", "seconds")}}
            for name, value in values.items():
                if value is not None:
                    columns.setdefault(name, []).append(value)
        for name, numbers in columns.items():
            mean, half = mean_and_interval(numbers)
            found[prefix + name] = mean
            if name in outcomes[0]["metrics"] and math.isfinite(half):
                found[f"{prefix}{name}_interval"] = half
    return found


def swept_values(info: RunInfo) -> dict[str, float]:
    """The numbers among what a multirun's command line sets: key of the configuration to value."""
    found = {}
    for key in info.overrides if info.sweep else ():
        value: Any = info.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and not is_below(key, UNNAMED):
            found[key] = value
    return found


def sweep_key(key: str) -> str:
    """The chart key of a configuration's key. W&B takes a dot for nesting."""
    return "sweep/" + key.replace(".", "/")


def strip_key(image: str) -> str:
    """The key of an image's pictures: W&B's names are letters, digits, ``_`` and ``-``."""
    return f"strip/{re.sub(r'[^A-Za-z0-9_-]', '_', image)}"


def read_record(path: Path) -> dict[str, Any]:
    """What a run's log left of itself; nothing where there is none, or it is damaged."""
    try:
        record = json.loads(path.read_text())
        kinds = {"method": str, "swept": dict, "strips": list, "metrics": list, "finished": bool}
        names = all(isinstance(record[name], str | None) for name in ("group", "project", "entity"))
        whole = names and all(isinstance(record[name], kind) for name, kind in kinds.items())
        return record if whole and all(isinstance(value, int | float) for value in record["swept"].values()) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


UNNAMED = (*PLACEMENT, "trainer", "experiment", "generator.checkpoint", "data.path", "data.batch_size")


def run_name(info: RunInfo, longest: int = 128) -> str:
    """For people: the method and what the command line chose, but for where things lie and how they are run.

    Where that is longer than W&B allows, the longest settings are left out: lists are rarely what a sweep is over.
    """
    words = [info.method]
    words += [f"{key}={value}" for key, value in info.overrides.items() if not is_below(key, UNNAMED)]
    if info.shard:
        words.append(f"shard {info.shard}")
    while len(words) > 1 and len(" ".join(words)) > longest:
        words.remove(max(words[1:], key=len))
    return " ".join(words)[:longest]
