"""Sweeps as `pipeline` writes them, made up: for the benchmark and for tests that need more points than can be run.

What is in a folder and in a row is that of a real run (tests/report/test_collect.py compares the two).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from ilo_lightning.schedule import PENALTIES

PROTOCOLS = {
    "mse": "mean squared error over all pixels and channels of an image, clipped to [-1, 1] and mapped to [0, 1]",
    "psnr": "10·log10(1 / mse) in dB per image: data range 1 on [0, 1]; infinite for identical images",
    "ssim": (
        "torchmetrics' SSIM on [0, 1], data range 1, Gaussian window 11×11 with sigma 1.5, k1 0.01, k2 0.03; "
        "reflected borders count, channels averaged"
    ),
    "residual": "root of the weighted mean of (A(x) - y)² over the observed entries",
}

KEPT = {"layer": 0, "step": 200}


@dataclass(frozen=True)
class Sweep:
    """A sweep of compressed sensing.

    Args:
        fractions, sigmas, radii, seeds: a point for each combination.
        images: per point.
        baseline: whether CSGM is run on the same measurements.
        pictures: whether the pictures are written, noise of 16×16.
    """

    fractions: Sequence[float] = (0.05, 0.1)
    sigmas: Sequence[float] = (0.0,)
    radii: Sequence[float] = (0.05, 0.15)
    seeds: Sequence[int] = (0,)
    images: int = 3
    batch_size: int = 8
    baseline: bool = True
    pictures: bool = False
    commit: str | None = "0123456789abcdef0123456789abcdef01234567"
    version: str = "0.1.0"
    more: dict[str, Any] = field(default_factory=dict)

    def configs(self) -> Iterator[dict[str, Any]]:
        """The configurations, in the order of the points."""
        for fraction, sigma, radius, seed in itertools.product(self.fractions, self.sigmas, self.radii, self.seeds):
            yield {**_config(fraction, sigma, radius, seed, self.baseline, self.batch_size), **self.more}

    def write(self, folder: Path) -> list[Path]:
        """Make the folders of all points; returns them."""
        points = []
        for number, config in enumerate(self.configs()):
            point = folder / str(number)
            self.write_point(point, config)
            points.append(point)
        return points

    def write_point(self, point: Path, config: dict[str, Any]) -> None:
        """Make the folder of a finished point."""
        (point / "batches").mkdir(parents=True)
        (point / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
        names = [f"{index:04d}" for index in range(self.images)]
        parts = {key: config.get(key) for key in ("task", "method", "baseline", "seed")}
        parts |= {"images": [_digest(name) for name in names], "version": self.version}
        parts["precision"] = config["trainer"]["precision"]
        identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        (point / "run.json").write_text(json.dumps({"identity": identity, "parts": parts, "force": None}, indent=1))
        lines = [json.dumps(row) + "\n" for row in self.rows(config, names)]
        for batch in range(0, len(lines), self.batch_size):
            name = f"{batch // self.batch_size:04d}.jsonl"
            (point / "batches" / name).write_text("".join(lines[batch : batch + self.batch_size]))
        (point / "results.jsonl").write_text("".join(lines))
        if self.pictures:
            for name in names:
                self._write_pictures(point / "images" / name, config, name)

    def rows(self, config: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The lines of results.jsonl. The error falls with the fraction, and is least at a radius of 0.1."""
        task, seed = config["task"], config["seed"]
        for index, name in enumerate(names):
            rng = np.random.default_rng([index, seed, round(1e4 * task["fraction"])])
            difficulty = rng.normal(0, 1.5)

            def outcome(
                method: str, gain: float, kept: dict[str, Any], rng=rng, difficulty=difficulty
            ) -> dict[str, Any]:
                psnr = 24 + 4 * np.log10(task["fraction"] / 0.1) - 20 * task["noise"]["sigma"] + gain + difficulty
                psnr = float(psnr + rng.normal(0, 0.3))
                scores = {"mse": 10 ** (-psnr / 10), "psnr": psnr, "ssim": 1 / (1 + np.exp(-psnr / 10 + 2))}
                return {
                    "method": method,
                    "metrics": {**scores, "residual": 10 ** (-psnr / 20)},
                    "data_fit": float(rng.uniform(0.1, 0.5)),
                    "evaluations": 201,
                    "seconds": round(float(rng.uniform(20, 30)), 3),
                    "kept": kept,
                    "stages": [{"layer": layer, "steps": 50, "psnr": psnr - 3 + layer} for layer in range(4)],
                }

            radius = config["method"]["radius"]
            yield {
                "image": name,
                "index": index,
                "digest": _digest(name),
                "task": task["name"],
                **outcome(
                    config["method"]["name"],
                    2 - abs(np.log10(radius / 0.1)),
                    {"layer": 3, "step": 200, "radius": radius},
                ),
                "protocols": PROTOCOLS,
                "baseline": outcome("csgm", 0.0, KEPT) if config.get("baseline") else None,
                "seed": seed,
                "operator_seed": 0,
                "versions": {
                    "ilo_lightning": self.version,
                    "torch": "2.14.1+cpu",
                    "pytorch_lightning": "2.6.6",
                    "python": "3.11.7",
                    "machine": "x86_64",
                    "threads": "1",
                    "ops": "cpu",
                },
                "commit": self.commit,
                "batch_size": self.batch_size,
                "finished": "2026-11-24T18:21:03Z",
                "folder": f"images/{name}",
                "batch": index // self.batch_size,
            }

    def _write_pictures(self, folder: Path, config: dict[str, Any], name: str) -> None:
        folder.mkdir(parents=True)
        rng = np.random.default_rng(int(name))
        truth = rng.integers(0, 256, (16, 16, 3))
        pictures = {"truth": truth, "measurement": truth // 2}
        pictures["reconstruction"] = truth + rng.integers(-9, 9, truth.shape) + round(100 * config["method"]["radius"])
        if config.get("baseline"):
            pictures["reconstruction-csgm"] = truth + rng.integers(-30, 30, truth.shape)
        for title, pixels in pictures.items():
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{title}.png")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _config(fraction: float, sigma: float, radius: float, seed: int, baseline: bool, batch_size: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "checkpoint_every_seconds": 30,
        "pack": False,
        "metrics": {"perceptual": "none", "size": None},
        "force": False,
        "task": {
            "noise": {"_target_": "ilo_lightning.operators.GaussianNoise", "sigma": sigma},
            "name": "compressed_sensing",
            "fraction": fraction,
            "measurements": None,
            "seed": 0,
            "operator": {
                "_target_": "ilo_lightning.operators.PartialCirculant",
                "fraction": fraction,
                "measurements": None,
                "seed": 0,
            },
        },
        "generator": {
            "_target_": "ilo_lightning.generators.checkpoints.load_generator",
            "checkpoint": "pkg://ilo_lightning.generators/weights/faces64.safetensors",
            "sha256": None,
            "label": None,
            "recompute": False,
        },
        "method": _method("ilo", [0, 1, 2, 3], radius),
        "baseline": _method("csgm", [0], None) if baseline else None,
        "perceptual": {"name": "none"},
        "data": {
            "mode": "simulated",
            "path": "pictures",
            "batch_size": batch_size,
            "decode_batch_size": None,
            "limit": None,
            "shard": None,
        },
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
        "logger": {"_target_": "ilo_lightning.loggers.RunLog", "every": 10},
        "ops": {"impl": "auto"},
    }


