"""The GPU programs on a machine without a GPU: every launch of the .cu files, run by native/simulated_grid.cpp.

What this can show: that the programs compute what the references do, and that no result depends on the order in which
the threads of a phase, or the blocks of a launch, run. What it cannot: that the GPU's compiler and barriers do as they
should; for that there are the tests marked ``gpu``.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ilo_lightning.ops import toolchain, use
from ilo_lightning.ops.bias_act import reference as bias_act_reference
from ilo_lightning.ops.l1_ball import l1_ball
from ilo_lightning.ops.upfirdn2d import reference as upfirdn2d_reference

NATIVE = Path(__file__).with_name("native")
FLAGS = ["-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 3}  # ilo::Storage
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """``grid(name, dtype, *arguments, seed)`` calls ilo_<name> on the simulated grid."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the PATH")
    path = tmp_path_factory.mktemp("grid") / "grid.so"
    sources = [NATIVE / "simulated_grid.cpp", NATIVE / "interface.cpp"]
    subprocess.run(["g++", "-O1", *FLAGS, f"-I{toolchain.source_folder()}", *sources, "-o", path], check=True)
    library = ctypes.CDLL(str(path))

    def call(name: str, dtype: torch.dtype, *arguments: object, seed: int) -> None:
        def plain(value: object) -> object:
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous()
                return ctypes.c_void_p(value.data_ptr())
            if isinstance(value, float):
                return ctypes.c_double(value)
            return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)  # type: ignore[arg-type]

        function = getattr(library, f"ilo_{name}")
        function.restype = None
        function(ctypes.c_int(STORAGE[dtype]), *map(plain, arguments), ctypes.c_uint64(seed))

    return call


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same_for_every_order(compute: Callable[[int], list[torch.Tensor]]) -> list[torch.Tensor]:
    """The results, after a look at whether they are the same to the bit for several orders of the threads."""
    first, *others = (compute(seed) for seed in SEEDS)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))
    return first


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize(("outer", "channels", "inner"), [(2, 3, 35), (40, 13, 1), (1, 1, 1), (1, 700, 300)])
def test_bias_act(grid, dtype, clamp, outer, channels, inner):
    x, bias = randn(outer, channels, inner, dtype=dtype), randn(channels, seed=1, dtype=dtype)
    limit = np.nan if clamp is None else clamp

    def forward(seed):
        y = torch.full_like(x, np.nan)
        grid("bias_act", dtype, x, bias, y, x.numel(), channels, inner, 0.2, 1.5, limit, seed=seed)
        return [y]

    (y,) = same_for_every_order(forward)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaf = x.to(wide).requires_grad_()
    expected = bias_act_reference(leaf, bias.to(wide), 0.2, 1.5, clamp, 1)
    torch.testing.assert_close(y, expected.detach().to(dtype), rtol=TOLERANCE[dtype], atol=0)

    grad = randn(outer, channels, inner, seed=2, dtype=dtype)

    def backward(seed):
        out = torch.full_like(x, np.nan)
        grid("bias_act_backward", dtype, grad, y, out, x.numel(), 0.2, 1.5, limit, seed=seed)
        return [out]

    (found,) = same_for_every_order(backward)
    expected.backward(grad.to(wide))
    if clamp is not None:  # what rounds to the limit counts as being at it
        leaf.grad[(y == y.new_tensor(clamp)) | (y == -y.new_tensor(clamp))] = 0
    torch.testing.assert_close(found, leaf.grad.to(dtype), rtol=TOLERANCE[dtype], atol=0)


def upfirdn2d_cases(count: int, seed: int):
    rng = random.Random(seed)
    while count:
        shape = tuple(rng.choice(sizes) for sizes in ((1, 2), (1, 3, 40), (1, 7, 33), (5, 8, 90)))
        up, down, length = rng.randint(1, 4), rng.randint(1, 4), rng.choice((1, 2, 4, 5, 9))
        padding = [rng.randint(-2, 6) for _ in range(4)]
        if min(shape[2] * up + sum(padding[:2]), shape[3] * up + sum(padding[2:])) >= length:
            count -= 1
            yield shape, [rng.uniform(-1, 1) for _ in range(length)], up, down, padding


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("channels_last", [False, True])
def test_upfirdn2d(grid, dtype, channels_last):
    cases = [*upfirdn2d_cases(12, seed=channels_last), ((1, 2, 30, 70), randn(64).tolist(), 1, 3, [40, 9, 64, 3])]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for shape, taps, up, down, padding in cases:
        x = randn(*shape, dtype=dtype)
        expected = upfirdn2d_reference(x.to(wide), taps, up, down, padding, 1.5)
        batch, channels, height, width = shape
        outer, inner = (batch, channels) if channels_last else (batch * channels, 1)
        memory = x.permute(0, 2, 3, 1).contiguous() if channels_last else x
        sizes = [outer, inner, height, expected.shape[2], width, expected.shape[3], up, down, padding[0], padding[2]]
        numbers = torch.tensor(sizes), torch.tensor(taps, dtype=torch.float64)

        def run(seed, memory=memory, numbers=numbers, like=expected):
            y = torch.full((like.numel(),), np.nan, dtype=dtype)
            grid("upfirdn2d", dtype, memory, y, *numbers, len(numbers[1]), 1.5, seed=seed)
            return [y]

        (y,) = same_for_every_order(run)
        if channels_last:
            expected = expected.permute(0, 2, 3, 1)
        scale = max(1.0, float(np.abs(taps).sum()) ** 2)
        torch.testing.assert_close(y, expected.flatten().to(dtype), rtol=0, atol=TOLERANCE[dtype] * scale)


