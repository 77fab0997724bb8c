"""What DESIGN.md calls one step, exactly, written out without Lightning: the oracle of the engine's tests, and the
yardstick of benchmarks/overhead.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ilo_lightning.callbacks.sphere import on_sphere
from ilo_lightning.generators.base import LatentPoint, LayeredGenerator, variable_of
from ilo_lightning.losses import mean_squared_error
from ilo_lightning.operators import ForwardOperator, Measurement
from ilo_lightning.problem import index_of
from ilo_lightning.projections import project_l1_ball
from ilo_lightning.randomness import generator_for
from ilo_lightning.schedule import Method
from ilo_lightning.solve import initial_point


def bare_loop(
    generator: LayeredGenerator,
    operator: ForwardOperator,
    measurement: Measurement,
    method: Method,
    keys: Sequence[str],
    seed: int,
) -> tuple[list[LatentPoint], torch.Tensor, torch.Tensor]:
    """Best point of each image, all data fits ``(steps + 1, B)``, and the best ones ``(B,)``."""
    point = initial_point(generator, method, [generator_for(seed, key, "initial point") for key in keys])
    best = [None] * len(keys)
    best_fit = [math.inf] * len(keys)
    fits = []

    def observe(point) -> torch.Tensor:
        fit = mean_squared_error(operator(generator(point)), measurement)
        fits.append(fit.detach())
        for i in range(len(keys)):
            if fit[i].item() < best_fit[i]:
                best_fit[i] = fit[i].item()
                best[i] = point.map(lambda tensor, i=i: tensor[i : i + 1]).detach()
        return fit

    for stage in method.schedule.stages:
        with torch.no_grad():
            center = generator.advance(point.detach(), stage.layer).detach()
        point = center.detach()
        groups = []
        for name, tensor in point.tensors.items():
            if stage.frees(variable_of(name), index_of(name)):
                tensor.requires_grad_()
                groups.append({"params": [tensor], "lr": stage.lr * stage.lr_scale.get(variable_of(name), 1.0)})
        peaks = [group["lr"] for group in groups]
        adam = torch.optim.Adam(groups)
        for step in range(stage.steps):
            t = (step + 0.5) / stage.steps
            ramp = (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / 0.75))) * min(1, t / 0.05)
            for group, peak in zip(adam.param_groups, peaks, strict=True):
                group["lr"] = peak * ramp
            adam.zero_grad()
            observe(point).sum().backward()
            adam.step()
            with torch.no_grad():
                for name, tensor in point.tensors.items():
                    if not tensor.requires_grad:
                        continue
                    if variable_of(name) in method.spheres:
                        tensor.copy_(on_sphere(name, tensor))
                    if variable_of(name) in stage.radii:
                        norm = center[name].flatten(1).abs().sum(1) if stage.relative else torch.ones(len(keys))
                        tensor.copy_(project_l1_ball(tensor, stage.radii[variable_of(name)] * norm, center[name]))
    with torch.no_grad():
        observe(point)
    return best, torch.stack(fits), torch.tensor(best_fit, dtype=torch.float64)
