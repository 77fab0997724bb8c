"""deepinv, both ways: its physics as operators, and this package's methods as one of its reconstructors.

deepinv is imported where it is used: ``pip install 'ilo-lightning[deepinv]'``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import one_line
from .generators.base import LayeredGenerator
from .method import Method
from .observations import device_of, digest_of
from .operators.base import ForwardOperator, LinearOperator, Measurement, check_image_shape
from .solve import solve


def from_deepinv(physics: Any, image_shape: Sequence[int], intensities: bool = False) -> ForwardOperator:
    """The noise-free A of a deepinv ``Physics``. Its noise and its sensor model are left out: noise is the task's.

    The physics is copied, with its numbers in float32. What is random in it must be drawn when it is built, from an
    ``rng`` that it is given. One whose ``dtype`` is complex gets complex images, without an imaginary part.

    Args:
        physics: any ``deepinv.physics.Physics`` with one real tensor per image as measurement.
        image_shape: (C, H, W).
        intensities: A gets images in [0, 1], as deepinv has them, and not in [-1, 1].

    Returns:
        A linear operator for a ``LinearPhysics`` that gets images as they are, with ``A_adjoint`` as adjoint; for one
        that gets intensities, an affine one. Of a linear physics, entries of y that are 0 for every image have weight
        0, as in inpainting. ``measures_pictures`` is found out by a try; it can be set afterwards.

    Raises:
        ValueError: if it is no physics, or A fails on images of that shape, gives something else, or mixes the images
            of a batch.
    """
    library = _deepinv()
    name = type(physics).__name__
    if not isinstance(physics, library.Physics):
        raise ValueError(f"task.operator.physics: {name} is no deepinv.physics.Physics")
    if not isinstance(intensities, bool):
        raise ValueError(f"task.operator.intensities={intensities!r}: expected true or false")
    shape = check_image_shape(image_shape)
    linear = isinstance(physics, library.LinearPhysics)
    try:
        own = _cast(physics.clone(), torch.float32).requires_grad_(False).eval()
    except Exception as error:  # whatever somebody's own physics raises
        raise ValueError(f"task.operator.physics: {name} can't be copied ({one_line(error)})") from error
    y = _dry_run(own, shape, intensities)
    own.noise_model = library.ZeroNoise()  # its numbers are none of A's
    observed = (y != 0).any(dim=0, keepdim=True)
    if not bool(observed.any()):
        raise ValueError(f"task.operator.physics: A of this {name} is 0 for every image")
    weight = observed.float() if linear and not bool(observed.all()) else None
    kind = LinearPhysicsOperator if linear and not intensities else PhysicsOperator
    operator = kind(own, shape, tuple(y.shape[1:]), weight, intensities, _gives_pictures(own, y, shape))
    operator.affine = linear
    return operator


class PhysicsOperator(ForwardOperator):
    """A deepinv physics as an operator; see ``from_deepinv``."""

    def __init__(
        self,
        physics: Any,
        input_shape: tuple[int, int, int],
        output_shape: tuple[int, ...],
        weight: Tensor | None,
        intensities: bool,
        gives_pictures: bool,
    ) -> None:
        super().__init__(input_shape, output_shape, weight)
        self.physics = physics
        self.intensities = intensities
        self._gives_pictures = gives_pictures
        self.measures_pictures = gives_pictures and not intensities
        self._copies: dict[torch.dtype, Any] = {}

    def forward(self, image: Tensor) -> Tensor:
        """A(x); half precision is computed in float32."""
        x = self._working(image)
        return _measure(self._physics(x.dtype), (x + 1) / 2 if self.intensities else x).to(image.dtype)

    def picture(self, y: Tensor) -> Tensor:
        """y itself where it is a picture; else, of a linear physics, the multiple of A* y that explains y best; else
        the values of y in rows, from the least to the greatest."""
        if self._gives_pictures:
            return 2 * y - 1 if self.intensities else y
        if not isinstance(self.physics, _deepinv().LinearPhysics):
            return _in_rows(y)
        values = self._working(y)
        physics = self._physics(values.dtype)
        image = physics.A_adjoint(values)
        seen = physics.A(image).flatten(1)
        scale = (seen * values.flatten(1)).sum(dim=1) / seen.square().sum(dim=1).clamp_min(1e-30)
        image = (image * scale.view(-1, 1, 1, 1)).to(y.dtype)
        return 2 * image - 1 if self.intensities else image

    def _working(self, values: Tensor) -> Tensor:
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def _physics(self, dtype: torch.dtype) -> Any:
        """The physics with its numbers in a precision; copies are no part of the module, which has them already."""
        if dtype == self._weight.dtype:
            return self.physics
        if dtype not in self._copies:
            self._copies[dtype] = _cast(self.physics.clone(), dtype)
        return self._copies[dtype]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PhysicsOperator:
        super()._apply(lambda tensor: _by_parts(fn, tensor), recurse)
        _cast(self.physics, self._weight.dtype)
        self._copies = {}
        return self


class LinearPhysicsOperator(PhysicsOperator, LinearOperator):
    """A linear physics of deepinv as an operator; see ``from_deepinv``."""

    def adjoint(self, y: Tensor) -> Tensor:
        """The physics' own A*; where deepinv would derive it from A, derived from A here, for any precision."""
        derived = type(self.physics).A_adjoint is _deepinv().LinearPhysics.A_adjoint and self.physics.A_adj is None
        if derived:
            return LinearOperator.adjoint(self, y)
        values = self._working(y)
        return self._physics(values.dtype).A_adjoint(values).to(y.dtype)


