"""How the kernels are built, found and chosen: many processes, killed builders, machines without a compiler.

The builds here are of one of the sources, so that they take a second; the whole library is built by the fixture
``cpu_kernels``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from ilo_lightning import ops
from ilo_lightning.ops import extension, implementation, toolchain
from ilo_lightning.ops.toolchain import Unavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="compiled kernels are for Linux")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")

SHORT = "from ilo_lightning.ops import extension, toolchain; toolchain.SOURCES['cpu'] = ('bias_act_cpu.cpp',)\n"


def python(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    env = os.environ | {"TORCH_EXTENSIONS_DIR": str(cache)} | environment
    return subprocess.Popen([sys.executable, "-c", code], env=env, text=True, stdin=PIPE, stdout=PIPE, stderr=PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this process's own."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Builds are of bias_act_cpu.cpp alone, from a copy of the sources that may be changed."""
    folder = tmp_path / "sources"
    shutil.copytree(toolchain.source_folder(), folder)
    monkeypatch.setattr(toolchain, "source_folder", lambda: folder)
    monkeypatch.setitem(toolchain.SOURCES, "cpu", ("bias_act_cpu.cpp",))
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@needs_compiler
@pytest.mark.slow
def test_sixteen_processes_build_once(tmp_path: Path):
    code = SHORT + (
        "import os, sys, torch\n"
        "children = []\n"
        "for _ in range(16):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if extension.load('cpu', may_build=True) is None else 1)\n"
        "    children.append(child)\n"
        "print(sum(os.waitpid(child, 0)[1] for child in children))"
    )
    out, err = finish(python(code, tmp_path))
    assert out.split() == ["0"], err
    assert err.count("compiling") == 1 and len(err.splitlines()) == 1, err
    assert files_in(tmp_path) == [".lock", "ilo_cpu.so"]


@needs_compiler
@pytest.mark.slow
def test_a_killed_builder_stops_nobody(tmp_path: Path):
    code = SHORT + "print(extension.build('cpu'))"
    builder = python(code, tmp_path)
    while builder.poll() is None and not list(tmp_path.rglob("build.ninja")):
        time.sleep(0.01)
    assert builder.poll() is None, "it was done before it could be killed"
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert files_in(tmp_path) != [] and not list(tmp_path.rglob("ilo_cpu.so"))
    out, err = finish(python(code, tmp_path))
    assert Path(out.strip()).is_file() and err.count("compiling") == 1
    assert [path.name for path in tmp_path.rglob("building-*")] == []


