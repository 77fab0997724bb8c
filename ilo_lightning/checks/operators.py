"""The laws of a forward operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operators.base import ForwardOperator, LinearOperator
from ..rehearsal import check_operator_attributes
from .laws import LawBroken, Verdict, check, command, expect_below

IMAGE_SHAPE = (3, 64, 64)
TOLERANCE = 1e-5
"""Relative; operators keep their numbers in float32, and compute here in float64."""


def main(arguments: Sequence[str]) -> int:
    """``ilo check-operator``."""

    def examine(make: Callable[..., Any], given: Mapping[Any, Any]) -> list[Verdict]:
        shape = tuple(given.get("image_shape", IMAGE_SHAPE))
        return check_operator(partial(make, image_shape=list(shape)), shape)

    return command(arguments, "check-operator", "task", lambda config: config.task.operator, examine)


def check_operator(build: Callable[[], ForwardOperator], image_shape: tuple[int, ...] | None = None) -> list[Verdict]:
    """The verdicts on an operator.

    Args:
        build: makes it; called twice, to see that its A is the same.
        image_shape: of the images that it was told to be for; None: whatever it says.

    Raises:
        RehearsalError: if it is no ForwardOperator, or doesn't say what it takes and gives.
    """
    operator = build()
    check_operator_attributes(operator)
    laws: dict[str, Callable[[], str]] = {
        "shapes": partial(shapes, operator, image_shape),
        "dtypes": partial(dtypes, operator),
        "weight": partial(weight, operator),
        "batch = one at a time": partial(batch, operator),
        "determinism": partial(determinism, operator, build),
    }
    if not operator.straight_through:
        laws["gradient"] = partial(gradient, operator)
    if isinstance(operator, LinearOperator):
        laws |= {"linearity": partial(linearity, operator), "adjoint": partial(adjoint, operator)}
    elif operator.affine:
        laws["affinity"] = partial(affinity, operator)
    if operator.keeps_range:
        laws["range"] = partial(keeps_range, operator)
    return check(laws)


def _images(operator: ForwardOperator, count: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, *operator.input_shape, generator=rng, dtype=dtype) * 2 - 1


def _measurements(operator: ForwardOperator, count: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, *operator.output_shape, generator=rng, dtype=torch.float64)


def _relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.norm() / reference.norm().clamp_min(1e-300))


def shapes(operator: ForwardOperator, image_shape: tuple[int, ...] | None = None) -> str:
    """``(B, *input_shape)`` to ``(B, *output_shape)``; ``picture`` gives images; the adjoint goes back."""
    if image_shape is not None and tuple(operator.input_shape) != image_shape:
        raise LawBroken(f"built for images {image_shape}, but input_shape says {tuple(operator.input_shape)}")
    x, y = _images(operator), _measurements(operator)
    found = tuple(operator(x).shape)
    if found != tuple(y.shape):
        raise LawBroken(f"A(x) has the shape {found} for 2 images, but output_shape says {tuple(y.shape)}")
    picture = operator.picture(operator(x))
    if picture.ndim != 4 or len(picture) != 2 or picture.shape[1] not in (1, 3):
        raise LawBroken(f"picture gives {tuple(picture.shape)}, expected (2, 1 or 3, height, width)")
    if isinstance(operator, LinearOperator) and operator.adjoint(y).shape != x.shape:
        raise LawBroken(f"the adjoint gives {tuple(operator.adjoint(y).shape)}, expected {tuple(x.shape)}")
    return f"{operator.input_shape} -> {operator.output_shape}"


def dtypes(operator: ForwardOperator) -> str:
    """y has the dtype of the image, so that float64 runs are float64 throughout; values are finite."""
    for dtype in (torch.float32, torch.float64):
        y = operator(_images(operator, dtype=dtype))
        if y.dtype != dtype:
            raise LawBroken(f"{dtype} images give {y.dtype} measurements; cast constants to the dtype of the image")
        if not bool(y.isfinite().all()):
            raise LawBroken(f"A(x) of {dtype} images in [-1, 1] is not finite everywhere")
    return "float32 and float64"


def weight(operator: ForwardOperator) -> str:
    """Finite, not negative, not zero everywhere, and broadcastable to one image's y."""
    found, expected = operator.weight, (1, *operator.output_shape)
    try:
        fits = torch.broadcast_shapes(found.shape, expected) == expected and found.ndim == len(expected)
    except RuntimeError:
        fits = False
    if not fits:
        raise LawBroken(f"has the shape {tuple(found.shape)}, which does not broadcast to {expected}")
    if not bool((found.isfinite() & (found >= 0)).all()) or not bool((found > 0).any()):
        raise LawBroken("must be finite and >= 0 everywhere, and > 0 somewhere")
    share = float((found > 0).double().mean())
    return f"{100 * share:.3g} % of y are observed"


