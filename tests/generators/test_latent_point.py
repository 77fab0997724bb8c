"""LatentPoint: batches of images taken apart and put together."""

from __future__ import annotations

import pytest
import torch

from ilo_lightning.generators.base import LatentPoint, advance, decode, variable_of
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


@pytest.mark.parametrize(("at_once", "batches"), [(None, [5]), (5, [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_images_and_gradients_are_the_same_whatever_is_made_at_once(at_once: int | None, batches: list[int]):
    generator = small_stylegan2(dtype=torch.float64)
    point = generator.advance(generator.sample(rngs(*range(5))), 1).detach()
    point = point.map(lambda tensor: tensor.requires_grad_())
    seen: list[int] = []
    handle = generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].batch_size))
    image = decode(generator, point, at_once)
    assert seen == batches
    handle.remove()
    deeper = decode(generator, advance(generator, point, 2, at_once))
    results = [
        [made, *torch.autograd.grad(made.pow(3).sum(), list(point.tensors.values()))]
        for made in (image, deeper, generator(point))
    ]
    torch.testing.assert_close(results[0], results[2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[1], results[2], rtol=1e-9, atol=1e-9)
