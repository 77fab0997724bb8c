"""StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958) as a layered generator, in plain PyTorch.

Layer p ≥ 1 is the state after the ToRGB of block p - 1 (block 0 is 4×4): the activation *and* the RGB image
accumulated so far, the styles and the noise maps still to be used. Written for CPU speed: activations are scaled by the
styles around one shared convolution (the per-sample weights of the paper's eq. 1-3, rearranged), in channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LatentPoint, LayeredGenerator

FIR = (1.0, 3.0, 3.0, 1.0)
SPACES = ("gaussian_w_plus", "w_plus", "w", "z")


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU(0.2) with the variance-preserving gain √2."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def fir_kernel(gain: float) -> Tensor:
    """The separable [1, 3, 3, 1] low-pass filter as a ``(1, 1, 4, 4)`` kernel whose entries sum to ``gain``."""
    taps = torch.tensor(FIR)
    kernel = torch.outer(taps, taps)
    return (kernel * (gain / kernel.sum()))[None, None]


def filter_planes(x: Tensor, kernel: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Filter every channel of ``x`` with the symmetric ``(1, 1, k, k)`` kernel."""
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, -1, -1), padding=padding, stride=stride, groups=channels)


def upsample_rgb(rgb: Tensor, kernel: Tensor) -> Tensor:
    """Double the size of ``(B, 3, H, W)``: zero insertion, then the FIR with gain 4, padding (2, 1)."""
    channels = rgb.shape[1]
    return F.conv_transpose2d(rgb, kernel.expand(channels, 1, -1, -1), stride=2, padding=1, groups=channels)


class EqualizedLinear(nn.Module):
    """Linear layer whose weight is stored with unit variance and scaled by ``lr_multiplier / √in`` at run time."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.gain, self.bias_gain = lr_multiplier / math.sqrt(inputs), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        return F.linear(x * self.gain, self.weight, bias)


class Mapping(nn.Module):
    """z to w: normalise to unit mean square, then ``depth`` equalised layers with leaky ReLU after each."""

    def __init__(self, latent_dim: int, style_dim: int, depth: int, lr_multiplier: float):
        super().__init__()
        widths = [latent_dim, *[style_dim] * depth]
        self.layers = nn.ModuleList(EqualizedLinear(a, b, lr_multiplier=lr_multiplier) for a, b in pairwise(widths))

    def forward(self, z: Tensor) -> Tensor:
        w = z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = leaky_relu(layer(w))
        return w


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias and leaky ReLU; doubles the size first if ``up``."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up = up

    def forward(self, x: Tensor, w: Tensor, noise: Tensor, kernel: Tensor) -> Tensor:
        style = self.affine(w)  # (B, in)
        energy = self.weight.square().sum(dim=(2, 3))  # (out, in)
        demodulation = torch.rsqrt(style.square() @ energy.T + 1e-8)  # (B, out)
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = filter_planes(x, kernel, padding=1)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * demodulation[:, :, None, None]
        return leaky_relu(x + noise * self.noise_strength + self.bias[:, None, None])


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to RGB, without demodulation."""

    def __init__(self, inputs: int, style_dim: int):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) * self.gain
        return F.conv2d(x * style[:, :, None, None], self.weight, self.bias)


