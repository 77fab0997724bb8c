"""Train the embedded generator: a small StyleGAN2 whose resolution grows 16 -> 32 -> 64.

    python tools/train_generator.py --data train.npz --out checkpoints/faces64 --time-budget 9000

Run it again with the same ``--out`` to go on from its last checkpoint. ``--data`` is an .npz whose key ``images`` is
uint8 ``(N, 64, 64, 3)``. Every ten minutes it writes ``last.ckpt`` (everything needed to resume) and ``samples.png``,
and in the last phase ``generator.safetensors`` (EMA weights with latent statistics).

Recipe: StyleGAN2 (Karras et al. 2020) without path-length regularisation: non-saturating logistic loss, lazy R1
(every 16 steps), style mixing, EMA, Adam(0, 0.99); differentiable augmentation of real and fake images (Zhao et al.
2020; Karras et al., ADA, 2020) with a fixed probability; resolutions are grown by adding to both networks a block that
at first contributes nothing. The discriminator's and the generator's step share one batch of fakes.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchvision.utils import save_image

from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.checkpoints import save_generator
from ilo_lightning.generators.stylegan2 import StyleGAN2
from ilo_lightning.generators.stylegan2_layers import EqualizedLinear, filter_planes, fir_kernel, leaky_relu

STYLE_DIM, MAPPING_DEPTH = 128, 4
GENERATOR_CHANNELS = {4: 128, 8: 128, 16: 96, 32: 48, 64: 24}
DISCRIMINATOR_CHANNELS = {4: 96, 8: 96, 16: 96, 32: 48, 64: 24}
BATCH = 32
R1_INTERVAL = 16


@dataclass(frozen=True)
class Phase:
    """Training at one resolution: how many real images are shown before it grows, and the γ of R1."""

    resolution: int
    images: int
    r1: float


R1 = {16: 0.1, 32: 0.2, 64: 0.4}
GENERATOR_LR, DISCRIMINATOR_LR = 2.5e-3, 2.35e-3
UNLIMITED = 10**9
PHASES = "16:25000,32:57000,64:0"


def parse_phases(text: str) -> tuple[Phase, ...]:
    """``SIDE:IMAGES,…``, each side twice the one before; 0 images: until the time is up."""
    pairs = [tuple(int(number) for number in part.split(":")) for part in text.split(",")]
    sides = [side for side, _ in pairs]
    if not set(sides) <= set(R1) or any(large != 2 * small for small, large in pairwise(sides)):
        raise ValueError(text)
    return tuple(Phase(side, images or UNLIMITED, R1[side]) for side, images in pairs)


class EqualizedConv(nn.Module):
    """k×k convolution with weights of unit variance scaled at run time; ``down`` halves the size after a blur."""

    fir: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, down: bool = False, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain, self.down, self.size = 1 / math.sqrt(inputs * size**2), down, size
        self.register_buffer("fir", fir_kernel(gain=1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.size // 2)
        if self.size == 1:  # decimate in the blur: the same, with a quarter of the work
            return F.conv2d(filter_planes(x, self.fir, padding=1, stride=2), weight, self.bias)
        return F.conv2d(filter_planes(x, self.fir, padding=2), weight, self.bias, stride=2)


class DiscriminatorBlock(nn.Module):
    """One resolution: two convolutions, the second of which halves the size, around a skip connection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = EqualizedConv(inputs, inputs, 3)
        self.down = EqualizedConv(inputs, outputs, 3, down=True)
        self.skip = EqualizedConv(inputs, outputs, 1, down=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (leaky_relu(self.down(leaky_relu(self.conv(x)))) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Residual StyleGAN2 discriminator that also sees the image at every resolution it was grown through.

    Parameters are named by resolution, so that growing keeps them. ``resolutions`` are those with a FromRGB; the
    features of the image halved so far are added to those of the blocks above (input skips, StyleGAN2, figure 7b).
    """

    def __init__(self, resolutions: Sequence[int]):
        super().__init__()
        channels = DISCRIMINATOR_CHANNELS
        sides = [max(resolutions) // 2**i for i in range(int(math.log2(max(resolutions))) - 2)]
        self.from_rgb = nn.ModuleDict({str(side): EqualizedConv(3, channels[side], 1) for side in resolutions})
        self.blocks = nn.ModuleDict(
            {str(side): DiscriminatorBlock(channels[side], channels[side // 2]) for side in sides}
        )
        self.conv = EqualizedConv(channels[4] + 1, channels[4], 3)
        self.hidden = EqualizedLinear(channels[4] * 16, channels[4])
        self.out = EqualizedLinear(channels[4], 1)
        self.to(memory_format=torch.channels_last)

    def silence(self, side: int) -> None:
        """Let the block at ``side`` add nothing yet: then the network judges the halved image as it did before."""
        block = self.blocks[str(side)]
        for name in ("down.weight", "skip.weight"):
            nn.init.zeros_(block.get_parameter(name))

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        x = torch.zeros((), dtype=images.dtype, device=images.device)
        for side, block in self.blocks.items():
            if side in self.from_rgb:
                x = x + leaky_relu(self.from_rgb[side](images))
                images = F.avg_pool2d(images, 2)
            x = block(x)
        groups = x.reshape(-1, 4, *x.shape[1:])  # minibatch standard deviation of 4 neighbours: all real or all fake
        spread = (groups.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        x = torch.cat([x, spread.repeat_interleave(4)[:, None, None, None].expand(-1, 1, 4, 4)], dim=1)
        x = leaky_relu(self.conv(x)).flatten(1)
        return self.out(leaky_relu(self.hidden(x)))[:, 0]


def augment(x: Tensor, probability: float = 0.25) -> Tensor:
    """Differentiable brightness, contrast, saturation and reflected translation, each with ``probability``, image by
    image."""
    batch, _, height, width = x.shape
    on = (torch.rand(4, batch, 1, 1, 1, device=x.device) < probability).to(x.dtype)
    amount = torch.randn(3, batch, 1, 1, 1, device=x.device) * on[:3]
    x = x + 0.15 * amount[0]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * torch.exp(0.15 * amount[1]) + mean
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * torch.exp(0.3 * amount[2]) + grey
    reach = width // 12
    if reach:
        shift = (torch.randint(-reach, reach + 1, (2, batch, 1), device=x.device) * on[3, :, :, 0, 0].long()) + reach
        padded = F.pad(x, [reach] * 4, mode="reflect").permute(0, 2, 3, 1)
        rows = torch.arange(height, device=x.device)[None] + shift[0]
        columns = torch.arange(width, device=x.device)[None] + shift[1]
        images = torch.arange(batch, device=x.device)[:, None, None]
        x = padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x


def build_generator(resolution: int) -> StyleGAN2:
    """A new generator, in channels_last."""
    channels = [GENERATOR_CHANNELS[side] for side in sorted(GENERATOR_CHANNELS) if side <= resolution]
    generator = StyleGAN2(resolution, channels, STYLE_DIM, MAPPING_DEPTH)
    return generator.to(memory_format=torch.channels_last)


def grow_from(small: nn.Module, large: nn.Module) -> None:
    """Copy what the two networks share."""
    state = large.state_dict()
    state.update({name: value for name, value in small.state_dict().items() if name in state})
    large.load_state_dict(state)


class Adversarial(pl.LightningModule):
    """Generator against discriminator at one resolution, by hand-driven optimisation."""

    images_seen: Tensor
    seconds: Tensor

    def __init__(self, phase: Phase, first_resolution: int, ema_images: int = 10_000):
        super().__init__()
        self.automatic_optimization = False
        self.phase, self.ema_images = phase, ema_images
        self.generator = build_generator(phase.resolution)
        self.average = build_generator(phase.resolution).requires_grad_(False)
        grown_through = [side for side in DISCRIMINATOR_CHANNELS if first_resolution <= side <= phase.resolution]
        self.discriminator = Discriminator(grown_through)
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        self.clock = time.monotonic()
        self.history: list[tuple[float, float, float]] = []

    def grow(self, small: Adversarial) -> None:
        """Go on from ``small``: its weights, a generator block that doesn't yet add to the image, and a discriminator
        block that doesn't yet add to the features. So both start as the game at the lower resolution ended; a
        discriminator that has to begin anew is deceived before it has learned anything."""
        for name in ("generator", "average", "discriminator"):
            grow_from(getattr(small, name), getattr(self, name))
        self.discriminator.silence(self.phase.resolution)
        for network in (self.generator, self.average):
            nn.init.zeros_(network.blocks[-1].get_parameter("to_rgb.weight"))
        self.seconds.copy_(small.seconds)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=GENERATOR_LR, betas=(0.0, 0.99), foreach=True),
            torch.optim.Adam(self.discriminator.parameters(), lr=DISCRIMINATOR_LR, betas=(0.0, 0.99), foreach=True),
        ]

    def fakes(self, batch: int) -> Tensor:
        """Images of random codes, some with two styles mixed."""
        generator = self.generator
        w = generator.mapping(torch.randn(2, batch, STYLE_DIM))  # two styles per image, for mixing
        crossover = torch.randint(1, generator.num_styles, (batch, 1, 1))
        mixed = torch.rand(batch, 1, 1) < 0.7
        second = (torch.arange(generator.num_styles)[None, :, None] >= crossover) & mixed
        latent = torch.where(second, w[1][:, None], w[0][:, None])
        noise = {f"noise_{i}": torch.randn(batch, *generator.noise_shape(i)) for i in range(generator.num_noise_maps)}
        return generator(LatentPoint(0, {"latent": latent, **noise}, "w_plus"))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        real = batch[0].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        flip = torch.rand(len(real), 1, 1, 1) < 0.5
        real = F.avg_pool2d(torch.where(flip, real.flip(3), real), real.shape[-1] // self.phase.resolution)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        optimizer_g, optimizer_d = optimizers
        step = int(self.images_seen) // BATCH

        fake = self.fakes(len(real))
        self.discriminator.requires_grad_(True)
        score_real, score_fake = self.discriminator(augment(torch.cat([real, fake.detach()]))).chunk(2)
        loss_d = F.softplus(-score_real).mean() + F.softplus(score_fake).mean()
        total_d = loss_d
        if step % R1_INTERVAL == 0:
            shown = augment(real).detach().requires_grad_(True)
            gradient = torch.autograd.grad(self.discriminator(shown).sum(), shown, create_graph=True)[0]
            total_d = loss_d + gradient.square().sum(dim=(1, 2, 3)).mean() * (self.phase.r1 / 2 * R1_INTERVAL)
        optimizer_d.zero_grad()
        total_d.backward()
        optimizer_d.step()

        self.discriminator.requires_grad_(False)
        loss_g = F.softplus(-self.discriminator(augment(fake))).mean()
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()

        self.images_seen += len(real)
        self.update_average(len(real))
        now = time.monotonic()
        self.seconds += min(now - self.clock, 60.0)  # a pause (SIGSTOP) is not training time
        self.clock = now
        self.history.append((loss_d.item(), loss_g.item(), score_real.detach().sign().mean().item()))

    @torch.no_grad()
    def update_average(self, images: int) -> None:
        """Move the EMA towards the generator after ``images`` images. In the beginning its half-life is shorter."""
        half_life = min(self.ema_images, max(int(self.images_seen) // 10, 1))
        weight = 1 - 0.5 ** (images / half_life)
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), weight)


class Keeper(pl.Callback):
    """Checkpoints, exports, one line of progress, and the ends of phase and budget."""

    def __init__(self, out: Path, phase: Phase, deadline: float, every: float = 600, export: bool = True):
        self.out, self.phase, self.deadline, self.every, self.export = out, phase, deadline, every, export
        self.last, self.seen = time.monotonic(), 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        stop = now > self.deadline or int(module.images_seen) >= self.phase.images
        if stop or now - self.last > self.every:
            rate = (int(module.images_seen) - self.seen) / (now - self.last)
            losses = np.mean(module.history, axis=0)
            print(
                f"{module.phase.resolution}²  {int(module.images_seen):7d} images  "
                f"{float(module.seconds) / 3600:.2f} h  {rate:.1f} images/s  "
                f"D {losses[0]:.3f}  G {losses[1]:.3f}  sign D(real) {losses[2]:+.2f}",
                flush=True,
            )
            module.history.clear()
            self.seen, self.last = int(module.images_seen), now
            self.save(trainer, module)
        trainer.should_stop = stop

    def save(self, trainer, module) -> None:
        """Write the checkpoint, the samples and, if asked for, the generator."""
        part = self.out / "last.part"
        trainer.save_checkpoint(part)
        os.replace(part, self.out / "last.ckpt")
        average = module.average
        average.fit_statistics(20_000)
        with torch.no_grad():
            point = average.sample([torch.Generator().manual_seed(i) for i in range(64)], "z")
            images = average(point.update({n: t * 0 for n, t in point.tensors.items() if n.startswith("noise")}))
        save_image(images, self.out / "samples.png", nrow=16, normalize=True, value_range=(-1, 1), padding=0)
        if self.export:
            average.fit_statistics()
            provenance = {
                f"images_seen_at_{module.phase.resolution}": int(module.images_seen),
                "hours": round(float(module.seconds) / 3600, 2),
                "trained_by": "tools/train_generator.py",
            }
            save_generator(average, self.out / "generator.safetensors", provenance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-budget", type=float, required=True, help="seconds for this call")
    parser.add_argument("--save-every", type=float, default=600, help="seconds between checkpoints")
    help_phases = f"real images shown at each resolution before it grows; 0: until the time is up (default {PHASES})"
    parser.add_argument("--phases", type=parse_phases, default=PHASES, metavar="SIDE:IMAGES,…", help=help_phases)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.time_budget
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(np.load(arguments.data)["images"])
    phases: Sequence[Phase] = arguments.phases
    last = arguments.out / "last.ckpt"

    module, resume = None, None
    if last.exists():
        state = torch.load(last, map_location="cpu", weights_only=True)
        depth = 1 + max(int(key.split(".")[2]) for key in state["state_dict"] if key.startswith("generator.blocks."))
        resolution = 2 ** (depth + 1)
        if resolution not in [phase.resolution for phase in phases]:
            parser.error(f"{last} is of {resolution}², which --phases doesn't have")
        module = Adversarial(next(phase for phase in phases if phase.resolution == resolution), phases[0].resolution)
        module.load_state_dict(state["state_dict"])
        if int(module.images_seen) < module.phase.images:
            resume = last
    pl.seed_everything(arguments.seed + (int(module.images_seen) if module is not None else 0))
    for phase in phases:
        if module is not None and phase.resolution < module.phase.resolution:
            continue
        if resume is None:
            if module is not None and phase.resolution == module.phase.resolution:
                continue
            grown = Adversarial(phase, phases[0].resolution)
            if module is not None:
                grown.grow(module)
            module = grown
        assert module is not None
        keeper = Keeper(arguments.out, phase, deadline, arguments.save_every, export=phase is phases[-1])
        keeper.seen = int(module.images_seen)
        dataset = TensorDataset(images)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=-1, callbacks=[keeper], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=arguments.out,
        )  # fmt: skip
        sampler = RandomSampler(dataset, replacement=True, num_samples=BATCH * 1000)
        loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, drop_last=True)
        trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
        resume = None
        if time.monotonic() > deadline:
            break


if __name__ == "__main__":
    main()
