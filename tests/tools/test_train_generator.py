"""The training script: growing changes no image, the average is what it says, and a stopped training goes on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ilo_lightning.generators.checkpoints import load_generator
from ilo_lightning.generators.stylegan2_layers import upsample
from tests.networks import rngs
from tools import train_generator as training

SMALL, LARGE = training.parse_phases("16:64,32:64")


@pytest.fixture(scope="module")
def grown() -> tuple[training.Adversarial, training.Adversarial]:
    """A network at 16² whose every weight was moved away from where it started, and what grew from it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small, large = training.Adversarial(SMALL, 16), training.Adversarial(LARGE, 16)
        for parameter in small.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        small.seconds.fill_(7.0)
        large.grow(small)
    return small, large


@pytest.mark.parametrize("name", ["generator", "average", "discriminator"])
def test_growing_keeps_what_was_learnt(name: str, grown: tuple[training.Adversarial, training.Adversarial]):
    small, large = (getattr(network, name).state_dict() for network in grown)
    assert all(torch.equal(large[key], value) for key, value in small.items())
    assert len(large) > len(small), "nothing was added"
    assert grown[1].seconds == 7.0


@pytest.mark.parametrize("name", ["generator", "average"])
def test_a_grown_generator_shows_the_smaller_image_up_sampled(
    name: str, grown: tuple[training.Adversarial, training.Adversarial]
):
    """The new ToRGB adds nothing yet, so that what is left is the up-sampled skip; but it can learn."""
    small, large = (getattr(network, name) for network in grown)
    point = large.sample(rngs(1, 2, 3), "z")
    with torch.no_grad():
        assert small(point).std() > 0.05
        torch.testing.assert_close(large(point), upsample(small(point), small.fir), rtol=0, atol=1e-5)
    weight = grown[1].generator.blocks[-1].get_parameter("to_rgb.weight")
    grown[1].generator(point).square().sum().backward()
    assert weight.grad is not None and weight.grad.abs().min() > 0


def test_a_grown_discriminator_judges_the_halved_image_as_before(
    grown: tuple[training.Adversarial, training.Adversarial],
):
    """Its new block adds nothing yet, whatever its details; but it can learn."""
    small, large = (network.discriminator for network in grown)
    images = torch.randn(8, 3, 32, 32, generator=rngs(4)[0])
    with torch.no_grad():
        before = small(F.avg_pool2d(images, 2))
        assert before.std() > 1e-3
        torch.testing.assert_close(large(images), before, rtol=1e-5, atol=1e-5)
    large(images).square().sum().backward()
    for name in ("down.weight", "skip.weight"):
        gradient = large.blocks["32"].get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0


