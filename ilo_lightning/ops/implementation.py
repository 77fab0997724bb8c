"""Which implementation of an operation computes: the kernels compiled for the tensor's device, or plain torch."""

from __future__ import annotations

import sys
from types import TracebackType

import torch
from torch import Tensor

from . import extension

CHOICES = ("auto", "cuda", "cpu", "torch")
DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}
WORTH_BUILDING = 1 << 20  # numbers in a tensor: for fewer, a run takes no longer in torch than compiling does

_forced = "auto"
_looked_for: set[str] = set()
_said: set[str] = set()


class ImplementationError(ValueError):
    """An implementation that can't be had; the message says why."""


class use:
    """Choose the implementation: for the process from here on, or as a context manager for a block.

    Args:
        impl: ``auto``: the compiled kernels where they are, else torch. They are compiled when they are first used on a
            tensor of 2²⁰ numbers or more; see ``ilo build-ops`` for doing it ahead. ``cpu`` or ``cuda``: the compiled
            kernels for all tensors on that device, compiled now if need be; elsewhere torch. ``torch``: plain torch
            everywhere.

    Raises:
        ImplementationError: if ``impl`` is none of these, or can't be had; the message says why.

    Example:
        >>> with use("torch"):
        ...     chosen()
        'torch'
    """

    def __init__(self, impl: str):
        global _forced
        if impl not in CHOICES:
            raise ImplementationError(f"ops.impl={impl}: expected one of {', '.join(CHOICES)}")
        if impl in ("cpu", "cuda"):
            reason = extension.load(impl, may_build=True)
            if reason:
                raise ImplementationError(f"ops.impl={impl}: {reason}")
        self._before, _forced = _forced, impl

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._before


def chosen() -> str:
    """What was last given to `use`."""
    return _forced


def kernels(x: Tensor) -> bool:
    """Whether compiled kernels, rather than torch, compute on ``x``; loads them, and compiles them if it pays.

    Raises:
        ImplementationError: if kernels are forced that can't take this tensor.
    """
    # torch.compile may have a symbol for the size, and the constant that `_decide` is for it needs a plain bool
    if x.numel() >= WORTH_BUILDING:
        return _decide(x.device.type, x.dtype, large=True)
    return _decide(x.device.type, x.dtype, large=False)


def compiled(x: Tensor) -> bool:
    """The same, but False for a type that the kernels of its device don't know, even where they are forced."""
    return x.dtype in DTYPES.get(x.device.type, ()) and kernels(x)


@torch.compiler.assume_constant_result
def _decide(device: str, dtype: torch.dtype, large: bool) -> bool:
    if _forced == "torch" or device not in DTYPES or _forced not in ("auto", device):
        return False
    if dtype not in DTYPES[device]:
        if _forced == device:
            names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES[device])
            raise ImplementationError(f"ops.impl={device}: the {device} kernels take {names}, got {dtype}")
        return False
    if device in extension.loaded():
        return True
    if not large and device in _looked_for:
        return False
    _looked_for.add(device)
    reason = extension.load(device, may_build=large)
    if reason and reason != extension.NOT_BUILT and device not in _said:
        _said.add(device)
        print(f"ilo: no {device} kernels, plain torch instead: {reason}", file=sys.stderr, flush=True)
    return reason is None


def prepare() -> None:
    """Load the kernels that are compiled already, so that ``in_use`` says the same from a run's beginning to its end,
    and of a run that was interrupted the same as of one that was not."""
    for device in DTYPES:
        if device != "cuda" or torch.cuda.is_available():
            kernels(torch.empty(0, device=device))


def in_use() -> str:
    """The compiled kernels that this process may be using, or ``torch``: for records of what made a number."""
    kinds = [] if _forced == "torch" else [kind for kind in extension.loaded() if _forced in ("auto", kind)]
    return "+".join(kinds) or "torch"
