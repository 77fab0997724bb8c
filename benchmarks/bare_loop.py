"""What docs/architecture.md calls one step, written out without Lightning: the oracle of the engine's tests, and the
yardstick of benchmarks/overhead.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ilo_lightning.callbacks.sphere import on_sphere
from ilo_lightning.generators.base import LatentPoint, LayeredGenerator, index_of, variable_of
from ilo_lightning.losses import mean_squared_error
from ilo_lightning.method import Method
from ilo_lightning.operators import ForwardOperator, Measurement
from ilo_lightning.projections import project_l1_ball
from ilo_lightning.randomness import generator_for
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
    best_fit = torch.full((len(keys),), math.inf, dtype=point["latent"].dtype)
    best_stage = torch.zeros(len(keys), dtype=torch.long)
    kept: list[LatentPoint] = []  # per stage, the best points of the images whose best it holds
    fits = []

    def observe(point: LatentPoint, index: int) -> torch.Tensor:
        fit = mean_squared_error(operator(generator(point)), measurement)
        fits.append(fit.detach())
        with torch.no_grad():
            better = fit < best_fit
            torch.where(better, fit, best_fit, out=best_fit)
            best_stage.masked_fill_(better, index)
            for name, tensor in point.tensors.items():
                mask = better.view(-1, *[1] * (tensor.ndim - 1))
                torch.where(mask, tensor, kept[index][name], out=kept[index][name])
        return fit

    for index, stage in enumerate(method.schedule.stages):
        with torch.no_grad():
            center = generator.advance(point.detach(), stage.layer).detach()
        point = center.detach()
        kept.append(center.detach())
        free, groups, radii = {}, [], {}
        for name, tensor in point.tensors.items():
            variable = variable_of(name)
            if stage.frees(variable, index_of(name)):
                free[name] = tensor.requires_grad_()
                groups.append({"params": [tensor], "lr": stage.lr * stage.lr_scale.get(variable, 1.0)})
                if variable in stage.radii:
                    norm = center[name].flatten(1).abs().sum(1) if stage.relative else torch.ones(len(keys))
                    radii[name] = stage.radii[variable] * norm
        peaks = [group["lr"] for group in groups]
        adam = torch.optim.Adam(groups)
        for step in range(stage.steps):
            t = (step + 0.5) / stage.steps
            ramp = (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / 0.75))) * min(1, t / 0.05)
            for group, peak in zip(adam.param_groups, peaks, strict=True):
                group["lr"] = peak * ramp
            adam.zero_grad()
            observe(point, index).sum().backward()
            adam.step()
            with torch.no_grad():
                for name, tensor in free.items():
                    if variable_of(name) in method.spheres:
                        tensor.copy_(on_sphere(name, tensor))
                    if name in radii:
                        tensor.copy_(project_l1_ball(tensor, radii[name], center[name]))
    with torch.no_grad():
        observe(point, len(kept) - 1)
    best = [kept[stage].select([image]) for image, stage in enumerate(best_stage.tolist())]
    return best, torch.stack(fits), best_fit.double()
