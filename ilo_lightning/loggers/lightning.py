"""Logs kept by Lightning's own loggers: one per fit, below ``logs/`` in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from .base import LoggerError, RunInfo, RunLog


class LightningLog(RunLog):
    """A Lightning logger for each fit, made from the log folder and the fit's name, ``BATCH-METHOD``."""

    def __init__(self, info: RunInfo, every: int, make: Callable[[Path, str], Logger]):
        super().__init__(info, every)
        self._folder, self._make = info.folder / "logs", make

    def loggers(self, batch: int, method: str, images: int) -> Sequence[Logger]:
        return [self._make(self._folder, f"{batch:04d}-{method}")]


def csv(info: RunInfo, every: int = 10) -> LightningLog:
    """``logs/NAME/version_0/metrics.csv``; a resumed fit writes the next version (Lightning begins anew)."""
    return LightningLog(info, every, lambda folder, name: CSVLogger(folder, name=name))


def tensorboard(info: RunInfo, every: int = 10) -> LightningLog:
    """Event files in ``logs/NAME``; a resumed fit adds another, which TensorBoard shows as one course."""
    if not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise LoggerError("logger=tensorboard: the package tensorboardX is missing; pip install tensorboardX")
    return LightningLog(info, every, lambda folder, name: TensorBoardLogger(folder, name=name, version=""))
