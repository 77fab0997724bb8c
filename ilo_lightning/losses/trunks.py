"""The networks of perceptual distances, and where their weights come from. Nothing is ever downloaded.

LPIPS (Zhang, Isola, Efros, Shechtman, Wang, CVPR 2018, arXiv 1801.03924) compares activations of a network that was
trained on ImageNet: the *trunk*, which torchvision publishes; and has learned how much each channel counts: the
*heads*, which the package ``lpips`` brings. ST-LPIPS (Ghildyal, Liu, ECCV 2022, arXiv 2207.13686) has the strides of
AlexNet and VGG16 replaced by blurs, so that a shift of a pixel hardly counts; the package ``stlpips_pytorch`` brings
trunks and heads in one file each, read here without importing the package (it imports what it doesn't declare).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import locate

TRUNK_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""As torchvision names the files that it downloads: the eight digits are the beginning of the file's SHA-256."""
SOURCE = "https://download.pytorch.org/models"


class PerceptualError(ValueError):
    """A perceptual distance that can't be had; the message names the field, its value and the remedy."""


class Fire(nn.Module):
    """SqueezeNet's: a 1×1 convolution to few channels, then 1×1 and 3×3 convolutions to many, side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu()


class BlurredStride(nn.Module):
    """Half the resolution, by a binomial filter of three taps on a border of two reflected pixels."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Trunk(nn.Module):
    """Layers in a row, numbered as in the files of their weights.

    Args:
        layers: all of them.
        taps: the numbers of those whose outputs are compared.
    """

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The activations at the taps, each ``(B, C, H, W)``."""
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x)
        return found


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, padding), nn.ReLU(inplace=True)]


def alexnet() -> Trunk:
    """torchvision's AlexNet (Krizhevsky 2014, arXiv 1404.5997), up to its fifth convolution."""
    return Trunk(
        [
            *_convolution(3, 64, 11, stride=4, padding=2),
            *(nn.MaxPool2d(3, 2), *_convolution(64, 192, 5, padding=2)),
            *(nn.MaxPool2d(3, 2), *_convolution(192, 384)),
            *_convolution(384, 256),
            *_convolution(256, 256),
        ],
        (1, 4, 7, 9, 11),
    )


def alexnet_without_strides() -> Trunk:
    """AlexNet of ST-LPIPS: its three strides are blurred, the first in two steps."""

    def pooled(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, 1), BlurredStride(channels)]

    first, activation = _convolution(3, 64, 11, stride=1, padding=2)
    return Trunk(
        [
            *(first, BlurredStride(64), activation),
            *(*pooled(64), *_convolution(64, 192, 5, padding=2)),
            *(*pooled(192), *_convolution(192, 384)),
            *_convolution(384, 256),
            *_convolution(256, 256),
        ],
        (2, 6, 10, 12, 14),
    )


def vgg16(pool: Callable[[int], list[nn.Module]] = lambda channels: [nn.MaxPool2d(2, 2)]) -> Trunk:
    """VGG16 (Simonyan, Zisserman, arXiv 1409.1556), up to its last convolution; ``pool`` halves the resolution."""
    layers: list[nn.Module] = []
    taps, inputs = [], 3
    for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += pool(inputs) if block else []
        for _ in range(depth):
            layers += _convolution(inputs, width)
            inputs = width
        taps.append(len(layers) - 1)
    return Trunk(layers, taps)


def vgg16_without_strides() -> Trunk:
    """VGG16 of ST-LPIPS: it pools at every pixel, then blurs."""
    return vgg16(lambda channels: [nn.MaxPool2d(2, 1), BlurredStride(channels)])


