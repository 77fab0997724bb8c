"""ilo doctor tells what there is, and never fails or hangs for what there isn't."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ilo_lightning import doctor
from ilo_lightning.ops import extension


@pytest.fixture
def rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, str]]:
    """``rows(NAME=value, …)``: what it prints in a folder of its own under such an environment, by the first word."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "SLURM"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(**environment: str) -> dict[str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert doctor.main([]) == 0
        lines = [line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        return {name: rest[0].strip() for name, *rest in lines}

    return run


def test_a_bare_machine(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extension, "_loaded", {})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").write_bytes(b"x" * 2**20)
    (tmp_path / "netrc").write_text("not a netrc")
    bare = {name: str(tmp_path / "nothing") for name in ("PATH", "TORCH_EXTENSIONS_DIR", "TORCH_HOME", "CUDA_HOME")}
    found = rows(**bare, HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    for operation in doctor.OPERATIONS:
        assert found[f"{operation} on cpu"].startswith("torch") and "no C++ compiler" in found[f"{operation} on cpu"]
    assert found["mine"].split() == ["1.0", "MiB", "checkpoints/mine.pt"]
    assert "pkg://" in found["faces64"]
    assert (
        found["login"].startswith("none") and found["sbatch"].startswith("none") and found["this process"] == "no job"
    )
    assert f"{tmp_path}/nothing/hub/checkpoints" in found["lpips vgg"]


def test_a_furnished_machine(rows, tmp_path: Path, cpu_kernels):
    trunk = tmp_path / "hub" / "checkpoints" / doctor.LPIPS_TRUNKS["alex"]
    trunk.parent.mkdir(parents=True)
    trunk.touch()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    found = rows(TORCH_HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"), SLURM_JOB_ID="17")
    for operation in doctor.OPERATIONS:
        assert found[f"{operation} on cpu"].startswith("cpu") and "ilo_cpu.so" in found[f"{operation} on cpu"]
    assert found["lpips alex"].split() == ["found", str(trunk)]
    assert found["login"].startswith("key") and "0123456789" not in str(found)
    assert found["this process"] == "job 17"


def test_the_names_of_the_trunks_are_torchvision_s():
    models = pytest.importorskip("torchvision.models")
    weights = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    for net, name in doctor.LPIPS_TRUNKS.items():
        assert weights[net].IMAGENET1K_V1.url == f"https://download.pytorch.org/models/{name}"
