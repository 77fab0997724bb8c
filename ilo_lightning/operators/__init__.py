"""Forward models: what was measured of an image. ``y = A(x) + noise``, images in [-1, 1]."""

from .base import ForwardOperator, LinearOperator, Measurement, measure
from .blur import Blur, GaussianBlur, MotionBlur
from .circulant import PartialCirculant
from .classifier import Classifier
from .colour import Clipping, Greyscale
from .composition import Composition, LinearComposition, compose
from .gaussian import GaussianCompressedSensing
from .identity import Denoising
from .jpeg import JPEG
from .mask import Inpainting
from .noise import GaussianNoise, NoiseModel, PoissonNoise
from .phase import PhaseRetrieval
from .resize import SuperResolution

__all__ = [
    "JPEG",
    "Blur",
    "Classifier",
    "Clipping",
    "Composition",
    "Denoising",
    "ForwardOperator",
    "GaussianBlur",
    "GaussianCompressedSensing",
    "GaussianNoise",
    "Greyscale",
    "Inpainting",
    "LinearComposition",
    "LinearOperator",
    "Measurement",
    "MotionBlur",
    "NoiseModel",
    "PartialCirculant",
    "PhaseRetrieval",
    "PoissonNoise",
    "SuperResolution",
    "compose",
    "measure",
]
