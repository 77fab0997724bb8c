"""Compositions: one operator after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .base import ForwardOperator, LinearOperator, check_image_shape

if TYPE_CHECKING:
    from .classifier import Classifier


def compose(image_shape: Sequence[int], operators: Sequence[Callable[..., ForwardOperator]]) -> ForwardOperator:
    """``A_k ∘ … ∘ A_1``: the first of ``operators`` measures the image, the next what came out of that, and so on.

    Args:
        image_shape: (C, H, W).
        operators: what makes each of them, called with ``image_shape=`` of what it gets; in a configuration,
            ``{_target_: ilo_lightning.operators.GaussianBlur, _partial_: true, sigma: 1.0}``.

    Returns:
        A linear operator if all of them are linear. Entries of y count as the last one says; what an inner one doesn't
        observe is 0 for the next. y is a picture if what every one of them gives is; a part that is made for pictures
        in [-1, 1], such as JPEG, takes anything of an image's shape for one.

    Raises:
        ValueError: if there is none, one is already built, or one gets something that is no image.
    """
    shape: tuple[int, ...] = check_image_shape(image_shape)
    parts: list[ForwardOperator] = []
    for place, make in enumerate(operators):
        if isinstance(make, nn.Module) or not callable(make):
            raise ValueError(f"task.operator.operators[{place}]: is already built; add _partial_: true to it")
        if len(shape) != 3:
            raise ValueError(
                f"task.operator.operators[{place}]: gets measurements of shape {shape}, which are no images; "
                f"let {type(parts[-1]).__name__} come last"
            )
        part = make(image_shape=list(shape))
        if not isinstance(part, ForwardOperator):
            raise ValueError(f"task.operator.operators[{place}]: gives a {type(part).__name__}, not a ForwardOperator")
        parts.append(part)
        shape = tuple(part.output_shape)
    if not parts:
        raise ValueError("task.operator.operators=[]: expected at least one operator")
    return (LinearComposition if all(isinstance(part, LinearOperator) for part in parts) else Composition)(parts)


class Composition(ForwardOperator):
    """Operators one after another, each built for what the one before gives; see ``compose``."""

    def __init__(self, parts: Sequence[ForwardOperator]) -> None:
        super().__init__(parts[0].input_shape, parts[-1].output_shape, parts[-1].weight)
        self.parts = nn.ModuleList(parts)
        self.measures_pictures = all(part.measures_pictures for part in parts)
        self.keeps_range = all(part.keeps_range for part in parts)
        self.affine = all(part.affine for part in parts)
        self.can_hold_out = parts[-1].can_hold_out
        self.straight_through = any(part.straight_through for part in parts)

    @property
    def classifier(self) -> Classifier | None:
        """The last operator, where it is one."""
        last = self.parts[-1]
        assert isinstance(last, ForwardOperator)
        return last.classifier

    def forward(self, image: Tensor) -> Tensor:
        """y of the last operator."""
        for part in self.parts:
            image = part(image)
        return image

    def picture(self, y: Tensor) -> Tensor:
        """As the last operator shows it."""
        last = self.parts[-1]
        assert isinstance(last, ForwardOperator)
        return last.picture(y)


class LinearComposition(Composition, LinearOperator):
    """A composition of linear operators is linear."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A₁* … A_k* y."""
        for part in reversed(self.parts):
            assert isinstance(part, LinearOperator)
            y = part.adjoint(y)
        return y
