"""The Hydra entry points: compose -> run -> exit code. Imports no torch until a configuration is there to be run."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException

from .allocation import reuse_memory
from .exit_codes import CRASHED, DONE, REFUSED, REQUEUE, of_many
from .sweeps import sweeper

if TYPE_CHECKING:
    from omegaconf import DictConfig

_exit_codes: list[int] = []


def _run(job: Callable[[DictConfig, str], int], config: DictConfig) -> int:
    """Run a job; what nobody foresaw is one point's failure, and not the sweep's."""
    _exit_codes.append(CRASHED)  # stands if an exception gets out
    try:
        _exit_codes[-1] = job(config, HydraConfig.get().runtime.output_dir)
    except Exception:
        traceback.print_exc()
    if _exit_codes[-1] > 128 or _exit_codes[-1] == REQUEUE:
        sys.exit(_exit_codes[-1])  # who interrupts a job means the jobs of a multirun after it, too
    return _exit_codes[-1]


@hydra.main(version_base="1.3", config_path="pkg://ilo_lightning.conf", config_name="config")
def _solve(config: DictConfig) -> int:
    reuse_memory()
    from .job import run_job

    return _run(run_job, config)


@hydra.main(version_base="1.3", config_path="pkg://ilo_lightning.conf", config_name="config")
def _measure(config: DictConfig) -> int:
    from .measuring import measure_job

    return _run(measure_job, config)


def _flags_first(words: Sequence[str]) -> list[str]:
    """Hydra's own parser takes overrides in one piece only, before or after the flags."""
    parser, flags = get_args_parser(), []
    given, unknown = parser.parse_known_intermixed_args(words)
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if action.option_strings and value not in (None, False):
            name = action.option_strings[0]
            flags.append(name if value is True else f"{name}={value}")
    return [*flags, *unknown, *given.overrides]


def main(arguments: Sequence[str] | None = None, program: str | None = None, task: Callable[[], None] = _solve) -> int:
    """Run Hydra on ``arguments`` (the process's own unless given). Returns the exit code: 0 done, 1 crashed, 2
    refused before work, 3 some images failed, 130 or 143 interrupted; of a multirun see ``exit_codes.of_many``."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    overrides = list(argv[1:] if arguments is None else arguments)
    sys.argv = [program or argv[0], *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra leaves its errors to us
    _exit_codes.clear()
    sweeper.register()
    sweeper.PointSweeper.exit_code = sweeper.PointSweeper.folder = None
    try:
        overrides = _flags_first(overrides)
        sys.argv[1:] = overrides
        if any(word.startswith(("+", "baseline")) for word in overrides):
            from .refusal import unread

            if problem := unread(overrides):
                print(f"error: {problem}", file=sys.stderr)
                return REFUSED
        try:
            task()
        except HydraException:
            from .refusal import of_each_point

            if overrides == (overrides := of_each_point(overrides)):
                raise
            sys.argv[1:] = overrides
            task()
    except SystemExit as exit:
        if exit.code not in (None, 0):
            # Without a code of a job's own, Hydra has said what is wrong with the configuration.
            return max(_exit_codes, default=DONE) or REFUSED
    except KeyboardInterrupt:
        folder = sweeper.PointSweeper.folder
        if folder is None:
            raise
        print(f"interrupted; `ilo status {folder}` says what is done, or goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads what is printed: no fault of a folder's; see ``cli``
        raise
    except Exception as error:
        if _exit_codes:
            traceback.print_exc()
            return CRASHED
        from .refusal import EXPLAINED, explain

        if isinstance(error, sweeper.SweepError):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, EXPLAINED):
            print(f"error: {explain(error, overrides)}", file=sys.stderr)
        elif isinstance(error, OSError):  # no folder, or nothing can be written there
            field = "hydra.sweep.dir" if sweeper.PointSweeper.folder else "hydra.run.dir"
            print(f"error: {field}: {error}; choose another folder", file=sys.stderr)
        else:
            raise
        return REFUSED
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    if sweeper.PointSweeper.exit_code is not None:
        return sweeper.PointSweeper.exit_code
    return of_many(_exit_codes)


def solve(arguments: Sequence[str]) -> int:
    """``ilo solve``."""
    return main(arguments, program="ilo solve")


def measure(arguments: Sequence[str]) -> int:
    """``ilo measure``."""
    return main(arguments, program="ilo measure", task=_measure)
