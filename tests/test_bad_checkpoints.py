"""The table of imperfect checkpoints in docs/stylegan2.md, row by row, through the command line, in bounded memory.

Every case runs in a process of its own, forked from one that has imported everything, under a limit on memory.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generators.test_checkpoints import write
from tests.generators.test_inert_pickle import Calls
from tests.nvidia_pickles import container, dump, module, network
from tests.stylegan2_fixtures import load_fixture

TABLE = Path(__file__).parents[1] / "docs" / "stylegan2.md"
ADDRESSES = 24 << 30
"""Bytes of address space for a case: a claim of a terabyte must not be tried."""
RESIDENT = 400 << 20
"""Bytes of memory that a case may use beyond what its process has when it begins."""

FORKED = """
import json, os, resource, sys
import ilo_lightning.job, ilo_lightning.generators.checkpoints, ilo_lightning.generators.statistics
from ilo_lightning import cli

def resident():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024

for number, command in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        before = resident()
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        code = 99
        try:
            cli.main(command)
        except SystemExit as exit:
            code = exit.code
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            with open(f"{number}.json", "w") as file:
                json.dump({"code": code, "grown": most - before}, file)
            os._exit(0)
    os.waitpid(child, 0)
"""


def small() -> dict[str, torch.Tensor]:
    return load_fixture("nvidia_32").state()


def saved(path: Path, data: Any, zipped: bool = True) -> Path:
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    return path


def content(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sparse(path: Path, start: bytes = b"", size: int = 10 << 30) -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def halved(path: Path) -> Path:
    data = path.read_bytes()
    return content(path, data[: len(data) // 2])


def flipped(path: Path, places: slice) -> Path:
    data = bytearray(path.read_bytes())
    data[places] = bytes(byte ^ 0x55 for byte in data[places])
    return content(path, bytes(data))


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def deflated(path: Path, size: int = 1 << 29) -> Path:
    """A zip archive like torch.save's, but compressed: a thousandth of what it unpacks to."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("archive/data.pkl", "w") as entry:
        for _ in range(size >> 20):
            entry.write(b"\0" * (1 << 20))
    return path


def gzipped(path: Path, size: int = 1 << 29) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(size >> 20):
            file.write(b"\0" * (1 << 20))
    return path


def expanding(path: Path) -> Path:
    """A state dict of a few hundred bytes with tensors of a terabyte."""
    return saved(path, {"g_ema": {name: torch.zeros(1).expand(512, 1 << 20) for name in small()}})


def legacy_claim(path: Path) -> Path:
    """torch.save before 1.6, with a storage that says it has 2⁴⁰ numbers."""
    saved(path, {"g_ema": {"input.input": torch.zeros(300)}}, zipped=False)
    data = path.read_bytes()
    assert data.count(b"M\x2c\x01") >= 1
    return content(path, data.replace(b"M\x2c\x01", b"\x8a\x06\0\0\0\0\0\x01"))


def tensorflow(path: Path) -> Path:
    return content(path, b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81}X\x07\x00\x00\x00versionK\x04sb.")


def header_claim(path: Path) -> Path:
    """safetensors whose header says it has 90 MB, in a file that does, of zeros."""
    return sparse(path, struct.pack("<Q", 90 << 20) + b"{")


def safetensors(path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(small(), path)
    return path


def extended(path: Path) -> Path:
    with path.open("r+b") as file:
        file.truncate(10 << 30)
    return path


def stylegan3(path: Path) -> Path:
    layer = module("SynthesisLayer", {"weight": torch.ones(4, 4, 3, 3), "bias": torch.ones(4)})
    start = module("SynthesisInput", freqs=1, **{"transform": 2})
    start.state["_buffers"]["freqs"] = torch.ones(4, 2)
    synthesis = module("SynthesisNetwork", **{"input": start, "L0_36_4": layer})
    return content(path, dump(container(module("Generator", synthesis=synthesis))))


def discriminator(path: Path) -> Path:
    state = {"b32.fromrgb.weight": torch.ones(4, 3, 1, 1), "b32.conv0.weight": torch.ones(4, 4, 3, 3)}
    return content(path, dump({"D": network({**state, "b4.out.weight": torch.ones(1, 4)})}))


def bytes_of_a_hole(path: Path) -> Path:
    """A pickle of 10 GB of bytes, in a file that has them: a hole."""
    return sparse(path, b"\x80\x04\x8e" + struct.pack("<Q", (10 << 30) - 12))


def stolen_memory(path: Path) -> Path:
    """torch.load(weights_only=True) would make this bytearray of 16 GB."""
    return content(path, pickle.dumps(Calls(bytearray, 16 << 30), 2))


def nested_zip(path: Path) -> Path:
    stream = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), stream)
    return content(
        path, dump(container(module("Generator", weight=Calls(torch.storage._load_from_bytes, stream.getvalue()))))
    )


def torchscript(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, b"x")
    return path


def weights(path: Path, zipped: bool = True) -> Path:
    return saved(path, {"g_ema": small()}, zipped)


def nvidia(path: Path) -> Path:
    return write(load_fixture("nvidia_32"), path)


def tensors(*names: str) -> Callable[[Path], Path]:
    """A state dict with such names."""
    return lambda path: saved(path, {"model": {name: torch.ones(3) for name in names}})


