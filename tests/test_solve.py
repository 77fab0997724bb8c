"""The engine against a bare loop, and its laws: batch = one at a time, best = lowest data fit, stages continuous."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_lightning import Callback

from benchmarks.bare_loop import bare_loop
from ilo_lightning.generators.base import variable_of
from ilo_lightning.losses import mean_squared_error
from ilo_lightning.method import Method
from ilo_lightning.method_config import method_from_config
from ilo_lightning.operators import (
    GaussianCompressedSensing,
    GaussianNoise,
    Inpainting,
    Measurement,
    PartialCirculant,
    measure,
)
from ilo_lightning.problem import InverseProblem
from ilo_lightning.schedule import ScheduleError
from ilo_lightning.solve import SolveError, solve
from tests.networks import rngs, small_stylegan2

KEYS = ["a", "b", "c"]


def ilo(**changes) -> Method:
    fields = {
        "name": "ilo",
        "layers": [0, 1, 2],
        "steps": [4, 3, 5],
        "lr": [0.1, 0.05, 0.02],
        "free": ["latent", "activation", "rgb", "noise"],
        "noise_maps": [1, 2, 5],
        "lr_scale": {"rgb": 0.2},
        "radius": 0.01,
        "radii": {"rgb": 0.02, "noise": [None, 0.5, 0.1]},
        "spheres": ["latent"],
    }
    return method_from_config(**{**fields, **changes})


def problem(images: int = 3, dtype: torch.dtype = torch.float64):
    generator = small_stylegan2(dtype=dtype)
    truth = generator(generator.sample(rngs(*range(100, 100 + images)), "z"))
    operator = PartialCirculant(generator.image_shape, fraction=0.3)
    return generator, operator, measure(operator, GaussianNoise(0.05), truth, rngs(*range(images)))


@pytest.mark.parametrize(
    "method",
    [
        ilo(),
        ilo(noise="zero", free=["latent", "activation", "rgb"], radii={}, noise_maps=None),
        ilo(spheres=["latent", "noise"], radius_mode="absolute", radius=[0.0, 3.0, 5.0]),
        ilo(layers=[0], steps=[6], lr=[0.1], radii={}, noise_maps=None, space="z"),
        ilo(layers=[1, 1, 2], space="w_plus", spheres=[], optimizer="adam"),
    ],
    ids=["all", "noiseless", "absolute", "csgm", "repeated layer"],
)
def test_the_engine_computes_what_a_bare_loop_computes(method: Method):
    generator, operator, measurement = problem()
    result = solve(generator, operator, measurement, method, KEYS, seed=3)
    best, fits, best_fit = bare_loop(generator, operator, measurement, method, KEYS, seed=3)
    for i, solution in enumerate(result.solutions):
        assert solution.point.layer == best[i].layer
        assert set(solution.point.tensors) == set(best[i].tensors)
        for name, tensor in solution.point.tensors.items():
            torch.testing.assert_close(tensor, best[i][name], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(solution.history, fits[:-1, i], rtol=1e-9, atol=0)
        assert solution.info["data_fit"] == pytest.approx(best_fit[i].item(), rel=1e-9)
        assert solution.info["evaluations"] == method.schedule.steps + 1


def test_what_ends_the_optimisation_early_is_an_error():
    """Lightning takes a StopIteration, as of ``next`` of nothing, for the end of the data."""
    generator, operator, measurement = problem()

    class Ends(Callback):
        def on_train_batch_start(self, trainer, problem, batch, batch_idx):
            if trainer.global_step == 5:
                raise StopIteration

    with pytest.raises(SolveError, match=r"ended after \d+ of 12 steps.*StopIteration") as caught:
        solve(generator, operator, measurement, ilo(), KEYS, callbacks=[Ends()])
    assert caught.value.reconstruction is not None and len(caught.value.reconstruction.solutions) == 3


def test_batch_equals_one_at_a_time():
    """In float64 to 1e-9 over a full schedule, whatever the batch and the order."""
    generator, operator, measurement = problem()
    method = ilo(steps=[20, 20, 20])
    together = solve(generator, operator, measurement, method, KEYS).solutions
    order = [2, 0]
    shuffled = solve(generator, operator, measurement.select(order), method, [KEYS[i] for i in order]).solutions
    for i, expected in enumerate(together):
        alone = solve(generator, operator, measurement.select([i]), method, [KEYS[i]]).solutions[0]
        others = [shuffled[order.index(i)]] if i in order else []
        for other in (alone, *others):
            torch.testing.assert_close(other.history, expected.history, rtol=1e-9, atol=1e-9)
            for name, tensor in expected.point.tensors.items():
                torch.testing.assert_close(other.point[name], tensor, rtol=1e-9, atol=1e-9)


def test_the_solution_is_the_best_iterate_by_data_fit():
    """The saved point measures what is claimed, and nothing in the history beats it."""
    generator, operator, measurement = problem()
    for method in (ilo(), ilo(lr=[5.0, 3.0, 2.0], radius=None, radii={}, spheres=[])):  # the latter diverges
        for i, solution in enumerate(solve(generator, operator, measurement, method, KEYS).solutions):
            fit = mean_squared_error(operator(generator(solution.point)), measurement.select([i])).item()
            assert fit == pytest.approx(solution.info["data_fit"], rel=1e-9)
            assert fit <= solution.history.min().item() * (1 + 1e-12)


def test_stages_continue_where_the_last_one_ended():
    """The first data fit of a stage is that of the previous stage's last point, seen through the deeper layer."""
    generator, operator, measurement = problem()
    short = solve(generator, operator, measurement, ilo(layers=[0], steps=[4], lr=[0.1], radii={}, noise_maps=1), KEYS)
    long = solve(generator, operator, measurement, ilo(), KEYS)
    for i in range(3):
        end = mean_squared_error(operator(short.strip[0][i : i + 1]), measurement.select([i]))
        torch.testing.assert_close(long.solutions[i].history[4], end[0], rtol=1e-10, atol=0)


