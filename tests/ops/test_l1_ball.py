"""l1_ball: derivatives of the projection, and what the compiled search adds to what tests/test_projections.py tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ilo_lightning import ops
from ilo_lightning.ops.l1_ball import l1_ball, l1_shrink, l1_threshold
from ilo_lightning.projections import project_l1_ball
from tests.test_projections import norms, oracle_l1


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem(images=3, n=12, radii=(2.0, 1.0, 100.0)):
    """The last image lies inside its ball."""
    x, center = randn(images, n), randn(images, n, seed=1)
    return x.requires_grad_(), torch.tensor(radii, dtype=torch.float64).requires_grad_(), center.requires_grad_()


@pytest.mark.parametrize("centred", [False, True])
def test_derivatives(implementation, centred):
    x, radius, center = problem()
    arguments = (x, radius, center) if centred else (x, radius)
    assert torch.autograd.gradcheck(l1_ball, arguments)
    assert torch.autograd.gradgradcheck(lambda *a: l1_ball(*a).pow(3), arguments)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("n", [10, 5000, 200_000])
def test_derivatives_are_those_of_plain_torch(cpu_kernels, centred, n):
    found = []
    for implementation in ("cpu", "torch"):
        x, radius, center = problem(n=n, radii=(0.1 * n, 0.01 * n, 100.0 * n))
        arguments = (x, radius, center) if centred else (x, radius)
        with ops.use(implementation):
            z = l1_ball(*arguments)
            first = torch.autograd.grad((z * randn(3, n, seed=2)).square().sum(), arguments, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), arguments)
        found.append((z, *first, *second))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_the_derivative_is_the_projector_on_the_face(implementation):
    """By x: 1_S − s sᵀ/|S|, with S and s told from the result alone; by the radius: s/|S|."""
    x, radius, _ = problem(images=1, radii=(2.0,))
    z = l1_ball(x, radius)
    s = z.detach()[0].sign()
    jacobian = torch.autograd.functional.jacobian(lambda x: l1_ball(x, radius)[0], x)[:, 0]
    torch.testing.assert_close(jacobian, torch.diag(s.abs()) - torch.outer(s, s) / s.abs().sum())
    by_radius = torch.autograd.functional.jacobian(lambda r: l1_ball(x, r)[0], radius)[:, 0]
    torch.testing.assert_close(by_radius, s / s.abs().sum())


def test_derivatives_at_the_edges(implementation):
    x, radius, _ = problem(images=3, n=6, radii=(0.0, math.inf, 1.0))
    with torch.no_grad():
        x[2, 3] = math.nan
    l1_ball(x, radius).sum().backward()
    assert x.grad[0].tolist() == [0.0] * 6
    assert x.grad[1].tolist() == [1.0] * 6
    assert radius.grad[:2].tolist() == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of opcheck's own
def test_operator_checks(cpu_kernels):
    x, radius, center = problem()
    op = torch.ops.ilo
    threshold = op.l1_threshold(x.detach(), None, radius.detach())
    torch.library.opcheck(op.l1_ball.default, (x, center, radius))
    torch.library.opcheck(op.l1_ball.default, (x, None, radius))
    torch.library.opcheck(op.l1_threshold.default, (x.detach(), center.detach(), radius.detach()))
    torch.library.opcheck(op.l1_shrink.default, (x.detach(), None, threshold))
    rho = randn(3, seed=4).requires_grad_()
    torch.library.opcheck(
        op.l1_derivative.default, (randn(3, 12, seed=5).requires_grad_(), rho, x.detach(), None, threshold)
    )


@pytest.mark.parametrize(
    ("n", "fraction"), [(65_537, 1e-6), (150_001, 0.1), (800_003, 1e-3), (800_003, 0.1), (800_003, 0.7)]
)
@pytest.mark.parametrize("sample", ["like the rest", "empty", "all of it", "far too large", "a little too large"])
def test_a_misleading_sample_only_costs_time(cpu_kernels, n, fraction, sample):
    """The compiled search takes a bracket from every 16th block of 2048 coordinates, whatever is in them."""
    x = randn(1, n, dtype=torch.float32)
    sampled = (torch.arange(n) // 2048 % 16 == 0)[None]
    if sample == "empty":
        x[sampled] = 0
    elif sample == "all of it":
        x[~sampled] = 0
    elif sample == "far too large":
        x[sampled] *= 1e6
    elif sample == "a little too large":
        x[sampled] *= 1.1
    radius = fraction * norms(x, 1).item()
    with ops.use("cpu"):
        z = project_l1_ball(x, radius)
    expected = oracle_l1(x.numpy(), radius, np.zeros((1, n)))
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-5, atol=1e-6 * x.abs().max().item())
    assert norms(z, 1).item() == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize("distribution", ["uniform", "one value", "few values", "heavy tails", "sparse", "sorted"])
def test_many_coordinates_of_every_kind(cpu_kernels, distribution):
    n, rng = 1_200_000, torch.Generator().manual_seed(0)
    uniform = torch.rand(1, n, generator=rng, dtype=torch.float64)
    x = {
        "uniform": uniform,
        "one value": torch.ones_like(uniform),
        "few values": (uniform * 5).floor(),
        "heavy tails": uniform.pow(-0.9),
        "sparse": torch.where(uniform < 1e-4, uniform, 0.0),
        "sorted": randn(1, n).sort().values,
    }[distribution]
    center = randn(1, n, seed=1) * 1e-3
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        x, center = x.to(dtype), center.to(dtype)
        for fraction in (0.02, 0.5):
            radius = fraction * np.abs((x - center).numpy()).sum(dtype=np.float64)  # pairwise, unlike torch's
            with ops.use("cpu"):
                z = project_l1_ball(x, radius, center)
            expected = oracle_l1(x.numpy(), radius, center.numpy())  # its cumulative sum is good to 1e-10
            np.testing.assert_allclose(z.numpy(), expected, rtol=tolerance, atol=tolerance)
            norm = np.abs(z.double().numpy() - center.double().numpy()).sum()
            assert norm == pytest.approx(radius, rel=1e-4 if dtype == torch.float32 else 1e-12)


def test_threads_change_nothing(cpu_kernels):
    """The order of every sum is fixed, so results are the same to the bit on any number of cores."""
    many = randn(1, 5_000_000, dtype=torch.float32), torch.tensor([1e5], dtype=torch.float64)
    batch = randn(7, 40_000, seed=1, dtype=torch.float32), torch.full((7,), 1e3, dtype=torch.float64)
    threads = torch.get_num_threads()
    try:
        with ops.use("cpu"):
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                thresholds = [l1_threshold(x, radius) for x, radius in (many, batch)]
                results.append((*thresholds, l1_shrink(batch[0], thresholds[1])))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_shapes_that_do_not_fit_are_refused(cpu_kernels):
    x, radius = torch.zeros(2, 3), torch.ones(2, dtype=torch.float64)
    for arguments in (
        (x, torch.zeros(2, 4), radius),
        (x, None, radius[:1]),
        (x, None, radius.float()),
        (x[0], None, radius),
        (x, x.double(), radius),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.ilo.l1_ball(*arguments)


@pytest.mark.slow
def test_compiled(cpu_kernels):
    """Under torch.compile, in one graph, with its gradient."""

    def function(x, radius):
        return (l1_ball(x * 3, radius) + 1).square()

    x, radius, _ = problem(n=100)
    with ops.use("cpu"):
        compiled = torch.compile(function, fullgraph=True)
        results = [(y := f(x, radius), *torch.autograd.grad(y.sum(), (x, radius))) for f in (function, compiled)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
