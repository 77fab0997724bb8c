"""Metrics against the formulas of their papers, written in numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from ilo_lightning.metrics import PROTOCOLS, evaluate, mean_and_interval, mse, psnr, ssim


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def oracle_ssim(x, y):
    """Wang et al. 2004, equation 13, on one image (C, H, W) in [0, 1]; windows reflect at the border."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(image):
        for axis in (-2, -1):
            image = correlate1d(image, taps, axis=axis, mode="mirror")
        return image

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean()


@pytest.mark.parametrize("shape", [(2, 3, 16, 21), (3, 1, 11, 11), (1, 3, 64, 64), (1, 1, 140, 12)], ids=str)
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_metrics_agree_with_their_formulas(shape, noise):
    truth = images(*shape)
    x = (truth + noise * images(*shape, seed=1)).clamp(-1, 1)
    a, b = (x.double().numpy() + 1) / 2, (truth.double().numpy() + 1) / 2
    squared = ((a - b) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(mse(x, truth), squared, rtol=1e-12)
    np.testing.assert_allclose(psnr(x, truth), 10 * np.log10(1 / squared), rtol=1e-12)
    np.testing.assert_allclose(ssim(x, truth), [oracle_ssim(*pair) for pair in zip(a, b, strict=True)], atol=1e-10)


def test_identical_images_are_perfect():
    x = images(2, 3, 16, 16)
    assert evaluate(x, x) == {"mse": [0, 0], "psnr": [math.inf, math.inf], "ssim": [pytest.approx(1)] * 2}


def test_black_against_white():
    white = torch.ones(1, 3, 12, 12)
    assert mse(white, -white).item() == 1
    assert psnr(white, -white).item() == 0


def test_what_a_picture_cannot_show_does_not_count():
    truth = images(2, 3, 16, 16)
    x = 3 * images(2, 3, 16, 16, seed=1)
    assert evaluate(x, truth) == evaluate(x.clamp(-1, 1), truth)
    assert evaluate(x, truth) != evaluate(x / 3, truth)


def test_images_do_not_influence_each_other():
    x, truth = images(4, 3, 16, 16), images(4, 3, 16, 16, seed=1)
    together = evaluate(x, truth)
    for name, values in together.items():
        alone = [evaluate(x[i : i + 1], truth[i : i + 1])[name][0] for i in range(4)]
        assert values == pytest.approx(alone, rel=1e-12)
    x[2] = math.nan
    damaged = evaluate(x, truth)
    for name, values in damaged.items():
        assert math.isnan(values[2])
        assert values[:2] == pytest.approx(together[name][:2], rel=1e-12)


def test_small_images_have_no_ssim():
    x = images(2, 3, 10, 64)
    assert set(evaluate(x, x)) == {"mse", "psnr"}
    with pytest.raises(ValueError, match="11×11"):
        ssim(x, x)


def test_every_metric_has_a_protocol():
    x = images(1, 3, 16, 16)
    assert {*evaluate(x, x), "residual", "probability"} == set(PROTOCOLS)
    assert not any("\n" in description for description in PROTOCOLS.values())


def test_an_empty_batch():
    x = torch.empty(0, 3, 16, 16)
    assert evaluate(x, x) == {"mse": [], "psnr": [], "ssim": []}


@pytest.mark.parametrize("other", [(1, 3, 16, 16), (2, 1, 16, 16), (2, 3, 16)])
@pytest.mark.parametrize("metric", [mse, psnr, ssim, evaluate])
def test_shapes_must_agree(metric, other):
    with pytest.raises(ValueError, match="one shape"):
        metric(images(2, 3, 16, 16), images(*other))


def test_mean_and_interval():
    values = np.random.default_rng(0).normal(20, 3, size=50)
    mean, half_width = mean_and_interval(values)
    assert mean == pytest.approx(values.mean())
    assert half_width == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(50))
    assert mean_and_interval([2.5, 2.5]) == (2.5, 0)


def test_mean_and_interval_where_there_is_none():
    mean, half_width = mean_and_interval([7.0])
    assert mean == 7
    assert math.isnan(half_width)
    mean, half_width = mean_and_interval([1.0, math.inf])
    assert mean == math.inf
    assert math.isnan(half_width)
    with pytest.raises(ValueError, match="no values"):
        mean_and_interval([])
