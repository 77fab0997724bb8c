"""The common form of all benchmarks: one table on the screen, one JSON file."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ilo_lightning import identity
from ilo_lightning.building import build
from ilo_lightning.files import write_atomically
from ilo_lightning.method import Method
from ilo_lightning.observations import Observation, observe
from ilo_lightning.setting import Setting
from ilo_lightning.solution import Solution
from ilo_lightning.solve import solve

Row = dict[str, Any]


def row(case: str, metric: str, value: float, unit: str) -> Row:
    """One number: what was measured, on what, and its unit (``1`` for none)."""
    return {"case": case, "metric": metric, "value": value, "unit": unit}


def setting_of(*overrides: str) -> Setting:
    """What ``python run.py OVERRIDES`` would run."""
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        return build(compose("config", overrides=["metrics.perceptual=none", *overrides]))


def observed(setting: Setting, members: Sequence[int]) -> list[Observation]:
    """Some images of a setting, measured."""
    return [setting.observations[i] for i in members]


def truth_of(seen: Sequence[Observation]) -> Tensor:
    """``(B, C, H, W)`` in [-1, 1], of pictures that are the truth."""
    return torch.stack([observation.truth for observation in seen if observation.truth is not None])


def solutions_of(
    setting: Setting, method: Method, seen: Sequence[Observation], callbacks: Sequence[Callback] = ()
) -> list[Solution]:
    """What a method finds of images that are solved together."""
    return solve(
        setting.generator,
        setting.operator,
        observe(seen),
        method,
        [observation.digest for observation in seen],
        setting.seed,
        data_fit=setting.data_fits(method),
        truth=truth_of(seen),
        trainer=setting.trainer,
        callbacks=callbacks,
    ).solutions


def decoded(setting: Setting, solutions: Sequence[Solution]) -> Tensor:
    """``(B, C, H, W)``: what each solution decodes to on its own."""
    return torch.stack([solution.decode(setting.generator).cpu() for solution in solutions])


def machine() -> str:
    """Processor, cores and operating system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


@dataclass(frozen=True)
class Limit:
    """Between what a number must lie: ``metric``, in one ``case`` or in all. A number that is nan doesn't."""

    metric: str
    most: float = math.inf
    case: str | None = None
    least: float = -math.inf

    @property
    def text(self) -> str:
        """In words."""
        ends = [("at least", self.least), ("at most", self.most)]
        return " and ".join(f"{word} {end:.4g}" for word, end in ends if math.isfinite(end))

    def holds_for(self, entry: Row) -> bool:
        """Whether it is about this number."""
        return entry["metric"] == self.metric and self.case in (None, entry["case"])


def publish(benchmark: str, rows: Iterable[Row], path: Path | None, limits: Iterable[Limit] = ()) -> None:
    """Print the rows, with their limits and whether they are kept, and write them to ``path`` if given.

    Raises:
        SystemExit: with code 1, when all is printed and written, if a limit is not kept.
    """
    rows, limits = list(rows), list(limits)
    width = max(len(entry["case"]) for entry in rows)
    verdicts: list[dict[str, Any]] = []
    for entry in rows:
        line = f"{entry['case']:{width}}  {entry['metric']:24} {entry['value']:10.4g} {entry['unit']}"
        for limit in limits:
            if limit.holds_for(entry):
                kept = limit.least <= entry["value"] <= limit.most
                verdicts.append({"case": entry["case"], "metric": entry["metric"], "limit": limit.text, "kept": kept})
                line += f"   {limit.text}: {'kept' if kept else 'MISSED'}"
        print(line)
    if path is not None:
        record = {
            "benchmark": benchmark,
            "machine": machine(),
            "versions": identity.versions(),
            "commit": identity.commit(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "rows": [{**entry, "value": None} if math.isnan(entry["value"]) else entry for entry in rows],
            "limits": verdicts,
        }
        write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    if not all(verdict["kept"] for verdict in verdicts):
        sys.exit(1)
