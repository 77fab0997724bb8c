"""Every configuration composes, instantiates, and says how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from ilo_lightning.generators.checkpoints import save_generator
from ilo_lightning.job import build, build_log
from tests.networks import small_stylegan2

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("task", "task/noise", "generator", "method", "data", "trainer", "logger", "experiment")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def test_there_are_configs():
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_composes_and_instantiates(group: str, name: str, tmp_path: Path):
    overrides = [f"{group}={name}", "trainer.accelerator=cpu"]
    if (group, name) == ("generator", "stylegan2"):
        save_generator(small_stylegan2(32), tmp_path / "own.safetensors")
        overrides.append(f"generator.checkpoint={tmp_path / 'own.safetensors'}")
    if (group, name) == ("task/noise", "poisson"):
        overrides.append("task=denoising")
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=overrides)
        setting = build(config)
        assert build_log(config, setting, tmp_path).every == 10
    assert len(setting.observations) >= 1
    assert setting.operator.input_shape == setting.generator.image_shape


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_say_how_to_run_them(path: Path):
    # Hydra reads `# @package` from the first line only.
    assert path.read_text().splitlines()[:2] == ["# @package _global_", f"# python run.py experiment={path.stem}"]


def test_methods_have_equal_budgets():
    """ilo and csgm are compared at equal numbers of generator evaluations, as shipped."""
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        ilo, csgm = (build(compose("config", overrides=[f"method={name}"])).method for name in ("ilo", "csgm"))
    assert ilo.schedule.steps == csgm.schedule.steps
