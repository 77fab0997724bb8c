"""Operators for jobs that don't end well."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from ilo_lightning.operators import Denoising


class Deadly(Denoising):
    """Kills its process in the first optimisation step, as the kernel does when memory runs out."""

    calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:  # after the rehearsal and the measurement
            os.kill(os.getpid(), 9)
        return super().forward(image)


class Reads(Denoising):
    """Reads the file ``$ILO_TEST_FILE`` in every optimisation step, whether it is there or not."""

    calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:  # after the rehearsal and the measurement
            Path(os.environ["ILO_TEST_FILE"]).read_bytes()
        return super().forward(image)
