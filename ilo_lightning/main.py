"""The Hydra entry points: compose -> run -> exit code. Imports no torch until a configuration is there to be run."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig

from .allocation import reuse_memory

if TYPE_CHECKING:
    from omegaconf import DictConfig

DONE, CRASHED, REFUSED, SOME_FAILED = 0, 1, 2, 3

_exit_codes: list[int] = []


def _run(job: Callable[[DictConfig, str], int], config: DictConfig) -> None:
    _exit_codes.append(CRASHED)  # stands if an exception gets out
    _exit_codes[-1] = job(config, HydraConfig.get().runtime.output_dir)
    if _exit_codes[-1] > 128:
        sys.exit(_exit_codes[-1])  # who interrupts a job means the jobs of a multirun after it, too


@hydra.main(version_base="1.3", config_path="pkg://ilo_lightning.conf", config_name="config")
def _solve(config: DictConfig) -> None:
    reuse_memory()
    from .job import run_job

    _run(run_job, config)


@hydra.main(version_base="1.3", config_path="pkg://ilo_lightning.conf", config_name="config")
def _measure(config: DictConfig) -> None:
    from .measuring import measure_job

    _run(measure_job, config)


def main(arguments: Sequence[str] | None = None, program: str | None = None, task: Callable[[], None] = _solve) -> int:
    """Run Hydra on ``arguments`` (the process's own unless given). Returns the exit code: 0 done, 1 crashed, 2
    refused before work, 3 some images failed, 130 or 143 interrupted; of a multirun, the highest."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    overrides = list(argv[1:] if arguments is None else arguments)
    sys.argv = [program or argv[0], *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra leaves its errors to us
    _exit_codes.clear()
    try:
        task()
    except SystemExit as exit:
        if exit.code not in (None, 0):
            # Without a code of a job's own, Hydra has said what is wrong with the configuration.
            return max(_exit_codes, default=DONE) or REFUSED
    except Exception as error:
        if _exit_codes:
            traceback.print_exc()
            return CRASHED
        from .refusal import CONFIGURATION_ERRORS, explain

        if isinstance(error, (*CONFIGURATION_ERRORS, ValueError)):  # a ValueError for a group set to null, say
            print(f"error: {explain(error, overrides)}", file=sys.stderr)
        elif isinstance(error, OSError):  # no folder, or nothing can be written there
            print(f"error: hydra.run.dir: {error}; choose another folder", file=sys.stderr)
        else:
            raise
        return REFUSED
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    return max(_exit_codes, default=DONE)


def solve(arguments: Sequence[str]) -> int:
    """``ilo solve``."""
    return main(arguments, program="ilo solve")


def measure(arguments: Sequence[str]) -> int:
    """``ilo measure``."""
    return main(arguments, program="ilo measure", task=_measure)
