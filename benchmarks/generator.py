"""How close a generator's samples are to the images it was trained on.

    python benchmarks/generator.py --images train.npz --json generator.json

The Fréchet distance between Gaussians fitted to 8×8 RGB thumbnails (192 numbers in [0, 1]) of 10,000 samples and of the
images. It sees layout, colours and their variety, not detail: the usual Inception network can't be downloaded
everywhere. Rows: ``frechet_thumbnails`` of the samples, and ``frechet_thumbnails_floor``, of one half of the images
against the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import publish, row
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ilo_lightning import load_generator


class Thumbnails(nn.Module):
    """Images ``(B, 3, H, W)`` in [0, 1] to their 8×8 thumbnails, ``(B, 192)``."""

    num_features = 192

    def forward(self, images: Tensor) -> Tensor:
        """Average over an 8×8 grid."""
        return F.adaptive_avg_pool2d(images, 8).flatten(1)


def distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between two sets of images in [0, 1]."""
    channels, height, width = a.shape[1:]
    metric = FrechetInceptionDistance(feature=Thumbnails(), normalize=True, input_img_size=(channels, height, width))
    metric.set_dtype(torch.float64)
    for images, real in ((a, True), (b, False)):
        for chunk in images.split(500):
            metric.update(chunk, real=real)
    return float(metric.compute())


@torch.no_grad()
def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help=".npz with key images, uint8 (N, H, W, 3)")
    parser.add_argument("--generator", default="pkg://ilo_lightning.generators/weights/faces64.safetensors")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    real = torch.from_numpy(np.load(arguments.images)["images"]).permute(0, 3, 1, 2).float() / 255
    generator = load_generator(arguments.generator)
    drawn = []
    for start in range(0, arguments.samples, 100):
        rngs = [torch.Generator().manual_seed(start + i) for i in range(min(100, arguments.samples - start))]
        drawn.append((generator(generator.sample(rngs, "z")).clamp(-1, 1) + 1) / 2)
    case = Path(arguments.generator).stem
    rows = [
        row(case, "frechet_thumbnails", distance(real, torch.cat(drawn)), "1"),
        row(case, "frechet_thumbnails_floor", distance(real[::2], real[1::2]), "1"),
    ]
    publish("generator", rows, arguments.json)


if __name__ == "__main__":
    main()
