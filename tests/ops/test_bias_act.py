"""bias_act: the kernels against its definition, laws of its derivatives, and what torch asks of an operator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ilo_lightning import ops
from ilo_lightning.ops.bias_act import bias_act, reference

SHAPES = [((5, 7), 1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1), ((3, 40, 9, 8), 1), ((4, 6), 0), ((2, 1, 3, 3), 1)]
SETTINGS = [(0.2, math.sqrt(2), None), (0.2, 1.3, 0.7), (1.0, 2.0, None), (0.0, 1.0, 0.5)]
LAYOUTS = ["contiguous", "channels_last", "transposed", "every second"]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def laid_out(x, layout):
    """The same numbers, otherwise in memory."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every second":
        return torch.stack([x, -x], dim=-1)[..., 0]
    return x


def by_definition(x, bias, slope, gain, clamp, dim):
    x = x.numpy() + np.expand_dims(bias.numpy(), [axis for axis in range(x.ndim) if axis != dim % x.ndim])
    y = gain * np.where(x > 0, x, slope * x)
    return y if clamp is None else np.minimum(np.maximum(y, -clamp), clamp)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_what_it_says(implementation, dtype, shape, dim, setting, layout):
    x, bias = randn(*shape, dtype=dtype), randn(shape[dim], seed=1, dtype=dtype)
    y = bias_act(laid_out(x, layout), bias, *setting, dim=dim)
    np.testing.assert_allclose(y.numpy(), by_definition(x, bias, *setting, dim), rtol=1e-6, atol=0)
    assert y.dtype == dtype
    without = bias_act(laid_out(x, layout), None, *setting)
    np.testing.assert_allclose(without.numpy(), by_definition(x, torch.zeros_like(bias), *setting, dim), rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_keeps_the_memory_format(implementation, layout):
    x = laid_out(randn(2, 3, 4, 5), layout)
    assert bias_act(x, randn(3)).stride() == x.stride()


@pytest.mark.parametrize("setting", SETTINGS[:3], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_derivatives(cpu_kernels, setting, layout):
    x, bias = laid_out(randn(2, 3, 2, 2), layout).requires_grad_(), randn(3, seed=1).requires_grad_()
    with ops.use("cpu"):
        assert torch.autograd.gradcheck(lambda x, b: bias_act(x, b, *setting), (x, bias))
        assert torch.autograd.gradgradcheck(lambda x, b: bias_act(x, b, *setting).square(), (x, bias))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_derivatives_are_those_of_plain_torch(cpu_kernels, setting):
    x, bias = randn(3, 4, 5, 5).requires_grad_(), randn(4, seed=1).requires_grad_()
    weight = randn(3, 4, 5, 5, seed=2)

    def derivatives(function):
        y = function(x, bias)
        first = torch.autograd.grad((y.pow(3) * weight).sum(), (x, bias), create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, bias))

    with ops.use("cpu"):
        found = derivatives(lambda x, b: bias_act(x, b, *setting))
    expected = derivatives(lambda x, b: reference(x, b, *setting, 1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of opcheck's own
def test_operator_checks(cpu_kernels):
    x, bias = randn(2, 3, 4, 4).requires_grad_(), randn(3).requires_grad_()
    for arguments in (
        (x, bias, 1, 0.2, 1.4, None),
        (x, None, 1, 0.2, 1.4, 0.5),
        (laid_out(x.detach(), "channels_last"), bias, 1, 1.0, 1.0, 1.0),
    ):
        torch.library.opcheck(torch.ops.ilo.bias_act.default, arguments)
    torch.library.opcheck(torch.ops.ilo.bias_act_backward.default, (x, x.detach(), 0.2, 1.4, 0.5))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4), (2, 3, 0, 0)])
def test_empty(implementation, shape):
    x = torch.empty(shape, requires_grad=True)
    y = bias_act(x, torch.zeros(shape[1]))
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_not_a_number_stays_where_it_is(implementation):
    x = torch.tensor([[math.nan, math.inf, -math.inf, -1.0]])
    y = bias_act(x, None, 0.5, 1.0, clamp=3.0)
    assert y[0, 0].isnan() and y[0, 1:].tolist() == [3.0, -3.0, -0.5]
    assert bias_act(x, None, 0.5, 1.0)[0, 1:].tolist() == [math.inf, -math.inf, -0.5]


@pytest.mark.parametrize(
    "bad",
    [
        {"slope": -0.1},
        {"gain": 0.0},
        {"clamp": 0.0},
        {"slope": math.nan},
        {"bias": torch.zeros(4)},
        {"bias": torch.zeros(3, dtype=torch.float64)},
    ],
    ids=str,
)
def test_refuses(implementation, bad):
    with pytest.raises(ValueError, match="expected"):
        bias_act(torch.zeros(2, 3), **bad)


@pytest.mark.slow
def test_compiled(cpu_kernels):
    """Under torch.compile, in one graph, with its gradient."""

    def function(x, bias):
        return (bias_act(x * 2, bias, clamp=1.0) + 1).square()

    x, bias = randn(2, 3, 8, 8, dtype=torch.float32).requires_grad_(), randn(3, dtype=torch.float32).requires_grad_()
    with ops.use("cpu"):
        compiled = torch.compile(function, fullgraph=True)
        results = []
        for f in (function, compiled):
            y = f(x, bias)
            results.append((y, *torch.autograd.grad(y.sum(), (x, bias))))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
