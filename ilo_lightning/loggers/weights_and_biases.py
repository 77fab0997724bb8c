"""Weights & Biases: one run per configuration and shard, whatever happens to the job in between.

Imports wandb only where it is used. docs/wandb.md says what lands where.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pytorch_lightning.loggers import Logger

from .. import identity as provenance
from ..errors import first_line
from ..files import read_stored, write_atomically
from ..interrupt import Interrupted
from ..report.figure import Panel
from .base import LoggerError, RunInfo, RunLog
from .course import Course
from .wandb_login import choose_mode
from .wandb_naming import read_record, run_name, strip_key, summarise, sweep_key, swept_values

if TYPE_CHECKING:
    import wandb


class WandbLog(RunLog):
    """Shows a run on Weights & Biases: curves, pictures, a table of its images, and what the runs table sorts by.

    The W&B run begins with the first fit, and ends when the process leaves the run, however it does. Its id comes from
    the run's identity and shard, so a job that is killed and resumed goes on in the same W&B run. Once anything about
    W&B fails, one line says so and nothing more is told to it.

    Args:
        project, entity, group, tags: as W&B has them.
        images: so many images of the run have their pictures shown.
        mode: online, offline or disabled; None: ``WANDB_MODE``, else online if logged in and offline if not.
        suffix: appended to the id.
        timeout: seconds to wait for the server, at the beginning and at the end.

    Raises:
        LoggerError: if wandb is missing, an argument makes no sense, or W&B doesn't know the API key.
    """

    def __init__(
        self,
        info: RunInfo,
        every: int = 10,
        *,
        project: str = "ilo",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        images: int = 16,
        mode: str | None = None,
        suffix: str = "",
        timeout: float = 30.0,
    ):
        super().__init__(info, every)
        if not isinstance(images, int) or isinstance(images, bool) or images < 0:
            raise LoggerError(f"logger.images={images}: expected a whole number, at least 0")
        if not isinstance(timeout, int | float) or not timeout > 0:
            raise LoggerError(f"logger.timeout={timeout}: expected seconds, more than 0")
        if re.search(r"[/\\#?%:]", str(suffix)):
            raise LoggerError(f"logger.suffix={suffix}: expected none of / \\ # ? % :")
        self.info, self.images, self.timeout, self.suffix = info, images, float(timeout), str(suffix)
        self.project, self.entity, self.group, self.tags = project, entity, group or info.sweep, list(tags)
        self.mode, remark = choose_mode(mode)
        if remark:
            print(remark, file=sys.stderr)
        self._identity: str | None = None
        self._run: wandb.Run | None = None
        self._failed = self.mode == "disabled"
        self._finished = False
        self._rows: list[Mapping[str, Any]] = []
        self._strips: list[str] = []
        self._pictures: dict[str, Sequence[Panel]] = {}
        self._batch_end, self._row = 0, 0
        self._shard = f"-{info.shard.replace('/', 'of')}" if info.shard else ""  # shards may share a folder
        self._course = Course(info.folder / "logs" / f"course{self._shard}.jsonl")
        self._record = info.folder / "logs" / f"wandb{self._shard}.json"

    @property
    def run_id(self) -> str:
        """Of the W&B run: the beginning of the run's identity, and the shard."""
        assert self._identity is not None
        return f"{self._identity[:16]}{self._shard}{self.suffix}"

    def begin(self, identity: str) -> None:
        self._identity = identity
        self._strips = read_record(self._record).get("strips", [])

    def loggers(self, batch: int, method: str, images: int) -> Sequence[Logger]:
        names = [name for name, _ in self.info.methods]
        steps = [steps for _, steps in self.info.methods]
        start = batch * sum(steps) + sum(steps[: names.index(method)])
        self._batch_end = (batch + 1) * sum(steps)

        def tell(values: Mapping[str, float], step: int) -> None:
            self._course.add(batch, method, images, step, values)
            live = {f"live/{name}": value for name, value in values.items()}
            place = start + step
            self._try(lambda run: self._log(run, {"live/step": place, "live/batch": batch, **live}, place))

        self._try(lambda run: None)  # begins the run, outside of the time of a step
        return [] if self._failed else [_Fit(tell)]

    def picture(self, name: str, panels: Sequence[Panel]) -> None:
        key = strip_key(name)
        if key not in self._strips and len(self._strips) < self.images:
            self._strips.append(key)
        if key in self._strips:
            self._pictures[key] = panels

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows += rows
        if self._run is not None:
            self._try(self._show_batch)

    def _show_batch(self, run: wandb.Run) -> None:
        pictures = {key: [_image(panel) for panel in panels] for key, panels in self._pictures.items()}
        self._pictures.clear()
        if pictures:
            self._log(run, pictures, self._batch_end)
        run.summary.update(summarise(self._rows))
        self._write_record(finished=False)

    def finish(self) -> None:
        if self._run is not None or not read_record(self._record).get("finished"):
            self._try(self._conclude)  # else an earlier call has told everything, and nothing was done since

    def _conclude(self, run: wandb.Run) -> None:
        """What is only known at the end: curves over all images, the table, the summary."""
        end = self.info.steps
        for method, points in self._course.means().items():
            prefix = "curve" if method == self.info.method else "baseline_curve"
            for point in points:
                self._log(run, {f"{prefix}/{name}": value for name, value in point.items()}, end)
        summary = summarise(self._rows)
        swept = swept_values(self.info)
        if swept:
            axes = {sweep_key(key): value for key, value in swept.items()}
            self._log(run, {**axes, **{f"sweep/{name}": value for name, value in summary.items()}}, end)
        run.summary.update(summary)
        with _staging(self.info.folder):
            self._log(run, {"results": self._table()}, end)
        self._write_record(finished=True)
        self._finished = True

    def _write_record(self, finished: bool) -> None:
        """For ``ilo dashboard``, and for the next call: which W&B run this is, and what there is to see in it."""
        record = {
            "id": self.run_id,
            "project": self.project,
            "entity": self.entity or (self._run.entity if self._run is not None and self.mode == "online" else None),
            "group": self.group,
            "mode": self.mode,
            "method": self.info.method,
            "swept": swept_values(self.info),
            "strips": self._strips,
            "metrics": [name for name, value in summarise(self._rows).items() if isinstance(value, float)],
            "finished": finished,
        }
        write_atomically(self._record, json.dumps(record, indent=1) + "\n")

    def _table(self) -> wandb.Table:
        """A row per image and method, with the pictures of the first few images."""
        import wandb

        outcomes = [
            (row, outcome, suffix)
            for row in self._rows
            for outcome, suffix in ((row, ""), (row.get("baseline"), f"-{self.info.methods[0][0]}"))
            if outcome
        ]
        names = list(dict.fromkeys(name for _, outcome, _ in outcomes for name in outcome.get("metrics", {})))
        names += ["data_fit", "evaluations", "seconds"]
        shown = [row["image"] for row in self._rows if "error" not in row][: self.images]
        pictures = ("measurement", "reconstruction", "truth")
        table = wandb.Table(columns=["image", "method", *pictures, *names, "problem"])
        for row, outcome, suffix in outcomes:
            cells: list[Any] = [row.get("image", f"image {row['index']}"), outcome.get("method", self.info.method)]
            for picture in pictures:
                name = f"{picture}{suffix}.png" if picture == "reconstruction" else f"{picture}.png"
                cells.append(self._picture(row, name) if row.get("image") in shown else None)
            values = {**outcome, **outcome.get("metrics", {})}
            cells += [values.get(name) for name in names]
            table.add_data(*cells, outcome.get("error") or outcome.get("fault"))
        return table

    def _picture(self, row: Mapping[str, Any], name: str) -> wandb.Image | None:
        """One of an image's pictures, from its folder or packed."""
        import wandb

        try:
            return wandb.Image(Image.open(io.BytesIO(read_stored(self.info.folder, row, name))))
        except OSError:
            return None

    def close(self) -> None:
        with suppress(OSError):
            self._course.close()
        if self._run is None:
            return
        self._try(self._leave)

    def _leave(self, run: wandb.Run) -> None:
        if isinstance(sys.exc_info()[1], Interrupted | KeyboardInterrupt):
            run.mark_preempting()  # so that W&B shows it as preempted, not crashed: it will be resumed
        run.finish(exit_code=0 if self._finished else 1)
        self._run = None
        if self.mode == "offline":
            print(f"W&B: logged offline; to upload: {self._sync}")

    @property
    def _sync(self) -> str:
        """The command that uploads what lies in the run's folder."""
        offline = "offline-" if self.mode == "offline" else ""
        option = "" if offline else "--include-online "
        return f"wandb sync {option}{shlex.quote(str(self.info.folder))}/wandb/{offline}run-*-{self.run_id}"

    def _log(self, run: wandb.Run, values: Mapping[str, Any], place: int) -> None:
        """A row of the W&B run's history, numbered by its place in the work: a process that goes on with a run offline
        can't know how many rows were written before, and the rows of both are uploaded to one run."""
        self._row = max(place, self._row)
        run.log(dict(values), step=self._row, commit=True)
        self._row += 1

    def _try(self, action: Callable[[wandb.Run], None]) -> None:
        """Do something with the W&B run, which is begun if it isn't yet. If that fails, it ends the logging only."""
        if self._failed:
            return
        try:
            if self._run is None:
                self._run = self._open()
            action(self._run)
        except Exception as error:
            self._failed = True
            print(
                f"W&B: {first_line(error)}; going on without it, the results are in {self.info.folder}"
                + (f"; to upload what W&B has been told: {self._sync}" if self._run is not None else ""),
                file=sys.stderr,
            )
            self._give_up(error)

    def _open(self) -> wandb.Run:
        import wandb

        try:
            run = self._init(self.mode)
        except wandb.Error as error:
            if self.mode != "online":
                raise
            print(f"W&B: {first_line(error)}; logging offline", file=sys.stderr)
            self.mode = "offline"
            run = self._init(self.mode)
        for section in ("live", "curve", "baseline_curve"):
            run.define_metric(f"{section}/step", summary="none")
            run.define_metric(f"{section}/*", step_metric=f"{section}/step", summary="none")
        run.define_metric("sweep/*", summary="none")
        self._row = run.step  # where the server knows rows of before; asked once, since it waits for W&B's process
        self._write_record(finished=False)
        if self.mode == "online":
            print(f"W&B: {run.url}")
        return run

    def _init(self, mode: str) -> wandb.Run:
        import wandb

        info = self.info
        info.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            id=self.run_id,
            resume="allow",
            reinit="create_new",  # never the run of somebody who calls us, nor the one before in a multirun
            mode=mode,  # type: ignore[arg-type]
            dir=str(info.folder),
            project=self.project,
            entity=self.entity,
            group=self.group,
            job_type=info.task,
            name=run_name(info),
            tags=[*dict.fromkeys((info.method, *self.tags))],
            config={**info.config, "identity": self._identity, "versions": provenance.versions()},
            settings=wandb.Settings(silent=True, console="off", init_timeout=self.timeout, finish_timeout=self.timeout),
        )

    def _give_up(self, error: Exception) -> None:
        import wandb

        run, self._run = self._run, None
        gone = run is None and not isinstance(error, wandb.Error)
        if run is not None:
            try:
                run.finish(exit_code=1)
            except TimeoutError:  # the rest can be uploaded later
                pass
            except Exception:  # what W&B raises for this is not documented
                gone = True
        if gone:  # W&B's own process: let go of it, or it complains at the exit, and the next run has no other
            with suppress(Exception):
                wandb.teardown()


class _Fit(Logger):
    """What Lightning tells one fit's curves to."""

    def __init__(self, tell: Callable[[Mapping[str, float], int], None]):
        super().__init__()
        self._tell = tell

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._tell(metrics, step or 0)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run has the whole configuration."""


@contextmanager
def _staging(folder: Path) -> Iterator[None]:
    """Let W&B keep what a table refers to with the run, where it lasts until it is uploaded, and not in the home."""
    name = "WANDB_DATA_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str((folder / "wandb").resolve())
    try:
        yield
    finally:
        del os.environ[name]


def _image(panel: Panel) -> wandb.Image:
    import wandb

    return wandb.Image(panel.pixels, caption=f"{panel.title}  {panel.note}".strip())
