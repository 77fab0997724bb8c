"""The methods are configurations of one engine: what each promises, by laws and against independent computations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback
from torch import Tensor, nn

from ilo_lightning.building import load_method
from ilo_lightning.compatibility import check_method
from ilo_lightning.generators.base import LatentPoint, variable_of
from ilo_lightning.generators.classical import Pixels, Wavelets
from ilo_lightning.generators.sequential import SequentialGenerator
from ilo_lightning.generators.stylegan2 import LARGER
from ilo_lightning.losses import mean_squared_error
from ilo_lightning.losses.penalties import PENALTIES, PenaltyError, geocross
from ilo_lightning.method import Method
from ilo_lightning.method_config import method_from_config
from ilo_lightning.operators import GaussianNoise, Inpainting, PartialCirculant, measure
from ilo_lightning.optimizers import NormalizedDescent
from ilo_lightning.problem import InverseProblem
from ilo_lightning.randomness import generator_for
from ilo_lightning.schedule import ScheduleError
from ilo_lightning.solve import solve
from tests.networks import rngs, small_stylegan2
from tests.test_solve import KEYS, ilo, problem

CONF = Path(__file__).parents[1] / "conf" / "method"


def method(name: str, **changes: Any) -> Method:
    """A method as shipped, with some fields changed."""

    def read(name: str) -> Any:
        config = OmegaConf.load(CONF / f"{name}.yaml")
        parents = [each for each in config.pop("defaults", []) if each != "_self_"]
        return OmegaConf.merge(*map(read, parents), config) if parents else config

    config = OmegaConf.to_container(OmegaConf.merge({"method": read(name)}), resolve=False)
    assert isinstance(config, dict)
    fields = config["method"]
    fields.pop("_target_")
    fields = {
        key: None if isinstance(value, str) and value.startswith("${") else value for key, value in fields.items()
    }
    fits = fields["data_fit"].items()
    fields["data_fit"] = {
        key: float(str(v).rpartition(",")[2].rstrip("}")) for key, v in fits if not isinstance(v, list)
    }
    fields["radii"] = {key: fields["radius"] if str(v).startswith("${") else v for key, v in fields["radii"].items()}
    return method_from_config(**{**fields, **changes})


SHORT = {
    "csgm_mse": method("csgm_mse", steps=[6]),
    "csgm_z": method("csgm_z", steps=[4], restarts=3),
    "pulse": method("pulse", steps=[6]),
    "projector": method("projector", steps=[6]),
    "projector_w_plus": method("projector_w_plus", steps=[6]),
    "three_phase": method("three_phase", steps=[3, 3, 3]),
    "ilo_range": method(
        "ilo_range", layers=[0, 1, 2], steps=[3, 3, 3], lr=0.1, radius=0.02, radii={"rgb": 0.02}, range_steps=3
    ),
    "ilo_original": method("ilo_original", layers=[0, 1, 2], steps=[3, 3, 3]),
    "ilo_sparse": method("ilo_sparse", layers=[0, 1, 2], steps=[3, 3, 3], lr=0.1),
    "langevin": method("langevin", steps=[3, 6], sigma=0.1, samples=3),
}


@pytest.mark.parametrize("name", SHORT)
def test_batch_equals_one_at_a_time(name: str):
    """Whatever a method draws, penalises, constrains or restarts: images don't influence each other."""
    generator, operator, measurement = problem()
    together = solve(generator, operator, measurement, SHORT[name], KEYS)
    for i, expected in enumerate(together.solutions):
        alone = solve(generator, operator, measurement.select([i]), SHORT[name], [KEYS[i]])
        solution = alone.solutions[0]
        assert solution.point.space == expected.point.space and solution.point.layer == expected.point.layer
        torch.testing.assert_close(solution.history, expected.history, rtol=1e-9, atol=1e-9)
        for variable, tensor in expected.point.tensors.items():
            torch.testing.assert_close(solution.point[variable], tensor, rtol=1e-8, atol=1e-8)
        if together.posterior is not None and alone.posterior is not None:
            torch.testing.assert_close(alone.posterior.std[0], together.posterior.std[i], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SHORT)
def test_what_is_claimed_is_what_the_saved_point_measures(name: str):
    generator, operator, measurement = problem()
    for i, solution in enumerate(solve(generator, operator, measurement, SHORT[name], KEYS).solutions):
        fit = mean_squared_error(operator(generator(solution.point)), measurement.select([i])).item()
        assert fit == pytest.approx(solution.info["data_fit"], rel=1e-9)
        method = SHORT[name]
        # One last look at each, and the samples' pictures without a gradient.
        assert solution.info["evaluations"] == method.evaluations + math.ceil((method.restarts + method.samples) / 3)


@pytest.mark.parametrize("name", [*SHORT, "csgm", "ilo"])
@pytest.mark.parametrize("evaluations", [37, 100, 1000])
def test_evaluations_are_spent_exactly(name: str, evaluations: int):
    """Whatever the stages, searches and restarts; no stage is lost, and proportions are kept as far as can be."""
    fields = {"sigma": 0.1, "samples": 5} if name == "langevin" else {}
    shipped, scaled = load_method(name, **fields), load_method(name, **fields, evaluations=evaluations)
    assert (shipped.copies, shipped.refit is None) == (scaled.copies, scaled.refit is None)
    assert evaluations - scaled.evaluations == (0 if scaled.refit else evaluations % scaled.copies)
    assert [stage.layer for stage in scaled.schedule.stages] == [stage.layer for stage in shipped.schedule.stages]
    for stage, given in zip(scaled.schedule.stages, shipped.schedule.stages, strict=True):
        assert stage.steps == pytest.approx(given.steps * evaluations / shipped.evaluations, abs=3)


def test_too_few_evaluations_are_refused():
    with pytest.raises(ScheduleError, match=r"method\.evaluations=2: expected at least 4, one for each of 4 stages"):
        method("ilo", evaluations=2)
    with pytest.raises(ScheduleError, match=r"method\.evaluations=-1"):
        method("ilo", evaluations=-1)


