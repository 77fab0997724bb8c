"""Dockerfile and apptainer.def: no engine builds them here, so their commands are run in a fresh environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from ilo_lightning.cli import COMMANDS
from ilo_lightning.exit_codes import REQUEUE


def docker(repository: Path) -> tuple[list[str], str]:
    """The commands of the Dockerfile in order, and what sets its environment."""
    text = (repository / "Dockerfile").read_text()
    return re.findall(r"^RUN (.*)$", text, re.MULTILINE), "\n".join(re.findall(r"^ENV (.*)$", text, re.MULTILINE))


def apptainer(repository: Path) -> tuple[list[str], str]:
    """The commands of apptainer.def in order, and what sets its environment while it is made."""
    text = (repository / "apptainer.def").read_text()
    post = re.search(r"^%post\n((?: .*\n)*)", text, re.MULTILINE)
    assert post is not None
    lines = [line.strip() for line in post[1].splitlines()]
    exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    return [line for line in lines if not line.startswith("export ")], "\n".join(exports)


def test_both_images_are_made_the_same_way(repository: Path):
    assert docker(repository) == apptainer(repository)
    texts = [(repository / name).read_text() for name in ("Dockerfile", "apptainer.def")]
    bases = [re.search(r"(?:FROM|From:) (\S+)", text) for text in texts]
    assert bases[0] and bases[1] and bases[0][1] == bases[1][1]
    made, used = re.findall(r"^    export (.*)$", texts[1], re.MULTILINE)[:2], apptainer(repository)[1].splitlines()
    assert made == used, "what holds when the image is made holds when it is used"


@pytest.mark.parametrize(
    ("environment", "code", "requeued"),
    [
        ({"SLURM_JOB_ID": "4711"}, REQUEUE, "4711"),
        ({"SLURM_JOB_ID": "4713", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}, REQUEUE, "4711_3"),
        ({"SLURM_JOB_ID": "4711"}, 0, None),
        ({"SLURM_JOB_ID": "4711"}, 3, None),
    ],
    ids=str,
)
def test_who_starts_the_container_requeues_the_job(
    environment: dict[str, str], code: int, requeued: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The shell lines of the launcher before submitit's last line, with commands that note how they are called."""
    pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    for name, end in (("srun", code), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\nexit {end}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("ILO_IMAGE", "image.sif")
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        config = compose("config", ["hydra/launcher=slurm_container"], return_hydra_config=True)
    lines = [*config.hydra.launcher.setup, f"srun --unbuffered --output {shlex.quote('a b')} python -u -m it folder"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "srun --unbuffered --output a b apptainer exec --nv image.sif python -u -m it folder"
    assert calls[1:] == ([f"scontrol requeue {requeued}"] if requeued else [])
    assert done.returncode == code and done.stderr == ""


@pytest.mark.slow
def test_the_commands_work_in_a_fresh_environment(repository: Path, tmp_path: Path):
    """A copy of the repository, a new virtual environment; PyTorch and the like are this environment's, so that
    nothing is downloaded. Left out: apt-get, and nvcc where there is none."""
    ignored = shutil.ignore_patterns(".git", ".venv", ".ci-venv", "__pycache__", "build", "*.egg-info", "outputs")
    shutil.copytree(repository, tmp_path / "ilo-lightning", ignore=ignored)
    commands, settings = docker(repository)
    assert commands[0].startswith("apt-get")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', settings):
        if name != "CUDA_HOME":
            value = value.strip('"').replace("/opt/", f"{tmp_path}/").replace("$PATH", os.environ["PATH"])
            environment[name] = value
    packages = [path for path in sys.path if path.endswith("site-packages")] or site.getsitepackages()
    environment |= {"PYTHONPATH": os.pathsep.join(packages), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
    environment |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_IGNORE_INSTALLED": "1"}  # 0: yes, no isolation
    for command in commands[1:]:
        words = command.replace("/opt/", f"{tmp_path}/").replace("python3 ", f"{sys.executable} ")
        if "build-ops" in words:
            if "build-ops" not in COMMANDS:
                continue
            words = words if shutil.which("nvcc") else words.replace(" cuda", "")
        done = subprocess.run(words, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    overrides = ["task=denoising", "method.steps=1", "data.limit=1", "trainer=cpu", "hydra.run.dir=run"]
    ilo = tmp_path / "ilo" / "bin" / "ilo"
    done = subprocess.run([ilo, "solve", *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import ilo_lightning; print(ilo_lightning.__file__)"
    where = subprocess.run([ilo.with_name("python"), "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert where.stdout.decode().startswith(str(tmp_path / "ilo"))
