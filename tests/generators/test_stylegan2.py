"""StyleGAN2: agreement with an independent implementation, the law of continuity, latent spaces, bad shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ilo_lightning.checks.generators import check_generator
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.stylegan2 import SPACES, StyleGAN2
from ilo_lightning.generators.stylegan2_layers import StyledConv, fir_kernel, leaky_relu, upsample
from tests.networks import rngs, small_stylegan2
from tests.stylegan2_fixtures import NAMES, Fixture, converted, load_fixture


def latents(generator: StyleGAN2, fixture: Fixture) -> dict[str, tuple[str, Tensor, bool]]:
    """Image of the fixture -> the space and the latents it was made from, and whether with noise."""
    arrays = fixture.arrays
    given = {"image_z": ("w", arrays["w"][:, None], True), "image_w_plus": ("w_plus", arrays["w_plus"], True)}
    given["image_const_noise"] = given["image_w_plus"]
    given["image_no_noise"] = ("w_plus", arrays["w_plus"], False)
    if "image_z_psi07" in arrays:
        given["image_z_psi07"] = ("w", generator.truncate(arrays["w"], 0.7)[:, None], True)
    return {name: value for name, value in given.items() if name in arrays}


def noise_maps(generator: StyleGAN2, fixture: Fixture, image: str) -> dict[str, Tensor]:
    """Random maps where the fixture holds some, else the checkpoint's own."""
    return (image != "image_const_noise" and fixture.noise()) or generator.constant_noise(len(fixture.arrays["z"]))


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_independent_implementations(name: str):
    """Mapping, synthesis by every way a fixture has, truncation, noise: to 1e-4 of the standard deviation."""
    fixture = load_fixture(name)
    generator = converted(fixture)
    z, w = fixture.arrays["z"], fixture.arrays["w"]
    assert (generator.mapping(z, fixture.arrays.get("labels")) - w).abs().max() < 1e-4 * w.std()
    given = latents(generator, fixture)
    assert set(given) == {key for key in fixture.arrays if key.startswith("image_")}
    for image, (space, latent, noisy) in given.items():
        noise = noise_maps(generator, fixture, image)
        if not noisy:
            noise = {name: torch.zeros_like(tensor) for name, tensor in noise.items()}
        ours, expected = generator(LatentPoint(0, {"latent": latent, **noise}, space)), fixture.arrays[image]
        assert (ours - expected).abs().max() < 1e-4 * expected.std(), image


@pytest.mark.parametrize("name", NAMES)
def test_continuity_on_every_architecture(name: str):
    """Entering deeper, in one jump or layer by layer, shows the same image, from z and from w+."""
    fixture = load_fixture(name)
    generator = converted(fixture)
    if generator.label is not None:
        generator.label.copy_(fixture.arrays["labels"][0])
    for space, latent in (("z", fixture.arrays["z"][:1, None]), ("w_plus", fixture.arrays["w_plus"][:1])):
        noise = {name: tensor[:1] for name, tensor in noise_maps(generator, fixture, "image_z").items()}
        point = LatentPoint(0, {"latent": latent, **noise}, space)
        image, step = generator(point), point
        for layer in range(1, generator.num_layers):
            step = generator.advance(step, layer)
            for deep in (step, generator.advance(point, layer)):
                assert ("rgb" in deep.tensors) == (generator.config["architecture"] == "skip")
                assert (generator(deep) - image).abs().max() < 1e-5 * image.std()


