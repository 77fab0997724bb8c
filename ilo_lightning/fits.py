"""One ``Trainer.fit``: an inverse problem and the callbacks of a method in, what came of it out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from .callbacks import (
    BestIterate,
    Curves,
    Discrepancy,
    History,
    L1Projection,
    PlugAndPlay,
    PosteriorSamples,
    Progress,
    ResumeCheckpoint,
    Spheres,
    StageEnds,
    StageSchedule,
)
from .callbacks.progress import Display
from .generators.base import LatentPoint
from .interrupt import Interrupted
from .method import Method
from .problem import InverseProblem

# What doesn't change the optimisation: not limit_train_batches, accumulate_grad_batches, gradient_clip_val, max_time, …
TRAINER_ARGUMENTS = ("accelerator", "precision", "deterministic", "benchmark", "detect_anomaly", "profiler")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # the others would cast the point, and not the generator


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that make no Trainer, or one that would run another optimisation, before any long work.

    Raises:
        ValueError: naming what can be set, or with Lightning's own words.
    """
    for name, value in arguments.items():
        if name not in TRAINER_ARGUMENTS:
            raise ValueError(f"trainer.{name}={value}: can't be set; expected {', '.join(TRAINER_ARGUMENTS)}")
    if str(arguments.get("precision", PRECISIONS[0])) not in PRECISIONS:
        raise ValueError(f"trainer.precision={arguments['precision']}: expected one of {', '.join(PRECISIONS)}")
    if str(arguments.get("precision")) == "16-mixed" and _accelerator(arguments) == "cpu":
        raise ValueError("trainer.precision=16-mixed: needs a GPU; on a CPU use bf16-mixed or 32-true")
    with _quiet_lightning():
        try:
            _new_trainer(arguments, max_epochs=1, logger=False, enable_checkpointing=False)
        except Exception as error:  # whatever Lightning and its accelerators raise
            raise ValueError(f"trainer={dict(arguments)}: {error}") from error


def _accelerator(arguments: Mapping[str, Any]) -> Any:
    """As given, or a GPU where there is one: Lightning's own choice includes MPS, which has no float64 for the
    projections."""
    accelerator = arguments.get("accelerator", "auto")
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator


def _new_trainer(arguments: Mapping[str, Any], **more: Any) -> pl.Trainer:
    """A Trainer whose epochs are the stages of one batch."""
    return pl.Trainer(
        **{**arguments, "accelerator": _accelerator(arguments)},
        devices=1,  # parallelism is over jobs and within the batch
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],  # under SLURM too: requeueing is the launcher's business
        **more,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning tells every Trainer's user, and what doesn't apply to this training loop."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    loggers += [logging.getLogger("pytorch_lightning.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*`srun` command is available.*",  # the launcher's business, as above
                ".*ended before the epoch ended and your dataloader is not resumable.*",  # the loader is range(steps)
                ".*is smaller than the logging interval.*",
                ".*Found .* module.* in eval mode.*",
                ".*GPU available but not used.*",
                ".*treespec.*LeafSpec.*",  # Lightning 2.6 against torch 2.14
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass
class Fit:
    """What one ``Trainer.fit`` came to. ``course``: the data fit ``(steps, B)``, without the last look; ``looks``: how
    often the generator was evaluated without a gradient, beside ``evaluations``; ``ends``: the last point of every
    stage, on the CPU."""

    best: BestIterate
    course: Tensor
    stages: list[int]
    seconds: float
    evaluations: int
    looks: int
    ends: list[LatentPoint]
    posterior: PosteriorSamples | None
    broken: Exception | None


@dataclass(frozen=True)
class Fits:
    """How the fits of a method are done."""

    method: Method
    trainer: Mapping[str, Any]
    callbacks: Sequence[Callback]
    loggers: Sequence[Logger]
    log_every: int
    display: Display

    def run(
        self, problem: InverseProblem, best: BestIterate, checkpoint: ResumeCheckpoint | None, after: Fit | None = None
    ) -> Fit:
        """Optimise; what breaks it off is kept, unless it was asked for."""
        method = self.method
        projection, history, ends = L1Projection(), History(), StageEnds()
        spheres = Spheres(method.spheres if after is None else (), method.standardize if after is None else ())
        own: list[Callback] = [
            StageSchedule(), best, spheres, PlugAndPlay(), projection, Discrepancy(), history, ends
        ]  # fmt: skip
        posterior = PosteriorSamples(method.sample_steps()) if method.keep == "samples" else None
        if posterior is not None:
            own.append(posterior)
        if self.loggers:
            before = (0, 0) if after is None else (len(after.course), len(method.schedule))
            own.append(Curves(history, projection, self.log_every, before))
        own += [Progress(self.display), *self.callbacks]
        resume = None
        if checkpoint is not None:
            own.append(checkpoint)
            resume = checkpoint.found()
        broken: Exception | None = None
        with _quiet_lightning():
            trainer = _new_trainer(
                self.trainer,
                max_epochs=len(problem.schedule),
                callbacks=own,
                logger=list(self.loggers) or False,
                enable_checkpointing=checkpoint is not None,
                default_root_dir=checkpoint.path.parent if checkpoint else None,
            )
            try:
                trainer.fit(problem, ckpt_path=resume, weights_only=True)
            except SystemExit:
                # Lightning's way out at SIGTERM or a second SIGINT, where it comes before ResumeCheckpoint's.
                if checkpoint is not None:
                    checkpoint.stop.check()
                raise
            except Interrupted:
                raise
            except Exception as error:
                broken = error
        taken = len(history.fit)
        if broken is None and taken < problem.schedule.steps:  # Lightning takes a StopIteration for the end of the data
            broken = RuntimeError(
                f"it ended after {taken} of {problem.schedule.steps} steps: the generator or the operator raised "
                "StopIteration (next() of nothing?)"
            )
        course = torch.stack(history.fit).cpu() if history.fit else torch.zeros(0, problem.point.batch_size)
        return Fit(best, course, history.stage, history.seconds, problem.evaluations, problem.looks, ends.points,
                   posterior, broken)  # fmt: skip
