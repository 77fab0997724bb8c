"""One configuration, run: build what it describes, work through the images, print the outcome, give an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger

from .callbacks.progress import display
from .data.images import load_images
from .files import write_atomically
from .generators.base import LayeredGenerator
from .interrupt import Interrupted, listen
from .main import DONE, REFUSED, SOME_FAILED
from .observations import MODES, Measured, Observations, Simulated
from .operators.base import ForwardOperator
from .operators.noise import NoiseModel
from .ops import ImplementationError, prepare, use
from .pipeline import run
from .rehearsal import check_generator_attributes, check_operator_attributes, one_line
from .report.table import print_scores
from .schedule import Method
from .setting import RunError, Setting, renamed

# ScheduleError, DataError, CheckpointError, RehearsalError and RunError are ValueErrors.
REFUSALS = (ValueError, OSError, OmegaConfBaseException)
SECTIONS = ("task", "generator", "method", "data", "trainer", "logger")

T = TypeVar("T")


def run_job(config: DictConfig, folder: str | Path) -> int:
    """Run one composed configuration with its outputs in ``folder``; never raises for what a user can get wrong."""
    if not isinstance(config.ops, DictConfig):
        return refuse(RunError(f"ops={config.ops}: expected a section with impl, see conf/config.yaml"))
    try:
        implementation = use(config.ops.impl)
    except ImplementationError as error:
        return refuse(error)
    with implementation:
        prepare()
        return _run_job(config, Path(folder))


def _run_job(config: DictConfig, folder: Path) -> int:
    with listen() as stop:
        try:
            setting = build(config)
            if not (folder / "run.json").exists():  # a folder keeps the configuration that it was begun with
                write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        except REFUSALS as error:
            return refuse(error)
        steps = len(setting.batches) * setting.steps_per_batch
        try:
            with display(steps) as shown:
                rows = run(setting, folder, shown, stop)
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
    with suppress(OSError):  # nobody reads it any more (`| head`): the results are files
        report(setting, rows, folder)
    failed = any({"error", "fault"} & {*row, *(row.get("baseline") or ())} for row in rows)
    return SOME_FAILED if failed else DONE


def refuse(error: BaseException) -> int:
    """Say why nothing was begun, in one line."""
    message = str(error)
    if isinstance(error, OmegaConfBaseException):
        message = f"{error.full_key}: {next(iter(message.splitlines()), '')}"
    print(f"error: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
    return REFUSED


def instantiate(config: Any, field: str, kind: type[T], **more: Any) -> T:
    """Build what a section of the configuration describes.

    Args:
        config: the section, with its ``_target_``.
        field: its name, for errors.
        kind: what it must be.
        more: further arguments of the target.

    Raises:
        RunError: naming the field, if building it fails, or gives something else.
    """
    target = config.get("_target_") if isinstance(config, DictConfig) else config
    try:
        # Plain lists and dictionaries: modules such as torch.nn.Unflatten take no others.
        made = hydra.utils.instantiate(config, **{"_convert_": "all", **more})
    except (Exception, SystemExit) as error:  # whatever a user's own module raises
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        message = renamed(str(cause), field)
        if not isinstance(cause, ValueError) or not re.match(r"(task|generator|method|baseline)\b", message):
            message = f"{field}._target_={target}: {one_line(cause)}"
        raise RunError(message) from error
    if not isinstance(made, kind):
        raise RunError(f"{field}._target_={target}: gives a {type(made).__name__}, expected a {kind.__name__}")
    return made


def generator_of(config: DictConfig) -> LayeredGenerator:
    """The generator that a configuration describes."""
    generator = instantiate(config.generator, "generator", LayeredGenerator)
    check_generator_attributes(generator)
    return generator


def build(config: DictConfig) -> Setting:
    """Instantiate and check everything a configuration describes."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    for name in SECTIONS:
        if not isinstance(config[name], DictConfig):
            raise RunError(f"{name}={config[name]}: expected a section of options, see conf/{name}")
    generator = generator_of(config)
    baseline = config.get("baseline")
    operator, observations = build_observations(config, generator)
    return Setting(
        config={name: values.get(name) for name in ("task", "generator", "method", "baseline", "data", "seed")},
        generator=generator,
        operator=operator,
        method=instantiate(config.method, "method", Method),
        baseline=instantiate(baseline, "baseline", Method) if baseline else None,
        observations=observations,
        batch_size=config.data.batch_size,
        seed=config.seed,
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        trainer=values["trainer"],
        logger=_logger(config.logger.factory) if config.logger.factory else None,
        log_every=config.logger.every,
    )


def _logger(config: Any) -> Callable[[Path, str], Sequence[Logger]]:
    factory: Any = instantiate(config, "logger.factory", object, _partial_=True)
    if not callable(factory):
        raise RunError(f"logger.factory={config}: expected a _target_, called with a folder and a name for each fit")
    return cast("Callable[[Path, str], Sequence[Logger]]", factory)


def build_observations(config: DictConfig, generator: LayeredGenerator) -> tuple[ForwardOperator, Observations]:
    """The forward model, and the images seen through it."""
    for field in ("operator", "noise"):
        if not config.task.get(field):
            raise RunError(f"task.{field}={config.task.get(field)}: a task needs one; see conf/task")
    if config.data.mode not in MODES:
        raise RunError(f"data.mode={config.data.mode}: expected one of {', '.join(MODES)}")
    shape = generator.image_shape
    operator = instantiate(config.task.operator, "task.operator", ForwardOperator, image_shape=shape)
    check_operator_attributes(operator)
    noise = instantiate(config.task.noise, "task.noise", NoiseModel)
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
    problems = [str(row.get("error", row.get("fault"))) for row in rows]
    if any(problem.startswith(("broken off", "can't be written", "can't be shown")) for problem in problems):
        print(f"run the same command with hydra.run.dir={folder} to go on", file=sys.stderr)
    print(f"results: {folder / 'results.jsonl'}")
    if good:
        print(f"picture: {folder / good[0]['folder'] / 'figure.png'}")


def _outcomes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [outcome | {"image": row["image"]} for outcome in (row["baseline"], row) if outcome]
