"""One configuration, run: work through the images of what it describes, print the outcome, give an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .building import as_yaml, build, instantiate
from .callbacks.progress import display
from .errors import one_line
from .exit_codes import DONE, REFUSED, SOME_FAILED
from .files import write_atomically
from .interrupt import Interrupted, StopRequest, Taken, listen
from .loggers import RunInfo, RunLog
from .observations import Measured
from .ops import ImplementationError, prepare, use
from .pipeline import problems, run
from .report.table import print_scores
from .setting import RunError, Setting
from .sweeps.point import refused
from .sweeps.shard import Shard

# ScheduleError, DataError, CheckpointError, RehearsalError and RunError are ValueErrors.
REFUSALS = (ValueError, OSError, OmegaConfBaseException)


def run_job(config: DictConfig, folder: str | Path) -> int:
    """Run one composed configuration with its outputs in ``folder``; never raises for what a user can get wrong."""
    folder = Path(folder)
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    try:
        if not isinstance(config.ops, DictConfig):
            raise RunError(f"ops={config.ops}: expected a section with impl, see conf/config.yaml")
        implementation = use(config.ops.impl)
    except (RunError, ImplementationError) as error:
        record_refusal(config, folder, overrides, error)
        return refuse(error)
    with implementation:
        prepare()
        with listen() as stop:
            code = _run_job(config, folder, overrides, stop)
        return stop.pass_on(code)


def _run_job(config: DictConfig, folder: Path, overrides: Sequence[str], stop: StopRequest) -> int:
    try:
        setting = build(config, overrides)
        log = build_log(config, setting, folder)
        _tell_noise(config, setting)
    except REFUSALS as error:
        record_refusal(config, folder, overrides, error)
        return refuse(error)
    steps = len(setting.own_batches) * setting.steps_per_batch
    try:
        with display(steps) as shown:
            rows = run(setting, folder, shown, stop, log)
    except RunError as error:
        record_refusal(config, folder, overrides, error)
        return refuse(error)
    except OSError as error:  # the disk is full, or gone
        print(f"error: {folder}: can't be written ({error}); make room and run the same command with "
              f"hydra.run.dir={folder} to go on", file=sys.stderr)  # fmt: skip
        return SOME_FAILED
    except Taken as taken:
        print(f"{folder}: {taken}", file=sys.stderr)
        return taken.exit_code
    except (Interrupted, KeyboardInterrupt):  # a second Ctrl-C raises the latter
        if stop.signum is None:
            raise
        interruption = Interrupted(stop.signum)
        print(f"{interruption}; run the same command with hydra.run.dir={folder} to go on", file=sys.stderr)
        return interruption.exit_code
    with suppress(OSError):  # nobody reads it any more (`| head`): the results are files
        report(setting, rows, folder)
    return SOME_FAILED if any(problems(row) for row in rows) else DONE


def record_refusal(config: DictConfig, folder: Path, overrides: Sequence[str], error: BaseException) -> None:
    """Leave what was refused, and why, in a folder that holds no run."""
    if (folder / "run.json").exists():
        return
    data = config.get("data")
    try:
        write_atomically(folder / "config.yaml", as_yaml(config))
        shard = Shard.parse(data.get("shard") if isinstance(data, DictConfig) else None)
    except (OSError, ValueError):
        shard = Shard()
    refused(folder, shard, message_of(error), overrides, REFUSED)


def message_of(error: BaseException) -> str:
    """One line."""
    message = str(error)
    if isinstance(error, OmegaConfBaseException):
        message = f"{error.full_key}: {next(iter(message.splitlines()), '')}"
    if isinstance(error, MissingMandatoryValue):
        message = f"{error.full_key}: not given; add {error.full_key}=…"
    return " ".join(message.split()) or type(error).__name__


def refuse(error: BaseException) -> int:
    """Say why nothing was begun, in one line."""
    print(f"error: {message_of(error)}", file=sys.stderr)
    return REFUSED


def build_log(config: DictConfig, setting: Setting, folder: Path) -> RunLog:
    """What follows the run in ``folder``, as ``logger=…`` says; see ``loggers``."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    sweep, overrides = None, {}
    if HydraConfig.initialized():
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            sweep = Path(job.sweep.dir).resolve().name
        parsed = OverridesParser.create().parse_overrides(list(job.overrides.task))
        overrides = {each.get_key_element(): each.get_value_string() for each in parsed if not each.is_delete()}
    methods = tuple((method.name, method.steps) for method in setting.methods)
    info = RunInfo(folder, values, setting.task_name, methods, len(setting.batches), sweep, overrides)
    make: Any = instantiate(config.logger, "logger", object, _partial_=True)
    try:
        log = make(info)
    except ValueError:
        raise
    except Exception as error:  # no such option, say
        raise RunError(f"logger._target_={config.logger.get('_target_')}: {one_line(error)}") from error
    if not isinstance(log, RunLog):
        raise RunError(f"logger._target_={config.logger._target_}: gives a {type(log).__name__}, expected a RunLog")
    return log


def _tell_noise(config: DictConfig, setting: Setting) -> None:
    """Say which noise a method counts on, where the files of y don't state theirs."""
    observations = setting.observations
    if not isinstance(observations, Measured) or observations.noise_is_stated:
        return
    for field, method in (("baseline", setting.baseline), ("method", setting.method)):
        stages = method.schedule.stages if method is not None else ()
        if method is None or all((s.enough, s.sigma, s.bm3d) == (None, None, None) for s in stages):
            continue
        for index in range(len(observations)):  # what is refused is refused in one line
            observations.digest(index)
        stops = any(stage.enough is not None for stage in stages)
        print(f"task.noise.sigma={config.task.noise.get('sigma')}: {method.name} counts on it, as the files of y state "
              f"no noise; give theirs{f', or {field}.stop=null where nobody knows it' if stops else ''}",
              file=sys.stderr)  # fmt: skip


def report(setting: Setting, rows: list[dict[str, Any]], folder: Path) -> None:
    """A table of the images' scores, what went wrong, and where to look."""
    good = [row for row in rows if "error" not in row]
    for row in rows:
        for problem in dict.fromkeys(problems(row)):
            print(f"image {row.get('image', row['index'])}: {problem}", file=sys.stderr)
    if good:
        print_scores(setting.task_name, [outcome for row in good for outcome in _outcomes(row)])
    reasons = [str(row.get("error", row.get("fault"))) for row in rows]
    if any(reason.startswith(("broken off", "can't be")) for reason in reasons):
        print(f"run the same command with hydra.run.dir={folder} to go on", file=sys.stderr)
    print(f"results: {folder / 'results.jsonl'}")
    if good and setting.pack:
        print(f"pictures: in {folder / 'batches'}/*.zip")
    elif good:
        print(f"picture: {folder / good[0]['folder'] / 'figure.png'}")


def _outcomes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [outcome | {"image": row["image"]} for outcome in (row["baseline"], row) if outcome]
