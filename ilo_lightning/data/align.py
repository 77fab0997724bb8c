"""Faces brought to the pose that face generators are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike, NDArray

_OVERSAMPLING = 2  # the turned square is sampled this much finer than the result, then filtered down


def align_face(image: PIL.Image.Image, landmarks: ArrayLike, size: int) -> PIL.Image.Image:
    """Cut out a face, turned and scaled, as in FFHQ (Karras, Laine, Aila 2019, appendix A; after Karras et al. 2018).

    The square around the face follows from the eyes and the mouth alone, see `face_square`. It is sampled after an
    antialiased reduction; where it leaves the picture, the picture is mirrored at its border.

    Args:
        image: the photograph, upright; converted to RGB.
        landmarks: ``(5, 2)``, x and y in pixels as detectors report them (the centre of the upper left pixel is
            (0, 0)): the eye on the left and the eye on the right of the picture, the nose, the left and the right
            corner of the mouth.
        size: side of the result in pixels.

    Returns:
        An RGB picture of ``size × size``.

    Raises:
        ValueError: if the landmarks are not five finite points with distinct eyes, the square lies outside the picture,
            or the size is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    picture = image.convert("RGB")
    square = face_square(landmarks) + 0.5  # to coordinates in which the picture spans [0, width] × [0, height]
    side = float(np.linalg.norm(square[3] - square[0]))
    samples = _OVERSAMPLING * size

    # Only what the square and the filters' reach can see is scaled down, to about the density of the samples.
    reduction = max(1.0, side / samples)
    reach = 4 * reduction + 4
    low, high = square.min(axis=0) - reach, square.max(axis=0) + reach
    left, top = (max(0, math.floor(value)) for value in low)
    right, bottom = (min(end, math.ceil(value)) for end, value in zip(picture.size, high, strict=True))
    if right <= left or bottom <= top:
        raise ValueError(f"the face lies outside the picture of {picture.size} pixels: square {square.tolist()}")
    scaled = max(1, round((right - left) / reduction)), max(1, round((bottom - top) / reduction))
    picture = picture.resize(scaled, PIL.Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    scale = np.array([scaled[0] / (right - left), scaled[1] / (bottom - top)])
    square = (square - [left, top]) * scale

    before = np.maximum(0, np.ceil(4 - square.min(axis=0))).astype(int)
    after = np.maximum(0, np.ceil(square.max(axis=0) + 4 - scaled)).astype(int)
    if before.any() or after.any():
        padding = ((before[1], after[1]), (before[0], after[0]), (0, 0))
        picture = PIL.Image.fromarray(np.pad(np.asarray(picture), padding, mode="reflect"))
        square = square + before

    turned = picture.transform(
        (samples, samples),
        PIL.Image.Transform.QUAD,
        data=_floats(square),
        resample=PIL.Image.Resampling.BICUBIC,
    )
    return turned.resize((size, size), PIL.Image.Resampling.LANCZOS)


def face_square(landmarks: ArrayLike) -> NDArray[np.float64]:
    """The corners ``(4, 2)`` of the square that FFHQ cuts out: upper left, lower left, lower right, upper right.

    With e the vector from the left to the right eye and m that from between the eyes to the mouth, its half side along
    the picture's rows is ``x = s·u``, where u is the direction of ``e − rot90(m)`` and ``s = max(2.0·|e|, 1.8·|m|)``;
    the other is ``rot90(x)``; its centre lies 0.1·m below the middle of the eyes.

    Args:
        landmarks: as for `align_face`; the corners are in the same coordinates.

    Raises:
        ValueError: if the landmarks are not five finite points with distinct eyes.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"landmarks must be five finite points (x, y), got {np.asarray(landmarks).tolist()}")
    left_eye, right_eye, _, left_mouth, right_mouth = points
    eyes = (left_eye + right_eye) / 2
    eye_to_eye = right_eye - left_eye
    eye_to_mouth = (left_mouth + right_mouth) / 2 - eyes
    direction = eye_to_eye - _rot90(eye_to_mouth)
    if not eye_to_eye.any() or not direction.any():
        raise ValueError(f"landmarks don't say which way the face is turned: {points.tolist()}")
    half_side = max(2.0 * np.linalg.norm(eye_to_eye), 1.8 * np.linalg.norm(eye_to_mouth))
    x = direction / np.linalg.norm(direction) * half_side
    y = _rot90(x)
    center = eyes + 0.1 * eye_to_mouth
    return np.stack([center - x - y, center - x + y, center + x + y, center + x - y])


def _rot90(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quarter turn that takes the picture's x axis to its y axis (downwards)."""
    return np.array([-vector[1], vector[0]])


def _floats(corners: NDArray[np.float64]) -> Sequence[float]:
    return [float(value) for value in corners.ravel()]
