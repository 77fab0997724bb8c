"""Any chain of modules as a layered generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .base import LatentPoint, LayeredGenerator
from .state_dicts import load_weights


class SequentialGenerator(LayeredGenerator):
    """G = G_L ∘ … ∘ G_1, given as a list of blocks that each take the output of the one before.

    Layer 0 is the code z ~ N(0, I), the variable ``latent`` ``(B, D)``, D the number of its entries; layer p ≥ 1 is the
    input of block p, the variable ``activation``. The blocks are put into eval mode and frozen.

    Args:
        blocks: the modules; the first takes ``(B, *latent_shape)``, the last gives images ``(B, C, H, W)``.
        latent_shape: shape of one image's z.
        output_range: what the last block gives at least and at most, mapped to [-1, 1]: [-1, 1] for tanh, [0, 1] for a
            sigmoid.
        checkpoint: weights of ``torch.nn.Sequential(*blocks)``, a ``.safetensors`` file or a state dict that
            ``torch.save`` wrote; None: the blocks have theirs.

    Raises:
        ValueError: if the blocks don't make images of such codes.
        CheckpointError: if the checkpoint can't be read or doesn't fit.
    """

    spaces = ("z",)

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        latent_shape: Sequence[int],
        output_range: Sequence[float] = (-1.0, 1.0),
        checkpoint: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.latent_shape = tuple(int(size) for size in latent_shape)
        low, high = (float(bound) for bound in output_range)
        if not len(self.blocks):
            raise ValueError("generator.blocks=[]: give at least one module")
        if not self.latent_shape or min(self.latent_shape) < 1:
            raise ValueError(f"generator.latent_shape={list(latent_shape)}: expected positive integers, such as [100]")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"generator.output_range={list(output_range)}: expected two numbers, the lower one first")
        self._scale, self._offset = 2 / (high - low), -(high + low) / (high - low)
        self.num_layers = len(self.blocks)
        if checkpoint is not None:
            self.provenance = load_weights(nn.Sequential(*self.blocks), checkpoint)
        self.eval().requires_grad_(False)
        self.image_shape = self._rehearse()

    def _rehearse(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        with torch.no_grad():
            x = torch.zeros(1, *self.latent_shape, dtype=self.dtype, device=self.device)
            for index, block in enumerate(self.blocks):
                try:
                    x = block(x)
                except Exception as error:
                    raise ValueError(
                        f"generator.blocks[{index}]: {type(block).__name__} fails on a {tuple(x.shape)}: {error}"
                    ) from error
        if x.ndim != 4 or len(x) != 1 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"generator.blocks: the last gives {tuple(x.shape)} for one code, expected an image (1, 1 or 3, "
                "height, width); append a torch.nn.Unflatten?"
            )
        return (x.shape[1], x.shape[2], x.shape[3])

    def sample(self, rngs: Sequence[torch.Generator], space: str | None = None) -> LatentPoint:
        """z ~ N(0, I) of each random generator."""
        size = math.prod(self.latent_shape)
        codes = [torch.randn(size, generator=rng, dtype=self.dtype) for rng in rngs]
        return LatentPoint(0, {"latent": torch.stack(codes).to(self.device)}, self.check_space(space))

    def advance(self, point: LatentPoint, layer: int) -> LatentPoint:
        self.check_layer(point, layer)
        if layer == point.layer:
            return point
        return LatentPoint(layer, {"activation": self._run(point, layer)}, point.space)

    def forward(self, point: LatentPoint) -> Tensor:
        return self._run(point, self.num_layers) * self._scale + self._offset

    def _run(self, point: LatentPoint, stop: int) -> Tensor:
        x = point["activation"] if point.layer else point["latent"].unflatten(1, self.latent_shape)
        for block in self.blocks[point.layer : stop]:
            x = block(x)
        return x
