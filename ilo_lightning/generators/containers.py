"""Files that hold tensors, recognised by their first bytes: safetensors, what ``torch.save`` writes, pickles."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from ..files import locate
from .inert_pickle import TOTAL_LIMIT, BoundedFile, InertUnpickler, StorageType
from .stored import CheckpointError, Storage, StoredTensor

TORCH_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The number 0x1950A86A20F9469CFC6C, pickled: how torch.save began before version 1.6."""
PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))

PROGRAM_LIMIT = 64 << 20
"""Bytes of the pickle in a zip archive, without storages: names and shapes."""

FOREIGN: dict[bytes, str] = {
    b"\x1f\x8b": "compressed by gzip; unpack it first (gunzip)",
    b"BZh": "compressed by bzip2; unpack it first (bunzip2)",
    b"\xfd7zXZ": "compressed by xz; unpack it first (unxz)",
    b"7z\xbc\xaf": "compressed by 7-Zip; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first (unzstd)",
    b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it (git lfs pull)",
    b"<!DOCTYPE": "a web page: the download went wrong",
    b"<html": "a web page: the download went wrong",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


@dataclass(frozen=True)
class Content:
    """What a file holds: nested plain data whose leaves are ``StoredTensor``, ``Record``, numbers and text.

    Args:
        kind: of file, in words.
        data: what it holds.
        header: of a safetensors file.
    """

    kind: str
    data: Any
    header: Mapping[str, str] | None = None


def find(checkpoint: str | Path) -> Path:
    """The regular file that a user means by ``checkpoint``, which may begin with ``pkg://`` (see ``files.locate``).

    Raises:
        CheckpointError: if there is none.
    """
    try:
        path = locate(checkpoint)
        mode = os.stat(path).st_mode
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{error}; after pkg:// comes the name of an installed package") from error
    except FileNotFoundError:
        raise CheckpointError(f"no such file ({Path(locate(checkpoint)).absolute()})") from None
    except OSError as error:
        loop = error.errno == errno.ELOOP
        raise CheckpointError(
            "a symbolic link that leads to itself" if loop else f"can't be read ({error.strerror})"
        ) from error
    except ValueError as error:  # a NUL in the name
        raise CheckpointError(f"no file name ({error})") from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{'a folder' if stat.S_ISDIR(mode) else 'a device or pipe'}, expected a file")
    return path


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Content]:
    """The content of a file, whose tensors can be loaded while it is open. Nothing that the file carries is executed,
    and no more memory is used than it has bytes.

    Raises:
        CheckpointError: if it is of no known kind, damaged, or carries something else than data.
    """
    try:
        with path.open("rb") as file:
            yield _read(path, file)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, SafetensorError) as error:
        raise CheckpointError(f"damaged ({_line(error)})") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"can't be read ({_line(error)})") from error


def _read(path: Path, file: IO[bytes]) -> Content:
    start, size = file.read(32), os.fstat(file.fileno()).st_size
    file.seek(0)
    if not size:
        raise CheckpointError("an empty file")
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise CheckpointError(what)
    if start.startswith(b"PK"):
        return Content("torch.save", _read_zip(file, size))
    if TORCH_MAGIC in start:
        return Content("torch.save before 1.6", _read_legacy(file, size))
    if start.startswith(PICKLE_STARTS):
        return Content("pickle", _read_pickle(file, size))
    if start[8:9] == b"{":
        return _read_safetensors(path, file)
    raise CheckpointError(
        f"begins with {'zeros' if not any(start) else repr(start[:8])}, as no checkpoint does; expected one of "
        "torch.save (.pt), a pickle of NVIDIA's (.pkl) or safetensors"
    )


def _unpickle(file: Any, storage: Callable[[Any], Storage] | None = None, nested: bool = False) -> Any:
    try:
        return InertUnpickler(file, storage, nested).load()
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # whatever a damaged pickle makes the unpickler do
        raise CheckpointError(f"damaged: no whole pickle ({type(error).__name__}: {_line(error)})") from error


def _read_pickle(file: IO[bytes], size: int) -> Any:
    data = _unpickle(BoundedFile(file, TOTAL_LIMIT), nested=True)
    _expect_end(file, size)
    return data


def _expect_end(file: IO[bytes], size: int) -> None:
    if file.tell() != size:
        raise CheckpointError(f"damaged: {size - file.tell():,} bytes follow upon its end")


def _storage_type(kind: Any, numel: Any) -> StorageType:
    if not isinstance(kind, StorageType) or type(numel) is not int or numel < 0:
        raise CheckpointError("damaged: refers to a storage in a way that torch.save does not")
    return kind


