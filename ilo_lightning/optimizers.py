"""Optimisers whose state and steps are per image: the images of a batch don't influence each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch


class NormalizedDescent(torch.optim.Optimizer):
    """Gradient descent with steps of a given length: ``p -= lr · g / ‖g‖``: the learning rate is the distance that is
    gone (Poirier-Ginter & Lalonde, CVPR 2023).

    Args:
        params: groups, whose ``axes`` say over how many of the last axes the norm is taken: 1 for vectors that each go
            so far, 0 for numbers that do; None for all axes of an image.
        lr: the distance.
    """

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr, "axes": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    axes = parameter.ndim - 1 if group["axes"] is None else group["axes"]
                    dims = tuple(range(parameter.ndim - axes, parameter.ndim))
                    gradient = parameter.grad
                    # vector_norm without axes would take all of them.
                    norm = torch.linalg.vector_norm(gradient, dim=dims, keepdim=True) if dims else gradient.abs()
                    parameter.sub_(group["lr"] * gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny))
        return loss


class Langevin(torch.optim.Optimizer):
    """Unadjusted Langevin dynamics: ``p -= lr · g``, then ``p += √(2 · lr) · ξ`` with ξ ~ N(0, I). Where g is the
    gradient of -log p(· | y), the iterates become samples of it as the learning rate goes to zero (Welling & Teh 2011,
    with the whole gradient).

    Args:
        draws: from the number of the step, one CPU generator per image.
    """

    def __init__(self, params: Any, lr: float, draws: Callable[[int], Sequence[torch.Generator]]):
        super().__init__(params, {"lr": lr, "steps": 0})
        self.draws = draws

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rngs = self.draws(self.param_groups[0]["steps"])
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    noise = [torch.randn(parameter.shape[1:], generator=rng, dtype=parameter.dtype) for rng in rngs]
                    parameter.sub_(group["lr"] * parameter.grad)
                    parameter.add_(torch.stack(noise).to(parameter.device), alpha=math.sqrt(2 * group["lr"]))
        return loss
