"""A whole run: images -> measurements -> batches -> solutions, pictures and results in one folder.

FOLDER/config.yaml                      the resolved configuration
FOLDER/run.json                         what makes this run this run (see ``identity``)
FOLDER/images/NAME/truth.png, measurement.png, reconstruction.png, figure.png
FOLDER/images/NAME/solution.safetensors (a baseline's files carry its name: solution-csgm.safetensors)
FOLDER/batches/0000.jsonl               a finished batch; 0000-METHOD.ckpt while it is being worked on
FOLDER/results.jsonl                    all batches merged, once every batch is finished
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from . import identity, metrics
from .callbacks import ResumeCheckpoint
from .callbacks.progress import Display
from .data.images import DataError, Image, Images, save_png, to_uint8
from .files import exclusive, write_atomically
from .generators.base import LayeredGenerator
from .interrupt import StopRequest
from .operators.base import ForwardOperator, Measurement, measure
from .operators.noise import NoiseModel
from .randomness import generator_for
from .report.figure import Panel, save_figure
from .schedule import Method
from .solution import Solution
from .solve import Reconstruction, check_method, check_trainer, solve


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
        logger: called with a folder and a name for each fit, gives Lightning loggers.
    """

    config: Mapping[str, Any]
    generator: LayeredGenerator
    operator: ForwardOperator
    noise: NoiseModel
    method: Method
    images: Images
    baseline: Method | None = None
    batch_size: int = 8
    seed: int = 0
    checkpoint_every_seconds: float = 30.0
    trainer: Mapping[str, Any] | None = None
    logger: Callable[[Path, str], Sequence[Logger]] | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
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

    @property
    def methods(self) -> list[Method]:
        return [self.method] if self.baseline is None else [self.baseline, self.method]

    @property
    def batches(self) -> list[range]:
        count = len(self.images)
        return [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]

    @property
    def steps_per_batch(self) -> int:
        return sum(method.schedule.steps for method in self.methods)

    @property
    def task_name(self) -> str:
        return str(self.config.get("task", {}).get("name", type(self.operator).__name__))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def run(setting: Setting, folder: Path, display: Display, stop: StopRequest | None = None) -> list[dict[str, Any]]:
    """Work through all images; go on where an earlier call on the same folder stopped.

    Returns:
        A row per image, as in results.jsonl; a row with ``error`` instead of ``metrics`` for an unreadable image.

    Raises:
        RunError: if the folder holds another run, or another process is working in it.
        Interrupted: if asked to stop.
    """
    try:
        with exclusive(folder / ".lock"):
            return _run_batches(setting, folder, display, stop or StopRequest())
    except BlockingIOError:
        raise RunError(f"hydra.run.dir={folder}: another process is working in this folder; choose another") from None


def _run_batches(setting: Setting, folder: Path, display: Display, stop: StopRequest) -> list[dict[str, Any]]:
    claim(setting, folder)
    for index, members in enumerate(setting.batches):
        stop.check()
        finished = folder / "batches" / f"{index:04d}.jsonl"
        if finished.exists():
            display.step("finished before", setting.steps_per_batch, None)
        else:
            rows = _run_batch(setting, folder, index, members, display, stop)
            write_atomically(finished, "".join(json.dumps(row) + "\n" for row in rows))
        for leftover in (folder / "batches").glob(f"{index:04d}-*.ckpt"):
            leftover.unlink()
    rows = [
        json.loads(line)
        for index in range(len(setting.batches))
        for line in (folder / "batches" / f"{index:04d}.jsonl").read_text().splitlines()
    ]
    write_atomically(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for leftover in folder.rglob(".*.part"):  # of processes that were killed while they wrote a file
        leftover.unlink()
    return rows


def claim(setting: Setting, folder: Path) -> None:
    """Write down which run the folder holds, or check that it is this one."""
    parts: dict[str, Any] = {name: setting.config.get(name) for name in ("task", "method", "baseline", "seed")}
    parts["batch_size"] = setting.batch_size  # resuming re-forms the same batches
    # What files hold counts, not where they lie.
    parts["task"] = {name: value for name, value in (parts["task"] or {}).items() if name not in ("mask", "operator")}
    parts["operator"] = identity.fingerprint(setting.operator)
    parts["generator"] = setting.generator.provenance.get("sha256") or identity.fingerprint(setting.generator)
    parts["images"] = [image.digest for image in _readable(setting.images)]
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
        return
    write_atomically(record, json.dumps({"identity": identity.identity(parts), "parts": parts}, indent=1))


def _readable(images: Images) -> Iterator[Image]:
    for index in range(len(images)):
        try:
            yield images[index]
        except DataError:
            continue


def _run_batch(
    setting: Setting, folder: Path, index: int, members: range, display: Display, stop: StopRequest
) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    images: dict[int, Image] = {}
    for member in members:
        try:
            images[member] = setting.images[member]
        except DataError as error:
            rows[member] = {"index": member, "error": str(error)}
    if not images:
        display.step("no readable image", setting.steps_per_batch, None)
    else:
        truth = torch.stack([image.pixels for image in images.values()])
        measurement = observe(setting, list(images.values()))
        runs: dict[str, Reconstruction] = {}
        for method in setting.methods:
            stop.check()
            display.begin(f"batch {index + 1}/{len(setting.batches)}  {method.name}")
            name = f"{index:04d}-{method.name}"
            runs[method.name] = solve(
                setting.generator,
                setting.operator,
                measurement,
                method,
                keys=[image.digest for image in images.values()],
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
                    "batch": [image.digest for image in images.values()],
                },
            )
        for place, (member, image) in enumerate(images.items()):
            target = folder / "images" / image.name
            rows[member] = _write_image(
                setting, target, member, image, measurement.select([place]), truth[place], runs, place
            )
            rows[member]["folder"] = str(target.relative_to(folder))
            rows[member]["batch"] = index
    return [rows[member] for member in members]