class Block(nn.Module):
    """One resolution: up-convolution (not at 4×4), convolution, ToRGB added to the up-sampled RGB so far."""

    def __init__(self, inputs: int, outputs: int, style_dim: int):
        super().__init__()
        self.up_conv = StyledConv(inputs, outputs, style_dim, up=True) if inputs else None
        self.conv = StyledConv(outputs, outputs, style_dim, up=False)
        self.to_rgb = ToRGB(outputs, style_dim)

    def forward(
        self, activation: Tensor, rgb: Tensor | None, styles: Sequence[Tensor], noise: Sequence[Tensor], kernel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Activation and RGB image after this block; ``styles`` and ``noise`` are its own, in order."""
        if self.up_conv is not None:
            activation = self.up_conv(activation, styles[0], noise[0], kernel)
        activation = self.conv(activation, styles[-2], noise[-1], kernel)
        image = self.to_rgb(activation, styles[-1])
        return activation, image if rgb is None else upsample_rgb(rgb, kernel) + image


class StyleGAN2(LayeredGenerator):
    """StyleGAN2 with skip synthesis.

    Args:
        resolution: side of the (square) images, a power of two ≥ 8.
        channels: feature maps at 4², 8², …, ``resolution``².
        style_dim: size of w, and of z.
        mapping_depth: layers of the mapping network.
        mapping_lr_multiplier: scale of its stored weights (0.01 in every published model).

    Latent spaces at layer 0, all as ``latent`` of shape ``(B, K, style_dim)``: ``z`` and ``w`` (K = 1, shared by all
    styles), ``w_plus`` and ``gaussian_w_plus`` (K = ``num_styles``). In the last, the code v stands for
    ``w = leaky_relu_0.2(std · v + mean)`` with the statistics of ``leaky_relu_5(mapping(z))``: approximately N(0, I)
    for w that the mapping produces (Gaussianised W+; PULSE, Menon et al. 2020; ILO).

    Raises:
        ValueError: for shapes that make no StyleGAN2.
    """

    spaces = SPACES
    fir: Tensor
    w_mean: Tensor
    w_std: Tensor
    gaussian_mean: Tensor
    gaussian_std: Tensor

    def __init__(
        self,
        resolution: int,
        channels: Sequence[int],
        style_dim: int = 512,
        mapping_depth: int = 8,
        mapping_lr_multiplier: float = 0.01,
    ):
        super().__init__()
        if resolution < 8 or resolution & (resolution - 1):
            raise ValueError(f"resolution {resolution}: expected a power of two, at least 8")
        blocks = int(math.log2(resolution)) - 1
        if len(channels) != blocks or min(channels) < 1:
            raise ValueError(f"channels {list(channels)}: expected {blocks} positive numbers, for 4² … {resolution}²")
        if style_dim < 1 or mapping_depth < 1:
            raise ValueError(f"style_dim {style_dim} and mapping_depth {mapping_depth} must be at least 1")
        self.resolution, self.channels, self.style_dim = resolution, tuple(channels), style_dim
        self.image_shape = (3, resolution, resolution)
        self.num_layers = blocks
        self.num_styles = 2 * blocks
        self.mapping = Mapping(style_dim, style_dim, mapping_depth, mapping_lr_multiplier)
        self.const = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.blocks = nn.ModuleList(
            Block(inputs, outputs, style_dim) for inputs, outputs in zip([0, *channels], channels, strict=False)
        )
        self.config = {
            "resolution": resolution,
            "channels": list(channels),
            "style_dim": style_dim,
            "mapping_depth": mapping_depth,
            "mapping_lr_multiplier": mapping_lr_multiplier,
        }
        self.register_buffer("fir", fir_kernel(gain=4.0), persistent=False)
        # Statistics of the mapping network's output, set by fit_statistics and stored with the weights.
        self.register_buffer("w_mean", torch.zeros(style_dim))
        self.register_buffer("w_std", torch.ones(()))
        self.register_buffer("gaussian_mean", torch.zeros(style_dim))
        self.register_buffer("gaussian_std", torch.ones(style_dim))

    def noise_shape(self, index: int) -> tuple[int, int, int]:
        """(1, H, W) of noise map ``index``: one map at 4², then two per resolution."""
        side = 4 * 2 ** ((index + 1) // 2)
        return (1, side, side)

    @property
    def num_noise_maps(self) -> int:
        return 2 * self.num_layers - 1

    def sample(self, rngs: Sequence[torch.Generator], space: str | None = None) -> LatentPoint:
        """A random point of each random generator: first z ~ N(0, I), then the noise maps ~ N(0, 1).

        In ``w_plus`` each style is mapped from a z of its own; in ``gaussian_w_plus`` the code is drawn directly.
        """
        space = self.check_space(space)
        styles = self.num_styles if space.endswith("w_plus") else 1
        weight = self.const
        drawn: dict[str, list[Tensor]] = {"latent": []}
        for rng in rngs:
            drawn["latent"].append(torch.randn(styles, self.style_dim, generator=rng, dtype=weight.dtype))
            for index in range(self.num_noise_maps):
                noise = torch.randn(self.noise_shape(index), generator=rng, dtype=weight.dtype)
                drawn.setdefault(f"noise_{index}", []).append(noise)
        tensors = {name: torch.stack(values).to(weight.device) for name, values in drawn.items()}
        if space in ("w", "w_plus"):
            with torch.no_grad():
                tensors["latent"] = self.mapping(tensors["latent"])
        return LatentPoint(0, tensors, space)

    def styles(self, point: LatentPoint) -> Tensor:
        """The w of every style that ``point`` still has to use, ``(B, K, style_dim)``."""
        latent = point["latent"]
        if point.space == "z":
            latent = self.mapping(latent)
        elif point.space == "gaussian_w_plus":
            latent = F.leaky_relu(latent * self.gaussian_std + self.gaussian_mean, 0.2)
        if point.space in ("z", "w"):
            latent = latent.expand(-1, self.num_styles - self.first_style(point.layer), -1)
        return latent

    @staticmethod
    def first_style(layer: int) -> int:
        """Index of the first style that a point at ``layer`` uses."""
        return max(0, 2 * layer - 1)

    @staticmethod
    def first_noise(layer: int) -> int:
        """Index of the first noise map that a point at ``layer`` uses."""
        return max(0, 2 * layer - 1)

    def advance(self, point: LatentPoint, layer: int) -> LatentPoint:
        self.check_layer(point, layer)
        if layer == point.layer:
            return point
        activation, rgb = self._synthesise(point, layer)
        latent = point["latent"]
        if latent.shape[1] > 1:
            latent = latent[:, self.first_style(layer) - self.first_style(point.layer) :]
        noise = {f"noise_{i}": point[f"noise_{i}"] for i in range(self.first_noise(layer), self.num_noise_maps)}
        return LatentPoint(layer, {"activation": activation, "rgb": rgb, "latent": latent, **noise}, point.space)

    def forward(self, point: LatentPoint) -> Tensor:
        return self._synthesise(point, self.num_layers)[1]

    def _synthesise(self, point: LatentPoint, stop: int) -> tuple[Tensor, Tensor]:
        """Run the blocks from the point's layer up to ``stop``: activation and RGB after the last of them."""
        layer = point.layer
        styles = self.styles(point)
        if layer == 0:
            activation, rgb = self.const.expand(point.batch_size, -1, -1, -1), None
        else:
            activation, rgb = point["activation"], point["rgb"]
        activation = activation.contiguous(memory_format=torch.channels_last)
        offset = self.first_style(layer)
        for index in range(layer, stop):
            first = self.first_style(index)
            w = styles[:, first - offset :].unbind(dim=1)[: 2 if index == 0 else 3]
            noise = [point[f"noise_{i}"] for i in range(self.first_noise(index), self.first_noise(index + 1))]
            activation, rgb = self.blocks[index](activation, rgb, w, noise, self.fir)
        assert rgb is not None  # stop > layer
        return activation, rgb

    @torch.no_grad()
    def fit_statistics(self, samples: int = 100_000, batch_size: int = 10_000, seed: int = 0) -> None:
        """Fit the latent statistics on the w of ``samples`` random z: mean and spread of w, and the per-coordinate mean
        and standard deviation of ``leaky_relu_5(w)`` that define ``gaussian_w_plus``. In float64, batched."""
        rng = torch.Generator().manual_seed(seed)
        device = self.const.device
        w_sum = torch.zeros(self.style_dim, dtype=torch.float64, device=device)
        w_square, v_sum, v_square = w_sum.clone(), w_sum.clone(), w_sum.clone()
        for start in range(0, samples, batch_size):
            z = torch.randn(min(batch_size, samples - start), self.style_dim, generator=rng)
            w = self.mapping(z.to(self.const)).double()
            v = F.leaky_relu(w, 5.0)
            w_sum, w_square = w_sum + w.sum(0), w_square + w.square().sum(0)
            v_sum, v_square = v_sum + v.sum(0), v_square + v.square().sum(0)
        w_mean, v_mean = w_sum / samples, v_sum / samples
        self.w_mean.copy_(w_mean)
        self.w_std.copy_((w_square / samples - w_mean.square()).sum().clamp_min(0).sqrt())
        self.gaussian_mean.copy_(v_mean)
        self.gaussian_std.copy_((v_square / samples - v_mean.square()).clamp_min(1e-12).sqrt())
