"""Rebuild ``ilo_lightning/data/astronaut.png``, the photograph that every default run reconstructs.

    pip install scikit-image==0.26.0
    python tools/make_astronaut.py

Source: `astronaut` of scikit-image, a photograph of Eileen Collins from NASA's Great Images collection
(https://flic.kr/p/r9qvLn), no known copyright restrictions, public domain. It is cut out by the FFHQ formula.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import io
from pathlib import Path

import PIL.Image

from ilo_lightning.data.align import align_face
from ilo_lightning.files import write_atomically

SOURCE_SHA256 = "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"

# Found by the MTCNN of facenet-pytorch 2.6.0 (Zhang et al. 2016) in the 512×512 picture, with probability 0.999998:
# the eye on the left and on the right of the picture, the nose, the left and the right corner of the mouth.
LANDMARKS = ((205.01, 101.73), (246.76, 103.71), (224.67, 128.97), (201.72, 139.25), (245.27, 141.86))

SIZE = 256
TARGET = Path(__file__).resolve().parents[1] / "ilo_lightning" / "data" / "astronaut.png"


def source_picture() -> Path:
    """The file in the installed scikit-image.

    Raises:
        SystemExit: if scikit-image is missing or ships another picture.
    """
    try:
        package = importlib.resources.files("skimage")
    except ModuleNotFoundError as error:
        raise SystemExit("scikit-image is needed: pip install scikit-image==0.26.0") from error
    path = Path(str(package / "data" / "astronaut.png"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != SOURCE_SHA256:
        raise SystemExit(f"{path} is not the picture in which the landmarks were found; use scikit-image==0.26.0")
    return path


def main() -> None:
    """Align and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TARGET, help="where to write it (default: into the package)")
    output = parser.parse_args().output
    with PIL.Image.open(source_picture()) as picture:
        aligned = align_face(picture, LANDMARKS, SIZE)
    buffer = io.BytesIO()
    aligned.save(buffer, format="png", optimize=True)
    write_atomically(output, buffer.getvalue())
    print(f"{output}: {SIZE}×{SIZE}")


if __name__ == "__main__":
    main()
