"""What every test can rely on: one torch thread, and tests that cannot run here skip visibly."""

from __future__ import annotations

import atexit
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch is imported, and inherited by subprocesses: results that are compared bit for bit need a fixed thread
# count, and with pytest-xdist the cores are already busy.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("WANDB_MODE", "offline")

# Latent statistics of test networks have no business in the user's cache.
os.environ["ILO_CACHE"] = tempfile.mkdtemp(prefix="ilo-test-cache-")
atexit.register(shutil.rmtree, os.environ["ILO_CACHE"], ignore_errors=True)

# A shell that starts a job in the background lets it ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device (torch.cuda.is_available() is false)"


def _missing_slurm() -> str | None:
    programs = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
    path = f"{os.environ['PATH']}:/usr/sbin"
    absent = [program for program in programs if shutil.which(program, path=path) is None]
    if absent:
        return f"SLURM is not installed: no {', '.join(absent)} on the PATH"
    if os.geteuid() != 0:
        return "a SLURM of one's own is started by root only"
    if importlib.util.find_spec("submitit") is None:
        return "hydra-submitit-launcher is not installed: pip install -e '.[slurm]'"
    return None


def _missing_browser() -> str | None:
    absent = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
    return f"no Chromium: no {', '.join(absent)} on the PATH (Debian: chromium, chromium-driver)" if absent else None


REQUIREMENTS = {"gpu": _missing_gpu, "slurm": _missing_slurm, "browser": _missing_browser}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, missing in REQUIREMENTS.items():
        if item.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with the mark ``few(n)`` n cases are run by default, evenly spaced; the others are slow. Who names a
    case gets it."""
    if any("[" in str(argument) for argument in config.args):
        return
    tests: dict[tuple[Path, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            tests[item.path, item.name.partition("[")[0]].append(item)
    for cases in tests.values():
        (few,) = cases[0].iter_markers("few")
        count = few.args[0]
        chosen = {index * len(cases) // count for index in range(count)}
        for index, case in enumerate(cases):
            if index not in chosen:
                case.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Modules that a test makes have the same weights whichever tests ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with test data that is not in the repository: $ILO_TEST_DATA, else ``shared`` beside the checkout."""
    named = os.environ.get("ILO_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} does not exist (set ILO_TEST_DATA to the folder that holds it)")
    return folder


@pytest.fixture(scope="session")
def installed() -> importlib.metadata.Distribution:
    """The installed package, for tests that need more than the sources on the path."""
    try:
        return importlib.metadata.distribution("ilo-lightning")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ilo-lightning is not installed in this environment: pip install -e '.[test]'")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small StyleGAN2 with random weights, saved."""
    import torch

    from ilo_lightning.generators.checkpoints import save_generator
    from tests.networks import small_stylegan2

    path = tmp_path_factory.mktemp("generator") / "small.safetensors"
    save_generator(small_stylegan2(dtype=torch.float32), path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three noise pictures, 16×16."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"face{i}.png")
    return folder


@pytest.fixture(scope="session")
def cpu_kernels() -> None:
    """The compiled CPU kernels, for tests that use them."""
    from ilo_lightning.ops import extension

    reason = extension.load("cpu", may_build=True)
    if reason:
        pytest.skip(f"no CPU kernels: {reason}")


@pytest.fixture(params=["torch", "cpu"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation of the operations that computes on the CPU, in turn."""
    from ilo_lightning import ops

    if request.param == "cpu":
        request.getfixturevalue("cpu_kernels")
    with ops.use(request.param):
        yield request.param
