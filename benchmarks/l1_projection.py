"""What the projection onto l1 balls costs, against the algorithm that sorts.

    python benchmarks/l1_projection.py --json l1_projection.json

One image of so many coordinates, float32, projected from a point at a distance onto a ball around another, of a tenth
of that distance. The reference is figure 1 of Duchi et al. 2008 in torch, as everybody writes it: sort, cumulative sum,
last index at which the threshold is below the value. They alternate, on the same threads. Rows per case
``<coordinates>``: ``l1_speedup_vs_sort``, the ratio of the medians; ``l1_speedup_vs_sort_torch``, the same without the
compiled kernel; ``l1_seconds``, ``l1_seconds_sort``, ``l1_seconds_torch``, the medians; ``l1_kernel``, 1 if the first
is by a compiled kernel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import Row, publish, row
from torch import Tensor

from ilo_lightning.ops import use
from ilo_lightning.ops.implementation import kernels
from ilo_lightning.projections import project_l1_ball

COORDINATES = (131_072, 2_097_152, 16_777_216)


def project_by_sorting(x: Tensor, radius: float, center: Tensor) -> Tensor:
    """Duchi et al. 2008, figure 1, on ``(B, n)``; for points outside the ball."""
    distance = x - center
    u = distance.abs().sort(dim=1, descending=True).values
    excess = u.cumsum(dim=1) - radius
    rank = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
    support = (u * rank > excess).sum(dim=1, keepdim=True)
    tau = excess.gather(1, support - 1) / support
    return center + distance.sign() * (distance.abs() - tau).clamp_min(0)


def rows(coordinates: Sequence[int] = COORDINATES, repeats: int = 5) -> list[Row]:
    """The rows for these numbers of coordinates, each measured ``repeats`` times."""
    found: list[Row] = []
    for n in coordinates:
        rng = torch.Generator().manual_seed(n)
        x, center = (torch.randn(1, n, generator=rng) for _ in range(2))
        radius = 0.1 * (x - center).abs().sum(dtype=torch.float64).item()

        def plain(x: Tensor = x, center: Tensor = center, radius: float = radius) -> Tensor:
            with use("torch"):
                return project_l1_ball(x, radius, center)

        functions: dict[str, Callable[[], Tensor]] = {
            "": lambda x=x, center=center, radius=radius: project_l1_ball(x, radius, center),
            "_sort": lambda x=x, center=center, radius=radius: project_by_sorting(x, radius, center),
            "_torch": plain,
        }
        results = {name: function() for name, function in functions.items()}  # also the warm-up
        for name, result in results.items():
            # cumulative sums of so many float32 numbers are good to some 1e-4
            torch.testing.assert_close(result, results[""], rtol=0, atol=1e-3, msg=f"{name} gives another projection")
        seconds = {name: [] for name in functions}
        for _ in range(repeats):
            for name, function in functions.items():
                start = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        found += [
            row(str(n), "l1_speedup_vs_sort", median["_sort"] / median[""], "1"),
            row(str(n), "l1_speedup_vs_sort_torch", median["_sort"] / median["_torch"], "1"),
            *(row(str(n), f"l1_seconds{name}", value, "s") for name, value in median.items()),
            row(str(n), "l1_kernel", float(kernels(x)), "1"),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, nargs="+", default=list(COORDINATES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    publish("l1_projection", rows(arguments.coordinates, arguments.repeats), arguments.json)


if __name__ == "__main__":
    main()
