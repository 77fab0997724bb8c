"""How the kernels in ``cuda/`` are compiled: sources, compilers, flags, and the ninja file that says it all.

The CPU kernels need a C++ compiler, the CUDA kernels nvcc as well. Only Linux is served: elsewhere the torch
implementations do the work.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

KINDS = ("cpu", "cuda")
SOURCES = {"cpu": ("*_cpu.cpp", "bindings.cpp"), "cuda": ("*.cu", "bindings.cpp")}
HEADERS = ("*.h", "*.cuh")

# Without contraction to fused multiply-adds, and with sums in a fixed order, results don't depend on the processor. The
# two `no-` flags change no result; without them g++ takes conditions for branches and vectorises no loop that has one.
CXX_FLAGS = ("-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden")
AVX2_FLAGS = ("-mavx2", "-mfma")
CUDA_ARCHITECTURES = "8.0;9.0+PTX"  # and later ones through PTX


class Unavailable(Exception):
    """Why kernels can't be compiled or loaded here."""


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler, and the toolkit it belongs to."""

    path: Path
    toolkit: Path
    version: str


def source_folder() -> Path:
    """Where the sources are installed."""
    return Path(str(importlib.resources.files("ilo_lightning.cuda")))


def sources(kind: str) -> list[Path]:
    """What is compiled, in a fixed order."""
    return sorted(path for pattern in SOURCES[kind] for path in source_folder().glob(pattern))


def processor_flags() -> tuple[str, ...]:
    """By torch's own classes of processors rather than ``-march=native``: the nodes of a cluster share a build."""
    return AVX2_FLAGS if "AVX2" in _capability() or "AVX512" in _capability() else ()


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def cpp_standard() -> str:
    """That of torch itself, whose headers need it."""
    match = re.search(r"C\+\+ Version: (\d{6})", torch.__config__.show())
    return "-std=c++20" if match and int(match[1]) >= 202002 else "-std=c++17"


def architectures() -> str:
    """CUDA architectures to compile for, as TORCH_CUDA_ARCH_LIST has them."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if named:
        return named
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability < (8, 0):
            return "{}.{}".format(*capability)
    return CUDA_ARCHITECTURES


def gencode(names: str) -> list[str]:
    """nvcc's flags for ``8.0;9.0+PTX``."""
    flags = []
    for name in re.split(r"[;\s]+", names.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", name)
        if not match:
            raise Unavailable(f"TORCH_CUDA_ARCH_LIST={names}: expected numbers such as 8.0;9.0+PTX")
        number = match[1] + match[2]
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[3]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def key(kind: str) -> str:
    """Names a build: hash of the sources and of all that they are built for. It needs no compiler, so that a node
    without one finds what another node has built."""
    digest = hashlib.sha256()
    parts = [torch.__version__, str(torch.version.cuda), str(sys.implementation.cache_tag), os.uname().machine]
    parts += [*CXX_FLAGS, cpp_standard()]
    parts += [*NVCC_FLAGS, architectures()] if kind == "cuda" else processor_flags()
    digest.update("\n".join(parts).encode())
    for path in sorted([*sources(kind), *(path for pattern in HEADERS for path in source_folder().glob(pattern))]):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cxx() -> Path:
    """The C++ compiler: $CXX, g++ or c++."""
    if sys.platform != "linux":
        raise Unavailable(f"compiled kernels are for Linux, this is {sys.platform}")
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]:
        found = shutil.which(name)
        if found:
            return Path(found)
    named = os.environ.get("CXX")
    raise Unavailable(
        f"CXX={named} is not there" if named else "no C++ compiler on the PATH (on Debian: apt install g++)"
    )


def ninja() -> Path:
    """The build tool, from the package ``ninja`` or the PATH."""
    try:
        from ninja import BIN_DIR

        found = Path(BIN_DIR) / "ninja"
        if found.exists():
            return found
    except ImportError:
        pass
    on_path = shutil.which("ninja")
    if on_path is None:
        raise Unavailable("ninja is missing: pip install ninja")
    return Path(on_path)


@functools.cache
def nvcc() -> Nvcc:
    """The CUDA compiler: that of $CUDA_HOME, else the one on the PATH, which may be a script that calls another."""
    if torch.version.cuda is None:
        raise Unavailable("this PyTorch is built without CUDA")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = Path(home) / "bin" / "nvcc" if home else Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    if not found.exists():
        raise Unavailable(
            f"CUDA_HOME={home}: no bin/nvcc in it" if home else "no nvcc on the PATH, and CUDA_HOME is not set"
        )
    release = re.search(r"release (\d+\.\d+)", _output(found, "--version"))
    top = re.search(r"^#\$ TOP=(.+)$", _output(found, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    if not release or not top:
        raise Unavailable(f"{found} does not answer as nvcc does")
    if release[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        raise Unavailable(f"{found} is of CUDA {release[1]}, this PyTorch of CUDA {torch.version.cuda}")
    return Nvcc(found, Path(top[1]).resolve(), release[1])


def _output(*command: str | Path) -> str:
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]}: {error}") from None
    return done.stdout + done.stderr


def ninja_file(kind: str, library: str) -> str:
    """The build of ``library`` from the sources, as ninja reads it.

    Raises:
        Unavailable: if a compiler is missing, or doesn't fit this PyTorch.
    """
    home = Path(torch.__file__).parent
    include = [home / "include", home / "include" / "torch" / "csrc" / "api" / "include"]
    compile_flags = [
        *CXX_FLAGS,
        cpp_standard(),
        "-fopenmp",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    link_flags = ["-shared", "-Wl,-z,defs", f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
    nvcc_command = ""
    if kind == "cpu":
        compile_flags += processor_flags()
        # The threads are torch's own: a second OpenMP library in the process would have its own.
        bundled = sorted((home / "lib").glob("libgomp*.so*"))
        link_flags += [str(bundled[0])] if bundled else ["-fopenmp"]
    else:
        toolkit = nvcc().toolkit
        include.append(toolkit / "include")
        compile_flags.append("-DILO_CUDA")
        link_flags += ["-lc10_cuda", f"-L{toolkit / 'lib64'}", f"-L{toolkit / 'lib'}", "-lcudart"]
        nvcc_command = _words([nvcc().path, *NVCC_FLAGS, *gencode(architectures()), "-ccbin", cxx()])
    rules = [
        "ninja_required_version = 1.3",
        f"rule cxx\n  command = {_words([cxx(), *compile_flags, *(f'-isystem{p}' for p in include)])} "
        "-MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule nvcc\n  command = {nvcc_command} -c $in -o $out",
        f"rule link\n  command = {_words([cxx()])} $in {_words(link_flags)} -o $out",
    ]
    objects = []
    for path in sources(kind):
        objects.append(f"{path.name}.o")
        rules.append(f"build {objects[-1]}: {'nvcc' if path.suffix == '.cu' else 'cxx'} {_escape(path)}")
    rules.append(f"build {library}: link {' '.join(objects)}")
    return "\n".join(rules) + "\n"


def _words(words: Sequence[str | Path]) -> str:
    """Words of a shell command in a ninja file."""
    return " ".join(shlex.quote(str(word)) for word in words).replace("$", "$$")


def _escape(path: Path) -> str:
    """A path in a build line of a ninja file."""
    return re.sub(r"([$ :])", r"$\1", str(path))
