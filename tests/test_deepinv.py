"""deepinv's physics as operators, and our methods as deepinv's reconstructors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

deepinv = pytest.importorskip("deepinv", reason="deepinv is in the test extra: pip install -e '.[test]'")

from ilo_lightning import identity  # noqa: E402
from ilo_lightning.building import load_method  # noqa: E402
from ilo_lightning.checks import operators as checks  # noqa: E402
from ilo_lightning.deepinv import from_deepinv, reconstructor  # noqa: E402
from ilo_lightning.main import main  # noqa: E402
from ilo_lightning.method import Method  # noqa: E402
from ilo_lightning.method_config import method_from_config  # noqa: E402
from ilo_lightning.operators import ForwardOperator, GaussianNoise, Inpainting, LinearOperator, measure  # noqa: E402
from ilo_lightning.rehearsal import rehearse_operator  # noqa: E402
from ilo_lightning.selection import how  # noqa: E402
from ilo_lightning.solve import solve  # noqa: E402
from tests.networks import rngs, small_stylegan2  # noqa: E402
from tests.test_documentation import blocks  # noqa: E402
from tests.test_run import arguments, rows_of  # noqa: E402
from tests.test_solve import KEYS, ilo  # noqa: E402

SHAPE = (3, 16, 16)
P = deepinv.physics
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")


def rng(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernel() -> Tensor:
    return torch.rand(1, 1, 5, 5, generator=rng()) / 12


class Saturating(P.Physics):
    """Not linear, and with a noise that is no part of A."""

    def __init__(self) -> None:
        super().__init__(noise_model=P.GaussianNoise(0.5, rng=rng()))
        self.register_buffer("gain", torch.tensor(1.7, dtype=torch.float64))

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return torch.tanh(self.gain * x).flatten(1)[:, ::3]


LINEAR: dict[str, Callable[[], Any]] = {
    "Inpainting": lambda: P.Inpainting([3, 16, 16], mask=0.5, rng=rng()),
    "Blur": lambda: P.Blur(kernel(), padding="circular"),
    "BlurFFT": lambda: P.BlurFFT([3, 16, 16], kernel()),
    "Downsampling": lambda: P.Downsampling([3, 16, 16], filter="bicubic", factor=2),
    "CompressedSensing": lambda: P.CompressedSensing(50, [3, 16, 16], rng=rng()),
    "StructuredRandom": lambda: P.StructuredRandom([3, 16, 16], [3, 8, 16], rng=rng()),
    "Decolorize": lambda: P.Decolorize(),
    "derived adjoint": lambda: P.LinearPhysics(A=lambda x, **_: x.cumsum(-1)[:, :, ::2], img_size=SHAPE),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "Saturating": Saturating,
    "RandomPhaseRetrieval": lambda: P.RandomPhaseRetrieval(80, [3, 16, 16], rng=rng()),
}
ALL = {**LINEAR, **OTHERS}


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.rand(count, *SHAPE, generator=rng(1), dtype=dtype) - 1


def theirs(physics: Any, x: Tensor) -> Tensor:
    return physics.A(x.to(torch.complex64) if isinstance(physics, P.RandomPhaseRetrieval) else x)


# --- physics as operators -------------------------------------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ALL)
def test_a_is_deepinv_s_own(name: str):
    x, physics = images(), ALL[name]().to(torch.float32) if name == "Saturating" else ALL[name]()
    for intensities, given in ((False, x), (True, (x + 1) / 2)):
        operator = from_deepinv(physics, SHAPE, intensities)
        assert isinstance(operator, LinearOperator) == (name in LINEAR and not intensities)
        torch.testing.assert_close(operator(x), theirs(physics, given), rtol=1e-5, atol=1e-6)
        in_float64 = operator(x.double())
        assert in_float64.dtype == torch.float64
        torch.testing.assert_close(in_float64.float(), operator(x), rtol=1e-4, atol=1e-5)
        assert operator(x.half()).dtype == torch.float16


@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_is_deepinv_s_own(name: str):
    physics = LINEAR[name]()
    operator = from_deepinv(physics, SHAPE)
    assert isinstance(operator, LinearOperator)
    y = torch.randn(2, *operator.output_shape, generator=rng(2))
    torch.testing.assert_close(operator.adjoint(y), physics.A_adjoint(y), rtol=1e-5, atol=1e-6)


@pytest.mark.few(6)
@pytest.mark.parametrize("intensities", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_obeys_the_laws_of_operators(name: str, intensities: bool):
    def build() -> ForwardOperator:
        return from_deepinv(ALL[name](), SHAPE, intensities)

    assert [verdict for verdict in checks.check_operator(build, SHAPE) if not verdict.holds] == []
    rehearse_operator(build(), images(1))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ALL)
def test_a_has_one_fingerprint_in_every_precision_and_its_owner_s_physics_is_left_alone(name: str):
    physics = ALL[name]()
    before = {key: value.clone() for key, value in physics.state_dict().items()}
    operator = from_deepinv(physics, SHAPE)
    fingerprint = identity.fingerprint(operator)
    y = operator(images())
    operator(images(dtype=torch.float64))
    assert identity.fingerprint(operator) == fingerprint == identity.fingerprint(from_deepinv(ALL[name](), SHAPE))
    torch.testing.assert_close(operator.double()(images()), y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(operator.float()(images()), y, rtol=1e-6, atol=1e-6)
    assert identity.fingerprint(operator) == fingerprint
    for key, value in physics.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


def test_the_fingerprint_tells_masks_apart_and_not_noises():
    def inpainting(seed: int, sigma: float) -> str:
        physics = P.Inpainting(SHAPE, mask=0.5, rng=rng(seed), noise_model=P.GaussianNoise(sigma))
        return identity.fingerprint(from_deepinv(physics, SHAPE))

    assert inpainting(0, 0.1) == inpainting(0, 0.2) != inpainting(1, 0.1)


def test_pictures():
    x = images()
    blurred = from_deepinv(LINEAR["Blur"](), SHAPE)
    assert blurred.measures_pictures and torch.equal(blurred.picture(blurred(x)), blurred(x))
    intensities = from_deepinv(P.Denoising(), SHAPE, intensities=True)
    assert not intensities.measures_pictures
    torch.testing.assert_close(intensities.picture(intensities(x)), x)
    # Of the multiples of A* y it is the one that explains y best.
    projections = from_deepinv(LINEAR["CompressedSensing"](), SHAPE)
    y = projections(x)
    shown = projections.picture(y)
    errors = [float((projections(factor * shown) - y).norm()) for factor in (0.99, 1.0, 1.01)]
    assert errors[1] == min(errors) and not projections.measures_pictures
    rows = from_deepinv(OTHERS["RandomPhaseRetrieval"](), SHAPE)
    shown = rows.picture(rows(x))
    assert shown.shape == (2, 1, 9, 9) and shown.min() == -1 and shown.max() == 1
    # A sinogram has channels and two axes, too, and is none.
    for name in ("Inpainting", "BlurFFT", "Downsampling"):
        assert from_deepinv(LINEAR[name](), SHAPE).measures_pictures
    for angles in (8, 16):
        sinogram = P.Tomography(angles, img_width=16, circle=True, normalize=True)
        assert not from_deepinv(sinogram, SHAPE).measures_pictures


def test_the_same_mask_gives_the_same_reconstruction_as_our_operator():
    generator = small_stylegan2()
    ours = Inpainting(SHAPE, fraction=0.3, seed=3)
    other = from_deepinv(P.Inpainting(SHAPE, mask=ours.weight[0].expand(SHAPE)), SHAPE)
    assert torch.equal(other.weight, ours.weight.expand(1, *SHAPE))
    truth = generator(generator.sample(rngs(100, 101, 102), "z"))
    found = []
    for operator in (ours, other):
        measurement = measure(operator, GaussianNoise(0.05), truth, rngs(0, 1, 2))
        found.append(solve(generator, operator, measurement, ilo(), KEYS).solutions)
    for a, b in zip(*found, strict=True):
        assert a.info["data_fit"] == pytest.approx(b.info["data_fit"], rel=1e-6)
        for name, tensor in a.point.tensors.items():
            torch.testing.assert_close(tensor, b.point[name], rtol=1e-6, atol=1e-6)


class MixesTheBatch(P.Physics):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


@pytest.mark.parametrize(
    ("physics", "why"),
    [
        (lambda: torch.nn.Identity(), r"Identity is no deepinv\.physics\.Physics"),
        (lambda: P.Inpainting((3, 8, 8), mask=0.5, rng=rng()), r"Inpainting fails on images of shape \(2, 3, 16, 16\)"),
        (lambda: P.Inpainting(SHAPE), r"Inpainting fails on images"),
        (lambda: P.Inpainting(SHAPE, mask=torch.ones(4, *SHAPE)), r"one set of parameters for all of a batch"),
        (lambda: P.Physics(A=lambda x: torch.fft.fft2(x)), r"gives a torch\.complex64 tensor, expected one tensor"),
        (lambda: P.stack(P.Denoising(), P.Decolorize()), r"gives a TensorList, expected one tensor of real numbers"),
        (MixesTheBatch, r"gives an image another y in a batch than alone"),
        (lambda: P.Physics(A=lambda x: x + torch.randn_like(x)), r"or at every call"),
        (lambda: P.Physics(A=lambda x: x.sum(dim=0)), r"expected one y for each"),
        (lambda: P.Physics(A=lambda x: x / 0), r"not finite"),
        (lambda: P.LinearPhysics(A=lambda x: 0 * x), r"is 0 for every image"),
    ],
)
def test_what_can_t_be_an_operator_is_refused(physics: Callable[[], Any], why: str):
    with pytest.raises(ValueError, match=rf"^task\.operator\.physics: .*{why}"):
        from_deepinv(physics(), SHAPE)


def test_intensities_are_true_or_false():
    with pytest.raises(ValueError, match=r"intensities='yes': expected true or false"):
        from_deepinv(P.Denoising(), SHAPE, intensities="yes")  # type: ignore[arg-type]


def test_without_deepinv_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deepinv.physics", None)
    with pytest.raises(ValueError, match=r"pip install 'ilo-lightning\[deepinv\]'"):
        from_deepinv(None, SHAPE)


# --- on the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def myconf(tmp_path: Path) -> Path:
    """The task of docs/operators.md, for images of 16×16."""
    text = blocks(ROOT / "docs" / "operators.md", "yaml")[2].replace("64, 64", "16, 16")
    path = tmp_path / "myconf" / "task" / "dead_pixels.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return tmp_path / "myconf"


def test_a_task_of_the_command_line(checkpoint: Path, pictures: Path, tmp_path: Path, myconf: Path, capfd):
    def run(name: str, *more: str) -> int:
        given = arguments(checkpoint, pictures, tmp_path / name, "task=dead_pixels", *more)
        return main([f"--config-dir={myconf}", *given])

    assert run("one") == 0 == run("two")
    one, two = ([row["data_fit"] for row in rows_of(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 3 and one == two
    assert run("one") == 0, "the same A, so nothing is left to do"
    capfd.readouterr()
    assert run("none", "task.operator.physics.mask=0.0") == 2
    assert capfd.readouterr().err == "error: task.operator.physics: A of this Inpainting is 0 for every image\n"


def test_the_documented_task_keeps_its_promises(myconf: Path, capfd):
    given = ["--config-dir", str(myconf), "task=dead_pixels", "+task.operator.image_shape=[3,16,16]"]
    assert checks.main(given) == 0, capfd.readouterr()


# --- the other way round --------------------------------------------------------------------------------------------


def csgm(steps: int = 30) -> Method:
    return method_from_config("csgm", layers=[0], steps=[steps], lr=[0.1], free=["latent"], spheres=["latent"])


def test_the_reconstructor_reconstructs():
    generator = small_stylegan2(dtype=torch.float32)
    truth = (generator(generator.sample(rngs(100, 101, 102), "z")).clamp(-1, 1) + 1) / 2
    physics = P.Inpainting(SHAPE, mask=0.5, rng=rng(), noise_model=P.GaussianNoise(0.01, rng=rng(9)))
    model = reconstructor(generator, csgm(), seed=2)
    assert isinstance(model, deepinv.models.Reconstructor) and isinstance(model, torch.nn.Module)
    with torch.no_grad():
        y = physics(truth)
        found = model(y, physics)
        assert not torch.is_grad_enabled()
    assert found.shape == truth.shape and found.dtype == y.dtype and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    with torch.no_grad():
        first = reconstructor(generator, csgm(1), seed=2)(y, physics)
    error = (physics.A(found) - y).square().flatten(1).sum(1)
    assert (error < 0.7 * (physics.A(first) - y).square().flatten(1).sum(1)).all()


@pytest.mark.parametrize("name", ["RandomPhaseRetrieval", "Downsampling", "Decolorize"])
def test_the_reconstructor_takes_any_physics(name: str):
    """Complex, smaller or grey measurements."""
    generator, physics = small_stylegan2(dtype=torch.float32), ALL[name]()
    with torch.no_grad():
        truth = (generator(generator.sample(rngs(100, 101), "z")).clamp(-1, 1) + 1) / 2
        y = theirs(physics, truth)
        first, found = (reconstructor(generator, csgm(steps), seed=2)(y, physics) for steps in (1, 30))
        errors = [(theirs(physics, x) - y).square().flatten(1).sum(1) for x in (first, found)]
    assert found.shape == truth.shape and found.min() >= 0 and found.max() <= 1
    assert (errors[1] < 0.7 * errors[0]).all()


def test_a_linear_physics_of_intensities_is_affine():
    """With it the prediction of a mean is the mean of the predictions, so that automatic ILO takes the mean."""
    generator = small_stylegan2()
    physics = P.CompressedSensing(100, SHAPE, rng=rng())
    operator = from_deepinv(physics, SHAPE, intensities=True)
    assert operator.affine and not isinstance(operator, LinearOperator)
    x, shares = images(4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    mean = torch.einsum("b,bchw->chw", shares.to(x), x)[None]
    torch.testing.assert_close(operator(mean), torch.einsum("b,bm->m", shares.to(x), operator(x))[None])
    assert not from_deepinv(OTHERS["RandomPhaseRetrieval"](), SHAPE, intensities=True).affine
    method = load_method("ilo", steps=[2, 1], lr=0.1, refit_steps=2, candidates=[0.1, 0.5])
    assert how(method, operator, generator) == "stacking"
    y = physics((x[:2] + 1) / 2)
    found = reconstructor(generator, method)(y, physics)
    assert found.shape == x[:2].shape and bool(found.isfinite().all())


def test_an_image_is_reconstructed_alike_in_every_batch():
    generator = small_stylegan2()
    physics = P.CompressedSensing(200, SHAPE, rng=rng())
    y = physics((images(3) + 1) / 2)
    model = reconstructor(generator, csgm(8))
    together, turned, alone = model(y, physics), model(y.flip(0), physics), model(y[1:2], physics)
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, together[1:2], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model(y[1:2], physics), alone)


def test_the_reconstructor_refuses_what_isn_t_for_its_images():
    model = reconstructor(small_stylegan2(), csgm(1))
    with pytest.raises(ValueError, match=r"fails on images of shape \(2, 3, 16, 16\)"):
        model(torch.zeros(1, 3, 8, 8), P.Inpainting((3, 8, 8), mask=0.5, rng=rng()))
    with pytest.raises(ValueError, match=r"y of shape \(1, 3, 8, 8\): this Denoising gives \(3, 16, 16\) for each"):
        model(torch.zeros(1, 3, 8, 8), P.Denoising())


@pytest.mark.filterwarnings("ignore:non_blocking_transfers=True can only be used:UserWarning")
def test_deepinv_s_own_test_loop_runs_it():
    generator = small_stylegan2(dtype=torch.float32)
    truth = (generator(generator.sample(rngs(100, 101), "z")).clamp(-1, 1) + 1) / 2
    physics = P.Inpainting(SHAPE, mask=0.5, rng=rng())
    pairs = DataLoader([{"x": x, "y": y} for x, y in zip(truth, physics(truth), strict=True)], batch_size=2)  # type: ignore[arg-type]
    result = deepinv.test(
        reconstructor(generator, csgm(5)), pairs, physics, metrics=[deepinv.metric.PSNR()], verbose=False,
        show_progress_bar=False,
    )  # fmt: skip
    assert any("PSNR" in name for name in result)


def test_the_documented_example_runs(capsys):
    (code,) = (text for text in blocks(ROOT / "docs" / "operators.md", "python") if "reconstructor" in text)
    assert len(code.strip().splitlines()) <= 20
    scope: dict[str, Any] = {}
    exec(code.replace("noise_level=0.02", "noise_level=0.02, evaluations=25"), scope)
    assert scope["images"].shape == (1, 3, 64, 64) and "tensor" in capsys.readouterr().out
