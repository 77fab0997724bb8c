"""A report at the end of a sweep, as the experiments that draw a figure have it."""

from __future__ import annotations

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from .command import report


class Report(Callback):
    """``ilo report`` on the sweep's folder when the sweep is over, whatever became of its points."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        sys.stdout.flush()
        folder = str(config.hydra.sweep.dir)
        if report([folder]):
            print(
                f"the report is not all it should be: see above; `ilo report {folder}` makes it again", file=sys.stderr
            )
