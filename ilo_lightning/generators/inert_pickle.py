"""Read a pickle without executing anything it carries.

A pickle is a program: it names functions, and calls them. Here the names on a short list stand for functions of this
module, which make plain data; any other name is refused. Stricter than ``torch.load(weights_only=True)``: tensors stay
in the file until they are wanted, and neither a claimed size nor a call makes more memory than the file has bytes.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch

from .stored import CheckpointError, Inert, Storage, StoredTensor

READ_LIMIT = 256 << 20
"""Bytes that a pickle may ask for at once. The largest storage of a StyleGAN2 has 16 MiB."""
TOTAL_LIMIT = 2 << 30
"""Bytes of a whole pickle. NVIDIA's hold three networks, 0.4 GiB."""
LINE_LIMIT = 4096


class BoundedFile:
    """A file that refuses to give more than a checkpoint can need: sizes stated in a file may be anything."""

    def __init__(self, file: IO[bytes], total: int | None = None):
        self._file, self._left = file, total
        self.seek, self.tell = file.seek, file.tell
        self.seekable, self.readable = file.seekable, file.readable

    def read(self, size: int = -1) -> bytes:
        """At most ``READ_LIMIT`` bytes."""
        data = self._file.read(READ_LIMIT + 1 if size is None or size < 0 else min(size, READ_LIMIT + 1))
        if len(data) > READ_LIMIT:
            raise CheckpointError(f"wants to be read in pieces of more than {READ_LIMIT >> 20} MiB")
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise CheckpointError("goes on for longer than any StyleGAN2 checkpoint")
        return data

    def readline(self) -> bytes:
        """A line of at most ``LINE_LIMIT`` bytes."""
        line = self._file.readline(LINE_LIMIT)
        if len(line) == LINE_LIMIT:
            raise CheckpointError(f"has a name of more than {LINE_LIMIT} characters")
        return line


@dataclass(frozen=True)
class Record(Inert):
    """What is left of an object: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True)
class StorageType(Inert):
    """Stands for ``torch.FloatStorage`` and its like."""

    dtype: torch.dtype


class PlainDict(dict):
    """Stands for every kind of dict. The attributes that pickles give to dicts are of no use here."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None: ...


class Attributes(PlainDict):
    """Stands for objects that only hold values, such as ``argparse.Namespace``: their attributes as a dict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise CheckpointError("has an object whose attributes are no dict")
        self.update(state)


class NumpyType:
    """Stands for ``numpy.dtype``; only little-endian numbers."""

    def __init__(self, code: str, *_: object):
        if not (isinstance(code, str) and re.fullmatch(r"[fiub][1248]", code)):
            raise CheckpointError(f"has numbers of the numpy type {code!r}")
        self.code = code

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and ">" in state[1:2]:
            raise CheckpointError("has big-endian numbers")


def _numpy_scalar(kind: NumpyType, data: bytes) -> Any:
    return np.frombuffer(data, dtype=f"<{kind.code}")[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise CheckpointError(f"has text in {encoding!r}")
    return text.encode("latin-1")


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *_: object) -> StoredTensor:
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


def _persistent_object(meta: dict) -> Record:
    """NVIDIA's persistent objects carry the source of their class, which is left where it is."""
    if not (isinstance(meta, dict) and isinstance(meta.get("state"), dict)):
        raise CheckpointError("has a persistent object without a state")
    return Record(str(meta.get("class_name")), meta["state"])


def _nested_storage(data: bytes) -> Storage:
    from .containers import read_nested_storage  # which unpickles, in turn

    return read_nested_storage(data)


def _device(*_: object) -> str:
    return "a device"


def _unchangeable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pickles can set attributes of whatever they name, defaults of functions among them; not of these."""

    def refuse(state: object) -> None:
        raise CheckpointError("changes a function")

    function.__setstate__ = refuse  # type: ignore[attr-defined]
    return function


DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": PlainDict,
    "dnnlib.util.EasyDict": PlainDict,
    "dnnlib.EasyDict": PlainDict,
    "argparse.Namespace": Attributes,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": _unchangeable(_encode),
    "numpy.dtype": NumpyType,
    "numpy.core.multiarray.scalar": _unchangeable(_numpy_scalar),
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "torch.Size": tuple,
    "torch.device": _unchangeable(_device),
    "torch._utils._rebuild_tensor": _unchangeable(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _unchangeable(_rebuild_parameter),
    "torch.storage._load_from_bytes": _unchangeable(_nested_storage),
    "torch_utils.persistence._reconstruct_persistent_obj": _unchangeable(_persistent_object),
    "torch.storage.UntypedStorage": StorageType(torch.uint8),
}
for _name, _dtype in DTYPES.items():
    ALLOWED |= {f"{module}.{_name}": StorageType(_dtype) for module in ("torch", "torch.cuda")}
    ALLOWED[f"torch.{str(_dtype).removeprefix('torch.')}"] = str(_dtype)


class InertUnpickler(pickle.Unpickler):
    """Makes only what ``ALLOWED`` makes.

    Args:
        file: where the pickle begins.
        storage: what a reference to a storage outside of the pickle stands for; None: there are none.
        nested: whether storages may be inside the pickle.
    """

    def __init__(self, file: Any, storage: Callable[[Any], Storage] | None = None, nested: bool = True):
        super().__init__(file, encoding="latin1")
        self._storage, self._nested = storage, nested

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if module_name.startswith("dnnlib.tflib"):
            raise CheckpointError(
                "a pickle of TensorFlow networks, which only their own code can read; convert it with "
                "convert_weight.py of rosinality's stylegan2-pytorch or legacy.py of NVIDIA's stylegan2-ada-pytorch, "
                "and give the result"
            )
        if name not in ALLOWED or (name == "torch.storage._load_from_bytes" and not self._nested):
            raise CheckpointError(
                f"names {name[:80]!r}, which is not among what weights are made of; nothing was executed. If it is a "
                "network or an optimiser of your own: save state_dict() of the generator alone"
            )
        return ALLOWED[name]

    def persistent_load(self, pid: Any) -> Storage:
        if self._storage is None:
            raise CheckpointError("refers to data outside of the pickle")
        return self._storage(pid)
