"""Photon noise on intensities."""

import pytest
import torch

from ilo_lightning.operators import (
    Denoising,
    GaussianCompressedSensing,
    Inpainting,
    PartialCirculant,
    PoissonNoise,
    SuperResolution,
    measure,
)

SHAPE = (3, 8, 8)


def rngs(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("level", [-1.0, -0.5, 0.3, 1.0])
def test_mean_and_variance(level: float):
    """The mean is y; the variance is 4 λ / peak² with λ = peak (y + 1) / 2. Compared with scipy's distribution."""
    from scipy import stats

    peak, y = 25.0, torch.full((1, 200_000), level, dtype=torch.float64)
    noisy = PoissonNoise(peak)(y, rngs(1))
    expected = stats.poisson(peak * (level + 1) / 2)
    counts = (noisy + 1) * peak / 2
    torch.testing.assert_close(counts, counts.round(), atol=1e-9, rtol=0)
    assert abs(counts.mean() - expected.mean()) < 4 * (expected.var() / y.numel()) ** 0.5 + 1e-12
    assert abs(counts.var() - expected.var()) < 0.02 * expected.var() + 1e-12


def test_an_image_does_not_see_the_others():
    y = torch.rand(3, *SHAPE) * 2 - 1
    together = PoissonNoise(10)(y, rngs(3))
    alone = [PoissonNoise(10)(y[i : i + 1], [torch.Generator().manual_seed(i)])[0] for i in range(3)]
    assert torch.equal(together, torch.stack(alone))


def test_unobserved_entries_stay_zero():
    operator = Inpainting(SHAPE, fraction=0.3)
    measurement = measure(operator, PoissonNoise(10), torch.rand(2, *SHAPE) * 2 - 1, rngs(2))
    hidden = (operator.weight == 0).expand_as(measurement.y)
    assert hidden.any() and bool((measurement.y[hidden] == 0).all())


@pytest.mark.parametrize(
    "operator",
    [Denoising(SHAPE), Inpainting(SHAPE), SuperResolution(SHAPE, factor=2, kernel="area")],
    ids=lambda operator: type(operator).__name__,
)
def test_operators_that_keep_the_range_do(operator):
    PoissonNoise(10).check(operator)
    assert operator(torch.randn(4, *SHAPE).sign()).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "operator",
    [
        SuperResolution(SHAPE, factor=2),
        PartialCirculant(SHAPE, fraction=0.1),
        GaussianCompressedSensing(SHAPE, fraction=0.1),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_refused_where_measurements_can_be_negative(operator):
    with pytest.raises(ValueError, match=f"{type(operator).__name__} measures is not known to be an intensity"):
        PoissonNoise(10).check(operator)
    assert operator(torch.randn(8, *SHAPE).sign()).abs().max() > 1  # and they can


@pytest.mark.parametrize("peak", [0, -1.0, float("nan"), float("inf"), "many", None])
def test_bad_peak(peak):
    with pytest.raises(ValueError, match=r"task\.noise\.peak"):
        PoissonNoise(peak)
