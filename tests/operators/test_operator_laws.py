"""Laws that every operator obeys, at every size."""

import itertools
from functools import partial

import pytest
import torch

from ilo_lightning.operators import (
    Denoising,
    GaussianBlur,
    GaussianCompressedSensing,
    Greyscale,
    Inpainting,
    LinearOperator,
    MotionBlur,
    PartialCirculant,
    SuperResolution,
    compose,
)

SHAPES = [(3, 16, 16), (1, 12, 20), (3, 9, 15), (2, 7, 5), (1, 1, 9)]


def operators_for(shape):
    """Every operator that an image of this shape allows, by name."""
    _, height, width = shape
    yield "denoising", Denoising(shape)
    yield "random pixels", Inpainting(shape, fraction=0.4, seed=3)
    if height > 1:
        yield "centre box", Inpainting(shape)
    for factor, kernel in itertools.product((1, 2, 3, 4), ("bicubic", "area")):
        if height % factor == 0 and width % factor == 0:
            yield f"{kernel} {factor}", SuperResolution(shape, factor=factor, kernel=kernel)
    yield "circulant 30 %", PartialCirculant(shape, fraction=0.3, seed=5)
    yield "circulant 1", PartialCirculant(shape, measurements=1)
    yield "circulant all", PartialCirculant(shape, fraction=1)
    yield "gaussian 30 %", GaussianCompressedSensing(shape, fraction=0.3, seed=5)
    yield "gaussian drawn anew", GaussianCompressedSensing(shape, fraction=0.3, seed=5, max_bytes=0)
    if shape[0] == 3:
        yield "greyscale", Greyscale(shape)
    if min(height, width) > 4:
        yield "gaussian blur", GaussianBlur(shape, sigma=0.9)
        yield "motion blur", MotionBlur(shape, length=4, angle=20)
        parts = [partial(GaussianBlur, sigma=0.7), partial(Inpainting, fraction=0.4), partial(MotionBlur, length=3)]
        yield "composition", compose(shape, parts)


CASES = [
    pytest.param(operator, id=f"{name} {shape}".replace(" ", "-"))
    for shape in SHAPES
    for name, operator in operators_for(shape)
]
every_operator = pytest.mark.parametrize("operator", CASES)


def random_pair(operator, batch=2, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *operator.input_shape, generator=rng, dtype=dtype)
    y = torch.randn(batch, *operator.output_shape, generator=rng, dtype=dtype)
    return x, y


@every_operator
def test_shapes_and_dtypes(operator):
    for dtype in (torch.float32, torch.float64):
        x, y = random_pair(operator, dtype=dtype)
        assert operator(x).shape == y.shape
        assert operator.adjoint(y).shape == x.shape
        assert operator.picture(y).ndim == 4
        assert {operator(x).dtype, operator.adjoint(y).dtype, operator.picture(y).dtype} == {dtype}
    assert torch.broadcast_shapes(operator.weight.shape, (1, *operator.output_shape)) == (1, *operator.output_shape)
    assert bool((operator.weight >= 0).all())


@every_operator
def test_adjoint(operator):
    x, y = random_pair(operator)
    left, right = torch.sum(operator(x) * y), torch.sum(x * operator.adjoint(y))
    assert abs(left - right) <= 1e-10 * x.norm() * y.norm()


@every_operator
def test_linear(operator):
    x, _ = random_pair(operator)
    combined = operator(2.5 * x[:1] - 0.75 * x[1:])
    torch.testing.assert_close(combined, 2.5 * operator(x[:1]) - 0.75 * operator(x[1:]), rtol=0, atol=1e-12)


@every_operator
def test_gradient_is_the_adjoint(operator):
    x, y = random_pair(operator)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.sum(operator(x) * y), x)
    torch.testing.assert_close(gradient, operator.adjoint(y), rtol=0, atol=1e-12)


@every_operator
def test_batch_is_one_at_a_time(operator):
    x, _ = random_pair(operator, batch=3)
    one_at_a_time = torch.cat([operator(image[None]) for image in x])
    torch.testing.assert_close(operator(x), one_at_a_time, rtol=0, atol=1e-12)


@every_operator
def test_float32_and_float64_use_the_same_a(operator):
    x, _ = random_pair(operator, dtype=torch.float32)
    torch.testing.assert_close(operator(x).double(), operator(x.double()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [lambda: Inpainting((3, 8, 8)), lambda: SuperResolution((3, 12, 12), 3), lambda: PartialCirculant((3, 8, 8), 0.5)],
)
def test_moving_to_float64_and_back_changes_nothing(make):
    operator: LinearOperator = make()
    x, _ = random_pair(operator)
    before = operator(x)
    assert torch.equal(operator.double()(x), before)
    assert torch.equal(operator.float()(x), before)


@pytest.mark.parametrize(
    "make",
    [lambda: Inpainting((3, 8, 8)), lambda: SuperResolution((3, 8, 8), 2), lambda: PartialCirculant((3, 8, 8), 0.5)],
)
def test_half_precision_is_near(make):
    operator: LinearOperator = make()
    x, _ = random_pair(operator)
    half = operator(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), operator(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: Inpainting((3, 8, 8), fraction=0.5, seed=seed),
        lambda seed: PartialCirculant((3, 8, 8), fraction=0.5, seed=seed),
    ],
)
def test_a_is_its_seed(make):
    x, _ = random_pair(make(0))
    assert torch.equal(make(4)(x), make(4)(x))
    assert not torch.equal(make(4)(x), make(5)(x))


def test_a_does_not_depend_on_the_global_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = PartialCirculant((1, 6, 6), 0.5).state_dict()
        torch.manual_seed(2)
        other = PartialCirculant((1, 6, 6), 0.5).state_dict()
    assert one
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "operator", [Denoising, Inpainting, SuperResolution, lambda shape: PartialCirculant(shape, 0.5)]
)
@pytest.mark.parametrize("shape", [(3, 64), (3, 0, 64), (3, 64, 64.0), (True, 8, 8), (3, -8, 8)])
def test_image_shape_is_refused(operator, shape):
    with pytest.raises(ValueError, match="image_shape") as refusal:
        operator(shape)
    assert repr(shape) in str(refusal.value)


@pytest.mark.parametrize("seed", [-1, True, 0.5, "zero", None])
@pytest.mark.parametrize("operator", [Inpainting, PartialCirculant])
def test_seed_is_refused(operator, seed):
    with pytest.raises(ValueError, match=r"task\.seed") as refusal:
        operator((3, 8, 8), fraction=0.5, seed=seed)
    assert repr(seed) in str(refusal.value)
