"""Up-sampling by zero insertion, a separable FIR filter, and down-sampling, in one operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .implementation import kernels

MAX_TAPS = 64


def upfirdn2d(
    x: Tensor,
    taps: Sequence[float],
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 1.0,
) -> Tensor:
    """Filter every plane of ``x`` along both axes.

    1. Insert ``up − 1`` zeros after every pixel.
    2. Pad with zeros, or crop where the padding is negative.
    3. Convolve (not correlate) each axis with ``taps``, keeping only where the filter lies wholly inside; times
       ``gain``.
    4. Keep every ``down``-th pixel.

    Args:
        x: ``(B, C, H, W)``, floating point.
        taps: of the filter along one axis, 1 to 64 numbers.
        padding: ``p``, ``(before, after)`` for both axes, or ``(top, bottom, left, right)``; counted in pixels after
            the first step.

    Returns:
        ``(B, C, (H·up + top + bottom − len(taps)) // down + 1, …)``, with the type and memory format of ``x``.
        Differentiable any number of times by ``x``.

    Raises:
        ValueError: for arguments outside these ranges, or if nothing is left of the image.
    """
    taps = [float(tap) for tap in taps]
    padding = [padding] * 4 if isinstance(padding, int) else [*padding] * (2 if len(padding) == 2 else 1)
    if not 1 <= len(taps) <= MAX_TAPS:
        raise ValueError(f"{len(taps)} taps: expected 1 to {MAX_TAPS}")
    if x.ndim != 4 or up < 1 or down < 1 or len(padding) != 4:
        raise ValueError(
            f"x of shape {tuple(x.shape)}, up={up}, down={down}, padding={padding}: expected (B, C, H, W), "
            "whole numbers of at least 1, and 1, 2 or 4 numbers"
        )
    top, bottom, left, right = padding
    if min(x.shape[2] * up + top + bottom, x.shape[3] * up + left + right) < len(taps):
        raise ValueError(
            f"{len(taps)} taps on a plane {tuple(x.shape[2:])} up-sampled by {up} with padding {padding}: nothing left"
        )
    if not kernels(x):
        return reference(x, taps, up, down, padding, gain)
    return torch.ops.ilo.upfirdn2d(x, taps, up, down, padding, gain)


def reference(x: Tensor, taps: Sequence[float], up: int, down: int, padding: Sequence[int], gain: float) -> Tensor:
    """The same in plain torch, step by step."""
    batch, channels, height, width = x.shape
    memory_format = _format(x)
    top, bottom, left, right = padding
    x = F.pad(x.reshape(batch, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
    x = F.pad(x.reshape(batch, channels, height * up, width * up), (left, right, top, bottom))
    kernel = x.new_tensor(taps).flip(0)  # torch's convolution is a correlation
    x = F.conv2d(x, (kernel * gain).view(1, 1, -1, 1).expand(channels, 1, -1, -1), groups=channels)
    x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, 1, -1, -1), groups=channels)
    return x[:, :, ::down, ::down].contiguous(memory_format=memory_format)


def _format(x: Tensor) -> torch.memory_format:
    """Of the result: channels_last where ``x`` is, and not contiguous as well."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


torch.library.define(
    "ilo::upfirdn2d", "(Tensor x, float[] taps, int up, int down, SymInt[] padding, float gain) -> Tensor"
)


@torch.library.register_fake("ilo::upfirdn2d")
def _(x, taps, up, down, padding, gain):
    top, bottom, left, right = padding
    height = (x.shape[2] * up + top + bottom - len(taps)) // down + 1
    width = (x.shape[3] * up + left + right - len(taps)) // down + 1
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=_format(x))


def _keep(ctx, inputs, output):
    x, ctx.taps, ctx.up, ctx.down, ctx.padding, ctx.gain = inputs
    ctx.sizes = (*x.shape[2:], *output.shape[2:])


def _backward(ctx, grad):
    # The adjoint is the operation with up and down exchanged and the taps reversed. out[m] takes in[i] with tap
    # j = m·down + n − 1 − before − i·up, so the adjoint pads by n − 1 − before, and at the end by what gives H again.
    n, up, down = len(ctx.taps), ctx.up, ctx.down
    height, width, height_out, width_out = ctx.sizes
    top, _, left, _ = ctx.padding
    padding = [n - 1 - top, (height - 1) * up + 1 + top - height_out * down]
    padding += [n - 1 - left, (width - 1) * up + 1 + left - width_out * down]
    grad = torch.ops.ilo.upfirdn2d(grad, ctx.taps[::-1], down, up, padding, ctx.gain)
    return grad, None, None, None, None, None


torch.library.register_autograd("ilo::upfirdn2d", _backward, setup_context=_keep)
