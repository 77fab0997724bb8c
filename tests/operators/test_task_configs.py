"""Every task of conf/task builds its operator and its noise."""

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from ilo_lightning.operators import (
    Denoising,
    GaussianCompressedSensing,
    GaussianNoise,
    Inpainting,
    PartialCirculant,
    PoissonNoise,
    SuperResolution,
)

TASKS = {
    "inpainting": (Inpainting, 0.0),
    "super_resolution": (SuperResolution, 0.0),
    "denoising": (Denoising, 0.2),
    "compressed_sensing": (PartialCirculant, 0.0),
    "gaussian_compressed_sensing": (GaussianCompressedSensing, 0.0),
}


def task(name, *choices, **overrides):
    values = [f"task.{key}={'null' if value is None else value}" for key, value in overrides.items()]
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        return compose("config", overrides=[f"task={name}", *choices, *values]).task


@pytest.mark.parametrize("name", TASKS)
def test_task_builds(name):
    config = task(name)
    kind, sigma = TASKS[name]
    operator, noise = instantiate(config.operator, image_shape=[3, 64, 64]), instantiate(config.noise)
    assert config.name == name
    assert type(operator) is kind
    assert operator.input_shape == (3, 64, 64)
    assert isinstance(noise, GaussianNoise)
    assert noise.sigma == sigma


@pytest.mark.parametrize(
    ("name", "overrides", "output_shape", "observed"),
    [
        ("inpainting", {}, (3, 64, 64), 64 * 64 - 32 * 32),
        ("inpainting", {"box": [0, 0, 2, 3]}, (3, 64, 64), 64 * 64 - 6),
        ("inpainting", {"fraction": 0.25, "seed": 3}, (3, 64, 64), 1024),
        ("super_resolution", {}, (3, 16, 16), 1),
        ("super_resolution", {"factor": 8, "kernel": "area"}, (3, 8, 8), 1),
        ("compressed_sensing", {}, (1229,), 1),
        ("compressed_sensing", {"fraction": None, "measurements": 50}, (50,), 1),
        ("gaussian_compressed_sensing", {"fraction": 0.01}, (123,), 1),
    ],
)
def test_overrides_reach_the_operator(name, overrides, output_shape, observed):
    operator = instantiate(task(name, **overrides).operator, image_shape=[3, 64, 64])
    assert operator.output_shape == output_shape
    assert int(operator.weight.sum()) == observed


@pytest.mark.parametrize(
    ("name", "seed"), [("inpainting", 1), ("compressed_sensing", 2), ("gaussian_compressed_sensing", 3)]
)
def test_seed_reaches_the_operator(name, seed):
    fraction = {"fraction": 0.5}
    same, other = (
        instantiate(task(name, **fraction, seed=s).operator, image_shape=[1, 8, 8]).state_dict() for s in (0, seed)
    )
    assert any(not same[key].equal(other[key]) for key in same)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_takes_every_noise(name):
    assert isinstance(instantiate(task(name, "task/noise=poisson", "task.noise.peak=20").noise), PoissonNoise)
    assert instantiate(task(name, "task.noise.sigma=0.3").noise).sigma == 0.3
