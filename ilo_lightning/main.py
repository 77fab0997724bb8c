"""The Hydra entry point: compose -> solve -> report. Imports no torch until a configuration is there to be run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

DONE, CRASHED, REFUSED, SOME_FAILED = 0, 1, 2, 3

_exit_codes: list[int] = []


@hydra.main(version_base="1.3", config_path="pkg://ilo_lightning.conf", config_name="config")
def _job(config: DictConfig) -> None:
    from .job import run_job

    _exit_codes.append(CRASHED)  # stands if an exception gets out
    _exit_codes[-1] = run_job(config, HydraConfig.get().runtime.output_dir)
    if _exit_codes[-1] > 128:
        sys.exit(_exit_codes[-1])  # who interrupts a job means the jobs of a multirun after it, too


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run Hydra on ``arguments`` (the process's own unless given). Returns the exit code: 0 done, 1 crashed, 2
    refused before work, 3 some images failed, 130 or 143 interrupted; of a multirun, the highest."""
    argv = sys.argv
    sys.argv = [program or argv[0], *(argv[1:] if arguments is None else arguments)]
    _exit_codes.clear()
    try:
        _job()
    except SystemExit as exit:
        if exit.code not in (None, 0):
            # Without a code of a job's own, Hydra has said what is wrong with the configuration.
            return max(_exit_codes, default=DONE) or REFUSED
    finally:
        sys.argv = argv
    return max(_exit_codes, default=DONE)


def solve(arguments: Sequence[str]) -> int:
    """``ilo solve``."""
    return main(arguments, program="ilo solve")


def entry_point() -> None:
    """Console entry: exits with the code of ``main``."""
    sys.exit(main())
