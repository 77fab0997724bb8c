"""``ilo score``: compare reconstructions that were made without the truth with the truth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from . import metrics
from .building import generator_of, judges_of
from .data.images import DataError, Image, Images, load_images
from .errors import one_line
from .exit_codes import DONE, SOME_FAILED
from .files import unpacked, write_atomically
from .generators.base import LayeredGenerator
from .job import REFUSALS, refuse
from .losses import PerceptualNet
from .report.table import print_scores
from .setting import RunError
from .solution import Solution, SolutionError


def main(arguments: Sequence[str]) -> int:
    """``ilo score RUN --truth PATH``. Returns the exit code: 0 done, 2 refused, 3 some images could not be scored."""
    parser = argparse.ArgumentParser(
        prog="ilo score", description="Score the solutions of a run against their true pictures, matched by name."
    )
    parser.add_argument("run", type=Path, help="folder of a run (hydra.run.dir)")
    parser.add_argument("--truth", required=True, help="a picture, folder, glob or .npz, as data.path")
    parser.add_argument("--checkpoint", help="the generator's checkpoint, where it lies elsewhere now")
    options = parser.parse_args(arguments)
    try:
        config_file = options.run / "config.yaml"
        if not config_file.is_file():
            raise RunError(f"{options.run}: no folder of a run, it has no config.yaml")
        try:
            config = OmegaConf.load(config_file)
        except YAMLError as error:
            raise RunError(f"{config_file}: damaged ({error})") from error
        if not isinstance(config, DictConfig):
            raise RunError(f"{config_file}: not the configuration of a run")
        if options.checkpoint:
            config.generator.checkpoint = options.checkpoint
        generator = generator_of(config)
        try:
            images = load_images(options.truth, generator.image_shape)
        except DataError as error:
            raise RunError(f"--truth: {error}".replace("data.path=", "", 1)) from error
        judges = judges_of(config, generator.image_shape)
    except REFUSALS as error:
        return refuse(error)
    try:
        with unpacked(options.run, "solution*.safetensors") as reconstructions:
            folders = sorted(folder for folder in reconstructions.glob("*") if folder.is_dir())
            if not folders:
                return refuse(RunError(f"{options.run}: holds no reconstructions"))
            return _score(options, folders, images, generator, judges)
    except BadZipFile as error:
        return refuse(RunError(f"{options.run}: its packed files are damaged ({error})"))


def _score(
    options: argparse.Namespace,
    folders: Sequence[Path],
    images: Images,
    generator: LayeredGenerator,
    judges: Sequence[PerceptualNet],
) -> int:
    places = {name: index for index, name in enumerate(images.names)}
    if len(folders) == len(images) == 1:
        places = {folders[0].name: 0}  # one of each need no common name
    rows, failed = [], 0
    for folder in folders:
        try:
            if folder.name not in places:
                raise DataError(f"no picture of this name in --truth {options.truth}")
            truth = images[places[folder.name]]
            solutions = [Solution.load(path) for path in sorted(folder.glob("solution*.safetensors"))]
            rows += [_row(folder.name, solution, generator, truth, judges) for solution in solutions]
        except (DataError, SolutionError) as error:
            print(f"image {folder.name}: {error}", file=sys.stderr)
            failed += 1
        except Exception as error:  # a point that this generator can't decode, say
            print(f"image {folder.name}: can't be scored ({one_line(error)})", file=sys.stderr)
            failed += 1
    if not rows:
        return SOME_FAILED
    try:
        write_atomically(options.run / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        print(f"error: scores.jsonl can't be written ({error})", file=sys.stderr)
        failed += 1
    print_scores(f"{options.run.name} against {options.truth}", rows)
    print(f"scores: {options.run / 'scores.jsonl'}")
    return SOME_FAILED if failed else DONE


@torch.no_grad()
def _row(
    name: str, solution: Solution, generator: Any, truth: Image, judges: Sequence[PerceptualNet]
) -> dict[str, Any]:
    pair = (solution.decode(generator).cpu()[None], truth.pixels[None])
    scores = {**metrics.evaluate(*pair), **metrics.perceptual(*pair, judges)}
    protocols = {**metrics.PROTOCOLS, **{net.name: net.protocol for net in judges}}
    optimised = solution.info.get("optimised")
    values = {metric: metrics.finite_or_none(value[0]) for metric, value in scores.items()}
    return {
        "image": name,
        "method": solution.info["method"],
        "metrics": values,
        "data_fit": solution.info["data_fit"],
        "evaluations": solution.info["evaluations"],
        "protocols": {metric: protocols[metric] for metric in values},
        **({"optimised": optimised} if optimised else {}),
        "truth": truth.digest,
    }
