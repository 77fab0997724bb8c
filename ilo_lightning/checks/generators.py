"""The laws of a layered generator."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..generators.base import LatentPoint, LayeredGenerator
from ..randomness import generator_for
from ..rehearsal import check_generator_attributes
from ..solution import Solution
from .laws import LawBroken, Verdict, check, command, expect_below

TOLERANCE = 1e-4
"""Of the images' standard deviation, for generators in float32."""
COUNT = 2


def main(arguments: Sequence[str]) -> int:
    """``ilo check-generator``."""

    def examine(make: Callable[..., Any], given: Mapping[Any, Any]) -> list[Verdict]:
        return check_generator(make())

    return command(arguments, "check-generator", "generator", lambda config: config.generator, examine)


def check_generator(generator: LayeredGenerator) -> list[Verdict]:
    """The verdicts on a generator, in each of its latent spaces.

    Raises:
        RehearsalError: if it is no LayeredGenerator, or doesn't say what its images, layers and spaces are.
    """
    check_generator_attributes(generator)
    laws: dict[str, Callable[[], str]] = {"frozen": partial(frozen, generator), "images": partial(images, generator)}
    for space in generator.spaces:
        note = f" in {space}" if len(generator.spaces) > 1 else ""
        laws |= {
            f"continuity{note}": partial(continuity, generator, space),
            f"randomness{note}": partial(randomness, generator, space),
            f"batch = one at a time{note}": partial(batch, generator, space),
            f"gradients{note}": partial(gradients, generator, space),
            f"save and load{note}": partial(save_and_load, generator, space),
        }
    laws |= {"layers": partial(layers, generator), "weights": partial(weights, generator)}
    return check(laws)


def _sample(generator: LayeredGenerator, space: str | None = None, count: int = COUNT) -> LatentPoint:
    rngs = [generator_for("check-generator", index) for index in range(count)]
    with torch.no_grad():
        return generator.sample(rngs, space)


@torch.no_grad()
def _points(generator: LayeredGenerator, space: str | None) -> list[LatentPoint]:
    """The same images, entered at every layer."""
    start = _sample(generator, space)
    return [generator.advance(start, layer) for layer in range(generator.num_layers)]


def _difference(image: Tensor, reference: Tensor) -> float:
    """Largest deviation, in standard deviations of the reference."""
    return float((image - reference).abs().max() / reference.std().clamp_min(1e-12))


def frozen(generator: LayeredGenerator) -> str:
    """Eval mode, and no gradients to weights: only the point is optimised."""
    if any(module.training for module in generator.modules()):
        raise LawBroken("in training mode, where batch norm and dropout depend on the batch; call .eval()")
    trainable = [name for name, parameter in generator.named_parameters() if parameter.requires_grad]
    if trainable:
        raise LawBroken(f"weights want gradients ({trainable[0]} …); call .requires_grad_(False)")
    return "in eval mode, without gradients to weights"


@torch.no_grad()
def images(generator: LayeredGenerator) -> str:
    """``(B, *image_shape)``, finite, different from each other, within reach of [-1, 1]."""
    found = generator(_sample(generator))
    if tuple(found.shape) != (COUNT, *generator.image_shape):
        raise LawBroken(f"gives {tuple(found.shape)}, but image_shape says {generator.image_shape}")
    if not bool(found.isfinite().all()):
        raise LawBroken("gives values that are not finite")
    if torch.equal(found[0], found[1]):
        raise LawBroken("two random points give the same image; does the latent code reach the output?")
    low, high = float(found.min()), float(found.max())
    if low < -3 or high > 3:
        raise LawBroken(f"values from {low:.3g} to {high:.3g}, expected about [-1, 1]; map its output range to that")
    if low >= 0:
        raise LawBroken(f"values from {low:.3g} to {high:.3g}: in [0, 1]? map them to [-1, 1]")
    return f"{generator.image_shape}, values from {low:.2g} to {high:.2g}"


@torch.no_grad()
def continuity(generator: LayeredGenerator, space: str) -> str:
    """forward(advance(point, k)) = forward(point): from layer 0 to each, and from each to each deeper one."""
    points = _points(generator, space)
    reference, worst = generator(points[0]), 0.0
    for first, point in enumerate(points):
        for last in range(first, len(points)):
            deeper = generator.advance(point, last)
            if deeper.layer != last or deeper.space != space:
                raise LawBroken(
                    f"advance(point, {last}) gives a point at layer {deeper.layer} in {deeper.space!r}, expected layer "
                    f"{last} in {space!r}"
                )
            difference = _difference(generator(deeper), reference)
            hint = f"advancing from layer {first} to {last} changes the image; does the point carry all that is needed?"
            expect_below(difference, TOLERANCE, "difference", hint)
            worst = max(worst, difference)
    return f"{len(points)} layers, largest difference {worst:.1g} standard deviations"


