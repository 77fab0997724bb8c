"""What the solver needs from a generator: points it can start from, ways deeper, and images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class LatentPoint:
    """Everything a generator needs to synthesise a batch of images from layer ``layer`` on.

    Args:
        layer: where the generator is entered; 0 is the latent code.
        tensors: named tensors, each with the batch as its first axis. A name is a *variable*, optionally followed by
            ``_`` and an index: ``noise_3`` is the fourth map of the variable ``noise``.
        space: the latent space in which the code is expressed, e.g. ``"gaussian_w_plus"``.
    """

    layer: int
    tensors: Mapping[str, Tensor]
    space: str = "z"
    batch_size: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = {name: len(tensor) for name, tensor in self.tensors.items()}
        if not sizes or len(set(sizes.values())) != 1:
            raise ValueError(f"the tensors of a LatentPoint must agree in their first (batch) axis, got {sizes}")
        object.__setattr__(self, "batch_size", next(iter(sizes.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def map(self, function: Callable[[Tensor], Tensor]) -> LatentPoint:
        """The point with ``function`` applied to every tensor."""
        return replace(self, tensors={name: function(tensor) for name, tensor in self.tensors.items()})

    def update(self, tensors: Mapping[str, Tensor]) -> LatentPoint:
        """The point with some of its tensors replaced."""
        return replace(self, tensors={**self.tensors, **tensors})

    def detach(self) -> LatentPoint:
        """A copy that shares neither memory nor history with this point."""
        return self.map(lambda tensor: tensor.detach().clone())

    def to(self, *args, **kwargs) -> LatentPoint:
        """``Tensor.to`` on every tensor (device, dtype)."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def select(self, images: Sequence[int] | Tensor) -> LatentPoint:
        """The point of some images of the batch, in the order of ``images``."""
        index = torch.as_tensor(images)
        return self.map(lambda tensor: tensor[index.to(tensor.device)])

    def repeat(self, times: int) -> LatentPoint:
        """Each image ``times`` times, copies of one image next to each other."""
        return self.map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def where(self, chosen: Tensor, other: LatentPoint) -> LatentPoint:
        """This point for the images ``chosen (B,)``, ``other`` for those that aren't."""
        return self.update(
            {
                name: torch.where(chosen.view(-1, *[1] * (tensor.ndim - 1)), tensor, other[name])
                for name, tensor in self.tensors.items()
            }
        )

    def packed(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; ``LatentPoint(**packed)`` is the point again."""
        return {"layer": self.layer, "space": self.space, "tensors": dict(self.tensors)}

    @staticmethod
    def cat(points: Sequence[LatentPoint]) -> LatentPoint:
        """One batch out of several points of the same layer and space.

        Raises:
            ValueError: if the points differ in layer, space or tensor names.
        """
        first = points[0]
        for point in points[1:]:
            if (point.layer, point.space, set(point.tensors)) != (first.layer, first.space, set(first.tensors)):
                raise ValueError(
                    f"points of one batch must agree: layer {first.layer} in {first.space!r} with "
                    f"{sorted(first.tensors)} against layer {point.layer} in {point.space!r} with "
                    f"{sorted(point.tensors)}"
                )
        tensors = {name: torch.cat([point[name] for point in points]) for name in first.tensors}
        return replace(first, tensors=tensors)


def variable_of(name: str) -> str:
    """The variable a tensor belongs to: ``"noise_3"`` is of ``"noise"``, ``"activation"`` of itself."""
    variable, _, index = name.rpartition("_")
    return variable if index.isdigit() else name


def index_of(name: str) -> int | None:
    """The index of a tensor within its variable: 3 for ``"noise_3"``, None for ``"activation"``."""
    suffix = name.rpartition("_")[2]
    return int(suffix) if suffix.isdigit() else None


def is_made(name: str) -> bool:
    """Whether a tensor of a point is made by the layers above (activation, RGB skip): no code, style or noise map."""
    return variable_of(name) not in ("latent", "style", "noise")


class LayeredGenerator(nn.Module, ABC):
    """A frozen generator G = G_L ∘ … ∘ G_1 that can be entered at each of its layers.

    Images are ``(B, C, H, W)`` in [-1, 1] (not clipped). **Continuity is the law of** ``advance``:
    ``forward(advance(point, k)) == forward(point)`` for every valid k, to float precision.
    """

    image_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    num_layers: int
    """Valid entry layers are 0 … ``num_layers - 1``; the output image is not one."""
    spaces: tuple[str, ...]
    """Latent spaces at layer 0; the first is the default."""
    provenance: dict[str, str] = {}  # noqa: RUF012 - replaced, never mutated
    """Where the weights came from: ``checkpoint`` (path as given) and ``sha256``, where there is a file."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of points and images."""
        floating = (tensor.dtype for tensor in self._tensors() if tensor.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.parameters(), self.buffers())

    @abstractmethod
    def sample(self, rngs: Sequence[torch.Generator], space: str | None = None) -> LatentPoint:
        """Draw a random point at layer 0, one image per (CPU) random generator, so that batches don't matter."""

    @abstractmethod
    def advance(self, point: LatentPoint, layer: int) -> LatentPoint:
        """The same images, entered at the deeper ``layer``; the identity at the point's own. Differentiable."""

    @abstractmethod
    def forward(self, point: LatentPoint) -> Tensor:
        """Images ``(B, C, H, W)`` of a point. Differentiable."""

    def mean(self, point: LatentPoint) -> LatentPoint:
        """``point`` (layer 0) with its code at the mean of its space. Here 0, the mean of a Gaussian code."""
        return point.update({"latent": torch.zeros_like(point["latent"])})

    def spread(self, space: str) -> float:
        """What counts as one standard deviation of a code, for noise laid on it. Here 1, a Gaussian code's."""
        return 1.0

    def codes(self, point: LatentPoint) -> Tensor:
        """What the layers are steered with, ``(B, K, D)``; here the latent code itself."""
        return point["latent"]

    def convert(self, point: LatentPoint, space: str) -> LatentPoint:
        """The same images with their code in another, larger space.

        Raises:
            ValueError: where that isn't possible.
        """
        if space == point.space:
            return point
        raise ValueError(f"a code in {point.space} can't be written in space {space!r} ({type(self).__name__})")

    def check_layer(self, point: LatentPoint, layer: int) -> None:
        """Refuse an entry layer that doesn't exist or lies above the point's own."""
        if not point.layer <= layer < self.num_layers:
            raise ValueError(
                f"layer {layer}: from layer {point.layer} this generator can advance to layers "
                f"{point.layer} … {self.num_layers - 1}"
            )

    def check_space(self, space: str | None) -> str:
        """``space``, or the default for None; refuse one that this generator doesn't have."""
        space = self.spaces[0] if space is None else space
        if space not in self.spaces:
            raise ValueError(f"latent space {space!r}: {type(self).__name__} has {', '.join(self.spaces)}")
        return space


def decode(generator: LayeredGenerator, point: LatentPoint, at_once: int | None = None) -> Tensor:
    """Images ``(B, C, H, W)`` of a point, ``at_once`` of them at a time, or all: in the memory that so many take, as
    the generator works once more, in ``backward``, instead of keeping what it made on the way."""
    if at_once is None or point.batch_size <= at_once:
        return generator(point)
    return torch.cat([checkpoint(generator, part, use_reentrant=False) for part in _parts(point, at_once)])


def advance(generator: LayeredGenerator, point: LatentPoint, layer: int, at_once: int | None = None) -> LatentPoint:
    """``generator.advance``, ``at_once`` images at a time, as in ``decode``."""
    if at_once is None or point.batch_size <= at_once:
        return generator.advance(point, layer)
    parts = _parts(point, at_once)
    return LatentPoint.cat([checkpoint(generator.advance, part, layer, use_reentrant=False) for part in parts])


def _parts(point: LatentPoint, size: int) -> list[LatentPoint]:
    count = point.batch_size
    return [point.select(range(start, min(start + size, count))) for start in range(0, count, size)]
