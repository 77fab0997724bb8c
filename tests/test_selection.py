"""Selection by held-out measurements, and its laws: parts are disjoint, weights optimal, copies independent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.sequential import SequentialGenerator
from ilo_lightning.losses import deviation, mean_squared_error
from ilo_lightning.method import Method
from ilo_lightning.operators import Denoising, GaussianNoise, Inpainting, Measurement, measure
from ilo_lightning.projections import project_simplex
from ilo_lightning.reconstruction import Reconstruction
from ilo_lightning.schedule import ScheduleError
from ilo_lightning.selection import RIDGE, Selection, combine, hold_out, mean_of, one_of, restraint
from ilo_lightning.solve import solve
from tests.networks import rngs
from tests.test_methods import method as shipped
from tests.test_resume import Killed, assert_same
from tests.test_solve import KEYS, ilo, problem


def automatic(**changes) -> Method:
    fields = {
        "radius": "auto", "radii": {"rgb": "auto"}, "candidates": [0.01, 0.1], "select": "stacking", "refit_steps": 4,
        "free": "lgr", "noise": "zero", "noise_maps": None, "steps": [3, 2, 3],
    }  # fmt: skip
    return ilo(**{**fields, **changes})


def test_what_is_held_out_and_what_is_left_are_the_whole():
    generator, *_ = problem()
    operator = Inpainting(generator.image_shape, fraction=0.5)
    truth = generator(generator.sample(rngs(1, 2, 3), "z"))
    measurement = measure(operator, GaussianNoise(0.0), truth, rngs(0, 1, 2))
    left, held = hold_out(measurement, KEYS, 0, 0.25)
    whole = measurement.weight.expand_as(measurement.y)
    assert torch.equal(left.weight + held.weight, whole)
    assert not (left.weight * held.weight).any()
    assert torch.equal(left.y, measurement.y) and torch.equal(held.y, measurement.y)
    pixels = held.weight.amax(dim=1).flatten(1)
    observed = whole.amax(dim=1).flatten(1).sum(dim=1)
    assert torch.equal(held.weight.amin(dim=1).flatten(1), pixels), "all channels of a pixel go together"
    assert torch.equal(pixels.sum(dim=1), (0.25 * observed).round())
    assert len({tuple(row.tolist()) for row in pixels}) == 3, "each image has its own"
    alone, _ = hold_out(measurement.select([2]), [KEYS[2]], 0, 0.25)
    assert torch.equal(alone.weight[0], left.weight[2])
    other, _ = hold_out(measurement, KEYS, 1, 0.25)
    assert not torch.equal(other.weight, left.weight)


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_at_least_one_entry_is_held_out_and_one_is_left(fraction: float):
    measurement = Measurement(torch.zeros(1, 5), torch.tensor([[1.0, 1.0, 0.0, 2.0, 0.0]]))
    left, held = hold_out(measurement, ["a"], 0, fraction)
    assert (left.weight > 0).sum() == (2 if fraction < 0.5 else 1)
    assert (held.weight > 0).sum() == (1 if fraction < 0.5 else 2)


def test_one_measurement_can_t_be_split():
    with pytest.raises(ScheduleError, match=r"only one measurement.*method\.radius a number"):
        hold_out(Measurement(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])), ["a"], 0, 0.1)


def candidates(seed: int = 0, of_each: int = 1) -> tuple[Tensor, Measurement]:
    rng = torch.Generator().manual_seed(seed)
    y, weight = torch.randn(4, 20, generator=rng).double(), torch.rand(4, 20, generator=rng).double()
    errors = torch.tensor([0.1, 0.5, 1.0, 3.0, 0.3]).double().repeat(of_each)
    predictions = y[:, None] + errors[None, :, None] * torch.randn(4, len(errors), 20, generator=rng).double()
    return predictions, Measurement(y, weight)


def objective(weights: Tensor, predictions: Tensor, held: Measurement) -> Tensor:
    """Of ``mean_of``, written out."""
    error = (torch.einsum("bk,bkn->bn", weights, predictions) - held.y).square().mul(held.weight).sum(dim=1)
    each = (predictions - held.y[:, None]).square().mul(held.weight[:, None]).sum(dim=2).mean(dim=1)
    return error + RIDGE * each * weights.square().sum(dim=1)


@pytest.mark.parametrize("of_each", [1, 120], ids=["5 candidates", "600 candidates"])
def test_weights_are_optimal_on_the_simplex(of_each: int):
    """Where the gradient is the least, and only there, is weight (Karush, Kuhn, Tucker)."""
    predictions, held = candidates(of_each=of_each)
    weights = mean_of(predictions, held).requires_grad_()
    assert bool((weights >= 0).all()) and torch.allclose(weights.sum(dim=1), torch.ones(4).double())
    (gradient,) = torch.autograd.grad(objective(weights, predictions, held).sum(), weights)
    least = gradient.min(dim=1, keepdim=True).values
    slack = (gradient - least) / least.abs()
    assert slack[weights > 1e-6].max() < 1e-4
    assert (weights > 1e-6).sum() > 4, "a mean, not a choice"


def test_equal_candidates_have_equal_weights_and_the_exact_one_most():
    predictions, held = candidates()
    same = predictions[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(mean_of(same, held), torch.full((4, 3), 1 / 3).double())
    exact = torch.cat([held.y[:, None], held.y[:, None] + 1], dim=1)
    assert bool((mean_of(exact, held)[:, 0] > 0.75).all())
    assert one_of(exact, held).tolist() == [[1.0, 0.0]] * 4


@pytest.mark.parametrize("choose", [mean_of, one_of])
def test_a_candidate_that_is_not_finite_counts_nothing(choose):
    predictions, held = candidates()
    broken = predictions.clone()
    broken[1, 0, 3] = torch.nan
    weights = choose(broken, held)
    assert weights[1, 0] == 0 and weights.isfinite().all()
    others = [0, 2, 3]
    torch.testing.assert_close(weights[others], choose(predictions, held)[others])
    points = LatentPoint(0, {"latent": torch.randn(8, 3)}, "z")
    points["latent"][0] = torch.nan
    assert combine(points, torch.tensor([[0.0, 1.0]] * 4))["latent"].isfinite().all()


def test_one_of_has_the_least_error():
    predictions, held = candidates(3)
    errors = ((predictions - held.y[:, None]).square() * held.weight[:, None]).sum(dim=2)
    assert torch.equal(one_of(predictions, held).argmax(dim=1), errors.argmin(dim=1))


def test_projection_onto_the_simplex_against_bisection():
    rng = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(50, 7, generator=rng).double()
    support = torch.rand(50, 7, generator=rng) > 0.3
    support[:, 0] = True
    found = project_simplex(x, support)
    low, high = torch.full((50, 1), -20.0).double(), torch.full((50, 1), 20.0).double()
    for _ in range(80):
        middle = (low + high) / 2
        much = (torch.where(support, (x - middle).clamp_min(0), 0.0).sum(dim=1, keepdim=True)) > 1
        low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    torch.testing.assert_close(found, torch.where(support, (x - low).clamp_min(0), 0.0))
    assert not project_simplex(x, torch.zeros_like(support)).any()


def test_the_restraint_is_none_at_the_mean_and_weighs_what_the_docs_say():
    images, weights = torch.randn(2, 3, 1, 4, 4).double(), torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).double()
    point = LatentPoint(4, {"activation": torch.randn(2, 5, 4, 4).double(), "latent": torch.randn(2, 3, 7).double()})
    residual = torch.tensor([0.1, 0.4]).double()
    held = restraint(images, weights, point, residual, 0.5, 2.0)
    mean = torch.einsum("bk,bkchw->bchw", weights, images)
    assert held(point, mean).tolist() == [0.0, 0.0]
    assert float(deviation(point, point.map(torch.zeros_like)).sum()) == 0.0, "of zeros: no unit"
    spread = (images - mean[:, None]).square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(held(point, mean + 1), residual * 0.5 / spread)
    moved = point.map(lambda tensor: tensor * torch.tensor([1.25, 0.5]).double().view(-1, *[1] * (tensor.ndim - 1)))
    torch.testing.assert_close(held(moved, mean), residual * 2.0 * torch.tensor([0.25, 0.5]).double())


@pytest.mark.parametrize("alike", ["all the same", "unknown"])
def test_where_the_mean_says_nothing_nothing_is_held(alike: str):
    images = torch.ones(1, 2, 1, 4, 4) if alike == "all the same" else torch.randn(1, 2, 1, 4, 4)
    residual = torch.tensor([0.3 if alike == "all the same" else torch.nan])
    point = LatentPoint(4, {"activation": torch.randn(1, 5, 4, 4)})
    held = restraint(images, torch.full((1, 2), 0.5), point, residual, 1.0, 1.0)
    assert held(point.map(lambda tensor: tensor + 1), images[:, 0] + 1).tolist() == [0.0]


def test_the_more_the_refit_is_held_the_less_it_leaves_the_mean():
    """Of activation and RGB, by the solutions; and by the gradients, which are finite where the refit begins, too."""
    generator, operator, measurement = problem()
    begins = solve(generator, operator, measurement, automatic(refit=False), KEYS).solutions
    moved = []
    for strength in (0.0, 1.0, 1e3):
        method = automatic(refit_deviation=strength, anchor=0.0, refit_steps=30)
        found = solve(generator, operator, measurement, method, KEYS).solutions
        moved.append([float(deviation(a.point, b.point)) for a, b in zip(found, begins, strict=True)])
        assert all(solution.history.isfinite().all() for solution in found)
    for free, held, fixed in zip(*moved, strict=True):
        assert free > 1.2 * held and held > 0
        assert fixed < 1e-3


def test_a_candidate_is_a_run_of_its_own_with_that_radius():
    """Copies are solved side by side to the same course as one at a time, on what isn't held out."""
    generator, operator, measurement = problem()
    method = automatic(select="holdout", refit=False)
    left, _ = hold_out(measurement, KEYS, 0, method.held_out)
    found = solve(generator, operator, measurement, method, KEYS)
    for number, radius in enumerate(method.candidates):
        fixed = automatic(radius=radius, radii={"rgb": radius}, select=None)
        keys = [f"{key}#{number}" if number else key for key in KEYS]
        alone = solve(generator, operator, left, fixed, keys)
        for a, b in zip(found.solutions, alone.solutions, strict=True):
            if a.info["selection"]["weights"][number]:
                torch.testing.assert_close(a.history, b.history, rtol=1e-9, atol=0)
    chosen = {solution.info["selection"]["weights"].index(1.0) for solution in found.solutions}
    assert chosen <= {0, 1}


