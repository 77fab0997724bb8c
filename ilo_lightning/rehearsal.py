"""One image through a user's own modules, so that what they can't do is known before any long work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import one_line
from .generators.base import LatentPoint, LayeredGenerator
from .operators.base import ForwardOperator, Measurement


class RehearsalError(ValueError):
    """A generator or an operator that can't do what it is there for; the message says what, and what helps."""


def check_generator_attributes(generator: object) -> None:
    """Refuse what isn't a ``LayeredGenerator``, or doesn't say what its images, layers and spaces are.

    Raises:
        RehearsalError: saying which attribute is missing, or wrong.
    """
    name = type(generator).__name__
    if not isinstance(generator, LayeredGenerator):
        raise RehearsalError(
            f"generator: {name} is no ilo_lightning.generators.base.LayeredGenerator; derive it from that, or give its "
            "blocks to SequentialGenerator"
        )
    shape = _attribute(generator, "generator", "image_shape")
    if not _is_shape(shape) or len(shape) != 3 or shape[0] not in (1, 3):
        raise RehearsalError(f"generator: {name}.image_shape={shape!r}: expected (1 or 3, height, width)")
    layers = _attribute(generator, "generator", "num_layers")
    if not isinstance(layers, int) or layers < 1:
        raise RehearsalError(f"generator: {name}.num_layers={layers!r}: expected a whole number, at least 1")
    spaces = _attribute(generator, "generator", "spaces")
    if not isinstance(spaces, tuple | list) or not spaces or not all(isinstance(space, str) for space in spaces):
        raise RehearsalError(f"generator: {name}.spaces={spaces!r}: expected names of latent spaces, such as ('z',)")


def check_operator_attributes(operator: object) -> None:
    """Refuse what isn't a ``ForwardOperator``, or doesn't say what it takes and gives.

    Raises:
        RehearsalError: saying which attribute is missing, or wrong.
    """
    name = type(operator).__name__
    if not isinstance(operator, ForwardOperator):
        raise RehearsalError(
            f"task.operator: {name} is no ilo_lightning.operators.ForwardOperator; derive it from that, or from "
            "LinearOperator"
        )
    for field, axes in (("input_shape", 3), ("output_shape", None)):
        shape = _attribute(operator, "task.operator", field)
        if not _is_shape(shape) or axes not in (None, len(shape)):
            expected = "(channels, height, width)" if axes else "the shape of one image's y"
            raise RehearsalError(f"task.operator: {name}.{field}={shape!r}: expected {expected}, positive integers")
    weight = _attribute(operator, "task.operator", "weight")
    try:
        Measurement(torch.zeros(1, *operator.output_shape), weight)
    except (ValueError, TypeError, AttributeError) as error:
        raise RehearsalError(f"task.operator: {name}.weight: {error}") from error


def _attribute(module: object, field: str, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise RehearsalError(
            f"{field}: {type(module).__name__} has no {name}; set it in __init__, after super().__init__(…)"
        ) from error


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple | list | torch.Size) and all(isinstance(n, int) and n > 0 for n in value)


def rehearse_generator(generator: LayeredGenerator, point: LatentPoint) -> Tensor:
    """The image of a point of one.

    Raises:
        RehearsalError: if the generator fails, gives another shape than it says, or numbers that aren't finite.
    """
    image = _attempt("generator: fails on its first image", lambda: generator(point))
    _check(image, (1, *generator.image_shape), "generator: gives", "for one image")
    return image


def rehearse_operator(operator: ForwardOperator, image: Tensor) -> None:
    """Measure one image ``(1, C, H, W)``, look at y, and ask for a gradient.

    Raises:
        RehearsalError: if it is made for other images, any of that fails, y has another shape than the operator says
            or isn't finite, or there is no gradient to follow.
    """
    if tuple(operator.input_shape) != tuple(image.shape[1:]):
        raise RehearsalError(
            f"task.operator takes images {tuple(operator.input_shape)}, the generator makes {tuple(image.shape[1:])}"
        )
    variable = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = _attempt("task.operator: fails on its first image", lambda: operator(variable))
    _check(y, (1, *operator.output_shape), "task.operator: gives", "for one image")
    if not y.requires_grad:
        raise RehearsalError(
            "task.operator: A(x) has no gradient; compute it with differentiable torch functions, no detach, no numpy"
        )
    picture = _attempt("task.operator: picture fails", lambda: operator.picture(y.detach()))
    if not isinstance(picture, Tensor) or picture.ndim != 4 or len(picture) != 1 or picture.shape[1] not in (1, 3):
        given = tuple(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        raise RehearsalError(f"task.operator: picture gives {given}, expected (1, 1 or 3, height, width)")


def _attempt(what: str, function: Callable[[], Tensor]) -> Tensor:
    try:
        return function()
    except Exception as error:  # whatever a user's own module raises
        raise RehearsalError(f"{what} ({one_line(error)})") from error


def _check(given: object, shape: tuple[int, ...], verb: str, what: str) -> None:
    if not isinstance(given, Tensor):
        raise RehearsalError(f"{verb} a {type(given).__name__} {what}, expected a tensor {shape}")
    if tuple(given.shape) != shape:
        raise RehearsalError(f"{verb} {tuple(given.shape)} {what}, but says {shape}")
    if not bool(given.isfinite().all()):
        raise RehearsalError(f"{verb} numbers that are not finite {what}")
