"""Forward models: what was measured of an image. ``y = A(x) + noise``, images in [-1, 1]."""

from ilo_lightning.operators.base import ForwardOperator, LinearOperator, Measurement, measure
from ilo_lightning.operators.circulant import PartialCirculant
from ilo_lightning.operators.gaussian import GaussianCompressedSensing
from ilo_lightning.operators.identity import Denoising
from ilo_lightning.operators.mask import Inpainting
from ilo_lightning.operators.noise import GaussianNoise, NoiseModel, PoissonNoise
from ilo_lightning.operators.resize import SuperResolution

__all__ = [
    "Denoising",
    "ForwardOperator",
    "GaussianCompressedSensing",
    "GaussianNoise",
    "Inpainting",
    "LinearOperator",
    "Measurement",
    "NoiseModel",
    "PartialCirculant",
    "PoissonNoise",
    "SuperResolution",
    "measure",
]
