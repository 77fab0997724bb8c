"""Compressed sensing: a few random projections of the image are seen, computed by FFT."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import generator_for
from .base import LinearOperator, check_image_shape, check_measurements, check_seed


class PartialCirculant(LinearOperator):
    """Random convolution with random signs, seen at m random entries: y = √(n/m) · (g ⊛ (s · x))[rows].

    x is the flattened image, n = C·H·W; s are independent signs ±1, g has independent N(0, 1/n) entries, ⊛ is circular
    convolution, rows are m distinct entries, sorted. Over the draws of g, E‖A x‖² = ‖x‖². Such matrices sense nearly as
    well as dense Gaussian ones and need O(n log n) time and O(n) memory (Romberg, *Compressive sensing by random
    convolution*, 2009; Rauhut, *Circulant and Toeplitz matrices in compressed sensing*, 2009).

    Exactly one of ``fraction`` and ``measurements`` is given. Everything random is drawn on the CPU from ``seed``; with
    the same seed, more measurements contain the rows of fewer.

    Args:
        image_shape: (C, H, W).
        fraction: m / n, in (0, 1]; m is rounded, and at least 1.
        measurements: m, an integer in 1 … n.
        seed: which A (>= 0).

    Raises:
        ValueError: if both or neither of ``fraction`` and ``measurements`` are given, or a value is out of its range.
    """

    _signs: Tensor
    _filter: Tensor
    _rows: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        fraction: float | None = None,
        measurements: int | None = None,
        seed: int = 0,
    ) -> None:
        shape = check_image_shape(image_shape)
        seed = check_seed(seed)
        n = math.prod(shape)
        m = check_measurements(fraction, measurements, n)
        super().__init__(shape, (m,))
        self._scale = math.sqrt(n / m)

        def rng(purpose: str) -> torch.Generator:
            return generator_for(seed, "PartialCirculant", purpose, n)

        signs = 2 * torch.randint(2, (n,), generator=rng("signs"), dtype=torch.int8) - 1
        g = torch.randn(n, generator=rng("filter"), dtype=torch.float64) / math.sqrt(n)
        rows = torch.randperm(n, generator=rng("rows"))[:m].sort().values
        self.register_buffer("_signs", signs)
        self.register_buffer("_filter", g.to(torch.float32))
        self.register_buffer("_rows", rows)

    def forward(self, image: Tensor) -> Tensor:
        """A x, ``(B, m)``; half precision is computed in float32."""
        x = self._working(image).flatten(1) * self._signs  # (B, n)
        n = x.shape[1]
        convolved = torch.fft.irfft(self._spectrum(x) * torch.fft.rfft(x), n=n)
        return (self._scale * convolved.index_select(1, self._rows)).to(image.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y, ``(B, C, H, W)``: put y back at its rows, correlate with g, undo the signs."""
        values = self._working(y)
        n = len(self._signs)
        spread = values.new_zeros(len(y), n).index_copy(1, self._rows, values)
        correlated = torch.fft.irfft(self._spectrum(values).conj() * torch.fft.rfft(spread), n=n)
        return (self._scale * correlated * self._signs).unflatten(1, self.input_shape).to(y.dtype)

    def picture(self, y: Tensor) -> Tensor:
        """(m/n) A* y, ``(B, C, H, W)``: about the least-norm image that explains y, for A A* ≈ (n/m) I."""
        return self.adjoint(y) / self._scale**2

    def _working(self, values: Tensor) -> Tensor:
        """The values in float32 or float64: there are no half-precision FFTs on the CPU."""
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def _spectrum(self, like: Tensor) -> Tensor:
        # Not a buffer: Module.to(dtype) would drop the imaginary part. One FFT more is little next to a generator.
        return torch.fft.rfft(self._filter.to(like.dtype))
