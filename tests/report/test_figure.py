"""Figures, judged by the colours of the rendered PNG, wherever the panels lie in it."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ilo_lightning.report.figure import Panel, save_figure

Box = tuple[int, int, int, int]


def colourful(panels: int, height: int, width: int) -> list[np.ndarray]:
    """Pictures whose pixels all have colours of their own, none of them grey as titles and background are."""
    count = panels * height * width
    colours = [[round(255 * part) for part in colorsys.hsv_to_rgb(i / count, 0.8, 0.9)] for i in range(count)]
    assert len({tuple(colour) for colour in colours}) == count
    return list(np.array(colours, np.uint8).reshape(panels, height, width, 3))


def rendered(panels: list[Panel], folder: Path) -> np.ndarray:
    save_figure(panels, folder / "figure.png")
    return np.array(Image.open(folder / "figure.png").convert("RGB"))


def where(picture: np.ndarray, colour: np.ndarray) -> Box:
    """Top, left, bottom and right of the one filled rectangle that has this colour."""
    rows, columns = np.nonzero((picture == colour).all(axis=2))
    assert len(rows), f"{colour} is not in the figure"
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    assert len(rows) == (bottom - top) * (right - left), f"{colour} doesn't fill a rectangle"
    return top, left, bottom, right


@pytest.mark.parametrize(("count", "height", "width"), [(1, 4, 4), (4, 3, 3), (2, 2, 6), (7, 2, 2)])
def test_a_panel_per_entry_shows_exactly_its_pixels(count: int, height: int, width: int, tmp_path: Path):
    """Every pixel is a sharp rectangle of its own colour; the panels lie side by side, in order, and don't overlap."""
    pictures = colourful(count, height, width)
    figure = rendered([Panel(f"panel {i}", pixels, "21.00 dB") for i, pixels in enumerate(pictures)], tmp_path)
    previous_right = 0
    for pixels in pictures:
        boxes = np.array([[where(figure, pixels[row, column]) for column in range(width)] for row in range(height)])
        top, left, bottom, right = (boxes[..., side] for side in range(4))
        assert (top == top[:, :1]).all() and (left == left[:1]).all(), "the pixels don't form a grid"
        assert (bottom[:-1] == top[1:]).all() and (right[:, :-1] == left[:, 1:]).all(), "there are gaps, or a new order"
        assert np.ptp(bottom - top) <= 1 and np.ptp(right - left) <= 1, "the pixels differ in size"
        assert abs((bottom - top).mean() - (right - left).mean()) <= 1, "the pixels aren't square"
        assert left.min() >= previous_right
        previous_right = right.max()
    # Nothing between the colours: all else is black text on white, antialiased in greys.
    palette = {tuple(colour) for pixels in pictures for colour in pixels.reshape(-1, 3)}
    rest = {tuple(colour) for colour in figure.reshape(-1, 3)} - palette
    assert all(red == green == blue for red, green, blue in rest)
    assert {(0, 0, 0), (255, 255, 255)} <= rest


def test_grey_pictures_keep_their_greys(tmp_path: Path):
    """Not stretched to the picture's own range."""
    pixels = np.array([[[100], [110]], [[120], [130]]], np.uint8)
    figure = rendered([Panel("grey", pixels)], tmp_path)
    for value in (100, 110, 120, 130):
        share = (figure == value).all(axis=2).mean()
        assert share > 0.1, f"grey {value} covers {share:.0%} of the figure"


@pytest.mark.parametrize("changed", [{"title": "other"}, {"note": "22.00 dB"}], ids=["title", "note"])
def test_title_and_note_are_drawn(changed: dict, tmp_path: Path):
    fields = {"title": "truth", "pixels": colourful(1, 2, 2)[0], "note": "21.00 dB"}
    figures = [rendered([Panel(**{**fields, **more})], tmp_path) for more in ({}, {}, changed)]
    assert np.array_equal(figures[0], figures[1]), "the same figure twice isn't the same"
    assert figures[0].shape == figures[2].shape and not np.array_equal(figures[0], figures[2])


def test_the_folder_is_made_and_nothing_else_stays(tmp_path: Path):
    save_figure([Panel("", colourful(1, 2, 2)[0])], tmp_path / "a" / "b" / "figure.png")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["figure.png"]