def test_ranked_by_the_truth():
    """An oracle: of all points on the way, the one whose clipped image is nearest to the truth; the way is the same."""
    generator, operator, measurement = problem()
    truth = generator(generator.sample(rngs(40, 41, 42), None))[: len(KEYS)]
    errors: list[Tensor] = []

    class Watch(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            with torch.no_grad():
                image = generator(pl_module.point).clamp(-1, 1)
            errors.append((image - truth).flatten(1).square().mean(1))

    usual, oracle = method("csgm", steps=[12], noise="random"), method("csgm", steps=[12], noise="random", rank="truth")
    expected = solve(generator, operator, measurement, usual, KEYS).solutions
    found = solve(generator, operator, measurement, oracle, KEYS, truth=truth, callbacks=[Watch()]).solutions
    for i, (solution, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(solution.history, other.history)
        error = (generator(solution.point).clamp(-1, 1) - truth[i]).square().mean()
        last = min(float(each[i]) for each in errors)
        assert float(error) <= last * (1 + 1e-9)
    with pytest.raises(ScheduleError, match=r"method\.rank=truth: the true images aren't known"):
        solve(generator, operator, measurement, oracle, KEYS)


def test_stages_may_minimise_different_things():
    """Each stage's loss is its own weighted sum; their iterates are not ranked against each other."""
    from ilo_lightning.losses import DeadZone, WeightedFit

    generator, operator, measurement = problem()
    terms = {"mse": mean_squared_error, "dead_zone": DeadZone(0.1)}
    changing = {"mse": [1, 0], "dead_zone": [0, 2]}
    two = method("csgm", layers=[0, 0], steps=[3, 3], lr=0.1, keep="last", data_fit=changing)
    fits = [WeightedFit(terms, stage.data_fit) for stage in two.schedule.stages]
    (solution, *_) = solve(generator, operator, measurement, two, KEYS, data_fit=fits).solutions
    prediction = operator(generator(solution.point))
    assert solution.info["data_fit"] == pytest.approx(2 * float(DeadZone(0.1)(prediction, measurement.select([0]))))
    with pytest.raises(ScheduleError, match=r"method\.data_fit=.*: iterates of stages.*method\.keep=last"):
        method("csgm", layers=[0, 0], steps=[3, 3], lr=0.1, data_fit=changing)


def test_a_limit_on_noise_maps_is_none_on_styles():
    stage = method("three_phase", space="styles", free=["style", "noise"], noise_maps=2).schedule[0]
    assert stage.frees("style", 5) and stage.frees("noise", 1) and not stage.frees("noise", 2)


# --- restarts -------------------------------------------------------------------------------------------------------


def test_restarts_keep_the_best_of_what_separate_runs_find():
    generator, operator, measurement = problem()
    several, one = method("csgm", steps=[6], restarts=3), method("csgm", steps=[6])
    for i, solution in enumerate(solve(generator, operator, measurement, several, KEYS, seed=5).solutions):
        keys = [KEYS[i], f"{KEYS[i]}#1", f"{KEYS[i]}#2"]
        runs = [solve(generator, operator, measurement.select([i]), one, [key], seed=5).solutions[0] for key in keys]
        best = min(range(3), key=lambda n: runs[n].info["data_fit"])
        assert solution.info["restart"] == best
        assert solution.info["data_fit"] == pytest.approx(runs[best].info["data_fit"], rel=1e-9)
        assert solution.info["evaluations"] == sum(run.info["evaluations"] - 1 for run in runs) + 1, "a look is a third"
        torch.testing.assert_close(solution.point["latent"], runs[best].point["latent"], rtol=1e-8, atol=1e-8)


def test_ranked_by_the_loss_the_penalties_have_a_say():
    """With a heavy penalty on the norm the iterate of the lowest loss isn't that of the lowest data fit."""
    generator, operator, measurement = problem(images=1)
    fields: dict[str, Any] = {"steps": [25], "restarts": 1, "sigma": None, "penalties": {"latent_norm": 0.2}}
    norms = {}
    for rank in ("loss", "data_fit"):
        solution = solve(generator, operator, measurement, method("csgm_z", rank=rank, **fields), ["a"]).solutions[0]
        fit = mean_squared_error(operator(generator(solution.point)), measurement).item()
        norms[rank] = (fit + 0.2 * solution.point["latent"].square().sum().item(), fit)
    assert norms["loss"][0] < norms["data_fit"][0]
    assert norms["data_fit"][1] < norms["loss"][1]


def test_restarts_ranked_by_the_loss_the_penalties_have_a_say():
    """Of starts that end alike, the one whose code is shortest; by the data fit alone, another."""
    generator, operator, measurement = problem(images=3)
    fields: dict[str, Any] = {"steps": [3], "restarts": 3, "sigma": None, "penalties": {"latent_norm": 0.5}}
    picks: dict[str, list[int]] = {}
    for rank in ("loss", "data_fit"):
        shipped = method("csgm_z", rank=rank, **fields)
        solutions = solve(generator, operator, measurement, shipped, KEYS[:3]).solutions
        picks[rank] = [solution.info["restart"] for solution in solutions]
        alone = replace(shipped, restarts=1)
        for image, (key, solution) in enumerate(zip(KEYS, solutions, strict=False)):
            own = measurement.select([image])
            runs = [
                solve(generator, operator, own, alone, [f"{key}#{start}" if start else key]).solutions[0]
                for start in range(3)
            ]
            fits = [run.info["data_fit"] for run in runs]
            if rank == "loss":
                fits = [
                    fit + 0.5 * run.point["latent"].square().sum().item() for fit, run in zip(fits, runs, strict=True)
                ]
            assert solution.info["restart"] == int(np.argmin(fits))
    assert picks["loss"] != picks["data_fit"]


# --- penalties ------------------------------------------------------------------------------------------------------


def test_geocross_of_random_directions_is_149():
    codes = torch.randn(64, 18, 512, dtype=torch.float64, generator=rngs(0)[0])
    assert geocross(codes).mean().item() == pytest.approx(149, rel=0.01)


def test_geocross_is_the_mean_over_all_pairs_and_smooth_where_codes_agree():
    codes = torch.randn(2, 5, 7, dtype=torch.float64, generator=rngs(1)[0])
    for image in range(2):
        total = 0.0
        for x in codes[image].numpy():
            for y in codes[image].numpy():
                total += (2 * math.atan2(np.linalg.norm(x - y), np.linalg.norm(x + y))) ** 2
        assert geocross(codes)[image].item() == pytest.approx(total / 25 * 64, rel=1e-6)
    same = codes[:, :1].expand(-1, 5, -1).clone().requires_grad_()
    value = geocross(same)
    assert (value < 1e-4).all()
    value.sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()
    with pytest.raises(PenaltyError, match="only one"):
        geocross(codes[:, :1])


def test_noise_regularity_against_loops():
    generator = small_stylegan2(32)
    point = generator.sample(rngs(0, 1))
    for image in range(2):
        total = 0.0
        for index in range(generator.num_noise_maps):
            level = point[f"noise_{index}"][image, 0].numpy()
            while True:
                side = len(level)
                total += np.mean([level[i, j] * level[i - 1, j] for i in range(side) for j in range(side)]) ** 2
                total += np.mean([level[i, j] * level[i, j - 1] for i in range(side) for j in range(side)]) ** 2
                if side <= 8:
                    break
                level = 2 * level.reshape(side // 2, 2, side // 2, 2).mean(axis=(1, 3))
        found = PENALTIES["noise_regularity"](generator, point, point, generator(point))[image].item()
        assert found == pytest.approx(total, rel=1e-9)


@pytest.mark.slow
def test_every_penalty_has_the_gradient_of_its_value():
    generator = small_stylegan2(16)
    point = generator.advance(generator.sample(rngs(0)), 1)
    center = generator.advance(generator.sample(rngs(9)), 1)
    names = [name for name in point.tensors if variable_of(name) != "noise" or name in ("noise_1", "noise_2")]
    for name, penalty in PENALTIES.items():

        def value(*tensors: Tensor, penalty=penalty) -> Tensor:
            changed = point.update(dict(zip(names, tensors, strict=True)))
            return penalty(generator, changed, center, generator(changed))

        inputs = [point[each].detach().clone().requires_grad_() for each in names]
        assert torch.autograd.gradcheck(value, inputs, eps=1e-7, atol=1e-5), name


def test_a_heavier_penalty_on_the_deviation_leaves_less_of_it():
    generator, operator, measurement = problem()
    deviations = []
    for weight in (0.0, 0.01, 1.0):
        shipped = method(
            "ilo_sparse", layers=[0, 1], steps=[10, 30], lr=0.05, keep="last", penalties={"deviation": weight}
        )
        seen: list[Tensor] = []

        class Look(Callback):
            def on_train_end(self, trainer, problem, seen=seen):
                seen.append(PENALTIES["deviation"](generator, problem.point, problem.center, problem.point["rgb"]))

        solve(generator, operator, measurement, shipped, KEYS, callbacks=[Look()])
        deviations.append(seen[0])
    assert (deviations[1] < deviations[0]).all() and (deviations[2] < deviations[1]).all()


# --- PULSE ----------------------------------------------------------------------------------------------------------


def test_pulse_says_whether_it_found_an_image_within_eps():
    generator, operator, measurement = problem()
    for floor, found in ((1e-9, False), (1e9, True)):
        shipped = method("pulse", steps=[4], floor=floor)
        assert [s.info["found"] for s in solve(generator, operator, measurement, shipped, KEYS).solutions] == [
            found
        ] * 3
    assert "found" not in solve(generator, operator, measurement, SHORT["csgm_mse"], KEYS).solutions[0].info


def test_below_the_floor_only_the_penalties_move_the_point():
    """The floor is part of the loss: with it above every data fit, and no penalty, nothing moves."""
    generator, operator, measurement = problem()
    still = method("pulse", steps=[4], floor=1e9, penalties={}, keep="last")
    first = method("pulse", steps=[1], floor=1e9, penalties={}, keep="last")
    a, b = (solve(generator, operator, measurement, each, KEYS).solutions for each in (still, first))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.point["latent"], y.point["latent"], rtol=1e-12, atol=1e-12)
    moved = solve(generator, operator, measurement, method("pulse", steps=[4], floor=1e9, keep="last"), KEYS).solutions
    for x, y in zip(moved, b, strict=True):
        before, after = (geocross(generator.codes(each.point)) for each in (y, x))
        assert (after < before).all()


# --- StyleGAN2's projector -----------------------------------------------------------------------------------------


def test_the_projector_begins_at_the_mean_and_keeps_its_last_point_with_noise_maps_of_unit_variance():
    generator, operator, measurement = problem()
    shipped, firsts = SHORT["projector"], []

    class Look(Callback):
        def on_train_start(self, trainer, problem):
            firsts.append(problem.point.detach())

        def on_train_end(self, trainer, problem):
            firsts.append(problem.point.detach())

    result = solve(generator, operator, measurement, shipped, KEYS, callbacks=[Look()])
    start, end = firsts
    assert torch.equal(start["latent"], generator.w_mean.expand(3, 1, -1))
    for i, solution in enumerate(result.solutions):
        assert torch.equal(solution.point["latent"], end["latent"][i : i + 1])
        for name, tensor in solution.point.tensors.items():
            if variable_of(name) == "noise":
                assert tensor.mean().abs() < 1e-9
                assert tensor.square().mean().item() == pytest.approx(1, abs=1e-9)


def test_the_jitter_fades_and_is_the_image_s_own():
    """What the projector evaluates at a step is its code plus noise of the published size, drawn for image and step."""
    generator, operator, measurement = problem()
    stage = SHORT["projector"].schedule[0]
    sizes = [stage.jitter_at(step) for step in range(stage.steps)]
    assert sizes == [0.05 * max(0, 1 - (step + 0.5) / 6 / 0.75) ** 2 for step in range(6)]
    assert sizes[-1] == 0 < sizes[0]
    shown: list[Tensor] = []

    original = generator.forward
    generator.forward = lambda point: (shown.append(point["latent"].detach().clone()), original(point))[1]  # type: ignore[method-assign]
    try:
        solve(generator, operator, measurement, SHORT["projector"], KEYS, seed=2)
    finally:
        del generator.forward
    noise = torch.stack(
        [torch.randn(1, 8, generator=generator_for(2, key, "jitter", 0, 0), dtype=torch.float64) for key in KEYS]
    )
    expected = generator.w_mean + sizes[0] * generator.w_std * noise
    first = next(latent for latent in shown if len(latent) == 3)  # after one for the method's own check
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-6)


# --- spaces and steps -----------------------------------------------------------------------------------------------


def test_a_code_means_the_same_image_in_a_larger_space():
    generator = small_stylegan2()
    for space in generator.spaces:
        point = generator.sample(rngs(0, 1), space)
        for larger in generator.spaces:
            if larger != space and larger not in LARGER[space]:
                with pytest.raises(ValueError, match="can't be written"):
                    generator.convert(point, larger)
                continue
            other = generator.convert(point, larger)
            torch.testing.assert_close(generator(other), generator(point), rtol=1e-10, atol=1e-10)
            deep, also = generator.advance(point, 1), generator.advance(other, 1)
            torch.testing.assert_close(generator(also), generator(deep), rtol=1e-10, atol=1e-10)


def test_the_mean_of_a_space_is_what_samples_average_to():
    generator = small_stylegan2()
    for space in ("w", "w_plus"):
        samples = generator.sample([torch.Generator().manual_seed(i) for i in range(600)], space)["latent"]
        mean = generator.mean(generator.sample(rngs(0), space))["latent"]
        spread = (samples - mean).square().sum(-1).mean().sqrt().item()
        assert (samples.mean(dim=0) - mean[0]).norm(dim=-1).max().item() < 4 * spread / math.sqrt(600)
        assert spread == pytest.approx(generator.spread(space), rel=0.1)


def test_steps_of_a_given_length():
    x = nn.Parameter(torch.randn(4, 3, 5, dtype=torch.float64, generator=rngs(0)[0]))
    before = x.detach().clone()
    optimizer = NormalizedDescent([x], 0.3)
    gradient = (
        torch.randn(x.shape, dtype=torch.float64, generator=rngs(1)[0])
        * torch.tensor([1e-9, 1, 1e9, 0.0])[:, None, None]
    )
    x.grad = gradient.clone()
    optimizer.step()
    moved = before - x.detach()
    lengths = moved.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.3, 0.3, 0.3, 0.0], dtype=torch.float64))
    directions = gradient[:3] / gradient[:3].flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(moved[:3], 0.3 * directions)