Case = tuple[str, Callable[[Path], Path], str]
"""Name of the file, how to make it, and words of the message."""
CASES: dict[str, list[Case]] = {
    "truncated": [
        ("zip.pt", lambda path: halved(weights(path)), "damaged: a zip archive without its end"),
        ("old.pt", lambda path: halved(weights(path, zipped=False)), "damaged: the file ends"),
        ("g.pkl", lambda path: halved(nvidia(path)), "damaged: no whole pickle"),
        ("g.safetensors", lambda path: halved(safetensors(path)), "not a readable safetensors file"),
    ],
    "corrupt": [
        ("start.pt", lambda path: flipped(weights(path), slice(0, 40)), "as no checkpoint does"),
        ("names.pt", lambda path: flipped(weights(path), slice(200, 260)), "damaged"),
        ("weights.pt", lambda path: flipped(weights(path), slice(500_000, 500_004)), "damaged .*CRC"),
        ("g.pkl", lambda path: flipped(nvidia(path), slice(100, 140)), "damaged|names"),
        ("long.pkl", lambda path: extended(nvidia(path)), "bytes follow upon its end"),
        ("random.pkl", lambda path: content(path, bytes(range(256)) * 50), "as no checkpoint does"),
    ],
    "compressed bomb": [
        ("zip.pt", deflated, "a compressed zip archive"),
        ("gzip.pkl", gzipped, "compressed by gzip; unpack it first"),
        ("strides.pt", expanding, "larger than its 1 numbers"),
        ("numel.pt", legacy_claim, "damaged"),
        ("bytearray.pkl", stolen_memory, r"names '(__builtin__|builtins)\.bytearray'"),
        ("nested.pkl", nested_zip, "a storage that torch did not write"),
    ],
    "StyleGAN1, StyleGAN3, BigGAN, DCGAN": [
        ("sg3.pkl", stylegan3, "looks like a StyleGAN3.*lacks"),
        ("sg1.pt", tensors("progression.0.conv1.0.conv.weight_orig"), "looks like a StyleGAN1"),
        ("biggan.pth", tensors("linear.weight", "blocks.0.0.conv1.weight"), "looks like a BigGAN"),
        ("dcgan.pt", tensors("main.0.weight"), "looks like a DCGAN"),
    ],
    "only a discriminator": [
        ("d.pkl", discriminator, "looks like a discriminator.*NVIDIA"),
        ("d.pt", tensors("convs.0.0.weight", "final_linear.0.weight"), "looks like a discriminator.*lacks"),
    ],
    "TensorFlow pickle": [
        ("stylegan2-ffhq-config-f.pkl", tensorflow, r"TensorFlow networks.*convert_weight\.py.*legacy\.py"),
    ],
    "0 bytes": [("x.pt", lambda path: content(path, b""), "an empty file")],
    "folder": [("x.pkl", folder, "a folder, expected a file")],
    "symbolic link to itself": [("x.pt", loop, "a symbolic link that leads to itself")],
    "missing": [("no.pt", lambda path: path, "no such file")],
    "10 GB, sparse": [
        ("zeros.pt", sparse, "begins with zeros"),
        ("zip.pt", lambda path: sparse(path, b"PK\x03\x04"), "damaged: a zip archive without its end"),
        ("begun.pt", lambda path: extended(weights(path)), "damaged: a zip archive without its end"),
        ("old.pt", lambda path: extended(weights(path, zipped=False)), "bytes follow upon its end"),
        ("hole.pkl", bytes_of_a_hole, "pieces of more than 256 MiB|MemoryError"),
        ("x.safetensors", lambda path: extended(safetensors(path)), "not a readable safetensors file"),
        ("header.safetensors", header_claim, "not a readable safetensors file"),
    ],
    "web page, Git LFS pointer": [
        ("page.pt", lambda path: content(path, b"<!DOCTYPE html><html>"), "a web page: the download went wrong"),
        ("lfs.pt", lambda path: content(path, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ],
    "TorchScript": [("script.pt", torchscript, "a TorchScript program")],
    "network or optimiser, pickled whole": [
        ("net.pt", lambda path: saved(path, torch.nn.Linear(2, 2)), r"names 'torch\.nn\.modules\.linear\.Linear'"),
    ],
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_every_row_of_the_table(tmp_path: Path):
    cases = [(row, *case) for row, found in CASES.items() for case in found]
    commands: list[list[str]] = []
    for number, (row, name, make, _) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        path = make(place / name)
        if name == CASES[row][0][0]:
            solve = ["solve", "generator=stylegan2", f"generator.checkpoint='{path}'", "trainer=cpu"]
            commands.append([*solve, f"hydra.run.dir=run{number}"])
        else:
            commands.append(["convert", str(path), f"run{number}.safetensors"])
    program = [sys.executable, "-c", FORKED, json.dumps(commands), str(ADDRESSES)]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, (row, name, _, words) in enumerate(cases):
        result = json.loads((tmp_path / f"{number}.json").read_text())
        told = (tmp_path / f"{number}.2").read_text()
        assert result["code"] == 2, (row, name, result, told)
        assert re.fullmatch(r"error: generator\.checkpoint=.*\n", told), (row, name, told)
        assert re.search(words, told), (row, name, told)
        assert result["grown"] < RESIDENT, (row, name, result)
    assert not list(tmp_path.glob("run*.safetensors")) and not list(tmp_path.glob("run*/results.jsonl"))


def test_the_table_is_the_test():
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+? \| (\d|accepted)", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, code in rows if code == "2"} == set(CASES)
