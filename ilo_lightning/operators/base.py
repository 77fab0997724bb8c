"""What the solver needs from a forward model, and the measurement that comes out of it."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..files import write_atomically

if TYPE_CHECKING:
    from .classifier import Classifier
    from .noise import NoiseModel


FORMAT = "ilo_lightning.measurement/1"


class MeasurementError(ValueError):
    """A file that is not a measurement; the message says why."""


class ForwardOperator(nn.Module, ABC):
    """The operator A of ``y = A(x) + noise``: fixed, differentiable, each image of a batch on its own.

    Its numbers are representable in float32 and are kept in buffers: ``.to`` moves them, runs in float32 and in float64
    see the same A, and the computation is done in the dtype of the input.

    Args:
        input_shape: (C, H, W) of the images.
        output_shape: shape of one image's y.
        weight: how much each entry of y counts, broadcastable to ``(1, *output_shape)``; ones by default.
    """

    input_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    output_shape: tuple[int, ...]
    """Shape of one image's y."""
    measures_pictures: bool = False
    """Whether y is itself a picture ``(C, H', W')`` in [-1, 1], so that a picture from disk can be a measurement."""
    keeps_range: bool = False
    """Whether images in [-1, 1] have y in [-1, 1], so that y is an intensity as they are."""
    straight_through: bool = False
    """Whether the gradient stands in for one that doesn't exist, or is of no use (rounding)."""
    affine: bool = False
    """Whether A of a mean of images, with weights of sum 1, is the mean of their A(x)."""
    can_hold_out: bool = True
    """Whether a part of y's entries is a measurement too, so that the others can say what it is worth."""
    _weight: Tensor

    def __init__(
        self, input_shape: tuple[int, int, int], output_shape: tuple[int, ...], weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.output_shape = output_shape
        self.register_buffer("_weight", torch.ones([1] * (1 + len(output_shape))) if weight is None else weight)

    @property
    def weight(self) -> Tensor:
        """How much each entry of y counts, >= 0, broadcastable to ``(1, *output_shape)``."""
        return self._weight

    @property
    def classifier(self) -> Classifier | None:
        """The classifier whose probabilities y is; None where y is something else."""
        return None

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """A(x): images ``(B, C, H, W)`` to ``(B, *output_shape)``. Differentiable."""

    @abstractmethod
    def picture(self, y: Tensor) -> Tensor:
        """An image ``(B, C, H', W')`` of y ``(B, *output_shape)`` to look at, in about [-1, 1] (not clipped)."""

    def extra_repr(self) -> str:
        return f"{self.input_shape} -> {self.output_shape}"


class LinearOperator(ForwardOperator):
    """A linear A, with its adjoint: ⟨A x, y⟩ = ⟨x, A* y⟩ for all x and y."""

    affine = True

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y: ``(B, *output_shape)`` to ``(B, C, H, W)``. Differentiable. Here, the gradient of ⟨A x, y⟩ by x."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.input_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self(x), x, y, create_graph=y.requires_grad)
        return gradient


@dataclass(frozen=True)
class Measurement:
    """What was observed of a batch of images. Masks and held-out entries are one mechanism: a weight of 0.

    Args:
        y: ``(B, *output_shape)``.
        weight: how much each entry of y counts, finite and >= 0, as many axes as y and broadcastable to it.

    Raises:
        ValueError: if the weight does not broadcast to y, is negative, is not finite, or is 0 for all of an image's y.
    """

    y: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        y_shape, weight_shape = tuple(self.y.shape), tuple(self.weight.shape)
        if len(y_shape) != len(weight_shape) or any(
            w not in (1, n) for w, n in zip(weight_shape, y_shape, strict=True)
        ):
            raise ValueError(f"a weight of shape {weight_shape} does not broadcast to y of shape {y_shape}")
        if not bool(((self.weight >= 0) & self.weight.isfinite()).all()):
            raise ValueError("the weight of a measurement must be finite and >= 0 everywhere")
        if not bool((self.weight > 0)[..., None].flatten(1).any(dim=1).all()):
            raise ValueError("the weight of a measurement is 0 everywhere: nothing was observed of some image")

    def __len__(self) -> int:
        return len(self.y)

    def select(self, images: Sequence[int] | Tensor) -> Measurement:
        """The measurement of some images of the batch, in the order of ``images`` (indices or a boolean mask)."""
        index = torch.as_tensor(images)
        index = (index if len(index) else index.long()).to(self.y.device)
        per_image = len(self.weight) == len(self.y)  # otherwise one weight is shared by all images
        return replace(self, y=self.y[index], weight=self.weight[index] if per_image else self.weight)

    def to(self, *args, **kwargs) -> Measurement:
        """``Tensor.to`` on y and weight (device, dtype)."""
        return replace(self, y=self.y.to(*args, **kwargs), weight=self.weight.to(*args, **kwargs))

    @staticmethod
    def cat(measurements: Sequence[Measurement]) -> Measurement:
        """One batch of several measurements of one shape; a weight that all share stays shared."""
        y = torch.cat([measurement.y for measurement in measurements])
        weights = [measurement.weight for measurement in measurements]
        if all(len(weight) == 1 and torch.equal(weight, weights[0]) for weight in weights):
            return Measurement(y, weights[0])
        return Measurement(y, torch.cat([m.weight.expand(len(m), *m.weight.shape[1:]) for m in measurements]))

    @staticmethod
    def read_info(path: str | Path) -> dict[str, Any]:
        """Only the header's ``info`` of a file written by ``save``.

        Raises:
            MeasurementError: if the file is missing, damaged or something else.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                header = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise MeasurementError(f"not a readable safetensors file ({error})") from error
        if header.get("format") != FORMAT:
            raise MeasurementError(f"no measurement: its header has format {header.get('format')!r}, not {FORMAT!r}")
        try:
            info = json.loads(header["info"])
        except (KeyError, ValueError) as error:
            raise MeasurementError(f"its header is damaged ({error})") from error
        return info if isinstance(info, dict) else {}

    @classmethod
    def load(cls, path: str | Path) -> tuple[Measurement, dict[str, Any]]:
        """Read a file written by ``save``: the measurement, on the CPU, and ``info``. Runs nothing that a file holds.

        Raises:
            MeasurementError: if the file is missing, damaged or something else, or y isn't finite.
        """
        info = cls.read_info(path)
        try:
            with safe_open(Path(path), framework="pt") as file:
                measurement = cls(file.get_tensor("y"), file.get_tensor("weight"))
        except (SafetensorError, OSError, ValueError) as error:
            raise MeasurementError(f"its tensors don't make a measurement ({error})") from error
        if not measurement.y.is_floating_point() or not bool(measurement.y.isfinite().all()):
            raise MeasurementError("its y holds values that are no finite floating-point numbers")
        return measurement, info

    def save(self, path: str | Path, info: Mapping[str, Any]) -> None:
        """Write one safetensors file: tensors ``y`` and ``weight``, and a header that holds ``info`` (JSON values,
        which should say which operator, with which seed, made it)."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in ("y", "weight")}
        write_atomically(path, save(tensors, metadata={"format": FORMAT, "info": json.dumps(info)}))


def measure(
    operator: ForwardOperator, noise: NoiseModel, images: Tensor, rngs: Sequence[torch.Generator]
) -> Measurement:
    """Measure images: ``y = A(x) + noise``, with the operator's weight.

    Entries of weight 0 are not observed: y is 0 there, noise or not.

    Args:
        operator: A; on the device of the images.
        noise: draws the noise of each image from that image's generator.
        images: ``(B, C, H, W)`` in [-1, 1].
        rngs: one CPU generator per image.

    Returns:
        A measurement that shares no memory and no history with the images.

    Raises:
        ValueError: if the images don't have the operator's shape, or there is not one generator per image.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != operator.input_shape:
        raise ValueError(
            f"images of shape {tuple(images.shape)}: this {type(operator).__name__} measures images of shape "
            f"(B, {', '.join(map(str, operator.input_shape))}); resize the images or build it for theirs"
        )
    with torch.no_grad():
        y = noise(operator(images), rngs)
        weight = operator.weight.to(y)
        return Measurement(torch.where(weight > 0, y, torch.zeros_like(y)), weight.clone())


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """``image_shape`` as a tuple (C, H, W); refuse anything but three positive integers."""
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(is_integer(size) and size > 0 for size in shape):
        raise ValueError(f"image_shape={image_shape!r}: expected (channels, height, width), three positive integers")
    channels, height, width = (int(size) for size in shape)
    return channels, height, width


def check_seed(seed: int) -> int:
    """``seed`` as an int; refuse anything but an integer in [0, 2⁶³)."""
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"task.seed={seed!r}: expected an integer >= 0 (and < 2⁶³)")
    return int(seed)


def check_fraction(fraction: float) -> float:
    """``fraction`` as a float; refuse anything but a number in (0, 1]."""
    if not is_number(fraction) or not 0 < fraction <= 1:
        raise ValueError(f"task.fraction={fraction!r}: expected a number in (0, 1], e.g. 0.1 to observe a tenth")
    return float(fraction)


def check_measurements(fraction: float | None, measurements: int | None, n: int) -> int:
    """The number m of measurements of n entries, from exactly one of ``fraction`` = m / n and m itself."""
    if (fraction is None) == (measurements is None):
        raise ValueError(
            f"{'neither' if fraction is None else 'both'} of task.fraction and task.measurements "
            f"{'is' if fraction is None else 'are'} given: expected exactly one; set the other to null"
        )
    if measurements is None:
        assert fraction is not None
        return max(1, round(check_fraction(fraction) * n))
    if not is_integer(measurements) or not 1 <= measurements <= n:
        raise ValueError(f"task.measurements={measurements!r}: expected an integer in 1 … {n} (the image's C·H·W)")
    return int(measurements)


def is_integer(value: object) -> bool:
    """Whether ``value`` is an integer (Python's or numpy's); a boolean is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite real number (Python's or numpy's); a boolean is not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