def test_each_code_and_each_scale_of_a_filter_goes_so_far():
    """Three-phase inversion: in W+ every w moves by the step's length, then every filter's style does."""
    generator, operator, measurement = problem()
    shipped = method("three_phase", steps=[1, 1, 1], lr=[0.5, 0.25, 0.125], keep="last")
    points: list[LatentPoint] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, problem, batch, batch_idx):
            points.append(problem.point.detach())

        def on_train_batch_end(self, trainer, problem, *args):
            points.append(problem.point.detach())

    solve(generator, operator, measurement, shipped, KEYS, callbacks=[Look()])
    for first, second, length in ((0, 1, 0.5), (2, 3, 0.25)):
        moved = points[second]["latent"] - points[first]["latent"]
        torch.testing.assert_close(moved.norm(dim=2), torch.full_like(moved[..., 0], length))
    for name, style in points[4].tensors.items():
        if variable_of(name) == "style":
            moved = (points[5][name] - style).abs()
            assert bool(((moved - 0.125).abs() < 1e-9).logical_or(moved == 0).all()) and bool((moved > 0).any())


def test_a_range_s_own_point_is_its_center():
    """However many stages there are at the codes: below them the solution is in the range, and nothing is searched."""
    generator, operator, measurement = problem()
    ranged = method("ilo_range", layers=[0, 0, 1, 2], steps=[3, 3, 3, 3], lr=0.1, radius=0.02, radii={}, range_steps=5)
    assert ranged.evaluations == 12 + 5

    class Look(Callback):
        def on_train_batch_start(self, trainer, problem, batch, batch_idx):
            if batch_idx == 0 and problem.stage_index == 2:
                for name, tensor in problem.center.tensors.items():
                    torch.testing.assert_close(tensor, problem.point[name], rtol=0, atol=0)

    solutions = solve(generator, operator, measurement, ranged, KEYS, callbacks=[Look()]).solutions
    assert all(solution.info["evaluations"] == 12 + 5 + 1 for solution in solutions)


