"""What W&B's own reader finds in offline runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OfflineRun:
    """An offline run directory, read by ``wandb leet inspect``."""

    folder: Path
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def about(self) -> dict[str, Any]:
        """Group, job type, name, id, resume."""
        return next(record["run"] for record in self.records if record["type"] == "run")

    @property
    def steps_of(self) -> dict[str, str]:
        """Metric pattern to the metric that is its x axis."""
        metrics = [record["metric"] for record in self.records if record["type"] == "metric"]
        return {metric["glob_name"]: metric["step_metric"] for metric in metrics if "step_metric" in metric}

    def curve(self, name: str) -> dict[float, float]:
        """Value of ``section/name`` at each ``section/step``."""
        step = f"{name.partition('/')[0]}/step"
        items = [record["history"]["item"] for record in self.records if record["type"] == "history"]
        return {item[step]: item[name] for item in items if name in item}


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All below a folder, oldest first."""
    return [read(path) for path in sorted(folder.rglob("offline-run-*/run-*.wandb"))]


def read(path: Path) -> OfflineRun:
    path = path.resolve()

    def inspect(*options: str) -> str:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(path)]
        # In that folder, since the client leaves a log in the one that it is called in.
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=path.parent).stdout

    records = [json.loads(line) for line in inspect().splitlines()]
    return OfflineRun(path.parent, json.loads(inspect("--summary")), records)
