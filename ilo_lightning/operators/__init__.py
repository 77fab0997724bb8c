"""Forward models: what was measured of an image. ``y = A(x) + noise``, images in [-1, 1]."""

from ilo_lightning.operators.base import ForwardOperator, LinearOperator, Measurement, measure
from ilo_lightning.operators.blur import Blur, GaussianBlur, MotionBlur
from ilo_lightning.operators.circulant import PartialCirculant
from ilo_lightning.operators.classifier import Classifier
from ilo_lightning.operators.colour import Clipping, Greyscale
from ilo_lightning.operators.composition import Composition, LinearComposition, compose
from ilo_lightning.operators.gaussian import GaussianCompressedSensing
from ilo_lightning.operators.identity import Denoising
from ilo_lightning.operators.jpeg import JPEG
from ilo_lightning.operators.mask import Inpainting
from ilo_lightning.operators.noise import GaussianNoise, NoiseModel, PoissonNoise
from ilo_lightning.operators.phase import PhaseRetrieval
from ilo_lightning.operators.resize import SuperResolution

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
