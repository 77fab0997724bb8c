"""BM3D as a method: for denoising exactly the package's, else plug-and-play proximal gradient descent."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

bm3d = pytest.importorskip("bm3d", reason="bm3d is in the test extra: pip install -e '.[test]'")

from ilo_lightning.callbacks import plug_and_play  # noqa: E402
from ilo_lightning.callbacks.plug_and_play import denoised  # noqa: E402
from ilo_lightning.compatibility import check_method  # noqa: E402
from ilo_lightning.data.images import load_images  # noqa: E402
from ilo_lightning.generators.classical import Pixels, Wavelets  # noqa: E402
from ilo_lightning.losses import mean_squared_error  # noqa: E402
from ilo_lightning.main import main  # noqa: E402
from ilo_lightning.operators import Denoising, GaussianNoise, Inpainting, Measurement, measure  # noqa: E402
from ilo_lightning.schedule import ScheduleError  # noqa: E402
from ilo_lightning.solve import solve  # noqa: E402
from tests.networks import rngs, small_stylegan2  # noqa: E402
from tests.test_methods import method  # noqa: E402
from tests.test_run import rows_of  # noqa: E402

SIGMA = 0.2
ASTRONAUT = "pkg://ilo_lightning.data/astronaut.png"


def picture(channels: int = 3, side: int = 24) -> Tensor:
    """A photograph, ``(1, C, H, W)``."""
    image = load_images(ASTRONAUT, (3, 64, 64))[0].pixels[None, :channels, 20 : 20 + side, 20 : 20 + side]
    return image


def noisy(truth: Tensor) -> tuple[Denoising, Measurement]:
    operator = Denoising(tuple(truth.shape[1:]))
    return operator, measure(operator, GaussianNoise(SIGMA), truth, rngs(*range(len(truth))))


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10(((image - truth) / 2).square().mean()))


@pytest.mark.parametrize("channels", [1, 3])
def test_denoising_is_exactly_bm3d_of_y(channels: int):
    truth = picture(channels)
    operator, measurement = noisy(truth)
    shipped = method("bm3d", bm3d=SIGMA)
    (solution,) = solve(Pixels(truth.shape[1:]), operator, measurement, shipped, ["a"]).solutions
    y = ((measurement.y[0].double() + 1) / 2).permute(1, 2, 0).numpy()
    profile = bm3d.BM3DProfile()  # the default, but for the order of additions
    profile.num_threads = 1
    if channels == 3:
        expected = bm3d.bm3d_rgb(y, SIGMA / 2, profile)
    else:
        expected = bm3d.bm3d(y[:, :, 0], SIGMA / 2, profile)[:, :, None]
    found = solution.point["latent"]
    expected = 2 * torch.from_numpy(expected).permute(2, 0, 1)[None] - 1
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert psnr(found, truth) > psnr(measurement.y, truth) + 3
    assert solution.info["data_fit"] == pytest.approx(mean_squared_error(found, measurement).item(), rel=1e-9)


def test_of_the_colours_of_iid_noise_the_package_s_colour_transform_is_right():
    """The scale that it gives each opponent colour's deviation is that of the noise in it."""
    noise = np.random.default_rng(0).normal(0.5, 0.1, (200, 200, 3))
    transformed, _, _, scale, _ = bm3d.rgb_to(noise, "opp")
    assert np.allclose(transformed.std(axis=(0, 1)), 0.1 * np.sqrt(scale), rtol=0.02)


@pytest.mark.slow
def test_more_steps_are_proximal_gradient_descent_and_fill_in():
    truth = picture(1, 32)
    operator = Inpainting((1, 32, 32), fraction=0.7, seed=1)
    measurement = measure(operator, GaussianNoise(0.05), truth, rngs(0))
    shipped = method("bm3d", bm3d=0.1, steps=[12])
    (solution,) = solve(Pixels((1, 32, 32)), operator, measurement, shipped, ["a"]).solutions
    x = torch.zeros_like(truth)
    for _ in range(12):
        x = denoised(x - operator.adjoint(measurement.weight * (operator(x) - measurement.y)), 0.1)
    torch.testing.assert_close(solution.point["latent"], x, rtol=0, atol=1e-4)
    assert psnr(x, truth) > psnr(measurement.y, truth) + 6


