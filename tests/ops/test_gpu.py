"""The CUDA kernels against the references in plain torch, on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from ilo_lightning import ops
from ilo_lightning.ops import extension
from ilo_lightning.ops.bias_act import bias_act
from ilo_lightning.ops.l1_ball import l1_ball, l1_threshold
from ilo_lightning.ops.upfirdn2d import upfirdn2d
from ilo_lightning.projections import project_l1_ball

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMOOTH = [1 / 8, 3 / 8, 3 / 8, 1 / 8]


@pytest.fixture(autouse=True)
def cuda_kernels() -> Iterator[None]:
    reason = extension.load("cuda", may_build=True)
    if reason:
        pytest.skip(f"no CUDA kernels: {reason}")
    with ops.use("cuda"):
        yield


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to("cuda", dtype)


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


def layouts(x):
    """The same numbers, otherwise in memory."""
    yield x
    yield torch.stack([x, -x], dim=-1)[..., 0]
    if x.ndim == 4:
        yield x.contiguous(memory_format=torch.channels_last)
        yield x.transpose(0, 3).contiguous().transpose(0, 3)


def agrees(function, *tensors):
    """Values, first and second derivatives of the kernels are those of plain torch in at least float32."""
    dtype = tensors[0].dtype

    def derivatives(*leaves):
        y = function(*leaves)
        direction = randn(*y.shape, seed=9, dtype=y.dtype)
        first = torch.autograd.grad((y * direction).sum(), leaves, create_graph=True)
        total = sum((g * randn(*g.shape, seed=8, dtype=g.dtype)).sum() for g in first)
        second = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else ()
        return [value for value in (y, *first, *second) if value is not None]

    found = derivatives(*(tensor.detach().requires_grad_() for tensor in tensors))
    with ops.use("torch"):
        expected = derivatives(*(wide(tensor.detach()).requires_grad_() for tensor in tensors))
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(wide(a), wide(b), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bias_act(dtype):
    for shape in ((2, 5, 9, 8), (3, 7), (0, 3, 4, 4), (1, 1, 1, 1)):
        for x in layouts(randn(*shape, dtype=dtype)):
            assert bias_act(x).stride() == torch.empty_like(x).stride()
            agrees(bias_act, x, randn(shape[1], seed=1, dtype=dtype))
            agrees(lambda x: bias_act(x, None, 0.1, 1.5), x)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bias_act_clamped(dtype):
    x = randn(2, 5, 9, 8, dtype=dtype)
    y = bias_act(x, clamp=0.5)
    with ops.use("torch"):
        expected = bias_act(wide(x), clamp=0.5)
    torch.testing.assert_close(wide(y), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    leaf = x.clone().requires_grad_()
    bias_act(leaf, clamp=0.5).sum().backward()
    assert (leaf.grad[y.abs() == 0.5] == 0).all() and (leaf.grad[y.abs() < 0.5] > 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_upfirdn2d(dtype):
    for up, down, padding, taps in (
        (1, 1, 1, SMOOTH),
        (2, 1, (2, 1), SMOOTH),
        (1, 2, (1, 1), SMOOTH),
        (3, 2, -1, [1.0, 2.0, -1.0]),
    ):
        for x in layouts(randn(2, 5, 9, 70, dtype=dtype)):
            agrees(lambda x, *a: upfirdn2d(x, taps, up, down, padding, 1.5), x)  # noqa: B023
    long = torch.linspace(-1, 1, 64).tolist()
    agrees(lambda x: upfirdn2d(x, long, 1, 8, 60, 0.1), randn(1, 40, 30, 30, dtype=dtype))
    assert upfirdn2d(randn(0, 3, 4, 4, dtype=dtype), SMOOTH, up=2, padding=(2, 1)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("n", [1, 40, 5000, 300_000])
def test_l1_ball(dtype, n):
    x, center = randn(4, n, dtype=dtype), randn(4, n, seed=1, dtype=dtype)
    norms = (wide(x) - wide(center)).double().norm(1, dim=1)
    radius = norms * torch.tensor([0.0, 1e-3, 0.3, 2.0], device="cuda", dtype=torch.float64)
    z = l1_ball(x, radius, center)
    with ops.use("torch"):
        expected = l1_ball(wide(x), radius, wide(center))
    torch.testing.assert_close(wide(z), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if dtype == torch.float64:
        agrees(lambda x, r, c: l1_ball(x, r, c), x, radius[:4], center)


def test_l1_ball_at_the_edges():
    x = randn(4, 100)
    x[1, 3], x[2, 3] = math.nan, math.inf
    z = project_l1_ball(x, torch.tensor([1.0, 1.0, 1.0, math.inf]).cuda())
    assert z[[1, 2]].isnan().all() and torch.equal(z[3], x[3])
    assert z[0].abs().sum().item() == pytest.approx(1.0, rel=1e-5)
    tiny = project_l1_ball(torch.full((1, 64), 1e30, device="cuda"), 1e-30)
    assert tiny.double().abs().sum().item() == pytest.approx(1e-30, rel=1e-5)
    assert project_l1_ball(torch.empty(2, 0, device="cuda"), 1.0).shape == (2, 0)


def test_l1_ball_is_the_same_every_time():
    """No sum depends on the order in which blocks finish."""
    x, radius = randn(3, 1_000_000), torch.full((3,), 1e4, dtype=torch.float64, device="cuda")
    first = l1_threshold(x, radius)
    assert all(torch.equal(first, l1_threshold(x, radius)) for _ in range(20))


def test_very_large():
    """More elements than 32-bit indices count."""
    needed = 14 * 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    size = 2**31 + 2**20
    x = torch.ones(1, 2, size // 2, dtype=torch.float16, device="cuda")
    bias = torch.tensor([1.0, -3.0], dtype=torch.float16, device="cuda")
    y = bias_act(x, bias, gain=1.0)
    assert (y[0, 0] == 2).all() and (y[0, 1] == y.new_tensor(-0.4)).all()
    del y
    z = upfirdn2d(x.view(1, 2, -1, 2**10), [0.5, 0.5], padding=(1, 0))
    assert z.shape == (1, 2, size >> 11, 2**10) and (z[:, :, 1:, 1:] == 1).all()
    del z
    rows = x.view(1, -1)
    assert l1_ball(rows, torch.tensor([float(size) / 4], dtype=torch.float64, device="cuda"))[0, -1].item() == 0.25


@pytest.mark.parametrize("stream", [False, True])
def test_streams(stream):
    """The kernels run on the current stream, after what is on it already."""
    with torch.cuda.stream(torch.cuda.Stream() if stream else torch.cuda.current_stream()):
        x = torch.zeros(1, 3, 2000, 2000, device="cuda")
        for _ in range(50):
            x = x + 1
        y = bias_act(x, gain=1.0)
    torch.cuda.synchronize()
    assert (y == 50).all()


def test_compiled():
    def function(x, bias):
        return upfirdn2d(bias_act(x * 2, bias), SMOOTH, up=2, padding=(2, 1)).square()

    x, bias = randn(2, 3, 8, 8).requires_grad_(), randn(3).requires_grad_()
    results = [(y := f(x, bias), *torch.autograd.grad(y.sum(), (x, bias))) for f in (function, torch.compile(function))]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
