"""A device that isn't there, for tests on machines without a GPU.

Its tensors compute on the CPU, and refuse to be mixed with tensors on the CPU where CUDA would refuse. For torch it is
the device ``meta``, the only other one that needs no hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
MIXABLE = ("_to_copy", "copy_", "index", "index_put_")  # between devices, or with an index on the CPU


class ElsewhereTensor(torch.Tensor):
    """A tensor on the device; ``there`` holds its numbers."""

    there: torch.Tensor

    @staticmethod
    def __new__(cls, there: torch.Tensor) -> ElsewhereTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, there.size(), strides=there.stride(), dtype=there.dtype, device=DEVICE
        )
        tensor.there = there
        return tensor

    def __init__(self, there: torch.Tensor):
        pass

    def tolist(self) -> Any:
        return self.there.detach().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.there.detach().clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        return _call(function, args, dict(kwargs or {}))


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        return _call(function, args, dict(kwargs or {}))


def _here(value: Any) -> Any:
    return value.there if isinstance(value, ElsewhereTensor) else value


def _elsewhere(value: Any) -> Any:
    # A wrapper doesn't show that its numbers still wait to be conjugated or negated.
    return ElsewhereTensor(value.resolve_conj().resolve_neg()) if type(value) is torch.Tensor else value


def _call(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    elsewhere = [tensor for tensor in tensors if isinstance(tensor, ElsewhereTensor)]
    asked = kwargs.pop("device", None)
    there = bool(elsewhere) if asked is None else torch.device(asked) == DEVICE
    if elsewhere and function._opname not in MIXABLE:
        left_behind = [tuple(t.shape) for t in tensors if not isinstance(t, ElsewhereTensor) and t.ndim]
        if left_behind:
            raise RuntimeError(f"{function}: found two devices, of shapes {left_behind} on the CPU")
    result = function(*tree_map(_here, args), **tree_map(_here, kwargs))
    if function._schema.is_mutable:
        targets = {id(_here(tensor)): tensor for tensor in tensors}
        return tree_map(lambda value: targets.get(id(value), value), result)
    return tree_map(_elsewhere, result) if there else result


@contextmanager
def pretended_device() -> Iterator[None]:
    """Within, ``tensor.to(DEVICE)`` and its like make tensors on the device."""

    def tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None, **more: Any) -> torch.Tensor:
        return make(data, dtype=dtype, **more).to(device)

    make = torch.tensor
    with mock.patch("torch.tensor", tensor), mock.patch("torch.as_tensor", _as_tensor), _Mode():
        yield


def _as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        data = torch.tensor(data, dtype=dtype)
    return data.to(data.device if device is None else device, dtype or data.dtype)


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


def trainer() -> dict[str, Any]:
    """Arguments of Trainers on the device, each of which builds a strategy of its own."""
    StrategyRegistry.register("pretended", SingleDeviceStrategy, override=True, device=DEVICE)
    return {"accelerator": _Accelerator(), "strategy": "pretended"}