def observe(setting: Setting, images: Sequence[Image]) -> Measurement:
    """Measure images: y = A(x) + noise, each image's noise from its own content, the seed and nothing else."""
    dtype = next(tensor.dtype for tensor in setting.generator.state_dict().values() if tensor.is_floating_point())
    device = next(setting.operator.buffers()).device
    truth = torch.stack([image.pixels for image in images]).to(device, dtype)
    with torch.no_grad():
        rngs = [generator_for(setting.seed, image.digest, "measurement noise") for image in images]
        return measure(setting.operator, setting.noise, truth, rngs)


def _write_image(
    setting: Setting,
    target: Path,
    member: int,
    image: Image,
    measurement: Measurement,
    truth: Tensor,
    runs: Mapping[str, Reconstruction],
    place: int,
) -> dict[str, Any]:
    """Solution, pictures and figure of one image; its row of results.jsonl."""
    device = next(setting.operator.buffers()).device  # the first fit has moved it, after the measurement was made
    observed = setting.operator.picture(measurement.y.to(device))[0].cpu()
    save_png(truth, target / "truth.png")
    save_png(observed, target / "measurement.png")
    measurement.save(
        target / "measurement.safetensors",
        {"task": setting.config.get("task"), "image_shape": list(setting.operator.input_shape), "image": image.name},
    )
    panels = [_panel("measurement", observed)]
    outcomes: dict[str, dict[str, Any]] = {}
    for method in setting.methods:
        suffix = "" if method is setting.method else f"-{method.name}"
        path = target / f"solution{suffix}.safetensors"
        reconstruction = runs[method.name]
        reconstruction.solutions[place].save(path)
        # What is shown and scored is what the file decodes to, on its own.
        solution = Solution.load(path)
        decoded = solution.decode(setting.generator).cpu()
        save_png(decoded, target / f"reconstruction{suffix}.png")
        scores = {name: values[0] for name, values in metrics.evaluate(decoded[None], truth[None]).items()}
        stages = []
        for stage, pictures in zip(method.schedule.stages, reconstruction.strip, strict=True):
            psnr = float(metrics.psnr(pictures[place][None], truth[None])[0])
            # Where a stage diverged, the best iterate is from another; JSON has no NaN.
            stages.append({"layer": stage.layer, "steps": stage.steps, "psnr": psnr if math.isfinite(psnr) else None})
            if method is setting.method and len(method.schedule) > 1:
                panels.append(_panel(f"{method.name}: after layer {stage.layer}", pictures[place], psnr))
        panels.append(
            _panel(f"{method.name}: result" if method is setting.method else method.name, decoded, scores["psnr"])
        )
        outcomes[method.name] = {
            "method": method.name,
            "metrics": scores,
            "data_fit": solution.info["data_fit"],
            "evaluations": solution.info["evaluations"],
            "seconds": solution.info["seconds"],
            "stages": stages,
        }
    panels.append(_panel("truth", truth))
    save_figure(panels, target / "figure.png")
    outcome = outcomes[setting.method.name]
    return {
        "image": image.name,
        "index": member,
        "digest": image.digest,
        "task": setting.task_name,
        **outcome,
        "protocols": {name: metrics.PROTOCOLS[name] for name in outcome["metrics"]},
        "baseline": outcomes[setting.baseline.name] if setting.baseline else None,
        "seed": setting.seed,
        "operator_seed": setting.config.get("task", {}).get("seed"),
        "versions": identity.versions(),
        "commit": identity.commit(),
        "batch_size": len(runs[setting.method.name].solutions),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _panel(title: str, image: Tensor, psnr: float | None = None) -> Panel:
    note = "" if psnr is None else f"{psnr:.2f} dB"
    return Panel(title, to_uint8(image.nan_to_num(nan=0.0)).permute(1, 2, 0).numpy(), note)