def test_free_variables_by_a_code_of_letters():
    coded = method("ilo", layers=[0, 1, 2], steps=[1, 1, 1], lr=0.1, free=["l", "lg", "nlgr"], noise_lookahead=3)
    assert [stage.free for stage in coded.schedule.stages] == [
        ("latent",),
        ("latent", "activation"),
        ("noise", "latent", "activation", "rgb"),
    ]
    assert [stage.noise_maps for stage in coded.schedule.stages] == [3, 5, 7]
    words = method("ilo", layers=[0, 1], steps=[1, 1], lr=0.1, free="lgr")
    assert {stage.free for stage in words.schedule.stages} == {("latent", "activation", "rgb")}
    for wrong in ("lx", "", ["l", "g", "n"], [1]):
        with pytest.raises(ScheduleError, match=r"method\.free"):
            method("ilo", layers=[0, 1], steps=[1, 1], lr=0.1, free=wrong)


def test_the_original_drops_the_skip_and_jumps():
    """And ours doesn't: the first image of a stage is the last of the one before."""
    generator, operator, measurement = problem()
    firsts: dict[str, list[Tensor]] = {}
    for name in ("ilo", "ilo_original"):

        class Look(Callback):
            def on_train_batch_start(self, trainer, problem, batch, batch_idx, name=name):
                if batch_idx == 0:
                    firsts.setdefault(name, []).append(generator(problem.point).detach())

        shipped = method(name, layers=[0, 1], steps=[3, 3], lr=0.05, radius=None, radii={})
        strip = solve(generator, operator, measurement, shipped, KEYS, callbacks=[Look()]).strip
        jump = (firsts[name][1] - strip[0]).flatten(1).norm(dim=1) / strip[0].flatten(1).norm(dim=1)
        assert (jump < 1e-9).all() if name == "ilo" else (jump > 0.01).all()


