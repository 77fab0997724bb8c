"""Whether files are whole."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file


def read(path: Path) -> None:
    """Read a file to its end, by its kind; raises whatever its reader raises if it isn't whole."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.verify()
        with Image.open(path) as picture:  # verify() doesn't decode
            picture.load()
    elif path.suffix == ".safetensors":
        assert load_file(path)
    elif path.suffix == ".jsonl":
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n")
        for line in text.splitlines():
            assert isinstance(json.loads(line), dict)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".yaml":
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    elif path.suffix == ".ckpt":
        assert "state_dict" in torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise AssertionError(f"{path}: what kind of file is this?")


def check_folder(folder: Path) -> list[str]:
    """Read every file of a run that has its final name; returns the names of the others."""
    unfinished = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".part":
            assert path.name.startswith("."), f"{path}: unfinished, and not hidden"
            unfinished.append(path.name)
        elif path.is_file() and path.name not in (".lease", ".entrance", "0000-error.txt"):
            read(path)
    return unfinished