def randomness(generator: LayeredGenerator, space: str) -> str:
    """Every image comes from its own random generator alone."""
    together, alone = _sample(generator, space, 3), _sample(generator, space, 1)
    if together.batch_size != 3:
        raise LawBroken(f"3 random generators give a batch of {together.batch_size}")
    for name, tensor in together.tensors.items():
        # A mapping network may round a batch otherwise than one code; another draw differs far more.
        hint = f"the first image's {name} depends on how many are drawn; draw image by image"
        expect_below(_difference(tensor[:1], alone[name]), TOLERANCE, "difference", hint)
    if not all(torch.equal(tensor, _sample(generator, space, 3)[name]) for name, tensor in together.tensors.items()):
        raise LawBroken("the same seeds give another point; draw from the given random generators only")
    return "one random generator per image"


@torch.no_grad()
def batch(generator: LayeredGenerator, space: str) -> str:
    """No image influences another, from any layer."""
    worst = 0.0
    for point in _points(generator, space):
        together = generator(point)
        alone = torch.cat([generator(point.select([index])) for index in range(COUNT)])
        hint = f"from layer {point.layer} on, images of a batch influence each other (batch norm in training mode?)"
        worst = max(worst, _difference(together, alone))
        expect_below(worst, TOLERANCE, "difference", hint)
    return f"largest difference {worst:.1g} standard deviations"


def gradients(generator: LayeredGenerator, space: str) -> str:
    """Finite and not zero at every layer, through ``advance`` too, and that of central differences (in float64)."""
    exact = copy.deepcopy(generator).double()
    worst, start = 0.0, _sample(exact, space)
    for name, tensor in start.tensors.items():
        if tensor.dtype != exact.dtype:
            raise LawBroken(f"sample gives a {tensor.dtype} {name} for {exact.dtype} weights; draw it in self.dtype")
    for layer in range(exact.num_layers):
        with torch.no_grad():
            point = exact.advance(start, layer)
        names = [name for name in ("activation", "latent") if name in point.tensors] or list(point.tensors)
        name = names[0]
        variable = point[name].detach().clone().requires_grad_()
        moved = point.update({name: variable})
        deepest = exact.advance(moved, exact.num_layers - 1)
        rng = torch.Generator().manual_seed(layer)
        image = exact(deepest)
        cotangent = torch.randn(image.shape, generator=rng, dtype=image.dtype).to(image.device)
        if not image.requires_grad:
            raise LawBroken(f"the image has no gradient to {name} at layer {layer}; no detach, no numpy on the way")
        (vjp,) = torch.autograd.grad((image * cotangent).sum(), variable)
        if not bool(vjp.isfinite().all()):
            raise LawBroken(f"the gradient to {name} at layer {layer} is not finite")
        if not bool(vjp.flatten(1).any(dim=1).all()):
            raise LawBroken(f"the gradient to {name} at layer {layer} is zero; nothing can be optimised there")
        direction = torch.randn(variable.shape, generator=rng, dtype=image.dtype).to(image.device)
        step = 1e-6 * float(variable.detach().abs().max().clamp_min(1e-3))
        with torch.no_grad():
            ahead, behind = (
                exact(exact.advance(point.update({name: point[name] + sign * step * direction}), exact.num_layers - 1))
                for sign in (1, -1)
            )
        difference = (ahead - behind) / (2 * step)
        scale = float((difference.norm() * cotangent.norm()).clamp_min(1e-300))
        error = abs(float((difference * cotangent).sum() - (vjp * direction).sum())) / scale
        worst = max(worst, error)
        hint = f"the gradient to {name} at layer {layer} is not that of central differences"
        expect_below(error, 1e-3, "difference", hint)
    return f"largest difference from central differences {worst:.1g}"


@torch.no_grad()
def save_and_load(generator: LayeredGenerator, space: str) -> str:
    """A point at any layer, written to a file and read again, is the same image, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        for point in _points(generator, space):
            one = point.select([0])
            path = Path(folder) / "solution.safetensors"
            Solution(one.to("cpu"), torch.zeros(0)).save(path)
            if not torch.equal(Solution.load(path).decode(generator), generator(one)[0]):
                raise LawBroken(
                    f"a point at layer {point.layer} decodes to another image after it was saved and loaded"
                )
    return "bit for bit"


@torch.no_grad()
def layers(generator: LayeredGenerator) -> str:
    """``advance`` refuses a layer that isn't there or lies above the point's own."""
    deepest = generator.advance(_sample(generator), generator.num_layers - 1)
    impossible = [(deepest, generator.num_layers)] + ([(deepest, 0)] if generator.num_layers > 1 else [])
    for point, layer in impossible:
        try:
            generator.advance(point, layer)
        except ValueError:
            continue
        raise LawBroken(
            f"advance(point at layer {point.layer}, {layer}) raises no ValueError; call self.check_layer first"
        )
    return f"0 … {generator.num_layers - 1}"


@torch.no_grad()
def weights(generator: LayeredGenerator) -> str:
    """The state dict holds everything that the images depend on: loaded into a spoilt copy, it restores them."""
    expected = generator(_sample(generator))
    other = copy.deepcopy(generator)
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    if not generator.state_dict():
        return "none"
    other.load_state_dict(generator.state_dict())
    if not torch.equal(other(_sample(other)), expected):
        raise LawBroken("its state dict doesn't restore its images")
    return f"{sum(tensor.numel() for tensor in generator.state_dict().values()):,} numbers"
