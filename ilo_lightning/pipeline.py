"""A whole run: observations -> batches -> solutions, pictures and results in one folder.

FOLDER/config.yaml                      the resolved configuration
FOLDER/run.json                         what makes this run this run (see ``identity``)
FOLDER/status.json                      what became of it (see ``sweeps.status``)
FOLDER/images/NAME/truth.png, measurement.png, reconstruction.png, figure.png (no truth.png where there is none)
FOLDER/images/NAME/solution.safetensors (a baseline's files carry its name: solution-csgm.safetensors)
FOLDER/batches/0000.jsonl               a finished batch; 0000-METHOD.ckpt while it is being worked on;
                                        0000-error.txt if something broke it off, and 0000-fault.jsonl with what there
                                        is: it is taken up again by the next call
FOLDER/batches/0000.zip                 with ``pack``, the files of a batch's images instead of images/NAME
FOLDER/results.jsonl                    all batches merged, once every batch was worked on
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from . import identity, metrics
from .callbacks import ResumeCheckpoint
from .callbacks.progress import Display
from .data.images import DataError, save_png, to_uint8
from .files import pack, write_atomically
from .generators.base import LayeredGenerator
from .interrupt import StopRequest
from .observations import Observation, Observations, device_of, header, observe
from .operators.base import ForwardOperator
from .report.figure import Panel, save_figure
from .schedule import Method
from .solution import Solution
from .solve import Reconstruction, SolveError, check_method, check_trainer, initial_point, solve
from .sweeps.point import Busy, working
from .sweeps.shard import Shard
from .sweeps.status import RESULTS

Row = dict[str, Any]


class RunError(ValueError):
    """A run that can't begin; the message names the field, its value and the remedy."""


@dataclass(frozen=True)
class Setting:
    """Everything a run needs, built and checked.

    Args:
        config: resolved configuration (JSON values); but for the places of files it makes the run's identity.
        method: what is run; ``baseline``, if any, is run first on the same measurements.
        trainer: further arguments of ``pytorch_lightning.Trainer``.
        logger: called with a folder and a name for each fit, gives Lightning loggers.
        shard: the batches that are worked on; the others may be anywhere else.
        force: begin anew what was begun without this word; None: go on.
        inputs, overrides: for the status (see ``sweeps.status``).
        pack: put the files of a batch's images into one.
        yaml: the whole configuration, for config.yaml.
    """

    config: Mapping[str, Any]
    generator: LayeredGenerator
    operator: ForwardOperator
    method: Method
    observations: Observations
    baseline: Method | None = None
    batch_size: int = 8
    seed: int = 0
    checkpoint_every_seconds: float = 30.0
    trainer: Mapping[str, Any] | None = None
    logger: Callable[[Path, str], Sequence[Logger]] | None = None
    log_every: int = 10
    shard: Shard = field(default_factory=Shard)
    force: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    pack: bool = False
    yaml: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.pack, bool):
            raise RunError(f"pack={self.pack}: expected true or false")
        for name, value in (("data.batch_size", self.batch_size), ("logger.every", self.log_every)):
            if not _is_whole(value) or value < 1:
                raise RunError(f"{name}={value}: expected a whole number, at least 1")
        if not _is_whole(self.seed):
            raise RunError(f"seed={self.seed}: expected a whole number")
        if not isinstance(self.checkpoint_every_seconds, int | float) or not self.checkpoint_every_seconds > 0:
            raise RunError(f"checkpoint_every_seconds={self.checkpoint_every_seconds}: expected seconds, more than 0")
        check_trainer(self.trainer or {})
        check_method(self.method, self.generator)
        if self.baseline is not None:
            check_method(self.baseline, self.generator)
            if self.baseline.name == self.method.name:
                raise RunError(f"method@baseline={self.baseline.name}: the same name as the method; choose another")
        if tuple(self.operator.input_shape) != tuple(self.generator.image_shape):
            raise RunError(
                f"task.operator takes images {tuple(self.operator.input_shape)}, the generator makes "
                f"{tuple(self.generator.image_shape)}"
            )
        self._rehearse()

    def _rehearse(self) -> None:
        """One image through generator and operator, so that what they can't do is known before any long work."""
        point = initial_point(self.generator, self.method, [torch.Generator().manual_seed(0)])
        for part, expected, make in (
            ("generator", self.generator.image_shape, lambda: self.generator(point)),
            ("task.operator", self.operator.output_shape, lambda: self.operator(self.generator(point))),
        ):
            try:
                with torch.no_grad():
                    shape = tuple(make().shape)
            except Exception as error:  # whatever a user's own module raises
                raise RunError(f"{part}: fails on its first image ({type(error).__name__}: {error})") from error
            if shape != (1, *expected):
                raise RunError(f"{part}: gives {shape} for one image, but says {(1, *expected)}")

    @property
    def methods(self) -> list[Method]:
        return [self.method] if self.baseline is None else [self.baseline, self.method]

    @property
    def batches(self) -> list[range]:
        count = len(self.observations)
        return [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]

    @property
    def own_batches(self) -> list[tuple[int, range]]:
        """Of the shard, with their numbers."""
        return [(index, members) for index, members in enumerate(self.batches) if self.shard.holds(index)]

    @property
    def steps_per_batch(self) -> int:
        return sum(method.schedule.steps for method in self.methods)

    @property
    def task_name(self) -> str:
        return str(self.config.get("task", {}).get("name", type(self.operator).__name__))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def run(setting: Setting, folder: Path, display: Display, stop: StopRequest | None = None) -> list[Row]:
    """Work through the images of the shard; go on where an earlier call on the same folder stopped.

    Returns:
        A row per image, as in results.jsonl. A row with ``error`` has no result: an unreadable image, say. A row with
        ``fault`` has the best found until something broke the work off, or left the finite numbers.

    Raises:
        RunError: if the folder holds another run, or another process is working in it.
        Interrupted: if asked to stop.
    """
    stop, parts = stop or StopRequest(), parts_of(setting)
    try:
        with working(
            folder,
            setting.shard,
            lambda others: claim(setting, parts, folder, others),
            stop,
            setting.inputs,
            setting.overrides,
        ) as work:
            rows = _run_batches(setting, folder, display, stop)
            problems = [problem for row in rows for problem in _problems(row)]
            failed = sum(bool(_problems(row)) for row in rows)
            work.images = {"done": len(rows) - failed, "failed": failed}
            if failed:
                work.error = f"{failed} of {len(rows)} images: {problems[0]}"
            return rows
    except Busy as busy:
        raise RunError(
            f"hydra.run.dir={folder}: another process is working in this folder: {busy}; choose another folder, or wait"
        ) from None


