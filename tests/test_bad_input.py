"""The table of docs/bad-input.md, row by row, through the real command line."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilo_lightning.generators.checkpoints import save_generator
from tests.networks import small_stylegan2
from tests.test_run import rows_of

TABLE = Path(__file__).parents[1] / "docs" / "bad-input.md"
QUICK = ["trainer=cpu", "method.layers=[0,1]", "method.steps=[2,2]", "method.lr=[0.1,0.1]"]


def run(folder: Path, *arguments: str, checkpoint: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`ilo solve` in a process of its own; ``folder`` is its run directory. ``NAME=VALUE`` in capitals is for the
    environment."""
    variables = {name: value for name, _, value in (a.partition("=") for a in arguments) if name.isupper()}
    generator = ["generator=stylegan2", f"generator.checkpoint={checkpoint}"] if checkpoint else []
    command = [
        sys.executable,
        "-m",
        "ilo_lightning.cli",
        "solve",
        *generator,
        *QUICK,
        f"hydra.run.dir={folder}",
        *(argument for argument in arguments if argument.partition("=")[0] not in variables),
    ]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment)


def pixels(height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(path: Path, array: np.ndarray | None = None, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels() if array is None else array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def bomb(path: Path) -> Path:
    """A PNG of a few hundred bytes that says it has 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return path


def truncated(path: Path) -> Path:
    whole = png(path, pixels(64, 64)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def rotated(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels()).save(path, exif=exif)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def made(path: Path) -> Path:
    path.mkdir()
    return path


def mask(path: Path, side: int = 16, value: int | None = None) -> Path:
    array = np.full((side, side), 255 if value is None else value, np.uint8)
    if value is None:
        array[: side // 2] = 0
    return png(path, array)


def animation(path: Path) -> Path:
    frames = [Image.fromarray(np.full((16, 16, 3), 80 * i, np.uint8)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def other_checkpoint(path: Path) -> Path:
    torch.save({"g_ema": {"weight": torch.zeros(3)}}, path)
    return path


# What is given -> arguments, made in a folder: row of the table -> (make, exit code, words of the message or None).
Case = tuple[Callable[[Path], Sequence[str]], int, str | None]
CASES: dict[str, Case] = {
    "missing file": (lambda f: [f"data.path={f / 'no.png'}"], 2, r"data\.path=.*no\.png: no such file or folder"),
    "empty folder": (lambda f: [f"data.path={made(f / 'empty')}"], 2, "the folder holds no pictures"),
    "not an image": (lambda f: [f"data.path={text(f / 'x.png', 'hello')}"], 2, r"x\.png: not an image"),
    "truncated image": (lambda f: [f"data.path={truncated(f / 'x.png')}"], 2, r"x\.png: can't be read .*truncated"),
    "16-bit": (lambda f: [f"data.path={png(f / 'x.png', pixels()[:, :, 0].astype(np.uint16) * 257)}"], 0, None),
    "greyscale": (lambda f: [f"data.path={png(f / 'x.png', pixels()[:, :, 0])}"], 0, None),
    "RGBA": (lambda f: [f"data.path={png(f / 'x.png', pixels(channels=4))}"], 0, None),
    "palette": (lambda f: [f"data.path={png(f / 'x.png', mode='P')}"], 0, None),
    "CMYK": (lambda f: [f"data.path={png(f / 'x.jpg', mode='CMYK')}"], 0, None),
    "EXIF-rotated": (lambda f: [f"data.path={rotated(f / 'x.jpg')}"], 0, None),
    "animated GIF": (lambda f: [f"data.path={animation(f / 'x.gif')}"], 0, None),
    "decompression bomb": (lambda f: [f"data.path={bomb(f / 'x.png')}"], 2, "too large to be opened safely"),
    "wrong aspect ratio": (lambda f: [f"data.path={png(f / 'x.png', pixels(16, 40))}"], 0, None),
    "another size than the generator's": (lambda f: [f"data.path={png(f / 'x.png', pixels(50, 50))}"], 0, None),
    "measured picture of another size": (
        lambda f: ["task=denoising", "data.mode=measured", f"data.path={png(f / 'x.png', pixels(50, 50))}"],
        2,
        "50×50 pixels, but this task measures 16×16",
    ),
    "measured picture with transparency": (
        lambda f: ["task=denoising", "data.mode=measured", f"data.path={png(f / 'x.png', pixels(channels=4))}"],
        2,
        "save it without transparency",
    ),
    "mask of another size": (lambda f: [f"task.mask={mask(f / 'm.png', 8)}"], 2, r"task\.mask=.*8"),
    "empty mask": (lambda f: [f"task.mask={mask(f / 'm.png', value=0)}"], 2, r"task\.mask=.*nothing"),
    "full mask": (lambda f: [f"task.mask={mask(f / 'm.png', value=255)}"], 0, None),
    "fraction 0": (lambda f: ["task.fraction=0"], 2, r"task\.fraction=0.*\(0, 1\]"),
    "fraction above 1": (lambda f: ["task.fraction=1.5"], 2, r"task\.fraction=1\.5.*\(0, 1\]"),
    "fraction NaN": (lambda f: ["task=compressed_sensing", "task.fraction=nan"], 2, r"task\.fraction=nan.*\(0, 1\]"),
    "factor that doesn't divide": (
        lambda f: ["task=super_resolution", "task.factor=3"],
        2,
        "use one of 1, 2, 4, 8, 16",
    ),
    "measurement of another operator": (
        lambda f: ["task=compressed_sensing", "task.seed=1", "data.mode=measured", f"data.path={f / 'y'}"],
        2,
        r"measured by another operator \(seed: 0 -> 1\); its header says task=compressed_sensing",
    ),
    "corrupt checkpoint": (
        lambda f: [f"generator.checkpoint={text(f / 'x.safetensors', b'0' * 50)}"],
        2,
        r"generator\.checkpoint=.*not a readable safetensors file",
    ),
    "foreign checkpoint": (
        lambda f: [f"generator.checkpoint={other_checkpoint(f / 'x.pt')}"],
        2,
        r"generator\.checkpoint=.*x\.pt",
    ),
    "misspelt key": (
        lambda f: ["task.fractoin=0.1"],
        2,
        r"task\.fractoin: no such option; did you mean task\.fraction\?",
    ),
    "unknown choice": (lambda f: ["task=inpaintin"], 2, "task=inpaintin: no such choice; did you mean inpainting"),
    "invalid W&B key": (
        lambda f: ["logger=wandb", "logger.mode=online", "WANDB_API_KEY=short"],
        2,
        "WANDB_API_KEY invalid: .*; correct WANDB_API_KEY or run `wandb login`, or use logger.mode=offline",
    ),
    "W&B online without a login": (
        lambda f: ["logger=wandb", "logger.mode=online", "WANDB_API_KEY=", f"NETRC={f / 'netrc'}"],
        2,
        "not logged in; run `wandb login`, or use logger.mode=offline",
    ),
    "output path below a regular file": (
        lambda f: [f"hydra.run.dir={text(f / 'file', 'x')}/run"],
        2,
        r"hydra\.run\.dir: .*Not a directory.*choose another folder",
    ),
    "full disk": (lambda f: [], 3, None),
    "non-finite numbers in the middle": (
        lambda f: ["method.lr=1e30", "method.radius=null", "method.spheres=[]"],
        3,
        "data fit not finite from step 2 on .* kept the best before; lower method.lr",
    ),
    "out of memory": (lambda f: [], 3, None),
    "one bad image in a folder": (lambda f: [f"data.path={f / 'mixed'}"], 3, r"bad\.png: not an image"),
}
ELSEWHERE = {"full disk", "out of memory"}
"""Tested below, on a small tmpfs, and in test_run_faults.py."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "small.safetensors"
    save_generator(small_stylegan2(dtype=torch.float32), path)
    return path


@pytest.mark.parametrize("name", [name for name in CASES if name not in ELSEWHERE])
def test_accepted_by_a_stated_rule_or_refused_in_one_line(name: str, checkpoint: Path, tmp_path: Path):
    make, code, words = CASES[name]
    picture = png(tmp_path / "good.png")
    if name == "measurement of another operator":
        command = [sys.executable, "-m", "ilo_lightning.cli", "measure", "generator=stylegan2"]
        command += [f"generator.checkpoint={checkpoint}", "task=compressed_sensing", f"hydra.run.dir={tmp_path / 'y'}"]
        subprocess.run([*command, f"data.path={picture}"], check=True, capture_output=True)
    if name == "one bad image in a folder":
        made(tmp_path / "mixed")
        png(tmp_path / "mixed" / "a.png"), text(tmp_path / "mixed" / "bad.png", "x"), png(tmp_path / "mixed" / "z.png")
    given = make(tmp_path)
    defaults = [] if any(argument.startswith("data.path=") for argument in given) else [f"data.path={picture}"]
    done = run(tmp_path / "run", *defaults, *given, checkpoint=checkpoint)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        assert re.fullmatch(r"error: .*\n", done.stderr), done.stderr
        assert not (tmp_path / "run" / "results.jsonl").exists()
    else:
        rows = rows_of(tmp_path / "run")
        assert sum("error" not in row for row in rows) == (2 if name == "one bad image in a folder" else 1)
    if words:
        assert re.search(words, done.stderr), done.stderr


def test_the_table_is_the_test():
    """docs/bad-input.md lists these cases, and what comes of them."""
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| (\d|accepted)", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: code for name, _, code in rows} == {
        name: "accepted" if code == 0 else str(code) for name, (_, code, _) in CASES.items()
    }


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk(checkpoint: Path, tmp_path: Path):
    """On a tmpfs too small for the results: exit 3 and one line; with more room the same command finishes."""
    disk = made(tmp_path / "disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        picture = png(tmp_path / "good.png")
        ballast = text(disk / "ballast", b"\0" * 120_000)
        arguments = [f"data.path={picture}", "checkpoint_every_seconds=1e-6"]
        done = run(disk / "run", *arguments, checkpoint=checkpoint)
        assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
        assert "No space left" in done.stderr
        for path in (disk / "run").rglob("*"):
            assert path.suffix != ".png" or Image.open(path).verify() is None  # what has its final name is whole
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert run(disk / "run", *arguments, checkpoint=checkpoint).returncode == 0
        assert run(tmp_path / "whole", *arguments, checkpoint=checkpoint).returncode == 0
        found, expected = (rows_of(folder)[0] for folder in (disk / "run", tmp_path / "whole"))
        assert found["metrics"] == expected["metrics"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
