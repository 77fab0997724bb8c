"""Samples of the posterior: what the last stage's iterates have in common, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..generators.base import decode
from ..problem import InverseProblem


@dataclass
class Moments:
    """Mean and summed squares around it of tensors that come one by one (Welford, Technometrics 1962)."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        self.count += 1
        difference = value - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (value - self.mean)

    @property
    def variance(self) -> Tensor:
        """Unbiased; 0 for a single value."""
        return torch.as_tensor(self.squares / max(self.count - 1, 1))


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
        self.pictures: list[Tensor] = []
        """Images ``(B, C, H, W)`` of some samples, in [-1, 1] (not clipped), on the CPU."""
        self._images = Moments()
        self._halves: dict[str, tuple[Moments, Moments]] = {}
        """Of each variable, at every step from the first sample on."""

    @property
    def count(self) -> int:
        """Of the samples."""
        return self._images.count

    @property
    def mean(self) -> Tensor:
        """Of the samples' images, ``(B, C, H, W)``."""
        return torch.as_tensor(self._images.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation of every pixel over the samples, ``(B, C, H, W)``; 0 for a single sample."""
        return self._images.variance.sqrt()

    @property
    def rhat(self) -> Tensor:
        """Split R̂ ``(B,)`` of each image's chain (Gelman et al., Bayesian Data Analysis, 3rd ed., §11.4), whose steps
        from the first sample on are cut into two halves: by how much its deviation may fall short of what a longer
        chain's would be. Variances are summed over the coordinates of a variable; of several variables, the largest.
        About 1 for a chain that has arrived and mixed, which nothing can prove; NaN where a half has less than two
        steps, or was broken off."""
        ratios = []
        for first, second in self._halves.values():
            n = first.count
            if not n == second.count > 1:
                return torch.full((len(self.mean),), torch.nan)
            within = (first.variance + second.variance).flatten(1).sum(1) / 2
            between = (torch.as_tensor(first.mean) - torch.as_tensor(second.mean)).square().flatten(1).sum(1) / 2
            ratios.append((n - 1) / n + between / within)
        return torch.stack(ratios).sqrt().amax(0).cpu()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        for half in (half for halves in self._halves.values() for half in halves if half.count):
            half.mean, half.squares = (torch.as_tensor(t, device=pl_module.device) for t in (half.mean, half.squares))

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: InverseProblem, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.stage_index != len(pl_module.schedule) - 1 or batch_idx < self.steps[0]:
            return
        index, length = batch_idx - self.steps[0], self.steps[-1] - self.steps[0] + 1
        for name, variable in pl_module.variables.items():
            if variable.requires_grad:
                first, second = self._halves.setdefault(name, (Moments(), Moments()))
                if index < length // 2:
                    first.add(variable.detach())
                elif index >= length - length // 2:
                    second.add(variable.detach())
        if batch_idx not in self.steps:
            return
        images = decode(pl_module.generator, pl_module.point, pl_module.at_once).double().cpu()
        self._images.add(images)
        if batch_idx in self._shown:
            self.pictures.append(images.float())

    def state_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "images": vars(self._images).copy(),
            "halves": {name: [vars(half).copy() for half in halves] for name, halves in self._halves.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pictures = list(state_dict["pictures"])
        self._images = Moments(**state_dict["images"])
        self._halves = {
            name: (Moments(**first), Moments(**second)) for name, (first, second) in state_dict["halves"].items()
        }
