"""The CUDA sources compile, link and register, without a GPU; and how their compiler is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ilo_lightning.ops import toolchain
from ilo_lightning.ops.toolchain import Unavailable


@pytest.fixture
def nvcc() -> toolchain.Nvcc:
    try:
        return toolchain.nvcc()
    except Unavailable as reason:
        pytest.skip(f"no CUDA compiler: {reason}")


@pytest.mark.slow
def test_compile_for_two_architectures_and_link(nvcc, tmp_path: Path):
    """Nothing is left undefined when the library is linked, and torch finds every operator in it."""
    env = os.environ | {"TORCH_CUDA_ARCH_LIST": "8.0;9.0", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    build = [sys.executable, "-m", "ilo_lightning.cli", "build-ops", "cuda"]
    done = subprocess.run(build, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (library,) = tmp_path.rglob("ilo_cuda.so")
    names = ["bias_act", "bias_act_backward", "upfirdn2d", "l1_threshold", "l1_shrink", "l1_ball", "l1_derivative"]
    code = (
        "import torch, ilo_lightning.ops\n"
        f"torch.ops.load_library({str(library)!r})\n"
        f"print(*(n for n in {names} if torch._C._dispatch_has_kernel_for_dispatch_key('ilo::' + n, 'CUDA')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert loaded.stdout.split() == names, loaded.stderr
    inspect = nvcc.toolkit / "bin" / "cuobjdump"
    if inspect.exists():
        listed = subprocess.run([inspect, "--list-elf", library], capture_output=True, text=True).stdout
        assert "sm_80" in listed and "sm_90" in listed


def test_architectures(monkeypatch: pytest.MonkeyPatch):
    both = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90"]
    assert toolchain.gencode("8.0;9.0") == toolchain.gencode("8.0 9.0") == both
    assert toolchain.gencode("9.0a+PTX") == [
        "-gencode", "arch=compute_90a,code=sm_90a", "-gencode", "arch=compute_90a,code=compute_90a",
    ]  # fmt: skip
    with pytest.raises(Unavailable, match="TORCH_CUDA_ARCH_LIST=Ampere: expected numbers"):
        toolchain.gencode("Ampere")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert toolchain.architectures() == "7.5"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CUDA_HOME, with a compiler that is a script."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    toolchain.nvcc.cache_clear()
    yield tmp_path
    toolchain.nvcc.cache_clear()


def script(home: Path, text: str) -> None:
    path = home / "bin" / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch is built without CUDA")


@needs_cuda_torch
def test_a_wrapper_s_toolkit_is_found(home: Path):
    """nvcc on the PATH may be a script elsewhere; the compiler itself tells where its toolkit is."""
    script(
        home,
        f'case "$1" in --version) echo release {torch.version.cuda},;; *) echo "#\\$ TOP={home}/real/bin/..";; esac',
    )
    (home / "real" / "bin").mkdir(parents=True)
    assert toolchain.nvcc() == toolchain.Nvcc(home / "bin" / "nvcc", home / "real", torch.version.cuda)


@needs_cuda_torch
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('case "$1" in --version) echo release 1.0,;; *) echo "#\\$ TOP=/x";; esac', "is of CUDA 1.0, this PyTorch of"),
        ("echo hello", "does not answer as nvcc does"),
        (None, "no bin/nvcc in it"),
    ],
)
def test_a_compiler_that_does_not_fit(home: Path, text: str | None, reason: str):
    if text is not None:
        script(home, text)
    with pytest.raises(Unavailable, match=reason):
        toolchain.nvcc()