def _problems(row: Row) -> list[str]:
    """What went wrong with an image."""
    outcomes = (row, row.get("baseline") or {})
    return [str(outcome[key]) for outcome in outcomes for key in ("error", "fault") if key in outcome]


def _run_batches(setting: Setting, folder: Path, display: Display, stop: StopRequest) -> list[Row]:
    rows: list[Row] = []
    unwritten: dict[int, list[Row]] = {}
    for index, members in setting.own_batches:
        stop.check()
        batch = folder / "batches" / f"{index:04d}"
        finished, faulty = batch.with_suffix(".jsonl"), Path(f"{batch}-fault.jsonl")
        if finished.exists():
            display.step("finished before", setting.steps_per_batch, None)
            rows += _read_rows(finished)
            continue
        try:
            found, complete = _run_batch(setting, folder, index, members, display, stop)
            write_atomically(finished if complete else faulty, _lines(found))
            if complete:
                for leftover in (*batch.parent.glob(f"{batch.name}-*.ckpt"), faulty, Path(f"{batch}-error.txt")):
                    leftover.unlink(missing_ok=True)
        except (
            OSError
        ) as error:  # such as a full disk: what is there stays, and the next call takes up this batch again
            found = [{"index": member, "error": f"can't be written: {error}"} for member in members]
            unwritten[index] = found
        rows += found
    _merge(setting, folder, unwritten)
    return rows


def _merge(setting: Setting, folder: Path, unwritten: Mapping[int, list[Row]]) -> None:
    """Write results.jsonl, if all batches were worked on, here or elsewhere. Whoever comes last can, and if two do,
    they write the same."""
    rows: list[Row] = []
    for index in range(len(setting.batches)):
        files = [folder / "batches" / f"{index:04d}{suffix}.jsonl" for suffix in ("", "-fault")]
        known = next((path for path in files if path.exists()), None)
        if known is None and index not in unwritten:
            return
        rows += unwritten[index] if known is None else _read_rows(known)
    write_atomically(folder / RESULTS, _lines(rows))
    if not any(_problems(row) for row in rows):
        for place in (folder / "batches", folder / "images"):
            for leftover in place.rglob(".*.part"):  # of processes that were killed while they wrote a file
                leftover.unlink(missing_ok=True)


