"""Files are read without executing anything they carry, and tensors come out as torch reads them."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilo_lightning.generators import inert_pickle
from ilo_lightning.generators.containers import open_checkpoint
from ilo_lightning.generators.inert_pickle import InertUnpickler, Record
from ilo_lightning.generators.stored import CheckpointError, StoredTensor
from tests.nvidia_pickles import PersistentObject, container, dump, module


class Calls:
    """Pickled, it is a call of ``function`` with ``arguments``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE: dict[str, Callable[[Path], Calls]] = {
    "exec": lambda target: Calls(exec, f"__import__('pathlib').Path({str(target)!r}).touch()"),
    "eval": lambda target: Calls(eval, f"__import__('pathlib').Path({str(target)!r}).touch()"),
    "os.system": lambda target: Calls(os.system, f"touch {target}"),
    "subprocess.run": lambda target: Calls(subprocess.run, ["touch", str(target)]),
    "open": lambda target: Calls(builtins.open, str(target), "w"),
    "numpy.save": lambda target: Calls(np.save, str(target), [1]),
}
"""Calls that make a file."""


def nested_storage(content: bytes) -> Calls:
    """As a tensor in a pickle refers to its numbers."""
    return Calls(torch.storage._load_from_bytes, content)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["top level", "record's state", "nested storage", "zip", "legacy", "beside weights"])
def test_nothing_is_executed(name: str, place: str, tmp_path: Path):
    target, path = tmp_path / "written.npy", tmp_path / "hostile.pkl"
    call = HOSTILE[name](target)
    if place == "top level":
        path.write_bytes(pickle.dumps(call))
    elif place == "record's state":
        path.write_bytes(dump(container(module("Generator", {"weight": torch.ones(2)}, surprise=call))))
    elif place == "nested storage":
        stream = io.BytesIO()
        torch.save(call, stream, _use_new_zipfile_serialization=False)
        path.write_bytes(dump(container(module("Generator", weight=nested_storage(stream.getvalue())))))
    elif place == "beside weights":
        torch.save({"g_ema": {"weight": torch.ones(2)}, "args": call}, path)
    else:
        torch.save(call, path, _use_new_zipfile_serialization=place == "zip")
    refused = pytest.raises(CheckpointError, match=r"names '[\w.]+', which is not among what weights are made of")
    with refused, open_checkpoint(path):
        pass
    assert not target.exists()
    function, arguments = call.call
    made = function(*arguments)
    assert target.exists()  # the call does what it should not have done
    if isinstance(made, io.IOBase):
        made.close()


def test_source_in_a_record_stays_text(tmp_path: Path):
    source = f"open({str(tmp_path / 'written')!r}, 'w')\nraise SystemExit\n"
    path = tmp_path / "g.pkl"
    path.write_bytes(dump(container(module("Generator", {"weight": torch.arange(3.0)}, source))))
    with open_checkpoint(path) as content:
        record = content.data["G_ema"]
        assert isinstance(record, Record) and record.class_name == "Generator"
        assert torch.equal(record.state["_parameters"]["weight"].load(), torch.arange(3.0))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb.",  # sets a function's attribute
        b"ccollections\nOrderedDict\n}X\x04\x00\x00\x00keys)sb.",  # … a class's
        b"ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeNsb.",  # … of a shared constant
        b"cbuiltins\nset\n}X\x03\x00\x00\x00addNsb.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2⁶³ bytes
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00" + b"x" * 9,  # bytes of a TiB
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02}q\x00h\x00X\x01\x00\x00\x00ah\x00s",  # no end
        b"\x80\x02Pname\n.",  # a persistent id
        b"c" + b"a" * 10_000 + b"\nb\n.",
        b"",
    ],
)
def test_hostile_programs_are_refused_and_change_nothing(program: bytes, tmp_path: Path):
    before = {name: dict(vars(value)) for name, value in vars(inert_pickle).items() if hasattr(value, "__dict__")}
    path = tmp_path / "x.pkl"
    path.write_bytes(program if program[:1] == b"\x80" else b"\x80\x02" + program)
    with pytest.raises(CheckpointError), open_checkpoint(path):
        pass
    assert {name: dict(vars(getattr(inert_pickle, name))) for name in before} == before


