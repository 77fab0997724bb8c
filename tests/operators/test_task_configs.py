"""Every task of conf/task builds its operator and its noise."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ilo_lightning.operators import Denoising, GaussianNoise, Inpainting, PartialCirculant, SuperResolution

CONF = Path(__file__).parents[2] / "conf" / "task"
TASKS = {
    "inpainting": (Inpainting, 0.0),
    "super_resolution": (SuperResolution, 0.0),
    "denoising": (Denoising, 0.2),
    "compressed_sensing": (PartialCirculant, 0.0),
}


def task(name, **overrides):
    config = OmegaConf.create({"task": OmegaConf.load(CONF / f"{name}.yaml")})
    config.task.update(overrides)
    return config.task


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
    ],
)
def test_overrides_reach_the_operator(name, overrides, output_shape, observed):
    operator = instantiate(task(name, **overrides).operator, image_shape=[3, 64, 64])
    assert operator.output_shape == output_shape
    assert int(operator.weight.sum()) == observed


@pytest.mark.parametrize(("name", "seed"), [("inpainting", 1), ("compressed_sensing", 2)])
def test_seed_reaches_the_operator(name, seed):
    fraction = {"fraction": 0.5}
    same, other = (
        instantiate(task(name, **fraction, seed=s).operator, image_shape=[1, 8, 8]).state_dict() for s in (0, seed)
    )
    assert any(not same[key].equal(other[key]) for key in same)