L1_CASES = [
    ("usual", lambda: (randn(3, 10_000), [10.0, 300.0, 1e6])),
    ("one coordinate", lambda: (randn(4, 1), [0.0, 0.1, 9.0, 1e-30])),
    ("many images", lambda: (randn(300, 9), [1.0] * 300)),
    ("two blocks", lambda: (randn(2, 4097), [5.0, 4000.0])),
    ("radius far below", lambda: (torch.full((1, 64), 1e30), [1e-30])),
    ("widely spread", lambda: (torch.logspace(-30, 30, 61)[None], [1.0])),
    (
        "not finite",
        lambda: (
            randn(3, 10).index_put(
                (torch.tensor([0, 1]), torch.tensor([3, 4])), torch.tensor([np.nan, np.inf], dtype=torch.float64)
            ),
            [1.0, 1.0, 1.0],
        ),
    ),
    ("no constraint", lambda: (randn(2, 10), [np.inf, 0.0])),
]


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("case", [make for _, make in L1_CASES], ids=[name for name, _ in L1_CASES])
def test_l1_ball(grid, dtype, centred, case):
    x, radii = case()
    x, radius = x.to(dtype), torch.tensor(radii, dtype=torch.float64)
    center = 0.1 * randn(*x.shape, seed=1).to(dtype) if centred else None
    images, n = x.shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.to(wide).requires_grad_(), radius.clone().requires_grad_()]
    with use("torch"):
        expected = l1_ball(*leaves, None if center is None else center.to(wide))

    def forward(seed):
        z, threshold = torch.full_like(x, np.nan), torch.full((images, 2), np.nan, dtype=torch.float64)
        grid("l1_ball", dtype, x, center, radius, threshold, z, images, n, seed=seed)
        return [z, threshold]

    z, threshold = same_for_every_order(forward)
    torch.testing.assert_close(
        z, expected.detach().to(dtype), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True
    )

    v, rho = randn(images, n, seed=2, dtype=dtype), torch.zeros(images, dtype=torch.float64)

    def derivative(seed):
        out, mean = torch.full_like(x, np.nan), torch.full((images,), np.nan, dtype=torch.float64)
        grid("l1_derivative", dtype, x, center, threshold, v, rho, out, mean, images, n, seed=seed)
        return [out, mean]

    out, mean = same_for_every_order(derivative)
    finite = x.isfinite().all(dim=1)
    by_x, by_radius = torch.autograd.grad(expected, leaves, v.to(wide))
    torch.testing.assert_close(out[finite], by_x[finite].to(dtype), rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    torch.testing.assert_close(mean[finite], by_radius[finite], rtol=1e-3, atol=1e-5)


def every_kernel(folder: Path, name: str, flags: list[str], sources: list[Path]) -> str:
    """What native/every_kernel.cpp prints."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the PATH")
    program = folder / name
    include = f"-I{toolchain.source_folder()}"
    compiler = ["g++", "-std=c++17", *flags, include, NATIVE / "every_kernel.cpp", *sources, "-o", program]
    subprocess.run(compiler, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cpu_sources() -> list[Path]:
    return [path for path in toolchain.sources("cpu") if path.name.endswith("_cpu.cpp")]


@pytest.mark.slow
def test_no_kernel_leaves_its_buffers(tmp_path: Path):
    """All CPU kernels and all GPU programs under the address and undefined-behaviour sanitizers; both find the same."""
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1", "-ffp-contract=off"]
    cpu = every_kernel(tmp_path, "cpu", [*sanitize, "-DILO_SERIAL"], cpu_sources())
    grid = every_kernel(tmp_path, "grid", sanitize, [NATIVE / "simulated_grid.cpp"])
    both = [[line for line in output.splitlines() if not line.startswith("styled")] for output in (cpu, grid)]
    results = [[line.rsplit(" ", 1) for line in lines] for lines in both]
    assert [name for name, _ in results[0]] == [name for name, _ in results[1]]
    numbers = [np.array([float(value) for _, value in result]) for result in results]
    assert len(numbers[0]) > 200
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-4, atol=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(toolchain.processor_flags() == (), reason="this processor has no AVX2")
def test_every_processor_computes_the_same(tmp_path: Path):
    """To the bit, with and without AVX2, and with AVX-512 where it is."""
    flags = [*toolchain.CXX_FLAGS, "-DILO_SERIAL"]
    variants = {"plain": [], "avx2": [*toolchain.AVX2_FLAGS]}
    if "AVX512" in torch.backends.cpu.get_cpu_capability():
        variants["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma"]
    outputs = {name: every_kernel(tmp_path, name, [*flags, *more], cpu_sources()) for name, more in variants.items()}
    assert len(set(outputs.values())) == 1
