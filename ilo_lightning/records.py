"""What is kept of one image: its solutions, its pictures, and its row of results.jsonl."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import identity, metrics
from .callbacks import PosteriorSamples
from .data.images import save_png, to_uint8
from .loggers import RunLog
from .method import Method
from .metrics import finite_or_none
from .observations import Observation, device_of, header
from .operators.base import Measurement
from .reconstruction import Reconstruction
from .report.figure import Panel, save_figure
from .setting import Setting
from .solution import Solution

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
    pair = None if truth is None else truth[None]
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
        decoded = solution.decode(setting.generator)
        scores = _scores(setting, decoded[None], pair, observation.measurement)
        decoded = decoded.cpu()
        save_png(decoded.nan_to_num(nan=0.0), target / f"reconstruction{suffix}.png")
        stages = []
        # A method that was broken off has fewer pictures than stages.
        layers = solution.info["layers"]
        for layer, stage, pictures in zip(layers, method.stages, reconstruction.strip, strict=False):
            psnr = None if truth is None else finite_or_none(metrics.psnr(pictures[place][None], truth[None])[0])
            stages.append({"layer": layer, "steps": stage.steps, "psnr": psnr})
            if method is setting.method and len(method.stages) > 1:
                panels.append(_panel(f"{method.name}: after layer {layer}", pictures[place], psnr))
        if (
            method.keep == "last" and len(method.schedule) > 1 and not method.selects
        ):  # a path, which the best iterate is not the end of
            for number, pictures in enumerate(reconstruction.strip):
                save_png(pictures[place].nan_to_num(nan=0.0), target / f"stage-{number}{suffix}.png")
        title = f"{method.name}: result" if method is setting.method else method.name
        panels.append(_panel(title, decoded, scores.get("psnr"), scores.get("probability")))
        outcomes[method.name] = {
            "method": method.name,
            "metrics": scores,
            **{name: solution.info[name] for name in ("data_fit", "evaluations", "seconds")},
            **{
                name: solution.info[name]
                for name in ("found", "restart", "radius", "kept", "selection")
                if name in solution.info
            },
            "stages": stages,
        }
        if reconstruction.posterior is not None:
            posterior = reconstruction.posterior
            mean, more = _posterior(posterior, place, target, suffix)
            outcomes[method.name]["posterior"] = {
                "samples": posterior.count,
                "metrics_of_mean": _scores(setting, mean[None], pair, observation.measurement),
                "mean_std": finite_or_none(posterior.std[place].mean()),
                "rhat": finite_or_none(posterior.rhat[place]),
            }
            _say_unmixed(observation.name, posterior.rhat[place].item())
            panels += [_panel(f"{method.name}: {title}", image) for title, image in more.items()]
        if "fault" in solution.info:
            outcomes[method.name]["fault"] = solution.info["fault"]
        if solution.info.get("optimised"):
            outcomes[method.name]["optimised"] = solution.info["optimised"]
    if truth is not None:
        panels.append(_panel("truth", truth))
    save_figure(panels, target / "figure.png")
    log.picture(observation.name, panels)
    outcome = outcomes[setting.method.name]
    protocols = {**metrics.PROTOCOLS, **{net.name: net.protocol for net in setting.judges}}
    return {
        "image": observation.name,
        "index": member,
        "digest": observation.digest,
        "task": setting.task_name,
        **outcome,
        "protocols": {name: protocols[name] for name in outcome["metrics"]},
        "baseline": outcomes.get(setting.baseline.name) if setting.baseline else None,
        "seed": setting.seed,
        "operator_seed": setting.config.get("task", {}).get("seed"),
        "versions": identity.versions(),
        "commit": identity.commit(),
        "batch_size": len(runs[setting.method.name].solutions),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _say_unmixed(name: str, rhat: float) -> None:
    """1.1 is what Bayesian Data Analysis, §11.5, asks for: here about five independent samples in each half."""
    if rhat > 1.1:
        print(
            f"image {name}: the chain has not mixed, so that its deviation says little of the posterior's: its split "
            f"R-hat is {rhat:.3g}, where 1.1 or less would be usual; raise the last of method.lr while the chain stays "
            f"stable, and the last of method.steps",
            file=sys.stderr,
        )


def _posterior(samples: PosteriorSamples, place: int, target: Path, suffix: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures of the mean, the standard deviation and some of the samples; the mean, and the first two, as they are
    shown. The standard deviation is drawn from black, 0, to white, 0.2 or more, in units of [-1, 1]."""
    mean, std = samples.mean[place].float(), samples.std[place].float()
    shown = {"mean": mean, "deviation": std * 10 - 1}
    save_png(mean.nan_to_num(nan=0.0), target / f"posterior-mean{suffix}.png")
    save_png(shown["deviation"].nan_to_num(nan=0.0), target / f"posterior-std{suffix}.png")
    for index, pictures in enumerate(samples.pictures):
        save_png(pictures[place].nan_to_num(nan=0.0), target / f"sample-{index}{suffix}.png")
    return mean, shown


def _suffix(setting: Setting, method: Method) -> str:
    """Of the files of a method: a baseline's carry its name."""
    return "" if method is setting.method else f"-{method.name}"


@torch.no_grad()
def _scores(setting: Setting, image: Tensor, truth: Tensor | None, measurement: Measurement) -> dict[str, float | None]:
    """Metrics of one image ``(1, C, H, W)``, those that need a truth where there is one; None where one isn't finite
    (JSON has no NaN)."""
    values: dict[str, list[float]] = {}
    if truth is not None:
        values |= metrics.evaluate(image.cpu(), truth)
        values |= metrics.perceptual(image, truth.to(image.device), setting.judges)
    predicted = setting.operator(image.to(device_of(setting.operator)))
    values["residual"] = metrics.residual(predicted, measurement).tolist()
    if setting.target is not None or setting.operator.classifier is not None:
        seen = setting.operator(image.clamp(-1, 1).to(device_of(setting.operator)))
        if setting.target is not None:
            given, asked = setting.target.probabilities(seen), setting.target.target
        else:
            given, asked = seen, measurement.y
        values["probability"] = metrics.probability(given, asked).tolist()
    return {name: finite_or_none(value[0]) for name, value in values.items()}


def _panel(title: str, image: Tensor, psnr: float | None = None, probability: float | None = None) -> Panel:
    note = "" if psnr is None else f"{psnr:.2f} dB"
    note = note if probability is None else f"p {probability:.2f}"
    return Panel(title, to_uint8(image.nan_to_num(nan=0.0)).permute(1, 2, 0).numpy(), note)
