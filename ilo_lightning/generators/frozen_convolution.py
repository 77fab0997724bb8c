"""StyleGAN2's styled convolution with frozen weights, differentiable in everything else, for speed and little memory.

Three facts carry this module. A frozen convolution is a linear map: its gradient is the adjoint map, and needs nothing
of the input. Leaky ReLU can be inverted: what it acted on, and so every gradient of the layer, follows from its output,
which the next layer keeps anyway; each activation is stored once. And elementwise work is bound by memory: it runs in
place, in as few passes as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.styled_act import per_channel, style_backward_, styled_act_, styled_act_backward
from . import winograd

SLOPE = 0.2
WINOGRAD_CHANNELS, WINOGRAD_PIXELS = 256, 16 * 16
"""With less, the transforms cost more than the saved multiplications."""


class LinearMap(NamedTuple):
    """A linear function of ``(B, C, H, W)``, and its adjoint. Both return new tensors, in channels_last."""

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FrozenLayer:
    """What follows from the weights of a layer, as long as they stay as they are; made by ``freeze``.

    Args:
        up: whether it doubles the size.
        weight: in channels_last, ``(in, out, 3, 3)`` if it does, else ``(out, in, 3, 3)``.
        filters: Winograd's, of the convolution and of its adjoint; None where a direct convolution is faster.
        energy: of each filter, ``(in, out)``, and
        floor: the epsilon of the demodulation, ``(out,)``: both divided by the squared gain of the activation.
        strength: of the noise, and
        bias: both times the gain.
        clamp: bound on the output; None: none.
    """

    up: bool
    weight: Tensor
    filters: tuple[Tensor, Tensor] | None
    energy: Tensor
    floor: Tensor
    strength: Tensor | None
    bias: Tensor
    clamp: float | None


def wants_winograd(inputs: int, outputs: int, x: Tensor) -> bool:
    """Whether Winograd's is the faster convolution for ``x``."""
    large = x.shape[2] * x.shape[3] >= WINOGRAD_PIXELS and min(inputs, outputs) >= WINOGRAD_CHANNELS
    return large and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@torch.no_grad()
def freeze(
    weight: Tensor, bias: Tensor, strength: Tensor | None, gain: float, clamp: float | None, up: bool, fast: bool
) -> FrozenLayer:
    """Prepare a layer from its weight ``(out, in, 3, 3)``, bias ``(out,)`` and noise strength; ``fast``: for Winograd's
    convolution. ``gain`` is that of the activation, which leaky ReLU lets through."""
    turned = weight.transpose(0, 1)
    filters = (winograd.transform_filters(weight), winograd.transform_filters(turned.flip((2, 3)))) if fast else None
    return FrozenLayer(
        up,
        (turned if up else weight).contiguous(memory_format=torch.channels_last),
        filters,
        weight.square().sum(dim=(2, 3)).T.contiguous() / gain**2,
        torch.full_like(bias, 1e-8 / gain**2),
        None if strength is None else strength * gain,
        bias * gain,
        clamp,
    )


def styled_convolution(x: Tensor, style: Tensor, noise: Tensor | None, layer: FrozenLayer, fir: Tensor) -> Tensor:
    """Modulated convolution, demodulation, noise, bias, leaky ReLU and clamp; twice differentiable.

    Args:
        x: ``(B, in, H, W)``.
        style: ``(B, in)``.
        noise: ``(B, 1, H', W')``, or None.
        layer: weights, treated as constants.
        fir: ``(1, 1, n, n)``, the filter of a layer that doubles the size.
    """
    if noise is not None and layer.strength is not None:
        noise = noise * layer.strength
    return _StyledConvolution.apply(x, style, noise, layer, fir)


