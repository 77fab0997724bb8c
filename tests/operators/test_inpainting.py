"""Inpainting: which pixels are observed, and that the others don't matter."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ilo_lightning.operators import Inpainting

SHAPE = (3, 8, 12)


def observed(operator):
    """The mask as a boolean (H, W)."""
    return operator.weight[0, 0].bool()


def outside(rows, columns, size=SHAPE[1:]):
    mask = torch.ones(size, dtype=torch.bool)
    mask[rows, columns] = False
    return mask


@pytest.mark.parametrize(
    ("box", "hole"),
    [
        (None, (slice(2, 6), slice(3, 9))),
        ([0.25, 0.25, 0.5, 0.5], (slice(2, 6), slice(3, 9))),
        ([0, 0, 1, 1], (slice(0, 1), slice(0, 1))),
        ([2, 3, 6, 9], (slice(2, 8), slice(3, 12))),
        ([0.5, 0.0, 0.5, 1.0], (slice(4, 8), slice(0, 12))),
        ([0.7, 0.9, 0.3, 0.1], (slice(6, 8), slice(11, 12))),
        ([0.1, 0.2, 0.9, 0.8], (slice(1, 8), slice(2, 12))),
    ],
)
def test_box_is_the_hole(box, hole):
    assert torch.equal(observed(Inpainting(SHAPE, box=box)), outside(*hole))


def test_centre_box_is_centred_in_odd_images():
    mask = observed(Inpainting((1, 9, 15)))
    assert not bool(mask.all())
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.flip(1))


def test_box_of_a_hydra_list():
    box = OmegaConf.create({"box": [1, 2, 3, 4]}).box
    assert torch.equal(observed(Inpainting(SHAPE, box=box)), outside(slice(1, 4), slice(2, 6)))


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.3, 0.5, 0.999, 1.0, 1])
def test_fraction_observes_exactly_that_many_pixels(fraction):
    mask = observed(Inpainting((3, 13, 17), fraction=fraction))
    assert int(mask.sum()) == max(1, round(fraction * 13 * 17))


def test_random_pixels_are_spread_over_the_image():
    masks = [observed(Inpainting((1, 6, 6), fraction=0.25, seed=seed)) for seed in range(400)]
    counts = torch.stack(masks).sum(0)
    # Each pixel is Binomial(400, 1/4): standard deviation 8.7, so 5 of them over 36 pixels.
    assert bool(((counts - 100).abs() < 44).all())


def test_more_pixels_contain_the_fewer():
    few, many = (observed(Inpainting(SHAPE, fraction=fraction, seed=2)) for fraction in (0.2, 0.6))
    assert bool((many | ~few).all())


@pytest.mark.parametrize("settings", [{}, {"fraction": 0.3}, {"box": [1, 1, 3, 3]}])
def test_y_is_x_where_observed_and_zero_elsewhere_in_all_channels(settings):
    operator = Inpainting(SHAPE, **settings)
    x = torch.rand(2, *SHAPE) + 1
    y = operator(x)
    mask = observed(operator)
    assert torch.equal(y[..., mask], x[..., mask])
    assert not bool(y[..., ~mask].any())
    assert torch.equal(operator.picture(y), y)


def test_unobserved_pixels_have_no_influence_and_no_gradient():
    operator = Inpainting(SHAPE)
    hole = ~observed(operator)
    x = torch.rand(1, *SHAPE, requires_grad=True)
    other = x.detach().clone()
    other[..., hole] += 7
    assert torch.equal(operator(x), operator(other))
    (gradient,) = torch.autograd.grad(operator(x).square().sum(), x)
    assert not bool(gradient[..., hole].any())
    assert bool(gradient[..., ~hole].any())
    assert not bool(operator.weight.expand(1, *SHAPE)[..., hole].any())


@pytest.fixture
def pattern():
    rng = np.random.default_rng(0)
    return rng.random(SHAPE[1:]) < 0.5


def save(path, image):
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_mask_from_a_png(tmp_path, pattern, mode):
    if mode == "I;16":
        image = Image.fromarray(np.where(pattern, 33000, 200).astype(np.uint16))
    else:
        image = Image.fromarray(np.where(pattern, 255, 0).astype(np.uint8)).convert(mode)
    path = save(tmp_path / "mask.png", image)
    for given in (path, str(path)):
        assert torch.equal(observed(Inpainting(SHAPE, mask=given)), torch.from_numpy(pattern))


def test_mask_threshold_is_128(tmp_path):
    levels = np.zeros(SHAPE[1:], dtype=np.uint8)
    levels[0, :4] = (127, 128, 1, 255)
    mask = observed(Inpainting(SHAPE, mask=save(tmp_path / "mask.png", Image.fromarray(levels))))
    assert mask[0, :4].tolist() == [False, True, False, True]
    assert int(mask.sum()) == 2


def test_mask_from_a_tensor_or_an_array(pattern):
    pattern.setflags(write=False)
    for given in (pattern, torch.tensor(pattern)):
        assert torch.equal(observed(Inpainting(SHAPE, mask=given)), torch.tensor(pattern))


def test_white_mask_observes_everything(tmp_path):
    white = save(tmp_path / "white.png", Image.new("L", (12, 8), 255))
    x = torch.rand(1, *SHAPE)
    assert torch.equal(Inpainting(SHAPE, mask=white)(x), x)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("box", [0, 0, 0.5, 0.5]),
        ("box", [0.0, 0.0, float("nan"), 0.5]),
        ("box", [0.0, 0.0, float("inf"), 0.5]),
        ("box", [True, 0, 2, 2]),
        ("box", ["0", "0", "2", "2"]),
        ("box", [1, 1, 2]),
        ("box", "1234"),
        ("box", 0.5),
        ("box", [-1, 0, 2, 2]),
        ("box", [0, 0, -2, 2]),
        ("box", [0, 0, 9, 2]),
        ("box", [5, 0, 4, 2]),
        ("box", [0, 12, 1, 1]),
        ("box", [0.6, 0.0, 0.5, 0.5]),
        ("box", [0.0, 0.0, 1.5, 0.5]),
        ("box", [-0.5, 0.0, 0.7, 0.7]),
        ("box", [0, 0, 0, 4]),
        ("box", [0.2, 0.2, 0.5, 0.0]),
        ("box", [0.25, 0.25, 0.01, 0.5]),
        ("box", [0.0, 0.0, 1.0, 1.0]),
        ("box", [0, 0, 8, 12]),
        ("fraction", 0),
        ("fraction", 1.5),
        ("fraction", -0.1),
        ("fraction", float("nan")),
        ("fraction", float("inf")),
        ("fraction", True),
        ("fraction", "0.5"),
        ("mask", "nowhere.png"),
    ],
)
def test_value_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"task\.{field}=") as refusal:
        Inpainting(SHAPE, **{field: value})
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(
    "given", [{"box", "mask"}, {"box", "fraction"}, {"mask", "fraction"}, {"box", "mask", "fraction"}]
)
def test_at_most_one_of_box_mask_and_fraction(given):
    settings = {"box": [0, 0, 2, 2], "mask": "mask.png", "fraction": 0.5}
    with pytest.raises(ValueError, match="at most one") as refusal:
        Inpainting(SHAPE, **{name: settings[name] for name in given})
    assert {name for name in settings if f"task.{name}" in str(refusal.value)} == given


def test_mask_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "mask.png", Image.new("L", (8, 12), 255))
    for given in (path, torch.ones(12, 8, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"task\.mask") as refusal:
            Inpainting(SHAPE, mask=given)
        assert "(12, 8)" in str(refusal.value)
        assert "(8, 12)" in str(refusal.value)


@pytest.mark.parametrize(
    ("image", "complaint"),
    [(Image.new("L", (12, 8), 127), "black"), (Image.new("RGBA", (12, 8), (255, 255, 255, 0)), "transparent")],
)
def test_useless_mask_is_refused(tmp_path, image, complaint):
    path = save(tmp_path / "mask.png", image)
    with pytest.raises(ValueError, match=complaint) as refusal:
        Inpainting(SHAPE, mask=path)
    assert f"task.mask={str(path)!r}" in str(refusal.value)


@pytest.mark.parametrize("damage", ["jpeg", "text", "truncated", "flipped"])
def test_unreadable_mask_is_refused(tmp_path, damage):
    path = tmp_path / "mask.png"
    noise = np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG" if damage == "jpeg" else "PNG")
    content = path.read_bytes()
    if damage == "text":
        path.write_text("white")
    elif damage == "truncated":
        path.write_bytes(content[:60])
    elif damage == "flipped":
        path.write_bytes(content[:50] + bytes(255 - b for b in content[50:60]) + content[60:])
    with pytest.raises(ValueError, match=r"task\.mask=") as refusal:
        Inpainting(SHAPE, mask=path)
    assert "PNG" in str(refusal.value) or "can't be read" in str(refusal.value)


@pytest.mark.parametrize("mask", [torch.ones(8, 12), np.ones((8, 12)), 3, True])
def test_mask_that_is_not_boolean_is_refused(mask):
    with pytest.raises(ValueError, match=r"task\.mask: expected .* boolean"):
        Inpainting(SHAPE, mask=mask)
