"""Noise on a measurement, drawn for each image on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import ForwardOperator, is_number


class NoiseModel(nn.Module, ABC):
    """What is added to, or done to, A(x) before it is observed."""

    @abstractmethod
    def forward(self, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """The noisy y ``(B, *output_shape)``; image b draws from the CPU generator ``rngs[b]`` only."""

    def check(self, operator: ForwardOperator) -> None:
        """Refuse an operator on whose measurements this noise makes no sense.

        Raises:
            ValueError: naming the operator and what to do.
        """


class GaussianNoise(NoiseModel):
    """y + σ ε, with independent standard normal ε per entry.

    ε is drawn on the CPU in float64 and then cast, so that every device and dtype sees the same noise.

    Args:
        sigma: standard deviation per entry of y, for images in [-1, 1]; finite and >= 0. A number, or a tensor ``(B,)``
            with one per image. 0 leaves y unchanged.

    Raises:
        ValueError: if sigma is something else.
    """

    def __init__(self, sigma: float | Tensor = 0.0) -> None:
        super().__init__()
        if isinstance(sigma, Tensor):
            valid = sigma.ndim == 1 and sigma.is_floating_point() and bool(((sigma >= 0) & sigma.isfinite()).all())
        else:
            valid = is_number(sigma) and sigma >= 0
        if not valid:
            raise ValueError(
                f"task.noise.sigma={sigma!r}: expected a finite number >= 0 (or a tensor of them, one per image)"
            )
        # Not buffers: the noise is made on the CPU in float64, wherever y lives.
        self.sigma: float | Tensor = sigma.detach().cpu().double() if isinstance(sigma, Tensor) else float(sigma)

    def forward(self, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """The noisy y, ``(B, *output_shape)``, in the dtype and on the device of y; y itself if σ = 0.

        Raises:
            ValueError: if there is not one generator (and one sigma, if they are several) per image.
        """
        if len(rngs) != len(y):
            raise ValueError(f"{len(rngs)} random generators for {len(y)} images: expected one per image")
        sigmas = self.sigma.tolist() if isinstance(self.sigma, Tensor) else [self.sigma] * len(y)
        if len(sigmas) != len(y):
            raise ValueError(f"task.noise.sigma has {len(sigmas)} entries for {len(y)} images: expected one per image")
        if not any(sigmas):
            return y
        noise = torch.zeros(y.shape, dtype=torch.float64)
        for row, sigma, rng in zip(noise, sigmas, rngs, strict=True):
            if sigma:
                row.normal_(generator=rng).mul_(sigma)
        return y + noise.to(y)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"


class PoissonNoise(NoiseModel):
    """Photon noise: 2 k / peak - 1 with independent k ~ Poisson(peak · (y + 1) / 2).

    y in [-1, 1] is an intensity in [0, 1], of which ``peak`` photons are expected at 1. The mean is y; the standard
    deviation at intensity 1 is 2/√peak. Drawn on the CPU in float64.

    Args:
        peak: expected number of photons at full intensity, finite and > 0.

    Raises:
        ValueError: if peak is something else.
    """

    def __init__(self, peak: float) -> None:
        super().__init__()
        if not is_number(peak) or peak <= 0:
            raise ValueError(f"task.noise.peak={peak!r}: expected a finite number > 0, photons at full intensity")
        self.peak = float(peak)

    def check(self, operator: ForwardOperator) -> None:
        if not operator.keeps_range:
            raise ValueError(
                f"task.noise=PoissonNoise: what {type(operator).__name__} measures is not known to be an intensity in "
                "[-1, 1], of which photons could be counted; use task/noise=gaussian, or a task whose y are "
                "intensities, such as inpainting, denoising, or super_resolution with task.kernel=area"
            )

    def forward(self, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """The noisy y, ``(B, *output_shape)``, in the dtype and on the device of y.

        Raises:
            ValueError: if there is not one generator per image, or an intensity is negative.
        """
        if len(rngs) != len(y):
            raise ValueError(f"{len(rngs)} random generators for {len(y)} images: expected one per image")
        rates = (y.detach().cpu().double() + 1) * (self.peak / 2)
        if bool((rates < -1e-6 * self.peak).any()):
            raise ValueError(f"Poisson noise on y down to {float(y.min()):.3g}: expected intensities, at least -1")
        counts = [torch.poisson(rate.clamp_min(0), generator=rng) for rate, rng in zip(rates, rngs, strict=True)]
        return (torch.stack(counts) * (2 / self.peak) - 1).to(y) if counts else y

    def extra_repr(self) -> str:
        return f"peak={self.peak}"
