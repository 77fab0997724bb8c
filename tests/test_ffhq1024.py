"""experiment=ffhq1024 with a checkpoint in the layout of the real one, but narrow: 1024², nine layers, few channels."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ilo_lightning.generators.checkpoints import load_generator
from ilo_lightning.solution import Solution
from tests.test_run import rows_of


def rosinality_state(channels: list[int], style_dim: int, depth: int) -> dict[str, Tensor]:
    """Random weights of rosinality's generator, with as many blocks as there are ``channels``."""
    torch.manual_seed(0)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 16

    def modulated(prefix: str, inputs: int, outputs: int, size: int) -> dict[str, Tensor]:
        return {
            f"{prefix}.conv.weight": torch.randn(1, outputs, inputs, size, size),
            f"{prefix}.conv.modulation.weight": 0.3 * torch.randn(inputs, style_dim),
            f"{prefix}.conv.modulation.bias": torch.ones(inputs),
        }

    def styled(prefix: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        more = {f"{prefix}.noise.weight": torch.full((1,), 0.05), f"{prefix}.activate.bias": torch.zeros(outputs)}
        return modulated(prefix, inputs, outputs, 3) | more

    def to_rgb(prefix: str, inputs: int) -> dict[str, Tensor]:
        return modulated(prefix, inputs, 3, 1) | {f"{prefix}.bias": torch.zeros(1, 3, 1, 1)}

    state = {"input.input": torch.randn(1, channels[0], 4, 4)}
    for layer in range(1, depth + 1):
        state |= {f"style.{layer}.weight": 100 * torch.randn(style_dim, style_dim)}
        state |= {f"style.{layer}.bias": torch.zeros(style_dim)}
    state |= styled("conv1", channels[0], channels[0]) | to_rgb("to_rgb1", channels[0])
    for block, (inputs, outputs) in enumerate(pairwise(channels)):
        state |= styled(f"convs.{2 * block}", inputs, outputs) | styled(f"convs.{2 * block + 1}", outputs, outputs)
        state |= to_rgb(f"to_rgbs.{block}", outputs)
        state |= {f"convs.{2 * block}.conv.blur.kernel": kernel, f"to_rgbs.{block}.upsample.kernel": kernel}
    for index in range(2 * len(channels) - 1):
        side = 4 * 2 ** ((index + 1) // 2)
        state[f"noises.noise_{index}"] = torch.randn(1, 1, side, side)
    return state


@pytest.mark.slow
def test_a_run_of_few_steps(tmp_path: Path):
    """Interrupted in the middle, gone on with, finished: pictures, figure, a solution that decodes to what is shown."""
    checkpoint, folder = tmp_path / "narrow.pt", tmp_path / "run"
    torch.save({"g_ema": rosinality_state([8] * 5 + [8, 4, 4, 4], 512, 8), "latent_avg": torch.zeros(512)}, checkpoint)
    command = [sys.executable, "-m", "ilo_lightning.cli", "solve", "experiment=ffhq1024", "trainer=cpu"]
    command += [f"generator.checkpoint={checkpoint}", "method.steps=2", f"hydra.run.dir={folder}"]
    command += ["checkpoint_every_seconds=1e-6"]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while begun.poll() is None and not list(folder.glob("batches/*.ckpt")):
        time.sleep(0.05)
    begun.send_signal(signal.SIGTERM)
    output, errors = begun.communicate()
    assert begun.returncode == 143, errors.decode()

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = (output.decode() + done.stdout).count("data fit")
    assert stages >= 5
    (row,) = rows_of(folder)
    assert [stage["layer"] for stage in row["stages"]] == [0, 1, 2, 3, 4] and row["evaluations"] == 11
    solution = Solution.load(folder / row["folder"] / "solution.safetensors")
    assert len(solution.history) == 10
    decoded = solution.decode(load_generator(checkpoint))
    with Image.open(folder / row["folder"] / "reconstruction.png") as picture:
        assert picture.size == (1024, 1024) and decoded.shape == (3, 1024, 1024)
    with Image.open(folder / row["folder"] / "figure.png") as figure:
        figure.verify()
