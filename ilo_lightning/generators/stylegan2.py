"""StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958) as a layered generator.

Layer p ≥ 1 is the state after block p - 1 (block 0 is 4×4): the activation, with skip synthesis also the RGB image
accumulated so far, the styles and the noise maps still to be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import LatentPoint, LayeredGenerator, index_of
from .stylegan2_layers import ARCHITECTURES, FIR, Block, Mapping, fir_kernel, normal_parameter

SPACES = ("gaussian_w_plus", "w_plus", "w", "z", "styles")
LARGER = {"z": ("w", "w_plus", "styles"), "w": ("w_plus", "styles"), "gaussian_w_plus": ("w_plus", "styles"),
          "w_plus": ("styles",), "styles": ()}  # fmt: skip
"""The spaces in which a code of each space can be written."""


class StyleGAN2(LayeredGenerator):
    """StyleGAN2.

    Args:
        resolution: side of the (square) images, a power of two ≥ 8.
        channels: feature maps at 4², 8², …, ``resolution``².
        style_dim: size of w.
        mapping_depth: layers of the mapping network.
        mapping_lr_multiplier: scale of its stored weights (0.01 in every published model).
        mapping_width: outputs of its layers but the last; None: ``style_dim``.
        latent_dim: size of z; None: ``style_dim``.
        label_dim: size of a label, which is one-hot for classes; 0: no labels. The one in use is the buffer ``label``.
        label_features: size of the embedding that is appended to z; None: ``style_dim``.
        colors: channels of the images.
        architecture: ``skip``, ``resnet`` or ``orig``, see ``Block``.
        noise: whether the layers add noise maps.
        constant_noise: whether there are fixed noise maps, in the buffers ``noise_0`` … (see ``constant_noise``).
        conv_clamp: bound on every activation and ToRGB output; None: none.
        resample_filter: 2 to 64 taps of the separable up-sampling filter.

    Latent spaces at layer 0, all as ``latent`` of shape ``(B, K, D)``: ``z`` (D = ``latent_dim``) and ``w`` (K = 1,
    shared by all styles), ``w_plus`` and ``gaussian_w_plus`` (K = ``num_styles``). In the last, the code v stands for
    ``w = leaky_relu_0.2(std · v + mean)`` with the statistics of ``leaky_relu_5(mapping(z))``: approximately N(0, I)
    for w that the mapping produces (Gaussianised W+; PULSE, Menon et al. 2020; ILO).

    Raises:
        ValueError: for shapes that make no StyleGAN2.
    """

    spaces = SPACES
    recompute = False
    """Whether a backward pass computes the activations of each block again instead of keeping them: less memory, more
    time."""
    fir: Tensor
    label: Tensor | None
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
        mapping_width: int | None = None,
        latent_dim: int | None = None,
        label_dim: int = 0,
        label_features: int | None = None,
        colors: int = 3,
        architecture: str = "skip",
        noise: bool = True,
        constant_noise: bool = False,
        conv_clamp: float | None = None,
        resample_filter: Sequence[float] = FIR,
    ):
        super().__init__()
        mapping_width, latent_dim, label_features = (
            style_dim if size is None else size for size in (mapping_width, latent_dim, label_features)
        )
        self.config = {
            "resolution": resolution,
            "channels": list(channels),
            "style_dim": style_dim,
            "mapping_depth": mapping_depth,
            "mapping_lr_multiplier": mapping_lr_multiplier,
            "mapping_width": mapping_width,
            "latent_dim": latent_dim,
            "label_dim": label_dim,
            "label_features": label_features,
            "colors": colors,
            "architecture": architecture,
            "noise": noise,
            "constant_noise": constant_noise,
            "conv_clamp": conv_clamp,
            "resample_filter": list(resample_filter),
        }
        if resolution < 8 or resolution & (resolution - 1):
            raise ValueError(f"resolution {resolution}: expected a power of two, at least 8")
        blocks = int(math.log2(resolution)) - 1
        if len(channels) != blocks or min(channels) < 1:
            raise ValueError(f"channels {list(channels)}: expected {blocks} positive numbers, for 4² … {resolution}²")
        for name in ("style_dim", "mapping_depth", "mapping_width", "latent_dim", "label_features", "colors"):
            if self.config[name] < 1:
                raise ValueError(f"{name} {self.config[name]}: must be at least 1")
        if label_dim < 0:
            raise ValueError(f"label_dim {label_dim}: must be at least 0")
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
        if not (mapping_lr_multiplier > 0 and (conv_clamp is None or conv_clamp > 0)):
            raise ValueError(f"mapping_lr_multiplier {mapping_lr_multiplier} and conv_clamp {conv_clamp}: must be > 0")
        if not 2 <= len(resample_filter) <= 64 or not sum(resample_filter):
            raise ValueError(f"resample_filter {list(resample_filter)[:8]}: expected 2 to 64 taps, sum not 0")
        self.resolution, self.channels = resolution, tuple(channels)
        self.style_dim, self.latent_dim = style_dim, latent_dim
        self.image_shape = (colors, resolution, resolution)
        self.num_layers = blocks
        self.num_styles = 2 * blocks
        self.num_noise_maps = 2 * blocks - 1 if noise else 0
        widths = [*[mapping_width] * (mapping_depth - 1), style_dim]
        self.mapping = Mapping(latent_dim, widths, mapping_lr_multiplier, label_dim, label_features)
        self.const = normal_parameter(1, channels[0], 4, 4)
        self.blocks = nn.ModuleList(
            Block(
                inputs,
                outputs,
                style_dim,
                architecture,
                colors if architecture == "skip" or index == blocks - 1 else 0,
                noise,
                conv_clamp,
            )
            for index, (inputs, outputs) in enumerate(zip([0, *channels], channels, strict=False))
        )
        self.register_buffer("fir", fir_kernel(4.0, resample_filter), persistent=False)
        self.register_buffer("label", torch.zeros(label_dim) if label_dim else None)
        for index in range(self.num_noise_maps if constant_noise else 0):
            self.register_buffer(f"noise_{index}", torch.zeros(self.noise_shape(index)))
        # Statistics of the mapping network's output, set by fit_statistics and stored with the weights.
        self.register_buffer("w_mean", torch.zeros(style_dim))
        self.register_buffer("w_std", torch.ones(()))
        self.register_buffer("gaussian_mean", torch.zeros(style_dim))
        self.register_buffer("gaussian_std", torch.ones(style_dim))

    def noise_shape(self, index: int) -> tuple[int, int, int]:
        """(1, H, W) of noise map ``index``: one map at 4², then two per resolution."""
        side = 4 * 2 ** ((index + 1) // 2)
        return (1, side, side)

    def constant_noise(self, batch_size: int = 1) -> dict[str, Tensor]:
        """The checkpoint's fixed noise maps as tensors of a point; none if it has none."""
        names = [f"noise_{i}" for i in range(self.num_noise_maps)] if self.config["constant_noise"] else []
        return {name: self.get_buffer(name).repeat(batch_size, 1, 1, 1) for name in names}

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """``w`` moved towards its mean: ``w_mean + psi · (w - w_mean)`` (the truncation trick)."""
        return self.w_mean + psi * (w - self.w_mean)

    def sample(self, rngs: Sequence[torch.Generator], space: str | None = None) -> LatentPoint:
        """A random point of each random generator: first z ~ N(0, I), then the noise maps ~ N(0, 1).

        In ``w_plus`` each style is mapped from a z of its own; in ``gaussian_w_plus`` the code is drawn directly.
        """
        space = self.check_space(space)
        if space == "styles":
            with torch.no_grad():
                return self.convert(self.sample(rngs, "z"), space)
        styles = self.num_styles if space.endswith("w_plus") else 1
        size = self.style_dim if space == "gaussian_w_plus" else self.latent_dim
        weight = self.const
        drawn: dict[str, list[Tensor]] = {"latent": []}
        for rng in rngs:
            drawn["latent"].append(torch.randn(styles, size, generator=rng, dtype=weight.dtype))
            for index in range(self.num_noise_maps):
                noise = torch.randn(self.noise_shape(index), generator=rng, dtype=weight.dtype)
                drawn.setdefault(f"noise_{index}", []).append(noise)
        tensors = {name: torch.stack(values).to(weight.device) for name, values in drawn.items()}
        if space in ("w", "w_plus"):
            with torch.no_grad():
                tensors["latent"] = self.mapping(tensors["latent"], self.label)
        return LatentPoint(0, tensors, space)

    def codes(self, point: LatentPoint) -> Tensor:
        """The w of every style that ``point`` still has to use, ``(B, K, style_dim)``."""
        if point.space == "styles":
            raise ValueError("there is no w in space styles")
        latent = point["latent"]
        if point.space == "z":
            latent = self.mapping(latent, self.label)
        elif point.space == "gaussian_w_plus":
            latent = F.leaky_relu(latent * self.gaussian_std + self.gaussian_mean, 0.2)
        if point.space in ("z", "w"):
            latent = latent.expand(-1, self.num_styles - self.first_style(point.layer), -1)
        return latent

    def styles(self, point: LatentPoint, stop: int | None = None) -> list[list[Tensor | None]]:
        """The scales of the filters ``(B, C_in)`` of each block from the point's layer up to ``stop``."""
        layer, stop = point.layer, self.num_layers if stop is None else stop
        if point.space == "styles":
            return [[point.tensors.get(f"style_{3 * i + j}") for j in range(3)] for i in range(layer, stop)]
        codes, offset = self.codes(point).unbind(dim=1), self.first_style(layer)
        blocks = [cast(Block, self.blocks[i]) for i in range(layer, stop)]
        return [block.styles(codes[self.first_style(layer + i) - offset :]) for i, block in enumerate(blocks)]

    def convert(self, point: LatentPoint, space: str) -> LatentPoint:
        if space == point.space:
            return point
        if space not in LARGER[point.space]:
            raise ValueError(
                f"a code in {point.space} can't be written in space {space!r}; "
                f"it can in {', '.join(LARGER[point.space]) or 'no other'}"
            )
        others = {name: tensor for name, tensor in point.tensors.items() if name != "latent"}
        if space == "styles":
            named = {
                f"style_{3 * (point.layer + i) + j}": style
                for i, block in enumerate(self.styles(point))
                for j, style in enumerate(block)
                if style is not None
            }
            return LatentPoint(point.layer, {**named, **others}, space)
        latent = self.mapping(point["latent"], self.label) if space == "w" else self.codes(point)
        return LatentPoint(point.layer, {"latent": latent.contiguous(), **others}, space)

    def mean(self, point: LatentPoint) -> LatentPoint:
        if point.space == "styles":
            mean = LatentPoint(0, {"latent": self.w_mean.expand(point.batch_size, 1, -1)}, "w")
            return point.update({n: t.clone() for n, t in self.convert(mean, "styles").tensors.items()})
        if point.space in ("w", "w_plus"):
            return point.update({"latent": self.w_mean.expand_as(point["latent"]).clone()})
        return super().mean(point)

    def spread(self, space: str) -> float:
        return float(self.w_std) if space in ("w", "w_plus") else 1.0

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
        tensors = {"activation": activation} if rgb is None else {"activation": activation, "rgb": rgb}
        if point.space == "styles":
            tensors |= {
                name: tensor
                for name, tensor in point.tensors.items()
                if name.startswith("style_") and (index_of(name) or 0) >= 3 * layer
            }
        else:
            latent = point["latent"]
            if latent.shape[1] > 1:
                latent = latent[:, self.first_style(layer) - self.first_style(point.layer) :]
            tensors["latent"] = latent
        noise = {f"noise_{i}": point[f"noise_{i}"] for i in range(self.first_noise(layer), self.num_noise_maps)}
        return LatentPoint(layer, {**tensors, **noise}, point.space)

    def forward(self, point: LatentPoint) -> Tensor:
        image = self._synthesise(point, self.num_layers)[1]
        assert image is not None  # the last block has a ToRGB
        return image

    def _synthesise(self, point: LatentPoint, stop: int) -> tuple[Tensor, Tensor | None]:
        """Run the blocks from the point's layer up to ``stop``: activation and RGB, if any, after the last of them."""
        layer = point.layer
        styles = self.styles(point, stop)
        activation = self.const.expand(point.batch_size, -1, -1, -1) if layer == 0 else point["activation"]
        rgb = point.tensors.get("rgb")
        # Both, so that a point read from a file is rounded as the one that was saved.
        activation = activation.contiguous(memory_format=torch.channels_last)
        rgb = None if rgb is None else rgb.contiguous(memory_format=torch.channels_last)
        for index in range(layer, stop):
            noise = [
                point.tensors.get(f"noise_{i}") for i in range(self.first_noise(index), self.first_noise(index + 1))
            ]
            arguments = (activation, rgb, styles[index - layer], noise, self.fir)
            if self.recompute and torch.is_grad_enabled():
                activation, rgb = checkpoint(
                    self.blocks[index], *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                activation, rgb = self.blocks[index](*arguments)
        return activation, rgb

    @torch.no_grad()
    def fit_statistics(
        self,
        samples: int = 100_000,
        batch_size: int = 5_000,
        seed: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Fit the latent statistics on the w of ``samples`` random z: mean and spread of w, and the per-coordinate mean
        and standard deviation of ``leaky_relu_5(w)`` that define ``gaussian_w_plus``. In float64, batched; ``progress``
        is told how many samples are done."""
        rng = torch.Generator().manual_seed(seed)
        device = self.const.device
        w_sum = torch.zeros(self.style_dim, dtype=torch.float64, device=device)
        w_square, v_sum, v_square = w_sum.clone(), w_sum.clone(), w_sum.clone()
        for start in range(0, samples, batch_size):
            z = torch.randn(min(batch_size, samples - start), self.latent_dim, generator=rng)
            w = self.mapping(z.to(self.const), self.label).double()
            v = F.leaky_relu(w, 5.0)
            w_sum, w_square = w_sum + w.sum(0), w_square + w.square().sum(0)
            v_sum, v_square = v_sum + v.sum(0), v_square + v.square().sum(0)
            progress(start + len(z))
        w_mean, v_mean = w_sum / samples, v_sum / samples
        self.w_mean.copy_(w_mean)
        self.w_std.copy_((w_square / samples - w_mean.square()).sum().clamp_min(0).sqrt())
        self.gaussian_mean.copy_(v_mean)
        self.gaussian_std.copy_((v_square / samples - v_mean.square()).clamp_min(1e-12).sqrt())
