"""Perceptual distances against the packages that define them, and the laws of the data fit made of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ilo_lightning.losses import NETS, PerceptualError, PerceptualFit, PerceptualNet, trunks
from ilo_lightning.operators import Inpainting, Measurement, PartialCirculant, SuperResolution

LPIPS = [name for name in NETS if name.startswith("lpips")]


def pictures(images: int = 2, height: int = 40, width: int = 36, seed: int = 0, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(images, channels, height, width, generator=rng, dtype=torch.float64) * 2 - 1


@pytest.fixture(scope="module")
def trunk_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trunks with random weights, as torchvision's files: with a classifier that nobody needs."""
    folder = tmp_path_factory.mktemp("trunks")
    files = {}
    for name in LPIPS:
        torch.manual_seed(1)
        files[name] = folder / f"{name}.pth"
        torch.save({**NETS[name].build().state_dict(), "classifier.1.weight": torch.zeros(3, 3)}, files[name])
    return files


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, trunk_files: dict[str, Path]) -> PerceptualNet:
    return opened(request.param, trunk_files)


def opened(name: str, trunk_files: dict[str, Path], **options) -> PerceptualNet:
    if name.startswith("stlpips"):
        pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")
    return PerceptualNet.open(name, trunk_files.get(name), **options)


@pytest.mark.parametrize("kind", ["lpips", "features"])
@pytest.mark.parametrize("name", LPIPS)
def test_lpips_is_that_of_its_package(name: str, kind: str, trunk_files: dict[str, Path]):
    import lpips

    theirs = lpips.LPIPS(net=name.removeprefix("lpips_"), lpips=kind == "lpips", pnet_rand=True, verbose=False)
    weights = torch.load(trunk_files[name], weights_only=True)
    for key, tensor in theirs.net.state_dict().items():
        tensor.copy_(weights[f"features.{key.partition('.')[2]}"])
    x, y = pictures(height=67, width=64), pictures(height=67, width=64, seed=1)
    with torch.no_grad():
        expected = theirs.double()(x, y).flatten()
    distance = opened(name, trunk_files, kind=kind)(x, y)
    torch.testing.assert_close(distance, expected, rtol=1e-10, atol=0)
    assert expected.min() > 1e-5


