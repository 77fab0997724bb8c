"""Pictures from disk as tensors in [-1, 1], and back.

Every picture is prepared by one rule: turned upright (EXIF), made RGB (transparency on white; the first frame of an
animation), cropped around its centre to the generator's aspect ratio, resized with an antialiased Lanczos filter if its
size differs, and mapped to ``value / 127.5 − 1``. Colour profiles are not applied.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from PIL import ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..files import locate, write_atomically

# What counts as a picture in a folder. A file named directly may be anything that Pillow opens.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"}


ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error)
MAX_NAME_BYTES = 120
"""Of an image's name: the files that are named after it have suffixes, and few file systems take more than 255."""


class DataError(ValueError):
    """The pictures that ``data.path`` names can't be used."""


@dataclass(frozen=True, eq=False)
class Image:
    """One prepared picture.

    Args:
        name: unique among the images loaded with it, and fit for a file name.
        pixels: ``(C, H, W)`` float32 in [-1, 1].
        digest: SHA-256 of the pixels and their shape: the identity of the picture, whatever its name.
    """

    name: str
    pixels: Tensor
    digest: str


class Images(Dataset[Image]):
    """Named pictures, each opened and prepared when it is asked for. See `load_images`.

    Args:
        sources: name -> a function that opens the picture, and what to call it in an error.
        image_shape: ``(C, H, W)`` of every prepared picture.
        exact: refuse a picture of another size or with transparency, instead of fitting it.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Callable[[], PIL.Image.Image], str]],
        image_shape: tuple[int, int, int],
        exact: bool = False,
    ) -> None:
        self._sources = tuple(sources)
        self.image_shape, self.exact = image_shape, exact

    @property
    def names(self) -> list[str]:
        """The names, in order, without opening anything."""
        return [name for name, _, _ in self._sources]

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Image:
        """The prepared picture.

        Raises:
            DataError: if it can't be read, naming the file.
            IndexError: if there is no such picture.
        """
        name, open_picture, named = self._sources[index]
        pixels = _read(open_picture, named, self.image_shape, self.exact)
        content = np.ascontiguousarray(pixels.numpy(), dtype="<f4").tobytes()
        digest = hashlib.sha256(f"float32 {list(pixels.shape)} ".encode() + content).hexdigest()
        return Image(name, pixels, digest)


def load_images(path: str | Path, image_shape: Sequence[int], limit: int | None = None, exact: bool = False) -> Images:
    """The pictures at ``path``, in sorted order, prepared for a generator of ``image_shape``.

    Args:
        path: a picture; a folder (its own pictures, by suffix, not those of folders in it; hidden files don't count); a
            glob; or an ``.npz`` file with ``images``, uint8 ``(N, H, W, 3)`` or ``(N, H, W)``. ``~`` and ``pkg://`` are
            understood, see `files.locate`.
        image_shape: ``(C, H, W)``; C is 3 for colour or 1 for grey.
        limit: only the first so many.
        exact: the pixels themselves count: a picture of another size or with transparency is refused when it is read.

    Returns:
        A lazy dataset. Names are the files' stems, ``stem-1``, ``stem-2`` for further files of one stem, and
        ``stem-0007`` for a member of an ``.npz``.

    Raises:
        DataError: if there is nothing to load, an ``.npz`` isn't as described, or ``limit`` is below 1. A picture that
            can't be read raises when it is accessed.
        ValueError: if ``image_shape`` isn't that of a grey or colour image.
    """
    shape = tuple(int(size) for size in image_shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise ValueError(f"image_shape must be (1 or 3, height, width), got {tuple(image_shape)}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"data.limit={limit}: must be a whole number, at least 1, or null for all pictures")
    located = _locate(path)
    if located.suffix.lower() == ".npz" and located.is_file():
        sources = _array_sources(located, path, limit)
    else:
        sources = _file_sources(list_files(path), path)
    return Images(sources[:limit], shape, exact)


def to_uint8(image: Tensor) -> Tensor:
    """``[-1, 1]`` to uint8 0 … 255, any shape: clipped and rounded, never stretched. Inverts ``value / 127.5 − 1``.

    Raises:
        ValueError: if a pixel is NaN.
    """
    image = image.detach().float()
    if image.isnan().any():
        raise ValueError("an image with NaN pixels can't be shown")
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def save_png(image: Tensor, path: str | Path) -> None:
    """Write an image ``(C, H, W)`` in [-1, 1], C of 1 or 3, as an 8-bit PNG. Atomic; makes the folder if needed.

    Raises:
        ValueError: if the image has another shape or NaN pixels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected an image (1 or 3, height, width), got {list(image.shape)}")
    values = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    PIL.Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def list_files(path: str | Path, further: Sequence[str] = ()) -> list[Path]:
    """The files that ``data.path`` names, sorted; at least one. In folders and globs, those with a picture's suffix or
    one of ``further``.

    Raises:
        DataError: if there is none.
    """
    if not isinstance(path, str | Path) or str(path) == "":
        raise DataError(f"data.path={path}: name one picture, folder of pictures, glob or .npz file")
    located = _locate(path)
    if located.is_file():
        return [located]
    suffixes = SUFFIXES | set(further)
    if located.is_dir():
        found, what = sorted(located.iterdir()), "the folder holds no"
        more = f"Those in folders inside it are found by a glob, such as {Path(path) / '*' / '*.png'}; "
    elif any(character in str(located) for character in "*?["):
        found = [Path(match) for match in sorted(glob.glob(str(located), recursive=True))]
        what, more = f"none of the {len(found)} matches of this glob is among the", ""
    else:
        raise DataError(
            f"data.path={path}: no such file or folder (looked at {located.absolute()}). "
            "Name a picture, a folder of pictures, a glob or an .npz file"
        )
    files = [file for file in found if file.suffix.lower() in suffixes and not file.name.startswith(".")]
    files = [file for file in files if os.path.isfile(file) or _dangles(file)]  # no folders, no devices
    if not files:
        raise DataError(f"data.path={path}: {what} pictures. {more}recognised are {' '.join(sorted(suffixes))}")
    return files


def name_of(file: Path) -> str:
    """The file's stem as UTF-8, shortened where it is too long to name a folder; `...png` has none that could."""
    stem = os.fsencode(file.stem).decode("utf-8", "replace").replace("\ufffd", "_")
    while len(stem.encode()) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem if stem.strip(".") else "image"


def _dangles(file: Path) -> bool:
    """Whether it is a link to nothing, or to itself, where somebody meant a picture to be: reported when opened."""
    return file.is_symlink() and not os.path.exists(file)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with -1, -2, … after those that were there before (names become folders: on some systems, A is a)."""
    reserved = {name.casefold() for name in names}
    taken: set[str] = set()
    result = []
    for stem in names:
        name, index = stem, 0
        while name.casefold() in taken or (index and name.casefold() in reserved):
            index += 1
            name = f"{stem}-{index}"
        taken.add(name.casefold())
        result.append(name)
    return result


def _locate(path: str | Path) -> Path:
    try:
        return locate(path)
    except ModuleNotFoundError as error:
        raise DataError(f"data.path={path}: {error}; after pkg:// comes the name of an installed package") from error


def _file_sources(files: list[Path], path: str | Path) -> list[tuple[str, Callable[[], PIL.Image.Image], str]]:
    names = distinct([name_of(file) for file in files])
    return [
        (name, partial(PIL.Image.open, file), where(path, str(file))) for name, file in zip(names, files, strict=True)
    ]


def _array_sources(
    file: Path, path: str | Path, limit: int | None
) -> list[tuple[str, Callable[[], PIL.Image.Image], str]]:
    wanted = "an .npz file must hold `images`, uint8 (N, H, W, 3) or (N, H, W)"
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if "images" not in archive:
                raise DataError(f"data.path={path}: holds {', '.join(archive.files) or 'nothing'}; {wanted}")
            images = archive["images"]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, MemoryError, *ARCHIVE_ERRORS) as error:
        raise DataError(f"data.path={path}: can't be read ({error}); {wanted}") from error
    if images.dtype != np.uint8:
        raise DataError(f"data.path={path}: `images` is {images.dtype}; {wanted}")
    if images.ndim == 3 and images.shape[2] in (3, 4):
        raise DataError(
            f"data.path={path}: `images` has the shape {images.shape}: one picture? save images[None]; {wanted}"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or images.size == 0:
        raise DataError(f"data.path={path}: `images` has the shape {images.shape}; {wanted}, not empty")
    if limit is not None:
        images = images[:limit].copy()
    return [
        (f"{name_of(file)}-{index:04d}", partial(PIL.Image.fromarray, image), where(path, f"image {index}"))
        for index, image in enumerate(images)
    ]


def where(path: str | Path, part: str) -> str:
    """How an error names a picture: what the user wrote, and which part of that it is."""
    return f"data.path={path}" if part == str(path) else f"data.path={path}: {part}"


def _read(
    open_picture: Callable[[], PIL.Image.Image], named: str, image_shape: tuple[int, int, int], exact: bool
) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with open_picture() as picture:
                return _prepare(picture, image_shape, exact)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise DataError(f"{named}: too large to be opened safely ({error}); scale it down") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{named}: not an image that Pillow can open; convert it to PNG") from error
    except DataError as error:
        raise DataError(f"{named}: {error}") from None
    # Pillow's readers report a damaged file in many ways, struct.error and IndexError among them.
    except Exception as error:
        raise DataError(f"{named}: can't be read ({error}); the file may be damaged or truncated") from error


def _prepare(picture: PIL.Image.Image, image_shape: tuple[int, int, int], exact: bool) -> Tensor:
    channels, height, width = image_shape
    if exact and picture.has_transparency_data:
        raise DataError("transparent pixels say nothing about what was measured; save it without transparency")
    picture = _to_rgb(picture)
    if exact and picture.size != (width, height):
        raise DataError(
            f"{picture.width}×{picture.height} pixels, but this task measures {width}×{height} (width×height)"
        )
    picture = _crop_to_aspect(picture, height, width)
    if channels == 1:
        picture = picture.convert("L")
    if picture.size != (width, height):
        picture = picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(picture)).view(height, width, channels)
    return values.permute(2, 0, 1).contiguous().float() / 127.5 - 1


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"integers from {values.min()} to {values.max()} are not 8- or 16-bit grey values")
        picture = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif picture.mode == "F":
        raise DataError("floating-point pixels have no known range; convert it to 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _crop_to_aspect(picture: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """The largest part around the centre with the aspect ratio ``width / height``, to the nearest pixel."""
    crop_width = min(picture.width, max(1, round(picture.height * width / height)))
    crop_height = min(picture.height, max(1, round(picture.width * height / width)))
    left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
    return picture.crop((left, top, left + crop_width, top + crop_height))
