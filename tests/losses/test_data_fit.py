"""The terms of a data fit, and their weighted sum."""

from __future__ import annotations

import pytest
import torch

from ilo_lightning.losses import DeadZone, WeightedFit, mean_squared_error
from ilo_lightning.method_config import method_from_config
from ilo_lightning.operators import Measurement
from ilo_lightning.schedule import ScheduleError


@pytest.fixture
def measurement() -> Measurement:
    rng = torch.Generator().manual_seed(0)
    y = torch.rand(3, 1, 8, 8, generator=rng, dtype=torch.float64)
    return Measurement(y, (torch.rand(1, 1, 8, 8, generator=rng) > 0.3).double())


def test_errors_within_the_dead_zone_cost_nothing(measurement: Measurement):
    sign = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0)
    error = torch.tensor([0.0, 0.1 - 1e-9, 0.3], dtype=torch.float64).view(3, 1, 1, 1) * sign
    prediction = (measurement.y + error).requires_grad_()
    fit = DeadZone(0.1)(prediction, measurement)
    torch.testing.assert_close(fit, torch.tensor([0.0, 0.0, 0.04], dtype=torch.float64), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(fit.sum(), prediction)
    assert not gradient[:2].any()
    assert torch.equal(gradient[2] != 0, measurement.weight[0] > 0)


def test_without_a_zone_it_is_the_mean_squared_error(measurement: Measurement):
    prediction = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(DeadZone(0.0)(prediction, measurement), mean_squared_error(prediction, measurement))


def test_a_gradient_check_across_its_edge(measurement: Measurement):
    prediction = (measurement.y + 0.2 * torch.randn(3, 1, 8, 8, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DeadZone(0.1)(x, measurement), prediction)


def test_a_weighted_fit_is_the_sum_of_its_terms(measurement: Measurement):
    def never(prediction, measurement):
        raise AssertionError("a term without weight is not computed")

    prediction = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    terms = {"mse": mean_squared_error, "dead_zone": DeadZone(0.5), "perceptual": never}
    fit = WeightedFit(terms, {"mse": 2, "perceptual": 0, "dead_zone": 0.5})(prediction, measurement)
    expected = 2 * mean_squared_error(prediction, measurement) + 0.5 * DeadZone(0.5)(prediction, measurement)
    assert torch.equal(fit, expected)
    assert torch.equal(WeightedFit(terms, {"mse": 1.0})(prediction, measurement),
                       mean_squared_error(prediction, measurement))  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data_fit": {"mse": -1}}, r"method\.data_fit\.mse=-1: expected a finite number at least 0"),
        ({"data_fit": {"mse": float("inf")}}, r"method\.data_fit\.mse=inf"),
        ({"data_fit": {"mse": 0, "perceptual": 0}}, r"method\.data_fit=.*nothing.*method\.data_fit\.mse=1"),
        ({"data_fit": {"lpips": 1}}, r"method\.data_fit=lpips: expected one of mse, perceptual, dead_zone"),
        ({"data_fit": 3}, r"method\.data_fit=3: expected a number per name"),
        ({"dead_zone": -0.1}, r"method\.dead_zone=-0\.1"),
    ],
)
def test_weights_that_are_refused(fields: dict, words: str):
    with pytest.raises(ScheduleError, match=words):
        method_from_config(name="m", layers=[0], steps=1, lr=0.1, free=["latent"], **fields)
