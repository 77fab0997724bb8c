"""What disagrees with the measurement, and by how much."""

from .data_fit import DeadZone, Term, WeightedFit, mean_squared_error
from .perceptual import PerceptualFit, PerceptualNet
from .trunks import NETS, PerceptualError

__all__ = [
    "NETS",
    "DeadZone",
    "PerceptualError",
    "PerceptualFit",
    "PerceptualNet",
    "Term",
    "WeightedFit",
    "mean_squared_error",
]
