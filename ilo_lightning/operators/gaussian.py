"""Compressed sensing with a dense Gaussian matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..randomness import generator_for
from .base import (
    LinearOperator,
    check_image_shape,
    check_measurements,
    check_seed,
    is_integer,
)

BLOCK_ENTRIES = 2**22
HOPELESS_ENTRIES = 2**30
"""That are drawn anew: about ten seconds on one core, two or three times per step."""


def memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class GaussianCompressedSensing(LinearOperator):
    """y = A x with independent A_ij ~ N(0, 1/m): E‖A x‖² = ‖x‖² (the matrix of Bora et al. 2017 and of ILO).

    x is the flattened image, n = C·H·W. A is drawn in blocks of rows, each from its own seed, in float32 on the CPU.
    Where it fits into ``max_bytes`` it is stored; else each block is drawn again whenever it is needed, which gives the
    same A and costs about m·n random numbers per application, and three applications or so per step. Exactly one of
    ``fraction`` and ``measurements`` is given. With the same seed, more measurements contain the rows of fewer, up to
    the factor 1/√m.

    Args:
        image_shape: (C, H, W).
        fraction: m / n, in (0, 1]; m is rounded, and at least 1.
        measurements: m, an integer in 1 … n.
        seed: which A (>= 0).
        max_bytes: store A up to this size, if the machine has that much memory.

    Raises:
        ValueError: if both or neither of ``fraction`` and ``measurements`` are given, a value is out of its range, or A
            can't be stored and has more than 2³⁰ entries, which takes minutes per step.
    """

    _key: Tensor
    _rows: Tensor | None

    def __init__(
        self,
        image_shape: Sequence[int],
        fraction: float | None = None,
        measurements: int | None = None,
        seed: int = 0,
        max_bytes: int = 2**30,
    ) -> None:
        shape = check_image_shape(image_shape)
        self._n = math.prod(shape)
        self._m = check_measurements(fraction, measurements, self._n)
        self._seed = check_seed(seed)
        if not is_integer(max_bytes) or max_bytes < 0:
            raise ValueError(f"task.operator.max_bytes={max_bytes!r}: expected an integer >= 0")
        entries = self._m * self._n
        limit = min(max_bytes, memory())
        stored = 4 * entries <= limit
        if not stored and entries > HOPELESS_ENTRIES:
            raise ValueError(
                f"task.measurements={self._m} of n={self._n}: a dense matrix of {4 * entries / 2**30:.1f} GiB, more "
                f"than {limit / 2**30:.1f} GiB (the less of task.operator.max_bytes={max_bytes} and the machine's "
                f"memory), would be drawn anew several times per step, {entries:.1e} random numbers each; use "
                "task=compressed_sensing (partial circulant, n log n), fewer measurements, or a larger max_bytes"
            )
        super().__init__(shape, (self._m,))
        # What identifies A, whether it is stored or not.
        self.register_buffer("_key", torch.tensor([self._seed, self._m, self._n]))
        self.register_buffer("_rows", self._all_rows() if stored else None, persistent=False)

    def _all_rows(self) -> Tensor:
        rows, start = torch.empty(self._m, self._n), 0
        for block in self._blocks():
            rows[start : start + len(block)] = block
            start += len(block)
        return rows

    def _blocks(self) -> Iterator[Tensor]:
        """The rows of √m A in order, ``(k, n)`` float32 at a time."""
        height = max(1, BLOCK_ENTRIES // self._n)
        for index, start in enumerate(range(0, self._m, height)):
            rng = generator_for(self._seed, "GaussianCompressedSensing", self._n, index)
            # A whole block is drawn although the last may be cut, so that m doesn't change the rows.
            yield torch.randn(height, self._n, generator=rng)[: self._m - start]

    def forward(self, image: Tensor) -> Tensor:
        """A x, ``(B, m)``; half precision is computed in float32."""
        return _Apply.apply(image, self)

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y, ``(B, C, H, W)``."""
        return _Adjoint.apply(y, self)

    def picture(self, y: Tensor) -> Tensor:
        """(m/n) A* y, ``(B, C, H, W)``: about the least-norm image that explains y, for A A* ≈ (n/m) I."""
        return self.adjoint(y) * (self._m / self._n)

    def _multiply(self, image: Tensor) -> Tensor:
        x = self._working(image).flatten(1)
        blocks = self._blocks() if self._rows is None else (self._rows,)
        y = torch.cat([x @ block.to(x).T for block in blocks], dim=1)
        return (y / math.sqrt(self._m)).to(image.dtype)

    def _multiply_transposed(self, y: Tensor) -> Tensor:
        values = self._working(y)
        x = values.new_zeros(len(y), self._n)
        start = 0
        for block in self._blocks() if self._rows is None else (self._rows,):
            x += values[:, start : start + len(block)] @ block.to(x)
            start += len(block)
        return (x / math.sqrt(self._m)).unflatten(1, self.input_shape).to(y.dtype)

    def _working(self, values: Tensor) -> Tensor:
        return values.to(torch.promote_types(values.dtype, torch.float32))


# Autograd would keep every block that was drawn; the derivative of a linear map needs none of them.
class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, operator: GaussianCompressedSensing) -> Tensor:
        ctx.operator = operator
        return operator._multiply(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(gradients[0], ctx.operator), None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, operator: GaussianCompressedSensing) -> Tensor:
        ctx.operator = operator
        return operator._multiply_transposed(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Apply.apply(gradients[0], ctx.operator), None
