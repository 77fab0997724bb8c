"""The layers of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958) in plain PyTorch.

Written for CPU speed: activations are scaled by the styles around one shared convolution (the per-sample weights of the
paper's eq. 1-3, rearranged), in channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import bias_act, upfirdn2d
from ..ops.implementation import compiled
from ..precision import is_mixed
from .frozen_convolution import FrozenLayer, freeze, styled_convolution, wants_winograd

FIR = (1.0, 3.0, 3.0, 1.0)
ARCHITECTURES = ("skip", "resnet", "orig")


def leaky_relu(x: Tensor, gain: float = 1.0) -> Tensor:
    """Leaky ReLU(0.2) with the variance-preserving gain √2, times ``gain``."""
    return F.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)


def normalize(x: Tensor) -> Tensor:
    """``x`` with unit mean square over its last axis."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)


def fir_kernel(gain: float, taps: Sequence[float] = FIR) -> Tensor:
    """The separable low-pass filter ``taps`` ⊗ ``taps`` as a ``(1, 1, n, n)`` kernel whose entries sum to ``gain``."""
    scale = gain / sum(taps) ** 2
    return torch.tensor([[[[scale * a * b for a in taps] for b in taps]]], dtype=torch.float32)


def normal_parameter(*shape: int, std: float = 1.0) -> nn.Parameter:
    """A weight as drawn before training. No arithmetic on the meta device: its first operation takes a second."""
    weight = nn.Parameter(torch.empty(shape))
    return weight if weight.is_meta else nn.init.normal_(weight, std=std)  # type: ignore[return-value]


