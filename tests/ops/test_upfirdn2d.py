"""upfirdn2d against scipy's, axis by axis; its adjoint, derivatives, and what torch asks of an operator."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.signal
import torch

from ilo_lightning import ops
from ilo_lightning.generators.stylegan2_layers import filter_planes, fir_kernel, upsample
from ilo_lightning.ops.upfirdn2d import upfirdn2d

SMOOTH = [1 / 8, 3 / 8, 3 / 8, 1 / 8]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_scipy(x, taps, up, down, padding, gain):
    """Zero-inserted with the zeros behind the last pixel, too, padded or cropped, filtered, every down-th kept."""
    for axis, (before, after) in zip((2, 3), (padding[:2], padding[2:]), strict=True):
        x = np.moveaxis(x, axis, -1)
        size = x.shape[-1] * up
        inserted = scipy.signal.upfirdn([1.0], x, up)
        inserted = np.concatenate([inserted, np.zeros((*x.shape[:-1], size - inserted.shape[-1]))], -1)
        padded = np.pad(inserted, [(0, 0)] * 3 + [(max(before, 0), max(after, 0))])
        padded = padded[..., max(-before, 0) : padded.shape[-1] - max(-after, 0)]
        filtered = scipy.signal.upfirdn(taps, padded)[..., len(taps) - 1 : padded.shape[-1]]
        x = np.moveaxis(filtered[..., ::down], -1, axis)
    return x * gain


def random_cases(count, seed):
    """Settings under which something is left of the image."""
    rng = random.Random(seed)
    while count:
        shape = tuple(rng.choice(sizes) for sizes in ((1, 2), (1, 3, 5), (1, 4, 7, 33), (1, 5, 8, 40)))
        up, down = rng.randint(1, 4), rng.randint(1, 4)
        taps = [rng.uniform(-1, 1) for _ in range(rng.choice((1, 2, 3, 4, 5, 8, 9)))]
        padding = [rng.randint(-2, 6) for _ in range(4)]
        sizes = shape[2] * up + sum(padding[:2]), shape[3] * up + sum(padding[2:])
        if min(sizes) >= len(taps):
            count -= 1
            yield shape, taps, up, down, padding, rng.uniform(0.5, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_agrees_with_scipy(implementation, dtype, channels_last):
    for shape, *arguments in random_cases(150, seed=channels_last):
        x = randn(*shape)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        y = upfirdn2d(x.to(dtype).contiguous(memory_format=memory_format), *arguments)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(y.numpy(), by_scipy(x.numpy(), *arguments), atol=tolerance, err_msg=str(arguments))
        assert y.dtype == dtype
        assert y.is_contiguous(
            memory_format=memory_format
            if not x.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )


@pytest.mark.slow
def test_many_columns_and_long_filters(implementation):
    taps = randn(64, seed=1).tolist()
    for shape in ((1, 2, 70, 3000), (1, 700, 3, 40), (1, 3, 1, 5000)):
        x = randn(*shape)
        for layout in (x, x.contiguous(memory_format=torch.channels_last)):
            for up, down in ((1, 1), (2, 1), (1, 2), (3, 2)):
                arguments = (taps[: 64 if shape[3] == 3000 else 5], up, down, [40, 30, 20, 10], 1.0)
                np.testing.assert_allclose(
                    upfirdn2d(layout, *arguments).numpy(), by_scipy(x.numpy(), *arguments), atol=1e-9
                )


def test_the_filters_of_stylegan2(implementation):
    x, kernel = randn(2, 3, 9, 9), fir_kernel(gain=4.0).double()
    torch.testing.assert_close(upfirdn2d(x, SMOOTH, padding=1, gain=4.0), filter_planes(x, kernel, padding=1))
    torch.testing.assert_close(upfirdn2d(x, SMOOTH, up=2, padding=(2, 1), gain=4.0), upsample(x, kernel))


def test_layouts(implementation):
    x = randn(2, 3, 8, 6)
    expected = upfirdn2d(x, SMOOTH, up=2, padding=2)
    for layout in (torch.stack([x, -x], -1)[..., 0], x.transpose(0, 3).contiguous().transpose(0, 3), x.flip(3).flip(3)):
        torch.testing.assert_close(upfirdn2d(layout, SMOOTH, up=2, padding=2), expected)


def test_adjoint_and_derivatives(cpu_kernels):
    """Linear, so the gradient is the adjoint: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩; and the adjoint's gradient is A again."""
    with ops.use("cpu"):
        for shape, *arguments in random_cases(60, seed=3):
            x = randn(*shape).requires_grad_()
            y = upfirdn2d(x, *arguments)
            weight = randn(*y.shape, seed=1).requires_grad_()
            (adjoint,) = torch.autograd.grad(y, x, weight, create_graph=True)
            torch.testing.assert_close((y * weight).sum(), (x * adjoint).sum())
            (again,) = torch.autograd.grad(adjoint, weight, x)
            torch.testing.assert_close(again, y)
        x = randn(1, 2, 4, 5).requires_grad_()
        for arguments in (
            (SMOOTH, 2, 1, [2, 1, 2, 1], 4.0),
            (SMOOTH, 1, 2, [1, 1, 0, 2], 1.0),
            (SMOOTH, 3, 2, [3, -1, 4, 0], 1.0),
        ):
            assert torch.autograd.gradcheck(lambda x, a=arguments: upfirdn2d(x, *a), x)
            assert torch.autograd.gradgradcheck(lambda x, a=arguments: upfirdn2d(x, *a).square(), x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of opcheck's own
def test_operator_checks(cpu_kernels):
    x = randn(2, 3, 4, 5).requires_grad_()
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    for arguments in ((x, SMOOTH, 2, 1, [2, 1, 2, 1], 4.0), (last, SMOOTH, 1, 2, [1, 1, 1, 1], 1.0)):
        torch.library.opcheck(torch.ops.ilo.upfirdn2d.default, arguments)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_empty(cpu_kernels, shape):
    x = torch.empty(shape, requires_grad=True)
    with ops.use("cpu"):
        y = upfirdn2d(x, SMOOTH, up=2, padding=(2, 1))
    y.sum().backward()
    assert y.shape == (*shape[:2], 8, 8) and x.grad.shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "taps"),
        (([1.0] * 65,), "taps"),
        (([1.0], 0), "at least 1"),
        (([1.0], 1, 0), "at least 1"),
        (([1.0], 1, 1, [1, 2, 3]), "2 or 4"),
        (([1.0] * 5,), "nothing left"),
        (([1.0], 1, 1, -2), "nothing left"),
    ],
)
def test_refuses(implementation, arguments, message):
    with pytest.raises(ValueError, match=message):
        upfirdn2d(torch.zeros(1, 1, 4, 4), *arguments)


@pytest.mark.slow
def test_compiled(cpu_kernels):
    """Under torch.compile, in one graph, for another size without a new choice of implementation."""

    def function(x):
        return upfirdn2d(x.sin(), SMOOTH, up=2, padding=(2, 1), gain=4.0).square()

    with ops.use("cpu"):
        compiled = torch.compile(function, fullgraph=True)
        for size in (8, 12):
            x = randn(2, 3, size, size, dtype=torch.float32).requires_grad_()
            results = [(y := f(x), *torch.autograd.grad(y.sum(), x)) for f in (function, compiled)]
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