@pytest.mark.parametrize("name", ["stlpips_alex", "stlpips_vgg"])
def test_st_lpips_is_that_of_its_package(name: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")
    for missing, attribute in (("IPython", "embed"), ("torchsummary", "summary")):  # imported there, and not declared
        stub = ModuleType(missing)
        setattr(stub, attribute, None)
        monkeypatch.setitem(sys.modules, missing, stub)
    from stlpips_pytorch import stlpips

    theirs = stlpips.LPIPS(net=name.removeprefix("stlpips_"), variant="shift_tolerant", verbose=False).double()
    x, y = pictures(height=48, width=45), pictures(height=48, width=45, seed=1)
    with torch.no_grad():
        expected = theirs(x, y).flatten()
    torch.testing.assert_close(PerceptualNet.open(name)(x, y), expected, rtol=1e-10, atol=0)


def test_st_lpips_forgives_a_shift():
    """What it is for: of two changes that are equally large pixel by pixel, a shift costs far less than noise."""
    pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")
    from ilo_lightning.data.images import load_images

    image = load_images("pkg://ilo_lightning.data/astronaut.png", (3, 65, 65))[0].pixels[None].double()
    whole, shifted = image[..., :64, :64], image[..., 1:, 1:]
    noisy = whole + (shifted - whole).square().mean().sqrt() * torch.randn(whole.shape, dtype=torch.float64)
    distance = PerceptualNet.open("stlpips_alex")
    assert distance(whole, shifted) < distance(whole, noisy) / 3


def test_laws_of_a_distance(net: PerceptualNet):
    x, y = pictures(), pictures(seed=1)
    distance = net(x, y)
    assert distance.shape == (2,) and distance.dtype == torch.float64 and bool((distance > 0).all())
    assert torch.equal(net(x, x), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(net(y, x), distance, rtol=1e-12, atol=0)
    single = net(x.float(), y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), distance, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(net(x, y), distance, rtol=0, atol=0)  # float32 in between took nothing away


def test_no_image_of_a_batch_matters_to_another(net: PerceptualNet):
    x, y = pictures(3), pictures(3, seed=1)
    alone = torch.cat([net(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, y), alone, rtol=1e-10, atol=0)


def test_grey_pictures_are_shown_as_grey(net: PerceptualNet):
    x, y = pictures(channels=1), pictures(channels=1, seed=1)
    assert torch.equal(net(x, y), net(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


def test_its_smallest_picture(net: PerceptualNet):
    minimum = NETS[net.name].minimum
    assert bool(net(pictures(1, minimum, minimum), pictures(1, minimum, minimum, 1)).isfinite())
    with pytest.raises(RuntimeError):
        net(pictures(1, minimum - 1, 64), pictures(1, minimum - 1, 64))
    with pytest.raises(PerceptualError, match=rf"{minimum}×{minimum}; resize them first by perceptual\.size=64"):
        net.check_size((3, minimum - 1, 64), "pictures of", "perceptual.size")
    net.check_size((3, minimum, minimum), "pictures of", "perceptual.size")


@pytest.mark.parametrize("name", ["lpips_alex", "stlpips_alex", "lpips_squeeze"])
def test_its_gradient(name: str, trunk_files: dict[str, Path]):
    """Against differences along random directions: ReLU and max pooling have kinks, which all entries would meet."""
    net = opened(name, trunk_files)
    x, y = pictures(1).requires_grad_(), pictures(1, seed=1)
    (gradient,) = torch.autograd.grad(net(x, y).sum(), x)
    for seed in range(3):
        direction = pictures(1, seed=10 + seed)
        ahead, behind = (float(net(x.detach() + step * direction, y)) for step in (1e-6, -1e-6))
        assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-4)


def test_a_black_picture_has_a_finite_gradient(net: PerceptualNet):
    """A square root of a sum of squares has none where all channels are 0."""
    for tensor in net.trunk.parameters():
        if tensor.ndim == 1:
            assert not tensor.requires_grad
    x = net.mean.double().expand(1, 3, 40, 40).clone().requires_grad_()  # 0 for the trunk
    biases = [tensor for tensor in net.trunk.parameters() if tensor.ndim == 1]
    kept = [tensor.clone() for tensor in biases]
    try:
        for tensor in biases:
            tensor.zero_()
        (gradient,) = torch.autograd.grad(net(x, pictures(1, 40, 40)).sum(), x)
    finally:
        for tensor, old in zip(biases, kept, strict=True):
            tensor.copy_(old)
    assert bool(gradient.isfinite().all())


def test_resizing_is_stated_and_explicit(trunk_files: dict[str, Path]):
    x, y = pictures(height=48, width=40), pictures(height=48, width=40, seed=1)
    plain, same, other = (opened("lpips_alex", trunk_files, size=size) for size in (None, 40, 60))
    assert torch.equal(plain(x, y), same(x, y))
    up = [torch.nn.functional.interpolate(it, (72, 60), mode="bilinear", antialias=True) for it in (x, y)]
    torch.testing.assert_close(other(x, y), plain(*up), rtol=1e-12, atol=0)
    assert "at their own size" in plain.protocol and "resized to 60 pixels" in other.protocol


class TestFit:
    """The data fit: a distance of A(x) and y."""

    @pytest.fixture
    def net(self, trunk_files: dict[str, Path]) -> PerceptualNet:
        return opened("lpips_alex", trunk_files)

    @pytest.fixture
    def masked(self) -> Measurement:
        operator = Inpainting((3, 40, 36), box=[0.25, 0.25, 0.5, 0.5])
        return Measurement(pictures() * operator.weight, operator.weight.double())

    @pytest.mark.parametrize("variant", ["fill", "mask"])
    def test_what_was_not_observed_of_y_has_no_say(self, variant: str, net: PerceptualNet, masked: Measurement):
        x = pictures(seed=1).requires_grad_()
        hidden = torch.where(masked.weight > 0, masked.y, pictures(seed=5) * 100)
        results = []
        for y in (masked.y, hidden):
            fit = PerceptualFit(net, variant)(x, Measurement(y, masked.weight))
            results.append((fit, *torch.autograd.grad(fit.sum(), x)))
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)

    def test_mask_ignores_the_prediction_there_too(self, net: PerceptualNet, masked: Measurement):
        x = pictures(seed=1)
        other = torch.where(masked.weight > 0, x, pictures(seed=6)).requires_grad_()
        fit = PerceptualFit(net, "mask")
        assert torch.equal(fit(x, masked), fit(other, masked))
        (gradient,) = torch.autograd.grad(fit(other, masked).sum(), other)
        assert bool((gradient[(masked.weight == 0).expand_as(gradient)] == 0).all())

    @pytest.mark.parametrize("variant", ["fill", "mask"])
    def test_a_prediction_that_agrees_costs_nothing(self, variant: str, net: PerceptualNet, masked: Measurement):
        x = torch.where(masked.weight > 0, masked.y, pictures(seed=7))
        assert torch.equal(PerceptualFit(net, variant)(x, masked), torch.zeros(2, dtype=torch.float64))

    def test_the_gradient_of_fill_is_that_of_its_value(self, net: PerceptualNet, masked: Measurement):
        fit, x = PerceptualFit(net, "fill"), pictures(seed=1).requires_grad_()
        (gradient,) = torch.autograd.grad(fit(x, masked).sum(), x)
        direction = pictures(seed=8)
        ahead, behind = (float(fit(x.detach() + step * direction, masked).sum()) for step in (1e-6, -1e-6))
        assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-4)

    @pytest.mark.parametrize("variant", ["fill", "mask"])
    def test_of_a_whole_picture_it_is_the_distance(self, variant: str, net: PerceptualNet):
        x, fit = pictures(seed=1), PerceptualFit(net, variant)
        for seed in (2, 3):  # another measurement: what was seen of the first is forgotten
            measurement = Measurement(pictures(seed=seed), torch.ones(1, 1, 1, 1, dtype=torch.float64))
            assert torch.equal(fit(x, measurement), net(x, measurement.y))

    def test_it_stays_out_of_modules(self, net: PerceptualNet):
        holder = torch.nn.Module()
        holder.data_fit = PerceptualFit(net)
        assert holder.state_dict() == {} and not any(p.requires_grad for p in net.parameters())
        assert not net.train().training

    def test_operators_that_it_can_t_serve(self, net: PerceptualNet):
        fit = PerceptualFit(net)
        fit.check(Inpainting((3, 64, 64)), "method")
        with pytest.raises(PerceptualError, match=r"baseline\.data_fit\.perceptual: .*PartialCirculant.* no picture"):
            fit.check(PartialCirculant((3, 64, 64), fraction=0.5), "baseline")
        with pytest.raises(PerceptualError, match=r"16×16 pixels.*perceptual\.size"):
            fit.check(SuperResolution((3, 64, 64), factor=4), "method")
        PerceptualFit(PerceptualNet("lpips_alex", trunks.Weights(net.trunk, [], ""), size=64)).check(
            SuperResolution((3, 64, 64), factor=4), "method"
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "squared"}, r"perceptual\.kind=squared: expected one of lpips, features"),
        ({"size": 0}, r"perceptual\.size=0"),
        ({"size": 1.5}, r"perceptual\.size=1\.5"),
        ({"size": 30}, r"perceptual\.size=30: lpips_alex needs pictures of at least 31×31"),
        ({"name": "lpips_alx"}, r"perceptual=lpips_alx: expected none or one of lpips_alex, "),
        ({"name": "stlpips_alex", "trunk": "a.pth"}, r"perceptual\.trunk=a\.pth: stlpips_alex comes with its own"),
    ],
)
def test_options_that_are_refused(options: dict, words: str):
    with pytest.raises(PerceptualError, match=words):
        PerceptualNet.open(**{"name": "lpips_alex", **options})
    if options.get("name") is None:
        with pytest.raises(PerceptualError, match=r"perceptual\.masked=both: expected one of fill, mask"):
            PerceptualFit(None, "both")  # pyright: ignore[reportArgumentType]


