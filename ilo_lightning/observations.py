"""What a run works on: measurements, made of pictures that are the truth or given without one."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import identity
from .data.images import DataError, Images, distinct, list_files, load_images, name_of, where
from .operators.base import ForwardOperator, Measurement, MeasurementError, measure
from .operators.noise import NoiseModel
from .randomness import generator_for

MODES = ("simulated", "measured")
MEASUREMENT_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Observation:
    """What is known of one image.

    Args:
        name: unique in its run, and fit for a file name.
        digest: SHA-256 of what was given, the picture or the measurement; the image's randomness comes from it.
        measurement: y, a batch of one.
        truth: ``(C, H, W)`` in [-1, 1]; None where only y is known.
    """

    name: str
    digest: str
    measurement: Measurement
    truth: Tensor | None


class Observations(Sequence[Observation]):
    """Named observations, each read when it is asked for; what can't be read raises ``DataError``."""

    @abstractmethod
    def digest(self, index: int) -> str:
        """The digest of one observation, without measuring anything."""


class Simulated(Observations):
    """Pictures are the truth; y = A(x) + noise, each with noise from its own content, the seed and nothing else.

    Args:
        images: the pictures.
        operator: A.
        noise: what is added.
        seed: of the noise.
        dtype: in which A is computed.
    """

    def __init__(
        self, images: Images, operator: ForwardOperator, noise: NoiseModel, seed: int, dtype: torch.dtype
    ) -> None:
        self.images, self.operator, self.noise, self.seed, self.dtype = images, operator, noise, seed, dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]
        image = self.images[index]
        truth = image.pixels.to(device_of(self.operator), self.dtype)
        rng = generator_for(self.seed, image.digest, "measurement noise")
        measurement = measure(self.operator, self.noise, truth[None], [rng])
        if not bool(measurement.y.isfinite().all()):
            raise DataError(f"{image.name}: what {type(self.operator).__name__} measures of it is not finite")
        return Observation(image.name, image.digest, measurement, image.pixels)

    def digest(self, index: int) -> str:
        return self.images[index].digest


class Measured(Observations):
    """Only y is given: files of ``Measurement.save``, or pictures where y is one (masked, small, noisy).

    Args:
        path: ``data.path``: a file, folder or glob; or an .npz of pictures of the size of y. Where there are
            measurement files, pictures beside them don't count.
        operator: A that made them.
        task: the resolved task configuration, to compare with what a measurement file says.
        limit: only the first so many.
        dtype: of y.

    Raises:
        DataError: if there is nothing to load.
    """

    def __init__(
        self,
        path: str | Path,
        operator: ForwardOperator,
        task: Mapping[str, Any],
        limit: int | None,
        dtype: torch.dtype,
    ) -> None:
        self.operator, self.task, self.dtype = operator, task, dtype
        files = list_files(path, [MEASUREMENT_SUFFIX])
        self._files = [file for file in files if file.suffix == MEASUREMENT_SUFFIX][:limit]
        self._pictures: Images | None = None
        self._path = path
        if self._files:
            self.names = distinct([_stated_name(file) for file in self._files])
        else:
            shape = operator.output_shape
            if not operator.measures_pictures:
                raise DataError(
                    f"data.path={path}: what {type(operator).__name__} measures is no picture; give "
                    f"{MEASUREMENT_SUFFIX} files, as `ilo measure` writes them"
                )
            self._pictures = load_images(path, shape, limit, exact=True)
            self.names = self._pictures.names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]
        measurement = self._read(index)
        digest = digest_of(measurement)
        measurement = measurement.to(device_of(self.operator), self.dtype)
        return Observation(self.names[index], digest, measurement, None)

    def digest(self, index: int) -> str:
        return digest_of(self._read(index))

    def _read(self, index: int) -> Measurement:
        if self._pictures is not None:
            y = self._pictures[index].pixels[None]
            weight = self.operator.weight.to("cpu", y.dtype)
            return Measurement(torch.where(weight > 0, y, torch.zeros_like(y)), weight.clone())
        file = self._files[index]
        named = where(self._path, str(file))
        try:
            measurement, info = Measurement.load(file)
        except MeasurementError as error:
            raise DataError(f"{named}: {error}") from error
        if tuple(measurement.y.shape) != (1, *self.operator.output_shape):
            raise DataError(
                f"{named}: y has the shape {tuple(measurement.y.shape[1:])}, this task's operator gives "
                f"{self.operator.output_shape}{_remedy(info)}"
            )
        self._check_task(named, info)
        return measurement

    @property
    def noise_is_stated(self) -> bool:
        """Whether the files say how they were measured; of pictures, nobody knows."""
        return bool(self._files) and all(_section(_header_of(file).get("task"), "noise") for file in self._files)

    def _check_task(self, named: str, info: Mapping[str, Any]) -> None:
        """Refuse a measurement of another A, or with other noise, as far as its header tells."""
        theirs, ours = _section(info.get("task"), "operator"), _section(self.task, "operator")
        changes = identity.differences(theirs, ours) if theirs else []
        fingerprint = info.get("operator")
        if not changes and fingerprint and fingerprint != identity.fingerprint(self.operator):
            changes = ["the same settings, other numbers: another mask, or another version of the operator"]
        if changes:
            raise DataError(f"{named}: measured by another operator ({'; '.join(changes[:4])}){_remedy(info)}")
        theirs, ours = _section(info.get("task"), "noise"), _section(self.task, "noise")
        noises = [f"task.noise.{line}" for line in identity.differences(theirs, ours)] if theirs else []
        if noises:
            raise DataError(f"{named}: measured with other noise ({'; '.join(noises)}){_remedy(info)}")


