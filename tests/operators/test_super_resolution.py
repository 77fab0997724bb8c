"""Super-resolution: agreement with independent implementations, centring, factor 1."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate

from ilo_lightning.operators import SuperResolution

SIZES = [((3, 16, 16), 2), ((1, 24, 40), 4), ((3, 15, 9), 3), ((1, 64, 64), 16), ((2, 35, 21), 7), ((1, 8, 24), 8)]


def picture(shape, dtype=torch.float64):
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


@pytest.mark.parametrize(("shape", "factor"), SIZES)
def test_bicubic_agrees_with_torch(shape, factor):
    x = picture(shape)
    operator = SuperResolution(shape, factor)
    expected = interpolate(x, size=operator.output_shape[1:], mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(operator(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "resample"), [("bicubic", Image.Resampling.BICUBIC), ("area", Image.Resampling.BOX)]
)
@pytest.mark.parametrize(("shape", "factor"), SIZES)
def test_agrees_with_pillow(shape, factor, kernel, resample):
    x = picture(shape, torch.float32)
    y = SuperResolution(shape, factor, kernel)(x)
    size = (shape[2] // factor, shape[1] // factor)
    for channel, reduced in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
        expected = np.asarray(Image.fromarray(channel.numpy()).resize(size, resample))
        np.testing.assert_allclose(reduced.numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("shape", "factor"), SIZES)
def test_area_is_the_mean_over_blocks(shape, factor):
    x = picture(shape)
    torch.testing.assert_close(SuperResolution(shape, factor, "area")(x), avg_pool2d(x, factor), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
def test_factor_1_is_the_identity(kernel):
    operator = SuperResolution((3, 7, 10), 1, kernel)
    x = picture((3, 7, 10), torch.float32)
    assert torch.equal(operator(x), x)
    assert torch.equal(operator.adjoint(x), x)
    assert torch.equal(operator._rows, torch.eye(7))  # so are the matrices that are skipped


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
@pytest.mark.parametrize(("shape", "factor"), SIZES)
def test_symmetric_images_stay_symmetric(shape, factor, kernel):
    x = picture(shape)
    x = x + x.flip(2) + x.flip(3) + x.flip(2, 3)
    y = SuperResolution(shape, factor, kernel)(x)
    torch.testing.assert_close(y, y.flip(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(y, y.flip(3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_a_ramp_is_sampled_at_the_centres(factor):
    """A linear ramp comes out as its value in the middle of each block (away from the borders)."""
    width = 12 * factor
    ramp = torch.arange(width, dtype=torch.float64).expand(1, 1, factor, width)
    y = SuperResolution((1, factor, width), factor)(ramp)[0, 0, 0]
    centres = factor * (torch.arange(12, dtype=torch.float64) + 0.5) - 0.5
    torch.testing.assert_close(y[2:-2], centres[2:-2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
@pytest.mark.parametrize(("shape", "factor"), SIZES)
def test_a_flat_image_stays_flat(shape, factor, kernel):
    y = SuperResolution(shape, factor, kernel)(torch.full((1, *shape), 0.7, dtype=torch.float64))
    torch.testing.assert_close(y, torch.full_like(y, 0.7), rtol=0, atol=1e-6)


def test_picture_is_the_low_resolution_image():
    operator = SuperResolution((3, 16, 8), 4)
    y = operator(picture((3, 16, 8)))
    assert y.shape == (2, 3, 4, 2)
    assert torch.equal(operator.picture(y), y)


@pytest.mark.parametrize(
    ("field", "value"),
    [("factor", value) for value in (0, -2, 65, 2.0, 2.5, float("nan"), True, "4", None, 3)]
    + [("kernel", value) for value in ("lanczos", "Bicubic", None, 3)],
)
def test_value_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"task\.{field}=") as refusal:
        SuperResolution((3, 64, 32), **{field: value})
    assert repr(value) in str(refusal.value)


def test_factor_that_does_not_divide_says_which_do():
    with pytest.raises(ValueError, match=r"36x24 pixels; use one of 1, 2, 3, 4, 6, 12,"):
        SuperResolution((3, 36, 24), 8)
    with pytest.raises(ValueError, match=r"task\.factor=2"):  # divides the height only
        SuperResolution((3, 4, 9), 2)
