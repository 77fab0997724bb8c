"""Operations with kernels of their own, each beside a reference in plain torch. See docs/ops.md."""

from __future__ import annotations

from .bias_act import bias_act
from .implementation import ImplementationError, prepare, use
from .l1_ball import l1_ball
from .upfirdn2d import upfirdn2d

__all__ = ["ImplementationError", "bias_act", "l1_ball", "prepare", "upfirdn2d", "use"]
