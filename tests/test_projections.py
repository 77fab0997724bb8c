"""Projections against a sort-based oracle, and against the laws that define a projection onto a convex set.

Each with every implementation of the l1 ball that there is on the CPU.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ilo_lightning.projections import project_l1_ball, project_l2_ball, project_sphere

pytestmark = pytest.mark.usefixtures("implementation")
BALLS = [pytest.param(project_l1_ball, 1, id="l1"), pytest.param(project_l2_ball, 2, id="l2")]


SHAPES = [(1, 1), (3, 7), (4,), (2, 5, 4, 3), (1, 8, 33, 32), (2, 70000), (2, 150001)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def norms(x, p):
    return torch.linalg.vector_norm(x.double().reshape(len(x), -1), p, dim=1)


def oracle_l1(x, radius, center):
    """Duchi et al. 2008, figure 1: sort, then the last index at which the running threshold is below the value."""
    d = x.astype(np.float64) - center.astype(np.float64)
    if np.abs(d).sum() <= radius:
        return x.astype(np.float64)
    if radius == 0:
        return center.astype(np.float64)
    u = np.sort(np.abs(d).ravel())[::-1]
    theta = (np.cumsum(u) - radius) / np.arange(1, u.size + 1)
    tau = theta[np.nonzero(u > theta)[0][-1]]
    return center + np.sign(d) * np.maximum(np.abs(d) - tau, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relative_radius", [0.0, 1e-3, 0.3, 0.99, 2.0])
@pytest.mark.parametrize("centred", [False, True])
def test_l1_agrees_with_sorting(shape, dtype, relative_radius, centred):
    x, center = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype) if centred else None
    origin = torch.zeros_like(x) if center is None else center
    radius = relative_radius * norms(x - origin, 1)
    z = project_l1_ball(x, radius, center)
    expected = np.stack([oracle_l1(*each) for each in zip(x.numpy(), radius.numpy(), origin.numpy(), strict=True)])
    np.testing.assert_allclose(z.numpy(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)
    assert z.dtype == dtype
    assert z.shape == x.shape


@pytest.mark.parametrize(("project", "p"), BALLS)
@pytest.mark.parametrize("centred", [False, True])
def test_variational_inequality(project, p, centred):
    """z is the projection if and only if ⟨x − z, v − z⟩ <= 0 for every v of the ball; extreme points suffice for l1."""
    x, radius = randn(3, 40), torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    center = randn(3, 40, seed=1) if centred else torch.zeros(3, 40, dtype=torch.float64)
    z = project(x, radius, center)
    torch.testing.assert_close(norms(z - center, p), radius)
    directions = torch.cat([torch.eye(40, dtype=torch.float64), -torch.eye(40, dtype=torch.float64), randn(500, 40)])
    directions = directions / norms(directions, p)[:, None]
    feasible = center[:, None] + radius[:, None, None] * directions
    products = torch.einsum("bn,bkn->bk", x - z, feasible - z[:, None])
    assert products.max() <= 1e-9
    distances = norms((feasible - x[:, None]).flatten(0, 1), 2).view(3, -1)
    assert (distances >= norms(x - z, 2)[:, None]).all()


@pytest.mark.parametrize(("project", "p"), BALLS)
def test_idempotent_and_non_expansive(project, p):
    x, y, center = randn(20, 50), randn(20, 50, seed=1), randn(20, 50, seed=2)
    y[10:] = x[10:] + 0.01 * y[10:]
    radius = torch.linspace(0, 60, 20, dtype=torch.float64)
    z, w = project(x, radius, center), project(y, radius, center)
    assert (norms(z - center, p) <= radius * (1 + 1e-12)).all()
    torch.testing.assert_close(project(z, radius, center), z, rtol=0, atol=1e-13)
    assert (norms(z - w, 2) <= norms(x - y, 2) * (1 + 1e-12)).all()


@pytest.mark.parametrize(("project", "p"), BALLS)
def test_signs_and_order_are_kept(project, p):
    x = randn(4, 100)
    z = project(x, 5.0)
    assert (z * x >= 0).all()
    assert (z.abs() <= x.abs()).all()
    order = x.abs().argsort(dim=1)
    assert (z.abs().gather(1, order).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("function", [project_l1_ball, project_l2_ball, lambda x, r: project_sphere(x, r, (1, 2, 3))])
def test_batch_is_one_at_a_time(function):
    x, radius = randn(5, 4, 9, 8, dtype=torch.float32), torch.tensor([0.0, 1.0, 30.0, 1e4, 0.1])
    together = function(x, radius)
    for i in range(5):
        assert torch.equal(function(x[i : i + 1], radius[i].item()), together[i : i + 1])


@pytest.mark.parametrize(("project", "p"), BALLS)
def test_inside_is_unchanged_to_the_bit(project, p):
    x, center = randn(3, 30, dtype=torch.float32), randn(3, 30, seed=1, dtype=torch.float32)
    before = x.clone()
    assert torch.equal(project(x, 1e3, center), before)
    mixed = project(x, torch.tensor([1e3, 1.0, math.inf]), center)
    assert torch.equal(mixed[[0, 2]], before[[0, 2]])
    assert not torch.equal(mixed[1], before[1])
    assert torch.equal(x, before)  # the argument itself is never written to


@pytest.mark.parametrize(("project", "p"), BALLS)
def test_radius_zero_is_the_centre(project, p):
    x, center = randn(2, 5, 5, dtype=torch.float32), randn(2, 5, 5, seed=1, dtype=torch.float32)
    assert torch.equal(project(x, 0.0, center), center)
    assert torch.equal(project(x, 0), torch.zeros_like(x))
    assert torch.equal(project(center, 0.0, center), center)


@pytest.mark.parametrize(("project", "p"), BALLS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("relative_radius", [1e-3, 0.1, 0.9])
def test_scale_equivariance(project, p, scale, relative_radius):
    x = randn(2, 1000)
    radius = relative_radius * norms(x, p)
    z = project((x * scale).float(), radius * scale)
    torch.testing.assert_close(z.double() / scale, project(x, radius), rtol=0, atol=2e-6)
    torch.testing.assert_close(norms(z / scale, p), radius, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("project", "p"), BALLS)
@pytest.mark.parametrize(("size", "radius"), [(1e30, 1.0), (1.0, 1e-20), (1e30, 1e-30)])
def test_radius_far_below_the_coordinates(project, p, size, radius):
    """The threshold rounds to the largest coordinate; the norm must be the radius all the same."""
    for x in (torch.tensor([[-size]]), torch.tensor([[size, -size, 0.1 * size]]), torch.full((1, 64), size)):
        z = project(x, radius)
        torch.testing.assert_close(norms(z, p), torch.tensor([radius], dtype=torch.float64), rtol=1e-5, atol=0)
        assert (z * x >= 0).all()


def test_one_outlier_does_not_cost_the_others_their_digits():
    x = randn(1, 4000, dtype=torch.float32)
    x[0, 7] = 1e6
    radius = norms(x, 1).item() - 3000
    expected = oracle_l1(x.numpy(), radius, np.zeros((1, 4000)))
    np.testing.assert_allclose(project_l1_ball(x, radius).numpy()[0, :7], expected[0, :7], rtol=0, atol=1e-4)


def test_many_coordinates_in_float32():
    """A threshold near 1 and excesses near 1e-4: rounding it to float32 misses the radius by a part in a thousand."""
    x = randn(1, 1 << 21, dtype=torch.float32).mul_(1e-4).add_(1.0)
    radius = 100.0
    assert norms(project_l1_ball(x, radius), 1).item() == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize("radius", [1e-30, 1.0, 1e20, 1.1e30])
def test_widely_spread_coordinates(radius):
    """One coordinate per power of ten, which the active set loses a few at a time; the oracle counts in fractions."""
    x = torch.logspace(-30, 30, 61, dtype=torch.float32)[None]
    u = sorted(map(Fraction, x[0].tolist()), reverse=True)
    thresholds = [(sum(u[:k]) - Fraction(radius)) / k for k in range(1, 62)]
    tau = max(thresholds)
    expected = [float(max(value - tau, 0)) for value in reversed(u)]
    np.testing.assert_allclose(project_l1_ball(x, radius)[0].double().numpy(), expected, rtol=1e-5, atol=1e-6 * radius)


@pytest.mark.parametrize(("project", "p"), BALLS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number_stays_in_its_image(project, p, bad):
    x = randn(3, 10, dtype=torch.float32)
    clean = project(x, 1.0)
    x[1, 3] = bad
    z = project(x, 1.0)
    assert z[1].isnan().all()
    assert torch.equal(z[[0, 2]], clean[[0, 2]])
    assert project(x, math.inf)[1, 3].isnan() == math.isnan(bad)


@pytest.mark.parametrize("project", [project_l1_ball, project_l2_ball, lambda x, r: project_sphere(x, r, (1, 2, 3))])
@pytest.mark.parametrize("radius", [2.0, 1e6])
def test_memory_layouts(project, radius):
    x = randn(3, 4, 6, 5, dtype=torch.float32)
    expected = project(x, radius)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    z = project(channels_last, radius)
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, expected, rtol=1e-6, atol=1e-7)
    strided = torch.stack([x, -x], dim=-1)[..., 0]
    transposed = x.transpose(0, 3).contiguous().transpose(0, 3)
    for layout in (strided, transposed):
        assert not layout.is_contiguous()
        torch.testing.assert_close(project(layout, radius), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("project", "p"), BALLS)
def test_mixed_layouts_of_point_and_centre(project, p):
    x, center = randn(2, 4, 6, 5, dtype=torch.float32), randn(1, 4, 6, 5, seed=1, dtype=torch.float32)
    expected = project(x, 2.0, center.expand(2, -1, -1, -1).clone())
    z = project(x.contiguous(memory_format=torch.channels_last), 2.0, center)
    torch.testing.assert_close(z, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = randn(2, 5000, dtype=torch.float32).to(dtype)
    assert torch.equal(project_l1_ball(x, 10.0), project_l1_ball(x.float(), 10.0).to(dtype))
    assert torch.equal(project_l2_ball(x, 10.0), project_l2_ball(x.float(), 10.0).to(dtype))


def test_projecting_a_parameter_in_place():
    parameter = torch.nn.Parameter(randn(2, 30, dtype=torch.float32))
    with torch.no_grad():
        parameter.copy_(project_l1_ball(parameter, 1e3))
        parameter.copy_(project_l1_ball(parameter, 2.0))
    assert parameter.requires_grad
    assert not project_l1_ball(parameter, 2.0).requires_grad
    torch.testing.assert_close(norms(parameter.detach(), 1), torch.full((2,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0,), (0, 3, 4), (2, 0)])
def test_nothing_to_project(shape):
    x = torch.empty(shape)
    assert project_l1_ball(x, 1.0).shape == shape
    assert project_l2_ball(x, 1.0).shape == shape
    assert project_sphere(x, 1.0, -1).shape == shape


@pytest.mark.parametrize("radius", [-1.0, math.nan, torch.tensor([1.0, -0.1]), torch.ones(3), torch.ones(2, 1)])
def test_impossible_radii_are_refused(radius):
    for project in (project_l1_ball, project_l2_ball, lambda x, r: project_sphere(x, r, 1)):
        with pytest.raises(ValueError, match="radius"):
            project(torch.ones(2, 4), radius)
    with pytest.raises(ValueError, match="finite"):
        project_sphere(torch.ones(2, 4), math.inf, 1)


@pytest.mark.parametrize("dims", [-1, 1, (1, 2), (-2, -1)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sphere_rescales_each_vector(dims, scale):
    x = randn(3, 5, 16)
    z = project_sphere((x * scale).float(), 4.0, dims)
    expected = 4.0 * x / torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-6)


def test_sphere_of_a_zero_vector_and_of_nan():
    x = randn(3, 4, dtype=torch.float32)
    x[0], x[1, 2] = 0, math.nan
    z = project_sphere(x, torch.tensor([1.0, 1.0, 3.0]), 1)
    assert torch.equal(z[0], torch.zeros(4))
    assert z[1].isnan().all()
    assert norms(z[2:], 2).item() == pytest.approx(3.0, rel=1e-6)
    assert torch.equal(project_sphere(x, 0.0, 1)[2], torch.zeros(4))
