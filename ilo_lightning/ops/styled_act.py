"""What follows a modulated convolution: demodulation, noise, bias, leaky ReLU and clamp, in one pass over the memory;
and its gradients, in another. Without autograd of its own: frozen_convolution.py uses it inside one node.

On the CPU there are kernels for it; on GPUs `bias_act` does most of it, and torch the gradients. Without kernels torch
works over bands of rows that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias_act import bias_act
from .implementation import compiled

BAND_BYTES = 1 << 19


def styled_act_(
    x: Tensor, scale: Tensor | None, bias: Tensor, noise: Tensor | None, slope: float, clamp: float | None
) -> None:
    """``x ← clamp(leaky_relu(x · scale + noise + bias))``.

    Args:
        x: ``(B, C, H, W)``, in channels_last.
        scale: ``(B, C)``; None: 1.
        bias: ``(C,)``.
        noise: ``(B, 1, H, W)``; None: 0.
        slope: of the leaky ReLU below zero.
        clamp: bound on the magnitude; None: none.
    """
    if compiled(x):
        on_device = torch.ops.ilo.styled_act_ if x.device.type == "cpu" else _with_bias_act
        return on_device(x, scale, bias, noise, slope, clamp)
    for rows, noise_rows in bands(x, x if noise is None else noise):
        if scale is not None:
            rows.mul_(per_channel(scale))
        rows.add_(bias[:, None, None])
        if noise is not None:
            rows.add_(noise_rows)
        F.leaky_relu_(rows, slope)
        if clamp is not None:
            rows.clamp_(-clamp, clamp)
    return None


def _with_bias_act(
    x: Tensor, scale: Tensor | None, bias: Tensor, noise: Tensor | None, slope: float, clamp: float | None
) -> None:
    """The same with `bias_act`, which has a kernel for GPUs."""
    if scale is not None:
        x.mul_(per_channel(scale))
    if noise is not None:
        x.add_(noise)
    x.copy_(bias_act(x, bias, slope, 1.0, clamp))


def styled_act_backward(
    grad: Tensor,
    y: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    noise: Tensor | None,
    slope: float,
    clamp: float | None,
    for_scale: bool = True,
    for_noise: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """From the gradient of the result ``y``, with g the gradient of ``p = x · scale + noise + bias``:

    Returns:
        ``g · scale``; ``Σ g · (p - noise - bias)``, ``(B, C)``, if ``for_scale``; ``Σ g`` over the channels,
        ``(B, 1, H, W)``, if ``for_noise``. For g · p = grad · y, since leaky ReLU is linear on either side of 0.
    """
    if y.device.type == "cpu" and compiled(y):
        return torch.ops.ilo.styled_act_backward(grad, y, scale, bias, noise, slope, clamp)
    inner = torch.empty_like(y)
    grad_noise = y.new_empty(len(y), 1, *y.shape[2:]) if for_noise else None
    probes = y.new_ones(()).expand(len(y), 1, *y.shape[2:])
    probes = probes if noise is None else torch.cat([probes, noise], dim=1)
    sums = y.new_zeros(len(y), probes.shape[1], y.shape[1])  # Σ g, Σ g · noise
    products = None  # y times its gradient, added up over bands
    for rows, y_rows, grad_rows, probe_rows, noise_rows in bands(
        inner, y, grad, probes, probes if grad_noise is None else grad_noise
    ):
        if clamp is not None:
            grad_rows = torch.ops.aten.hardtanh_backward(grad_rows, y_rows, -clamp, clamp)
        torch.ops.aten.leaky_relu_backward.grad_input(grad_rows, y_rows, slope, True, grad_input=rows)
        if for_scale:
            products = _add_product(products, grad_rows, y_rows)
            sums.baddbmm_(probe_rows.flatten(2), rows.flatten(2).transpose(1, 2))
        if grad_noise is not None:
            torch.sum(rows, dim=1, keepdim=True, out=noise_rows)
        if scale is not None:
            rows.mul_(per_channel(scale))
    total = None
    if products is not None:
        total = products.sum(dim=(2, 3)) - sums[:, 0] * bias
        total = total if noise is None else total - sums[:, 1]
    return inner, total, grad_noise


def style_backward_(grad: Tensor, x: Tensor, style: Tensor) -> Tensor:
    """From the gradient of ``x · style`` that of the style, ``(B, C)``; ``grad`` becomes that of x."""
    if grad.device.type == "cpu" and compiled(grad):
        return torch.ops.ilo.style_backward_(grad, x, style)
    products = None
    for rows, x_rows in bands(grad, x):
        products = _add_product(products, rows, x_rows)
        rows.mul_(per_channel(style))
    assert products is not None
    return products.sum(dim=(2, 3))


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


def per_channel(factor: Tensor) -> Tensor:
    """``(B, C)`` to be multiplied with ``(B, C, H, W)``."""
    return factor[..., None, None]


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a · b``, in place; the last band may have fewer rows."""
    if total is None:
        return a * b
    total[:, :, : a.shape[2]].addcmul_(a, b)
    return total


torch.library.define(
    "ilo::styled_act_", "(Tensor(a!) x, Tensor? scale, Tensor bias, Tensor? noise, float slope, float? clamp) -> ()"
)
torch.library.define(
    "ilo::styled_act_backward",
    "(Tensor grad, Tensor y, Tensor? scale, Tensor bias, Tensor? noise, float slope, float? clamp)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define("ilo::style_backward_", "(Tensor(a!) grad, Tensor x, Tensor style) -> Tensor")


@torch.library.register_fake("ilo::styled_act_")
def _(x, scale, bias, noise, slope, clamp):
    return None


@torch.library.register_fake("ilo::styled_act_backward")
def _(grad, y, scale, bias, noise, slope, clamp):
    return torch.empty_like(y), y.new_empty(y.shape[:2]), y.new_empty(len(y), 1, *y.shape[2:])


@torch.library.register_fake("ilo::style_backward_")
def _(grad, x, style):
    return grad.new_empty(grad.shape[:2])
