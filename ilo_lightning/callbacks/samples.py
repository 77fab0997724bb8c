"""Samples of the posterior: what the last stage's iterates have in common, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..generators.base import decode
from ..problem import InverseProblem


class PosteriorSamples(pl.Callback):
    """Decodes the point after some steps of the last stage, which count as samples, and keeps running statistics.

    Args:
        steps: of the last stage, after which a sample is taken.
        pictures: how many of them are kept as images, evenly spaced; the last one is.
    """

    def __init__(self, steps: Sequence[int], pictures: int = 4):
        self.steps = list(steps)
        count = min(pictures, len(self.steps))
        self._shown = {self.steps[len(self.steps) - 1 - i * len(self.steps) // count] for i in range(count)}
        self.count = 0
        self.pictures: list[Tensor] = []
        """Images ``(B, C, H, W)`` of some samples, in [-1, 1] (not clipped), on the CPU."""
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._energies: list[Tensor] = []  # (B,) at each step from the first sample on, of the point before its update
        self._dimensions = 0

    @property
    def mean(self) -> Tensor:
        """Of the samples' images, ``(B, C, H, W)``."""
        assert self._mean is not None
        return self._mean

    @property
    def std(self) -> Tensor:
        """Standard deviation of every pixel over the samples, ``(B, C, H, W)``; 0 for a single sample."""
        assert self._squares is not None
        return (self._squares / max(self.count - 1, 1)).sqrt()

    @property
    def drift(self) -> Tensor:
        """By how many nats ``(B,)`` the mean of -log of the posterior fell from the first half of the steps that count
        to the second. Around 0 for a chain that has arrived, which nothing can prove; NaN for less than two steps."""
        energies = torch.stack(self._energies).double().cpu()
        half = len(energies) // 2
        return energies[:half].mean(0) - energies[len(energies) - half :].mean(0)

    @property
    def fluctuation(self) -> float:
        """Standard deviation of -log of a Gaussian density in as many dimensions d as were sampled, √(d/2) nats."""
        return math.sqrt(self._dimensions / 2)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        self._energies = [energy.to(pl_module.device) for energy in self._energies]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: InverseProblem, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.stage_index != len(pl_module.schedule) - 1 or batch_idx < self.steps[0]:
            return
        assert pl_module.last_loss is not None
        self._energies.append(pl_module.last_loss)
        self._dimensions = sum(p[0].numel() for p in pl_module.variables.values() if p.requires_grad)
        if batch_idx not in self.steps:
            return
        images = decode(pl_module.generator, pl_module.point, pl_module.at_once).double().cpu()
        if self._mean is None or self._squares is None:
            self._mean, self._squares = torch.zeros_like(images), torch.zeros_like(images)
        self.count += 1  # Welford's algorithm
        difference = images - self._mean
        mean = self._mean = self._mean + difference / self.count
        self._squares = self._squares + difference * (images - mean)
        if batch_idx in self._shown:
            self.pictures.append(images.float())

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "pictures": self.pictures,
            "mean": self._mean,
            "squares": self._squares,
            "energies": self._energies,
            "dimensions": self._dimensions,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count, self.pictures = state_dict["count"], list(state_dict["pictures"])
        self._mean, self._squares = state_dict["mean"], state_dict["squares"]
        self._energies, self._dimensions = list(state_dict["energies"]), state_dict["dimensions"]