# --- centre: the range of the layers above -------------------------------------------------------------------------


def test_the_centre_lies_in_the_range_and_nearer_than_the_last_code():
    """ILO, Algorithm 1, lines 5-6."""
    generator, operator, measurement = problem()
    shipped = method(
        "ilo_range", layers=[0, 1, 1], steps=[4, 6, 3], lr=0.1, radius=0.05, radii={"rgb": 0.05}, range_steps=60
    )
    seen: list[tuple[LatentPoint, LatentPoint, LatentPoint]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, problem, *args):
            if problem.stage_index == 2:
                for name in ("activation", "rgb"):
                    tensor, center = problem.variables[name], problem.center[name]
                    radius = 0.05 * center.flatten(1).abs().sum(1)
                    assert ((tensor - center).flatten(1).abs().sum(1) <= radius * (1 + 1e-9)).all()

        def on_train_epoch_start(self, trainer, problem):
            seen.append((problem._origin.detach(), problem.parent.detach(), problem.center.detach()))

    solve(generator, operator, measurement, shipped, KEYS, callbacks=[Look()])
    (_, code, _), (origin, solution, center) = seen[1], seen[2]
    assert origin.layer == 0
    made = generator.advance(origin, 1)
    torch.testing.assert_close(made["activation"], center["activation"])
    torch.testing.assert_close(made["rgb"], center["rgb"])

    def distance(point: LatentPoint) -> Tensor:
        parts = [(point[n] - solution[n]).flatten(1).square().sum(1) / solution[n].flatten(1).square().sum(1)
                 for n in ("activation", "rgb")]  # fmt: skip
        return torch.stack(parts).sum(0)

    assert (distance(center) < distance(generator.advance(code, 1))).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [1, 2, 2], "free": "gr", "spheres": [], "noise_maps": None, "radii": {}},
        {"radii": {"rgb": 0.02}},  # frees noise maps, of which an earlier layer uses only its own
        {"radii": {}, "noise_maps": None, "free": "lgr"},
    ],
    ids=["begins below the codes", "free noise maps", "codes"],
)
def test_every_step_is_taken_with_the_center_in_the_range(changes: dict[str, Any]):
    generator, operator, measurement = problem()
    shipped = ilo(**{**changes, "steps": [3, 2, 2]}, center="range", range_steps=3)
    for solution in solve(generator, operator, measurement, shipped, KEYS).solutions:
        assert len(solution.history) == 7 and solution.info["stage"] == [0, 0, 0, 1, 1, 2, 2]
        assert solution.info["evaluations"] == 7 + 3 + 1


# --- PULSE ----------------------------------------------------------------------------------------------------------


def test_pulse_minimises_what_was_published_on_the_published_ramp():
    """100·L2 + 0.05·GEOCROSS of images on [0, 1], eps 2e-3 there, learning rate 0.4, and linear1cycledrop."""
    generator, operator, measurement = problem()
    (stage,) = method("pulse").schedule.stages
    assert (stage.lr, stage.steps) == (0.4, 100)
    point = generator.sample(rngs(1, 2, 3), "gaussian_w_plus")
    image = generator(point)
    on_unit = mean_squared_error((operator(image) + 1) / 2, replace(measurement, y=(measurement.y + 1) / 2))
    together = PENALTIES["geocross_styles"](generator, point, point, image)
    published = 100 * on_unit + 0.05 * together
    ours = stage.data_fit["mse"] * mean_squared_error(operator(image), measurement)
    ours = ours + stage.penalties["geocross_styles"] * together
    torch.testing.assert_close(25 * ours, published)
    assert stage.floor == pytest.approx(4 * 2e-3)
    times, factors = [0.0, 0.45, 0.9, 1.0], [0.1, 1.0, 0.1, 0.001]  # linear between
    for step in range(stage.steps):
        assert stage.factor(step) == pytest.approx(np.interp(stage.time(step), times, factors), abs=1e-12)


@pytest.mark.parametrize(
    ("spaces", "entered"),
    [
        ([None, "w_plus"], ["gaussian_w_plus", "w_plus"]),
        (["z", None, "w_plus"], ["z", "z", "w_plus"]),
        (["w", None, "styles"], ["w", "w", "styles"]),
        (["w", None, "w", "w_plus"], ["w", "w", "w", "w_plus"]),
    ],
)
def test_a_stage_without_a_space_of_its_own_stays_where_it_is(spaces: list[str | None], entered: list[str]):
    generator, operator, measurement = problem(images=1)
    shipped = method(
        "csgm", layers=[0] * len(spaces), space=spaces, steps=2, lr=0.1, spheres=[], free=["latent", "style"]
    )
    check_method(shipped, generator)
    seen: list[str] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, problem, batch, batch_idx):
            if batch_idx == 0:
                seen.append(problem.point.space)

    found = solve(generator, operator, measurement, replace(shipped, keep="last"), KEYS[:1], callbacks=[Look()])
    assert seen == entered and found.solutions[0].point.space == entered[-1]


# --- the others, as published ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["projector", "projector_w_plus"])
def test_the_projector_has_the_published_schedule(name: str):
    """StyleGAN2, appendix D: 1,000 steps; learning rate 0.1, up over the first twentieth and down over the last quarter
    along a cosine; noise of 0.05 on w that fades over the first three quarters; 1e5 on the noise's correlations."""
    shipped = method(name)
    (stage,) = shipped.schedule.stages
    assert (stage.steps, stage.lr, stage.penalties) == (1000, 0.1, {"noise_regularity": 1e5})
    assert (shipped.start, shipped.keep, shipped.standardize, shipped.noise) == ("mean", "last", ("noise",), "random")
    for step in range(0, 1000, 7):
        t = (step + 0.5) / 1000
        down = 0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / 0.25))
        assert stage.factor(step) == pytest.approx(down * min(1, t / 0.05))
        assert stage.jitter_at(step) == pytest.approx(0.05 * max(0, 1 - t / 0.75) ** 2)


