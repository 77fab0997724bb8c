"""Perceptual distances: how different two pictures look to a network, as a data fit and as a metric."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operators.base import ForwardOperator, Measurement
from .trunks import NETS, PerceptualError, Weights, load

KINDS = ("lpips", "features")
MASKED = ("fill", "mask")
LARGEST = 4096
"""Pixels of the smaller side to which pictures may be resized."""

# ImageNet's mean and standard deviation, which the trunks were trained with, for pixels in [-1, 1].
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)


def check_size(size: object, section: str) -> None:
    """Refuse what is no size to which pictures could be resized.

    Raises:
        PerceptualError: naming ``section.size`` and what it can be.
    """
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= LARGEST):
        raise PerceptualError(f"{section}.size={size}: expected null or a number of pixels in 1 … {LARGEST}, e.g. 256")


class PerceptualNet(nn.Module):
    """A distance of pictures ``(B, 1 or 3, H, W)`` in [-1, 1], one number ``(B,)`` per pair; frozen.

    With unit vectors f_l(x)[h, w] of the activations of tap l and the heads w_l, which are not negative (Zhang et al.
    2018, equation 1, as their package computes it):

        ``d(x, y) = Σ_l 1/(H_l W_l) Σ_{h,w} Σ_c w_l[c] (f_l(x)[c, h, w] - f_l(y)[c, h, w])²``

    ``kind="features"`` has all w_l[c] = 1. Images of one channel are shown to the network as grey. It moves to the
    device of what it is given, and computes in float64 for float64, else in float32.

    Args:
        name: one of ``trunks.NETS``.
        weights: of it.
        kind: ``lpips`` or ``features``.
        size: of the smaller side to which pictures are resized first, bilinear and antialiased, the other in
            proportion; None: they are compared as they are.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, weights: Weights, kind: str = "lpips", size: int | None = None) -> None:
        super().__init__()
        self.name, self.kind, self.size, self.sha256 = name, kind, size, weights.sha256
        self.trunk = weights.trunk
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1))
        for tap, head in enumerate(weights.heads):
            self.register_buffer(f"head{tap}", head if kind == "lpips" else torch.ones_like(head))
        self.requires_grad_(False).eval()

    @classmethod
    def open(
        cls,
        name: str,
        trunk: str | Path | None = None,
        kind: str = "lpips",
        size: int | None = None,
        field: str = "perceptual",
    ) -> PerceptualNet:
        """With the weights of ``trunks.load``.

        Raises:
            PerceptualError: naming ``field``, its value and the remedy.
        """
        section = field.partition(".")[0]
        if kind not in KINDS:
            raise PerceptualError(f"{section}.kind={kind}: expected one of {', '.join(KINDS)}")
        check_size(size, section)
        if size is not None and name in NETS and size < NETS[name].minimum:
            raise PerceptualError(
                f"{section}.size={size}: {name} needs pictures of at least {_square(NETS[name].minimum)} pixels"
            )
        return cls(name, load(name, trunk, field), kind, size)

    @property
    def protocol(self) -> str:
        """What the number is, for whoever reads it."""
        scaled = f"resized to {self.size} pixels, bilinear and antialiased" if self.size else "at their own size"
        heads = "" if self.kind == "lpips" else ", without its heads"
        return (
            f"{NETS[self.name].title}{heads}, trunk SHA-256 {self.sha256[:8]}…; images clipped to [-1, 1], {scaled}; "
            "computed in float32"
        )

    def train(self, mode: bool = True) -> PerceptualNet:
        """It stays frozen, whatever holds it."""
        return super().train(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """Unit vectors per tap and place, each ``(B, C, H, W)``."""
        image = image if image.dtype == torch.float64 else image.float()
        if (self.mean.device, self.mean.dtype) != (image.device, image.dtype):
            self.to(image.device, image.dtype)
        image = resized(image, self.size).expand(-1, 3, -1, -1)
        # vector_norm has a gradient where all channels are 0; the square root of a sum of squares has none.
        return [
            activation / (torch.linalg.vector_norm(activation, dim=1, keepdim=True) + 1e-10)
            for activation in self.trunk((image - self.mean) / self.deviation)
        ]

    def compare(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """The distance ``(B,)`` of what ``features`` gave."""
        total = torch.zeros(len(first[0]), dtype=first[0].dtype, device=first[0].device)
        for tap, (a, b) in enumerate(zip(first, second, strict=True)):
            total = total + ((a - b).square() * getattr(self, f"head{tap}")).sum(dim=1).mean(dim=(1, 2))
        return total

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.compare(self.features(x), self.features(y))

    def check_size(self, shape: tuple[int, ...], what: str, remedy: str) -> None:
        """Refuse pictures ``(C, H, W)`` that are too small for the network.

        Args:
            what: is compared, for the message.
            remedy: the option that sets the size.

        Raises:
            PerceptualError: naming both sizes, and the remedy.
        """
        minimum = NETS[self.name].minimum
        if min(shape[1:]) < minimum and self.size is None:
            raise PerceptualError(
                f"{what} {shape[1]}×{shape[2]} pixels, and {self.name} needs at least {_square(minimum)}; resize them "
                f"first by {remedy}={max(64, minimum)}, say"
            )


def resized(image: Tensor, size: int | None) -> Tensor:
    """``image`` with a smaller side of ``size``, bilinear and antialiased; the same one if it has it."""
    height, width = image.shape[-2:]
    if size is None or min(height, width) == size:
        return image
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    return F.interpolate(image, shape, mode="bilinear", align_corners=False, antialias=True)


class PerceptualFit:
    """A perceptual distance of A(x) and y as a data fit, where y is a picture.

    Entries of weight 0 were not observed, and what y holds there has no say. With ``masked="mask"`` they are 0 (grey)
    in both pictures. With ``masked="fill"``, y has the prediction's own values there, so that the network sees a whole
    picture and no edge of a hole; and the gradient goes through them too: only then is it that of the number which is
    minimised and by which iterates are ranked.

    Not a module, so that a ``LightningModule`` that holds it doesn't take the network into its checkpoints.

    Args:
        net: the distance.
        masked: ``fill`` or ``mask``.
    """

    def __init__(self, net: PerceptualNet, masked: str = "fill") -> None:
        if masked not in MASKED:
            raise PerceptualError(f"perceptual.masked={masked}: expected one of {', '.join(MASKED)}")
        self.net, self.masked = net, masked
        self._measurement: Measurement | None = None  # the latest
        self._whole = True  # whether all of it was observed
        self._target: list[Tensor] | None = None

    @classmethod
    def from_config(cls, name: str, trunk: str | None, kind: str, masked: str, size: int | None) -> PerceptualFit:
        """Build it from the fields of ``conf/perceptual/*.yaml``.

        Raises:
            PerceptualError: naming the field, its value and the remedy.
        """
        return cls(PerceptualNet.open(name, trunk, kind, size), masked)

    def check(self, operator: ForwardOperator, field: str) -> None:
        """Refuse an operator whose y the network can't look at.

        Args:
            field: that gives the term its weight, for the message.

        Raises:
            PerceptualError: naming the field, and the remedy.
        """
        name, shape = type(operator).__name__, tuple(operator.output_shape)
        if not operator.measures_pictures or len(shape) != 3 or shape[0] not in (1, 3):
            raise PerceptualError(
                f"{field}.data_fit.perceptual: what {name} measures is no picture, which {self.net.name} could look "
                f"at; use {field}.data_fit.perceptual=0, or another task"
            )
        self.net.check_size(shape, f"perceptual={self.net.name}: {name} measures pictures of", "perceptual.size")

    def __call__(self, prediction: Tensor, measurement: Measurement) -> Tensor:
        if measurement is not self._measurement:
            self._measurement, self._target = measurement, None
            self._whole = bool((measurement.weight > 0).all())
        y, observed = measurement.y.to(prediction.dtype), measurement.weight > 0
        if not self._whole and self.masked == "fill":
            return self.net(prediction, torch.where(observed, y, prediction))
        zero = torch.zeros((), dtype=prediction.dtype, device=prediction.device)
        if self._target is None:  # y looks the same at every step
            with torch.no_grad():
                self._target = self.net.features(torch.where(observed, y, zero))
        x = prediction if self._whole else torch.where(observed, prediction, zero)
        return self.net.compare(self.net.features(x), self._target)


def _square(side: int) -> str:
    return f"{side}×{side}"
