"""An operator for jobs that are to be interrupted: its steps take long as long as a file exists."""

from __future__ import annotations

import os
import time

from torch import Tensor

from ilo_lightning.operators import Denoising


class Slow(Denoising):
    """The identity; ``$ILO_TEST_SLOW`` names the file."""

    def forward(self, image: Tensor) -> Tensor:
        if os.path.exists(os.environ.get("ILO_TEST_SLOW", "/nowhere")):
            time.sleep(0.25)
        return super().forward(image)