def _read_zip(file: IO[bytes], size: int) -> Any:
    """torch.save since 1.6: an uncompressed zip archive, with the pickle in data.pkl and each storage in data/KEY."""
    try:
        archive = zipfile.ZipFile(BoundedFile(file))  # type: ignore[arg-type]
    except zipfile.BadZipFile as error:
        raise CheckpointError("damaged: a zip archive without its end; is the file whole?") from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    packed = [entry.filename for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"a compressed zip archive ({packed[0]!r}), as torch.save makes none; unpack it, and give what is in it"
        )
    if sum(entry.file_size for entry in entries.values()) > size:
        raise CheckpointError("damaged: its zip archive claims more bytes than the file has")
    if any(name.rpartition("/")[2] == "constants.pkl" for name in entries):
        raise CheckpointError("a TorchScript program; give a state_dict() saved by torch.save")
    roots = [name.removesuffix("data.pkl") for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        raise CheckpointError(
            "a zip archive without a data.pkl, so not of torch.save; unpack it, and give what it holds"
        )
    (root,) = roots
    order = entries.get(f"{root}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise CheckpointError("has big-endian numbers; save it on the other kind of machine")

    def storage(pid: Any) -> Storage:
        word, kind, key, _, numel = pid
        dtype = _storage_type(kind, numel).dtype
        entry = entries.get(f"{root}data/{key}")
        if word != "storage" or entry is None or entry.file_size != numel * dtype.itemsize:
            raise CheckpointError(f"damaged: the storage {str(key)[:20]!r} is not there, or not of its size")
        return Storage(dtype, numel, lambda: archive.read(entry))

    program = entries[f"{root}data.pkl"]
    if program.file_size > PROGRAM_LIMIT:
        raise CheckpointError(f"its data.pkl has {program.file_size >> 20:,} MiB, more than any state dict's")
    return _unpickle(BoundedFile(io.BytesIO(archive.read(program))), storage)


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """torch.save before 1.6: pickles of a magic number, a protocol version, the system, the object and the keys of its
    storages; then for each storage the number of its elements in 8 bytes, and they themselves."""
    bounded = BoundedFile(file)
    sizes: dict[Any, tuple[torch.dtype, int]] = {}
    places: dict[Any, int] = {}

    def storage(pid: Any) -> Storage:
        word, kind, key, _, numel, *view = pid
        sizes.setdefault(key, (_storage_type(kind, numel).dtype, numel))
        if word != "storage" or any(part is not None for part in view) or sizes[key] != (kind.dtype, numel):
            raise CheckpointError("damaged: refers to a storage in two ways")
        return Storage(kind.dtype, numel, lambda: _slice(file, places[key], numel * kind.dtype.itemsize))

    _, protocol, system = (_unpickle(bounded) for _ in range(3))
    if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("damaged: not begun as torch.save does, or on a big-endian machine")
    data = _unpickle(bounded, storage)
    keys = _unpickle(bounded)
    for key in keys if isinstance(keys, list) else []:
        dtype, numel = sizes.get(key, (torch.uint8, -1))
        if int.from_bytes(file.read(8), "little") != numel:
            raise CheckpointError("damaged: a storage is not of its size")
        places[key] = file.tell()
        file.seek(numel * dtype.itemsize, os.SEEK_CUR)
        if file.tell() > size:
            raise CheckpointError("damaged: the file ends in the middle of a storage")
    _expect_end(file, size)
    if set(places) != set(sizes):
        raise CheckpointError("damaged: storages are missing")
    return data


def read_nested_storage(data: bytes) -> Storage:
    """A storage that was saved as a file of its own, in a pickle: what ``torch.storage._load_from_bytes`` gets."""
    if not (isinstance(data, bytes) and TORCH_MAGIC in data[:32]):
        raise CheckpointError("has a storage that torch did not write")
    storage = _read_legacy(io.BytesIO(data), len(data))
    if not isinstance(storage, Storage):
        raise CheckpointError("has something else in the place of a storage")
    return storage


def _read_safetensors(path: Path, file: IO[bytes]) -> Content:
    try:
        with safe_open(path, framework="pt") as opened:  # checks that header and size agree
            header = opened.metadata() or {}
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"not a readable safetensors file ({_line(error)})") from error
    (length,) = struct.unpack("<Q", file.read(8))
    entries = json.loads(file.read(length))
    tensors = {name: _safetensor(file, 8 + length, name, entry) for name, entry in entries.items() if name[:2] != "__"}
    return Content("safetensors", tensors, header)


def _safetensor(file: IO[bytes], base: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise CheckpointError(f"{name} has numbers of the type {entry['dtype']}")
    dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage(dtype, math.prod(shape), lambda: _slice(file, base + begin, end - begin))
    return StoredTensor(storage, 0, shape, stride)


def _slice(file: IO[bytes], place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
