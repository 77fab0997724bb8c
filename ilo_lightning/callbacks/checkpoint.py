"""Save often enough that a killed job loses little, and so that the file is always whole."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from ..interrupt import StopRequest
from ..problem import InverseProblem


class ResumeCheckpoint(Checkpoint):
    """Keeps one file from which the optimisation resumes to the same result, bit for bit.

    Lightning runs ``Checkpoint`` callbacks last, so the point is saved after its projections. The last step of a stage
    is saved when the epoch ends: saved any earlier, Lightning would resume with the stage's parameters in the next one.

    Args:
        path: the file; written aside, synchronised and renamed.
        every_seconds: time between two saves; also from the beginning to the first.
        every_steps: save after every so many steps, too; None: only time counts.
        stop: if somebody asked to stop, the file is saved and ``Interrupted`` raised.
        end: save when the last stage ends, too.
    """

    def __init__(
        self,
        path: str | Path,
        every_seconds: float = 30.0,
        every_steps: int | None = None,
        stop: StopRequest | None = None,
        end: bool = False,
    ):
        self.path, self.end = Path(path), end
        self.stop = stop or StopRequest()
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self._saved_at = time.monotonic()

    def of(self, part: str) -> ResumeCheckpoint:
        """Of a part that comes before this one's work, in a file beside it. It is saved at its end, so that the part is
        never done again."""
        path = self.path.with_name(f"{self.path.stem}-{part}{self.path.suffix}")
        return ResumeCheckpoint(path, self.every_seconds, self.every_steps, self.stop, end=True)

    def found(self) -> Path | None:
        """The file to go on from; None, with a warning, where it can't be read: the work then begins anew."""
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            missing = {"problem", "state_dict", "callbacks", "loops", "optimizer_states"} - set(saved)
            problem = f"it has no {', '.join(sorted(missing))}" if missing else None
        except Exception as error:  # what torch raises for a damaged file is not documented
            problem = type(error).__name__
        if problem is not None:
            warnings.warn(f"{self.path}: damaged ({problem}); starting this batch again", stacklevel=2)
            return None
        return self.path

    def save(self, trainer: pl.Trainer) -> None:
        """Save now. Where that fails (a full disk), warn and go on: the file saved before stays."""
        part = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            trainer.save_checkpoint(part, weights_only=False)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except (OSError, RuntimeError) as error:  # torch.save reports a failed write as a RuntimeError
            warnings.warn(f"{self.path}: can't be saved ({' '.join(str(error).split())[:200]}); going on", stacklevel=2)
        finally:
            part.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: object) -> None:
        if not trainer.is_last_batch:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        self._look(trainer, self.end and trainer.current_epoch + 1 == trainer.max_epochs)

    def _look(self, trainer: pl.Trainer, due: bool = False) -> None:
        """Save if it is time, or if somebody asked to stop."""
        due |= self.every_steps is not None and trainer.global_step % self.every_steps == 0
        asked = self.stop.signum is not None
        if due or asked or time.monotonic() - self._saved_at >= self.every_seconds:
            self.save(trainer)
        self.stop.check()
