"""The dense Gaussian matrix: its distribution, and that storing it changes nothing."""

import pytest
import torch

from ilo_lightning.operators import GaussianCompressedSensing, gaussian

SHAPE = (3, 16, 16)


def matrix(operator) -> torch.Tensor:
    """A ``(m, n)``, column by column."""
    n = torch.Size(operator.input_shape).numel()
    return operator(torch.eye(n, dtype=torch.float64).view(n, *operator.input_shape)).T


def test_entries_are_independent_and_normal():
    from scipy import stats

    a = matrix(GaussianCompressedSensing(SHAPE, fraction=0.25, seed=1))
    m, n = a.shape
    assert (m, n) == (192, 768)
    assert stats.kstest((a * m**0.5).flatten().numpy(), "norm").pvalue > 0.01
    gram = a.T @ a  # expected: the identity, off-diagonal entries of variance 1/m
    off = gram[~torch.eye(n, dtype=torch.bool)]
    assert abs(off.var() * m - 1) < 0.02 and abs(gram.diagonal().mean() - 1) < 0.02


@pytest.mark.parametrize("block", [1, 5 * 768, 2**22], ids=["a row at a time", "blocks that don't divide", "one block"])
def test_drawn_anew_is_the_same_matrix(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gaussian, "BLOCK_ENTRIES", block)
    stored = GaussianCompressedSensing(SHAPE, measurements=37, seed=2)
    anew = GaussianCompressedSensing(SHAPE, measurements=37, seed=2, max_bytes=4 * 37 * 768 - 1)
    assert stored._rows is not None and anew._rows is None
    assert torch.equal(torch.cat(list(anew._blocks())), stored._rows)
    torch.testing.assert_close(matrix(anew), matrix(stored), rtol=0, atol=1e-14)
    assert stored.state_dict().keys() == anew.state_dict().keys()  # nothing that identifies A depends on the storage


def test_more_measurements_contain_the_rows_of_fewer():
    few, many = (GaussianCompressedSensing(SHAPE, measurements=m, seed=3) for m in (20, 300))
    torch.testing.assert_close(matrix(few) * 20**0.5, matrix(many)[:20] * 300**0.5)


@pytest.mark.slow
def test_gradients_of_both_orders_without_a_stored_matrix():
    operator = GaussianCompressedSensing((1, 3, 3), measurements=4, max_bytes=0)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, x)
    assert torch.autograd.gradgradcheck(lambda image: operator(image).square(), x)


def test_more_than_the_machine_has_is_not_stored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gaussian, "memory", lambda: 1000)
    operator = GaussianCompressedSensing((1, 3, 3), fraction=1, max_bytes=2**60)
    assert operator._rows is not None
    operator = GaussianCompressedSensing((1, 16, 16), fraction=1, max_bytes=2**60)
    assert operator._rows is None


def test_a_hopeless_matrix_is_refused():
    """1024², 10 %: nearly 10¹² entries."""
    with pytest.raises(ValueError, match=r"task\.measurements=314573 .*GiB.*task=compressed_sensing"):
        GaussianCompressedSensing((3, 1024, 1024), fraction=0.1)
