"""One configuration, run: build what it describes, work through the images, print the outcome, give an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .callbacks.progress import display
from .data.images import DataError, load_images
from .files import write_atomically
from .generators.base import LayeredGenerator
from .generators.checkpoints import CheckpointError
from .interrupt import Interrupted, StopRequest, Taken, listen
from .main import DONE, REFUSED, SOME_FAILED
from .observations import MODES, Measured, Observations, Simulated
from .operators.base import ForwardOperator
from .pipeline import RunError, Setting, run
from .report.table import print_scores
from .schedule import ScheduleError
from .sweeps.inputs import inputs_of
from .sweeps.point import force_word, refused
from .sweeps.shard import Shard

REFUSALS = (RunError, ScheduleError, DataError, CheckpointError, ValueError, OSError, OmegaConfBaseException)


def run_job(config: DictConfig, folder: str | Path) -> int:
    """Run one composed configuration with its outputs in ``folder``; never raises for what a user can get wrong."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    with listen() as stop:
        code = _run_job(config, Path(folder), overrides, stop)
    stop.pass_on()
    return code


def _run_job(config: DictConfig, folder: Path, overrides: Sequence[str], stop: StopRequest) -> int:
    try:
        setting = build(config, overrides)
    except (InstantiationException, *REFUSALS) as error:
        cause = error.__cause__ or error if isinstance(error, InstantiationException) else error
        record_refusal(config, folder, overrides, str(cause).strip() or type(cause).__name__)
        return refuse(cause)
    steps = len(setting.own_batches) * setting.steps_per_batch
    try:
        with display(steps) as shown:
            rows = run(setting, folder, shown, stop)
    except RunError as error:
        record_refusal(config, folder, overrides, str(error))
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
    report(setting, rows, folder)
    failed = any({"error", "fault"} & {*row, *(row.get("baseline") or ())} for row in rows)
    return SOME_FAILED if failed else DONE


def record_refusal(config: DictConfig, folder: Path, overrides: Sequence[str], error: str) -> None:
    """Leave what was refused, and why, in a folder that holds no run."""
    if (folder / "run.json").exists():
        return
    try:
        write_atomically(folder / "config.yaml", as_yaml(config))
        shard = Shard.parse(config.data.get("shard"))
    except (OSError, ValueError):
        shard = Shard()
    refused(folder, shard, error, overrides, REFUSED)


def as_yaml(config: DictConfig) -> str:
    """The configuration of a folder, whichever shard of it a job works on; resolved, as far as it can be."""
    shared = OmegaConf.merge(config, {"data": {"shard": None}, "force": False})
    try:
        return OmegaConf.to_yaml(shared, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_yaml(shared)


def refuse(error: BaseException) -> int:
    """Say why nothing was begun, in one line."""
    print(f"error: {str(error).strip() or type(error).__name__}", file=sys.stderr)
    return REFUSED


NOT_COMPUTED = ("trainer", "logger", "checkpoint_every_seconds", "force", "pack")
"""Sections of the configuration that change how a run is done, and not what is computed."""


def build(config: DictConfig, overrides: Sequence[str] = ()) -> Setting:
    """Instantiate and check everything a configuration describes."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    shard = Shard.parse(config.data.get("shard"))
    generator = hydra.utils.instantiate(config.generator)
    baseline = config.get("baseline")
    operator, observations = build_observations(config, generator)
    return Setting(
        config={name: value for name, value in values.items() if name not in NOT_COMPUTED},
        generator=generator,
        operator=operator,
        method=hydra.utils.instantiate(config.method),
        baseline=hydra.utils.instantiate(baseline) if baseline else None,
        observations=observations,
        batch_size=config.data.batch_size,
        seed=config.seed,
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        trainer=values["trainer"],
        logger=hydra.utils.instantiate(config.logger.factory, _partial_=True) if config.logger.factory else None,
        log_every=config.logger.every,
        shard=shard,
        force=force_word(config.get("force")),
        inputs=inputs_of(values),
        overrides=tuple(overrides),
        pack=config.get("pack", False),
        yaml=as_yaml(config),
    )


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
    if good and setting.pack:
        print(f"pictures: in {folder / 'batches'}/*.zip")
    elif good:
        print(f"picture: {folder / good[0]['folder'] / 'figure.png'}")


def _outcomes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [outcome | {"image": row["image"]} for outcome in (row["baseline"], row) if outcome]