def _read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parts_of(setting: Setting) -> dict[str, Any]:
    """What makes a run this run: its configuration, and of the files that it names the contents, not the places."""
    parts = identity.without_places(setting.config)
    parts["batch_size"] = setting.batch_size  # resuming re-forms the same batches
    weights = setting.generator.provenance.get("sha256") or identity.fingerprint(setting.generator)
    return parts | {
        "operator": identity.fingerprint(setting.operator),
        "weights": weights,
        "images": _digests(setting.observations),
        "precision": (setting.trainer or {}).get("precision"),
        "version": identity.versions()["ilo_lightning"],
    }


def claim(setting: Setting, parts: Mapping[str, Any], folder: Path, others: bool = False) -> None:
    """Write down which run the folder holds, or check that it is this one.

    Args:
        others: whether other processes work in it, on other shards.
    """
    record = folder / "run.json"
    try:
        found = json.loads(record.read_text()) if record.exists() else None
        old = found["parts"] if found else None
    except (ValueError, TypeError, KeyError):
        found = old = None
        if setting.force is None:
            raise RunError(
                f"hydra.run.dir={folder}: its run.json is damaged; choose another folder, or begin anew with force=true"
            ) from None
    if setting.force is not None and (found or {}).get("force") != setting.force:
        if others:
            raise RunError(f"force: other processes work in {folder}; stop them first")
        for name in ("batches", "images", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for path in (folder / RESULTS, record, folder / "config.yaml", *folder.glob("status*.json")):
            path.unlink(missing_ok=True)
        old = None
    if old is not None:
        changes = identity.differences(old, parts)
        if changes:
            raise RunError(
                f"hydra.run.dir={folder}: holds another run ({'; '.join(changes[:4])}); "
                "choose another folder, or begin anew with force=true"
            )
        return
    if any((folder / "batches").glob("*.jsonl")):
        raise RunError(
            f"hydra.run.dir={folder}: holds results, but no run.json that says of what; choose another folder, or "
            "begin anew with force=true"
        )
    write_atomically(folder / "config.yaml", setting.yaml)
    content = {"identity": identity.identity(parts), "parts": parts, "force": setting.force}
    write_atomically(record, json.dumps(content, indent=1))


def _digests(observations: Observations) -> list[str]:
    """Of those that can be read; refuses to begin if that is none."""
    digests, errors = [], []
    for index in range(len(observations)):
        try:
            digests.append(observations.digest(index))
        except DataError as error:
            errors.append(error)
    if not digests:
        more = f" (nor can the {len(errors) - 1} others be used)" if len(errors) > 1 else ""
        raise RunError(f"{errors[0]}{more}")
    return digests


def _run_batch(
    setting: Setting, folder: Path, index: int, members: range, display: Display, stop: StopRequest
) -> tuple[list[Row], bool]:
    """A row per image, and whether the batch was worked through: if something broke it off, the next call goes on."""
    rows: dict[int, Row] = {}
    known: dict[int, Observation] = {}
    for member in members:
        try:
            known[member] = setting.observations[member]
        except DataError as error:
            rows[member] = {"index": member, "error": str(error)}
    if not known:
        display.step("no readable image", setting.steps_per_batch, None)
        return [rows[member] for member in members], True
    measurement = observe(list(known.values()))
    digests = [observation.digest for observation in known.values()]
    runs: dict[str, Reconstruction] = {}
    fault: str | None = None
    for method in setting.methods:
        stop.check()
        display.begin(f"batch {index + 1}/{len(setting.batches)}  {method.name}")
        name = f"{index:04d}-{method.name}"
        try:
            runs[method.name] = solve(
                setting.generator,
                setting.operator,
                measurement,
                method,
                keys=digests,
                seed=setting.seed,
                checkpoint=ResumeCheckpoint(
                    folder / "batches" / f"{name}.ckpt", setting.checkpoint_every_seconds, stop=stop
                ),
                trainer=setting.trainer,
                loggers=setting.logger(folder / "logs", name) if setting.logger else (),
                log_every=setting.log_every,
                display=display,
                info={
                    "task": setting.task_name,
                    "config": dict(setting.config),
                    "versions": identity.versions(),
                    "commit": identity.commit(),
                    "batch": digests,
                },
            )
        except SolveError as error:
            fault = str(error)
            write_atomically(folder / "batches" / f"{index:04d}-error.txt", "".join(traceback.format_exception(error)))
            if error.reconstruction is not None:
                runs[method.name] = error.reconstruction
    with tempfile.TemporaryDirectory() if setting.pack else nullcontext(folder) as base:
        for place, (member, observation) in enumerate(known.items()):
            if setting.method.name in runs:
                target = Path(base) / "images" / observation.name
                row = _write_image(setting, target, member, observation, runs, place)
                row |= {"folder": f"images/{observation.name}", "batch": index}
                rows[member] = row if fault is None else row | {"fault": fault}
            else:
                rows[member] = {"index": member, "image": observation.name, "error": fault}
        if setting.pack:
            pack(Path(base), folder / "batches" / f"{index:04d}.zip")
    return [rows[member] for member in members], fault is None


def _write_image(
    setting: Setting,
    target: Path,
    member: int,
    observation: Observation,
    runs: Mapping[str, Reconstruction],
    place: int,
) -> Row:
    """Solution, pictures and figure of one image; its row of results.jsonl."""
    truth = observation.truth
    y = observation.measurement.y.to(device_of(setting.operator))  # the first fit has moved it, after y was made
    observed = setting.operator.picture(y)[0].cpu()
    if truth is not None:
        save_png(truth, target / "truth.png")
    save_png(observed, target / "measurement.png")
    observation.measurement.save(
        target / "measurement.safetensors", header(setting.operator, setting.config.get("task"), observation.name)
    )
    panels = [_panel("measurement", observed)]
    outcomes: dict[str, Row] = {}
    for method in setting.methods:
        if method.name not in runs:
            continue
        suffix = "" if method is setting.method else f"-{method.name}"
        path = target / f"solution{suffix}.safetensors"
        reconstruction = runs[method.name]
        reconstruction.solutions[place].save(path)
        # What is shown and scored is what the file decodes to, on its own.
        solution = Solution.load(path)
        decoded = solution.decode(setting.generator).cpu()
        save_png(decoded.nan_to_num(nan=0.0), target / f"reconstruction{suffix}.png")
        scores = _scores(decoded, truth)
        stages = []
        # A method that was broken off has fewer pictures than stages.
        for stage, pictures in zip(method.schedule.stages, reconstruction.strip, strict=False):
            psnr = _scores(pictures[place], truth).get("psnr")
            stages.append({"layer": stage.layer, "steps": stage.steps, "psnr": psnr})
            if method is setting.method and len(method.schedule) > 1:
                panels.append(_panel(f"{method.name}: after layer {stage.layer}", pictures[place], psnr))
        title = f"{method.name}: result" if method is setting.method else method.name
        panels.append(_panel(title, decoded, scores.get("psnr")))
        outcomes[method.name] = {
            "method": method.name,
            "metrics": scores,
            **{name: solution.info[name] for name in ("data_fit", "evaluations", "seconds")},
            "stages": stages,
        }
        if "fault" in solution.info:
            outcomes[method.name]["fault"] = solution.info["fault"]
    if truth is not None:
        panels.append(_panel("truth", truth))
    save_figure(panels, target / "figure.png")
    outcome = outcomes[setting.method.name]
    return {
        "image": observation.name,
        "index": member,
        "digest": observation.digest,
        "task": setting.task_name,
        **outcome,
        "protocols": {name: metrics.PROTOCOLS[name] for name in outcome["metrics"]},
        "baseline": outcomes.get(setting.baseline.name) if setting.baseline else None,
        "seed": setting.seed,
        "operator_seed": setting.config.get("task", {}).get("seed"),
        "versions": identity.versions(),
        "commit": identity.commit(),
        "batch_size": len(runs[setting.method.name].solutions),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _scores(image: Tensor, truth: Tensor | None) -> dict[str, float | None]:
    """Metrics of one image; none without a truth, None where one isn't finite (JSON has no NaN)."""
    if truth is None:
        return {}
    values = {name: values[0] for name, values in metrics.evaluate(image[None], truth[None]).items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _panel(title: str, image: Tensor, psnr: float | None = None) -> Panel:
    note = "" if psnr is None else f"{psnr:.2f} dB"
    return Panel(title, to_uint8(image.nan_to_num(nan=0.0)).permute(1, 2, 0).numpy(), note)
