"""A whole run: observations -> batches -> solutions, pictures and results in one folder.

FOLDER/config.yaml                      the resolved configuration
FOLDER/run.json                         what makes this run this run (see ``identity``)
FOLDER/images/NAME/truth.png, measurement.png, reconstruction.png, figure.png (no truth.png where there is none)
FOLDER/images/NAME/solution.safetensors (a baseline's files carry its name: solution-csgm.safetensors)
FOLDER/batches/0000.jsonl               a finished batch; 0000-METHOD.ckpt while it is being worked on;
                                        0000-error.txt if something broke it off: it is taken up again by the next call
FOLDER/results.jsonl                    all batches merged, once every batch was worked on
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import identity, metrics
from .callbacks import ResumeCheckpoint
from .callbacks.progress import Display
from .data.images import DataError, save_png, to_uint8
from .files import exclusive, write_atomically
from .generators.base import LayeredGenerator
from .interrupt import StopRequest
from .loggers.base import RunLog
from .observations import Observation, Observations, device_of, header, observe
from .operators.base import ForwardOperator
from .report.figure import Panel, save_figure
from .schedule import Method
from .solution import Solution
from .solve import Reconstruction, SolveError, check_method, check_trainer, initial_point, solve

Row = dict[str, Any]


class RunError(ValueError):
    """A run that can't begin; the message names the field, its value and the remedy."""


@dataclass(frozen=True)
class Setting:
    """Everything a run needs, built and checked.

    Args:
        config: resolved configuration (JSON values); its sections task, generator, method, baseline, data and seed make
            the run's identity.
        method: what is run; ``baseline``, if any, is run first on the same measurements.
        trainer: further arguments of ``pytorch_lightning.Trainer``.
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

    def __post_init__(self) -> None:
        if not _is_whole(self.batch_size) or self.batch_size < 1:
            raise RunError(f"data.batch_size={self.batch_size}: expected a whole number, at least 1")
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
        for field, expected, make in (
            ("generator", self.generator.image_shape, lambda: self.generator(point)),
            ("task.operator", self.operator.output_shape, lambda: self.operator(self.generator(point))),
        ):
            try:
                with torch.no_grad():
                    shape = tuple(make().shape)
            except Exception as error:  # whatever a user's own module raises
                raise RunError(f"{field}: fails on its first image ({type(error).__name__}: {error})") from error
            if shape != (1, *expected):
                raise RunError(f"{field}: gives {shape} for one image, but says {(1, *expected)}")

    @property
    def methods(self) -> list[Method]:
        return [self.method] if self.baseline is None else [self.baseline, self.method]

    @property
    def batches(self) -> list[range]:
        count = len(self.observations)
        return [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]

    @property
    def steps_per_batch(self) -> int:
        return sum(method.schedule.steps for method in self.methods)

    @property
    def task_name(self) -> str:
        return str(self.config.get("task", {}).get("name", type(self.operator).__name__))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def run(
    setting: Setting, folder: Path, display: Display, stop: StopRequest | None = None, log: RunLog | None = None
) -> list[Row]:
    """Work through all images; go on where an earlier call on the same folder stopped. ``log`` follows it.

    Returns:
        A row per image, as in results.jsonl. A row with ``error`` has no result: an unreadable image, say. A row with
        ``fault`` has the best found until something broke the work off, or left the finite numbers.

    Raises:
        RunError: if the folder holds another run, or another process is working in it.
        Interrupted: if asked to stop.
    """
    log = log or RunLog()
    try:
        with exclusive(folder / ".lock"), closing(log):
            return _run_batches(setting, folder, display, stop or StopRequest(), log)
    except BlockingIOError:
        raise RunError(f"hydra.run.dir={folder}: another process is working in this folder; choose another") from None


def _run_batches(setting: Setting, folder: Path, display: Display, stop: StopRequest, log: RunLog) -> list[Row]:
    log.begin(claim(setting, folder))
    rows: list[Row] = []
    for index, members in enumerate(setting.batches):
        stop.check()
        batch = folder / "batches" / f"{index:04d}"
        finished = batch.with_suffix(".jsonl")
        if finished.exists():
            display.step("finished before", setting.steps_per_batch, None)
            found = [json.loads(line) for line in finished.read_text().splitlines()]
            log.batch(found)
            rows += found
            continue
        try:
            found, complete = _run_batch(setting, folder, index, members, display, stop, log)
            if complete:
                write_atomically(finished, "".join(json.dumps(row) + "\n" for row in found))
                for leftover in (*batch.parent.glob(f"{batch.name}-*.ckpt"), Path(f"{batch}-error.txt")):
                    leftover.unlink(missing_ok=True)
        except (
            OSError
        ) as error:  # such as a full disk: what is there stays, and the next call takes up this batch again
            found = [{"index": member, "error": f"can't be written: {error}"} for member in members]
        log.batch(found)
        rows += found
    write_atomically(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for leftover in folder.rglob(".*.part"):  # of processes that were killed while they wrote a file
        leftover.unlink()
    log.finish()
    return rows


def claim(setting: Setting, folder: Path) -> str:
    """Write down which run the folder holds, or check that it is this one. Returns its identity."""
    parts: dict[str, Any] = {name: setting.config.get(name) for name in ("task", "method", "baseline", "seed")}
    parts["batch_size"] = setting.batch_size  # resuming re-forms the same batches
    # What files hold counts, not where they lie.
    parts["task"] = {name: value for name, value in (parts["task"] or {}).items() if name not in ("mask", "operator")}
    parts["operator"] = identity.fingerprint(setting.operator)
    parts["generator"] = setting.generator.provenance.get("sha256") or identity.fingerprint(setting.generator)
    parts["images"] = _digests(setting.observations)
    parts["precision"] = (setting.trainer or {}).get("precision")
    parts["version"] = identity.versions()["ilo_lightning"]
    record = folder / "run.json"
    if record.exists():
        try:
            found = json.loads(record.read_text())
        except ValueError:
            raise RunError(f"hydra.run.dir={folder}: its run.json is damaged; choose another folder") from None
        changes = identity.differences(found["parts"], parts)
        if changes:
            raise RunError(
                f"hydra.run.dir={folder}: holds another run ({'; '.join(changes[:4])}); "
                "choose another folder or empty it"
            )
        return found["identity"]
    digest = identity.identity(parts)
    write_atomically(record, json.dumps({"identity": digest, "parts": parts}, indent=1))
    return digest


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
    setting: Setting, folder: Path, index: int, members: range, display: Display, stop: StopRequest, log: RunLog
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
                loggers=log.loggers(index, method.name, len(known)),
                log_every=log.every,
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
    for place, (member, observation) in enumerate(known.items()):
        if setting.method.name in runs:
            target = folder / "images" / observation.name
            row = _write_image(setting, target, member, observation, runs, place, log)
            row |= {"folder": str(target.relative_to(folder)), "batch": index}
            rows[member] = row if fault is None else row | {"fault": fault}
        else:
            rows[member] = {"index": member, "image": observation.name, "error": fault}
    return [rows[member] for member in members], fault is None


def _write_image(
    setting: Setting,
    target: Path,
    member: int,
    observation: Observation,
    runs: Mapping[str, Reconstruction],
    place: int,
    log: RunLog,
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
    log.picture(observation.name, panels)
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
