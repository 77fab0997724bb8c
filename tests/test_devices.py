"""Everything is on the Trainer's device: first with a pretended one, that computes on the CPU but refuses to mix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilo_lightning import pipeline
from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.callbacks.progress import QuietDisplay
from ilo_lightning.data.images import load_images
from ilo_lightning.fits import _new_trainer
from ilo_lightning.generators.checkpoints import save_generator
from ilo_lightning.generators.classical import Pixels
from ilo_lightning.main import main
from ilo_lightning.method import Method
from ilo_lightning.observations import Simulated
from ilo_lightning.operators import GaussianNoise, Inpainting, PartialCirculant, SuperResolution, measure
from ilo_lightning.ops import use
from ilo_lightning.reconstruction import Reconstruction
from ilo_lightning.solve import solve
from tests.networks import rngs, small_stylegan2
from tests.pretended_device import DEVICE, pretended_device, trainer
from tests.test_resume import KillAt, Killed, assert_same
from tests.test_selection import automatic
from tests.test_solve import KEYS, ilo, problem

METHODS = {
    "ilo": ilo(),
    "csgm": ilo(layers=[0], steps=[5], lr=[0.1], radii={}, noise_maps=None),
    "absolute": ilo(spheres=["latent", "noise"], radius_mode="absolute", radius=[0.0, 3.0, 5.0]),
    "automatic": automatic(stop="discrepancy", noise_level=0.05),
    "range": ilo(center="range", range_steps=2),
}


def run(method: Method, elsewhere: bool, path: Path | None = None, callbacks=()) -> Reconstruction:
    generator, operator, measurement = problem()
    checkpoint = None if path is None else ResumeCheckpoint(path, every_seconds=1e9, every_steps=1)
    where = trainer() if elsewhere else {"accelerator": "cpu"}
    return solve(
        generator, operator, measurement, method, KEYS, checkpoint=checkpoint, trainer=where, callbacks=callbacks
    )


def assert_close(a: Reconstruction, b: Reconstruction) -> None:
    for x, y in zip(a.solutions, b.solutions, strict=True):
        assert x.point.layer == y.point.layer
        torch.testing.assert_close(x.history, y.history, rtol=1e-9, atol=0)
        torch.testing.assert_close(dict(x.point.tensors), dict(y.point.tensors), rtol=1e-8, atol=1e-10)


def test_the_pretended_device_refuses_to_mix():
    with pretended_device():
        here = torch.arange(6.0).view(2, 3)
        there = here.to(DEVICE)
        assert there.device == DEVICE and (2 * there + 1).device == DEVICE
        assert (2 * there + 1).cpu().tolist() == (2 * here + 1).tolist()
        assert torch.full_like(there, 3.0).device == torch.tensor([1.0], device=DEVICE).device == DEVICE
        for mix in (lambda: there + here, lambda: torch.where(there > 2, there, here), lambda: there.add_(here)):
            with pytest.raises(RuntimeError, match="two devices"):
                mix()


@pytest.mark.parametrize("name", METHODS)
def test_solves_on_the_trainer_s_device(name: str):
    with pretended_device():
        result = run(METHODS[name], elsewhere=True)
    for solution in result.solutions:
        assert solution.history.device.type == "cpu"
        assert {tensor.device.type for tensor in solution.point.tensors.values()} == {"cpu"}
    assert_close(result, run(METHODS[name], elsewhere=False))


@pytest.mark.few(2)
@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_resumes_on_the_trainer_s_device(step: int, tmp_path: Path):
    """A checkpoint's tensors come back on the CPU, whatever device they were saved from."""
    path = tmp_path / "last.ckpt"
    with pretended_device():
        with pytest.raises(Killed):
            run(ilo(), True, path, [KillAt(step, "before")])
        result = run(ilo(), True, path)
        again = run(ilo(), True, path)  # finished: only the final point is evaluated
        assert_same(result, run(ilo(), True))
        assert_same(again, result)


