"""Compressed sensing: the FFT against the explicit matrix, and the statistics of A."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ilo_lightning.operators import PartialCirculant


def explicit_matrix(operator):
    """√(n/m) · circulant(g)[rows] · diag(signs), by scipy; its draws are read from the operator."""
    g, signs, rows = (operator.get_buffer(name).double().numpy() for name in ("_filter", "_signs", "_rows"))
    matrix = scipy.linalg.circulant(g)[rows.astype(int)] * signs
    return math.sqrt(len(g) / len(rows)) * matrix


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (3, 8, 6)])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 1.0])
def test_equals_the_explicit_matrix(shape, fraction):
    operator = PartialCirculant(shape, fraction=fraction, seed=2)
    matrix = explicit_matrix(operator)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, *shape)), rng.standard_normal((2, len(matrix)))
    np.testing.assert_allclose(operator(torch.from_numpy(x)).numpy(), x.reshape(2, -1) @ matrix.T, atol=1e-12)
    adjoint = operator.adjoint(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(adjoint.reshape(2, -1), y @ matrix, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_norm_is_kept_on_average(fraction):
    shape = (1, 8, 8)
    x = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, *shape) + 0.3
    ratios = torch.stack(
        [PartialCirculant(shape, fraction, seed=seed)(x).square().sum() / x.square().sum() for seed in range(600)]
    )
    standard_error = ratios.std() / math.sqrt(len(ratios))
    assert standard_error < 0.03
    assert abs(ratios.mean() - 1) < 4 * standard_error


def test_draws_have_the_stated_distribution():
    operator = PartialCirculant((3, 32, 32), fraction=0.1)
    n = 3 * 32 * 32
    g, signs, rows = (operator.get_buffer(name).double() for name in ("_filter", "_signs", "_rows"))
    assert signs.unique().tolist() == [-1, 1]
    assert abs(signs.mean()) < 4 / math.sqrt(n)
    assert abs(g.mean()) < 4 / n
    assert abs(g.square().sum() - 1) < 4 * math.sqrt(2 / n)
    assert abs((g * signs).sum()) < 4  # independent of each other
    assert bool((rows.diff() > 0).all())
    assert rows.min() >= 0
    assert rows.max() < n
    assert abs(rows.mean() / n - 0.5) < 4 / math.sqrt(12 * len(rows))


@pytest.mark.parametrize(
    ("settings", "m"),
    [
        ({"fraction": 0.1}, 19),
        ({"fraction": 1e-6}, 1),
        ({"fraction": 1}, 192),
        ({"measurements": 1}, 1),
        ({"measurements": 192}, 192),
        ({"measurements": np.int64(7)}, 7),
    ],
)
def test_number_of_measurements(settings, m):
    operator = PartialCirculant((3, 8, 8), **settings)
    assert operator.output_shape == (m,)
    assert operator(torch.zeros(2, 3, 8, 8)).shape == (2, m)


def test_more_measurements_contain_the_fewer():
    few, many = (PartialCirculant((1, 8, 8), measurements=m, seed=1) for m in (8, 32))
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    seen = torch.isin(many.get_buffer("_rows"), few.get_buffer("_rows"))
    assert int(seen.sum()) == 8
    torch.testing.assert_close(few(x), many(x)[:, seen] * math.sqrt(32 / 8))


def test_picture_is_in_the_range_of_the_image():
    operator = PartialCirculant((3, 16, 16), fraction=0.1)
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    y = operator(x)
    picture = operator.picture(y)
    torch.testing.assert_close(picture, 0.1 * operator.adjoint(y), rtol=1e-2, atol=1e-6)
    # The least-norm image that explains 10 % of an image has √0.1 of its size.
    assert 0.2 < picture.std() / x.std() < 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [("fraction", value) for value in (0, 0.0, 1.5, -1, float("nan"), True, "0.1", [0.1])]
    + [("measurements", value) for value in (0, 193, -5, 10.0, float("nan"), True, "10")],
)
def test_value_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"task\.{field}=") as refusal:
        PartialCirculant((3, 8, 8), **{field: value})
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(("settings", "word"), [({}, "neither"), ({"fraction": 0.5, "measurements": 5}, "both")])
def test_exactly_one_of_fraction_and_measurements(settings, word):
    with pytest.raises(ValueError, match=f"{word} of task.fraction and task.measurements .* exactly one"):
        PartialCirculant((3, 8, 8), **settings)
