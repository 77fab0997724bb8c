"""What makes two runs the same run."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import place

if TYPE_CHECKING:
    from torch import nn


def identity(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


PLACEMENT = (
    "hydra", "logger", "ops", "checkpoint_every_seconds", "force", "pack", "data.shard", "data.decode_batch_size",
    "trainer.accelerator", "trainer.benchmark", "trainer.detect_anomaly", "trainer.deterministic", "trainer.profiler",
)  # fmt: skip
"""Entries of a configuration (with all below them) that change how and where a run is done, and not what is computed.
Neither the folder of a point nor its identity knows them, and no table tells points apart by them."""

SIZES = ("size", "sizes")
"""Of an experiment: which of its sizes is run, and the table of what that sets elsewhere, where it counts."""

_TOLD = (
    "data.limit", "data.path", "data.batch_size", "task.mask", "task.operator.mask", "generator.checkpoint",
    "generator.sha256", "generator.label", "perceptual.trunk",
)  # fmt: skip
"""Entries that are told by what they lead to: images, batches, weights, a mask."""


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of ``names``, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def without(config: Mapping[str, Any], names: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """A configuration without entries, and without what is below them."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if not is_below(f"{prefix}{key}", names):
            kept[key] = without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
    return kept


def without_places(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration without the names of files, and without what else is told by what it leads to: the contents."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _TOLD or _names_a_file(value):
            continue
        kept[key] = _told(value, name)
    return kept


def _told(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return without_places(value, f"{name}.")
    if isinstance(value, list):  # the parts of a composition, the blocks of a generator
        return [_told(entry, f"{name}.{place}") for place, entry in enumerate(value)]
    return value


def _names_a_file(value: Any) -> bool:
    """By its look, too: the name of a task is no file, whatever lies in the working directory."""
    return isinstance(value, str) and ("/" in value or "." in value) and place(value) is not None


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's parameters and persistent buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().resolve_conj().contiguous().numpy().tobytes())
    return digest.hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every entry in which two nested mappings differ; in lists the key is a number."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and any(isinstance(v, Mapping) for v in a):
            a, b = ({str(place): entry for place, entry in enumerate(entries)} for entries in (a, b))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Of everything that can change a number, as of now: kernels may be loaded later (see `ilo_lightning.ops`)."""
    from .ops.implementation import in_use

    return {**_versions(), "ops": in_use()}


@functools.cache
def _versions() -> dict[str, str]:
    import pytorch_lightning
    import torch

    from . import __version__

    return {
        "ilo_lightning": __version__,
        "torch": torch.__version__,
        "pytorch_lightning": pytorch_lightning.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


@functools.cache
def commit() -> str | None:
    """The git commit of the source tree, ``-dirty`` if it has changes; None for an installed wheel."""
    root = Path(__file__).parent.parent
    if not (root / "pyproject.toml").is_file() or not (root / ".git").exists():  # .git: not of a repository around it
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