def test_images_of_a_batch_are_denoised_on_their_own_and_twice_alike():
    truth = torch.cat([picture(1), picture(1).flip(-1)])
    operator, measurement = noisy(truth)
    pixels, shipped = Pixels(truth.shape[1:]), method("bm3d", bm3d=SIGMA, steps=[2])
    together = solve(pixels, operator, measurement, shipped, ["a", "b"]).solutions
    for i, key in enumerate(("a", "b")):
        (alone,) = solve(pixels, operator, measurement.select([i]), shipped, [key]).solutions
        assert torch.equal(alone.point["latent"], together[i].point["latent"])


def test_images_without_colour_constant_ones_and_broken_ones():
    grey = picture(1).expand(-1, 3, -1, -1)
    images = torch.cat([grey, torch.full_like(grey, 0.25), torch.full_like(grey, torch.nan)])
    found = denoised(images, SIGMA)
    assert torch.equal(found[0, 0], denoised(picture(1), SIGMA)[0, 0]) and torch.equal(found[0, 0], found[0, 2])
    torch.testing.assert_close(found[1], images[1], rtol=0, atol=1e-3)
    assert found[2].isnan().all()


@pytest.mark.parametrize(
    ("sigma", "why"),
    [
        (0, r"method\.bm3d=0: there is no noise to take out; give .* task\.noise\.sigma=0\.1, or method\.bm3d=0\.1"),
        (-1, r"method\.bm3d=-1: expected a finite number greater than 0"),
        (float("inf"), r"method\.bm3d=inf: expected a finite number"),
        ("much", r"method\.bm3d=much: expected a finite number"),
    ],
)
def test_deviations_that_are_none_are_refused(sigma: Any, why: str):
    with pytest.raises(ScheduleError, match=why):
        method("bm3d", bm3d=sigma)


def test_generators_whose_code_is_no_image_and_small_images_are_refused():
    shipped = method("bm3d", bm3d=0.1)
    for generator in (Wavelets((1, 16, 16)), small_stylegan2()):
        with pytest.raises(ScheduleError, match=r"method\.bm3d=0\.1: BM3D needs the image as code.*generator=pixels"):
            check_method(shipped, generator)
    with pytest.raises(ScheduleError, match=r"method\.bm3d=0\.1: images of 8×64 are too small"):
        check_method(shipped, Pixels((1, 8, 64)))


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return ["generator=pixels", "generator.image_shape=[3,16,16]", "method=bm3d", f"data.path={ASTRONAUT}",
            "task=denoising", "trainer=cpu", f"hydra.run.dir={tmp_path}"]  # fmt: skip


def test_a_run_tells_the_licence_once(command: list[str], tmp_path: Path, capfd):
    plug_and_play._package.cache_clear()
    assert main([*command, "task.noise.sigma=0.1", "method.steps=[2]"]) == 0
    assert capfd.readouterr().err.count("non-commercial") == 1
    (row,) = rows_of(tmp_path)
    assert row["method"] == "bm3d" and row["metrics"]["psnr"] > 20


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["task.noise.sigma=0"], r"error: method\.bm3d=0: there is no noise to take out; .*\n"),
        (["task/noise=poisson"], r"error: method\.bm3d=0: there is no noise to take out; .*\n"),
        (["generator=wavelets"], r"error: method\.bm3d=.*: BM3D needs the image as code, .*use generator=pixels\n"),
        (
            ["task=phase_retrieval", "method.bm3d=0.1"],
            r"(method\.bm3d: .*\n)?error: method\.bm3d=0\.1: A isn't linear \(PhaseRetrieval\), .*=total_variation.*\n",
        ),
        (["missing"], r"error: method\.bm3d: needs the package bm3d; pip install 'ilo-lightning\[bm3d\]'\n"),
    ],
)
def test_what_can_t_work_is_refused_before_any_work(
    given: list[str], why: str, command: list[str], tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
):
    if given == ["missing"]:
        plug_and_play._package.cache_clear()
        monkeypatch.setitem(sys.modules, "bm3d", None)
        given = []
    if "generator=wavelets" in given:
        command = command[1:]
    assert main([*command, *given]) == 2
    assert re.fullmatch(why, capfd.readouterr().err)
    assert not (tmp_path / "batches").exists()
