"""Operators and generators that somebody might bring, each with one thing wrong; named on command lines as
``tests.broken.Name``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilo_lightning.generators.base import LatentPoint, LayeredGenerator
from ilo_lightning.generators.sequential import SequentialGenerator
from ilo_lightning.operators import ForwardOperator, LinearOperator


class Whole(LinearOperator):
    """Twice the image: nothing is wrong with it; the others break one thing each."""

    def __init__(self, image_shape, weight=None):
        super().__init__(tuple(image_shape), tuple(image_shape), weight)

    def forward(self, image: Tensor) -> Tensor:
        return 2 * image

    def adjoint(self, y: Tensor) -> Tensor:
        return 2 * y

    def picture(self, y: Tensor) -> Tensor:
        return y / 2


class OtherImages(Whole):
    def __init__(self, image_shape):
        super().__init__((1, 5, 5))


class WrongShape(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return 2 * image[..., :-1]


class WrongPicture(Whole):
    def picture(self, y: Tensor) -> Tensor:
        return y[:, 0]


class AdjointOfAnotherShape(Whole):
    def adjoint(self, y: Tensor) -> Tensor:
        return 2 * y[:, :1]


class AlwaysFloat32(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return 2 * image.float()


class NotFinite(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return image / torch.zeros_like(image)


class NegativeWeight(Whole):
    def __init__(self, image_shape):
        super().__init__(image_shape, -torch.ones(1, *image_shape))


class NothingObserved(Whole):
    def __init__(self, image_shape):
        super().__init__(image_shape, torch.zeros(1, *image_shape))


class WeightOfAnotherShape(Whole):
    def __init__(self, image_shape):
        super().__init__(image_shape, torch.ones(1, 7, 7))


class MixesImages(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return 2 * image - image.mean(dim=0)


class DrawsAtEveryCall(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return image * torch.rand(())


class DrawsWhenBuilt(Whole):
    def __init__(self, image_shape):
        super().__init__(image_shape)
        self.gain = float(torch.rand(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * image


class Detached(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return 2 * image.detach()


class Rounds(ForwardOperator):
    """Its derivative is zero almost everywhere; autograd is told otherwise."""

    def __init__(self, image_shape):
        super().__init__(tuple(image_shape), tuple(image_shape))

    def forward(self, image: Tensor) -> Tensor:
        return image + (image.sign() - image).detach()

    def picture(self, y: Tensor) -> Tensor:
        return y


class WrongDerivative(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return 2 * image + (image - image.detach())


class Offset(Whole):
    def forward(self, image: Tensor) -> Tensor:
        return 2 * image + 1


class WrongAdjoint(Whole):
    def adjoint(self, y: Tensor) -> Tensor:
        return 2 * y.flip(3)


class LeavesTheRange(Whole):
    keeps_range = True


class NoInit(ForwardOperator):
    def __init__(self, image_shape):
        nn.Module.__init__(self)

    def forward(self, image: Tensor) -> Tensor:
        return image

    def picture(self, y: Tensor) -> Tensor:
        return y


class Raises(Whole):
    """Something happens at one of its calls.

    Args:
        place: ``init``, ``forward`` or ``picture``.
        call: at which call it happens, from 1.
        what: ``error``, ``not_a_number`` or ``no_file``.
    """

    def __init__(self, image_shape, place="forward", call=1, what="error"):
        super().__init__(image_shape)
        self.place, self.call, self.what, self.calls = place, call, what, 0
        if place == "init":
            raise KeyError("no such thing")

    def forward(self, image: Tensor) -> Tensor:
        return self._count("forward", super().forward(image))

    def picture(self, y: Tensor) -> Tensor:
        return self._count("picture", super().picture(y))

    def _count(self, place: str, values: Tensor) -> Tensor:
        if place != self.place:
            return values
        self.calls += 1
        if self.calls != self.call:
            return values
        if self.what == "not_a_number":
            return values * torch.nan
        if self.what == "no_file":
            raise FileNotFoundError(2, "No such file or directory", "lookup.npy")
        raise RuntimeError("something\nin two lines")


def blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(4, 32), nn.Tanh()),
        nn.Sequential(nn.Linear(32, 768), nn.Unflatten(1, (3, 16, 16)), nn.Tanh()),
    ]


def generator() -> SequentialGenerator:
    return SequentialGenerator(blocks(), [4])


class ReadsLate(SequentialGenerator):
    """Looks for a file when a latent point is wanted, but for the first two, which are the rehearsal's."""

    calls = 0

    def sample(self, rngs, space=None) -> LatentPoint:
        self.calls += 1
        if self.calls > 2:
            raise FileNotFoundError(2, "No such file or directory", "lookup.npy")
        return super().sample(rngs, space)


def reads_late() -> ReadsLate:
    return ReadsLate(blocks(), [4])


def text() -> str:
    return "no generator"


def leaves() -> None:
    raise SystemExit(7)


def not_finite() -> SequentialGenerator:
    parts = blocks()
    nn.init.constant_(parts[0][0].weight, torch.nan)
    return SequentialGenerator(parts, [4])


class NoAttributes(LayeredGenerator):
    def sample(self, rngs, space=None) -> LatentPoint:
        return LatentPoint(0, {"latent": torch.zeros(len(rngs), 3)})

    def advance(self, point: LatentPoint, layer: int) -> LatentPoint:
        return point

    def forward(self, point: LatentPoint) -> Tensor:
        return torch.zeros(point.batch_size, 3, 16, 16)


class FiveChannels(NoAttributes):
    image_shape, num_layers, spaces = (5, 16, 16), 1, ("z",)


class NoLayers(NoAttributes):
    image_shape, num_layers, spaces = (3, 16, 16), 0, ("z",)


class CannotSample(SequentialGenerator):
    def __init__(self):
        super().__init__(blocks(), [4])

    def sample(self, rngs, space=None) -> LatentPoint:
        raise RuntimeError("can't sample")


class DrawsFloat32(SequentialGenerator):
    def __init__(self):
        super().__init__(blocks(), [4])

    def sample(self, rngs, space=None) -> LatentPoint:
        return LatentPoint(0, {"latent": torch.stack([torch.randn(4, generator=rng) for rng in rngs])})


class Hungry(torch.autograd.Function):
    """The identity, which asks for 250 MB times the square of the number of images, untouched, on its way or on its
    gradient's."""

    @staticmethod
    def forward(ctx, x: Tensor, place: str) -> Tensor:
        ctx.place = place
        if place == "forward":
            torch.empty(len(x) ** 2 * 250_000_000, dtype=torch.uint8)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.place == "backward":
            torch.empty(len(gradient) ** 2 * 250_000_000, dtype=torch.uint8)
        return gradient, None


class MemoryHungry(nn.Module):
    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        return Hungry.apply(x, self.place)


def memory_hungry(place: str) -> SequentialGenerator:
    """Runs out of memory with several images at once, in a pass or in its gradient (``forward`` or ``backward``)."""
    first, second = blocks()
    return SequentialGenerator([nn.Sequential(first, MemoryHungry(place)), second], [4])
