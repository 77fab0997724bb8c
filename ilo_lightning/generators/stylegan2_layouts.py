"""How others name, shape and scale the weights of StyleGAN2, and which of these layouts a state dict has.

Sizes are read off the shapes of tensors; then every tensor that a StyleGAN2 of these sizes has must be there, in the
right shape, and no other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .stored import CheckpointError, StoredTensor
from .stylegan2 import StyleGAN2

State = Mapping[str, StoredTensor]
MAX_BLOCKS = 12
"""8192²; so many up-sampling blocks are no StyleGAN2's."""


@dataclass(frozen=True)
class Layout:
    """A way of storing a StyleGAN2.

    Args:
        title: in messages.
        config: arguments of ``StyleGAN2`` from a state dict in this layout, whatever may be missing.
        names: our name of each tensor -> theirs, for such arguments.
        beside: what else the layout has, which nothing depends on, or ``StyleGAN2`` makes itself.
        mean: their name of the mean of w.
        filters: their names of up-sampling filters.
        raw_weights: whether convolution weights are stored as drawn, and scaled by 1/√(in·k²) at run time; ours are
            not: the scale matters beside the epsilon of the demodulation.
    """

    title: str
    config: Callable[[State], dict[str, Any]]
    names: Callable[[Mapping[str, Any]], dict[str, str]]
    beside: re.Pattern[str]
    mean: str
    filters: re.Pattern[str]
    raw_weights: bool = False


@dataclass(frozen=True)
class Match:
    """How a state dict fits a layout.

    Args:
        config: arguments of the ``StyleGAN2`` that is nearest.
        differences: what is missing, unknown, or of another shape, in words; empty if it fits.
        share: of all names that both have.
    """

    layout: Layout
    config: dict[str, Any]
    differences: tuple[str, ...]
    share: float


def match(state: State, settings: Mapping[str, Any] | None = None) -> Match:
    """The layout that fits a state dict best. ``settings``: arguments of ``StyleGAN2`` that tensors can't tell, from
    the record of a network, which only NVIDIA's have."""
    layouts = LAYOUTS if settings is None else (NVIDIA,)
    return max((_compare(layout, state, settings or {}) for layout in layouts), key=lambda found: found.share)


def _compare(layout: Layout, state: State, settings: Mapping[str, Any]) -> Match:
    config = {**layout.config(state), **settings}
    config["resolution"] = 4 * 2 ** (len(config["channels"]) - 1)
    try:
        with torch.device("meta"):
            ours = {name: tuple(tensor.shape) for name, tensor in StyleGAN2(**config).state_dict().items()}
    except (ValueError, RuntimeError) as error:
        return Match(layout, config, (str(error),), 0.0)
    names = layout.names(config)
    missing = [theirs for theirs in names.values() if theirs not in state]
    known = set(names.values())
    unknown = [name for name in state if name not in known and not layout.beside.fullmatch(name)]
    shapes = [
        f"{theirs} {state[theirs].shape}, expected {ours[name]}"
        for name, theirs in names.items()
        if theirs in state and _core(state[theirs].shape) != _core(ours[name])
    ]
    kinds = [theirs for theirs in names.values() if theirs in state and not state[theirs].dtype.is_floating_point]
    differences = tuple(
        f"{what} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in (
            ("it lacks", missing),
            ("it has unknown", unknown),
            ("it has", shapes),
            ("not floating-point are", kinds),
        )
        if found
    )
    return Match(layout, config, differences, len(known & set(state)) / max(len(known | set(state)), 1))


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its axes of length 1, which layouts add and leave out."""
    return tuple(size for size in shape if size != 1)


def convert(found: Match, state: State) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of ``StyleGAN2``, and its state dict in float32, without statistics.

    Raises:
        CheckpointError: if the weights make no StyleGAN2 of ours.
    """
    layout, config = found.layout, dict(found.config)
    filters = {tuple(fir_taps(state[name].load())) for name in state if layout.filters.fullmatch(name)}
    if len(filters) > 1:
        raise CheckpointError(f"its layers have different up-sampling filters: {sorted(filters)[:2]}")
    if filters:
        config["resample_filter"] = list(filters.pop())
    with torch.device("meta"):
        ours = StyleGAN2(**config).state_dict()
    tensors = {}
    for name, theirs in layout.names(config).items():
        tensor = state[theirs].load().to(torch.float32).reshape(ours[name].shape)
        if layout.raw_weights and re.fullmatch(r"blocks\.\d+\.(up_)?conv\.weight", name):
            tensor = tensor / math.sqrt(tensor[0].numel())
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{theirs} has numbers that are not finite")
        tensors[name] = tensor
    if config.get("label_dim"):
        tensors["label"] = torch.zeros(config["label_dim"])
    return config, tensors


