"""Every picture a user may have becomes the tensor its viewer would expect, or an error that says what to do."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from ilo_lightning.data.images import DataError, load_images, save_png, to_uint8

SHAPE = (3, 8, 8)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, name="a.png", pixels=None, **options) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(random_pixels(8, 8, 3) if pixels is None else pixels).save(path, **options)
    return path


def load_one(path, shape=SHAPE):
    (image,) = load_images(path, shape)
    assert image.pixels.shape == shape
    assert image.pixels.dtype == torch.float32
    assert image.pixels.is_contiguous()
    return image.pixels


def expected(pixels):
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def test_a_picture_of_the_right_size_is_exact(tmp_path):
    pixels = random_pixels(8, 8, 3)
    image = load_one(write(tmp_path, pixels=pixels))
    assert torch.equal(image, expected(pixels))
    assert image.min() >= -1
    assert image.max() <= 1


def test_saving_and_loading_is_the_identity_on_pictures(tmp_path):
    for shape in [(3, 16, 16), (1, 16, 16)]:
        values = torch.arange(256).reshape(1, 16, 16).expand(shape)
        image = values.float() / 127.5 - 1
        assert torch.equal(to_uint8(image), values.to(torch.uint8))
        path = tmp_path / "new" / f"{shape[0]}.png"
        save_png(image, path)
        assert torch.equal(load_one(path, shape), image)
        assert os.listdir(path.parent).count(path.name) == 1


def test_saving_clips_and_never_stretches(tmp_path):
    image = torch.full((3, 4, 4), 0.5)
    image[:, 0, 0], image[:, 0, 1] = -7.0, 7.0
    save_png(image, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as stored:
        values = np.array(stored)
    assert values[0, 0].tolist() == [0, 0, 0]
    assert values[0, 1].tolist() == [255, 255, 255]
    assert (values[1:] == round(1.5 * 127.5)).all()


def test_what_can_not_be_saved_is_refused(tmp_path):
    for wrong in (torch.zeros(2, 4, 4), torch.zeros(4, 4), torch.zeros(1, 3, 4, 4), torch.full((3, 4, 4), torch.nan)):
        with pytest.raises(ValueError):
            save_png(wrong, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    upright = random_pixels(8, 8, 3)
    # EXIF 2.32, tag 274: where row 0 and column 0 of the stored picture are in the upright one
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[274] = orientation
    path = write(tmp_path, pixels=np.ascontiguousarray(stored), exif=exif)
    assert torch.equal(load_one(path), expected(upright))


def test_transparency_is_composited_on_white(tmp_path):
    colour = random_pixels(8, 8, 3)
    alpha = random_pixels(8, 8, 1, seed=1)
    alpha[0], alpha[1] = 0, 255
    blended = 255 - (255 - colour.astype(float)) * alpha / 255
    image = load_one(write(tmp_path, pixels=np.concatenate([colour, alpha], axis=2)))
    torch.testing.assert_close(image, expected(blended), rtol=0, atol=1.01 / 127.5)
    assert (image[:, 0] == 1).all()
    assert torch.equal(image[:, 1], expected(colour)[:, 1])

    grey = write(tmp_path, "grey.png", np.concatenate([colour[:, :, :1], alpha], axis=2))
    with PIL.Image.open(grey) as stored:
        assert stored.mode == "LA"
    wanted = expected(blended[:, :, :1].repeat(3, axis=2))
    torch.testing.assert_close(load_one(grey), wanted, rtol=0, atol=1.01 / 127.5)


@pytest.mark.parametrize("transparency", [2, bytes([255, 255, 0])], ids=["one colour", "per colour"])
def test_transparent_palettes(tmp_path, transparency):
    picture = PIL.Image.new("P", (8, 8), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putpixel((3, 2), 2)
    picture.save(tmp_path / "a.png", transparency=transparency)
    image = load_one(tmp_path / "a.png")
    assert image[:, 2, 3].tolist() == [1, 1, 1]
    assert to_uint8(image)[:, 0, 0].tolist() == [40, 50, 60]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    path = write(tmp_path, pixels=values)
    wanted = expected((values / 257)[:, :, None].repeat(3, axis=2))
    torch.testing.assert_close(load_one(path), wanted, rtol=0, atol=0.51 / 127.5)
    tiff = write(tmp_path, "a.tif", values.astype(np.int32))
    assert torch.equal(load_one(tiff), load_one(path))


@pytest.mark.parametrize("values", [np.full((8, 8), 70000, np.int32), np.full((8, 8), 0.5, np.float32)])
def test_grey_without_a_known_range_is_refused(tmp_path, values):
    path = write(tmp_path, "a.tif", values)
    with pytest.raises(DataError, match=r"data\.path=.*a\.tif"):
        load_one(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_colour_modes_mean_their_colours(tmp_path, mode):
    colour = (255, 255, 255) if mode in ("1", "L") else (204, 51, 102)  # in Pillow's palette
    picture = PIL.Image.new("RGB", (8, 8), colour).convert(mode)
    picture.save(tmp_path / "a.tif")
    with PIL.Image.open(tmp_path / "a.tif") as stored:
        assert stored.mode == mode
    got = to_uint8(load_one(tmp_path / "a.tif")).int()
    assert (got - torch.tensor(colour)[:, None, None]).abs().max() <= 3


def test_animations_show_their_first_frame(tmp_path):
    first, second = PIL.Image.new("RGB", (8, 8), (255, 0, 0)), PIL.Image.new("RGB", (8, 8), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert to_uint8(load_one(tmp_path / "a.gif"))[:, 4, 4].tolist() == [255, 0, 0]


def test_grey_generators_get_grey_pictures(tmp_path):
    colour = random_pixels(8, 8, 3)
    image = load_one(write(tmp_path, pixels=colour), (1, 8, 8))
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    torch.testing.assert_close(image, expected(luma[:, :, None]), rtol=0, atol=0.51 / 127.5)
    grey = write(tmp_path, "grey.png", colour[:, :, 0])
    assert torch.equal(load_one(grey, (1, 8, 8)), expected(colour[:, :, :1]))


@pytest.mark.parametrize(
    ("size", "shape", "rows", "columns"),
    [
        ((8, 14), (3, 8, 8), slice(0, 8), slice(3, 11)),
        ((15, 8), (3, 8, 8), slice(3, 11), slice(0, 8)),
        ((16, 16), (3, 8, 16), slice(4, 12), slice(0, 16)),
        ((9, 30), (3, 9, 6), slice(0, 9), slice(12, 18)),
    ],
)
def test_the_centre_is_cropped_to_the_aspect_ratio(tmp_path, size, shape, rows, columns):
    pixels = random_pixels(*size, 3)
    assert torch.equal(load_one(write(tmp_path, pixels=pixels), shape), expected(pixels[rows, columns]))


def test_shrinking_is_antialiased(tmp_path):
    checkers = np.indices((128, 128)).sum(axis=0) % 2 * 255
    image = load_one(write(tmp_path, pixels=checkers.astype(np.uint8)))
    assert image.abs().max() < 0.05  # grey; sampling would give black or white


def test_resizing_keeps_what_is_smooth(tmp_path):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(64, axis=0)
    image = load_one(write(tmp_path, pixels=ramp))
    centres = torch.linspace(-1, 1, 64).view(8, 8).mean(dim=1)
    torch.testing.assert_close(image[0, 3], centres, rtol=0, atol=0.03)
    assert (load_one(tmp_path / "a.png", (3, 100, 100))[0, 50].diff() >= 0).all()


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 5, 1)])
def test_one_pixel(tmp_path, shape):
    write(tmp_path, pixels=random_pixels(1, 1, 3))
    assert load_one(tmp_path / "a.png", shape).isfinite().all()


def test_a_folder_is_sorted_flat_and_lazy(tmp_path):
    for seed, name in enumerate(["b.png", "a.PNG", "c.bmp", "deeper/d.png", "._hidden.png"]):
        write(tmp_path, name, random_pixels(8, 8, 3, seed=seed))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "z.png").write_bytes(b"not a picture either")
    images = load_images(tmp_path, SHAPE)
    assert images.names == ["a", "b", "c", "z"]
    assert [images[i].name for i in range(3)] == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"data\.path=.*z\.png"):
        images[3]
    with pytest.raises(IndexError):
        images[4]
    assert load_images(str(tmp_path), SHAPE, limit=2).names == ["a", "b"]


def test_globs(tmp_path):
    for name in ["x/1.png", "x/2.png", "y/3.png", "y/4.txt.png"]:
        write(tmp_path, name)
    (tmp_path / "x" / "5.txt").write_text("no")
    assert load_images(tmp_path / "*" / "*", SHAPE).names == ["1", "2", "3", "4.txt"]
    assert load_images(f"{tmp_path}/**/[13].png", SHAPE, limit=5).names == ["1", "3"]
    bracketed = write(tmp_path, "[1].png")
    assert load_images(bracketed, SHAPE).names == ["[1]"]


def test_files_of_the_package_and_of_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_images("~/a.png", SHAPE).names == ["a"]
    assert load_one("pkg://ilo_lightning.data/astronaut.png", (3, 256, 256)).std() > 0.1
    with pytest.raises(DataError, match="installed package"):
        load_images("pkg://no_such_package_here/a.png", SHAPE)


def test_names_are_unique_whatever_the_file_system(tmp_path):
    for name in ["a.png", "a.bmp", "a-1.png", "a.gif"]:
        write(tmp_path, name)
    write(tmp_path, "other/A.png")
    names = load_images(tmp_path, SHAPE).names
    assert sorted(names) == ["a", "a-1", "a-2", "a-3"]
    assert load_images(tmp_path, SHAPE, limit=2).names == names[:2]
    names = load_images(f"{tmp_path}/**/*", SHAPE).names
    assert len({name.lower() for name in names}) == 5


def test_the_digest_is_the_content(tmp_path):
    pixels = random_pixels(8, 8, 3)
    write(tmp_path, "a.png", pixels)
    write(tmp_path, "b.bmp", pixels)
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    write(tmp_path, "c.png", other)
    a, b, c = load_images(tmp_path, SHAPE)
    assert a.digest == b.digest != c.digest
    assert len(a.digest) == len(hashlib.sha256().hexdigest())
    wide, tall = np.zeros((2, 4, 3), np.uint8), np.zeros((4, 2, 3), np.uint8)
    (wide_image,) = load_images(write(tmp_path, "wide.png", wide), (3, 2, 4))
    (tall_image,) = load_images(write(tmp_path, "tall.png", tall), (3, 4, 2))
    assert wide_image.digest != tall_image.digest


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", [True, False])
def test_npz(tmp_path, channels, colour):
    pixels = random_pixels(11, 8, 8, 3) if colour else random_pixels(11, 8, 8)
    np.savez(tmp_path / "faces.npz", images=pixels)
    images = load_images(tmp_path / "faces.npz", (channels, 8, 8))
    assert images.names[7] == "faces-0007"
    assert len(images) == 11
    write(tmp_path, pixels=pixels[7])
    (same,) = load_images(tmp_path / "a.png", (channels, 8, 8))
    assert torch.equal(images[7].pixels, same.pixels)
    assert images[7].digest == same.digest
    limited = load_images(tmp_path / "faces.npz", (channels, 8, 8), limit=3)
    assert limited.names == images.names[:3]


@pytest.mark.parametrize(
    "content",
    [
        {"pictures": np.zeros((2, 8, 8, 3), np.uint8)},
        {"images": np.zeros((2, 8, 8, 3), np.float32)},
        {"images": np.zeros((2, 3, 8, 8), np.uint8)},
        {"images": np.zeros((8, 8), np.uint8)},
        {"images": np.zeros((8, 8, 3), np.uint8)},
        {"images": np.zeros((0, 8, 8, 3), np.uint8)},
        {"images": np.array([{}], dtype=object)},
        {},
    ],
    ids=["key", "dtype", "axes", "grey", "one image", "empty", "pickle", "nothing"],
)
def test_npz_of_another_kind_is_refused(tmp_path, content):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=r"data\.path=.*a\.npz.*uint8 \(N, H, W, 3\)"):
        load_images(tmp_path / "a.npz", SHAPE)


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_damaged_npz_is_refused(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=random_pixels(20, 8, 8, 3))
    whole = path.read_bytes()
    path.write_bytes({"text": b"hello", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"data\.path=.*a\.npz"):
        load_images(path, SHAPE)


def test_nothing_to_load_is_noticed_at_once(tmp_path):
    with pytest.raises(DataError, match=r"data\.path=.*nowhere.*no such file"):
        load_images(tmp_path / "nowhere", SHAPE)
    with pytest.raises(DataError, match=r"data\.path=.*glob"):
        load_images(tmp_path, SHAPE)
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(DataError, match=r"data\.path=.*1 matches"):
        load_images(tmp_path / "*.txt", SHAPE)
    for limit in (0, -3):
        with pytest.raises(DataError, match=r"data\.limit"):
            load_images(write(tmp_path), SHAPE, limit=limit)


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8), (3, 0, 8)])
def test_impossible_image_shapes(tmp_path, shape):
    with pytest.raises(ValueError, match="image_shape"):
        load_images(write(tmp_path), shape)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_damaged_pictures_are_named(tmp_path, name):
    path = write(tmp_path, name, random_pixels(64, 64, 3))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:30], b"", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            load_one(path)
        assert f"data.path={path}" in str(caught.value)


def test_a_file_that_vanished_is_named(tmp_path):
    images = load_images(write(tmp_path), SHAPE)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        images[0]


@pytest.mark.parametrize("pixels_allowed", [60, 20], ids=["a warning in Pillow", "an error in Pillow"])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, pixels_allowed):
    path = write(tmp_path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", pixels_allowed)
    with pytest.raises(DataError, match=r"a\.png.*too large"):
        load_one(path)


def test_images_go_through_a_data_loader(tmp_path):
    for index in range(5):
        write(tmp_path, f"{index}.png", random_pixels(8, 8, 3, seed=index))
    batches = list(DataLoader(load_images(tmp_path, SHAPE), batch_size=3, collate_fn=list))
    assert [[image.name for image in batch] for batch in batches] == [["0", "1", "2"], ["3", "4"]]