def test_csgm_z_is_the_published_form():
    """Bora et al.: ‖A(G(z)) - y‖² + 0.001‖z‖², the best of ten starts by that sum."""
    shipped = method("csgm_z")
    assert (shipped.space, shipped.restarts, shipped.rank) == ("z", 10, "loss") and shipped.spheres == ()
    generator = small_stylegan2()
    operator = PartialCirculant(generator.image_shape, fraction=0.3)
    truth, point = (generator.sample(rngs(*seeds), "z") for seeds in ((5, 6), (7, 8)))
    measurement = measure(operator, GaussianNoise(0.05), generator(truth), rngs(0, 1))
    with torch.no_grad():
        loss = InverseProblem(generator, operator, measurement, shipped.schedule, point).evaluate()
        errors = (operator(generator(point)) - measurement.y).flatten(1).square().sum(1)
    torch.testing.assert_close(loss, errors + 0.001 * point["latent"].flatten(1).square().sum(1))


def test_ilo_fixed_is_one_path():
    shipped = load_method("ilo_fixed")
    assert not shipped.candidates and not shipped.selects and shipped.keep == "best"
    assert all(stage.radii["activation"] == 0.1 for stage in shipped.schedule.stages)
    assert all(stage.enough is None for stage in shipped.schedule.stages)


def test_ilo_original_has_the_released_codes_choices():
    stages = method("ilo_original").schedule.stages
    assert [stage.noise_maps for stage in stages] == [5, 7, 9, 11]
    for index, stage in enumerate(stages):
        assert set(stage.free) == {"noise", "latent", "activation"} and stage.penalties == {"geocross": 0.01}
        assert stage.radii == {} and stage.auto == () and stage.reset == (("rgb",) if index else ())


# --- Langevin -------------------------------------------------------------------------------------------------------


