"""One configuration, run: build what it describes, work through the images, print the outcome, give an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from . import metrics
from .callbacks.progress import display
from .data.images import DataError, load_images
from .files import write_atomically
from .generators.checkpoints import CheckpointError
from .interrupt import Interrupted, listen
from .main import DONE, REFUSED, SOME_FAILED
from .pipeline import RunError, Setting, run
from .schedule import ScheduleError

REFUSALS = (RunError, ScheduleError, DataError, CheckpointError, ValueError, OSError, OmegaConfBaseException)


def run_job(config: DictConfig, folder: str | Path) -> int:
    """Run one composed configuration with its outputs in ``folder``; never raises for what a user can get wrong."""
    folder = Path(folder)
    with listen() as stop:
        try:
            setting = build(config)
            if not (folder / "run.json").exists():  # a folder keeps the configuration that it was begun with
                write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        except InstantiationException as error:
            return _refuse(error.__cause__ or error)
        except REFUSALS as error:
            return _refuse(error)
        steps = len(setting.batches) * setting.steps_per_batch
        try:
            with display(steps) as shown:
                rows = run(setting, folder, shown, stop)
        except RunError as error:
            return _refuse(error)
        except (Interrupted, KeyboardInterrupt):  # a second Ctrl-C raises the latter
            if stop.signum is None:
                raise
            interruption = Interrupted(stop.signum)
            print(f"{interruption}; run the same command with hydra.run.dir={folder} to go on", file=sys.stderr)
            return interruption.exit_code
    report(setting, rows, folder)
    return SOME_FAILED if any("error" in row for row in rows) else DONE


def _refuse(error: BaseException) -> int:
    print(f"error: {str(error).strip() or type(error).__name__}", file=sys.stderr)
    return REFUSED


def build(config: DictConfig) -> Setting:
    """Instantiate and check everything a configuration describes."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    generator = hydra.utils.instantiate(config.generator)
    baseline = config.get("baseline")
    for field in ("operator", "noise"):
        if not config.task.get(field):
            raise RunError(f"task.{field}={config.task.get(field)}: a task needs one; see conf/task")
    return Setting(
        config={name: values.get(name) for name in ("task", "generator", "method", "baseline", "data", "seed")},
        generator=generator,
        operator=hydra.utils.instantiate(config.task.operator, image_shape=generator.image_shape),
        noise=hydra.utils.instantiate(config.task.noise),
        method=hydra.utils.instantiate(config.method),
        baseline=hydra.utils.instantiate(baseline) if baseline else None,
        images=load_images(config.data.path, generator.image_shape, config.data.limit),
        batch_size=config.data.batch_size,
        seed=config.seed,
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        trainer=values["trainer"],
        logger=hydra.utils.instantiate(config.logger.factory, _partial_=True) if config.logger.factory else None,
        log_every=config.logger.every,
    )


def _score(value: float | None, digits: int = 4) -> str:
    """A number for the table; a diverged image has none."""
    return "-" if value is None else f"{value:.{digits}g}"


def report(setting: Setting, rows: list[dict[str, Any]], folder: Path) -> None:
    """A table of the images' scores with their mean ± 1.96 standard errors, and where to look."""
    good = [row for row in rows if "error" not in row]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for row in rows:
        if "error" in row:
            console.print(f"image {row['index']}: {row['error']}", style="red", markup=False, highlight=False)
    if not good:
        return
    names = list(good[0]["metrics"])
    table = Table(title=f"{setting.task_name}, {len(good)} image{'s' * (len(good) > 1)}")
    table.add_column("image")
    table.add_column("method")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("evaluations", justify="right")

    def outcomes(row: dict[str, Any]) -> list[dict[str, Any]]:
        return [row["baseline"], row] if row["baseline"] else [row]

    if len(good) <= 16:
        for row in good:
            for outcome in outcomes(row):
                scores = [_score(outcome["metrics"][name]) for name in names]
                table.add_row(row["image"], outcome["method"], *scores, str(outcome["evaluations"]))
    if len(good) > 1:
        table.add_section()
        for place in range(len(outcomes(good[0]))):
            group = [outcomes(row)[place] for row in good]
            scores = []
            for name in names:
                values = [outcome["metrics"][name] for outcome in group if outcome["metrics"][name] is not None]
                mean, half = metrics.mean_and_interval(values) if values else (None, None)
                scores.append(f"{_score(mean)} ± {_score(half, 2)}")
            table.add_row("mean ± 1.96 s.e.", group[0]["method"], *scores, str(group[0]["evaluations"]))
    console.print(table)
    for name in names:
        console.print(f"{name}: {metrics.PROTOCOLS[name]}", style="dim", highlight=False, markup=False, soft_wrap=True)
    print(f"results: {folder / 'results.jsonl'}")
    print(f"picture: {folder / good[0]['folder'] / 'figure.png'}")
