"""Mixed precision: whether it is on, and off for what needs all of float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_mixed(device: torch.device) -> bool:
    """Whether autocast is on for a device; some have none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within it numbers are computed in the type that they have."""
    return torch.autocast(device.type, enabled=False) if is_mixed(device) else nullcontext()
