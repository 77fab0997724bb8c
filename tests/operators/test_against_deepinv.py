"""Every operator and every noise against deepinv's, which were written by others.

SuperResolution is compared with Pillow and torch (test_super_resolution.py) and PartialCirculant with scipy
(test_partial_circulant.py) as well, since deepinv's closest relatives have other conventions.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

deepinv = pytest.importorskip("deepinv", reason="deepinv is in the test extra: pip install -e '.[test]'")

from ilo_lightning import operators  # noqa: E402
from ilo_lightning.operators import (  # noqa: E402
    Denoising,
    GaussianCompressedSensing,
    GaussianNoise,
    Inpainting,
    LinearOperator,
    PartialCirculant,
    PoissonNoise,
    SuperResolution,
)

SHAPE = (3, 16, 24)
N = 3 * 16 * 24


def pair(operator: LinearOperator) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, *operator.input_shape, generator=rng, dtype=torch.float64) * 2 - 1
    return x, torch.randn(2, *operator.output_shape, generator=rng, dtype=torch.float64)


def denoising() -> tuple[LinearOperator, object]:
    return Denoising(SHAPE), deepinv.physics.Denoising(deepinv.physics.ZeroNoise())


def inpainting() -> tuple[LinearOperator, object]:
    ours = Inpainting(SHAPE, fraction=0.1, seed=3)
    return ours, deepinv.physics.Inpainting(SHAPE, mask=ours.weight[0].double().expand(SHAPE))


def super_resolution() -> tuple[LinearOperator, object]:
    """The mean over blocks is a periodic blur by a box, of which every second pixel is kept."""
    box = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    return SuperResolution(SHAPE, factor=2, kernel="area"), deepinv.physics.Downsampling(
        SHAPE, filter=box, factor=2, padding="valid"
    )


def gaussian() -> tuple[LinearOperator, object]:
    """deepinv's matrix is another draw of the same distribution: with our numbers in it, all else must agree."""
    ours = GaussianCompressedSensing(SHAPE, fraction=0.1, seed=4)
    (m,) = ours.output_shape
    theirs = deepinv.physics.CompressedSensing(m, SHAPE, dtype=torch.float64, rng=torch.Generator().manual_seed(0))
    a = ours(torch.eye(N, dtype=torch.float64).view(N, *SHAPE)).T
    assert theirs._A.shape == a.shape
    assert abs(float(theirs._A.var() / a.var()) - 1) < 0.03  # normalised alike
    theirs._A.copy_(a), theirs._A_adjoint.copy_(a.T)
    return ours, theirs


def circulant() -> tuple[LinearOperator, object]:
    """Random signs, a circular convolution (deepinv's blur of a 1×n picture), the kept entries, a scale."""
    ours = PartialCirculant((1, 1, 12), fraction=0.5, seed=5)
    g, signs, rows = (ours.get_buffer(name) for name in ("_filter", "_signs", "_rows"))
    blur = deepinv.physics.BlurFFT((1, 1, 12), filter=g.double().view(1, 1, 1, 12))
    # BlurFFT centres its filter: it is ahead by half its length.
    shift = 12 // 2

    class Chain:
        def A(self, x: Tensor) -> Tensor:
            blurred = blur.A(x * signs).flatten(1).roll(shift, dims=1)
            return 2**0.5 * blurred[:, rows]

        def A_adjoint(self, y: Tensor) -> Tensor:
            full = torch.zeros(len(y), 12, dtype=y.dtype).index_copy(1, rows, y).roll(-shift, dims=1)
            return 2**0.5 * blur.A_adjoint(full.view(-1, 1, 1, 12)) * signs

    return ours, Chain()


AGAINST = {
    "Denoising": denoising,
    "Inpainting": inpainting,
    "SuperResolution": super_resolution,
    "GaussianCompressedSensing": gaussian,
    "PartialCirculant": circulant,
}


def test_none_is_left_out():
    ours = {
        name
        for name, kind in vars(operators).items()
        if inspect.isclass(kind) and issubclass(kind, operators.ForwardOperator) and not inspect.isabstract(kind)
    }
    elsewhere = {"Classifier", "Blur", "GaussianBlur", "MotionBlur", "Greyscale", "Clipping", "JPEG", "PhaseRetrieval"}
    compositions = {"Composition", "LinearComposition"}
    assert ours == {*AGAINST, *elsewhere, *compositions}, (
        "test_more_operators.py and test_classifier.py have the others"
    )


@pytest.mark.parametrize("name", AGAINST)
def test_operator_and_adjoint_agree(name: str):
    ours, theirs = AGAINST[name]()
    x, y = pair(ours)
    torch.testing.assert_close(ours(x), theirs.A(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.adjoint(y), theirs.A_adjoint(y), rtol=1e-6, atol=1e-6)


def test_poisson_noise_agrees():
    """On intensities (y + 1) / 2, with the same random numbers, photon by photon."""
    y = torch.rand(1, *SHAPE, dtype=torch.float64) * 2 - 1
    theirs = deepinv.physics.PoissonNoise(gain=1 / 20, rng=torch.Generator().manual_seed(7)).to(torch.float64)
    ours = PoissonNoise(20)(y, [torch.Generator().manual_seed(7)])
    torch.testing.assert_close(ours, 2 * theirs((y + 1) / 2) - 1, rtol=0, atol=1e-6)


def test_gaussian_noise_agrees():
    y = torch.zeros(1, *SHAPE, dtype=torch.float64)
    theirs = deepinv.physics.GaussianNoise(sigma=0.3, rng=torch.Generator().manual_seed(7))
    ours = GaussianNoise(0.3)(y, [torch.Generator().manual_seed(7)])
    torch.testing.assert_close(ours, theirs(y), rtol=0, atol=1e-6)
