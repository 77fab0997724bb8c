"""The files that a configuration names, with stamps: cheap to compare where the contents, which make the identity of a
point, would have to be read."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import place


def inputs_of(config: Any) -> dict[str, str]:
    """Every existing file, folder or glob that a configuration names, absolute, with its stamp."""
    if isinstance(config, Mapping):
        return {path: stamp for value in config.values() for path, stamp in inputs_of(value).items()}
    if isinstance(config, list | tuple):
        return {path: stamp for value in config for path, stamp in inputs_of(value).items()}
    path = place(config)
    return {} if path is None else {path: stamp_of(path)}


def stamp_of(path: str) -> str:
    """Changes when a file, the files of a folder or the matches of a glob are replaced: their names, sizes and
    modification times. Empty if there is nothing."""
    if os.path.isdir(path):
        files = [entry.path for entry in os.scandir(path) if os.path.isfile(entry.path)]
    elif os.path.exists(path):
        files = [path]
    else:
        files = glob.glob(path, recursive=True)
    lines = []
    for file in sorted(files):
        try:
            stat = Path(file).stat()
        except OSError:
            continue
        lines.append(f"{file} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16] if lines else ""
