"""Measurements: noise, weights, and what is shared between images."""

import math

import pytest
import torch

from ilo_lightning.operators import (
    Denoising,
    GaussianNoise,
    Inpainting,
    Measurement,
    PartialCirculant,
    SuperResolution,
    measure,
)
from ilo_lightning.randomness import generator_for

SHAPE = (3, 8, 8)


def rngs(*images):
    return [generator_for(0, image, "noise") for image in images]


def pictures(batch=3):
    return torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("sigma", [0.05, 2])
def test_noise_is_gaussian(sigma):
    noise = GaussianNoise(sigma)(torch.zeros(2, 50_000), rngs(0, 1)) / sigma
    count = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs(noise.pow(4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((noise[0] * noise[1]).mean()) < 5 / math.sqrt(count / 2)  # images are independent


def test_no_noise_returns_y():
    y = pictures()
    assert GaussianNoise(0)(y, rngs(0, 1, 2)) is y
    assert GaussianNoise()(y, rngs(0, 1, 2)) is y


def test_float32_and_float64_see_the_same_noise():
    zeros = torch.zeros(2, *SHAPE)
    single = GaussianNoise(0.2)(zeros, rngs(0, 1))
    double = GaussianNoise(0.2)(zeros.double(), rngs(0, 1))
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(single, double.float())
    assert bool(single.any())


def test_noise_of_an_image_does_not_depend_on_its_batch():
    y = pictures()
    batch = GaussianNoise(0.1)(y, rngs("a", "b", "c"))
    alone = GaussianNoise(0.1)(y[1:2], rngs("b"))
    assert torch.equal(batch[1:2], alone)
    assert not torch.equal(batch[0] - y[0], batch[1] - y[1])


def test_sigma_per_image():
    y = pictures()
    noisy = GaussianNoise(torch.tensor([0.0, 0.5, 1.0]))(y, rngs(0, 1, 2))
    assert torch.equal(noisy[0], y[0])
    for image, sigma in ((1, 0.5), (2, 1.0)):
        alone = GaussianNoise(sigma)(y[image : image + 1], rngs(image))
        assert torch.equal(noisy[image : image + 1], alone)


@pytest.mark.parametrize(
    "sigma",
    [
        -0.1,
        float("nan"),
        float("inf"),
        True,
        "0.1",
        None,
        [0.1],
        torch.tensor([0.1, -1]),
        torch.tensor(0.1),
        torch.tensor([1]),
    ],
)
def test_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match=r"task\.noise\.sigma=") as refusal:
        GaussianNoise(sigma)
    assert repr(sigma) in str(refusal.value)


def test_one_generator_and_one_sigma_per_image():
    with pytest.raises(ValueError, match="2 random generators for 3 images"):
        GaussianNoise(0.1)(pictures(), rngs(0, 1))
    with pytest.raises(ValueError, match=r"task\.noise\.sigma has 2 entries for 3 images"):
        GaussianNoise(torch.tensor([0.1, 0.2]))(pictures(), rngs(0, 1, 2))


@pytest.mark.parametrize(
    "operator", [Denoising(SHAPE), Inpainting(SHAPE), SuperResolution(SHAPE, 2), PartialCirculant(SHAPE, 0.25)]
)
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_measure(operator, sigma):
    x = pictures()
    measurement = measure(operator, GaussianNoise(sigma), x, rngs(0, 1, 2))
    assert len(measurement) == 3
    assert measurement.y.shape == (3, *operator.output_shape)
    expected = GaussianNoise(sigma)(operator(x), rngs(0, 1, 2))
    seen = (measurement.weight > 0).expand_as(expected)
    assert torch.equal(measurement.y[seen], expected[seen])
    assert not bool(measurement.y[~seen].any())
    assert torch.equal(measurement.weight, operator.weight)
    one_at_a_time = [measure(operator, GaussianNoise(sigma), x[i : i + 1], rngs(i)).y for i in range(3)]
    torch.testing.assert_close(measurement.y, torch.cat(one_at_a_time), rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", [Denoising(SHAPE), SuperResolution(SHAPE, 1), Inpainting(SHAPE)])
def test_measurement_shares_nothing_with_image_or_operator(operator):
    x = pictures().requires_grad_()
    measurement = measure(operator, GaussianNoise(), x, rngs(0, 1, 2))
    before = x.detach().clone(), operator.weight.clone()
    assert not measurement.y.requires_grad
    measurement.y.add_(1)
    measurement.weight.add_(1)
    assert torch.equal(x, before[0])
    assert torch.equal(operator.weight, before[1])


def test_measure_in_float64():
    measurement = measure(Inpainting(SHAPE), GaussianNoise(0.1), pictures().double(), rngs(0, 1, 2))
    assert measurement.y.dtype == measurement.weight.dtype == torch.float64


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 8, 8), (1, 3, 8, 9)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"Denoising measures images of shape \(B, 3, 8, 8\)") as refusal:
        measure(Denoising(SHAPE), GaussianNoise(), torch.zeros(shape), rngs(*range(shape[0])))
    assert str(shape) in str(refusal.value)


def test_select_with_a_shared_and_with_a_weight_per_image():
    y = torch.arange(12.0).view(3, 4)
    shared = Measurement(y, torch.ones(1, 4))
    own = Measurement(y, y + 1)
    for images, rows in (([2, 0], [2, 0]), (torch.tensor([1]), [1]), (torch.tensor([True, False, True]), [0, 2])):
        assert torch.equal(shared.select(images).y, y[rows])
        assert torch.equal(shared.select(images).weight, torch.ones(1, 4))
        assert torch.equal(own.select(images).weight, y[rows] + 1)
        assert len(own.select(images)) == len(rows)
    assert len(own.select([])) == 0


def test_to_moves_y_and_weight():
    moved = Measurement(torch.ones(2, 3), torch.ones(1, 3)).to(torch.float64)
    assert moved.y.dtype == moved.weight.dtype == torch.float64


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 5), (1, 3, 4)])
def test_weight_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match="does not broadcast") as refusal:
        Measurement(torch.zeros(3, 4), torch.ones(shape))
    assert str(shape) in str(refusal.value)
    assert "(3, 4)" in str(refusal.value)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_weight_is_refused(bad):
    weight = torch.ones(1, 4)
    weight[0, 2] = bad
    with pytest.raises(ValueError, match="finite and >= 0"):
        Measurement(torch.zeros(3, 4), weight)


def test_an_image_of_which_nothing_was_observed_is_refused():
    weight = torch.ones(2, 4)
    weight[1] = 0
    with pytest.raises(ValueError, match="nothing was observed"):
        Measurement(torch.zeros(2, 4), weight)
    weight[1, 3] = 0.1
    Measurement(torch.zeros(2, 4), weight)
