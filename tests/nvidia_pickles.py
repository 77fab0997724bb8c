"""Write pickles as NVIDIA's stylegan2-ada-pytorch does: modules become records with the source of their class."""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

HOSTILE = "raise SystemExit('the source that the pickle carries was executed')\n"


class PersistentObject:
    """An object that is pickled by its class name, its source and its attributes."""

    def __init__(self, class_name: str, source: str = HOSTILE, **state: Any):
        self.class_name, self.source, self.state = class_name, source, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.class_name}
        return _reconstruct, ({**meta, "state": self.state},)


def _reconstruct(meta: dict) -> None:
    raise AssertionError("never called: only its name is written")


class EasyDict(dict):
    """Stands for dnnlib's."""


def module(class_name: str, tensors: Mapping[str, Tensor] | None = None, source: str = HOSTILE, **more: Any):
    """A record of a torch module: ``tensors`` are its own, ``more`` its submodules and other attributes."""
    tensors = dict(tensors or {})
    buffers = {name: tensors.pop(name) for name in list(tensors) if name in ("noise_const", "resample_filter", "w_avg")}
    return PersistentObject(
        class_name,
        source,
        training=False,
        _parameters=OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in tensors.items()),
        _buffers=OrderedDict(buffers),
        _non_persistent_buffers_set=set(),
        _backward_hooks=OrderedDict(),
        _modules=OrderedDict((name, part) for name, part in more.items() if isinstance(part, PersistentObject)),
        **{name: part for name, part in more.items() if not isinstance(part, PersistentObject)},
    )


def network(
    state: Mapping[str, Tensor],
    conv_clamp: float | None = None,
    lr_multiplier: float = 0.01,
    num_fp16_res: int = 0,
    use_noise: bool = True,
    source: str = HOSTILE,
) -> PersistentObject:
    """The record of a generator with these tensors, and with the attributes that its layers keep."""

    def build(prefix: str) -> PersistentObject:
        own, below = {}, {}
        for name, tensor in state.items():
            if name.startswith(prefix):
                head, _, rest = name.removeprefix(prefix).partition(".")
                if not rest:
                    own[head] = tensor
                elif head not in below:
                    below[head] = build(f"{prefix}{head}.")
        leaf = prefix.rstrip(".").rpartition(".")[2]
        attributes: dict[str, Any] = {"_init_args": (), "_init_kwargs": EasyDict()}
        if leaf in ("conv0", "conv1"):
            attributes |= {"conv_clamp": conv_clamp, "use_noise": use_noise, "activation": "lrelu"}
            attributes["up"] = 2 if leaf == "conv0" else 1
        elif leaf in ("torgb", "skip"):
            attributes["conv_clamp"] = conv_clamp if leaf == "torgb" else None
        elif leaf.startswith("fc"):
            attributes |= {"activation": "lrelu", "bias_gain": lr_multiplier}
        elif leaf.startswith("b") and leaf[1:].isdigit():
            sides = sorted(int(name.split(".")[1][1:]) for name in state if name.endswith(".conv1.weight"))
            attributes["use_fp16"] = int(leaf[1:]) in sides[len(sides) - num_fp16_res :]
        return module(
            {"": "Generator", "mapping": "MappingNetwork"}.get(leaf, "Layer"), own, source, **below, **attributes
        )

    return build("")


def dump(data: Any, protocol: int = 4) -> bytes:
    """``pickle.dumps`` in a world where NVIDIA's modules exist."""
    names = {"torch_utils": {}, "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct}}
    names |= {"dnnlib": {}, "dnnlib.util": {"EasyDict": EasyDict}}
    saved = {EasyDict: (EasyDict.__module__, EasyDict.__qualname__)}
    for name, contents in names.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(contents)
    origin = _reconstruct.__module__, _reconstruct.__qualname__
    try:
        _reconstruct.__module__, _reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
        EasyDict.__module__ = "dnnlib.util"
        stream = io.BytesIO()
        pickle.Pickler(stream, protocol).dump(data)
        return stream.getvalue()
    finally:
        _reconstruct.__module__, _reconstruct.__qualname__ = origin
        EasyDict.__module__, EasyDict.__qualname__ = saved[EasyDict]
        for name in names:
            del sys.modules[name]


def container(generator: PersistentObject, **more: Any) -> dict[str, Any]:
    """What their training writes: ``generator`` as G and G_ema, and what goes with it."""
    discriminator = module("Discriminator", {"weight": torch.ones(3)})
    return {"G": generator, "D": discriminator, "G_ema": generator, "training_set_kwargs": EasyDict(), **more}