def test_langevin_samples_the_posterior_of_a_linear_gaussian_problem():
    """z ~ N(0, I), y = W z + noise: mean and covariance of z given y are known. A hundred chains run side by side."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 3 * 4 * 4, bias=False)
    generator = (
        SequentialGenerator([nn.Sequential(linear, nn.Unflatten(1, (3, 4, 4)))], [3]).double().requires_grad_(False)
    )
    operator = Inpainting(generator.image_shape, fraction=0.5)
    truth = generator(LatentPoint(0, {"latent": torch.tensor([[0.5, -1.0, 1.5]], dtype=torch.float64)}, "z"))
    sigma, chains = 0.4, 100
    measurement = measure(operator, GaussianNoise(sigma), truth, rngs(3))
    w = linear.weight.double() * measurement.weight.expand_as(truth).flatten()[:, None]
    covariance = torch.linalg.inv(torch.eye(3, dtype=torch.float64) + w.T @ w / sigma**2)
    mean = covariance @ w.T @ measurement.y.flatten() / sigma**2
    shipped = method("langevin", steps=[30, 800], lr=[0.1, 0.005], sigma=sigma, samples=40, burn_in=0.5)
    ends: list[Tensor] = []

    visited: list[Tensor] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, problem, outputs, batch, batch_idx):
            if problem.stage_index == 1 and batch_idx >= shipped.sample_steps()[0]:
                visited.append(problem.variables["latent"].detach().clone().flatten(1))
            if problem.stage_index == 1 and batch_idx in shipped.sample_steps():
                ends.append(problem.variables["latent"].detach().clone().flatten(1))

    many = measurement.select([0] * chains)
    result = solve(generator, operator, many, shipped, [f"chain {i}" for i in range(chains)], callbacks=[Look()])
    assert len(ends) == 40
    samples = torch.cat(ends)
    spread = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < 0.15 * spread).all()
    found = torch.cov(samples.T)
    assert (found.diagonal().sqrt() / spread - 1).abs().max() < 0.1
    assert (found - covariance).norm() < 0.15 * covariance.norm()
    # The statistics of the pictures are those of the samples: of one chain, their mean and standard deviation.
    pictures = torch.stack([generator(LatentPoint(0, {"latent": end[:1]}, "z"))[0] for end in ends])
    assert result.posterior is not None and result.posterior.count == 40
    torch.testing.assert_close(result.posterior.mean[0], pictures.mean(0))
    torch.testing.assert_close(result.posterior.std[0], pictures.std(0))
    # Split R-hat, as for one coordinate at a time, of the variances' sums; near 1 for chains that have arrived.
    z = torch.stack(visited)
    n = len(z) // 2
    halves = torch.stack([z[:n], z[-n:]])
    within = halves.var(1).mean(0).sum(-1)
    between = n * halves.mean(1).var(0).sum(-1)
    rhat = (((n - 1) / n * within + between / n) / within).sqrt()
    torch.testing.assert_close(result.posterior.rhat, rhat)
    assert rhat.median() < 1.1
    # And far beyond for one that is on its way.
    early = replace(
        shipped,
        schedule=replace(
            shipped.schedule,
            stages=tuple(
                replace(stage, steps=steps) for stage, steps in zip(shipped.schedule.stages, (1, 30), strict=True)
            ),
        ),
        samples=10,
        burn_in=0.0,
    )
    far = LatentPoint(0, {"latent": torch.full((1, 3), 20.0, dtype=torch.float64)}, "z")
    late = solve(generator, operator, measurement, early, ["far"], init=far).posterior
    assert late is not None and late.rhat.item() > 1.5


@pytest.mark.parametrize("steps", [1, 3])
def test_too_few_steps_say_nothing_of_a_chain(steps: int):
    generator, operator, measurement = problem(2)
    few = method("langevin", steps=[1, steps], sigma=0.5, samples=steps, burn_in=0.0)
    posterior = solve(generator, operator, measurement, few, ["a", "b"]).posterior
    assert posterior is not None and posterior.count == steps and posterior.rhat.isnan().tolist() == [True, True]


def test_langevin_below_the_codes_samples_the_ball():
    """Uniform in an l1 ball around where the stage begins, times the likelihood: against importance sampling."""
    torch.manual_seed(0)
    blocks = [nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 12, bias=False), nn.Unflatten(1, (3, 2, 2)))]
    generator = SequentialGenerator(blocks, [2]).double().requires_grad_(False)
    operator = Inpainting(generator.image_shape, fraction=0.5)
    truth = generator(generator.sample(rngs(1), None))
    sigma, radius, chains = 0.5, 1.0, 100
    measurement = measure(operator, GaussianNoise(sigma), truth, rngs(3))
    shipped = method(
        "langevin", layers=[0, 1], steps=[20, 800], lr=[0.1, 0.004], free=["latent", "activation"], radius=radius,
        radius_mode="absolute", sigma=sigma, samples=40, penalties={"latent_norm": [0.5, 0]},
    )  # fmt: skip
    ends, centers = [], []

    class Look(Callback):
        def on_train_batch_end(self, trainer, problem, outputs, batch, batch_idx):
            if problem.stage_index == 1 and batch_idx in shipped.sample_steps():
                ends.append(problem.variables["activation"].detach().clone())
                centers.append(problem.center["activation"].detach())

    same = LatentPoint(0, {"latent": torch.tensor([[0.3, -0.4]]).double().repeat(chains, 1)}, "z")
    keys = [f"chain {i}" for i in range(chains)]
    solve(generator, operator, measurement.select([0] * chains), shipped, keys, init=same, callbacks=[Look()])
    center = centers[0]
    assert (center - center[0]).abs().max() < 1e-9, "every chain has the same ball"
    rng = np.random.default_rng(0)
    directions = rng.laplace(size=(200_000, 2))
    uniform = directions / np.abs(directions).sum(1, keepdims=True) * rng.random((200_000, 1)) ** 0.5 * radius
    candidates = center[:1] + torch.from_numpy(uniform)
    predicted = generator(LatentPoint(1, {"activation": candidates}, "z"))
    weight = measurement.weight.expand_as(truth)
    energy = (weight * (predicted - measurement.y).square()).flatten(1).sum(1) / (2 * sigma**2)
    weights = torch.softmax(-energy, dim=0)[:, None]
    mean = (weights * candidates).sum(0)
    spread = (weights * (candidates - mean).square()).sum(0).sqrt()
    samples = torch.cat(ends)
    assert ((samples.mean(0) - mean).abs() < 0.15 * spread).all()
    assert (samples.std(0) / spread - 1).abs().max() < 0.1


def test_the_remedy_for_a_shallow_generator_is_the_schedule_without_its_refit():
    generator = SequentialGenerator([nn.Linear(4, 6), nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2))], [4])
    shipped = method("ilo", radius="auto", radii={}, select="stacking")
    remedy = r"has layers 0 … 2; use method\.layers=\[0,1,2\] method\.steps=\[14,14,14\] method\.lr=\[0\.1,0\.1,0\.05\]"
    with pytest.raises(ScheduleError, match=remedy):
        check_method(shipped, generator)


@pytest.mark.parametrize(("name", "generator"), [("lasso", "wavelets"), ("total_variation", "pixels")])
def test_classical_references_are_refused_on_other_generators(name: str, generator: str):
    message = rf"method\.space={generator}: StyleGAN2 has .*; use generator={generator}$"
    with pytest.raises(ScheduleError, match=message):
        check_method(method(name), problem()[0])


def test_langevin_without_a_prior_is_refused():
    generator, *_ = problem()
    changes = {"layers": [0, 1], "free": "lg", "sigma": 0.1}
    with pytest.raises(ScheduleError, match=r"langevin: nothing says how likely a value of activation is at layer 1"):
        check_method(method("langevin", **changes), generator)
    check_method(method("langevin", **changes, radius=0.1), generator)
    with pytest.raises(ScheduleError, match=r"value of latent is at layer 0.*latent_norm=0\.5"):
        check_method(method("langevin", sigma=0.1, penalties={}), generator)
    with pytest.raises(ScheduleError, match=r"likely a value of activation is at layer 1"):
        check_method(method("langevin", **changes, radius=math.inf), generator)


@pytest.mark.parametrize("space", ["w", "w_plus"])
def test_half_the_squared_norm_is_no_prior_of_codes_that_are_not_gaussian(space: str):
    generator, *_ = problem()
    message = rf"latent is at layer 0.*method\.radii\.latent=0\.1 .*a space with Gaussian codes \(in {space}, "
    with pytest.raises(ScheduleError, match=message):
        check_method(method("langevin", sigma=0.1, space=space), generator)
    check_method(method("langevin", sigma=0.1, space=space, radii={"latent": 0.1}), generator)
    for gaussian in ("z", "gaussian_w_plus"):
        check_method(method("langevin", sigma=0.1, space=gaussian), generator)


@pytest.mark.parametrize(
    ("space", "name", "changes", "message"),
    [
        ("pixels", "csgm", {}, r"codes in pixels .*use method=total_variation, or method\.spheres=\[\]"),
        ("wavelets", "csgm", {"steps": 5}, r"codes in wavelets .*use method=lasso, or method\.spheres=\[\]"),
        ("pixels", "total_variation", {"radii": {"latent": 0.1}}, r"radii\.latent .*: a code that starts at zero"),
        ("pixels", "projector", {}, r"space=w: Pixels has pixels; use a method .*, such as method=total_variation$"),
        (None, "csgm", {"start": "mean", "spheres": [], "radii": {"latent": 0.1}}, r"use method\.start=random or"),
        (None, "pulse", {"space": "z", "spheres": []}, r"geocross_styles=.* at layer 0: .*there is only one"),
        (None, "pulse", {"space": "w", "spheres": []}, r"geocross_styles=.* at layer 0: .*there is only one"),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_do_nothing_is_refused(space: str | None, name: str, changes: dict, message: str):
    makers = {"pixels": Pixels, "wavelets": Wavelets}
    generator = problem()[0] if space is None else makers[space]((3, 16, 16))
    with pytest.raises(ScheduleError, match=message):
        check_method(method(name, **changes), generator)


def test_a_range_without_a_ball_is_refused():
    """The search for the centre would be paid for, and nothing be centred on it."""
    for name in ("ilo_fixed", "ilo_range"):
        with pytest.raises(ScheduleError, match=r"center=range: at layer 1 there is neither a ball nor a deviation"):
            method(name, center="range", radius=None, radii={})
    method("ilo_sparse", center="range")
    method("csgm", center="range")


@pytest.mark.parametrize("weight", [0.5, 1, 2])
def test_the_noise_stops_a_squared_error_of_any_weight(weight: float):
    enough = [stage.enough for stage in method("ilo", noise_level=0.2, data_fit={"mse": weight}).schedule.stages]
    assert enough == [pytest.approx(0.04)] * 4
    both = method("ilo", noise_level=0.2, data_fit={"mse": weight, "perceptual": 1})
    assert [stage.enough for stage in both.schedule.stages] == [None] * 4


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("csgm", {"restarts": 0}, r"method\.restarts=0"),
        ("csgm", {"restarts": 2, "start": "mean"}, r"method\.restarts=2.*all starts are the same"),
        ("csgm", {"keep": "all"}, r"method\.keep=all: expected one of best, last, samples"),
        ("csgm", {"penalties": {"geocros": 1}}, r"method\.penalties=geocros: expected one of geocross"),
        ("csgm", {"penalties": {"geocross": -1}}, r"method\.penalties\.geocross=-1"),
        ("csgm", {"noise_maps": 1, "noise_lookahead": 5}, r"both given"),
        ("langevin", {"sigma": 0.0}, r"method\.sigma=0\.0: samples of the posterior need noise"),
        ("langevin", {"sigma": 0.1, "samples": 200}, r"method\.samples=200: expected 1 to 100"),
        ("langevin", {"sigma": 0.1, "restarts": 2}, r"method\.restarts=2: samples aren't ranked"),
        ("csgm", {"samples": 7}, r"method\.samples=7: nothing samples; use method=langevin, or 0"),
        ("ilo", {"radius": ["auto", 0.1, 0.1, 0.1]}, r"method\.radius=\['auto', .*: auto is for all stages"),
        ("ilo", {"radii": {"rgb": [None, "auto", 1, 1]}}, r"method\.radii\.rgb=\[None, .*: auto is for all stages"),
        ("ilo", {"space": [["w"]] * 4}, r"method\.space=\[\['w'\], .*: expected the name of a latent space"),
        ("ilo_range", {"layers": [1, "a", 2, 3], "evaluations": 400}, r"method\.layers=a: expected"),
        ("csgm", {"floor": -1}, r"method\.floor=-1"),
        ("csgm", {"ramp": "steep"}, r"method\.ramp=steep"),
        ("csgm", {"rampdown": 2}, r"method\.rampdown=2: expected a part of the stage, in \(0, 1\]"),
        ("langevin", {"sigma": 0.1, "burn_in": 2}, r"method\.burn_in=2: expected a part of the last stage"),
        (
            "langevin",
            {"sigma": 0.1, "radius": "auto", "candidates": [0.1, 0.2], "rank": "truth"},
            r"method\.radius=auto: samples aren't ranked",
        ),
        ("ilo_sparse", {"rank": "loss"}, r"method\.rank=loss: .*deviation from other points.*method\.rank=data_fit"),
        (
            "ilo",
            {"rank": "loss", "penalties": {"geocross": [0, 1, 1, 1]}},
            r"method\.rank=loss: the stages have other penalties",
        ),
        ("ilo_original", {"center": "range"}, r"method\.reset=\['rgb'\]: .*method\.reset=\[\]"),
        ("three_phase", {"center": "range"}, r"method\.center=range: .*w, w_plus, styles; use method\.center=previous"),
    ],
)
def test_what_can_t_be_run_is_refused(name: str, changes: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=message):
        method(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("projector", {}, r"method\.space=w: SequentialGenerator has z"),
        ("csgm", {"penalties": {"geocross": 1}}, r"method\.penalties\.geocross=1 at layer 0: .*only one"),
        ("csgm", {"penalties": {"noise_regularity": 1}}, r"no noise maps"),
        (
            "csgm",
            {"layers": [0, 0], "steps": [1, 1], "lr": 0.1, "space": ["z", "styles"]},
            r"can't be written in space 'styles'",
        ),
    ],
)
def test_a_generator_without_the_space_is_refused(name: str, changes: dict[str, Any], message: str):
    generator = SequentialGenerator([nn.Sequential(nn.Linear(3, 48), nn.Unflatten(1, (3, 4, 4)))], [3])
    with pytest.raises(ScheduleError, match=message):
        check_method(method(name, **changes), generator)


@pytest.mark.parametrize(
    "changes",
    [
        {"reset": ["rgb"], "radius": 0.1, "radii": {"rgb": 0.1}},
        {"reset": ["activation"], "radius": 0.1, "radii": {}},
        {"reset": ["rgb"], "radius": "auto", "radii": {"rgb": "auto"}, "select": "stacking"},
        {"noise": "zero", "free": "lgn", "radius": 0.1, "radii": {"noise": 0.1}},
        {"noise": "zero", "free": "lgn", "radius": "auto", "radii": {"noise": "auto"}, "select": "stacking"},
    ],
)
def test_a_ball_of_radius_0_is_refused(changes: dict[str, Any]):
    """Around what is set to zero, and relative to it: nothing there could ever move."""
    generator = small_stylegan2()
    with pytest.raises(ScheduleError, match=r"could never move"):
        check_method(method("ilo", **changes, layers=[0, 1], steps=1, lr=0.1), generator)
    check_method(method("ilo", **changes, layers=[0, 1], steps=1, lr=0.1, radius_mode="absolute"), generator)


def test_spaces_can_t_become_smaller():
    generator = small_stylegan2()
    smaller = method("three_phase", space=["w_plus", "w", "w"], free=["latent"])
    with pytest.raises(ScheduleError, match=r"method\.space=.*can't be written in space 'w'"):
        check_method(smaller, generator)