def test_what_is_allowed_makes_only_data():
    """Every allowed name, called with whatever it takes, is one of this module's functions or a plain type."""
    for name, value in inert_pickle.ALLOWED.items():
        own = getattr(value, "__module__", None) == inert_pickle.__name__
        assert own or value in (set, tuple) or isinstance(value, str), name


def everything() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    state = OrderedDict(
        weight=torch.randn(3, 4, 5),
        parameter=torch.nn.Parameter(torch.randn(2)),
        transposed=base.T,
        slice=base[1:4, ::2],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        half=torch.randn(3).half(),
        bfloat=torch.randn(3).bfloat16(),
        double=torch.randn(3, dtype=torch.float64),
        long=torch.tensor(7),
        flags=torch.tensor([True, False]),
        channels_last=torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last),
    )
    state._metadata = OrderedDict()  # type: ignore[attr-defined]  # as Module.state_dict() has
    args = argparse.Namespace(size=1024, lr=np.float64(0.002), name="x")
    return {"g_ema": state, "args": args, "epoch": 3, "list": [1, (2.0, "three")], "device": torch.device("cpu")}


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, StoredTensor) and ours.dtype == theirs.dtype and ours.shape == tuple(theirs.shape)
        loaded = ours.load()
        assert loaded.is_contiguous() and loaded.untyped_storage().nbytes() == loaded.nbytes
        assert torch.equal(loaded, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, argparse.Namespace):
        assert ours == vars(theirs)
    elif not isinstance(theirs, torch.device):
        assert ours == theirs


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_torch_are_read_as_torch_reads_them(zipped: bool, protocol: int, tmp_path: Path):
    path = tmp_path / "x.pt"
    torch.save(everything(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(path) as content:
        assert_same(content.data, torch.load(path, weights_only=False))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_tensors_are_read_as_pickle_reads_them(protocol: int, tmp_path: Path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(everything(), protocol))
    with open_checkpoint(path) as content:
        assert_same(content.data, pickle.loads(path.read_bytes()))


def test_safetensors_are_read_as_safetensors_reads_them(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "x.bin"
    save_file({name: tensor.detach().contiguous() for name, tensor in everything()["g_ema"].items()}, path, {"a": "b"})
    with open_checkpoint(path) as content:
        loaded = load_file(path)
        assert content.header == {"a": "b"} and set(content.data) == set(loaded)
        for name, tensor in loaded.items():
            assert_same(content.data[name], tensor)


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "stride"),
    [
        (4, 0, (10**9, 10**3), (0, 0)),  # a terabyte out of one number
        (4, 0, (5,), (1,)),
        (4, 1, (4,), (1,)),
        (4, 0, (2, 2), (3, 1)),
        (4, 0, (2,), (-1,)),
        (4, -1, (2,), (1,)),
        (4, 0, (2, 2), (1,)),
        (4, 0, (True, 2), (1, 1)),
        (4, 0, ("a",), (1,)),
        (4, 0.0, (1,), (1,)),
    ],
)
def test_tensors_stay_inside_their_storage(storage: int, offset: Any, shape: tuple, stride: tuple):
    numbers = torch.zeros(storage).untyped_storage()
    call = Calls(
        torch._utils._rebuild_tensor_v2,
        torch.storage.TypedStorage(wrap_storage=numbers, dtype=torch.float32, _internal=True),
        offset,
        shape,
        stride,
        False,
        OrderedDict(),
    )
    with pytest.raises(CheckpointError, match=r"larger than|other than whole numbers"):
        InertUnpickler(io.BytesIO(pickle.dumps(call)), nested=True).load()


def test_records_that_contain_each_other_end(tmp_path: Path):
    from ilo_lightning.generators.persistent_modules import state_dict

    a, b = {}, {}
    a["_modules"], b["_modules"] = (
        {"b": Record("B", b), "c": Record("B", b)},
        {"a": Record("A", a), "d": Record("A", a)},
    )
    with pytest.raises(CheckpointError, match="without end"):
        state_dict(Record("A", a))


def test_persistent_objects_need_a_state(tmp_path: Path):
    path = tmp_path / "x.pkl"
    broken = PersistentObject("Generator")
    broken.state = None  # type: ignore[assignment]
    path.write_bytes(dump(broken))
    with pytest.raises(CheckpointError, match="without a state"), open_checkpoint(path):
        pass
