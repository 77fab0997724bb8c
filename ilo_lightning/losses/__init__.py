"""What disagrees with the measurement, and by how much."""

from .data_fit import DataFit, DeadZone, TargetFit, WeightedFit, cross_entropy, data_fits, mean_squared_error
from .penalties import deviation
from .perceptual import PerceptualFit, PerceptualNet, check_size
from .trunks import NETS, PerceptualError

__all__ = [
    "NETS",
    "DataFit",
    "DeadZone",
    "PerceptualError",
    "PerceptualFit",
    "PerceptualNet",
    "TargetFit",
    "WeightedFit",
    "check_size",
    "cross_entropy",
    "data_fits",
    "deviation",
    "mean_squared_error",
]
