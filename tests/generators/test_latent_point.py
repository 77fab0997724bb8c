"""LatentPoint: batches of images taken apart and put together."""

from __future__ import annotations

import pytest
import torch

from ilo_lightning.generators.base import LatentPoint, variable_of
from tests.networks import rngs, small_stylegan2


def test_select_and_cat_are_inverse():
    point = small_stylegan2().sample(rngs(1, 2, 3))
    parts = [point.select([i]) for i in (2, 0, 1)]
    back = LatentPoint.cat(parts).select(torch.tensor([1, 2, 0]))
    assert back.batch_size == 3
    assert all(torch.equal(back[name], point[name]) for name in point.tensors)


def test_repeat_keeps_copies_together():
    point = LatentPoint(0, {"latent": torch.arange(3.0)[:, None]})
    assert point.repeat(2)["latent"].flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_cat_refuses_points_that_differ():
    generator = small_stylegan2()
    point = generator.sample(rngs(1))
    with pytest.raises(ValueError, match=r"layer 0 .* layer 1"):
        LatentPoint.cat([point, generator.advance(point, 1)])


def test_refuses_tensors_of_different_batch_sizes():
    with pytest.raises(ValueError, match="batch"):
        LatentPoint(0, {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})


def test_detach_shares_no_memory():
    point = LatentPoint(0, {"latent": torch.zeros(1, 2, requires_grad=True)})
    copy = point.detach()
    copy["latent"].add_(1)
    assert point["latent"].sum() == 0 and not copy["latent"].requires_grad


@pytest.mark.parametrize(("name", "variable"), [("noise_3", "noise"), ("activation", "activation"), ("a_b", "a_b")])
def test_variable_of(name: str, variable: str):
    assert variable_of(name) == variable
