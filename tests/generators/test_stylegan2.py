"""StyleGAN2: agreement with an independent implementation, the law of continuity, latent spaces, bad shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.stylegan2 import SPACES, StyleGAN2
from tests.networks import rngs, small_stylegan2

FIXTURES = Path(__file__).parents[1] / "fixtures" / "stylegan2"


def rosinality_state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The weights that the fixture's README defines."""
    state = {}
    for number, key in enumerate(sorted(shapes)):
        rng = np.random.Generator(np.random.PCG64(1000 + number))
        values = torch.from_numpy(rng.standard_normal(shapes[key], dtype=np.float32))
        if key.startswith("style.") and key.endswith(".weight"):
            values = 100 * values
        elif key.endswith("modulation.bias"):
            values = 1 + 0.1 * values
        elif key.endswith(("noise.weight", ".bias")):
            values = 0.1 * values
        state[key] = values
    return state


def from_rosinality(name: str) -> tuple[StyleGAN2, dict[str, np.ndarray]]:
    record = json.loads((FIXTURES / f"{name}.json").read_text())
    arrays = dict(np.load(FIXTURES / f"{name}.npz"))
    state = rosinality_state(record["shapes"])
    blocks = int(np.log2(record["size"])) - 1
    channels = [state["conv1.conv.weight"].shape[1]]
    channels += [state[f"convs.{2 * b}.conv.weight"].shape[1] for b in range(blocks - 1)]
    generator = StyleGAN2(record["size"], channels, record["style_dim"], record["n_mlp"])
    ours = {name: buffer for name, buffer in generator.state_dict().items() if name not in state}
    for i in range(record["n_mlp"]):
        for part in ("weight", "bias"):
            ours[f"mapping.layers.{i}.{part}"] = state[f"style.{i + 1}.{part}"]
    ours["const"] = state["input.input"]

    def styled(mine: str, theirs: str) -> None:
        weight = state[f"{theirs}.conv.weight"][0]
        ours[f"{mine}.weight"] = weight / np.sqrt(weight[0].numel())
        ours[f"{mine}.affine.weight"] = state[f"{theirs}.conv.modulation.weight"]
        ours[f"{mine}.affine.bias"] = state[f"{theirs}.conv.modulation.bias"]
        ours[f"{mine}.noise_strength"] = state[f"{theirs}.noise.weight"][0]
        ours[f"{mine}.bias"] = state[f"{theirs}.activate.bias"]

    def rgb(mine: str, theirs: str) -> None:
        ours[f"{mine}.weight"] = state[f"{theirs}.conv.weight"][0]
        ours[f"{mine}.affine.weight"] = state[f"{theirs}.conv.modulation.weight"]
        ours[f"{mine}.affine.bias"] = state[f"{theirs}.conv.modulation.bias"]
        ours[f"{mine}.bias"] = state[f"{theirs}.bias"].flatten()

    styled("blocks.0.conv", "conv1")
    rgb("blocks.0.to_rgb", "to_rgb1")
    for b in range(1, blocks):
        styled(f"blocks.{b}.up_conv", f"convs.{2 * b - 2}")
        styled(f"blocks.{b}.conv", f"convs.{2 * b - 1}")
        rgb(f"blocks.{b}.to_rgb", f"to_rgbs.{b - 1}")
    generator.load_state_dict(ours)
    return generator.requires_grad_(False), arrays


def test_agrees_with_an_independent_implementation():
    generator, arrays = from_rosinality("rosinality_16")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    noise = {name: tensor for name, tensor in tensors.items() if name.startswith("noise_")}
    assert (generator.mapping(tensors["z"]) - tensors["w"]).abs().max() < 1e-4 * tensors["w"].std()
    for space, latent, image in (
        ("z", tensors["z"][:, None], "image_z"),
        ("w", tensors["w"][:, None], "image_z"),
        ("w_plus", tensors["w_plus"], "image_w_plus"),
    ):
        ours = generator(LatentPoint(0, {"latent": latent, **noise}, space))
        assert (ours - tensors[image]).abs().max() < 1e-4 * tensors[image].std()


