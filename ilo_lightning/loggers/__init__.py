"""Where a run can be followed besides its own files: what ``logger=…`` chooses, one log per run.

The results are files first. A log is a view of them: where it fails, the run says so in one line and goes on.
"""

from .base import LoggerError, RunInfo, RunLog
from .lightning import csv, tensorboard
from .weights_and_biases import WandbLog

__all__ = ["LoggerError", "RunInfo", "RunLog", "WandbLog", "csv", "tensorboard"]
