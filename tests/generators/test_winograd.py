"""Winograd's convolution is a convolution: in exact arithmetic, and nearly as accurate in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ilo_lightning.generators import winograd
from tests.networks import rngs


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 4, 4), (2, 2, 5, 11), (3, 5, 16, 8), (1, 2, 33, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_direct_convolution(shape: tuple[int, ...], layout: torch.memory_format):
    rng = rngs(0)[0]
    x = torch.randn(shape, dtype=torch.float64, generator=rng).contiguous(memory_format=layout)
    weight = torch.randn(4, shape[1], 3, 3, dtype=torch.float64, generator=rng)
    result = winograd.convolve(x, winograd.transform_filters(weight))
    torch.testing.assert_close(result, F.conv2d(x, weight, padding=1), rtol=0, atol=1e-12)
    assert result.is_contiguous(memory_format=torch.channels_last) or shape[2] % 4 or shape[3] % 4


def test_large_batches_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 9)  # two images of four tiles
    x, weight = (torch.randn(5, 3, size, size, dtype=torch.float64, generator=rngs(1)[0]) for size in (8, 3))
    result = winograd.convolve(x, winograd.transform_filters(weight))
    torch.testing.assert_close(result, F.conv2d(x, weight, padding=1), rtol=0, atol=1e-12)


def test_rounding_error_in_float32():
    """A few times that of a direct convolution; with the usual interpolation points it would be twice as much."""
    rng = rngs(2)[0]
    x = F.leaky_relu(torch.randn(1, 256, 32, 32, generator=rng), 0.2)
    weight = torch.randn(64, 256, 3, 3, generator=rng)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error = (winograd.convolve(x, winograd.transform_filters(weight)) - exact).square().mean().sqrt()
    assert error < 2e-6 * exact.std()
