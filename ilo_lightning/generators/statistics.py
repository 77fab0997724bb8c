"""Latent statistics of a checkpoint: fitted once, kept in a cache."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..files import exclusive, write_atomically
from ..identity import identity
from .stylegan2 import StyleGAN2

FORMAT = "ilo_lightning.statistics/1"
SAMPLES = 100_000
NAMES = ("w_mean", "w_std", "gaussian_mean", "gaussian_std")


def cache_folder() -> Path:
    """$ILO_CACHE, or ilo-lightning in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("ILO_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ilo-lightning"


def set_statistics(generator: StyleGAN2, sha256: str) -> None:
    """Give a generator the statistics that ``gaussian_w_plus`` rests on: those in the cache, or else fitted on
    ``SAMPLES`` draws, with a line of progress on standard error, and kept there. Several processes may do so at once:
    one fits, the others wait.

    Args:
        sha256: of the checkpoint, under which (with the label in use) they are kept.
    """
    label = None if generator.label is None else generator.label.tolist()
    path = cache_folder() / f"statistics-{identity({'sha256': sha256, 'label': label, 'samples': SAMPLES})}.safetensors"
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that can't be written, or a file system without locks
            stack.enter_context(exclusive(path.with_suffix(".lock"), patience=math.inf))
        if _read(path, generator):
            return
        with _progress(SAMPLES) as advance:
            generator.fit_statistics(SAMPLES, progress=advance)
        try:
            tensors = {name: generator.get_buffer(name).contiguous() for name in NAMES}
            write_atomically(path, save(tensors, {"format": FORMAT, "sha256": sha256}))
        except OSError as error:
            print(f"note: {path.parent} can't be written ({error}); set ILO_CACHE to a folder", file=sys.stderr)


def _read(path: Path, generator: StyleGAN2) -> bool:
    """Take the statistics from a file, if it is there and whole."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                return False
            found = {name: file.get_tensor(name) for name in NAMES}
    except (SafetensorError, OSError):
        return False
    if any(found[name].shape != generator.get_buffer(name).shape for name in NAMES):
        return False
    for name, tensor in found.items():
        generator.get_buffer(name).copy_(tensor)
    return True


@contextmanager
def _progress(samples: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line at the end."""
    title = f"latent statistics of {samples:,} samples"
    if not sys.stderr.isatty():
        yield lambda done: None
        print(f"{title}: fitted, and kept in {cache_folder()}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=samples)
        yield lambda done: bars.update(task, completed=done)
