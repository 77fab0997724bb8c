"""``ilo measure``: write what was measured of pictures, so that they can be reconstructed elsewhere from that alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from .building import build_observations, generator_of
from .data.images import DataError, save_png
from .errors import one_line
from .exit_codes import DONE, REFUSED, SOME_FAILED
from .files import write_atomically
from .job import REFUSALS, refuse
from .observations import Observation, header
from .operators.base import ForwardOperator
from .rehearsal import rehearse_operator
from .setting import RunError


def measure_job(config: DictConfig, folder: str | Path) -> int:
    """Write ``FOLDER/NAME.safetensors`` (y, its weight, and which A made it) and ``NAME.png`` (to look at) per picture.

    Takes the configuration of a run; of it, task, data and seed count, and the generator's image size.

    Returns:
        The exit code: 0 done, 2 refused before anything was written, 3 some pictures could not be measured.
    """
    folder = Path(folder)
    try:
        if config.data.mode != "simulated":
            raise RunError(f"data.mode={config.data.mode}: to measure pictures, use data.mode=simulated")
        task: Any = OmegaConf.to_container(config.task, resolve=True, throw_on_missing=True)
        generator = generator_of(config)
        operator, observations = build_observations(config, generator)
        rehearse_operator(operator, torch.zeros(1, *generator.image_shape, dtype=generator.dtype))
    except REFUSALS as error:
        return refuse(error)
    failed = 0
    try:
        for index in range(len(observations)):
            try:
                _write(observations[index], operator, task, folder)
            except OSError:
                raise
            except DataError as error:
                failed += _say(str(error))
            except Exception as error:  # whatever a user's own operator raises
                failed += _say(f"image {index}: can't be measured ({one_line(error)})")
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    except OSError as error:
        _say(f"{folder}: can't be written ({error})")
        return SOME_FAILED
    print(f"{len(observations) - failed} measurements: {folder}")
    if failed == len(observations):
        return REFUSED if failed == 1 else SOME_FAILED
    return SOME_FAILED if failed else DONE


def _write(observation: Observation, operator: ForwardOperator, task: Any, folder: Path) -> None:
    target = folder / f"{observation.name}.safetensors"
    observation.measurement.save(target, header(operator, task, observation.name))
    picture = operator.picture(observation.measurement.y)[0]
    save_png(picture.nan_to_num(nan=0.0), target.with_name(f"{observation.name}.png"))


def _say(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 1
