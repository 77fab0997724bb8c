"""Tensors that lie in a file: their shapes are known, their numbers are read when they are wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A file that is not a checkpoint this package can load; the message says why and what to do."""


class Inert:
    """What a pickle can make, but not change afterwards."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise CheckpointError(f"changes a {type(self).__name__} after it was made")


@dataclass(frozen=True)
class Storage(Inert):
    """A row of ``numel`` numbers; ``read`` gives their bytes, little-endian."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class StoredTensor(Inert):
    """A view of a storage, as ``torch.as_strided`` defines it.

    Raises:
        CheckpointError: if it reaches beyond its storage, or is larger: memory stays bounded by the file's size.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = isinstance(self.shape, tuple) and isinstance(self.stride, tuple) and isinstance(self.storage, Storage)
        numbers = (self.offset, *self.shape, *self.stride) if whole else (None,)
        if not all(type(number) is int and number >= 0 for number in numbers) or len(self.shape) != len(self.stride):
            raise CheckpointError("describes a tensor by something other than whole numbers")
        numel = math.prod(self.shape)
        reach = 1 + self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if numel > self.storage.numel or (numel and reach > self.storage.numel):
            raise CheckpointError(f"has a tensor {self.shape} that is larger than its {self.storage.numel} numbers")

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def load(self) -> Tensor:
        """The tensor, contiguous, with memory of its own."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        data = bytearray(self.storage.read())
        if len(data) != self.storage.numel * self.dtype.itemsize:
            raise CheckpointError("ends in the middle of a tensor")
        row = torch.frombuffer(data, dtype=self.dtype)
        tensor = row.as_strided(self.shape, self.stride, self.offset).contiguous()
        return tensor if tensor.numel() == self.storage.numel else tensor.clone()
