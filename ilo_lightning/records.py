"""What is kept of one image: its solutions, its pictures, and its row of results.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import identity, metrics
from .callbacks import PosteriorSamples
from .data.images import save_png, to_uint8
from .loggers import RunLog
from .observations import Observation, device_of, header
from .report.figure import Panel, save_figure
from .schedule import Method
from .setting import Setting
from .solution import Solution
from .solve import Reconstruction

Row = dict[str, Any]


def write_image(
    setting: Setting,
    target: Path,
    member: int,
    observation: Observation,
    runs: Mapping[str, Reconstruction],
    place: int,
    log: RunLog,
) -> Row:
    """Solution, pictures and figure of one image; its row of results.jsonl. ``log`` is told of the pictures."""
    truth = observation.truth
    for method in setting.methods:
        if method.name in runs:
            runs[method.name].solutions[place].save(target / f"solution{_suffix(setting, method)}.safetensors")
    observation.measurement.save(
        target / "measurement.safetensors", header(setting.operator, setting.config.get("task"), observation.name)
    )
    y = observation.measurement.y.to(device_of(setting.operator))  # the first fit has moved it, after y was made
    observed = setting.operator.picture(y)[0].cpu()
    if truth is not None:
        save_png(truth, target / "truth.png")
    save_png(observed.nan_to_num(nan=0.0), target / "measurement.png")
    panels = [_panel("measurement", observed)]
    outcomes: dict[str, Row] = {}
    for method in setting.methods:
        if method.name not in runs:
            continue
        suffix = _suffix(setting, method)
        reconstruction = runs[method.name]
        # What is shown and scored is what the file decodes to, on its own.
        solution = Solution.load(target / f"solution{suffix}.safetensors")
        decoded = solution.decode(setting.generator).cpu()
        save_png(decoded.nan_to_num(nan=0.0), target / f"reconstruction{suffix}.png")
        scores = _scores(decoded, truth)
        stages = []
        # A method that was broken off has fewer pictures than stages.
        for stage, pictures in zip(method.schedule.stages, reconstruction.strip, strict=False):
            psnr = None if truth is None else _finite(metrics.psnr(pictures[place][None], truth[None])[0])
            stages.append({"layer": stage.layer, "steps": stage.steps, "psnr": psnr})
            if method is setting.method and len(method.schedule) > 1:
                panels.append(_panel(f"{method.name}: after layer {stage.layer}", pictures[place], psnr))
        title = f"{method.name}: result" if method is setting.method else method.name
        panels.append(_panel(title, decoded, scores.get("psnr")))
        outcomes[method.name] = {
            "method": method.name,
            "metrics": scores,
            **{name: solution.info[name] for name in ("data_fit", "evaluations", "seconds")},
            **{name: solution.info[name] for name in ("found", "restart") if name in solution.info},
            "stages": stages,
        }
        if reconstruction.posterior is not None:
            outcomes[method.name]["posterior"], more = _posterior(
                reconstruction.posterior, place, truth, target, suffix
            )
            panels += [_panel(f"{method.name}: {title}", image) for title, image in more.items()]
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


def _posterior(
    samples: PosteriorSamples, place: int, truth: Tensor | None, target: Path, suffix: str
) -> tuple[Row, dict[str, Tensor]]:
    """Pictures of the mean, the standard deviation and some of the samples; what the row says of them; and the first
    two. The standard deviation is drawn from black, 0, to white, 0.2 or more, in units of [-1, 1]."""
    mean, std = samples.mean[place].float(), samples.std[place].float()
    shown = {"mean": mean, "deviation": std * 10 - 1}
    save_png(mean, target / f"posterior-mean{suffix}.png")
    save_png(shown["deviation"], target / f"posterior-std{suffix}.png")
    for index, pictures in enumerate(samples.pictures):
        save_png(pictures[place], target / f"sample-{index}{suffix}.png")
    return {"samples": samples.count, "metrics_of_mean": _scores(mean, truth), "mean_std": _finite(std.mean())}, shown


def _suffix(setting: Setting, method: Method) -> str:
    """Of the files of a method: a baseline's carry its name."""
    return "" if method is setting.method else f"-{method.name}"


def _scores(image: Tensor, truth: Tensor | None) -> dict[str, float | None]:
    """Metrics of one image; none without a truth, None where one isn't finite (JSON has no NaN)."""
    if truth is None:
        return {}
    values = {name: values[0] for name, values in metrics.evaluate(image[None], truth[None]).items()}
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float | Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None


def _panel(title: str, image: Tensor, psnr: float | None = None) -> Panel:
    note = "" if psnr is None else f"{psnr:.2f} dB"
    return Panel(title, to_uint8(image.nan_to_num(nan=0.0)).permute(1, 2, 0).numpy(), note)