@pytest.mark.parametrize("select", ["stacking", "holdout"])
def test_batch_equals_one_at_a_time(select: str):
    generator, operator, measurement = problem()
    method = automatic(select=select, rank="held_out" if select == "holdout" else "data_fit")
    together = solve(generator, operator, measurement, method, KEYS).solutions
    for i, expected in enumerate(together):
        (alone,) = solve(generator, operator, measurement.select([i]), method, [KEYS[i]]).solutions
        assert alone.info["selection"].keys() == expected.info["selection"].keys()
        for field, value in expected.info["selection"].items():  # sums over batches differ in their last bits
            tolerance = {"held_out_residual": {"rel": 1e-8}, "weights": {"abs": 1.1e-4}}.get(field)
            assert alone.info["selection"][field] == (pytest.approx(value, **tolerance) if tolerance else value)
        for name, tensor in expected.point.tensors.items():
            torch.testing.assert_close(alone.point[name], tensor, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(alone.history, expected.history, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("at_once", "center"), [(1, "previous"), (4, "range")])
def test_decoding_a_few_at_a_time_changes_nothing(at_once: int, center: str, monkeypatch: pytest.MonkeyPatch):
    generator, operator, measurement = problem()
    method = automatic(center=center)
    expected = solve(generator, operator, measurement, method, KEYS)
    sizes: list[int] = []
    forward = type(generator).forward
    monkeypatch.setattr(
        type(generator), "forward", lambda self, point: (sizes.append(point.batch_size), forward(self, point))[1]
    )
    found = solve(generator, operator, measurement, method, KEYS, at_once=at_once)
    assert max(sizes) == at_once < method.copies * len(KEYS)
    for a, b in zip(found.solutions, expected.solutions, strict=True):
        assert a.info["evaluations"] == b.info["evaluations"]
        torch.testing.assert_close(a.history, b.history, rtol=1e-8, atol=0)
        for name, tensor in b.point.tensors.items():
            torch.testing.assert_close(a.point[name], tensor, rtol=1e-8, atol=1e-10)
    for a, b in zip(found.strip, expected.strip, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_solution_is_what_selection_and_refit_say():
    generator, operator, measurement = problem()
    method = automatic()
    result = solve(generator, operator, measurement, method, KEYS)
    without = solve(generator, operator, measurement, automatic(refit=False), KEYS)
    for a, b in zip(result.solutions, without.solutions, strict=True):
        chosen = a.info["selection"]
        assert chosen == b.info["selection"] and chosen["how"] == "stacking" and chosen["radii"] == [0.01, 0.1]
        assert sum(chosen["weights"]) == pytest.approx(1, abs=2e-4)
        assert a.point.layer == b.point.layer == chosen["layer"] == generator.num_layers - 1
        assert len(a.history) == method.steps == 8 + 4 and len(b.history) == 8
        assert a.info["layers"] == [0, 1, 2, chosen["layer"]]
        # 8 steps and a last look of 2 copies, three looks without a gradient, 4 steps of the refit and its last look
        assert a.info["evaluations"] == 2 * 8 + 4 + 2  # 2 + 3 + 1 looks
        seen = measurement.select([KEYS.index(a.info["key"])])
        for solution in (a, b):
            expected = float(fit_of(generator, operator, seen, solution.point))
            assert solution.info["data_fit"] == pytest.approx(expected, rel=1e-9)
    assert method.evaluations == 2 * 8 + 4


def test_the_residual_is_of_what_was_held_out_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch):
    """Of the mean of the candidates' images, computed anew from their points; and on the fitted part it is another."""
    generator, operator, measurement = problem()
    made: dict[str, Any] = {}
    original = Selection.make.__func__

    def spy(cls, generator, operator, measurement, held, method, data_fit, found, at_once=None):
        made.update(held=held, found=found)
        made["selection"] = original(cls, generator, operator, measurement, held, method, data_fit, found, at_once)
        return made["selection"]

    monkeypatch.setattr(Selection, "make", classmethod(spy))
    solutions = solve(generator, operator, measurement, automatic(), KEYS).solutions
    held, copies = made["held"], 2
    whole = measurement.weight.expand_as(held.weight)
    assert ((held.weight == 0) | (held.weight == whole)).all() and held.weight.any()
    for image, solution in enumerate(solutions):
        with torch.no_grad():
            pictures = [generator(made["found"][image * copies + copy]) for copy in range(copies)]
            weights = made["selection"].weights[image].tolist()
            mean = sum(weight * picture for weight, picture in zip(weights, pictures, strict=True))
            errors = (operator(mean) - measurement.y[image : image + 1]).square()
        expected, fitted = (
            float((errors * part).sum() / part.expand_as(errors).sum()) ** 0.5
            for part in (held.weight[image : image + 1], (whole - held.weight)[image : image + 1])
        )
        assert solution.info["selection"]["held_out_residual"] == pytest.approx(expected, rel=1e-6)
        assert abs(fitted / expected - 1) > 1e-3


def test_what_was_kept_is_where_the_history_says(monkeypatch: pytest.MonkeyPatch):
    """Layer and step of the solution: on a path with the radius of its layer's ball, after a refit counted on."""
    generator, operator, measurement = problem()
    for solution in solve(generator, operator, measurement, automatic(), KEYS).solutions:
        kept = solution.info["kept"]
        assert kept["layer"] == solution.point.layer and 8 <= kept["step"] <= 8 + 4 and "radius" not in kept
    for solution in solve(generator, operator, measurement, automatic(refit=False), KEYS).solutions:
        assert solution.info["kept"] == {"layer": solution.point.layer, "step": None}
    path = automatic(radius=[0.1, 0.2, 0.3], radii={}, select=None, refit=False)
    for solution in solve(generator, operator, measurement, path, KEYS).solutions:
        kept, fits = solution.info["kept"], [*solution.history.tolist(), solution.info["data_fit"]]
        assert fits[kept["step"]] == min(fits) and kept["layer"] == solution.point.layer
        assert kept.get("radius") == {0: None, 1: 0.2, 2: 0.3}[kept["layer"]]
    # What a stage's last step led to is a point of the next one, at its layer and in its ball.
    for last in (0, 1):
        path = automatic(
            radius=[0.1, 0.2, 0.3],
            radii={},
            select=None,
            refit=False,
            lr=[0.1, 0.1, 0.1][: last + 1] + [1e3] * (2 - last),
        )
        for solution in solve(generator, operator, measurement, path, KEYS).solutions:
            kept = solution.info["kept"]
            assert (kept["layer"], kept["radius"]) == (last + 1, [0.1, 0.2, 0.3][last + 1])
            assert kept["step"] == solution.info["stage"].index(last + 1)


def fit_of(generator, operator, measurement: Measurement, point: LatentPoint) -> Tensor:
    with torch.no_grad():
        return ((operator(generator(point)) - measurement.y).square() * measurement.weight).mean()


def test_nonlinear_operators_choose_one(monkeypatch: pytest.MonkeyPatch):
    from ilo_lightning.operators import Clipping

    generator, *_ = problem()
    operator = Clipping(generator.image_shape)
    truth = generator(generator.sample(rngs(5, 6, 7), "z"))
    measurement = measure(operator, GaussianNoise(0.0), truth, rngs(0, 1, 2))
    result = solve(generator, operator, measurement, automatic(), KEYS)
    for solution in result.solutions:
        assert solution.info["selection"]["how"] == "holdout"
        assert sorted(solution.info["selection"]["weights"]) == [0.0, 1.0]
    monkeypatch.setattr(Clipping, "can_hold_out", False)
    with pytest.raises(ScheduleError, match=r"can't be split.*method\.radius a number"):
        solve(generator, operator, measurement, automatic(), KEYS)


def test_the_truth_has_no_say():
    generator, operator, measurement = problem()
    truth = torch.rand(3, *generator.image_shape).double()
    seen = solve(generator, operator, measurement, automatic(), KEYS, truth=truth)
    assert_same(seen, solve(generator, operator, measurement, automatic(), KEYS))


def test_one_radius_is_the_single_path():
    """With nothing to choose from, nothing is held out and nothing is done again."""
    generator, operator, measurement = problem()
    one = automatic(radius=0.05, radii={"rgb": 0.05})
    assert not one.selects and one.steps == one.schedule.steps
    assert_same(
        solve(generator, operator, measurement, one, KEYS),
        solve(generator, operator, measurement, replace(one, select=None, refit=None), KEYS),
    )


class Blind(Denoising):
    """Sees nothing of the copies whose images are brightest: their numbers aren't finite from the ninth look on."""

    looks = 0

    def forward(self, image: Tensor) -> Tensor:
        self.looks += 1
        y = super().forward(image)
        if self.looks == 10 and len(y) > 3:  # after 8 steps and a last look of each, when copies are compared
            y = y.clone()
            y[1::2] = torch.nan
        return y


def test_a_candidate_that_is_not_finite_is_left_out_of_the_refit():
    generator, *_ = problem()
    truth = generator(generator.sample(rngs(5, 6, 7), "z"))
    operator = Blind(generator.image_shape)
    measurement = measure(operator, GaussianNoise(0.1), truth, rngs(0, 1, 2))
    operator.looks = 0
    # Hardly held, since so short a search predicts nothing.
    for solution in solve(generator, operator, measurement, automatic(refit_deviation=0.01), KEYS).solutions:
        assert solution.info["selection"]["weights"] == [1.0, 0.0]
        assert "fault" not in solution.info and solution.history.isfinite().all()
        assert solution.info["data_fit"] < solution.history[8], "the refit has moved it"


def test_copies_that_are_the_same_are_refitted_without_restraint():
    generator, operator, measurement = problem()
    same = generator.sample(rngs(1, 2, 3), None)
    method = automatic(radius=0.1, radii={}, restarts=2)
    found = solve(generator, operator, measurement, method, KEYS, init=same)
    for solution in found.solutions:
        assert solution.info["selection"]["weights"] == [0.5, 0.5]
        assert solution.info["data_fit"] < solution.history[8]


def test_other_generators_are_refitted_at_their_deepest_layer():
    """Whatever the method frees: at the deepest layer there is an activation, and no code."""
    generator = SequentialGenerator([nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2))], [4])
    operator = Denoising(generator.image_shape)
    truth = generator(generator.sample(rngs(5, 6, 7), None))
    measurement = measure(operator, GaussianNoise(0.1), truth, rngs(0, 1, 2))
    fields = {"layers": [0], "steps": [5], "lr": 0.1, "free": ["latent"], "radius": None, "radii": {}, "spheres": []}
    method = automatic(**fields, restarts=3)
    for solution in solve(generator, operator, measurement, method, KEYS).solutions:
        assert solution.point.layer == generator.num_layers - 1
        assert solution.info["data_fit"] < solution.history[5]