def _convolution(layer: FrozenLayer, weight: Tensor, fir: Tensor, shape: Sequence[int]) -> LinearMap:
    """The convolution with ``weight``, in the layout of ``layer.weight``, of an input of ``shape``."""
    if not layer.up:
        return LinearMap(lambda x: F.conv2d(x, weight, padding=1), lambda y: F.conv_transpose2d(y, weight, padding=1))
    channels, (height, width), taps = weight.shape[1], shape[2:], fir.shape[-1]
    planes, padding = fir.flip((2, 3)).expand(channels, 1, -1, -1), (taps - 1) // 2
    odd = taps % 2  # then the filtered image has a row and a column too many

    def apply(x: Tensor) -> Tensor:
        y = F.conv2d(F.conv_transpose2d(x, weight, stride=2), planes, padding=padding, groups=channels)
        return y[:, :, : 2 * height, : 2 * width] if odd else y

    def adjoint(y: Tensor) -> Tensor:
        y = F.pad(y, (0, odd, 0, odd)) if odd else y
        # Not as a transposed convolution: with groups, oneDNN's takes fourteen times as long.
        y = F.conv2d(y, fir.expand(channels, 1, -1, -1), padding=taps // 2, groups=channels)
        return F.conv2d(y, weight, stride=2)

    return LinearMap(apply, adjoint)


def _unscaled(layer: FrozenLayer, fir: Tensor, shape: Sequence[int]) -> LinearMap:
    """The convolution as it is."""
    if layer.filters is None:
        return _convolution(layer, layer.weight, fir, shape)
    forth, back = layer.filters
    return LinearMap(lambda x: winograd.convolve(x, forth), lambda y: winograd.convolve(y, back))


def _scaled(
    layer: FrozenLayer, style: Tensor, scale: Tensor, fir: Tensor, x: Tensor
) -> tuple[LinearMap, Tensor | None]:
    """``x ↦ weight ∗ (style · x)`` with the adjoint ``y ↦ weight ∗ᵀ y``, and the scale that is to be multiplied after
    the one and before the other.

    The factors go into the weights, and no scale is left, where these are fewer than the pixels: for one large image.
    """
    if len(x) > 1 or layer.filters is not None or layer.weight.numel() > x.numel():
        map = _unscaled(layer, fir, x.shape)
        return LinearMap(lambda x: map.apply(x * per_channel(style)), map.adjoint), scale
    inputs, outputs = (-1, 1, 1, 1), (1, -1, 1, 1)
    if not layer.up:
        inputs, outputs = outputs, inputs
    weight = layer.weight * scale.view(outputs)
    styled = _convolution(layer, weight * style.view(inputs), fir, x.shape)
    return LinearMap(styled.apply, _convolution(layer, weight, fir, x.shape).adjoint), None


class _StyledConvolution(torch.autograd.Function):
    """With s the style and y = weight ∗ (s · x): out = clamp(leaky_relu(p)), p = y · scale + noise + bias, where the
    demodulation is scale = (s² @ energy + floor)^-½.

    Of the gradient g of p the backward pass needs Σ g · y · scale, when y is long gone: it is Σ g · (p - noise - bias).
    """

    @staticmethod
    def forward(ctx, x, style, noise, layer, fir):
        scale = _demodulation(style, layer)
        map, rest = _scaled(layer, style, scale, fir, x)
        out = map.apply(x).contiguous(memory_format=torch.channels_last)
        styled_act_(out, rest, layer.bias, noise, SLOPE, layer.clamp)
        ctx.save_for_backward(x, style, noise, out, scale, fir)
        ctx.layer, ctx.adjoint, ctx.scaled = layer, map.adjoint, rest is None
        return out

    @staticmethod
    def backward(ctx, grad):
        x, style, noise, out, scale, fir = ctx.saved_tensors
        for_x, for_style, for_noise = ctx.needs_input_grad[:3]
        layer = ctx.layer
        grad_x = grad_style = None
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            scale = _demodulation(style, layer)
            inner, total, grad_noise = _differentiable_activation(grad, out, noise, layer)
            forth, back = _unscaled(layer, fir, x.shape)
            inner = _Linear.apply(inner * per_channel(scale), back, forth)
            grad_x, grad_style = inner * per_channel(style), (inner * x).sum(dim=(2, 3))
        else:
            rest = None if ctx.scaled else scale
            inner, total, grad_noise = styled_act_backward(
                grad, out, rest, layer.bias, noise, SLOPE, layer.clamp, for_style, for_noise
            )
            if for_x or for_style:
                grad_x = ctx.adjoint(inner).contiguous(memory_format=torch.channels_last)
                grad_style = style_backward_(grad_x, x, style)
        if for_style:
            assert grad_style is not None and total is not None
            grad_style = grad_style - style * ((total * scale.square()) @ layer.energy.T)
        return grad_x, grad_style if for_style else None, grad_noise if for_noise else None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, apply, adjoint):
        ctx.maps = adjoint, apply
        return apply(x)

    @staticmethod
    def backward(ctx, grad):
        return _Linear.apply(grad, *ctx.maps), None, None


def _demodulation(style: Tensor, layer: FrozenLayer) -> Tensor:
    return torch.rsqrt(torch.addmm(layer.floor, style.square(), layer.energy))


def _differentiable_activation(
    grad: Tensor, out: Tensor, noise: Tensor | None, layer: FrozenLayer
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same as differentiable functions of ``grad``, ``out`` and ``noise``."""
    slope = torch.where(out.detach() > 0, 1.0, SLOPE).to(out.dtype)
    inner = grad * slope
    if layer.clamp is not None:
        inner = inner * (out.detach().abs() < layer.clamp)
    scaled = out / slope - layer.bias[:, None, None]
    scaled = scaled if noise is None else scaled - noise
    return inner, (inner * scaled).sum(dim=(2, 3)), None if noise is None else inner.sum(dim=1, keepdim=True)
