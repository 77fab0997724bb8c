"""Alignment puts eyes and mouth where the FFHQ formula says, whatever the pose and size of the face."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from ilo_lightning.data.align import align_face, face_square

# A face in its own frame: the middle of the eyes at the origin, the eyes one unit apart.
FACE = np.array([[-0.5, 0.0], [0.5, 0.0], [0.02, 0.6], [-0.4, 1.1], [0.4, 1.1]])
SIZE = 96


def rotation(degrees):
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def posed(scale, degrees, center):
    return FACE * scale @ rotation(degrees).T + center


def grid(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows], axis=-1).astype(float)


def picture_of(values):
    return PIL.Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))


def dot(points, at, sigma):
    return np.exp(-((points - at) ** 2).sum(axis=-1) / (2 * sigma**2))


def centroid(values):
    weights = values - np.median(values)
    weights[weights < 0.2 * weights.max()] = 0
    return (grid(*values.shape) * weights[..., None]).sum(axis=(0, 1)) / weights.sum()


def test_the_square_of_an_upright_face():
    """Half side 2·(eye distance), because 1.8·1.1 is less; centre 0.11 below the eyes."""
    expected = [[-2, -1.89], [-2, 2.11], [2, 2.11], [2, -1.89]]
    np.testing.assert_allclose(face_square(FACE), expected, atol=1e-12)


def test_a_long_face_is_measured_from_eyes_to_mouth():
    longer = FACE * [1.0, 2.0]
    square = face_square(longer)
    assert np.linalg.norm(square[3] - square[0]) == pytest.approx(2 * 1.8 * 2.2)


@pytest.mark.parametrize("degrees", [-120, -35, 0, 10, 90])
def test_the_square_turns_scales_and_moves_with_the_face(degrees):
    moved = posed(37.0, degrees, [5.0, -8.0])
    expected = face_square(FACE) * 37 @ rotation(degrees).T + [5.0, -8.0]
    np.testing.assert_allclose(face_square(moved), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("scale", "degrees", "shape"),
    [
        (24, 0, (160, 150)),
        (24, 25, (160, 150)),
        (24, -160, (160, 150)),
        (10, 7, (64, 64)),  # enlarged
        (200, -20, (1000, 1100)),  # reduced by eight
        (24, 15, (90, 80)),  # the square leaves the picture on all sides
    ],
)
def test_landmarks_end_where_the_formula_says(scale, degrees, shape):
    landmarks = posed(scale, degrees, np.array(shape[::-1]) / 2 + [0.3, -0.4 * scale])
    points = grid(*shape)
    corner, _, _, right = face_square(landmarks)
    x = right - corner
    side = np.linalg.norm(x)
    x /= side
    for index in (0, 1, 3, 4):
        values = 30 + 200 * dot(points, landmarks[index], sigma=max(1.5, 0.08 * scale))
        aligned = align_face(picture_of(values), landmarks, SIZE)
        assert aligned.size == (SIZE, SIZE)
        offset = landmarks[index] - corner
        expected = np.array([offset @ x, offset @ [-x[1], x[0]]]) * SIZE / side - 0.5
        values = np.asarray(aligned, dtype=float)[..., 0]
        window = dot(grid(SIZE, SIZE), expected, sigma=1e9) * (np.abs(grid(SIZE, SIZE) - expected) < 9).all(axis=-1)
        np.testing.assert_allclose(centroid(values * window + 30 * (1 - window)), expected, atol=0.25)


def smooth_scene(points, landmarks):
    """Something to look at that is fixed to the face, known everywhere."""
    e = landmarks[1] - landmarks[0]
    basis = np.stack([e, [-e[1], e[0]]]) / (e @ e)
    u, v = np.moveaxis((points - landmarks[:2].mean(axis=0)) @ basis.T, -1, 0)
    return np.stack([128 + 90 * np.sin(2 * u + v), 128 + 90 * np.cos(3 * v), 128 + 90 * np.sin(u * v)], axis=-1)


@pytest.mark.parametrize(("scale", "degrees"), [(20, 30), (20, 180), (31, -75), (150, 12)])
def test_the_result_does_not_depend_on_the_pose(scale, degrees):
    def aligned(scale, degrees):
        side = 6 * scale
        landmarks = posed(scale, degrees, [side / 2, side / 2])
        picture = picture_of(smooth_scene(grid(side, side), landmarks))
        return np.asarray(align_face(picture, landmarks, SIZE), dtype=float)

    assert np.abs(aligned(scale, degrees) - aligned(20, 0)).max() <= 3
    assert aligned(20, 0).std() > 30


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_change_nothing(quarters):
    """Of a picture in which every pixel counts, and with a square that leaves it."""
    values = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    landmarks = posed(20.0, 8, [29.0, 25.0])
    turned = landmarks
    for _ in range(quarters):
        turned = np.stack([turned[:, 1], 59 - turned[:, 0]], axis=1)  # what np.rot90 does to (column, row)
    first = align_face(PIL.Image.fromarray(values), landmarks, 48)
    second = align_face(PIL.Image.fromarray(np.rot90(values, quarters).copy()), turned, 48)
    assert np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max() <= 2


def test_beyond_the_border_the_picture_is_mirrored():
    """A constant picture stays constant; half of a symmetric picture gives the same as the whole."""
    landmarks = posed(20.0, 0, [30.0, 30.0])
    assert np.ptp(np.asarray(align_face(PIL.Image.new("RGB", (60, 60), "grey"), landmarks, 40))) == 0
    ramp = np.abs(grid(200, 200)[..., 0] - 100)
    half = align_face(picture_of(ramp[:, 100:]), posed(20.0, 0, [0.0, 90.0]), 40)
    whole = align_face(picture_of(ramp), posed(20.0, 0, [100.0, 90.0]), 40)
    np.testing.assert_allclose(np.asarray(half, dtype=float), np.asarray(whole, dtype=float), atol=1)


def test_reducing_is_antialiased():
    checkers = np.indices((800, 800)).sum(axis=0) % 2 * 255
    aligned = align_face(picture_of(checkers), posed(150.0, 0, [400.0, 350.0]), 32)
    assert np.abs(np.asarray(aligned, dtype=float) - 127.5).max() < 8


def test_any_mode_becomes_rgb():
    assert align_face(PIL.Image.new("L", (100, 100)), posed(20.0, 0, [50.0, 40.0]), 16).mode == "RGB"


@pytest.mark.parametrize(
    "landmarks",
    [
        FACE[:4],
        FACE * np.nan,
        FACE * 0,
        posed(20.0, 0, [1e4, 50.0]),
    ],
    ids=["four points", "not numbers", "one point", "outside"],
)
def test_impossible_landmarks_are_refused(landmarks):
    with pytest.raises(ValueError, match=r"landmarks|outside"):
        align_face(PIL.Image.new("RGB", (100, 100)), landmarks, 32)
    with pytest.raises(ValueError, match="size"):
        align_face(PIL.Image.new("RGB", (100, 100)), posed(20.0, 0, [50.0, 40.0]), 0)
