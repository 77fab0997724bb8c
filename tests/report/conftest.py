"""Sweeps: a small one made by the real command, and made-up ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.synthetic_sweep import Sweep


@pytest.fixture(scope="session")
def finished_sweep(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python run.py -m …`: two fractions, ILO beside CSGM, three pictures in two batches."""
    from ilo_lightning.main import main

    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["-m", "generator=stylegan2", f"generator.checkpoint={checkpoint}", f"data.path={pictures}"]
    arguments += ["data.batch_size=2", "trainer=cpu", "task=compressed_sensing", "task.fraction=0.2,0.5"]
    arguments += ["method.layers=[0,1]", "method.steps=[3,2]", "method.lr=[0.1,0.1]", "method.radius=0.05"]
    arguments += ["method@baseline=csgm", "baseline.steps=[5]", f"hydra.sweep.dir={folder}"]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def real_sweep(finished_sweep: Path, tmp_path: Path) -> Path:
    """A copy of `finished_sweep`, to be damaged."""
    return shutil.copytree(finished_sweep, tmp_path / "real")


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Two fractions × two radii × two seeds, three images."""
    Sweep(seeds=(0, 1)).write(tmp_path / "sweep")
    return tmp_path / "sweep"
