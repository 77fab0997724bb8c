"""The package as users get it: light to import, complete in the wheel, and usable from any directory."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

# What is installed must be what answers, not the checkout: no inherited path, no working directory on the path.
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSTARTUP")}

FIND_CONFIG = """
import ilo_lightning, ilo_lightning.conf, ilo_lightning.cuda
from importlib.resources import files
print(ilo_lightning.__file__, ilo_lightning.conf.__file__, ilo_lightning.cuda.__file__, sep="\\n")
assert files("ilo_lightning.conf").joinpath("config.yaml").read_text(encoding="utf-8").strip()
"""


def run(*command: str | Path, cwd: Path, env: dict[str, str] = CLEAN, timeout: float = 600) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build writes into its source tree, and tests may run in parallel."""
    source = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "outputs", "multirun", "checkpoints"
    )
    shutil.copytree(repository, source, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run(*pip, folder, wheel, cwd=folder)
    return folder


def from_wheel(site: Path) -> dict[str, str]:
    return CLEAN | {"PYTHONPATH": str(site)}


def test_importing_the_package_imports_nothing_heavy(repository: Path) -> None:
    heavy = "torch", "torchvision", "pytorch_lightning", "hydra", "wandb", "lpips", "matplotlib", "numpy"
    code = f"import sys, ilo_lightning; dir(ilo_lightning); print(*(m for m in {heavy} if m in sys.modules))"
    assert run(sys.executable, "-c", code, cwd=repository).split() == []


def test_every_public_name_is_there(repository: Path) -> None:
    code = "import ilo_lightning as it; print(*(name for name in it.__all__ if getattr(it, name, None) is None))"
    assert run(sys.executable, "-c", code, cwd=repository).split() == []


@pytest.mark.slow
def test_solve_is_the_function_however_it_is_imported(repository: Path) -> None:
    code = "import ilo_lightning.solve as it; from ilo_lightning import solve; print(it is solve, callable(it))"
    assert run(sys.executable, "-c", code, cwd=repository).split() == ["True", "True"]


def test_versions_agree(installed: importlib.metadata.Distribution, repository: Path) -> None:
    import ilo_lightning

    assert installed.version == ilo_lightning.__version__, "stale install: run pip install -e ."
    assert f"\nversion: {ilo_lightning.__version__}\n" in (repository / "CITATION.cff").read_text(encoding="utf-8")


def test_the_wheel_holds_the_package_and_its_data(wheel: Path, repository: Path) -> None:
    def on_disk(folder: str, *patterns: str) -> set[str]:
        paths = {path for pattern in patterns for path in (repository / folder).glob(pattern)}
        return {path.relative_to(repository).as_posix() for path in paths}

    expected = on_disk(
        "ilo_lightning",
        "**/*.py",
        "py.typed",
        "data/*.[np][pn][gz]",
        "generators/weights/*.safetensors",
        "report/page.*",
    )
    sources = on_disk("cuda", "**/*.py", "**/*.cu", "**/*.cuh", "**/*.h", "**/*.cpp")
    expected |= {f"ilo_lightning/{name}" for name in on_disk("conf", "**/*.py", "**/*.yaml") | sources}
    named = {
        "__init__.py",
        "py.typed",
        "conf/__init__.py",
        "conf/config.yaml",
        "cuda/__init__.py",
        "data/astronaut.png",
        "data/digits.npz",
    }
    assert {f"ilo_lightning/{name}" for name in named} <= expected
    assert any(name.endswith(".safetensors") for name in expected)

    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names - expected == set(), "not part of the package"
    assert expected - names == set(), (
        "missing: a folder without __init__.py, or a pattern not in [tool.setuptools.package-data]?"
    )


def test_the_wheel_states_its_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "License-Expression: MIT" in metadata
        assert f"{info}/licenses/LICENSE" in archive.namelist()
        assert "ilo = ilo_lightning.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_the_wheel_works_from_any_directory(site: Path, tmp_path: Path) -> None:
    found = run(sys.executable, "-c", FIND_CONFIG, cwd=tmp_path, env=from_wheel(site)).split()
    assert all(Path(path).is_relative_to(site) for path in found), found
    assert "solve" in run(sys.executable, "-m", "ilo_lightning.cli", "--help", cwd=tmp_path, env=from_wheel(site))


def test_the_wheel_finds_its_kernels(site: Path, tmp_path: Path) -> None:
    """What is compiled on first use: as many sources as in the checkout, from the wheel."""
    code = (
        "from ilo_lightning.ops import toolchain\n"
        "for kind in toolchain.KINDS: print(kind, len(toolchain.sources(kind)), toolchain.key(kind))\n"
        "print(toolchain.source_folder())"
    )
    *found, folder = run(sys.executable, "-c", code, cwd=tmp_path, env=from_wheel(site)).splitlines()
    assert Path(folder) == site / "ilo_lightning" / "cuda"
    from ilo_lightning.ops import toolchain

    assert found == [f"{kind} {len(toolchain.sources(kind))} {toolchain.key(kind)}" for kind in toolchain.KINDS]


def test_the_installed_package_works_from_any_directory(
    installed: importlib.metadata.Distribution, tmp_path: Path
) -> None:
    found = run(sys.executable, "-c", FIND_CONFIG, cwd=tmp_path).split()
    assert len(found) == 3
    assert "solve" in run(Path(sysconfig.get_path("scripts")) / "ilo", "--help", cwd=tmp_path)


def test_help_needs_no_torch(repository: Path) -> None:
    code = (
        "import sys\nsys.argv = ['ilo', '--help']\nfrom ilo_lightning.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    run(sys.executable, "-c", code, cwd=repository)


def solve_briefly(run_dir: Path) -> tuple[str, ...]:
    return "solve", "experiment=demo", "method.steps=2", "baseline.steps=2", "data.limit=1", f"hydra.run.dir={run_dir}"


def check_solve(command: Callable[[Path], str], run_dir: Path) -> None:
    command(run_dir)
    assert len((run_dir / "results.jsonl").read_text(encoding="utf-8").splitlines()) >= 1


@pytest.mark.slow
def test_the_wheel_solves_from_any_directory(site: Path, tmp_path: Path) -> None:
    module = sys.executable, "-m", "ilo_lightning.cli"
    check_solve(lambda to: run(*module, *solve_briefly(to), cwd=tmp_path, env=from_wheel(site)), tmp_path / "run")


@pytest.mark.slow
def test_the_installed_package_solves_from_any_directory(
    installed: importlib.metadata.Distribution, tmp_path: Path
) -> None:
    script = Path(sysconfig.get_path("scripts")) / "ilo"
    check_solve(lambda to: run(script, *solve_briefly(to), cwd=tmp_path), tmp_path / "run")
