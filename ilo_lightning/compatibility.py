"""Whether a generator can serve a method: its layers, spaces and variables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import torch

from .callbacks.plug_and_play import check_bm3d
from .generators.base import LatentPoint, LayeredGenerator, index_of, variable_of
from .losses.penalties import PENALTIES, PenaltyError
from .method import Method
from .schedule import VARIABLES, ScheduleError, Stage

NOT_GAUSSIAN = ("w", "w_plus")
"""Spaces whose codes have no simple density."""
IMAGE_SPACES = ("pixels", "wavelets")
"""Spaces of the generators of these names, which make any image."""
_SERVED = {"pixels": "total_variation", "wavelets": "lasso"}


def _check_priors(stage: Stage, point: LatentPoint) -> None:
    """Refuse to sample what nothing holds: its samples would drift away without end."""
    for tensor in point.tensors:
        variable = variable_of(tensor)
        gaussian = variable == "latent" and point.space not in NOT_GAUSSIAN
        known = math.isfinite(stage.radii.get(variable, math.inf)) or (gaussian and stage.penalties.get("latent_norm"))
        if stage.frees(variable, index_of(tensor)) and not known:
            field = "radius" if variable == "activation" else f"radii.{variable}"
            penalty = ", method.penalties.latent_norm=0.5" if gaussian else ""
            if variable == "latent" and not gaussian:
                penalty = f", a space with Gaussian codes (in {point.space}, latent_norm is no density)"
            raise ScheduleError(
                f"method.optimizer=langevin: nothing says how likely a value of {variable} is at layer {stage.layer}, "
                f"and its samples would drift without end; use method.{field}=0.1 (a ball){penalty}, or leave "
                f"{variable} out of method.free={list(stage.free)}"
            )


def check_method(method: Method, generator: LayeredGenerator) -> None:
    """Refuse a method that this generator can't serve, before any long work.

    Raises:
        ScheduleError: for layers, spaces and variables that the generator doesn't have.
    """
    name, stages = type(generator).__name__, method.schedule.stages
    if method.refit is not None:
        stages = (*stages, replace(method.refit, layer=generator.num_layers - 1))
    if method.space is not None and method.space not in generator.spaces:
        remedy = (
            f"generator={method.space}"
            if method.space in IMAGE_SPACES
            else f"a method without a space of its own, such as method={_SERVED.get(generator.spaces[0], 'ilo')}"
        )
        raise ScheduleError(f"method.space={method.space}: {name} has {', '.join(generator.spaces)}; use {remedy}")
    for stage in stages:
        if stage.layer >= generator.num_layers:
            kept = [stage for stage in method.schedule.stages if stage.layer < generator.num_layers]
            remedy = "; use " + " ".join(
                f"method.{field}={json.dumps([getattr(stage, part) for stage in kept], separators=(',', ':'))}"
                for field, part in (("layers", "layer"), ("steps", "steps"), ("lr", "lr"))
            )
            raise ScheduleError(
                f"method.layers={stage.layer}: {name} has layers 0 … {generator.num_layers - 1}{remedy if kept else ''}"
            )
    with torch.no_grad():
        point = generator.sample([torch.Generator().manual_seed(0)], method.space)
        seen: set[str] = set()
        if method.start == "mean":
            point = generator.mean(point)
        for index, stage in enumerate(stages):
            if index < len(method.schedule) and (space := method.schedule.conversion(index, point.space)) is not None:
                try:
                    point = generator.convert(point, space)
                except ValueError as error:
                    raise ScheduleError(f"method.space={[each.space for each in stages]}: {error}") from error
            point = generator.advance(point, stage.layer)
            bounded = "latent" in point.tensors and "latent" in (*stage.radii, *stage.auto) and stage.relative
            if index == 0 and bounded and not point["latent"].any():
                raise ScheduleError(
                    "method.radii.latent with method.radius_mode=relative: a code that starts at zero has the norm 0, "
                    "and could never move; use method.start=random or method.radius_mode=absolute"
                )
            for penalty in stage.penalties:
                try:
                    PENALTIES[penalty](generator, point, point, generator(point))
                except PenaltyError as error:
                    weight = f"method.penalties.{penalty}={stage.penalties[penalty]:g}"
                    raise ScheduleError(f"{weight} at layer {stage.layer}: {error}") from error
            if stage.jitter and "latent" not in point.tensors:
                raise ScheduleError(
                    f"method.jitter={stage.jitter}: there is no latent code in space {point.space}; use method.jitter=0"
                )
            if stage.bm3d is not None:
                check_bm3d(stage.bm3d, point.space, generator.image_shape)
            if stage.optimizer == "langevin":
                _check_priors(stage, point)
            variables = {variable_of(tensor) for tensor in point.tensors}
            if not any(stage.frees(variable_of(tensor), index_of(tensor)) for tensor in point.tensors):
                maps = f" with method.noise_maps={stage.noise_maps}" if "noise" in stage.free else ""
                raise ScheduleError(
                    f"method.free={list(stage.free)}{maps}: nothing to optimise at layer {stage.layer}, "
                    f"which has {', '.join(sorted(point.tensors))}"
                )
            seen |= variables
    # Variables that only deeper layers have may be named by a method that doesn't go there.
    deepest = generator.num_layers - 1
    if stages[-1].layer < deepest:
        with torch.no_grad():
            seen |= {
                variable_of(tensor) for tensor in generator.advance(point, min(stages[-1].layer + 1, deepest)).tensors
            }
    for field, named in (
        ("method.free", {variable for stage in stages for variable in stage.free}),
        ("method.radii", {variable for stage in stages for variable in (*stage.radii, *stage.auto)}),
        ("method.lr_scale", {variable for stage in stages for variable in stage.lr_scale}),
        ("method.spheres", set(method.spheres)),
        ("method.standardize", set(method.standardize)),
        ("method.reset", {variable for stage in stages for variable in stage.reset}),
    ):
        for variable in sorted(named - seen - set(VARIABLES), key=str):
            raise ScheduleError(f"{field}: unknown variable {variable!r}; {name} has {', '.join(sorted(seen))}")
    spaces = {method.space or generator.spaces[0], *(stage.space for stage in stages)}
    if "latent" in method.spheres and spaces.intersection((*NOT_GAUSSIAN, *IMAGE_SPACES)):
        space = min(spaces.intersection((*NOT_GAUSSIAN, *IMAGE_SPACES)))
        remedy = f"method={_SERVED[space]}, or method.spheres=[]" if space in _SERVED else "gaussian_w_plus or z"
        raise ScheduleError(
            f"method.spheres=[latent]: codes in {space} aren't Gaussian and lie on no sphere; use {remedy}"
        )
    if method.noise == "zero" and "noise" in method.spheres:
        raise ScheduleError("method.spheres=[noise]: maps that start at zero lie on no sphere; use method.noise=random")
    if method.noise == "zero" and "noise" in method.standardize:
        raise ScheduleError(
            "method.standardize=[noise]: maps that start at zero have no variance; use method.noise=random"
        )
    for stage in stages:
        if frozen := {*stage.radii, *stage.auto} & {*stage.reset} & {*stage.free} if stage.relative else ():
            raise ScheduleError(
                f"method.reset={list(stage.reset)} with method.radius_mode=relative: {min(frozen)} would be set to 0, "
                "in a ball of radius 0, and could never move; leave it out of method.free, or give it no radius"
            )
    if method.noise == "zero" and any("noise" in (*stage.radii, *stage.auto) and stage.relative for stage in stages):
        raise ScheduleError(
            "method.radii.noise with method.radius_mode=relative: maps that start at zero have the norm 0, "
            "and could never move; use method.noise=random or method.radius_mode=absolute"
        )