def test_no_augmentation_is_the_identity():
    image = torch.rand(5, 3, 24, 24, generator=rngs(0)[0], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(image.shape, generator=rngs(1)[0], dtype=torch.float64)
    out = training.augment(image, probability=0.0)
    torch.testing.assert_close(out, image, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad((out * weight).sum(), image)
    torch.testing.assert_close(gradient, weight, rtol=0, atol=1e-12)


def test_augmentation_is_differentiable():
    """As the generator learns through it: against finite differences, with every part switched on."""
    image = torch.rand(2, 3, 12, 12, generator=rngs(0)[0], dtype=torch.float64, requires_grad=True)

    def augmented(x: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return training.augment(x, probability=1.0)

    assert (augmented(image) - image).flatten(1).abs().amax(1).min() > 0.01, "an image was left alone"
    assert torch.autograd.gradcheck(augmented, image)


def test_the_average_forgets_by_half_in_a_half_life():
    """``a_k = w Σ (1-w)^(k-j) g_j + (1-w)^k a_0`` with ``1 - w = 2^(-batch / half-life)``, and no autograd graph."""
    module = training.Adversarial(SMALL, 16, ema_images=96)
    module.images_seen.fill_(10**6)  # past the warm-up
    values, start, keep = [3.0, -1.0, 4.0, 1.0, -5.0], 2.0, 0.5 ** (32 / 96)
    module.average.requires_grad_(False)
    for parameter in module.average.parameters():
        parameter.data.fill_(start)
    for value in values:
        for parameter in module.generator.parameters():
            parameter.data.fill_(value)
        module.update_average(32)
    steps = len(values)
    expected = keep**steps * start + sum((1 - keep) * keep ** (steps - 1 - j) * g for j, g in enumerate(values))
    for parameter in module.average.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), rtol=1e-5, atol=0)
        assert parameter.is_leaf and not parameter.requires_grad and parameter.grad_fn is None


@pytest.mark.parametrize("seen", [32, 320])
def test_the_young_average_has_a_shorter_half_life(seen: int):
    """A tenth of the images seen so far: or the average would be of the random start for long."""
    module = training.Adversarial(SMALL, 16)
    module.images_seen.fill_(seen)
    before = module.average.const.clone()
    module.generator.const.data.zero_()
    module.update_average(32)
    torch.testing.assert_close(module.average.const, before * 0.5 ** (32 / (seen // 10)), rtol=1e-4, atol=1e-6)


def test_the_discriminator_compares_real_with_real():
    """The minibatch standard deviation must not mix the two halves of a batch: fakes don't change the real scores."""
    discriminator = training.Discriminator([16])
    real, fake = torch.randn(2, 8, 3, 16, 16, generator=rngs(0)[0])
    with torch.no_grad():
        together = discriminator(torch.cat([real, 5 * fake]))[:8]
        torch.testing.assert_close(together, discriminator(real), rtol=1e-5, atol=1e-5)


def test_phases_are_read_and_checked():
    assert training.parse_phases("16:64,32:0") == (SMALL, replace(LARGE, images=training.UNLIMITED))
    assert [phase.resolution for phase in training.parse_phases(training.PHASES)] == [16, 32, 64]
    for text in ("16:64,64:64", "32:64,16:64", "24:64", "16", "16:x"):
        with pytest.raises(ValueError):
            training.parse_phases(text)


def train(folder: Path, *more: str) -> str:
    """The real command, on noise; its standard output."""
    data = folder / "noise.npz"
    if not data.exists():
        np.savez(data, images=np.random.default_rng(0).integers(0, 255, (64, 64, 64, 3), dtype=np.uint8))
    script = Path(training.__file__)
    command = [sys.executable, str(script), f"--data={data}", f"--out={folder / 'out'}", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def saved(folder: Path) -> dict:
    return torch.load(folder / "out" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_stopped_training_goes_on(tmp_path: Path):
    assert "16²" in train(tmp_path, "--time-budget=2", "--save-every=1")
    first = saved(tmp_path)
    assert first["state_dict"]["images_seen"] > 0
    train(tmp_path, "--time-budget=2", "--save-every=1")
    second = saved(tmp_path)
    for key in ("images_seen", "seconds"):
        assert second["state_dict"][key] > first["state_dict"][key], key
    # The optimisers go on too: Adam counts its steps.
    steps = [int(checkpoint["optimizer_states"][0]["state"][0]["step"]) for checkpoint in (first, second)]
    assert [32 * step for step in steps] == [int(c["state_dict"]["images_seen"]) for c in (first, second)]
    assert (tmp_path / "out" / "samples.png").exists()
    assert not (tmp_path / "out" / "generator.safetensors").exists(), "exported before the last phase"
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.slow
def test_the_resolution_grows_and_the_last_one_is_exported(tmp_path: Path):
    output = train(tmp_path, "--time-budget=1e9", "--phases=16:64,32:64,64:64")
    assert [line.split()[0] for line in output.splitlines() if "images/s" in line] == ["16²", "32²", "64²"]
    first = saved(tmp_path)["state_dict"]
    generator = load_generator(tmp_path / "out" / "generator.safetensors")
    assert generator.image_shape == (3, 64, 64)
    assert torch.equal(generator.const, first["average.const"])

    train(tmp_path, "--time-budget=1e9", "--phases=16:64,32:64,64:128")
    second = saved(tmp_path)["state_dict"]
    assert second["images_seen"] == 128
    assert not torch.equal(second["generator.const"], first["generator.const"])

    before = (tmp_path / "out" / "last.ckpt").read_bytes()
    assert train(tmp_path, "--time-budget=1e9", "--phases=16:64,32:64,64:128") == ""
    assert (tmp_path / "out" / "last.ckpt").read_bytes() == before