def test_a_generator_without_weights_is_somewhere_too():
    """Pixels, and an operator with a mask: whatever is selected and refitted."""
    operator = Inpainting((3, 8, 8), fraction=0.5)
    measurement = measure(operator, GaussianNoise(0.0), torch.rand(3, 3, 8, 8), rngs(0, 1, 2))
    fields = {"layers": [0], "steps": [3], "lr": 0.1, "free": ["latent"], "radii": {}, "radius": None, "spheres": []}
    with pretended_device():
        found = solve(
            Pixels((3, 8, 8)), operator, measurement, automatic(**fields, restarts=2), KEYS, trainer=trainer()
        )
    assert all(solution.info["selection"]["how"] == "holdout" for solution in found.solutions)


def test_starts_from_a_point_on_the_cpu():
    """A solution's point is on the CPU, the generator where the last Trainer left it."""
    generator, operator, measurement = problem()
    method = ilo(layers=[1, 2], steps=2, lr=0.1, radii={}, noise_maps=None, space="gaussian_w_plus")
    point = generator.sample(rngs(1, 2, 3))
    results = []
    with use("torch"), pretended_device():  # the CPU's kernels round otherwise than torch
        for _ in range(2):
            results.append(solve(generator, operator, measurement, method, KEYS, init=point, trainer=trainer()))
    assert generator.device == DEVICE
    assert_same(*results)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("operator", [Inpainting, PartialCirculant, SuperResolution], ids=lambda kind: kind.__name__)
def test_a_whole_run_on_a_device(operator, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two batches: the first is measured before anything is moved, the second after."""
    arguments = {PartialCirculant: {"fraction": 0.2}, SuperResolution: {"factor": 2}}.get(operator, {})

    def rows(folder: Path) -> list[dict]:
        generator = small_stylegan2(dtype=torch.float32)
        images, forward = load_images(pictures, generator.image_shape), operator(generator.image_shape, **arguments)
        setting = pipeline.Setting(
            config={},
            generator=generator,
            operator=forward,
            method=ilo(steps=2),
            observations=Simulated(images, forward, GaussianNoise(0.1), 0, generator.dtype),
            batch_size=2,
        )
        return pipeline.run(setting, folder, QuietDisplay())

    def on_the_device(*args, **kwargs) -> Reconstruction:
        return solve(*args, **{**kwargs, "trainer": trainer()})

    expected = rows(tmp_path / "cpu")
    monkeypatch.setattr(pipeline, "solve", on_the_device)
    with pretended_device():
        found = rows(tmp_path / "device")
    for a, b in zip(found, expected, strict=True):
        assert a["metrics"]["psnr"] == pytest.approx(b["metrics"]["psnr"], abs=1e-3)
        for name in ("measurement.png", "reconstruction.png"):
            there, here = (np.array(Image.open(tmp_path / run / a["folder"] / name)) for run in ("device", "cpu"))
            assert np.abs(there.astype(int) - here).max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["inpainting", "compressed_sensing", "super_resolution", "denoising"])
def test_a_whole_run_on_a_gpu(task: str, pictures: Path, tmp_path: Path):
    checkpoint = tmp_path / "small.safetensors"
    save_generator(small_stylegan2(dtype=torch.float32), checkpoint)
    for trainer_name in ("gpu", "cpu"):
        arguments = [
            f"task={task}",
            "generator=stylegan2",
            f"generator.checkpoint={checkpoint}",
            f"data.path={pictures}",
            "data.batch_size=2",
            "method.layers=[0,1,2]",
            "method.steps=[3,3,3]",
            "method.lr=0.05",
            f"trainer={trainer_name}",
            f"hydra.run.dir={tmp_path / trainer_name}",
        ]
        assert main(arguments) == 0
    found, expected = (
        [json.loads(line)["metrics"]["psnr"] for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("gpu", "cpu")
    )
    assert found == pytest.approx(expected, abs=0.5)


def test_auto_is_a_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """Lightning's own auto would take Apple's MPS, which can't compute the projections in float64."""
    monkeypatch.setattr("pytorch_lightning.accelerators.mps.MPSAccelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = _new_trainer({"accelerator": "auto"}, max_epochs=1, logger=False, enable_checkpointing=False)
    assert made.strategy.root_device.type == "cpu"
