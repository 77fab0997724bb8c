"""The curves of a whole run: kept in one file while its batches are worked on, averaged over its images at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO


class Course:
    """A line of JSON per point of a curve, so that a run which was killed and resumed has those of all its batches.

    Args:
        path: the file; it is only ever appended to.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None

    def add(self, batch: int, method: str, images: int, step: int, values: Mapping[str, float]) -> None:
        """A point of a batch of so many images: means over them."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", buffering=1)  # whole lines reach the system, should the process be killed
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"batch": batch, "method": method, "images": images, "step": step, **finite}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def means(self) -> dict[str, list[dict[str, float]]]:
        """Per method, a point per step in ascending order: its ``step``, and each value's mean over all images.

        Where a batch was resumed, the later line of a step counts. Lines that were cut off are left out.
        """
        points: dict[tuple[str, int, int], dict[str, float]] = {}
        for text in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                line = json.loads(text)
                points[line.pop("method"), line.pop("step"), line.pop("batch")] = line
            except (ValueError, KeyError):
                continue
        sums: dict[tuple[str, int], dict[str, list[float]]] = {}
        for (method, step, _), point in points.items():
            images = point.pop("images")
            for name, value in point.items():
                total = sums.setdefault((method, step), {}).setdefault(name, [0.0, 0.0])
                total[0] += images * value
                total[1] += images
        means: dict[str, list[dict[str, float]]] = {}
        for (method, step), totals in sorted(sums.items()):
            mean = {name: total / images for name, (total, images) in totals.items()}
            means.setdefault(method, []).append({"step": step, **mean})
        return means