@needs_compiler
def test_waiting_for_a_stuck_builder_ends(short: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extension, "PATIENCE_SECONDS", 0.2)
    lock = extension.library("cpu").parent / ".lock"
    holder = python(
        f"from ilo_lightning.files import exclusive\nwith exclusive({str(lock)!r}): print(1, flush=True); input()",
        cache,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "1\n"
    try:
        with pytest.raises(Unavailable, match="another process holds"):
            extension.build("cpu")
    finally:
        holder.kill()
        holder.communicate()
    assert extension.build("cpu").is_file()


@pytest.mark.slow
def test_nothing_is_built_unasked(tmp_path: Path):
    """Not on import, not for help, not for tensors that are not worth it."""
    code = (
        "import torch\nfrom ilo_lightning.ops import bias_act\nfrom ilo_lightning.projections import project_l1_ball\n"
        "bias_act(torch.ones(2, 3)); project_l1_ball(torch.ones(2, 3), 1.0)\n"
        "from ilo_lightning.cli import main\ntry: main(['build-ops', '--help'])\nexcept SystemExit: pass\n"
        "main(['doctor'])"
    )
    _, err = finish(python(code, tmp_path / "cache"))
    assert err == ""
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def nothing_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if this process had not yet looked for kernels; gives the empty cache."""
    for module, name, empty in (
        (extension, "_loaded", {}),
        (extension, "_refused", {}),
        (implementation, "_looked_for", set()),
        (implementation, "_said", set()),
    ):
        monkeypatch.setattr(module, name, empty)
    return cache


def test_without_a_compiler(nothing_loaded: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """The reason is said once, torch does the work; forcing the kernels is refused with the reason."""
    monkeypatch.setenv("PATH", str(nothing_loaded))
    monkeypatch.delenv("CXX", raising=False)
    x = torch.randn(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        torch.testing.assert_close(ops.bias_act(x), torch.nn.functional.leaky_relu(x, 0.2) * 2**0.5)
    ops.upfirdn2d(x, [1.0])
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "plain torch instead: no C++ compiler" in err
    with pytest.raises(ops.ImplementationError, match=r"ops.impl=cpu: no C\+\+ compiler on the PATH"):
        ops.use("cpu")
    assert files_in(nothing_loaded) == [] and implementation.in_use() == "torch"


def test_a_library_that_cannot_be_loaded(nothing_loaded: Path, capfd: pytest.CaptureFixture[str]):
    path = extension.library("cpu")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    x = torch.tensor([1.0, -1.0])
    for _ in range(2):
        torch.testing.assert_close(ops.bias_act(x, gain=1.0), torch.tensor([1.0, -0.2]))
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "can't be loaded" in err and "ilo build-ops --force" in err


def test_a_cache_that_cannot_be_written(short: Path, cache: Path):
    cache.write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match=r"can't be written.*TORCH_EXTENSIONS_DIR"):
        extension.build("cpu")


@needs_compiler
def test_sources_that_do_not_compile(short: Path, cache: Path):
    (short / "bias_act_cpu.cpp").write_text("int main() { return nonsense; }\n")
    with pytest.raises(Unavailable, match=r"error: .nonsense. was not declared.*more in .*build.log"):
        extension.build("cpu")
    assert files_in(cache) == [".lock", "build.log"]


@needs_compiler
def test_force_builds_again(short: Path, cache: Path, capfd: pytest.CaptureFixture[str]):
    path = extension.build("cpu")
    before = path.stat().st_mtime_ns
    assert extension.build("cpu") == path and path.stat().st_mtime_ns == before
    assert extension.build("cpu", force=True) == path and path.stat().st_mtime_ns > before
    assert capfd.readouterr().err.count("compiling") == 2


def test_a_build_is_named_by_what_it_is_made_of(short: Path, monkeypatch: pytest.MonkeyPatch):
    keys = [toolchain.key("cpu")]
    assert toolchain.key("cpu") == keys[0]
    for name in ("bias_act_cpu.cpp", "portable.h"):
        (short / name).write_text((short / name).read_text() + "\n")
        keys.append(toolchain.key("cpu"))
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    keys.append(toolchain.key("cpu"))
    keys.append(toolchain.key("cuda"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    keys.append(toolchain.key("cuda"))
    assert len({*keys}) == len(keys)
    monkeypatch.setenv("PATH", "")
    assert toolchain.key("cuda") == keys[-1], "a node without a compiler finds what another has built"


def test_where_builds_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extension.cache_folder() == tmp_path / "ilo_lightning"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert extension.cache_folder() == tmp_path / "xdg" / "torch_extensions" / "ilo_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert extension.cache_folder() == tmp_path / "home" / ".cache" / "torch_extensions" / "ilo_lightning"


def test_one_openmp_in_the_process(cpu_kernels):
    """The kernels use torch's threads; a second OpenMP library would bring its own, as many again."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.split()[-1] for line in maps if "libgomp" in line}) <= 1


def test_choosing(cpu_kernels):
    x = torch.zeros(2, 3)
    assert implementation.kernels(x) and implementation.in_use() == "cpu"
    with ops.use("torch"):
        assert not implementation.kernels(x) and implementation.in_use() == "torch"
        with ops.use("cpu"):
            assert implementation.kernels(x)
            with pytest.raises(ops.ImplementationError, match=r"float32, float64, got torch.float16"):
                ops.bias_act(x.half())
        assert not implementation.kernels(x)
    assert ops.bias_act(x.half()).dtype == torch.float16
    assert not implementation.kernels(x.to("meta"))
    with pytest.raises(ops.ImplementationError, match=r"ops.impl=fast: expected one of auto, cuda, cpu, torch"):
        ops.use("fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(ops.ImplementationError, match=r"ops.impl=cuda: no CUDA device"):
        ops.use("cuda")


@pytest.mark.parametrize(("choice", "reason"), [("fast", "expected one of"), ("cuda", "no CUDA device")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_run_is_refused_before_work(tmp_path: Path, choice: str, reason: str, capfd: pytest.CaptureFixture[str]):
    from ilo_lightning.main import REFUSED, solve

    assert solve([f"ops.impl={choice}", f"hydra.run.dir={tmp_path / 'run'}"]) == REFUSED
    err = capfd.readouterr().err
    assert err.startswith(f"error: ops.impl={choice}: ") and reason in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_records_what_computed(cpu_kernels, monkeypatch: pytest.MonkeyPatch):
    from ilo_lightning.identity import versions

    assert versions()["ops"] == "cpu"
    with ops.use("torch"):
        assert versions()["ops"] == "torch"
