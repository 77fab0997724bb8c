"""One picture per image: what was measured, and what was made of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import write_atomically


@dataclass(frozen=True)
class Panel:
    """An image of a figure.

    Args:
        title: first line above the picture.
        pixels: ``(H, W, C)`` uint8.
        note: second line, such as a PSNR.
    """

    title: str
    pixels: np.ndarray
    note: str = ""


def save_figure(panels: Sequence[Panel], path: str | Path) -> None:
    """Draw the panels side by side, every pixel a sharp square, and write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size, extra = 1.9, 0.45
    figure = Figure(figsize=(size * len(panels), size + extra), dpi=120)
    FigureCanvasAgg(figure)
    for index, panel in enumerate(panels):
        axes = figure.add_axes((index / len(panels) + 0.004, 0.0, 1 / len(panels) - 0.008, size / (size + extra)))
        pixels = panel.pixels[..., 0] if panel.pixels.shape[-1] == 1 else panel.pixels
        axes.imshow(pixels, interpolation="nearest", cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        axes.set_title(f"{panel.title}\n{panel.note}", fontsize=9, pad=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