class TestFiles:
    """What is read, and what is said where it can't be."""

    @pytest.mark.parametrize("name", LPIPS)
    def test_a_missing_trunk_is_named(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        file = trunks.TRUNK_FILES[name.removeprefix("lpips_")]
        place = tmp_path / "hub" / "checkpoints" / file
        with pytest.raises(PerceptualError) as refusal:
            PerceptualNet.open(name)
        for words in (file, str(place), file[-12:-4], "perceptual.trunk=PATH", f"{trunks.SOURCE}/{file}"):
            assert words in str(refusal.value)
        assert list(tmp_path.iterdir()) == []  # nothing was fetched

    def test_a_damaged_trunk_in_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        place = tmp_path / "hub" / "checkpoints" / trunks.TRUNK_FILES["alex"]
        place.parent.mkdir(parents=True)
        place.write_bytes(b"half")
        with pytest.raises(PerceptualError, match=r"damaged: its SHA-256 begins with .* and should with 7be5be79"):
            PerceptualNet.open("lpips_alex")

    def test_a_file_of_something_else(self, tmp_path: Path, trunk_files: dict[str, Path]):
        (tmp_path / "text.pth").write_text("hello")
        torch.save([1, 2], tmp_path / "list.pth")
        for path, words in (
            (tmp_path / "text.pth", "can't be read"),
            (tmp_path / "list.pth", "holds no tensors by name"),
            (trunk_files["lpips_vgg"], r"not the weights of LPIPS \(AlexNet\): features\.0\.weight is \(64, 3, 3, 3\)"),
        ):
            with pytest.raises(PerceptualError, match=rf"perceptual\.trunk=.*{path.name}: {words}"):
                PerceptualNet.open("lpips_alex", path)

    def test_nothing_that_a_file_holds_is_run(self, tmp_path: Path):
        class Surprise:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"features.0.weight": Surprise()}, tmp_path / "x.pth")
        with pytest.raises(PerceptualError, match="can't be read"):
            PerceptualNet.open("lpips_alex", tmp_path / "x.pth")
        assert not (tmp_path / "ran").exists()

    def test_a_missing_package(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(trunks.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(PerceptualError, match=r"stlpips_pytorch, which is not installed; pip install 'ilo-l"):
            PerceptualNet.open("stlpips_vgg")

    def test_no_package_is_imported(self, trunk_files: dict[str, Path]):
        import subprocess

        script = (
            "import sys; from ilo_lightning.losses import PerceptualNet; PerceptualNet.open('stlpips_alex');"
            f"PerceptualNet.open('lpips_alex', {str(trunk_files['lpips_alex'])!r});"
            "assert not {'lpips', 'stlpips_pytorch', 'torchvision'} & {*sys.modules}"
        )
        pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")
        subprocess.run([sys.executable, "-c", script], check=True)