@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 2, 0), (4, 3, 2, 1), (1, 2, 3, 2, 1), (1,) * 8])
def test_upsampling_by_any_filter(taps: tuple[int, ...]):
    """Against the definition: zeros between the pixels, padding, convolution (not correlation) with the filter."""

    def zero_insertion(x: Tensor, before: int, after: int) -> Tensor:
        spread = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
        spread[:, :, ::2, ::2] = x
        spread = F.pad(spread, [before, after, before, after])
        return F.conv2d(spread, kernel.flip((2, 3)).expand(x.shape[1], 1, -1, -1), groups=x.shape[1])

    kernel, n = fir_kernel(4.0, taps).double(), len(taps)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=rngs(0)[0])
    before, after = (n + 1) // 2, n // 2 - 1
    torch.testing.assert_close(upsample(x, kernel), zero_insertion(x, before, after))

    conv = StyledConv(3, 2, 4, up=True, noise=False).double().requires_grad_(False)
    w = torch.randn(2, 4, dtype=torch.float64, generator=rngs(1)[0])
    style = conv.affine(w)
    filtered = zero_insertion(x, before + 1, after + 1)  # then the 3×3 convolution, valid: equal, filters commute
    weight = conv.weight[None] * style[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    expected = torch.cat([F.conv2d(f[None], k.flip((2, 3))) for f, k in zip(filtered, weight, strict=True)])
    torch.testing.assert_close(conv(x, style, None, kernel), leaky_relu(expected))


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


OPTIONS = {
    "skip": {},
    "resnet": {"architecture": "resnet"},
    "orig": {"architecture": "orig", "latent_dim": 5, "mapping_width": 9},
    "conditional": {"label_dim": 3, "label_features": 4, "conv_clamp": 3.0},
    "quiet": {"noise": False, "colors": 1},
    "odd filter": {"resample_filter": [1, 2, 1], "architecture": "resnet"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_law_holds(options: dict):
    generator = small_stylegan2(32, **options)
    for name, parameter in generator.named_parameters():
        if ".to_rgb." in name and "affine" not in name:
            parameter.mul_(0.1)  # colours near [-1, 1], as those of a trained network
    assert [verdict for verdict in check_generator(generator) if not verdict.holds] == []


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_point_carries_only_what_still_has_an_effect(options: dict):
    generator = small_stylegan2(32, **{**options, "conv_clamp": None})
    for layer in range(generator.num_layers):
        point = generator.advance(generator.sample(rngs(1), "gaussian_w_plus"), layer).map(
            lambda tensor: tensor.detach().requires_grad_()
        )
        generator(point).square().sum().backward()
        for name, tensor in point.tensors.items():
            assert tensor.grad is not None and tensor.grad.flatten(2).abs().sum(-1).min() > 0, (layer, name)


@pytest.mark.few(3)
@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@pytest.mark.parametrize("layer", [0, 1])
def test_derivatives_agree_with_finite_differences(architecture: str, layer: int):
    """The first, for optimisers, and the second, in float64, with respect to everything a point carries."""
    sizes = {"channels": [3, 2], "style_dim": 3, "label_dim": 2, "label_features": 2}
    generator = small_stylegan2(8, architecture=architecture, conv_clamp=1.5, **sizes)
    point = generator.advance(generator.sample(rngs(3), "z"), layer)
    names = list(point.tensors)
    inputs = [point[name].detach().clone().requires_grad_() for name in names]
    pool = torch.randn(3, *generator.image_shape, dtype=torch.float64, generator=rngs(4)[0])

    def projections(*tensors: Tensor) -> Tensor:
        image = generator(point.update(dict(zip(names, tensors, strict=True))))
        return (pool * image.square()).sum(dim=(1, 2, 3))

    assert torch.autograd.gradcheck(projections, inputs)
    assert torch.autograd.gradgradcheck(projections, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_continuity_at_1024(architecture: str):
    """With random weights, and the channels of config-f halved four times."""
    generator = StyleGAN2(1024, [32] * 5 + [16, 8, 4, 2], 16, 2, architecture=architecture).requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rngs(1)[0]))
    point = generator.sample(rngs(2))
    image = generator(point)
    for layer in range(1, generator.num_layers):
        point = generator.advance(point, layer)
        assert (generator(point) - image).abs().max() < 1e-4 * image.std()


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
    assert (generator.codes(point) - w[:5, None]).abs().max() < 1e-12


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
        (
            {"resolution": 16, "channels": [8, 8, 8], "architecture": "residual"},
            "'residual': expected one of skip, res",
        ),
        ({"resolution": 16, "channels": [8, 8, 8], "conv_clamp": 0}, "conv_clamp 0"),
        ({"resolution": 16, "channels": [8, 8, 8], "label_dim": -1}, "label_dim -1"),
        ({"resolution": 16, "channels": [8, 8, 8], "resample_filter": [1, -1]}, r"resample_filter \[1, -1\]"),
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
