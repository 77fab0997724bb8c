"""``ilo convert``: a checkpoint of others as one safetensors file of ours, with its latent statistics."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .exit_codes import DONE
from .generators.checkpoints import CheckpointError, load_generator, save_generator, sha256
from .job import refuse


def main(arguments: Sequence[str]) -> int:
    """``ilo convert SRC DST.safetensors``. Returns the exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="ilo convert",
        description="Write a StyleGAN2 checkpoint (rosinality's .pt, NVIDIA's .pkl) as safetensors, with fitted latent "
        "statistics. Nothing that SRC carries is executed.",
    )
    parser.add_argument("src", help="the checkpoint")
    parser.add_argument("dst", type=Path, metavar="dst.safetensors", help="what to write")
    parser.add_argument("--sha256", help="digest that SRC must have")
    parser.add_argument(
        "--label", type=_label, help="of a conditional generator: a class such as 3, or a list such as [0,1,0]"
    )
    options = parser.parse_args(arguments)
    try:
        if options.dst.suffix != ".safetensors":
            raise CheckpointError(f"{options.dst}: expected a name that ends in .safetensors")
        if options.dst.exists():
            raise CheckpointError(f"{options.dst}: is there already; choose another name, or remove it")
        if not Path(options.src).exists() and not options.src.startswith("pkg://"):
            raise CheckpointError(f"{options.src}: no such file (looked at {Path(options.src).absolute()})")
        generator = load_generator(options.src, options.sha256, options.label)
        origin = {
            "layout": generator.provenance["layout"],
            "source": Path(options.src).name,
            "source_sha256": generator.provenance["sha256"],
            "converted_by": f"ilo-lightning {__version__}",
        }
        save_generator(generator, options.dst, origin)
        digest = sha256(options.dst)
    except (CheckpointError, OSError) as error:
        return refuse(error)
    channels, height, width = generator.image_shape
    print(
        f"{options.src}: {origin['layout']}, {channels}×{height}×{width}, {generator.num_layers} layers, "
        f"{generator.config['architecture']} synthesis, SHA-256 {origin['source_sha256']}"
    )
    print(f"{options.dst}: SHA-256 {digest}")
    print(f"use it: generator=stylegan2 generator.checkpoint={options.dst} generator.sha256={digest}")
    return DONE


def _label(text: str) -> int | list[float]:
    value = json.loads(text)
    if type(value) is not int and not isinstance(value, list):
        raise ValueError(text)
    return value
