"""``data.shard=i/n``: which batches of a configuration are this job's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th batch, beginning with number ``index`` (from 1). ``Shard()`` is all of them.

    Whole batches, since with float32 the batch an image is in changes the last bits of its result.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"data.shard={self}: expected i/n with 1 ≤ i ≤ n")

    @classmethod
    def parse(cls, text: object) -> Shard:
        """``"2/4"``, or None for everything.

        Raises:
            ValueError: naming what was expected.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(text))
        if not match:
            raise ValueError(f"data.shard={text}: expected i/n with 1 ≤ i ≤ n, such as 1/4, or null for all images")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """For file names: empty for everything, else ``-2-of-4``."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"

    def holds(self, batch: int) -> bool:
        """Whether batch number ``batch`` (from 0) is in it."""
        return batch % self.count == self.index - 1

    def overlaps(self, other: Shard) -> bool:
        """Whether some batch may be in both (Chinese remainder theorem)."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0
