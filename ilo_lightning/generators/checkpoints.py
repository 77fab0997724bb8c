"""StyleGAN2 checkpoints: those of others and our own, recognised by what they hold."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically
from .containers import Content, find, open_checkpoint, sha256
from .inert_pickle import Record
from .persistent_modules import settings, state_dict
from .statistics import NAMES, set_statistics
from .stored import CheckpointError, StoredTensor
from .stylegan2 import StyleGAN2
from .stylegan2_layers import fir_kernel
from .stylegan2_layouts import NVIDIA, Match, convert, match

__all__ = ["CheckpointError", "load_generator", "save_generator", "sha256"]

FORMAT = "ilo_lightning.stylegan2/1"

ELSEWHERE = (
    (r"synthesis\.L\d+_\d+_\d+\..*|synthesis\.input\.freqs", "a StyleGAN3 (alias-free)"),
    (r"(module\.|generator\.)*progression\.\d+\..*", "a StyleGAN1"),
    (r".*\bg_synthesis\..*", "a StyleGAN1"),
    (r"(module\.|generator\.)*(blocks\.\d+\.\d+|layers\.\d+)\.(conv_?1|bn_?1|gen_z)\..*", "a BigGAN"),
    (r"(module\.)*main\.\d+\.weight", "a DCGAN (generator=dcgan)"),
    (r"(.*\.)?(final_conv|final_linear|fromrgb|from_rgb|b4\.out)\..*", "a discriminator"),
)
"""What names of tensors tell about networks that are no generator of a StyleGAN2."""


def save_generator(generator: StyleGAN2, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write weights, statistics, configuration and ``provenance`` (JSON values) to one safetensors file."""
    header = {"format": FORMAT, "config": json.dumps(generator.config), "provenance": json.dumps(provenance or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    write_atomically(path, save(tensors, metadata=header))


def load_generator(
    checkpoint: str | Path,
    sha256: str | None = None,
    label: int | Sequence[float] | None = None,
    recompute: bool = False,
) -> StyleGAN2:
    """The frozen generator of a checkpoint: eval mode, no gradients to weights, float32 (our own files: as saved).

    Recognised by content: a safetensors file of ``save_generator`` or ``ilo convert``; a ``.pt`` in the layout of
    rosinality's stylegan2-pytorch (preferably what it has under ``g_ema``); a ``.pkl`` of NVIDIA's
    stylegan2-ada-pytorch. Nothing that the file carries is executed. Where it holds no latent statistics they are
    fitted, and kept in a cache (see ``statistics``).

    Args:
        checkpoint: a path, which may begin with ``pkg://`` (see ``files.locate``).
        sha256: hex digest that the file must have; None: any.
        label: for a conditional generator, the class, or the whole label; None: the one it was saved with.
        recompute: less memory for more time, see ``StyleGAN2.recompute``.

    Returns:
        The generator. Its ``provenance`` says where it came from: the path as given, the file's SHA-256, the layout,
        and the label if there is one.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds something else; names what differs.
    """
    if checkpoint is None:  # as a configuration may have it
        raise CheckpointError("generator.checkpoint=null: expected a file; give generator.checkpoint=PATH")
    try:
        generator = _load(checkpoint, sha256, label)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(
            message if message.startswith("generator.") else f"generator.checkpoint={checkpoint}: {message}"
        ) from error
    generator.recompute = recompute
    return generator


def _load(checkpoint: str | Path, pin: str | None, label: int | Sequence[float] | None) -> StyleGAN2:
    path = find(checkpoint)
    digest = None if pin is None else sha256(path)
    if digest is not None and digest != str(pin).lower():
        raise CheckpointError(f"generator.sha256={pin}: {checkpoint} has {digest}; another file, or a damaged one")
    with open_checkpoint(path) as content:
        found = _own(content) if (content.header or {}).get("format") == FORMAT else _foreign(content)
    generator = _build(found)
    digest = digest or sha256(path)
    generator.provenance = {"checkpoint": str(checkpoint), "sha256": digest, "layout": found.layout}
    if _choose_label(generator, label) or not set(NAMES) <= set(found.tensors):
        set_statistics(generator, digest)
        if found.mean is not None:
            generator.w_mean.copy_(found.mean)
    if generator.label is not None:
        generator.provenance["label"] = json.dumps(generator.label.tolist())
    for note in found.notes:
        print(f"note: {checkpoint}: {note}", file=sys.stderr)
    return generator


@dataclass(frozen=True)
class _Found:
    """What a file came to.

    Args:
        layout: where its names come from.
        config: arguments of ``StyleGAN2``.
        tensors: under our names; without statistics, if the file has none.
        mean: of w, as its authors have it: truncation rests on it.
        notes: what the user should know.
    """

    layout: str
    config: Mapping[str, Any]
    tensors: dict[str, Tensor]
    mean: Tensor | None = None
    notes: tuple[str, ...] = ()


def _own(content: Content) -> _Found:
    header = content.header or {}
    try:
        config, provenance = json.loads(header["config"]), json.loads(header.get("provenance", "{}"))
        if int(config["mapping_depth"]) > len(content.data):
            raise ValueError("more mapping layers than tensors")
        tensors = {name: stored.load() for name, stored in content.data.items()}
        return _Found(str(provenance.get("layout", "ilo-lightning")), config, tensors, tensors["w_mean"].clone())
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"its header is damaged ({type(error).__name__}: {error})") from error


def _build(found: _Found) -> StyleGAN2:
    try:
        with torch.device("meta"):
            generator = StyleGAN2(**found.config)
        size = generator.style_dim
        unfitted = dict(
            zip(NAMES, (torch.zeros(size), torch.ones(()), torch.zeros(size), torch.ones(size)), strict=True)
        )
        generator.load_state_dict({**unfitted, **found.tensors}, assign=True)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:240]
        raise CheckpointError(f"header and tensors don't make a StyleGAN2 ({reason})") from error
    generator.fir = fir_kernel(4.0, generator.config["resample_filter"]).to(generator.const)
    return generator.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _choose_label(generator: StyleGAN2, label: int | Sequence[float] | None) -> bool:
    """Put the label in use into the generator. Returns whether that is another than the file's."""
    current, count = generator.label, generator.config["label_dim"]
    if current is None:
        if label is not None:
            raise CheckpointError(f"generator.label={label}: this generator knows no labels; leave it null")
        return False
    classes = f"expected a class, 0 … {count - 1}, or a list of {count} numbers"
    if label is None:
        if not bool(current.any()):
            raise CheckpointError(f"generator.label=null: this generator is conditional; {classes}")
        return False
    values: list[float] | None = None
    if type(label) is int and 0 <= label < count:
        values = [float(index == label) for index in range(count)]
    elif isinstance(label, Sequence) and not isinstance(label, str) and len(label) == count:
        values = list(label) if all(type(part) in (int, float) and math.isfinite(part) for part in label) else None
    if values is None:
        raise CheckpointError(f"generator.label={label}: {classes}")
    chosen = torch.tensor(values)
    changed = not torch.equal(chosen, current)
    current.copy_(chosen)
    return changed