def squeezenet() -> Trunk:
    """SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360), up to its last Fire module."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return Trunk(
        [
            *_convolution(3, 64, stride=2, padding=0),
            *(pool, Fire(64, 16, 64), Fire(128, 16, 64)),
            *(pool, Fire(128, 32, 128), Fire(256, 32, 128)),
            *(pool, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        ],
        (1, 4, 7, 9, 10, 11, 12),
    )


@dataclass(frozen=True)
class NetKind:
    """A network to choose.

    Args:
        title: for people.
        build: its trunk, without weights.
        minimum: pixels of the smaller side of the smallest picture that it takes.
    """

    title: str
    build: Callable[[], Trunk]
    minimum: int


NETS = {
    "lpips_alex": NetKind("LPIPS (AlexNet)", alexnet, 31),
    "lpips_vgg": NetKind("LPIPS (VGG16)", vgg16, 16),
    "lpips_squeeze": NetKind("LPIPS (SqueezeNet)", squeezenet, 17),
    "stlpips_alex": NetKind("ST-LPIPS (AlexNet)", alexnet_without_strides, 21),
    "stlpips_vgg": NetKind("ST-LPIPS (VGG16)", vgg16_without_strides, 18),
}


@dataclass(frozen=True)
class Weights:
    """What was read.

    Args:
        trunk: with its weights, frozen.
        heads: per tap, how much each channel counts, ``(1, C, 1, 1)``.
        sha256: of the file of the trunk.
    """

    trunk: Trunk
    heads: list[Tensor]
    sha256: str


def load(name: str, file: str | Path | None = None, field: str = "perceptual") -> Weights:
    """Read a network of ``NETS``.

    Args:
        name: which.
        file: an LPIPS trunk as torchvision publishes it; None: where torch keeps what it downloaded.
        field: of the configuration, for errors.

    Raises:
        PerceptualError: if a package or a file is missing (naming what to put where), damaged or something else.
    """
    if name not in NETS:
        raise PerceptualError(f"{field}={name}: expected none or one of {', '.join(NETS)}")
    family, _, net = name.partition("_")
    found = _of_lpips(net, file, field, name) if family == "lpips" else _of_stlpips(net, file, field, name)
    found.trunk.requires_grad_(False).eval()
    return found


def _of_lpips(net: str, file: str | Path | None, field: str, name: str) -> Weights:
    heads = _package("lpips", "pip install lpips", field, name) / "weights" / "v0.1" / f"{net}.pth"
    stated = TRUNK_FILES[net]
    prefix = stated.removesuffix(".pth").rpartition("-")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / stated
    path = cached if file is None else locate(file)
    where = f"{field}={name}: {path}" if file is None else f"{field}.trunk={file}"
    if not path.is_file():
        by_name = "" if field.startswith("metrics") else f", or name it by {field}.trunk=PATH"
        raise PerceptualError(
            f"{field}={name}: needs {stated}, torchvision's weights, and there is no {path.absolute()}; put "
            f"{SOURCE}/{stated} (its SHA-256 begins with {prefix}) at {cached}{by_name}; stlpips_alex and stlpips_vgg "
            "come complete from PyPI"
        )
    digest = sha256(path)
    if file is None and not digest.startswith(prefix):
        raise PerceptualError(
            f"{where}: damaged: its SHA-256 begins with {digest[:8]} and should with {prefix}; put "
            f"{SOURCE}/{stated} there"
        )
    trunk = NETS[name].build()
    stored = {key: tensor for key, tensor in _read(path, where).items() if key.startswith("features.")}
    _fill(trunk, stored, where, NETS[name].title)
    return Weights(trunk, _heads(_read(heads, f"{field}={name}: {heads}"), len(trunk.taps)), digest)


def _of_stlpips(net: str, file: str | Path | None, field: str, name: str) -> Weights:
    if file is not None:
        raise PerceptualError(f"{field}.trunk={file}: {name} comes with its own weights; leave it null")
    remedy = "pip install 'ilo-lightning[stlpips]' or pip install --no-deps stlpips_pytorch"
    path = _package("stlpips_pytorch", remedy, field, name) / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
    where = f"{field}={name}: {path}"
    stored = _read(path, where)
    trunk = NETS[name].build()
    renamed = {re.sub(r"^net\.slice\d+\.", "features.", key): tensor for key, tensor in stored.items()}
    _fill(trunk, {k: v for k, v in renamed.items() if k.startswith("features.")}, where, NETS[name].title)
    return Weights(trunk, _heads(stored, len(trunk.taps)), sha256(path))


def _package(package: str, remedy: str, field: str, name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise PerceptualError(f"{field}={name}: needs the package {package}, which is not installed; {remedy}")
    return Path(spec.origin).parent


def _read(path: Path, where: str) -> dict[str, Tensor]:
    """Tensors by name; runs nothing that the file holds."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes, torch's reader makes KeyErrors, IndexErrors, …
        reason = next(iter(str(error).strip().splitlines()), "")
        raise PerceptualError(f"{where}: can't be read ({type(error).__name__}: {reason})") from error
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise PerceptualError(f"{where}: holds no tensors by name")
    return dict(stored)


def _fill(trunk: Trunk, stored: Mapping[str, Tensor], where: str, title: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in trunk.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name in sorted({*expected, *given}):
        if expected.get(name) != given.get(name):
            raise PerceptualError(
                f"{where}: not the weights of {title}: {name} is {given.get(name, 'not there')}, expected "
                f"{expected.get(name, 'none')}"
            )
    trunk.load_state_dict({name: tensor.float() for name, tensor in stored.items()})


def _heads(stored: Mapping[str, Tensor], count: int) -> list[Tensor]:
    return [stored[f"lin{tap}.model.1.weight"].float() for tap in range(count)]


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
