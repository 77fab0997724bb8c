"""A styled convolution whose weights are frozen, differentiable in everything else, for speed and little memory.

Three facts carry this module. A frozen convolution is a linear map: its gradient is the adjoint map, and needs nothing
of the input. Leaky ReLU can be inverted: what it acted on, and so every gradient of the layer, follows from its output,
which the next layer keeps anyway; each activation is stored once. And elementwise work is bound by memory: it runs in
place, over bands of rows that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2
BAND_BYTES = 1 << 20


class LinearMap(NamedTuple):
    """A linear function of ``(B, C, H, W)``, and its adjoint. Both return new tensors."""

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def styled_convolution(
    x: Tensor,
    style: Tensor,
    map: LinearMap,
    scale: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    clamp: float | None = None,
) -> Tensor:
    """Leaky ReLU(0.2) of ``map.apply(x · style) · scale + noise + bias``, clamped to ±``clamp``; twice differentiable.

    Args:
        x: ``(B, in, H, W)``.
        style: ``(B, in)``.
        map: to ``(B, out, H', W')``.
        scale: ``(B, out)``, positive.
        noise: ``(B, 1, H', W')``, or None.
        bias: ``(out,)``; a constant: no gradient goes to it.
        clamp: positive, or None.
    """
    return _StyledConvolution.apply(x, style, map, scale, noise, bias, clamp)


class _StyledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, style, map, scale, noise, bias, clamp):
        out = map.apply(x * _per_channel(style))
        factor, offset = _per_channel(scale), bias[:, None, None]
        for rows, noise_rows in bands(out, out if noise is None else noise):
            rows.mul_(factor).add_(offset)
            if noise is not None:
                rows.add_(noise_rows)
            F.leaky_relu_(rows, SLOPE)
            if clamp is not None:
                rows.clamp_(-clamp, clamp)
        ctx.save_for_backward(x, style, scale, noise, bias, out)
        ctx.map, ctx.clamp = map, clamp
        return out

    @staticmethod
    def backward(ctx, grad):
        x, style, scale, noise, bias, out = ctx.saved_tensors
        for_x, for_style, _, *for_activation = ctx.needs_input_grad[:5]
        grad_x = grad_style = None
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            inner, grad_scale, grad_noise = _differentiable_activation(grad, out, scale, noise, bias, ctx.clamp)
            inner = _Linear.apply(inner, ctx.map.adjoint, ctx.map.apply)
            grad_x, grad_style = inner * _per_channel(style), (inner * x).sum(dim=(2, 3))
        else:
            inner, grad_scale, grad_noise = _activation(grad, out, scale, noise, bias, ctx.clamp, *for_activation)
            if for_x or for_style:
                grad_x, grad_style = _scaling(ctx.map.adjoint(inner), x, style, for_x, for_style)
        return grad_x, grad_style, None, grad_scale, grad_noise, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, apply, adjoint):
        ctx.maps = adjoint, apply
        return apply(x)

    @staticmethod
    def backward(ctx, grad):
        return _Linear.apply(grad, *ctx.maps), None, None


def bands(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each ``(B, ?, H, W)`` tensor, so few at a time that the first's stay in the cache of a core; all
    of them at once on other devices."""
    first = tensors[0]
    height = first.shape[2]
    row_bytes = first.numel() // height * first.element_size()
    rows = max(1, BAND_BYTES // row_bytes) if first.device.type == "cpu" else height
    if rows >= height:
        yield tensors
    else:
        yield from zip(*(tensor.split(rows, dim=2) for tensor in tensors), strict=True)


def _per_channel(scale: Tensor) -> Tensor:
    return scale[..., None, None]


def _scaling(
    grad: Tensor, x: Tensor, style: Tensor, for_x: bool, for_style: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and style from that of ``x · style``, which becomes the first of them."""
    products = None  # x · grad, added up over bands
    for rows, x_rows in bands(grad, x):
        if for_style:
            products = torch.zeros_like(rows) if products is None else products
            products[:, :, : rows.shape[2]].addcmul_(rows, x_rows)
        if for_x:
            rows.mul_(_per_channel(style))
    return grad if for_x else None, None if products is None else products.sum(dim=(2, 3))


# Of p = y · scale + noise + bias, with gradient g, y is no longer there when the gradient of scale, Σ g·y, is wanted. But
# y = (p - noise - bias) / scale; and Σ g·p is the sum of output times its gradient, since leaky ReLU is linear on either
# side of 0.


def _activation(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    clamp: float | None,
    for_scale: bool,
    for_noise: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of y, scale and noise."""
    batch, channels = scale.shape
    grad_y = torch.empty_like(out)
    grad_noise = torch.empty_like(noise) if noise is not None and for_noise else None
    probes = out.new_ones(()).expand(batch, 1, *out.shape[2:])
    probes = probes if noise is None else torch.cat([probes, noise], dim=1)
    sums = out.new_zeros(batch, channels, probes.shape[1])  # Σ g, Σ g · noise
    products = None  # output times its gradient, added up over bands
    for rows, out_rows, grad_rows, probe_rows, noise_rows in bands(
        grad_y, out, grad, probes, probes if grad_noise is None else grad_noise
    ):
        if clamp is not None:
            grad_rows = torch.ops.aten.hardtanh_backward(grad_rows, out_rows, -clamp, clamp)
        torch.ops.aten.leaky_relu_backward.grad_input(grad_rows, out_rows, SLOPE, True, grad_input=rows)
        if for_scale:
            products = torch.zeros_like(rows) if products is None else products
            products[:, :, : rows.shape[2]].addcmul_(grad_rows, out_rows)
            sums.baddbmm_(rows.flatten(2), probe_rows.flatten(2).transpose(1, 2))
        if grad_noise is not None:
            torch.sum(rows, dim=1, keepdim=True, out=noise_rows)
        rows.mul_(_per_channel(scale))
    grad_scale = None
    if products is not None:
        total = products.sum(dim=(2, 3)) - sums[..., 0] * bias
        grad_scale = (total if noise is None else total - sums[..., 1]) / scale
    return grad_y, grad_scale, grad_noise


def _differentiable_activation(
    grad: Tensor, out: Tensor, scale: Tensor, noise: Tensor | None, bias: Tensor, clamp: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same as differentiable functions of ``grad``, ``out``, ``scale`` and ``noise``."""
    slope = torch.where(out.detach() > 0, 1.0, SLOPE).to(out.dtype)
    inner = grad * slope
    if clamp is not None:
        inner = inner * (out.detach().abs() < clamp)
    y_scaled = out / slope - bias[:, None, None]
    if noise is not None:
        y_scaled = y_scaled - noise
    grad_scale = (inner * y_scaled).sum(dim=(2, 3)) / scale
    return inner * _per_channel(scale), grad_scale, None if noise is None else inner.sum(dim=1, keepdim=True)
