"""Lightning loggers for ``logger=…``: each takes the run's log folder and the name of a fit."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger


def csv(folder: Path, name: str) -> list[Logger]:
    """``folder/name/version_0/metrics.csv``; a resumed fit writes the next version (Lightning begins anew)."""
    return [CSVLogger(folder, name=name)]
