"""Bias, leaky ReLU, gain and clamp in one pass over the memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .implementation import kernels


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    slope: float = 0.2,
    gain: float = math.sqrt(2),
    clamp: float | None = None,
    dim: int = 1,
) -> Tensor:
    """``clamp(gain · leaky_relu(x + bias))``.

    Args:
        x: any shape; floating point.
        bias: ``(x.shape[dim],)``, of the type of ``x``.
        slope: of the leaky ReLU below zero, at least 0; 1 makes it linear.
        gain: above 0.
        clamp: largest magnitude of the result, above 0; ``None`` for no limit.
        dim: the axis of the bias.

    Returns:
        The shape, type and memory format of ``x``. Differentiable any number of times by ``x`` and ``bias``; where the
        clamp holds the derivative is zero (at the very limit torch has it one).

    Raises:
        ValueError: for arguments outside these ranges.
    """
    if not (slope >= 0 and gain > 0 and (clamp is None or clamp > 0)):
        raise ValueError(f"slope={slope}, gain={gain}, clamp={clamp}: expected slope >= 0, gain > 0, clamp > 0 or None")
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != x.shape[dim] or bias.dtype != x.dtype):
        raise ValueError(
            f"bias {tuple(bias.shape)} {bias.dtype}: expected ({x.shape[dim]},) {x.dtype}, for axis {dim} of x"
        )
    if not kernels(x):
        return reference(x, bias, slope, gain, clamp, dim)
    return torch.ops.ilo.bias_act(x, bias, dim, slope, gain, clamp)


def reference(x: Tensor, bias: Tensor | None, slope: float, gain: float, clamp: float | None, dim: int) -> Tensor:
    """The same in plain torch, one operation after another."""
    if bias is not None:
        x = x + bias.view([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])
    x = F.leaky_relu(x, slope) if slope != 1 else x
    x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


torch.library.define(
    "ilo::bias_act", "(Tensor x, Tensor? bias, int dim, float slope, float gain, float? clamp) -> Tensor"
)
# The derivative is told from the result: dy/dx is gain, gain · slope or 0 by its sign and size.
torch.library.define(
    "ilo::bias_act_backward", "(Tensor grad, Tensor y, float slope, float gain, float? clamp) -> Tensor"
)


@torch.library.register_fake("ilo::bias_act")
def _(x, bias, dim, slope, gain, clamp):
    return torch.empty_like(x)


@torch.library.register_fake("ilo::bias_act_backward")
def _(grad, y, slope, gain, clamp):
    return torch.empty_like(y)


def _keep(ctx, inputs, output):
    x, _, dim, *ctx.constants = inputs
    ctx.dim = dim % x.ndim
    ctx.save_for_backward(output)


def _backward(ctx, grad):
    (y,) = ctx.saved_tensors
    grad = torch.ops.ilo.bias_act_backward(grad, y, *ctx.constants)
    others = [axis for axis in range(y.ndim) if axis != ctx.dim]
    return grad, grad.sum(others) if ctx.needs_input_grad[1] else None, None, None, None, None


def _keep_backward(ctx, inputs, output):
    _, y, *ctx.constants = inputs
    ctx.save_for_backward(y)


def _backward_backward(ctx, grad):
    (y,) = ctx.saved_tensors  # linear in the first argument, constant almost everywhere in the second
    return torch.ops.ilo.bias_act_backward(grad, y, *ctx.constants), None, None, None, None


torch.library.register_autograd("ilo::bias_act", _backward, setup_context=_keep)
torch.library.register_autograd("ilo::bias_act_backward", _backward_backward, setup_context=_keep_backward)
