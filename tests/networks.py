"""Small random networks for tests: cheap, but with every part switched on."""

from __future__ import annotations

from typing import Any

import torch

from ilo_lightning.generators.stylegan2 import StyleGAN2


def small_stylegan2(
    resolution: int = 16, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any
) -> StyleGAN2:
    """A frozen random StyleGAN2 whose noise, biases and latent statistics all matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = [8, 8, 6, 4, 4, 4][: resolution.bit_length() - 2]
        options = {"channels": channels, "style_dim": 8, "mapping_depth": 2, **options}
        generator = StyleGAN2(resolution, **options)
        if generator.label is not None:
            generator.label[0] = 1.0
        for name, parameter in generator.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    generator.fit_statistics(2000)
    return generator.to(dtype).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