def batch(operator: ForwardOperator) -> str:
    """No image influences another."""
    x = _images(operator, 3)
    together, alone = operator(x), torch.cat([operator(x[i : i + 1]) for i in range(3)])
    hint = "images of a batch influence each other; reduce over axes 1, 2, … only"
    return expect_below(_relative(together - alone, alone), TOLERANCE, "difference", hint)


def determinism(operator: ForwardOperator, build: Callable[[], ForwardOperator]) -> str:
    """A is the same at every call, and whenever it is built."""
    x = _images(operator)
    if not torch.equal(operator(x), operator(x)):
        raise LawBroken("two calls on the same images differ; draw A once, in __init__, and leave noise to task.noise")
    if not torch.equal(operator(x), build()(x)):
        raise LawBroken("built twice it is another A; draw it from ilo_lightning.randomness.generator_for(seed, …)")
    return "same A twice"


def gradient(operator: ForwardOperator) -> str:
    """The derivative that autograd computes is the one of central differences, along a random direction."""
    x, g = _images(operator) * 0.5, _measurements(operator)
    direction = _images(operator, seed=2)
    variable = x.clone().requires_grad_()
    y = operator(variable)
    if not y.requires_grad:
        raise LawBroken("A(x) has no gradient; compute it with differentiable torch functions, without detach or numpy")
    (vjp,) = torch.autograd.grad((y * g).sum(), variable)
    step = 1e-7  # little, so that few kinks (of ReLU, say) are crossed on the way
    with torch.no_grad():
        difference = (operator(x + step * direction) - operator(x - step * direction)) / (2 * step)
    expected, found = (difference * g).sum(), (vjp * direction).sum()
    scale = float((difference.norm() * g.norm()).clamp_min(1e-300))
    hint = "the gradient is wrong, or A is not differentiable (rounding, thresholds)"
    if float(difference.norm()) == 0:
        raise LawBroken("A(x) doesn't change with x; there is nothing to reconstruct from (rounding, thresholds?)")
    return expect_below(float((expected - found).abs()) / scale, TOLERANCE, "difference from central differences", hint)


def linearity(operator: LinearOperator) -> str:
    """A(2x - 3x') = 2 A x - 3 A x'."""
    x, other = _images(operator), _images(operator, seed=3)
    expected = 2 * operator(x) - 3 * operator(other)
    hint = "A is not linear (an offset, a clip?); derive it from ForwardOperator instead"
    return expect_below(_relative(operator(2 * x - 3 * other) - expected, expected), TOLERANCE, "difference", hint)


def affinity(operator: ForwardOperator) -> str:
    """A(0.3 x + 0.7 x') = 0.3 A(x) + 0.7 A(x')."""
    x, other = _images(operator), _images(operator, seed=3)
    expected = 0.3 * operator(x) + 0.7 * operator(other)
    found = _relative(operator(0.3 * x + 0.7 * other) - expected, expected)
    return expect_below(found, TOLERANCE, "difference", "A is not affine (a clip?); set affine = False")


def adjoint(operator: LinearOperator) -> str:
    """⟨A x, y⟩ = ⟨x, A* y⟩, relative to ‖A x‖ ‖y‖."""
    x, y = _images(operator), _measurements(operator)
    ax = operator(x)
    difference = ((ax * y).sum() - (x * operator.adjoint(y)).sum()).abs() / (ax.norm() * y.norm()).clamp_min(1e-300)
    return expect_below(float(difference), TOLERANCE, "|<Ax, y> - <x, A*y>|", "adjoint is not the transpose of forward")


def keeps_range(operator: ForwardOperator) -> str:
    """Images in [-1, 1] have y in [-1, 1]."""
    y = operator(_images(operator, 8).sign())
    hint = "y leaves [-1, 1]; set keeps_range = False"
    return expect_below(float(y.abs().max()), 1 + 1e-5, "largest |y|", hint)