@pytest.mark.parametrize("space", SPACES)
def test_continuity(space: str):
    """Entering deeper, in one jump or by way of any layer between, shows the same image."""
    generator = small_stylegan2(32)
    point = generator.sample(rngs(1, 2), space)
    image = generator(point)
    for first in range(generator.num_layers):
        between = generator.advance(point, first)
        assert between.layer == first
        for layer in range(first, generator.num_layers):
            deep = generator.advance(between, layer)
            assert (generator(deep) - image).abs().max() < 1e-12 * image.abs().max()


def test_a_point_carries_only_what_still_has_an_effect():
    generator = small_stylegan2(32)
    for layer in range(generator.num_layers):
        point = generator.advance(generator.sample(rngs(1), "gaussian_w_plus"), layer).map(
            lambda tensor: tensor.detach().requires_grad_()
        )
        generator(point).square().sum().backward()
        for name, tensor in point.tensors.items():
            assert tensor.grad is not None and tensor.grad.flatten(2).abs().sum(-1).min() > 0, (layer, name)


def test_dropping_the_skip_would_be_noticed():
    """The original's mistake: without the RGB carried along the image jumps."""
    generator = small_stylegan2(32)
    point = generator.sample(rngs(1))
    deep = generator.advance(point, 2)
    jumped = generator(deep.update({"rgb": torch.zeros_like(deep["rgb"])}))
    assert (jumped - generator(point)).abs().max() > 0.1


def test_batch_equals_one_at_a_time():
    generator = small_stylegan2()
    together = generator.sample(rngs(5, 6, 7))
    for i, seed in enumerate((5, 6, 7)):
        alone = generator.sample(rngs(seed))
        assert all(torch.equal(alone[name], together[name][i : i + 1]) for name in alone.tensors)
        assert (generator(alone) - generator(together)[i]).abs().max() < 1e-12


def test_gaussian_w_plus_covers_what_the_mapping_makes():
    """Inverting its definition on mapped codes gives codes of mean 0 and standard deviation 1, by coordinate."""
    generator = small_stylegan2()
    w = generator.mapping(torch.randn(20_000, 8, generator=rngs(9)[0], dtype=torch.float64))
    code = (F.leaky_relu(w, 5.0) - generator.gaussian_mean) / generator.gaussian_std
    assert code.mean(0).abs().max() < 0.1
    assert (code.std(0) - 1).abs().max() < 0.1
    point = LatentPoint(0, {"latent": code[:5, None].expand(-1, generator.num_styles, -1)}, "gaussian_w_plus")
    assert (generator.styles(point) - w[:5, None]).abs().max() < 1e-12


def test_statistics_agree_with_numpy():
    generator = small_stylegan2()
    generator.fit_statistics(3000, batch_size=700, seed=4)
    z = torch.cat([torch.randn(n, 8, generator=rng) for rng in rngs(4) for n in (700, 700, 700, 700, 200)])
    w = generator.mapping(z.double()).numpy()
    v = np.where(w > 0, w, 5 * w)
    np.testing.assert_allclose(generator.w_mean, w.mean(0), rtol=1e-9)
    np.testing.assert_allclose(generator.w_std, np.sqrt(((w - w.mean(0)) ** 2).sum(1).mean()), rtol=1e-9)
    np.testing.assert_allclose(generator.gaussian_mean, v.mean(0), rtol=1e-9)
    np.testing.assert_allclose(generator.gaussian_std, v.std(0), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resolution": 48, "channels": [8] * 4}, "48"),
        ({"resolution": 4, "channels": [8]}, "resolution 4"),
        ({"resolution": 16, "channels": [8, 8]}, "expected 3"),
        ({"resolution": 16, "channels": [8, 0, 8]}, "channels"),
        ({"resolution": 16, "channels": [8, 8, 8], "mapping_depth": 0}, "mapping_depth 0"),
    ],
)
def test_refuses_impossible_shapes(arguments: dict, words: str):
    with pytest.raises(ValueError, match=words):
        StyleGAN2(**arguments)


def test_refuses_layers_and_spaces_it_does_not_have():
    generator = small_stylegan2()
    point = generator.sample(rngs(1))
    with pytest.raises(ValueError, match=r"layer 3: .* 0 … 2"):
        generator.advance(point, 3)
    with pytest.raises(ValueError, match="layer 0"):
        generator.advance(generator.advance(point, 1), 0)
    with pytest.raises(ValueError, match=r"'w\+'.*gaussian_w_plus"):
        generator.sample(rngs(1), "w+")
