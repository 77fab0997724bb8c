"""What an optimisation step of StyleGAN2 costs, against the usual way to compute it and against the machine's limit.

    python benchmarks/step_time.py --json step_time.json

A step is forward + backward to every tensor of the latent point, float32, random weights. Cases
``<network>/batch<N>/layer<p>``: ``faces64`` is the embedded generator; 64, 256 and 1024 are networks of that resolution
with the channels of config F (512 up to 64², then 256, 128, 64, 32). The reference is ``usual_stylegan2.py`` with the
same weights, which must give the same image; reference, ours and a large matrix product take turns, so that ratios are
of neighbours in time, and each row is a median over the rounds. Rows:

- ``speedup_vs_reference`` (layer 0): seconds of the reference over ours.
- ``seconds_per_step``; at layer 0 also ``seconds_per_step_reference``, ``…_recompute``, with
  ``generator.recompute=true``, and for several images ``…_decode_1``, with ``data.decode_batch_size=1``.
- ``fraction_of_gemm``: floating-point operations a second that a direct evaluation of the convolutions would need, for
  outputs and gradients of inputs, over those of a product of float32 matrices of 4096². Can pass 1: Winograd's
  convolution needs fewer.
- ``image_error`` (layer 0): largest difference between the two images, over the image's standard deviation.
- ``peak_memory_bytes``, at layer 0 also of the others: largest resident memory of a process that does nothing else,
  PyTorch (about 0.4 GB) and weights included.

The rows of ``l1_projection.py`` follow, where it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ilo_lightning.allocation import reuse_memory

reuse_memory()  # as run.py does, before torch allocates

import torch  # noqa: E402
from common import Row, publish, row  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from usual_stylegan2 import UsualStyleGAN2  # noqa: E402

from ilo_lightning.generators.base import LatentPoint, LayeredGenerator, decode  # noqa: E402
from ilo_lightning.generators.checkpoints import load_generator  # noqa: E402
from ilo_lightning.generators.stylegan2 import StyleGAN2  # noqa: E402

NETWORKS = ("faces64", "64", "256", "1024")
CONFIG_F = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
GEMM = 4096
AT_LEAST = 0.2
"""Seconds that one measurement lasts; short steps are repeated."""


@dataclass(frozen=True)
class Case:
    """A network, and how many images it makes at once."""

    network: str
    batch: int

    def name(self, layer: int) -> str:
        return f"{self.network}/batch{self.batch}/layer{layer}"


def build(network: str) -> StyleGAN2:
    """A frozen network, with noise and biases that matter."""
    if network == "faces64":
        return load_generator("pkg://ilo_lightning.generators/weights/faces64.safetensors")
    torch.manual_seed(0)
    channels = [count for side, count in CONFIG_F.items() if side <= int(network)]
    generator = StyleGAN2(int(network), channels).to(memory_format=torch.channels_last)
    for name, parameter in generator.named_parameters():
        if name.endswith((".noise_strength", "conv.bias")):
            nn.init.normal_(parameter, std=0.1)
    return generator.eval().requires_grad_(False)


def start(generator: LayeredGenerator, batch: int, layer: int) -> LatentPoint:
    """A random point at ``layer``, all of it free."""
    with torch.no_grad():
        point = generator.sample([torch.Generator().manual_seed(i) for i in range(batch)], "w_plus")
        point = generator.advance(point, layer)
    return point.map(lambda tensor: tensor.detach().requires_grad_())


def step(network: Callable[[LatentPoint], Tensor], point: LatentPoint) -> None:
    """Forward and backward, as an optimiser that resets the gradients of the point alone would ask for."""
    for tensor in point.tensors.values():
        tensor.grad = None
    network(point).square().mean().backward()


def operations(generator: StyleGAN2, batch: int, layer: int) -> float:
    """Of the 3×3 and 1×1 convolutions from ``layer`` on, forward and for the gradients of their inputs."""
    multiplications = 0
    for index in range(layer, generator.num_layers):
        pixels = 16 * 4**index
        outputs = generator.channels[index]
        if index:
            multiplications += 9 * generator.channels[index - 1] * outputs * pixels // 4
        multiplications += (9 * outputs + generator.image_shape[0]) * outputs * pixels
    return 2 * 2 * multiplications * batch


def seconds(function: Callable[[], object]) -> float:
    """Of one call, the mean over as many as last ``AT_LEAST``."""
    calls, begin = 0, time.perf_counter()
    while True:
        function()
        calls += 1
        elapsed = time.perf_counter() - begin
        if elapsed >= AT_LEAST:
            return elapsed / calls


def measure_times(case: Case, rounds: int) -> list[Row]:
    """Times and ratios of one network and batch, at every layer."""
    generator = build(case.network)
    points = [start(generator, case.batch, layer) for layer in range(generator.num_layers)]
    usual = UsualStyleGAN2(generator)
    with torch.no_grad():
        image, expected = generator(points[0]), usual(points[0])
        error = float((image - expected).abs().max() / expected.std())
    if not error < 1e-4:
        raise SystemExit(f"{case.name(0)}: the two images differ by {error:.2g} of their standard deviation")
    a, b, product = (torch.randn(GEMM, GEMM) for _ in range(3))

    def recomputing() -> None:
        generator.recompute = True
        step(generator, points[0])
        generator.recompute = False

    tasks: dict[str, Callable[[], object]] = {  # neighbours in time are compared
        "reference": lambda: step(usual, points[0]),
        **{f"layer{layer}": lambda point=point: step(generator, point) for layer, point in enumerate(points)},
        "recompute": recomputing,
        **({"decode_1": lambda: step(lambda point: decode(generator, point, 1), points[0])} if case.batch > 1 else {}),
        "gemm": lambda: torch.mm(a, b, out=product),
    }
    for task in tasks.values():  # warm up
        task()
    times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(seconds(task))

    def ratio(above: Iterable[float], below: Iterable[float]) -> float:
        return statistics.median(x / y for x, y in zip(above, below, strict=True))

    rows = [
        row(case.name(0), "speedup_vs_reference", ratio(times["reference"], times["layer0"]), "1"),
        row(case.name(0), "image_error", error, "1"),
        *(
            row(case.name(0), f"seconds_per_step_{name}", statistics.median(times[name]), "s")
            for name in ("reference", "recompute", "decode_1")
            if name in times
        ),
    ]
    for layer in range(generator.num_layers):
        spent = times[f"layer{layer}"]
        work = operations(generator, case.batch, layer) / (2 * GEMM**3)  # in matrix products
        rows.append(row(case.name(layer), "seconds_per_step", statistics.median(spent), "s"))
        rows.append(row(case.name(layer), "fraction_of_gemm", work * ratio(times["gemm"], spent), "1"))
    return rows


def largest_resident() -> int:
    """Peak of this process's resident memory so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_memory(case: Case, kind: str) -> list[tuple[int, int]]:
    """(layer, peak of this process's resident memory), deepest layer first: the more is left of the network, the more
    memory."""
    generator = build(case.network)
    generator.recompute = kind == "recompute"
    network = UsualStyleGAN2(generator) if kind == "reference" else generator
    if kind == "decode_1":
        network = lambda point: decode(generator, point, 1)  # noqa: E731
    peaks = []
    for layer in reversed(range(generator.num_layers)) if kind == "ours" else [0]:
        point = start(generator, case.batch, layer)
        for _ in range(3):
            step(network, point)
        peaks.append((layer, largest_resident()))
    return peaks


def measure_memory(case: Case) -> list[Row]:
    """Each kind in a process of its own."""
    rows = []
    for kind in ("ours", "reference", "recompute", *(["decode_1"] if case.batch > 1 else [])):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks = pool.submit(peak_memory, case, kind).result()
        suffix = "" if kind == "ours" else f"_{kind}"
        rows += [row(case.name(layer), f"peak_memory_bytes{suffix}", peak, "B") for layer, peak in peaks]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, help="1 and 4 unless told, at 1024² 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("times", "memory"), help="measure only these")
    parser.add_argument("--no-l1", action="store_true", help="without the rows of l1_projection.py")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for network in arguments.networks:
        for batch in arguments.batches or ([1] if network == "1024" else [1, 4]):
            case = Case(network, batch)
            print(f"{network}, batch {batch}; load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
            rows += [] if arguments.only == "memory" else measure_times(case, arguments.rounds)
            rows += [] if arguments.only == "times" else measure_memory(case)
    if not arguments.no_l1 and importlib.util.find_spec("l1_projection"):
        from l1_projection import rows as l1_rows  # pyright: ignore[reportMissingImports]

        rows += l1_rows()
    publish("step_time", rows, arguments.json)


if __name__ == "__main__":
    main()