def test_ball_and_spheres_hold_at_the_end_of_every_stage():
    generator, operator, measurement = problem()

    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            stage = pl_module.stage
            for name, tensor in pl_module.variables.items():
                if not tensor.requires_grad:
                    assert torch.equal(tensor, pl_module.center[name])
                elif variable_of(name) in stage.radii:
                    distance = (tensor - pl_module.center[name]).flatten(1).abs().sum(1)
                    radius = stage.radii[variable_of(name)] * pl_module.center[name].flatten(1).abs().sum(1)
                    assert (distance <= radius * (1 + 1e-12)).all()
                    seen.append(bool((distance > 0.99 * radius).any()))
                if name == "latent":
                    norms = tensor.norm(dim=-1)
                    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(8)))

    solve(generator, operator, measurement, ilo(), KEYS, callbacks=[Look()])
    assert any(seen), "no constraint was ever active: the test would not notice its absence"


def test_radius_zero_leaves_the_activation_alone():
    generator, operator, measurement = problem()
    method = ilo(
        layers=[1], steps=[5], lr=[0.1], radius=0.0, radii={"rgb": 0.0}, free=["activation", "rgb"], noise_maps=None
    )
    result = solve(generator, operator, measurement, method, KEYS)
    for solution in result.solutions:
        torch.testing.assert_close(solution.history, solution.history[:1].expand(5), rtol=1e-12, atol=0)


def test_an_image_does_not_see_the_others():
    """The gradient of one image's loss doesn't depend on what is in the batch: a NaN measurement stays where it is."""
    generator, operator, measurement = problem()
    broken = measurement.y.clone()
    broken[1] = torch.nan
    result = solve(generator, operator, Measurement(broken, measurement.weight), ilo(), KEYS)
    clean = solve(generator, operator, measurement, ilo(), KEYS)
    for i in (0, 2):
        torch.testing.assert_close(result.solutions[i].history, clean.solutions[i].history, rtol=1e-9, atol=0)
    assert result.solutions[1].info["data_fit"] is None and "fault" in result.solutions[1].info


def test_hidden_pixels_have_no_say():
    generator = small_stylegan2()
    truth = generator(generator.sample(rngs(5, 6, 7), "z"))
    operator = Inpainting(generator.image_shape)
    one = measure(operator, GaussianNoise(0.0), truth, rngs(1, 2, 3))
    other = measure(operator, GaussianNoise(0.0), torch.where(operator.weight > 0, truth, 99.0), rngs(1, 2, 3))
    a, b = (solve(generator, operator, m, ilo(), KEYS).solutions for m in (one, other))
    assert all(torch.equal(x.history, y.history) for x, y in zip(a, b, strict=True))


def test_starts_from_a_given_point():
    generator, operator, measurement = problem()
    init = generator.sample(rngs(7, 8, 9), "w")
    result = solve(generator, operator, measurement, ilo(spheres=[]), KEYS, init=init)
    fit = mean_squared_error(operator(generator(init)), measurement)
    torch.testing.assert_close(torch.stack([s.history[0] for s in result.solutions]), fit)
    assert {s.point.space for s in result.solutions} == {"w"}


