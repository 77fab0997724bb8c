"""``ilo build-ops``: compile the kernels ahead, say on a login node, or when a container is made."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from .exit_codes import DONE, REFUSED
from .ops import extension, toolchain


def main(arguments: Sequence[str]) -> int:
    """``ilo build-ops [cpu] [cuda] [--force]``. Returns the exit code: 0 done, 2 if something can't be compiled."""
    parser = argparse.ArgumentParser(
        prog="ilo build-ops",
        description="Compile the kernels of the operations (docs/ops.md) for this version of PyTorch, into "
        f"{extension.cache_folder()} (TORCH_EXTENSIONS_DIR). CUDA needs nvcc, but no GPU; TORCH_CUDA_ARCH_LIST names "
        f"the architectures (default {toolchain.CUDA_ARCHITECTURES}).",
    )
    parser.add_argument("kinds", nargs="*", help="cpu, cuda (default: cpu, and cuda where there is a device)")
    parser.add_argument("--force", action="store_true", help="compile again what is there")
    options = parser.parse_args(arguments)
    unknown = sorted({*options.kinds} - {*toolchain.KINDS})
    if unknown:
        parser.error(f"{unknown[0]}: expected {' or '.join(toolchain.KINDS)}")
    code = DONE
    for kind in options.kinds or ["cpu", *["cuda"] * torch.cuda.is_available()]:
        began = time.monotonic()
        try:
            there = extension.library(kind).exists() and not options.force
            path = extension.build(kind, options.force)
            print(f"{kind}: {'already compiled' if there else f'compiled in {time.monotonic() - began:.0f} s'}: {path}")
        except toolchain.Unavailable as reason:
            print(f"error: {kind}: {reason}", file=sys.stderr)
            code = REFUSED
    return code
