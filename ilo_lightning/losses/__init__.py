"""What disagrees with the measurement, and by how much."""

from .data_fit import mean_squared_error

__all__ = ["mean_squared_error"]