def reconstructor(generator: LayeredGenerator, method: Method, seed: int = 0) -> Any:
    """A method as a deepinv ``Reconstructor``: ``model(y, physics)`` gives images ``(B, C, H, W)`` in [0, 1].

    It minimises what the method says, of A without the physics' noise model: how much noise there is, in units of y, is
    for the method to know (``noise_level``). The randomness of an image comes from
    ``seed`` and its y, so that neither its place nor its batch matters.

    Args:
        generator: frozen generator; images in [-1, 1] stand for intensities in [0, 1].
        method: schedule, start and constraints.
        seed: of the run.
    """
    return _reconstructor_class()(generator, method, seed)


@functools.cache
def _reconstructor_class() -> type:
    _deepinv()
    from deepinv.models import Reconstructor

    class ILOReconstructor(Reconstructor):
        """Solves for the latent points of a batch; see ``ilo_lightning.deepinv.reconstructor``."""

        def __init__(self, generator: LayeredGenerator, method: Method, seed: int) -> None:
            super().__init__(device=generator.device)
            self.generator, self.method, self.seed = generator, method, seed

        def forward(self, y: Tensor, physics: Any, **kwargs: Any) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                return _reconstruct(self.generator, self.method, self.seed, y.detach().clone(), physics).to(y)

    return ILOReconstructor


def _reconstruct(generator: LayeredGenerator, method: Method, seed: int, y: Tensor, physics: Any) -> Tensor:
    """Images in [0, 1] of measurements."""
    operator = from_deepinv(physics, generator.image_shape, intensities=True).to(y.device)
    if tuple(y.shape[1:]) != operator.output_shape:
        raise ValueError(f"y of shape {tuple(y.shape)}: this {type(physics).__name__} gives {operator.output_shape} "
                         f"for each of the generator's images {tuple(generator.image_shape)}")  # fmt: skip
    measurement = Measurement(y.to(generator.dtype), operator.weight.to(y.device, generator.dtype))
    keys = [digest_of(measurement.select([i])) for i in range(len(y))]
    trainer = {"accelerator": "cuda" if y.is_cuda else "cpu"}
    solutions = solve(generator, operator, measurement, method, keys, seed, trainer=trainer).solutions
    with torch.no_grad():
        images = [generator(solution.point.to(generator.device)) for solution in solutions]
        return (torch.cat(images).clamp(-1, 1) + 1) / 2


def _deepinv() -> Any:
    """``deepinv.physics``."""
    try:
        import deepinv.physics
    except ImportError as error:
        raise ValueError("task.operator: deepinv is not installed; pip install 'ilo-lightning[deepinv]'") from error
    return deepinv.physics