def fir_taps(kernel: Tensor) -> list[float]:
    """The taps, with sum 1, of a separable ``(n, n)`` or ``(n,)`` filter.

    Raises:
        CheckpointError: if it isn't separable.
    """
    kernel = kernel.double()
    taps = (kernel if kernel.ndim == 1 else kernel.sum(dim=0)) / kernel.sum()
    if kernel.ndim == 2 and not torch.allclose(torch.outer(taps, taps), kernel / kernel.sum(), atol=1e-6):
        raise CheckpointError("its up-sampling filter is not the outer product of a row of taps with itself")
    return taps.tolist()


def _size(state: State, name: str, axis: int, default: int) -> int:
    shape = state[name].shape if name in state else ()
    return shape[axis] if -len(shape) <= axis < len(shape) else default


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in state)


def _linear(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


# rosinality's stylegan2-pytorch: blocks after the first are pairs of ``convs`` and one of ``to_rgbs``.


def _rosinality_config(state: State) -> dict[str, Any]:
    blocks = min(1 + _count(state, r"to_rgbs\.(\d+)\.bias"), MAX_BLOCKS)
    style_dim = _size(state, "conv1.conv.modulation.weight", 1, 512)
    return {
        "channels": [
            _size(state, f"convs.{2 * index - 1}.activate.bias" if index else "conv1.activate.bias", 0, 512)
            for index in range(max(blocks, 2))
        ],
        "style_dim": style_dim,
        "mapping_depth": max(_count(state, r"style\.(\d+)\.weight"), 1),
        "mapping_width": _size(state, "style.1.weight", 0, style_dim),
        "latent_dim": _size(state, "style.1.weight", 1, style_dim),
        "colors": math.prod(state["to_rgb1.bias"].shape) if "to_rgb1.bias" in state else 3,
        "constant_noise": "noises.noise_0" in state,
    }


def _rosinality_names(config: Mapping[str, Any]) -> dict[str, str]:
    def styled(ours: str, theirs: str) -> dict[str, str]:
        return {
            f"{ours}.weight": f"{theirs}.conv.weight",
            f"{ours}.noise_strength": f"{theirs}.noise.weight",
            f"{ours}.bias": f"{theirs}.activate.bias",
            **_linear(f"{ours}.affine", f"{theirs}.conv.modulation"),
        }

    blocks = len(config["channels"])
    names = {"const": "input.input"}
    for layer in range(config["mapping_depth"]):
        names |= _linear(f"mapping.layers.{layer}", f"style.{layer + 1}")
    for index in range(blocks):
        if index:
            names |= styled(f"blocks.{index}.up_conv", f"convs.{2 * index - 2}")
        names |= styled(f"blocks.{index}.conv", f"convs.{2 * index - 1}" if index else "conv1")
        to_rgb = f"to_rgbs.{index - 1}" if index else "to_rgb1"
        names |= {
            f"blocks.{index}.to_rgb.weight": f"{to_rgb}.conv.weight",
            f"blocks.{index}.to_rgb.bias": f"{to_rgb}.bias",
            **_linear(f"blocks.{index}.to_rgb.affine", f"{to_rgb}.conv.modulation"),
        }
    if config["constant_noise"]:
        names |= {f"noise_{i}": f"noises.noise_{i}" for i in range(2 * blocks - 1)}
    return names


# NVIDIA's StyleGAN2-ADA in PyTorch: blocks are named by their resolution.


def _nvidia_config(state: State) -> dict[str, Any]:
    sides = {int(found[1]) for name in state if (found := re.match(r"synthesis\.b(\d{1,6})\.conv1\.", name))}
    count = 0
    while 4 * 2**count in sides:
        count += 1
    last = f"synthesis.b{4 * 2 ** (count - 1)}" if count else ""
    style_dim = _size(state, "synthesis.b4.conv1.affine.weight", 1, 512)
    label_features = _size(state, "mapping.embed.weight", 0, 0)
    architecture = "skip" if "synthesis.b4.torgb.weight" in state else "orig"
    noise = "synthesis.b4.conv1.noise_strength" in state
    return {
        "channels": [_size(state, f"synthesis.b{4 * 2**index}.conv1.bias", 0, 512) for index in range(max(count, 2))],
        "style_dim": style_dim,
        "mapping_depth": max(_count(state, r"mapping\.fc(\d+)\.weight"), 1),
        "mapping_width": _size(state, "mapping.fc0.weight", 0, style_dim),
        "latent_dim": _size(state, "mapping.fc0.weight", 1, style_dim + label_features) - label_features,
        "label_dim": _size(state, "mapping.embed.weight", 1, 0),
        "label_features": label_features or None,
        "colors": _size(state, f"{last}.torgb.bias", 0, 3),
        "architecture": "resnet" if f"{last}.skip.weight" in state else architecture,
        "noise": noise,
        "constant_noise": noise,
    }


def _nvidia_names(config: Mapping[str, Any]) -> dict[str, str]:
    names = {"const": "synthesis.b4.const"}
    for layer in range(config["mapping_depth"]):
        names |= _linear(f"mapping.layers.{layer}", f"mapping.fc{layer}")
    if config["label_dim"]:
        names |= _linear("mapping.embed", "mapping.embed")
    last = len(config["channels"]) - 1
    for index in range(last + 1):
        ours, theirs = f"blocks.{index}", f"synthesis.b{4 * 2**index}"
        for layer, part, noise_map in (("up_conv", "conv0", 2 * index - 1), ("conv", "conv1", 2 * index)):
            if part == "conv0" and index == 0:
                continue
            names |= _linear(f"{ours}.{layer}", f"{theirs}.{part}")
            names |= _linear(f"{ours}.{layer}.affine", f"{theirs}.{part}.affine")
            if config["noise"]:
                names[f"{ours}.{layer}.noise_strength"] = f"{theirs}.{part}.noise_strength"
                names[f"noise_{noise_map}"] = f"{theirs}.{part}.noise_const"
        if config["architecture"] == "skip" or index == last:
            names |= _linear(f"{ours}.to_rgb", f"{theirs}.torgb")
            names |= _linear(f"{ours}.to_rgb.affine", f"{theirs}.torgb.affine")
        if config["architecture"] == "resnet" and index:
            names[f"{ours}.shortcut.weight"] = f"{theirs}.skip.weight"
    return names


ROSINALITY = Layout(
    "rosinality's stylegan2-pytorch",
    _rosinality_config,
    _rosinality_names,
    re.compile(r"noises\.noise_\d+|.*\.kernel|latent_avg"),
    "latent_avg",
    re.compile(r"convs\.\d+\.conv\.blur\.kernel|to_rgbs\.\d+\.upsample\.kernel"),
    raw_weights=True,
)
NVIDIA = Layout(
    "NVIDIA's stylegan2-ada-pytorch",
    _nvidia_config,
    _nvidia_names,
    re.compile(r".*\.resample_filter|.*\.noise_(const|strength)|mapping\.w_avg"),
    "mapping.w_avg",
    re.compile(r"synthesis\..*\.resample_filter"),
)
LAYOUTS = (ROSINALITY, NVIDIA)
