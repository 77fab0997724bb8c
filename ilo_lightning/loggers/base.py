"""What follows a run: told about its fits, pictures and rows as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from ..report.figure import Panel


class LoggerError(ValueError):
    """A log that can't be kept as it is configured; the message names the field, its value and the remedy."""


@dataclass(frozen=True)
class RunInfo:
    """Which run is followed.

    Args:
        folder: of the run.
        config: its resolved configuration (JSON values).
        task: its name.
        methods: name and number of steps of each, in the order in which they are run on every batch; the last is the
            run's method, one before it the baseline.
        batches: how many.
        sweep: name of the multirun that it is a job of, if any.
        overrides: of the command line, those of a multirun's job included: key to value, as they were written.
    """

    folder: Path
    config: Mapping[str, Any]
    task: str
    methods: tuple[tuple[str, int], ...]
    batches: int = 1
    sweep: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.methods[-1][0]

    @property
    def steps(self) -> int:
        """Of all methods on all batches."""
        return self.batches * sum(steps for _, steps in self.methods)

    @property
    def shard(self) -> str | None:
        """Which part of the images it works on, where they are split over several jobs."""
        shard = (self.config.get("data") or {}).get("shard")
        return None if shard is None else str(shard)


class RunLog:
    """Follows one run, from ``begin`` to ``close``. This one keeps nothing (``logger=none``).

    Args:
        info: which run.
        every: steps between two points of a curve.
    """

    def __init__(self, info: RunInfo | None = None, every: int = 10):
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise LoggerError(f"logger.every={every}: expected a whole number, at least 1")
        self.every = every

    def begin(self, identity: str) -> None:
        """The run begins, or goes on; ``identity`` is that of run.json."""

    def loggers(self, batch: int, method: str, images: int) -> Sequence[Logger]:
        """The Lightning loggers for one fit: of a batch of so many images, by a method."""
        return ()

    def picture(self, name: str, panels: Sequence[Panel]) -> None:
        """An image is reconstructed: what was measured, each stage's end, the result, the truth."""

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A batch was worked through, now or by an earlier call; its rows of results.jsonl."""

    def finish(self) -> None:
        """Every batch was worked through."""

    def close(self) -> None:
        """The process leaves the run, whether finished or broken off. Nothing is called after it."""