def _measure(physics: Any, x: Tensor) -> Any:
    """A(x), without noise."""
    dtype = getattr(physics, "dtype", None)
    return physics.A(x.to(dtype) if isinstance(dtype, torch.dtype) and dtype.is_complex else x)


def _dry_run(physics: Any, shape: tuple[int, int, int], intensities: bool) -> Tensor:
    """y of two images, which must be what an operator gives.

    Raises:
        ValueError: if it isn't.
    """
    what = f"task.operator.physics: A of this {type(physics).__name__}"
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device_of(physics))
    x = x if intensities else 2 * x - 1
    try:
        with torch.no_grad():
            y, alone = _measure(physics, x), _measure(physics, x[1:])
    except Exception as error:  # whatever somebody's own physics raises
        raise ValueError(f"{what} fails on images of shape (2, {', '.join(map(str, shape))}) or on one of them "
                         f"({one_line(error)}); build it for these images, and with one set of parameters for all of "
                         "a batch") from error  # fmt: skip
    if not isinstance(y, Tensor) or not y.is_floating_point():
        given = f"a {y.dtype} tensor" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(f"{what} gives {given}, expected one tensor of real numbers (of complex measurements, real "
                         "and imaginary parts as channels)")  # fmt: skip
    if y.ndim < 2 or len(y) != 2 or tuple(alone.shape) != (1, *y.shape[1:]):
        raise ValueError(f"{what} gives {tuple(y.shape)} for two images and {tuple(alone.shape)} for one, expected one "
                         "y for each")  # fmt: skip
    if not bool(y.isfinite().all()):
        raise ValueError(f"{what} gives numbers that are not finite")
    if not bool((y[1:] - alone).norm() <= 1e-3 * alone.norm()):
        raise ValueError(f"{what} gives an image another y in a batch than alone, or at every call: images of a batch "
                         "must not influence each other, and A must be fixed")  # fmt: skip
    return y


def _gives_pictures(physics: Any, y: Tensor, shape: tuple[int, int, int]) -> bool:
    """Whether y looks like pictures: as many channels, no more pixels along an axis, and what is white inside the upper
    left quarter of the image is there, mostly, in y. Projections and spectra have it everywhere."""
    if y.ndim != 4 or y.shape[1] != shape[0] or any(y.shape[axis] > shape[axis - 1] for axis in (2, 3)):
        return False
    (_, height, width), (rows, columns) = shape, y.shape[2:]
    images = torch.zeros(2, *shape, device=y.device)
    images[1, :, height // 8 : -(-3 * height // 8), width // 8 : -(-3 * width // 8)] = 1
    with torch.no_grad():
        black, white = _measure(physics, images)
    change = (white - black).square()
    return bool(change[:, : -(-rows // 2), : -(-columns // 2)].sum() > 0.9 * change.sum())


def _cast(physics: Any, dtype: torch.dtype) -> Any:
    """The physics itself, with all numbers in a precision, real or complex as they are."""

    def kind(given: torch.dtype) -> torch.dtype:
        return dtype.to_complex() if given.is_complex else dtype if given.is_floating_point else given

    physics._apply(lambda tensor: tensor.resolve_conj().to(kind(tensor.dtype)))
    for module in physics.modules():
        stated = vars(module).get("dtype")  # to which some physics cast what they get
        if isinstance(stated, torch.dtype):
            module.dtype = kind(stated)
    return physics


def _by_parts(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``fn``, such as a cast of ``Module.to``, on real and imaginary part: a cast would drop the latter."""
    if not tensor.is_complex():
        return fn(tensor)
    return torch.view_as_complex(fn(torch.view_as_real(tensor.resolve_conj())))


def _in_rows(y: Tensor) -> Tensor:
    """The values of each y as a picture ``(B, 1, H, W)``, about square, from -1 for the least to 1 for the greatest."""
    values = y.flatten(1)
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    values = 2 * (values - low) / (high - low).clamp_min(1e-12) - 1
    width = math.ceil(math.sqrt(values.shape[1]))
    height = math.ceil(values.shape[1] / width)
    empty = values.new_full((len(y), height * width - values.shape[1]), -1)
    return torch.cat([values, empty], dim=1).view(len(y), 1, height, width)
