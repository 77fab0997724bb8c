"""StyleGAN2 as the usual implementations compute it: the reference that ``step_time.py`` measures against.

Written from the paper (Karras et al., CVPR 2020, arXiv 1912.04958), eq. 1-3 as they stand: every sample gets weights of
its own, and a batch is one grouped convolution; filters are applied by inserting zeros, padding and
convolving; nothing is in place, the memory layout is PyTorch's default, and the weights are trainable, so that a
backward pass computes their gradients too.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.stylegan2 import StyleGAN2
from ilo_lightning.generators.stylegan2_layers import Block, EqualizedLinear, StyledConv, ToRGB


class UsualStyleGAN2(nn.Module):
    """The network of ``generator`` (skip synthesis, no clamp) with a copy of its weights.

    ``forward`` takes a latent point at layer 0 and returns its images ``(B, C, H, W)``.
    """

    def __init__(self, generator: StyleGAN2):
        super().__init__()
        if generator.config["architecture"] != "skip" or generator.config["conv_clamp"] is not None:
            raise ValueError("the reference implements skip synthesis without clamp only")
        self.network = copy.deepcopy(generator).requires_grad_(True)
        for parameter in self.network.parameters():
            parameter.data = parameter.data.contiguous()
        self.fir = self.network.fir[0, 0]

    def forward(self, point: LatentPoint) -> Tensor:
        network, styles = self.network, self.network.codes(point).unbind(dim=1)
        x = network.const.repeat(point.batch_size, 1, 1, 1)
        rgb: Tensor | None = None
        maps = iter(point[f"noise_{i}"] for i in range(network.num_noise_maps))
        for index, module in enumerate(network.blocks):
            block = cast("Block", module)
            first = network.first_style(index)
            if block.up_conv is not None:
                x = styled_conv(x, block.up_conv, styles[first], next(maps), self.fir)
                first += 1
            x = styled_conv(x, block.conv, styles[first], next(maps), None)
            assert block.to_rgb is not None  # skip synthesis
            image = to_rgb(x, block.to_rgb, styles[first + 1])
            rgb = image if rgb is None else upfirdn2d(rgb, self.fir, up=2, padding=(2, 1)) + image
        assert rgb is not None
        return rgb


def styled_conv(x: Tensor, layer: StyledConv, w: Tensor, noise: Tensor, up_fir: Tensor | None) -> Tensor:
    """Modulated and demodulated 3×3 convolution, noise, bias, leaky ReLU; doubles the size if there is a filter."""
    style = affine(layer.affine, w)
    weight = layer.weight[None] * style[:, None, :, None, None]  # (B, out, in, 3, 3)
    weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = grouped_convolution(x, weight, up=up_fir is not None)
    if up_fir is not None:
        x = upfirdn2d(x, up_fir, up=1, padding=(1, 1))
    assert layer.noise_strength is not None
    x = x + layer.noise_strength * noise
    return F.leaky_relu(x + layer.bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


def to_rgb(x: Tensor, layer: ToRGB, w: Tensor) -> Tensor:
    """Modulated 1×1 convolution without demodulation."""
    style = affine(layer.affine, w) / math.sqrt(x.shape[1])
    weight = layer.weight[None] * style[:, None, :, None, None]
    return grouped_convolution(x, weight, up=False) + layer.bias.view(1, -1, 1, 1)


def affine(layer: EqualizedLinear, w: Tensor) -> Tensor:
    return F.linear(w, layer.weight * layer.gain, layer.bias * layer.bias_gain)


def grouped_convolution(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    """Convolve sample b of ``(B, in, H, W)`` with ``weight[b]``, of shape ``(out, in, k, k)``."""
    batch, outputs, inputs, size, _ = weight.shape
    x = x.reshape(1, batch * inputs, *x.shape[2:])
    if up:
        weight = weight.transpose(1, 2).reshape(batch * inputs, outputs, size, size)
        x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
    else:
        x = F.conv2d(x, weight.reshape(batch * outputs, inputs, size, size), padding=size // 2, groups=batch)
    return x.view(batch, outputs, *x.shape[2:])


def upfirdn2d(x: Tensor, kernel: Tensor, up: int, padding: tuple[int, int]) -> Tensor:
    """Insert ``up - 1`` zeros after every pixel, pad, convolve every channel with the ``(n, n)`` kernel."""
    batch, channels, height, width = x.shape
    x = F.pad(x.view(batch, channels, height, 1, width, 1), [0, up - 1, 0, 0, 0, up - 1])
    x = F.pad(x.view(batch, channels, height * up, width * up), [*padding, *padding])
    return F.conv2d(x, kernel.flip((0, 1)).expand(channels, 1, -1, -1), groups=channels)  # faster than plane by plane
