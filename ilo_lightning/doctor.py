"""``ilo doctor``: what this machine has, what would be used, what is missing where. Compiles and changes nothing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import netrc
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from . import __version__, identity
from .files import locate
from .losses.trunks import SOURCE
from .losses.trunks import TRUNK_FILES as LPIPS_TRUNKS
from .ops import extension, implementation, toolchain

Row = tuple[str, str, str]  # what, its state, why or where

OPERATIONS = ("styled_act", "bias_act", "upfirdn2d", "l1_ball")
CPU_ONLY = ("styled_act",)  # on CUDA, bias_act does most of it
PACKAGES = ("torchvision", "pytorch-lightning", "hydra-core", "torchmetrics", "safetensors", "ninja")
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".pkl")
DEVICE_PATIENCE_SECONDS = 20  # a GPU driver that is broken may never answer


def main(arguments: Sequence[str]) -> int:
    """``ilo doctor``. Prints one table and returns 0."""
    argparse.ArgumentParser(prog="ilo doctor", description=__doc__).parse_args(arguments)
    answered = threading.Event()
    threading.Thread(target=_ask_devices, args=(answered,), daemon=True).start()
    if not answered.wait(DEVICE_PATIENCE_SECONDS):
        print(f"CUDA does not answer within {DEVICE_PATIENCE_SECONDS} s: the driver is broken or busy", flush=True)
        os._exit(0)  # the thread that waits for the driver would hold up an ordinary exit
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "versions": versions,
        "devices": devices,
        "operations": operations,
        "checkpoints": checkpoints,
        "perceptual weights": perceptual_weights,
        "Weights & Biases": wandb,
        "SLURM": slurm,
    }
    tables = {title: list(section()) for title, section in sections.items()}
    widths = [max(len(row[column]) for rows in tables.values() for row in rows) for column in (0, 1)]
    for title, rows in tables.items():
        print(title)
        for what, state, note in rows:
            print(f"  {what:{widths[0]}}  {state:{widths[1]}}  {note}".rstrip())
    return 0


def _ask_devices(answered: threading.Event) -> None:
    torch.cuda.is_available()
    answered.set()


def versions() -> Iterator[Row]:
    """This package, Python, and what numbers depend on."""
    yield "ilo-lightning", __version__, identity.commit() or str(Path(__file__).parent)
    yield "Python", platform.python_version(), sys.executable
    yield "torch", torch.__version__, ""
    for name in PACKAGES:
        yield name, _version(name) or "missing", ""


def devices() -> Iterator[Row]:
    """The processor and the GPUs."""
    capability = torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{os.cpu_count()} cores", f"torch uses {torch.get_num_threads()} threads, {capability}"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"sm_{found.major}{found.minor}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch without CUDA"
        yield "cuda", "none", built


def operations() -> Iterator[Row]:
    """For each operation and device, which implementation a run with the default ``ops.impl=auto`` begins with."""
    kinds = ["cpu", *["cuda"] * torch.cuda.is_available()]
    found = {kind: extension.status(kind) for kind in kinds}
    for operation in OPERATIONS:
        for kind, status in found.items():
            note = status.reason
            if note == extension.NOT_BUILT:
                note += f", as does the first tensor of {implementation.WORTH_BUILDING:,} numbers"
            if kind == "cuda" and operation in CPU_ONLY:
                yield f"{operation} on {kind}", "torch", "with bias_act"
                continue
            yield f"{operation} on {kind}", kind if status.usable else "torch", note
    if "cuda" not in kinds:
        yield "any on cuda", "none", extension.status("cuda").reason
    for what, find in (("C++ compiler", toolchain.cxx), ("CUDA compiler", lambda: toolchain.nvcc().path)):
        try:
            yield what, "found", str(find())
        except toolchain.Unavailable as reason:
            yield what, "none", str(reason)


def checkpoints() -> Iterator[Row]:
    """Of generators: those in the package, and those in ./checkpoints."""
    bundled = locate("pkg://ilo_lightning.generators/weights")
    for folder, prefix in ((bundled, "pkg://ilo_lightning.generators/weights"), (Path("checkpoints"), "checkpoints")):
        if folder.is_dir():
            for path in sorted(path for path in folder.iterdir() if path.suffix in CHECKPOINTS and path.is_file()):
                yield path.stem, f"{path.stat().st_size / 2**20:.1f} MiB", f"{prefix}/{path.name}"
    if not Path("checkpoints").is_dir():
        yield "your own", "none", "looked in ./checkpoints; generator.checkpoint=PATH takes any other place"


def perceptual_weights() -> Iterator[Row]:
    """LPIPS: heads from the package, trunks as torchvision keeps them. ST-LPIPS: complete in its package."""
    spec = importlib.util.find_spec("lpips")
    heads = Path(spec.origin).parent / "weights" / "v0.1" if spec and spec.origin else None
    trunks = Path(torch.hub.get_dir()) / "checkpoints"
    for net, name in LPIPS_TRUNKS.items():
        if heads is None or not (heads / f"{net}.pth").is_file():
            yield f"lpips {net}", "missing", "pip install lpips"
        elif (trunks / name).is_file():
            yield f"lpips {net}", "found", str(trunks / name)
        else:
            yield (
                f"lpips {net}",
                "no trunk",
                f"put {SOURCE}/{name} into {trunks}",
            )
    version = _version("stlpips_pytorch")
    yield (
        "st-lpips",
        version or "missing",
        "" if version else "pip install 'ilo-lightning[stlpips]' (64 MB, complete)",
    )


def wandb() -> Iterator[Row]:
    """The package, and whether there is a key; nothing is sent."""
    version = _version("wandb")
    yield "wandb", version or "missing", "" if version else "pip install wandb"
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    if os.environ.get("WANDB_API_KEY"):
        yield "login", "key", "WANDB_API_KEY"
    elif _netrc_knows(host):
        yield "login", "key", f"{os.environ.get('NETRC', '~/.netrc')}, {host}"
    else:
        yield "login", "none", "runs would be kept offline; `wandb login`, or set WANDB_API_KEY"
    if os.environ.get("WANDB_MODE"):
        yield "mode", os.environ["WANDB_MODE"], "WANDB_MODE"


def _netrc_knows(host: str) -> bool:
    try:
        return netrc.netrc(os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def slurm() -> Iterator[Row]:
    """Whether jobs can be submitted from here, or this is one; no daemon is asked."""
    sbatch = shutil.which("sbatch")
    yield "sbatch", "found" if sbatch else "none", sbatch or "not on the PATH"
    job = os.environ.get("SLURM_JOB_ID")
    yield "this process", f"job {job}" if job else "no job", os.environ.get("SLURM_JOB_NODELIST", "")
    launcher = _version("hydra-submitit-launcher")
    yield "submitit launcher", launcher or "missing", "" if launcher else "pip install hydra-submitit-launcher"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