def filter_planes(x: Tensor, kernel: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Correlate every channel of ``x`` with the ``(1, 1, k, k)`` kernel."""
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, -1, -1), padding=padding, stride=stride, groups=channels)


def upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Double the size of ``(B, C, H, W)``: zero insertion, then convolution with the ``(1, 1, n, n)`` FIR kernel, whose
    entries sum to 4; padding (⌊(n + 1)/2⌋, ⌊n/2⌋ - 1)."""
    channels, height, width = x.shape[1:]
    taps = kernel.shape[-1]
    padding = taps // 2 - 1
    if compiled(x):
        return upfirdn2d(x, kernel.sum(dim=(0, 1, 2)).div(2).tolist(), up=2, padding=((taps + 1) // 2, padding))
    x = F.conv_transpose2d(x, kernel.expand(channels, 1, -1, -1), stride=2, padding=padding, groups=channels)
    return x[:, :, : 2 * height, : 2 * width]  # all of it, unless n is odd


class EqualizedLinear(nn.Module):
    """Linear layer whose weight is stored with unit variance and scaled by ``lr_multiplier / √in`` at run time."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = normal_parameter(outputs, inputs, std=1 / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.gain, self.bias_gain = lr_multiplier / math.sqrt(inputs), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.addmm(self.bias, rows, self.weight.T, beta=self.bias_gain, alpha=self.gain)
        return y.view(*x.shape[:-1], -1)


class Mapping(nn.Module):
    """z, and the label if there are labels, to w: each normalised to unit mean square, then equalised layers with leaky
    ReLU after each.

    Args:
        latent_dim: size of z.
        widths: of the layers' outputs; the last is the size of w.
        label_dim: size of a label; 0: no labels.
        label_features: size of a label's embedding, which is appended to z.
    """

    def __init__(
        self,
        latent_dim: int,
        widths: Sequence[int],
        lr_multiplier: float = 0.01,
        label_dim: int = 0,
        label_features: int = 0,
    ):
        super().__init__()
        self.embed = EqualizedLinear(label_dim, label_features) if label_dim else None
        widths = [latent_dim + (label_features if label_dim else 0), *widths]
        self.layers = nn.ModuleList(EqualizedLinear(a, b, lr_multiplier=lr_multiplier) for a, b in pairwise(widths))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """w of ``z``, ``(…, latent_dim)``, under labels that broadcast to ``(…, label_dim)``."""
        w = normalize(z)
        if self.embed is not None:
            assert label is not None, "this mapping network is conditional"
            embedding = normalize(self.embed(label))
            w = torch.cat([w, embedding.expand(*w.shape[:-1], -1)], dim=-1)
        for layer in self.layers:
            w = bias_act(layer(w), dim=-1)
        return w


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias, leaky ReLU times ``gain``, and clamp; doubles the size first if ``up``.
    ``affine`` gives from w the style, ``(B, inputs)``, that it is called with.

    Args:
        noise: whether a noise map is added.
        clamp: bound on the activation, for ``gain`` 1; None: none.
    """

    _frozen: tuple[tuple, FrozenLayer, list[Tensor]] | None = None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style_dim: int,
        up: bool,
        noise: bool = True,
        gain: float = 1.0,
        clamp: float | None = None,
    ):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, inputs, bias=1.0)
        self.weight = normal_parameter(outputs, inputs, 3, 3)
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up, self.gain, self.clamp = up, gain, None if clamp is None else clamp * gain

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None, kernel: Tensor) -> Tensor:
        if not any(weight.requires_grad for weight in self._weights()) and not is_mixed(x.device):
            return styled_convolution(x, style, noise, self._freeze(x), kernel)
        height, width = x.shape[2:]
        energy = self.weight.square().sum(dim=(2, 3))  # (out, in)
        demodulation = torch.rsqrt(style.square() @ energy.T + 1e-8)  # (B, out)
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = filter_planes(x, kernel.flip((2, 3)), padding=(kernel.shape[-1] - 1) // 2)
            x = x[:, :, : 2 * height, : 2 * width]  # all of it, unless the FIR's length is odd
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * demodulation[:, :, None, None]
        if self.noise_strength is not None and noise is not None:
            x = x + noise * self.noise_strength
        x = leaky_relu(x + self.bias[:, None, None], self.gain)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def _weights(self) -> list[nn.Parameter]:
        weights = [self.weight, self.bias, self.noise_strength]
        return [weight for weight in weights if weight is not None]

    def _freeze(self, x: Tensor) -> FrozenLayer:
        """The layer prepared for inputs like ``x``; kept until a weight is changed, moved or replaced."""
        outputs, inputs = self.weight.shape[:2]
        fast = not self.up and wants_winograd(inputs, outputs, x)
        key = (fast, *map(_state, self._weights()))
        if self._frozen is None or self._frozen[0] != key:
            gain = math.sqrt(2) * self.gain
            layer = freeze(self.weight, self.bias, self.noise_strength, gain, self.clamp, self.up, fast)
            # Held, so that no other weight can come to lie where these do.
            held = [tensor for weight in self._weights() for tensor in (weight, weight.detach())]
            self._frozen = key, layer, held
        return self._frozen[1]

    def __getstate__(self) -> dict:
        """Without what is derived, so that copies and pickles are no larger than the weights."""
        return {name: value for name, value in self.__dict__.items() if name != "_frozen"}


def _state(weight: Tensor) -> tuple:
    """Differs whenever the values may differ."""
    version = None if weight.is_inference() else weight._version  # tensors of inference mode have none
    return id(weight), weight.data_ptr(), version, weight.dtype, weight.device


class _PixelProduct(torch.autograd.Function):
    """Every pixel of ``(B, C, H, W)`` times its image's matrix, ``(B, K, C)``; all results in channels_last. The
    gradients that torch has for the same product take twenty times as long: the operands lie in the wrong order."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        pixels = torch.bmm(x.flatten(2).transpose(1, 2), weight.transpose(1, 2))
        return pixels.transpose(1, 2).unflatten(2, x.shape[2:])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return (
            _PixelProduct.apply(grad, weight.transpose(1, 2)) if for_x else None,
            torch.bmm(grad.flatten(2), x.flatten(2).transpose(1, 2)) if for_weight else None,
        )


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to ``colors`` channels, without demodulation, and clamp. ``affine`` gives from w the
    style, ``(B, inputs)``, that it is called with."""

    def __init__(self, inputs: int, style_dim: int, colors: int = 3, clamp: float | None = None):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, inputs, bias=1.0)
        self.weight = normal_parameter(colors, inputs, 1, 1)
        self.bias = nn.Parameter(torch.zeros(colors))
        self.gain, self.clamp = 1 / math.sqrt(inputs), clamp

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.weight.flatten(1) * (style * self.gain)[:, None, :]  # (B, colors, in): three colours are cheap
        if is_mixed(x.device):
            x = torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])
        else:
            x = _PixelProduct.apply(x, weight)
        x = x + self.bias[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class Shortcut(nn.Module):
    """1×1 convolution to the next resolution, times ``gain``; no style, no bias."""

    def __init__(self, inputs: int, outputs: int, gain: float):
        super().__init__()
        self.weight = normal_parameter(outputs, inputs, 1, 1)
        self.gain = gain / math.sqrt(inputs)

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return upsample(F.conv2d(x, self.weight * self.gain), kernel)


class Block(nn.Module):
    """One resolution: up-convolution (not at 4×4), convolution, ToRGB.

    Args:
        inputs: channels that come in; 0 at 4×4.
        architecture: ``skip``: RGB images are summed over the resolutions; ``resnet``: activations are, by a shortcut
            around each block with a gain of √½ on both ways; ``orig``: neither.
        colors: of the ToRGB; 0: this block has none.
        noise, clamp: of the layers.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style_dim: int,
        architecture: str = "skip",
        colors: int = 3,
        noise: bool = True,
        clamp: float | None = None,
    ):
        super().__init__()
        residual = architecture == "resnet" and inputs > 0
        gain = math.sqrt(0.5) if residual else 1.0
        self.up_conv = StyledConv(inputs, outputs, style_dim, True, noise, clamp=clamp) if inputs else None
        self.conv = StyledConv(outputs, outputs, style_dim, False, noise, gain, clamp)
        self.shortcut = Shortcut(inputs, outputs, gain) if residual else None
        self.to_rgb = ToRGB(outputs, style_dim, colors, clamp) if colors else None

    def styles(self, w: Sequence[Tensor]) -> list[Tensor | None]:
        """Scales of the filters of up-convolution, convolution and ToRGB, ``(B, C_in)``; None for a layer that there
        isn't. ``w``: ``(B, style_dim)`` of each, beginning with the first that there is."""
        up = [] if self.up_conv is None else [self.up_conv.affine(w[0])]
        rgb = None if self.to_rgb is None else self.to_rgb.affine(w[len(up) + 1])
        return [*(up or [None]), self.conv.affine(w[len(up)]), rgb]

    def forward(
        self,
        activation: Tensor,
        rgb: Tensor | None,
        styles: Sequence[Tensor | None],
        noise: Sequence[Tensor | None],
        kernel: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Activation and RGB image after this block. ``styles`` are those that ``self.styles`` gives, ``noise`` its own
        maps in order."""
        straight = None if self.shortcut is None else self.shortcut(activation, kernel)
        up_style, style, rgb_style = styles
        if self.up_conv is not None:
            assert up_style is not None
            activation = self.up_conv(activation, up_style, noise[0], kernel)
        assert style is not None
        activation = self.conv(activation, style, noise[-1], kernel)
        if straight is not None:
            activation = activation + straight
        if self.to_rgb is not None:
            assert rgb_style is not None
            image = self.to_rgb(activation, rgb_style)
            rgb = image if rgb is None else upsample(rgb, kernel) + image
        return activation, rgb
