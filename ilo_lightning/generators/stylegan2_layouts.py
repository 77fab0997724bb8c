"""How others name and scale the weights of StyleGAN2, turned into ours: pure functions on state dicts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]
"""Arguments of ``StyleGAN2``, and its state dict but for the statistics that the file doesn't hold."""


def from_rosinality(state: State, latent_avg: Tensor | None = None) -> Converted:
    """The layout of ``stylegan2-ffhq-config-f.pt`` (``state`` is what it has under ``g_ema``).

    Convolution weights are ``(1, out, in, k, k)`` and scaled by 1/√(in·k²) at run time, which goes into ours: it
    matters beside the epsilon of the demodulation.
    """
    blocks = 1 + _count(state, r"to_rgbs\.(\d+)\.bias")
    depth = _count(state, r"style\.(\d+)\.weight")
    mapping = [state[f"style.{i + 1}.weight"] for i in range(depth)]
    constant_noise = "noises.noise_0" in state
    tensors = {"const": state["input.input"]}
    for i in range(depth):
        tensors |= _linear(f"mapping.layers.{i}", state, f"style.{i + 1}")

    def styled(ours: str, theirs: str) -> dict[str, Tensor]:
        weight = state[f"{theirs}.conv.weight"][0]
        return {
            f"{ours}.weight": weight / math.sqrt(weight[0].numel()),
            f"{ours}.noise_strength": state[f"{theirs}.noise.weight"].reshape(()),
            f"{ours}.bias": state[f"{theirs}.activate.bias"],
            **_linear(f"{ours}.affine", state, f"{theirs}.conv.modulation"),
        }

    def to_rgb(ours: str, theirs: str) -> dict[str, Tensor]:
        return {
            f"{ours}.weight": state[f"{theirs}.conv.weight"][0],
            f"{ours}.bias": state[f"{theirs}.bias"].flatten(),
            **_linear(f"{ours}.affine", state, f"{theirs}.conv.modulation"),
        }

    for index in range(blocks):
        ours = f"blocks.{index}"
        if index:
            tensors |= styled(f"{ours}.up_conv", f"convs.{2 * index - 2}")
        tensors |= styled(f"{ours}.conv", f"convs.{2 * index - 1}" if index else "conv1")
        tensors |= to_rgb(f"{ours}.to_rgb", f"to_rgbs.{index - 1}" if index else "to_rgb1")
    if constant_noise:
        tensors |= {f"noise_{i}": state[f"noises.noise_{i}"][0] for i in range(2 * blocks - 1)}
    if latent_avg is not None:
        tensors["w_mean"] = latent_avg.flatten()
    config = {
        "resolution": 4 * 2 ** (blocks - 1),
        "channels": [tensors[f"blocks.{index}.conv.bias"].numel() for index in range(blocks)],
        "style_dim": state["conv1.conv.modulation.weight"].shape[1],
        "mapping_depth": depth,
        "mapping_width": mapping[0].shape[0],
        "latent_dim": mapping[0].shape[1],
        "colors": state["to_rgb1.bias"].numel(),
        "constant_noise": constant_noise,
    }
    kernel = state.get("convs.0.conv.blur.kernel")
    if kernel is not None:
        config["resample_filter"] = fir_taps(kernel)
    return config, tensors


def from_nvidia(state: State, conv_clamp: float | None = None, mapping_lr_multiplier: float = 0.01) -> Converted:
    """The layout of StyleGAN2-ADA in PyTorch. The keyword arguments are what tensors can't tell."""
    resolutions = sorted({int(match[1]) for name in state if (match := re.match(r"synthesis\.b(\d+)\.", name))})
    depth = _count(state, r"mapping\.fc(\d+)\.weight")
    last = len(resolutions) - 1
    tensors = {"const": state["synthesis.b4.const"][None]}
    for i in range(depth):
        tensors |= _linear(f"mapping.layers.{i}", state, f"mapping.fc{i}")
    embed = state.get("mapping.embed.weight")
    if embed is not None:
        tensors |= _linear("mapping.embed", state, "mapping.embed")
        tensors["label"] = embed.new_zeros(embed.shape[1])
    noise = "synthesis.b4.conv1.noise_strength" in state
    for index, side in enumerate(resolutions):
        theirs, ours = f"synthesis.b{side}", f"blocks.{index}"
        for name, layer in (("conv0", "up_conv"), ("conv1", "conv")):
            if name == "conv0" and index == 0:
                continue
            tensors |= _linear(f"{ours}.{layer}", state, f"{theirs}.{name}")
            tensors |= _linear(f"{ours}.{layer}.affine", state, f"{theirs}.{name}.affine")
            if noise:
                tensors[f"{ours}.{layer}.noise_strength"] = state[f"{theirs}.{name}.noise_strength"].reshape(())
                map_index = max(0, 2 * index - 1) + (name == "conv1" and index > 0)
                tensors[f"noise_{map_index}"] = state[f"{theirs}.{name}.noise_const"][None]
        if f"{theirs}.torgb.weight" in state:
            tensors |= _linear(f"{ours}.to_rgb", state, f"{theirs}.torgb")
            tensors |= _linear(f"{ours}.to_rgb.affine", state, f"{theirs}.torgb.affine")
        if f"{theirs}.skip.weight" in state:
            tensors[f"{ours}.shortcut.weight"] = state[f"{theirs}.skip.weight"]
    if "mapping.w_avg" in state:
        tensors["w_mean"] = state["mapping.w_avg"]
    label_features = 0 if embed is None else embed.shape[0]
    config = {
        "resolution": resolutions[-1],
        "channels": [tensors[f"blocks.{index}.conv.bias"].numel() for index in range(last + 1)],
        "style_dim": state["synthesis.b4.conv1.affine.weight"].shape[1],
        "mapping_depth": depth,
        "mapping_lr_multiplier": mapping_lr_multiplier,
        "mapping_width": state["mapping.fc0.weight"].shape[0],
        "latent_dim": state["mapping.fc0.weight"].shape[1] - label_features,
        "label_dim": 0 if embed is None else embed.shape[1],
        "label_features": label_features or None,
        "colors": state[f"synthesis.b{resolutions[-1]}.torgb.bias"].numel(),
        "architecture": _nvidia_architecture(state, resolutions),
        "noise": noise,
        "constant_noise": noise,
        "conv_clamp": conv_clamp,
    }
    kernel = state.get(f"synthesis.b{resolutions[-1]}.resample_filter")
    if kernel is not None:
        config["resample_filter"] = fir_taps(kernel)
    return config, tensors


def _nvidia_architecture(state: State, resolutions: list[int]) -> str:
    if f"synthesis.b{resolutions[-1]}.skip.weight" in state:
        return "resnet"
    return "skip" if "synthesis.b4.torgb.weight" in state else "orig"


def fir_taps(kernel: Tensor) -> list[float]:
    """The taps, with sum 1, of a separable ``(n, n)`` or ``(n,)`` filter.

    Raises:
        ValueError: if it isn't separable.
    """
    kernel = kernel.double()
    taps = (kernel if kernel.ndim == 1 else kernel.sum(dim=0)) / kernel.sum()
    if kernel.ndim == 2 and not torch.allclose(torch.outer(taps, taps), kernel / kernel.sum(), atol=1e-6):
        raise ValueError("its up-sampling filter is not the outer product of a row of taps with itself")
    return taps.tolist()


def _linear(ours: str, state: State, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}.{part}": state[f"{theirs}.{part}"] for part in ("weight", "bias")}


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in state)
