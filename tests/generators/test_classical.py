"""Pixels and wavelets as generators, and what the engine makes of them: total variation, the Lasso."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilo_lightning.checks.generators import check_generator
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.classical import Pixels, Wavelets
from ilo_lightning.operators import Denoising, GaussianNoise, Measurement, PartialCirculant, measure
from ilo_lightning.solve import solve
from tests.networks import rngs
from tests.test_methods import method


@pytest.mark.parametrize("generator", [Pixels((3, 16, 24)), Wavelets((3, 16, 24)), Wavelets((1, 8, 8), levels=3)])
def test_obeys_the_laws_of_generators(generator: Pixels):
    assert [verdict for verdict in check_generator(generator) if not verdict.holds] == []


def analysed(wavelets: Wavelets, image: torch.Tensor) -> torch.Tensor:
    """The coefficients of an image by the adjoint of the synthesis, which is its inverse where that is orthonormal."""
    coefficients = torch.zeros_like(image, requires_grad=True)
    return torch.autograd.grad(wavelets(LatentPoint(0, {"latent": coefficients}, "wavelets")), coefficients, image)[0]


@pytest.mark.parametrize(("side", "levels"), [(32, 2), (16, 3), (8, 3), (2, 1)])
def test_the_transform_is_orthonormal(side: int, levels: int):
    wavelets = Wavelets((2, side, 2 * side), levels).double()
    x = torch.randn(3, 2, side, 2 * side, dtype=torch.float64, generator=rngs(0)[0])
    made = wavelets(LatentPoint(0, {"latent": x}, "wavelets"))
    tolerance = {"rtol": 1e-6, "atol": 1e-6}  # the filter is kept in float32
    torch.testing.assert_close(analysed(wavelets, made), x, **tolerance)
    torch.testing.assert_close(made.square().sum(), x.square().sum(), **tolerance)


def test_the_wavelet_has_four_vanishing_moments():
    """Away from where the line is wrapped round, a cubic has no detail; a quartic has."""
    wavelets = Wavelets((1, 64, 64), 1).double()
    for power, silent in ((0, True), (1, True), (2, True), (3, True), (4, False)):
        line = (torch.arange(64, dtype=torch.float64) / 64) ** power
        detail = analysed(wavelets, line.expand(1, 1, 64, 64))[0, 0, 0, 32 : 32 + 28]
        assert bool(detail.abs().max() < 1e-6) == silent


def test_sides_that_can_t_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"levels=3: 12×16 can't be halved so often"):
        Wavelets((3, 12, 16), levels=3)
    assert Wavelets((3, 20, 64)).levels == 1 and Wavelets((3, 64, 64)).levels == 3


def _noisy() -> tuple[Denoising, Measurement]:
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[..., 4:12, 4:12] = 1.0
    operator = Denoising((1, 16, 16)).double()
    return operator, measure(operator, GaussianNoise(0.3), x, rngs(0))


@pytest.mark.slow
def test_the_lasso_s_solution_is_soft_thresholding():
    """With an orthonormal basis and A = I the minimiser of ``mean (x - y)² + λ mean |Wx|`` is known: each coefficient
    of y, shrunk by λ/2."""
    operator, measurement = _noisy()
    wavelets, weight = Wavelets((1, 16, 16)).double(), 0.5
    lasso = method("lasso", penalties={"latent_l1": weight}, steps=[1500], lr=[0.02])
    solution = solve(wavelets, operator, measurement, lasso, ["a"]).solutions[0]
    coefficients = analysed(wavelets, measurement.y)
    expected = coefficients.sign() * (coefficients.abs() - weight / 2).clamp_min(0)
    torch.testing.assert_close(solution.point["latent"], expected, rtol=0, atol=5e-3)


@pytest.mark.slow
def test_total_variation_reaches_the_value_of_chambolle_s_algorithm():
    """The primal objective of Chambolle's dual projection (2004), written out in numpy, bounds the minimum from above
    and comes near it; ours is no more than 0.2 % higher."""
    operator, measurement = _noisy()
    y, weight = measurement.y[0, 0].numpy(), 0.3

    def gradient(x):
        down, right = np.zeros_like(x), np.zeros_like(x)
        down[:-1], right[:, :-1] = np.diff(x, axis=0), np.diff(x, axis=1)
        return down, right

    def divergence(p, q):
        result = p + q
        result[1:] -= p[:-1]
        result[:, 1:] -= q[:, :-1]
        return result

    def objective(x):
        down, right = gradient(x)
        return np.mean((x - y) ** 2) + weight * np.mean(np.sqrt(down**2 + right**2))

    p, q, half = np.zeros_like(y), np.zeros_like(y), weight / 2
    for _ in range(3000):
        down, right = gradient(divergence(p, q) - y / half)
        length = 1 + 0.248 * np.sqrt(down**2 + right**2)
        p, q = (p + 0.248 * down) / length, (q + 0.248 * right) / length
        p[-1], q[:, -1] = 0, 0
    reference = y - half * divergence(p, q)
    shipped = method("total_variation", penalties={"total_variation": weight}, steps=[2000], lr=[0.02])
    found = solve(Pixels((1, 16, 16)).double(), operator, measurement, shipped, ["a"]).solutions[0].point["latent"]
    ours, theirs = objective(found[0, 0].numpy()), objective(reference)
    assert objective(y) > 1.1 * theirs  # it does something
    assert ours <= 1.002 * theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lasso", "total_variation"])
def test_as_shipped_they_come_to_their_optimum(name: str):
    """With a tenth of the measurements, for which a few hundred steps are too few: within 2 % of what the primal-dual
    algorithm of Chambolle & Pock (2011) reaches, with the operator as a matrix."""
    shipped = method(name)
    (weight,) = shipped.schedule.stages[0].penalties.values()
    side = 32
    shape, n = (1, side, side), side * side
    generator = (Wavelets if name == "lasso" else Pixels)(shape).double()
    operator = PartialCirculant(shape, fraction=0.1).double()
    truth = torch.zeros(1, *shape, dtype=torch.float64) - 0.5
    truth[..., 8:24, 4:20] = 0.8
    measurement = measure(operator, GaussianNoise(0.0), truth, rngs(0))
    y = measurement.y.flatten()

    def image(code: torch.Tensor) -> torch.Tensor:
        return generator(LatentPoint(0, {"latent": code.reshape(-1, *shape)}, generator.spaces[0]))

    matrix = operator(image(torch.eye(n, dtype=torch.float64))).flatten(1).T
    x = torch.zeros(n, dtype=torch.float64)
    if name == "lasso":

        def apply(x: torch.Tensor) -> torch.Tensor:
            return x[None]

        def transposed(q: torch.Tensor) -> torch.Tensor:
            return q[0]
    else:

        def apply(x: torch.Tensor) -> torch.Tensor:
            grid, gradient = x.reshape(side, side), torch.zeros(2, side, side, dtype=x.dtype)
            gradient[0, :-1], gradient[1, :, :-1] = grid.diff(dim=0), grid.diff(dim=1)
            return gradient.flatten(1)

        def transposed(q: torch.Tensor) -> torch.Tensor:
            down, right = q.reshape(2, side, side)
            grid = torch.zeros(side, side, dtype=q.dtype)
            grid[1:] += down[:-1]
            grid[:-1] -= down[:-1]
            grid[:, 1:] += right[:, :-1]
            grid[:, :-1] -= right[:, :-1]
            return grid.flatten()

    def objective(x: torch.Tensor) -> float:
        return ((matrix @ x - y).square().mean() + weight * apply(x).square().sum(0).sqrt().mean()).item()

    # n times the objective is c·‖Mx - y‖² + weight·Σ│Dx│.
    c, step = n / len(y), 1 / (torch.linalg.matrix_norm(matrix, 2).item() ** 2 + (1 if name == "lasso" else 8)) ** 0.5
    p, q, ahead = torch.zeros_like(y), torch.zeros_like(apply(x)), x
    for _ in range(20000):
        p = (p + step * (matrix @ ahead - y)) / (1 + step / (2 * c))
        q = q + step * apply(ahead)
        q = q / (q.square().sum(0).sqrt() / weight).clamp_min(1)
        before, x = x, x - step * (matrix.T @ p + transposed(q))
        ahead = 2 * x - before
    found = solve(generator, operator, measurement, shipped, ["a"]).solutions[0].point["latent"].flatten()
    assert objective(torch.zeros_like(x)) > 2 * objective(x)
    assert objective(found) <= 1.02 * objective(x)
    assert objective(x) <= 1.001 * objective(found)
