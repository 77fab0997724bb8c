"""A method from the fields of ``conf/method/*.yaml``: what they leave out, share out or say for all stages at once is
worked out here. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .evaluations import searches_of, shared_out
from .method import Method
from .schedule import Schedule, ScheduleError, Stage, check_choice, check_count, check_number

CODES = {"n": "noise", "l": "latent", "s": "style", "g": "activation", "r": "rgb"}
"""Letters for ``method.free``: ``nlg`` frees noise maps, latents and the generator's activation."""
RADIUS_MODES = ("relative", "absolute")
AUTO = "auto"
"""A radius that is one of ``method.candidates``, whichever the held-out measurements are in favour of; layers as far as
the generator goes."""
AUTO_LAYERS = 4
"""How many those are, unless the steps of each are given."""
STOPS = ("discrepancy",)


def method_from_config(
    name: str,
    layers: str | Sequence[int],
    steps: int | Sequence[int],
    lr: float | Sequence[float],
    free: str | Sequence[str],
    radius: str | float | Sequence[float] | None = None,
    radius_mode: str = "relative",
    radii: Mapping[str, str | float | Sequence[float] | None] | None = None,
    lr_scale: Mapping[str, float] | None = None,
    noise_maps: int | Sequence[int] | None = None,
    noise_lookahead: int | None = None,
    center: str | Sequence[str] = "previous",
    range_steps: int = 50,
    reset: Sequence[str] = (),
    optimizer: str | Sequence[str] = "adam",
    ramp: str | Sequence[str] = "cosine",
    rampdown: float = 0.75,
    penalties: Mapping[str, float | Sequence[float]] | None = None,
    floor: float = 0.0,
    sigma: float | None = None,
    jitter: float = 0.0,
    bm3d: float | None = None,
    space: str | Sequence[str] | None = None,
    spheres: Sequence[str] = (),
    standardize: Sequence[str] = (),
    noise: str = "random",
    start: str = "random",
    restarts: int = 1,
    evaluations: int | None = None,
    keep: str = "best",
    rank: str = "data_fit",
    samples: int = 0,
    burn_in: float = 0.0,
    data_fit: Mapping[str, float | Sequence[float]] | None = None,
    dead_zone: float = 0.1,
    candidates: Sequence[float] = (),
    select: str | None = None,
    held_out: float = 0.1,
    refit: bool = True,
    refit_steps: int = 52,
    refit_lr: float = 0.05,
    refit_deviation: float = 1.0,
    anchor: float = 0.03,
    stop: str | None = None,
    noise_level: float | None = None,
    depth: int | None = None,
) -> Method:
    """Build a method from the fields of ``conf/method/*.yaml``.

    Where a field takes a list or a number, a list has one entry per stage, and a number holds for all stages.

    Args:
        name: what results are filed under.
        layers: entry layer of each stage; they never decrease. auto: 0, 1, 2, …, one for each entry of ``steps``
            (four, where that is one number), as far as the generator goes; entries of lists for stages beyond that
            are left out.
        steps: optimisation steps; a stage with none is left out.
        lr: peak of each stage's ramp.
        free: the variables that are optimised, among those that a point has at the stage's layer; or a code of
            letters: n (noise maps), l (latents), s (styles), g (generator activation), r (RGB), such as
            ``lgr``, or a list with
            one code per stage.
        radius: l1 radius of the activation around its value when the stage begins; null: no ball; auto: every one
            of ``candidates`` is tried, and what was held out of the measurements decides.
        radius_mode: ``relative``: radii are fractions of that value's own l1 norm, image by image; or ``absolute``.
        radii: the same for the other variables.
        lr_scale: per variable, a factor on ``lr``.
        noise_maps: only the first so many noise maps are free, where ``free`` has ``noise``; null: all that remain.
        noise_lookahead: the same, growing with the layer p: the first ``noise_lookahead + 2p``.
        center: of the ball: ``previous``, the previous stage's solution, advanced to this layer; or ``range``, the
            nearest point that the layers above can make from a latent code (ILO, Algorithm 1, lines 5-6).
        range_steps: optimisation steps of the search for it.
        reset: variables set to zero when a deeper stage begins: ``[rgb]`` drops the skip, as the original did.
        optimizer: ``adam``, ``adamw``, ``sgd``, ``normalized`` (gradient descent with steps of a given length, per
            image) or ``langevin``.
        ramp: of the learning rate: ``cosine``, ``one_cycle`` or ``constant``.
        rampdown: the last part of a stage in which the cosine ramp falls.
        penalties: weight in the loss of ``geocross``, ``geocross_styles``, ``latent_norm``, ``latent_l1``,
            ``total_variation``, ``noise_regularity``, ``deviation`` (see docs/methods.md).
        floor: a data fit below it counts as it: what agrees so well is not optimised further; 0: none.
        sigma: standard deviation of the measurement's noise, in units of y: the loss is then the negative
            log-likelihood; null: the loss is the data fit.
        jitter: noise on the code that fades in the first three quarters of a stage, in standard deviations of w.
        bm3d: standard deviation, for images in [-1, 1], of the noise that BM3D takes out of the image after each
            step, with ``generator=pixels``; null: no BM3D.
        space: latent space at layer 0; null: the generator's default. A list changes it from stage to stage.
        spheres: variables kept on their spheres: each latent vector at norm √dim, each noise map at √(H·W).
        standardize: variables brought to mean 0 and variance 1 after each step.
        noise: noise maps start ``random`` (drawn per image) or ``zero``.
        start: the code starts ``random`` (drawn per image) or at the ``mean`` of its space.
        restarts: how many starts are tried per image, side by side; one is kept, or what ``select`` makes of them.
        evaluations: spend so many generator evaluations per image on the steps of all stages, searches, radii,
            restarts (all the same) and the refit together, last looks beside: ``steps``, ``range_steps`` and
            ``refit_steps`` then only say in which proportion; null: they are taken as they are.
        keep: the solution is the ``best`` iterate, the ``last``, or the last of several ``samples``.
        rank: iterates and restarts are ranked by the ``data_fit``; by the ``loss``, penalties included; by the data
            fit of what is ``held_out`` (see ``select``); or by the ``truth``, an oracle that says what choosing
            could bring, and is no method.
        samples: how many samples are kept, with ``keep=samples``, from the last stage.
        burn_in: the part of the last stage before the first sample.
        data_fit: weight of ``mse``, ``perceptual`` (by the network of ``perceptual=…``), ``dead_zone`` and
            ``cross_entropy`` (of a classifier) in what is minimised; {mse: 1} unless given.
        dead_zone: errors of up to this cost nothing in the term ``dead_zone``; in units of y.
        candidates: the radii of ``auto``, side by side; each has a random start of its own.
        select: how several radii or starts become one point, by measurements that were held out: ``stacking``, the
            mean of their images with the weights that predict these best (for affine operators; ``holdout`` for
            others); ``holdout``, the one that does; null: the lowest ``rank``.
        held_out: the part of each image's measurements.
        refit: go on from there at the deepest layer, with all measurements, held by ``refit_deviation`` and
            ``anchor``.
        refit_steps: how many.
        refit_lr: peak of their cosine ramp.
        refit_deviation: weight in the refit of the penalty ``deviation`` from the point where it begins, beside the
            data fit in units of the mean squared error of what was held out.
        anchor: in the same units, weight of the distance to that point's image, in units of how far the candidates'
            images are from each other.
        stop: ``discrepancy``: an image is left as it is once its mean squared error is that of the noise (Morozov),
            where nothing else is minimised; null: all steps are taken.
        noise_level: standard deviation of the noise, in units of y; null: unknown, nothing stops.
        depth: how many layers the generator has, for ``layers`` auto; null: enough.

    Raises:
        ScheduleError: naming the field, its value and the remedy.
    """
    if layers == AUTO:
        count = len(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else AUTO_LAYERS
        layers = range(count if depth is None else min(count, depth))
    elif isinstance(layers, str) or not isinstance(layers, Sequence) or not len(layers):
        raise ScheduleError(
            f"method.layers={layers}: expected a list of entry layers, one per stage, such as [0,1,2]; or auto"
        )
    else:
        count = len(layers)
    for field_name, value in (("spheres", spheres), ("standardize", standardize), ("reset", reset)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ScheduleError(f"method.{field_name}={value}: expected a list of variables, such as [latent]")
    for field_name, value in (
        ("radii", radii),
        ("lr_scale", lr_scale),
        ("penalties", penalties),
        ("data_fit", data_fit),
    ):
        if value is not None and not isinstance(value, Mapping):
            raise ScheduleError(
                f"method.{field_name}={value}: expected a number per name, such as {{{_EXAMPLES[field_name]}}}"
            )

    def per_stage(name: str, value: Any) -> list[Any]:
        return _per_stage(name, value, count)[: len(layers)]

    for layer in layers:
        check_count("method.layers", layer)
    steps = per_stage("method.steps", steps)
    center = per_stage("method.center", center)
    automatic = AUTO in (radius, *(radii or {}).values())
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise ScheduleError(f"method.candidates={candidates}: expected a list of radii, such as [0.05,0.2,1]")
    for candidate in candidates:
        check_number("method.candidates", candidate)
    candidates = tuple(map(float, candidates)) if automatic else ()
    if not isinstance(refit, bool):
        raise ScheduleError(f"method.refit={refit}: expected true or false")
    copies = check_count("method.restarts", restarts, 1) * max(len(candidates), 1)
    for counted, given in (("steps", steps), ("range_steps", [range_steps]), ("refit_steps", [refit_steps])):
        for value in given:
            check_count(f"method.{counted}", value)
    refits = refit and refit_steps > 0 and select is not None and copies > 1
    check_number("method.refit_lr", refit_lr, positive=True, finite=True)
    if evaluations is not None:
        check_count("method.evaluations", evaluations)
        kept = [i for i, value in enumerate(steps) if value]
        searches = searches_of([layers[i] for i in kept], [center[i] for i in kept])
        steps, range_steps, refit_steps = shared_out(
            evaluations, steps, range_steps, refit_steps if refits else 0, searches, copies
        )
    if stop is not None:
        check_choice("method.stop", stop, STOPS)
    if noise_level is not None and not _is_finite(noise_level):
        raise ScheduleError(
            f"method.noise_level={noise_level}, which is task.noise.sigma={noise_level} unless given: expected a "
            "finite number at least 0"
        )
    enough = float(noise_level) ** 2 if stop and noise_level and keep != "samples" else None
    check_choice("method.radius_mode", radius_mode, RADIUS_MODES)
    if radii and "activation" in radii:
        raise ScheduleError(
            f"method.radii.activation={radii['activation']}: give the activation's radius as method.radius"
        )
    if noise_lookahead is not None:
        if noise_maps is not None:
            raise ScheduleError(
                f"method.noise_lookahead={noise_lookahead}, method.noise_maps={noise_maps}: both given; set one to null"
            )
        check_count("method.noise_lookahead", noise_lookahead)
    bounds = {"activation": radius, **(radii or {})}
    for variable, value in bounds.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and AUTO in value:
            field_name = "method.radius" if variable == "activation" else f"method.radii.{variable}"
            raise ScheduleError(
                f"{field_name}={list(value)}: auto is for all stages; use {field_name}=auto, or numbers"
            )
    auto = tuple(variable for variable, value in bounds.items() if value == AUTO)
    bounds = {variable: value for variable, value in bounds.items() if value != AUTO}
    per_stage_radii = {
        variable: per_stage("method.radius" if variable == "activation" else f"method.radii.{variable}", value)
        for variable, value in bounds.items()
    }
    per_stage_penalties = {
        penalty: per_stage(f"method.penalties.{penalty}", value) for penalty, value in (penalties or {}).items()
    }
    per_stage_fits = {
        term: per_stage(f"method.data_fit.{term}", value)
        for term, value in ({"mse": 1.0} if data_fit is None else data_fit).items()
    }
    columns = {
        field_name: per_stage(f"method.{field_name}", value)
        for field_name, value in (
            ("lr", lr), ("noise_maps", noise_maps), ("optimizer", optimizer), ("ramp", ramp), ("space", space)
        )
    }  # fmt: skip
    for value in columns["space"]:
        if value is not None and not isinstance(value, str):
            raise ScheduleError(f"method.space={space}: expected the name of a latent space, or one per stage")
    columns |= {"steps": steps, "center": center}
    columns["free"] = _free_per_stage(free, count)[: len(layers)]
    if noise_lookahead is not None:
        columns["noise_maps"] = [noise_lookahead + 2 * check_count("method.layers", layer) for layer in layers]
    alone = {
        i for i in range(len(layers))
        if {name for name, values in per_stage_fits.items() if values[i]} == {"mse"}
        and not any(values[i] for values in per_stage_penalties.values())
    }  # fmt: skip
    stages = tuple(
        Stage(
            layer=layer,
            radii={name: values[i] for name, values in per_stage_radii.items() if values[i] is not None},
            auto=auto,
            relative=radius_mode == "relative",
            lr_scale=dict(lr_scale or {}),
            rampdown=rampdown,
            range_steps=range_steps,
            reset=tuple(reset) if i else (),
            penalties={name: values[i] for name, values in per_stage_penalties.items() if values[i]},
            data_fit={name: values[i] for name, values in per_stage_fits.items()},
            floor=floor,
            sigma=sigma,
            jitter=jitter,
            bm3d=bm3d,
            enough=enough if i in alone else None,
            **{field_name: values[i] for field_name, values in columns.items()},
        )
        for i, layer in enumerate(layers)
    )
    schedule = Schedule(stages)
    last = schedule.stages[-1]
    free_again = tuple(dict.fromkeys((*last.free, "activation", "rgb")))  # the last stage's may have ended above
    refit_stage = replace(
        last, free=free_again, steps=refit_steps, lr=refit_lr, radii={}, auto=(), optimizer="adam", ramp="cosine",
        center="previous", reset=(), penalties={}, enough=None, space=None, jitter=0.0, bm3d=None, floor=0.0,
        sigma=None,
    ) if refits else None  # fmt: skip
    return Method(
        name=name,
        schedule=schedule,
        space=schedule[0].space,
        spheres=tuple(spheres),
        noise=noise,
        standardize=tuple(standardize),
        start=start,
        restarts=restarts,
        keep=keep,
        rank=rank,
        samples=samples,
        burn_in=burn_in,
        dead_zone=dead_zone,
        candidates=candidates,
        select=select,
        held_out=held_out,
        refit=refit_stage,
        refit_deviation=refit_deviation,
        anchor=anchor,
    )


_EXAMPLES = {"radii": "rgb: 0.1", "lr_scale": "rgb: 0.2", "penalties": "geocross: 0.01", "data_fit": "mse: 1"}


def _free_per_stage(free: Any, stages: int) -> list[tuple[str, ...]]:
    """The free variables of each stage, from names of variables or from codes of letters."""
    hint = f"expected a list of variables, such as [latent], or a code of the letters {', '.join(CODES)}"
    given = free
    if isinstance(free, str):
        free = [free] * stages if set(free) <= set(CODES) and free else None
    if not isinstance(free, Sequence) or not all(isinstance(name, str) for name in free):
        raise ScheduleError(f"method.free={given}: {hint}")
    if not free or not all(name and set(name) <= set(CODES) for name in free):
        return [tuple(free)] * stages
    codes = _per_stage("method.free", free, stages)
    return [tuple(dict.fromkeys(CODES[letter] for letter in code)) for code in codes]


def _per_stage(name: str, value: Any, stages: int) -> list[Any]:
    """A scalar for all stages, or a list with one entry per stage."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != stages:
            raise ScheduleError(
                f"{name}={list(value)}: {len(value)} entries for {stages} stages (method.layers); "
                "give one entry per stage, or one number for all"
            )
        return list(value)
    return [value] * stages


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e100