def test_the_oracle_says_which_radius_and_start_it_took():
    generator, operator, measurement = problem()
    truth = generator(generator.sample(rngs(100, 101, 102), "z")).detach()
    method = automatic(select=None, rank="truth", restarts=2)
    for solution in solve(generator, operator, measurement, method, KEYS, truth=truth).solutions:
        assert solution.info["radius"] in method.candidates and solution.info["restart"] in (0, 1)


def test_what_stops_and_what_is_refitted_follows_the_configuration():
    assert automatic(stop="discrepancy", noise_level=0.1).schedule[0].enough == pytest.approx(0.01)
    for changes in ({"penalties": {"geocross": 0.1}}, {"data_fit": {"mse": 1, "dead_zone": 1}}):
        assert automatic(stop="discrepancy", noise_level=0.1, **changes).schedule[0].enough is None
    assert automatic(refit_steps=0, evaluations=403).refit is None
    with pytest.raises(ScheduleError, match=r"method\.steps=many"):
        automatic(steps=["many", 1, 1], evaluations=100)


@pytest.mark.parametrize("refit_steps", [1, 5, 52])
@pytest.mark.parametrize("evaluations", [25, 60, 61, 403])
def test_evaluations_are_shared_with_the_refit(evaluations: int, refit_steps: int):
    """All are spent, and neither a stage nor the refit is lost, however few there are."""
    method = automatic(steps=[14, 14, 14], candidates=[0.01, 0.1], refit_steps=refit_steps, evaluations=evaluations)
    assert method.evaluations == evaluations and len(method.schedule) == 3
    assert method.refit is not None and method.refit.steps >= 1
    least = method.copies * 3 + 1
    assert automatic(refit_steps=1, evaluations=least).evaluations == least
    with pytest.raises(
        ScheduleError, match=rf"expected at least {least}, one for each of 3 stages of 2.*, and 1 of refit"
    ):
        automatic(refit_steps=1, evaluations=least - 1)


