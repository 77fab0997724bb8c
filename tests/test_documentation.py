"""What the documents say can be typed is typed: every command of every fenced `sh` block in README.md and docs/*.md.

Commands that solve run with one step per stage on small inputs; those that can't run here are listed with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image

from tests.warm import WarmCommand

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Files that the documents tell their readers to write, which are the documents' own blocks: (document, language, which
# of its blocks in that language) -> the name that the text before the block gives.
WRITTEN = {
    ("generators.md", "python", 0): "mynet.py",
    ("generators.md", "yaml", 0): "myconf/generator/mine.yaml",
    ("operators.md", "python", 0): "interlaced.py",
    ("operators.md", "yaml", 0): "myconf/task/grey_and_small.yaml",
    ("operators.md", "yaml", 1): "myconf/task/deinterlacing.yaml",
    ("operators.md", "yaml", 2): "myconf/task/dead_pixels.yaml",
}
NOT_RUN = {
    r"pip install .*": "changes the environment, and needs the network",
    r".* generator\.checkpoint=stylegan2-ffhq-config-f\.pt.*": "no such file here; tests do it with random weights",
    r"ilo convert network\.pkl .*": "no such file here; tests/test_checkpoint_commands.py does it",
    r"make [a-z-]+": "installs an environment first; `make -n` says whether there is such a target",
    r"git clone .*|python3 -m venv .*": "makes an environment; tests/test_container.py does it",
    r"wandb .*|ilo dashboard .*": "needs an account; tests/loggers has a server's stand-in",
    r"ilo solve .*/launcher=slurm .*|python run\.py .*/launcher=slurm": "needs a cluster; tests/slurm starts one",
    r"ilo .*/shared/.*|ilo status .*": "no such folder here; tests/test_sweep.py and tests/report make one",
    r"ilo solve -m … .*": "the rest is to be filled in; tests/test_sweep.py has shards",
    r"python benchmarks/(step_time|startup)\.py .*": "takes minutes; tests/test_benchmarks.py does it in small",
    r"python benchmarks/checkpoint_cost\.py .*": "needs a GPU; tests/test_benchmarks.py does it without",
    r"python tools/train_\w+\.py .*": "trains for minutes to hours; its options are compared with --help",
}
SHORT = ["method.steps=1", "method.lr=0.01", "data.limit=1"]


def blocks(document: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(document.read_text(encoding="utf-8")) if name == language]


def commands(document: Path) -> list[str]:
    """Without comments and blank lines; a line that ends in a backslash goes on."""
    joined = "\n".join(blocks(document, "sh")).replace("\\\n", " ")
    stripped = (re.sub(r"(^|\s)#\s.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in stripped if line]


def reason_not_to_run(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, command)), None)


def as_ilo(command: str) -> list[str] | None:
    """The arguments of `ilo`, of which run.py is `ilo solve`; None for other commands."""
    words = shlex.split(command)
    if words[:2] == ["python", "run.py"]:
        return ["solve", *words[2:]]
    return words[1:] if words[0] == "ilo" else None


def written_files(folder: Path) -> None:
    for (name, language, index), target in WRITTEN.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(blocks(ROOT / "docs" / name, language)[index], encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all that the commands mention."""
    written_files(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for name in ("FOLDER/a.png", "FOLDER/b.png", "photos/a.png", "photo.png", "masked.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[int(name.endswith("b.png"))]).save(tmp_path / name)
    mask = np.full((64, 64), 255, np.uint8)
    mask[20:40, 20:40] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.savez(tmp_path / "images.npz", images=images)
    shutil.copytree(tmp_path / "FOLDER", tmp_path / "FOLDER_OR_NPZ")
    monkeypatch.syspath_prepend(tmp_path)
    import mynet  # pyright: ignore[reportMissingImports]
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    torch.save(torch.nn.Sequential(*mynet.generator().blocks).state_dict(), tmp_path / "mynet.pt")
    mine = OmegaConf.load(tmp_path / "myconf" / "generator" / "mine.yaml")
    mine.checkpoint = None
    save_file(
        torch.nn.Sequential(*instantiate(mine, _convert_="all").blocks).state_dict(), tmp_path / "mine.safetensors"
    )
    yield tmp_path
    sys.modules.pop("mynet", None)


def test_the_blocks_that_readers_write_have_the_stated_names():
    for (name, language, index), target in WRITTEN.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        before = text[: text.index(blocks(ROOT / "docs" / name, language)[index])].splitlines()
        stated = [line for line in before[-4:] if line.strip() and not line.startswith("```")][-1]
        parts = [part.rstrip("/") for part in re.findall(r"`([^`]+)`", stated)]
        assert target in (parts[0], f"{parts[-1]}/{parts[0]}"), stated


def test_a_network_of_one_s_own_takes_at_most_twenty_lines():
    code = blocks(ROOT / "docs" / "generators.md", "python")[0]
    assert len(code.strip().splitlines()) <= 20


def test_solving_from_python(capsys: pytest.CaptureFixture[str]):
    (code,) = (text for text in blocks(ROOT / "docs" / "methods.md", "python") if "load_method" in text)
    scope: dict[str, Any] = {}
    exec(code.replace("noise_level=0.05,", "noise_level=0.05, evaluations=31,"), scope)
    assert scope["images"].shape == (2, 3, 64, 64) and "stacking" in capsys.readouterr().out
    assert scope["found"].solutions[0].info["evaluations"] < 50


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_understood(document: Path, tmp_path: Path):
    """Quickly: what starts a run composes, make has its targets, scripts their options."""
    written_files(tmp_path)
    for command in commands(document):
        words = shlex.split(command)
        ilo = as_ilo(command)
        if ilo is not None and ilo[0] in ("solve", "measure"):
            check_composes(ilo[1:], tmp_path)
        elif ilo is not None:
            from ilo_lightning.cli import COMMANDS

            assert ilo[0] in COMMANDS, command
        elif words[0] == "make":
            if shutil.which("make"):
                done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
        elif words[0] == "python":
            script = (ROOT / words[1]).read_text(encoding="utf-8")
            for option in (word for word in words[2:] if word.startswith("--")):
                assert f'"{option}"' in script, f"{command}: {words[1]} has no {option}"
        else:
            assert reason_not_to_run(command), f"{document.name}: {command}: what is this?"


def check_composes(words: list[str], folder: Path) -> None:
    overrides = list(words)
    if "--config-dir" in overrides:
        place = overrides.index("--config-dir")
        overrides[place : place + 2] = [f"hydra.searchpath=['file://{folder / overrides[place + 1]}']"]
    overrides = [word for word in overrides if word not in ("--help", "--cfg", "job", "--multirun", "-m")]
    if {"--multirun", "-m"} & set(words):
        return
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        compose("config", overrides=overrides)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_runs(document: Path, workspace: Path):
    run: list[str] = []
    with WarmCommand() as ilo:
        for command in commands(document):
            if reason_not_to_run(command):
                continue
            arguments = as_ilo(command)
            if arguments is not None:
                done = ilo.run(*shortened(arguments), cwd=workspace)
            else:
                words = shlex.split(command)
                assert words[:2] == ["python", "benchmarks/quality.py"], f"{command}: how is it made short?"
                script = [sys.executable, str(ROOT / words[1]), *words[2:], "--limit", "1", "--tasks", "denoising_0.2"]
                few = ["--override", "method.steps=1", "baseline.steps=4"]  # four stages against one
                done = subprocess.run([*script, *few], cwd=workspace, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            run.append(command)
    assert run or not commands(document) or all(map(reason_not_to_run, commands(document)))


def shortened(arguments: list[str]) -> list[str]:
    asks = any(word.startswith("--") and word != "--config-dir" for word in arguments)
    if asks or arguments[0] not in ("solve", "measure"):
        return arguments
    baseline = any(word.startswith(("experiment=", "method@baseline=")) for word in arguments)
    samples = ["method.samples=1", "method.burn_in=0"] if "method=langevin" in arguments else []
    return [*arguments, *SHORT, *samples, *(["baseline.steps=1"] if baseline else [])]


@pytest.mark.slow
def test_run_py_is_ilo_solve(tmp_path: Path):
    command = [sys.executable, str(ROOT / "run.py"), *SHORT, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.jsonl").is_file()


def test_the_configuration_document_is_current():
    from tools.make_configuration_doc import DOC, document

    assert DOC.read_text(encoding="utf-8") == document(), "make docs"


def test_the_configuration_document_has_every_option():
    """Of the composed configuration, whichever way it is read there: by Hydra, not by lines."""
    from omegaconf import OmegaConf

    from tests.test_configs import CHOICES
    from tools.make_configuration_doc import document

    text = document()
    for group, name in CHOICES:
        assert f"`{group}={name}`" in text
        if group == "experiment":
            continue
        config = OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")
        for key in config:
            if key not in ("defaults", "_target_", "operator", "factory"):
                option = f"`{group.replace('/', '.')}.{key}"
                assert f"{option}`" in text or f"{option}." in text, (group, name, key)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path):
    text = re.sub(FENCE, "", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target
