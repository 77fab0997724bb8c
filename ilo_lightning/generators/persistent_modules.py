"""NVIDIA's pickled networks as inert records: their tensors by name, and what their layers were built with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .inert_pickle import Record
from .stored import CheckpointError, StoredTensor

DEPTH, MODULES = 8, 1000
"""More than any StyleGAN2 has: records may refer to each other in circles."""


def modules(record: Record) -> Iterator[tuple[str, Record]]:
    """The modules of a network, by their names: ``""``, ``"synthesis"``, ``"synthesis.b4"``, …"""
    waiting, seen = [("", record)], 0
    while waiting:
        name, module = waiting.pop()
        seen += 1
        if name.count(".") > DEPTH or seen > MODULES:
            raise CheckpointError("its modules contain each other without end")
        yield name, module
        children = module.state.get("_modules")
        for key, child in children.items() if isinstance(children, dict) else ():
            if isinstance(child, Record):
                waiting.append((f"{name}.{key}" if name else str(key), child))


def state_dict(record: Record) -> dict[str, StoredTensor]:
    """As ``Module.state_dict()`` would give it."""
    tensors: dict[str, StoredTensor] = {}
    for name, module in modules(record):
        hidden = module.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers"):
            held = module.state.get(kind)
            for key, tensor in held.items() if isinstance(held, dict) else ():
                if isinstance(tensor, StoredTensor) and not (kind == "_buffers" and key in hidden):
                    tensors[f"{name}.{key}" if name else str(key)] = tensor
    return tensors


def settings(record: Record) -> tuple[dict[str, Any], int]:
    """What the tensors can't tell: arguments of ``StyleGAN2``, and how many of the last blocks ran in float16.

    Layers keep as attributes what they were built with; a record without them may still have the arguments of the
    classes that contain them.

    Raises:
        CheckpointError: if layers were built otherwise than ``StyleGAN2`` computes.
    """
    layers = dict(modules(record))
    convolutions = _named(layers, r"synthesis\.b\d+\.conv[01]")
    found: dict[str, Any] = {
        "conv_clamp": _common("conv_clamp", {**convolutions, **_named(layers, r"synthesis\.b\d+\.torgb")}),
        "mapping_lr_multiplier": _common("lr_multiplier", _named(layers, r"mapping\.fc\d+"), kept_as="bias_gain"),
    }
    around = {
        "conv_clamp": [_arguments(layers, "synthesis"), _arguments(layers, "").get("synthesis_kwargs")],
        "lr_multiplier": [_arguments(layers, "mapping"), _arguments(layers, "").get("mapping_kwargs")],
    }
    for name, attribute in (("conv_clamp", "conv_clamp"), ("mapping_lr_multiplier", "lr_multiplier")):
        for arguments in around[attribute]:
            if found[name] is _ABSENT and isinstance(arguments, dict):
                found[name] = arguments.get(attribute, _ABSENT)
    found = {name: _number(name, value) for name, value in found.items() if value is not _ABSENT}
    if found.get("mapping_lr_multiplier", 0) is None:
        raise CheckpointError("the lr_multiplier of its mapping network is None")
    if _common("use_noise", convolutions) is False:
        found |= {"noise": False, "constant_noise": False}
    for attribute, expected, pattern in (
        ("activation", "lrelu", r"synthesis\.b\d+\.conv[01]|mapping\.fc\d+"),
        ("conv_clamp", None, r"synthesis\.b\d+\.skip"),
    ):
        value = _common(attribute, _named(layers, pattern))
        if value is not _ABSENT and value != expected:
            raise CheckpointError(f"its {attribute} is {value!r} where StyleGAN2 has {expected!r}")
    blocks = _named(layers, r"synthesis\.b\d+")
    return found, sum(block.state.get("use_fp16") is True for block in blocks.values())


_ABSENT = object()


def _named(layers: Mapping[str, Record], pattern: str) -> dict[str, Record]:
    return {name: layer for name, layer in layers.items() if re.fullmatch(pattern, name)}


def _arguments(layers: Mapping[str, Record], name: str) -> dict[str, Any]:
    arguments = layers[name].state.get("_init_kwargs") if name in layers else None
    return arguments if isinstance(arguments, dict) else {}


def _common(attribute: str, layers: Mapping[str, Record], kept_as: str | None = None) -> Any:
    """The value of an attribute, or else an argument, that these layers have in common."""
    values = [
        layer.state.get(kept_as or attribute, _arguments(layers, name).get(attribute, _ABSENT))
        for name, layer in layers.items()
    ]
    values = [value for value in values if value is not _ABSENT]
    if any(value != values[0] for value in values):
        raise CheckpointError(f"its layers differ in {attribute}: {', '.join(sorted({str(v)[:20] for v in values}))}")
    return values[0] if values else _ABSENT


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"its {name} is no number")
    return float(value)