@dataclass(frozen=True)
class _Candidate:
    """A state dict that a file holds, under ``name``; ``record``: that of the network it is of, if there is one."""

    name: str
    state: dict[str, StoredTensor]
    record: Record | None = None
    beside: Mapping[str, StoredTensor] = field(default_factory=dict)


AVERAGES = ("g_ema", "G_ema")
TRAINED = ("g", "G", "generator", "state_dict")


def _candidates(data: Any) -> list[_Candidate]:
    """The state dicts in a file, the likeliest first."""
    found = [_Candidate("", *_state(data))]
    if isinstance(data, dict):
        beside = {name: value for name, value in data.items() if isinstance(value, StoredTensor)}
        found += [_Candidate(str(name), *_state(value), beside) for name, value in data.items()]
    elif isinstance(data, list | tuple):
        found += [_Candidate(str(place), *_state(value)) for place, value in enumerate(data)]
    order = [*AVERAGES, "", *TRAINED]
    found = [candidate for candidate in found if candidate.state]
    return sorted(found, key=lambda one: order.index(one.name) if one.name in order else len(order))


def _state(value: Any) -> tuple[dict[str, StoredTensor], Record | None]:
    if isinstance(value, Record):
        return state_dict(value), value
    tensors = value.items() if isinstance(value, dict) else ()
    state = {name: part for name, part in tensors if isinstance(name, str) and isinstance(part, StoredTensor)}
    for anchor in ("input.input", "synthesis.b4.const"):  # of a network inside another, or of DataParallel
        inner = [name.removesuffix(anchor) for name in state if name.endswith(f".{anchor}")]
        inner = [prefix for prefix in inner if "ema" in prefix] or inner
        if len(inner) == 1:
            prefix = inner[0]
            state = {name.removeprefix(prefix): part for name, part in state.items() if name.startswith(prefix)}
    return state, None


def _foreign(content: Content) -> _Found:
    candidates = _candidates(content.data)
    if not candidates:
        raise CheckpointError(f"a file of {content.kind} that holds no state dict (names with tensors)")
    best: tuple[Match, _Candidate] | None = None
    for candidate in candidates:
        given, half = settings(candidate.record) if candidate.record else (None, 0)
        fit = match(candidate.state, given)
        if not fit.differences:
            return _convert(content, candidate, fit, half)
        if best is None or fit.share > best[0].share:
            best = fit, candidate
    assert best is not None
    fit, candidate = best
    kind = next((kind for pattern, kind in ELSEWHERE for name in candidate.state if re.fullmatch(pattern, name)), None)
    raise CheckpointError(
        f"no StyleGAN2 that can be loaded{f'; it looks like {kind}' if kind else ''}. The nearest layout is that of "
        f"{fit.layout.title}{f', under {candidate.name!r}' if candidate.name else ''}: {'; '.join(fit.differences)}"
    )


def _convert(content: Content, candidate: _Candidate, fit: Match, half: int) -> _Found:
    state = {**candidate.beside, **candidate.state}
    config, tensors = convert(fit, state)
    notes = []
    kinds = {str(stored.dtype).removeprefix("torch.") for stored in candidate.state.values()} - {"float32"}
    if kinds:
        notes.append(f"its weights in {', '.join(sorted(kinds))} are computed with in float32")
    if candidate.name in TRAINED:
        notes.append(f"it has no {' or '.join(AVERAGES)}; took {candidate.name}")
    if fit.layout is NVIDIA and candidate.record is None:
        notes.append("a bare state dict doesn't say whether activations are clamped (conv_clamp); took them not to be")
    if half:
        notes.append(f"its last {half} blocks were made for float16 on GPUs; computed in float32, as on CPUs")
    mean = state.get(fit.layout.mean)
    mean = mean.load().float() if mean is not None and mean.shape == (config["style_dim"],) else None
    return _Found(f"{fit.layout.title} ({content.kind})", config, tensors, mean, tuple(notes))