@pytest.mark.parametrize("before", ["w", "w_plus"])
def test_candidates_may_end_in_different_spaces(before: str):
    """The best iterate of each may be of another stage: they are compared in the space of the last."""
    generator, operator, measurement = problem()
    _, held = hold_out(measurement, KEYS, 0, 0.3)
    method = shipped("three_phase", start="random", restarts=2, select="stacking")
    spaces = [stage.space for stage in method.schedule.stages]
    points = [generator.sample(rngs(seed), before) for seed in range(2 * len(KEYS))]
    last = [generator.convert(point, spaces[-1]) for point in points]

    def selection(found: list[LatentPoint]) -> Selection:
        return Selection.make(generator, operator, measurement, held, method, mean_squared_error, found)

    mixed, same = selection([*points[::2], *last[1::2]]), selection([*last[::2], *last[1::2]])
    assert mixed.point.space == spaces[-1] == "styles"
    torch.testing.assert_close(mixed.weights, same.weights)
    torch.testing.assert_close(generator(mixed.point), generator(same.point))


class KillIn(Callback):
    """Dies before step ``step`` of the search, or of the refit."""

    def __init__(self, refit: bool, step: int):
        self.refit, self.step = refit, step

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if (pl_module.restraint is not None) == self.refit and trainer.global_step == self.step:
            raise Killed