class Requested(Observations):
    """No picture was observed: y is what the user asks for, such as a class. Each of the observations is one more
    attempt, with randomness of its own.

    Args:
        operator: A.
        y: ``(1, *output_shape)``.
        count: how many attempts.
        dtype: of y.
    """

    def __init__(self, operator: ForwardOperator, y: Tensor, count: int, dtype: torch.dtype) -> None:
        self.operator, self.attempts = operator, count
        self.measurement = Measurement(y.to(dtype), operator.weight.to("cpu", dtype))

    def __len__(self) -> int:
        return self.attempts

    def __getitem__(self, index: int) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]
        measurement = self.measurement.to(device_of(self.operator))
        return Observation(f"{index:03d}", self.digest(index), measurement, None)

    def digest(self, index: int) -> str:
        if not 0 <= index < self.attempts:
            raise IndexError(index)
        return hashlib.sha256(f"{digest_of(self.measurement)} attempt {index}".encode()).hexdigest()


def observe(observations: Sequence[Observation]) -> Measurement:
    """The measurements of several observations as one batch."""
    return Measurement.cat([observation.measurement for observation in observations])


def header(operator: ForwardOperator, task: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """What a measurement file says about itself: the image's name, the task, and a fingerprint of A."""
    return {
        "image": name,
        "task": task,
        "image_shape": list(operator.input_shape),
        "operator": identity.fingerprint(operator),
    }


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def digest_of(measurement: Measurement) -> str:
    """SHA-256 (hex) of y and its weight."""
    digest = hashlib.sha256()
    for tensor in (measurement.y, measurement.weight):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _section(task: Any, name: str) -> dict[str, Any]:
    """A part of a task's configuration, such as ``operator`` or ``noise``; of a mask, the content counts and not the
    path."""
    section = task.get(name) if isinstance(task, Mapping) else None
    return _without_masks(section) if isinstance(section, Mapping) else {}


def _without_masks(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_masks(inner) for key, inner in value.items() if key != "mask"}
    return [_without_masks(inner) for inner in value] if isinstance(value, list) else value


def _remedy(info: Mapping[str, Any]) -> str:
    """The overrides that describe the operator of a measurement file."""
    task = info.get("task")
    if not isinstance(task, Mapping) or "name" not in task:
        return ""
    given = {key: value for key, value in task.items() if isinstance(value, int | float | str)}
    overrides = [f"task={task['name']}"]
    overrides += [f"task.{key}={value}" for key, value in given.items() if key not in ("name", "radius")]
    overrides += [f"task.noise.{key}={value}" for key, value in _section(task, "noise").items() if key != "_target_"]
    return f"; its header says {' '.join(overrides)}"


def _header_of(file: Path) -> dict[str, Any]:
    """What a measurement file says about itself; nothing, if it is none, which is refused where it is read."""
    try:
        return Measurement.read_info(file)
    except MeasurementError:
        return {}


def _stated_name(file: Path) -> str:
    """The image's name that a measurement file states, if it is fit for a file name; else the file's own."""
    name = _header_of(file).get("image")
    return name if isinstance(name, str) and re.fullmatch(r"\w[\w .,+=()-]{0,99}", name) else name_of(file)
