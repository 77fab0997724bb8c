"""The decoder of a small variational autoencoder of handwritten digits."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .sequential import SequentialGenerator

LATENT_DIM, WIDTH, SIDE = 20, 500, 28
WEIGHTS = "pkg://ilo_lightning.generators/weights/mnist_vae.safetensors"


def decoder_blocks() -> list[nn.Sequential]:
    """20 → 500 → 500 → 28×28, the shape that CSGM used (Bora et al., ICML 2017, section 6.1); intensities in [0, 1]."""
    return [
        nn.Sequential(nn.Linear(LATENT_DIM, WIDTH), nn.ReLU()),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Sequential(nn.Linear(WIDTH, SIDE * SIDE), nn.Sigmoid(), nn.Unflatten(1, (1, SIDE, SIDE))),
    ]


class MnistVAE(SequentialGenerator):
    """Digits ``(1, 28, 28)``, white on black; see docs/mnist_vae.md and tools/train_mnist_vae.py.

    Args:
        checkpoint: weights of the decoder.

    Raises:
        CheckpointError: if the checkpoint can't be read or doesn't fit.
    """

    def __init__(self, checkpoint: str | Path = WEIGHTS) -> None:
        super().__init__(decoder_blocks(), [LATENT_DIM], output_range=(0.0, 1.0), checkpoint=checkpoint)