def run(path: Path | None, callbacks=()) -> Reconstruction:
    generator, operator, measurement = problem(dtype=torch.float32)
    checkpoint = None if path is None else ResumeCheckpoint(path, every_seconds=1e9, every_steps=1)
    return solve(generator, operator, measurement, automatic(), KEYS, checkpoint=checkpoint, callbacks=callbacks)


def test_a_kill_at_every_step_changes_nothing_and_the_search_is_done_once(tmp_path: Path):
    expected = run(None)
    for refit, steps in ((False, 8), (True, 4)):
        for step in range(steps):
            path = tmp_path / f"{refit}-{step}.ckpt"
            with pytest.raises(Killed):
                run(path, [KillIn(refit, step)])
            counter = Count()
            assert_same(run(path, [counter]), expected)
            assert counter.steps == (8 - step + 4 if not refit else 4 - step)


class Count(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *args) -> None:
        self.steps += 1


class Watch(Callback):
    """Keeps each image's fit and point, step by step."""

    def __init__(self) -> None:
        self.fits: list[Tensor] = []
        self.points: list[Tensor] = []

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.fits.append(pl_module.last_fit.clone())
        self.points.append(pl_module.generator(pl_module.point).detach().clone())


def test_an_image_that_agrees_within_the_noise_is_left_alone():
    """Morozov: the first iterate whose mean squared error is the noise's variance is the last."""
    generator, *_ = problem()
    operator = Denoising(generator.image_shape)
    truth = generator(generator.sample(rngs(5, 6, 7), "z"))
    sigma = 0.3
    measurement = measure(operator, GaussianNoise(sigma), truth, rngs(0, 1, 2))
    fields = {"layers": [0, 1], "steps": [30, 30], "lr": 0.1, "noise_maps": None, "radii": {}, "radius": None}
    stopped, free = Watch(), Watch()
    method = ilo(**fields, stop="discrepancy", noise_level=sigma)
    result = solve(generator, operator, measurement, method, KEYS, callbacks=[stopped])
    solve(generator, operator, measurement, ilo(**fields), KEYS, callbacks=[free])
    fits = torch.stack(free.fits)
    reached = [int((fits[:, i] <= sigma**2).nonzero()[0]) if (fits[:, i] <= sigma**2).any() else None for i in range(3)]
    assert any(step is not None for step in reached), fits[-1]
    for i, step in enumerate(reached):
        if step is not None:
            torch.testing.assert_close(torch.stack(stopped.fits)[: step + 1, i], fits[: step + 1, i])
            for later in stopped.points[step:]:
                torch.testing.assert_close(later[i], stopped.points[step][i], rtol=0, atol=1e-9)
            assert result.solutions[i].info["data_fit"] == pytest.approx(float(fits[step, i]), rel=1e-6)
        else:
            torch.testing.assert_close(torch.stack(stopped.fits)[:, i], fits[:, i])
    assert ilo(stop="discrepancy").schedule[0].enough is None, "an unknown noise stops nothing"
    # The noise explains a squared error, whatever else is minimised.
    more = solve(generator, operator, measurement, method, KEYS, data_fit=lambda p, m: 1 + mean_squared_error(p, m))
    for a, b in zip(more.solutions, result.solutions, strict=True):
        torch.testing.assert_close(a.history - 1, b.history, rtol=1e-6, atol=1e-9)
