"""``ilo measure``: write what was measured of pictures, so that they can be reconstructed elsewhere from that alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from .data.images import DataError, save_png
from .files import write_atomically
from .job import REFUSALS, build_observations, refuse
from .main import DONE, REFUSED, SOME_FAILED
from .observations import header
from .pipeline import RunError


def measure_job(config: DictConfig, folder: str | Path) -> int:
    """Write ``FOLDER/NAME.safetensors`` (y, its weight, and which A made it) and ``NAME.png`` (to look at) per picture.

    Takes the configuration of a run; of it, task, data and seed count, and the generator's image size.

    Returns:
        The exit code: 0 done, 2 refused before anything was written, 3 some pictures could not be read.
    """
    folder = Path(folder)
    try:
        if config.data.mode != "simulated":
            raise RunError(f"data.mode={config.data.mode}: to measure pictures, use data.mode=simulated")
        task: Any = OmegaConf.to_container(config.task, resolve=True, throw_on_missing=True)
        operator, observations = build_observations(config, hydra.utils.instantiate(config.generator))
    except InstantiationException as error:
        return refuse(error.__cause__ or error)
    except REFUSALS as error:
        return refuse(error)
    failed = 0
    try:
        for index in range(len(observations)):
            try:
                observation = observations[index]
            except DataError as error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
                continue
            target = folder / f"{observation.name}.safetensors"
            observation.measurement.save(target, header(operator, task, observation.name))
            save_png(operator.picture(observation.measurement.y)[0], target.with_suffix(".png"))
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    except OSError as error:
        print(f"error: {folder}: can't be written ({error})", file=sys.stderr)
        return SOME_FAILED
    print(f"{len(observations) - failed} measurements: {folder}")
    if failed == len(observations):
        return REFUSED if failed == 1 else SOME_FAILED
    return SOME_FAILED if failed else DONE
