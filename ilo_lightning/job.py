"""One configuration, run: build what it describes, work through the images, print the outcome, give an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .callbacks.progress import display
from .data.images import DataError, load_images
from .files import write_atomically
from .generators.base import LayeredGenerator
from .generators.checkpoints import CheckpointError
from .interrupt import Interrupted, listen
from .loggers import RunInfo, RunLog
from .main import DONE, REFUSED, SOME_FAILED
from .observations import MODES, Measured, Observations, Simulated
from .operators.base import ForwardOperator
from .pipeline import RunError, Setting, run
from .report.table import print_scores
from .schedule import ScheduleError

REFUSALS = (RunError, ScheduleError, DataError, CheckpointError, ValueError, OSError, OmegaConfBaseException)


def run_job(config: DictConfig, folder: str | Path) -> int:
    """Run one composed configuration with its outputs in ``folder``; never raises for what a user can get wrong."""
    folder = Path(folder)
    with listen() as stop:
        try:
            setting = build(config)
            log = build_log(config, setting, folder)
            if not (folder / "run.json").exists():  # a folder keeps the configuration that it was begun with
                write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        except InstantiationException as error:
            return refuse(error.__cause__ or error)
        except REFUSALS as error:
            return refuse(error)
        steps = len(setting.batches) * setting.steps_per_batch
        try:
            with display(steps) as shown:
                rows = run(setting, folder, shown, stop, log)
        except RunError as error:
            return refuse(error)
        except OSError as error:  # the disk is full, or gone
            print(f"error: {folder}: can't be written ({error}); make room and run the same command with "
                  f"hydra.run.dir={folder} to go on", file=sys.stderr)  # fmt: skip
            return SOME_FAILED
        except (Interrupted, KeyboardInterrupt):  # a second Ctrl-C raises the latter
            if stop.signum is None:
                raise
            interruption = Interrupted(stop.signum)
            print(f"{interruption}; run the same command with hydra.run.dir={folder} to go on", file=sys.stderr)
            return interruption.exit_code
    report(setting, rows, folder)
    failed = any({"error", "fault"} & {*row, *(row.get("baseline") or ())} for row in rows)
    return SOME_FAILED if failed else DONE


def refuse(error: BaseException) -> int:
    """Say why nothing was begun, in one line."""
    print(f"error: {str(error).strip() or type(error).__name__}", file=sys.stderr)
    return REFUSED


def build(config: DictConfig) -> Setting:
    """Instantiate and check everything a configuration describes."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    generator = hydra.utils.instantiate(config.generator)
    baseline = config.get("baseline")
    operator, observations = build_observations(config, generator)
    return Setting(
        config={name: values.get(name) for name in ("task", "generator", "method", "baseline", "data", "seed")},
        generator=generator,
        operator=operator,
        method=hydra.utils.instantiate(config.method),
        baseline=hydra.utils.instantiate(baseline) if baseline else None,
        observations=observations,
        batch_size=config.data.batch_size,
        seed=config.seed,
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        trainer=values["trainer"],
    )


def build_log(config: DictConfig, setting: Setting, folder: Path) -> RunLog:
    """What follows the run in ``folder``, as ``logger=…`` says; see ``loggers``."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    sweep, overrides = None, {}
    if HydraConfig.initialized():
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            sweep = Path(job.sweep.dir).resolve().name
        parsed = OverridesParser.create().parse_overrides(list(job.overrides.task))
        overrides = {override.get_key_element(): override.get_value_string() for override in parsed}
    methods = tuple((method.name, method.schedule.steps) for method in setting.methods)
    info = RunInfo(folder, values, setting.task_name, methods, len(setting.batches), sweep, overrides)
    return hydra.utils.instantiate(config.logger, _partial_=True)(info)


def build_observations(config: DictConfig, generator: LayeredGenerator) -> tuple[ForwardOperator, Observations]:
    """The forward model, and the images seen through it."""
    for field in ("operator", "noise"):
        if not config.task.get(field):
            raise RunError(f"task.{field}={config.task.get(field)}: a task needs one; see conf/task")
    if config.data.mode not in MODES:
        raise RunError(f"data.mode={config.data.mode}: expected one of {', '.join(MODES)}")
    operator = hydra.utils.instantiate(config.task.operator, image_shape=generator.image_shape)
    noise = hydra.utils.instantiate(config.task.noise)
    path, limit = config.data.path, config.data.limit
    if config.data.mode == "measured":
        task: Any = OmegaConf.to_container(config.task, resolve=True)
        return operator, Measured(path, operator, task, limit, generator.dtype)
    noise.check(operator)
    images = load_images(path, generator.image_shape, limit)
    return operator, Simulated(images, operator, noise, config.seed, generator.dtype)


def report(setting: Setting, rows: list[dict[str, Any]], folder: Path) -> None:
    """A table of the images' scores, what went wrong, and where to look."""
    good = [row for row in rows if "error" not in row]
    for row in rows:
        outcomes = [row, row.get("baseline") or {}]
        for problem in dict.fromkeys(o[key] for o in outcomes for key in ("error", "fault") if key in o):
            print(f"image {row.get('image', row['index'])}: {problem}", file=sys.stderr)
    if good:
        print_scores(setting.task_name, [outcome for row in good for outcome in _outcomes(row)])
    if any("broken off" in str(row.get("error", row.get("fault"))) for row in rows):
        print(f"run the same command with hydra.run.dir={folder} to go on", file=sys.stderr)
    print(f"results: {folder / 'results.jsonl'}")
    if good:
        print(f"picture: {folder / good[0]['folder'] / 'figure.png'}")


def _outcomes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [outcome | {"image": row["image"]} for outcome in (row["baseline"], row) if outcome]