def test_goes_on_from_a_solution():
    """At its own layer, for every image of the batch; a code off its sphere is put on it before it is looked at."""
    generator, operator, measurement = problem()
    begin = ilo(layers=[0, 1], steps=[3, 2], lr=0.1, noise_maps=None, radii={})
    first = solve(generator, operator, measurement.select([0]), begin, KEYS[:1]).solutions[0]
    method = ilo(layers=[1, 2], steps=[2, 2], lr=0.1, noise_maps=None, radii={})
    result = solve(generator, operator, measurement, method, KEYS, init=first)
    fit = mean_squared_error(operator(generator(first.point.repeat(3))), measurement)
    begun = torch.stack([solution.history[0] for solution in result.solutions])
    torch.testing.assert_close(begun, fit)
    stretched = first.point.update({"latent": 3 * first.point["latent"]})
    again = solve(generator, operator, measurement, method, KEYS, init=stretched)
    torch.testing.assert_close(torch.stack([solution.history[0] for solution in again.solutions]), begun)
    deeper = generator.advance(first.point, 2)
    with pytest.raises(ValueError, match=r"init is at layer 2, deeper than the first stage's 1"):
        solve(generator, operator, measurement, method, KEYS, init=deeper)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": [4, 3]}, r"method.steps=\[4, 3\]: 2 entries for 3 stages"),
        ({"lr": [0.1]}, r"method.lr=\[0.1\]: 1 entries for 3 stages"),
        ({"radius": [0.1, 0.1, 0.1, 0.1]}, "method.radius=.* 4 entries"),
        ({"radii": {"rgb": [0.1]}}, "method.radii.rgb"),
        ({"layers": [0, 2, 1]}, r"method.layers=\[0, 2, 1\]: layers can't decrease"),
        ({"layers": [0, 1, 3]}, "method.layers=3: .* layers 0 … 2"),
        ({"layers": [0, 1, -1]}, "method.layers=-1"),
        ({"layers": [0, 1, 1.5]}, "method.layers=1.5"),
        ({"layers": []}, "method.layers="),
        ({"steps": [4, -3, 5]}, "method.steps=-3"),
        ({"steps": 0}, "at least one stage needs a step"),
        ({"radius": -0.1}, "method.radius=-0.1"),
        ({"radius": float("nan")}, "method.radius=nan"),
        ({"lr": 0.0}, "method.lr=0.0"),
        ({"lr": "fast"}, "method.lr=fast"),
        (
            {"free": ["latent", "activations"]},
            "unknown variable 'activations'; StyleGAN2 has activation, latent, noise, rgb",
        ),
        ({"free": ["activation"]}, "nothing to optimise at layer 0"),
        ({"free": []}, "method.free"),
        ({"radii": {"skip": 1.0}}, "method.radii: unknown variable 'skip'"),
        ({"spheres": ["w"]}, "method.spheres: unknown variable 'w'"),
        ({"lr_scale": {"gain": 1.0}}, "method.lr_scale: unknown variable 'gain'"),
        ({"space": "x"}, "method.space=x: StyleGAN2 has gaussian_w_plus"),
        ({"space": "w_plus"}, "lie on no sphere"),
        ({"optimizer": "adamm"}, "method.optimizer=adamm: expected one of adam"),
        ({"radius_mode": "percent"}, "method.radius_mode=percent"),
        ({"noise": "zero", "spheres": ["noise"]}, "method.noise=random"),
        ({"noise": "zero"}, "maps that start at zero have the norm 0"),
        ({"noise_maps": -1}, "method.noise_maps=-1"),
    ],
)
def test_refuses_schedules_that_make_no_sense(changes: dict, words: str):
    generator, operator, measurement = problem()
    with pytest.raises(ScheduleError, match=words):
        solve(generator, operator, measurement, ilo(**changes), KEYS)


def test_stages_without_steps_are_skipped():
    generator, operator, measurement = problem()
    fields = {"radius": 0.01, "radii": {}, "noise_maps": None}
    skipped = solve(generator, operator, measurement, ilo(steps=[4, 0, 5], **fields), KEYS)
    direct = solve(generator, operator, measurement, ilo(layers=[0, 2], steps=[4, 5], lr=[0.1, 0.02], **fields), KEYS)
    for a, b in zip(skipped.solutions, direct.solutions, strict=True):
        assert torch.equal(a.history, b.history)


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_computes():
    generator, operator, measurement = problem()
    expected = solve(generator, operator, measurement, ilo(), KEYS, trainer={"accelerator": "cpu"})
    result = solve(generator, operator, measurement, ilo(), KEYS, trainer={"accelerator": "gpu"})
    for a, b in zip(result.solutions, expected.solutions, strict=True):
        torch.testing.assert_close(a.history, b.history, rtol=1e-8, atol=0)
        for name, tensor in b.point.tensors.items():
            torch.testing.assert_close(a.point[name], tensor, rtol=1e-6, atol=1e-9)


def test_in_mixed_precision_only_the_generator_is_computed_in_less():
    """What A makes of its image, and the fit, are those of float32, as y is."""
    generator = small_stylegan2(dtype=torch.float32)
    operator = GaussianCompressedSensing(generator.image_shape, fraction=0.3)
    measurement = measure(operator, GaussianNoise(0.05), generator(generator.sample(rngs(5), "z")), rngs(0))
    mixed = InverseProblem(generator, operator, measurement, ilo().schedule, generator.sample(rngs(1)))
    with torch.autocast("cpu", torch.bfloat16):
        image = mixed(mixed.point).detach()
        mixed.evaluate().sum().backward()
    exact = mixed(mixed.point).detach()
    assert float((image - exact).abs().max()) > 1e-4, "it is computed in less"
    expected = mean_squared_error(operator(image.float()), measurement)
    torch.testing.assert_close(mixed.last_fit, expected.detach(), rtol=1e-6, atol=0)
    assert all(bool(p.grad.isfinite().all()) for p in mixed.variables.values() if p.grad is not None)
