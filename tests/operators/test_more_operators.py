"""Operators beyond the paper, against independent implementations."""

from __future__ import annotations

from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage

from ilo_lightning.checks.operators import check_operator
from ilo_lightning.operators import (
    JPEG,
    Blur,
    Clipping,
    GaussianBlur,
    Greyscale,
    Inpainting,
    LinearOperator,
    MotionBlur,
    PartialCirculant,
    PhaseRetrieval,
    SuperResolution,
    compose,
)

SHAPE = (3, 32, 24)


def images(shape=SHAPE, count=2, dtype=torch.float64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.rand(count, *shape, generator=rng, dtype=dtype) * 2 - 1


@pytest.mark.parametrize(
    "make",
    [
        partial(GaussianBlur, sigma=1.2),
        partial(MotionBlur, length=7, angle=30),
        Greyscale,
        partial(Clipping, gain=2.5),
        partial(JPEG, quality=20),
        partial(PhaseRetrieval, oversampling=2, seed=4),
        partial(compose, operators=[partial(GaussianBlur, sigma=1), partial(SuperResolution, factor=4)]),
        partial(compose, operators=[Greyscale, partial(Clipping, gain=2), partial(JPEG, quality=30)]),
    ],
    ids=lambda make: getattr(make, "func", make).__name__,
)
def test_the_laws_of_operators(make):
    verdicts = check_operator(lambda: make(SHAPE), SHAPE)
    assert all(verdict.holds for verdict in verdicts), [str(verdict) for verdict in verdicts]


def test_gaussian_blur_against_scipy():
    x = images()
    expected = ndimage.gaussian_filter(x.numpy(), 1.5, mode="mirror", truncate=4.0, axes=(2, 3))
    np.testing.assert_allclose(GaussianBlur(SHAPE, 1.5)(x).numpy(), expected, atol=1e-6)


def test_blur_against_scipy_with_a_lopsided_kernel():
    kernel = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = images()
    taps = (kernel / kernel.sum()).numpy()
    expected = np.stack([[ndimage.correlate(c, taps, mode="mirror") for c in picture] for picture in x.numpy()])
    np.testing.assert_allclose(Blur(SHAPE, kernel)(x).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("length", "angle"), [(1, 0), (7, 0), (7, 90), (9.5, 33), (5, -120)])
def test_a_motion_blurs_moments(length, angle):
    """Mean, and covariance of a uniform path with its bilinear spread, which adds at most 1/4 per axis."""
    kernel = MotionBlur((1, 32, 32), length, angle)._kernel.double()
    grid = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    across, up = kernel.sum(dim=0), kernel.sum(dim=1).flip(0)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert (across * grid).sum() == pytest.approx(0, abs=1e-6)
    assert (up * grid).sum() == pytest.approx(0, abs=1e-6)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    variance = length**2 / 12
    mixed = (kernel.flip(0) * grid[:, None] * grid).sum()
    assert mixed == pytest.approx(variance * c * s, abs=0.05)
    for marginal, share in ((across, c), (up, s)):
        assert -1e-3 <= (marginal * grid**2).sum() - variance * share**2 <= 0.25 + 1e-3


def test_greyscale_against_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 127.5 - 1
    grey = (Greyscale(SHAPE)(x)[0, 0] + 1) * 127.5
    np.testing.assert_allclose(grey.numpy(), np.asarray(Image.fromarray(pixels).convert("L")), atol=0.51)


def test_clipping_and_its_gradient():
    x = images().requires_grad_()
    y = Clipping(SHAPE, 3)(x)
    intensity = (x.detach().numpy() + 1) / 2
    np.testing.assert_allclose((y.detach().numpy() + 1) / 2, np.minimum(3 * intensity, 1), atol=1e-12)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.where(y < 1, 3.0, 0.0).double())


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_jpeg_against_scipys_cosine_transform(quality):
    """Grey: blocks of 8x8, transformed, divided by the file's table, rounded. A coefficient near the middle of two
    steps may be rounded either way, and so a block or two of the twelve may differ."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(32, 24)), 2) * 400 + 128
    pixels = smooth.clip(0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    table = np.array(Image.open(file).quantization[0]).reshape(8, 8)
    expected = np.empty((32, 24))
    for row, column in np.ndindex(4, 3):
        place = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        coefficients = np.round(fft.dctn(pixels[place] - 128.0, norm="ortho") / table) * table
        expected[place] = fft.idctn(coefficients, norm="ortho") + 128
    x = torch.from_numpy(pixels)[None, None].float() / 127.5 - 1
    seen = (JPEG((1, 32, 24), quality)(x)[0, 0] + 1) * 127.5
    difference = np.abs(seen.numpy() - expected.clip(0, 255))
    worst = difference.reshape(4, 8, 3, 8).max(axis=(1, 3))
    assert (worst <= 1.5).sum() >= 10


def test_jpeg_in_colour_is_the_file_that_pillow_writes():
    pixels = np.random.default_rng(2).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=30)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 127.5 - 1
    seen = (JPEG(SHAPE, 30)(x)[0].permute(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(seen.numpy(), np.asarray(Image.open(file)), atol=1e-9)


def test_jpeg_lets_the_gradient_through():
    x = (images() * 1.5).requires_grad_()
    (gradient,) = torch.autograd.grad(JPEG(SHAPE, 10)(x).sum(), x)
    assert torch.equal(gradient, (x.abs() <= 1).double())


def test_phase_retrieval_against_numpy():
    operator = PhaseRetrieval(SHAPE, oversampling=3.0, seed=2)
    rows, columns = operator.output_shape[1:]
    assert 3 * 32 * 24 <= rows * columns <= 3.5 * 32 * 24
    x = images()
    phases = operator._diffuser.double().numpy() @ np.array([1, 1j])
    padded = np.zeros((2, 3, rows, columns), dtype=complex)
    padded[..., :32, :24] = (x.numpy() + 1) / 2 * phases
    y = operator(x)
    np.testing.assert_allclose(y.numpy(), np.abs(np.fft.fft2(padded)) / np.sqrt(rows * columns), atol=1e-9)
    torch.testing.assert_close(y.square().sum(), ((x + 1) / 2).square().sum(), rtol=1e-6, atol=0)
    assert not torch.equal(operator._diffuser, PhaseRetrieval(SHAPE, 3.0, seed=3)._diffuser)


def test_a_composition_is_one_after_another():
    parts = [partial(GaussianBlur, sigma=1.0), partial(SuperResolution, factor=2), partial(Inpainting, fraction=0.5)]
    operator = compose(SHAPE, parts)
    x = images()
    expected = Inpainting((3, 16, 12), fraction=0.5)(SuperResolution(SHAPE, 2)(GaussianBlur(SHAPE, 1.0)(x)))
    assert torch.equal(operator(x), expected) and isinstance(operator, LinearOperator)
    assert torch.equal(operator.weight, Inpainting((3, 16, 12), fraction=0.5).weight)
    assert not isinstance(compose(SHAPE, [Clipping, *parts]), LinearOperator)
    assert compose(SHAPE, [Clipping, JPEG]).straight_through and compose(SHAPE, [Clipping, JPEG]).keeps_range


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: GaussianBlur(SHAPE, 0), r"task\.sigma=0"),
        (lambda: GaussianBlur(SHAPE, 10), r"task\.sigma=10: .*; use at most 5\.75$"),
        (lambda: GaussianBlur(SHAPE, 1e9), r"task\.sigma=1e\+09: .*; use at most 5\.75$"),
        (lambda: MotionBlur(SHAPE, 1e9), r"task\.length=1e\+09: .*; use at most 44$"),
        (lambda: Blur(SHAPE, torch.ones(3, 49)), "smaller kernel"),
        (lambda: Blur(SHAPE, [[1, 2], [3]]), r"task\.kernel=\[\[1, 2\], \[3\]\]: expected rows of numbers, all"),
        (lambda: Blur(SHAPE, [["a"]]), r"task\.kernel=\[\['a'\]\]: expected rows of numbers"),
        (lambda: MotionBlur(SHAPE, -1), r"task\.length=-1"),
        (lambda: MotionBlur(SHAPE, 3, float("nan")), r"task\.angle=nan"),
        (lambda: Blur(SHAPE, [[1.0, 1.0]]), "both odd"),
        (lambda: Blur(SHAPE, [[-1.0]]), ">= 0"),
        (lambda: Greyscale((1, 8, 8)), r"^task\.operator: images of shape \(1, 8, 8\) have no colours"),
        (lambda: Clipping(SHAPE, float("inf")), r"task\.gain=inf"),
        (lambda: JPEG(SHAPE, 0), r"task\.quality=0"),
        (lambda: JPEG((2, 8, 8), 10), "1 or 3 channels"),
        (lambda: PhaseRetrieval(SHAPE, 0.5), r"task\.oversampling=0\.5: expected a number in 1 … 64"),
        (lambda: PhaseRetrieval(SHAPE, 1e9), r"task\.oversampling=1000000000\.0"),
        (lambda: compose(SHAPE, []), "at least one"),
        (lambda: compose(SHAPE, [Greyscale(SHAPE)]), "_partial_"),
        (lambda: compose(SHAPE, [partial(PartialCirculant, fraction=0.5), Greyscale]), "come last"),
    ],
)
def test_what_makes_no_operator_is_refused(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_the_largest_blurs_can_be_had():
    for operator in (GaussianBlur(SHAPE, 5.75), MotionBlur(SHAPE, 44, 0)):
        torch.testing.assert_close(operator(torch.ones(1, *SHAPE)), torch.ones(1, *SHAPE))


def test_y_is_a_picture_if_what_every_part_gives_is():
    assert compose(SHAPE, [partial(GaussianBlur, sigma=1), Greyscale]).measures_pictures
    assert not compose(SHAPE, [PhaseRetrieval, Clipping]).measures_pictures