def _method(name: str, layers: list[int], radius: float | None) -> dict[str, Any]:
    return {
        "_target_": "ilo_lightning.method_config.method_from_config",
        "name": name,
        "space": None,
        "start": "random",
        "noise": "zero",
        "restarts": 1,
        "layers": layers,
        "steps": [200 // len(layers)] * len(layers),
        "lr": [0.1] * len(layers),
        "free": ["latent", "activation", "rgb"] if len(layers) > 1 else ["latent"],
        "noise_maps": None,
        "noise_lookahead": None,
        "lr_scale": {"latent": 1, "style": 1, "activation": 1, "rgb": 0.2, "noise": 1},
        "radius": radius,
        "radius_mode": "relative",
        "radii": {"latent": None, "style": None, "rgb": radius, "noise": None},
        "center": "previous",
        "range_steps": 50,
        "reset": [],
        "optimizer": "adam",
        "ramp": "cosine",
        "rampdown": 0.75,
        "penalties": dict.fromkeys(PENALTIES, 0),
        "floor": 0,
        "sigma": None,
        "jitter": 0,
        "bm3d": None,
        "spheres": ["latent"],
        "standardize": [],
        "evaluations": None,
        "keep": "best",
        "rank": "data_fit",
        "samples": 0,
        "burn_in": 0,
        "data_fit": {"mse": 1, "perceptual": 0, "dead_zone": 0, "cross_entropy": 0},
        "dead_zone": 0.1,
        "candidates": [0.02, 0.05, 0.1, 0.2, 0.4, 1],
        "select": "stacking" if name == "ilo" else None,
        "held_out": 0.1,
        "refit": True,
        "refit_steps": 52,
        "refit_lr": 0.05,
        "refit_deviation": 1,
        "anchor": 0.03,
        "stop": "discrepancy" if name == "ilo" else None,
        "noise_level": 0.0,
    }
