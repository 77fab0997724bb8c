"""Configurations as flat settings: what differs between points, and what people call it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from ..identity import PLACEMENT, SIZES, is_below

Settings = dict[str, Any]
"""Dotted key to a number, text, truth value or None; a list is its JSON text."""

MAIN = ("task.fraction", "task.factor", "task.noise.sigma", "task.noise.peak", "method.radius", "method.steps", "seed")
"""Always columns of the collected table where a configuration has them, and the first to tell points apart."""

# A batch only rounds otherwise.
_PLACEMENT = (*PLACEMENT, *SIZES, "data.batch_size")
# task.radius acts only through method.radius, and only on the methods that have one; metrics say how they are computed.
_NO_DIFFERENCE = (*_PLACEMENT, "data.limit", "task.radius", "metrics")

NAMES = {
    "task": "task",
    "method": "method",
    "task.fraction": "measured fraction",
    "task.measurements": "measurements",
    "task.factor": "reduction factor",
    "task.noise.sigma": "noise σ",
    "task.noise.peak": "photons at peak",
    "task.noise._target_": "noise",
    "method.radius": "l1 radius",
    "method.steps": "steps",
    "method.lr": "learning rate",
    "method.layers": "layers",
    "data.path": "images",
    "generator.checkpoint": "generator",
}


def settings(config: Mapping[str, Any], role: str = "method") -> Settings:
    """All settings of one method of a point, under the same keys for each: the baseline's too are ``method.…``. Without
    a network that the method gives no weight."""
    found: Settings = {}
    method = config.get(role)
    terms = method.get("data_fit") if isinstance(method, Mapping) else None
    weight = terms.get("perceptual") if isinstance(terms, Mapping) else None
    unused = () if any(weight if isinstance(weight, list) else [weight]) else ("perceptual",)
    for section, value in config.items():
        if section == role:
            _flatten("method", value, found)
        elif section not in ("method", "baseline", *unused):
            _flatten(str(section), value, found)
    return found


def flat(config: Mapping[str, Any]) -> Settings:
    """A whole configuration."""
    found: Settings = {}
    for section, value in config.items():
        _flatten(str(section), value, found)
    return found


def _flatten(prefix: str, value: Any, into: Settings) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}", inner, into)
    elif isinstance(value, list | tuple):
        into[prefix] = json.dumps(value)
    else:
        plain = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value))
        into[prefix] = value if plain else str(value)


def varying(all_settings: Sequence[Settings]) -> list[str]:
    """The keys that differ among settings of one task and one method, most telling first, without those that always
    equal one before."""
    names = [(entry.get("task.name"), entry.get("method.name")) for entry in all_settings]
    found: dict[tuple[Any, ...], str] = {}
    for key in sorted(_keys(all_settings), key=_prominence):
        column = tuple(_comparable(entry.get(key)) for entry in all_settings)
        if len({*zip(names, column, strict=True)}) > len({*names}) and not is_below(key, _PLACEMENT):
            found.setdefault(column, key)
    return list(found.values())


def telling(all_settings: Sequence[Settings], given: Sequence[Sequence[Any]] = ()) -> list[str]:
    """As few keys as are needed to tell the settings apart, beyond the columns that are ``given``.

    A setting that follows from others is not among them: with the task differ its parameters' defaults.
    """
    known = [tuple(_comparable(column[i]) for column in given) for i in range(len(all_settings))]
    kept: list[str] = []
    for key in varying(all_settings):
        if is_below(key, _NO_DIFFERENCE):
            continue
        finer = [(*known[i], _comparable(entry.get(key))) for i, entry in enumerate(all_settings)]
        if len(set(finer)) > len(set(known)):
            known = finer
            kept.append(key)
    return kept


def name_of(key: str, among: Iterable[str] = ()) -> str:
    """What a setting is called in tables and plots: its usual name, or as much of its key as tells it from others."""
    if key in NAMES:
        return NAMES[key]
    words = key.split(".")
    for length in range(1, len(words) + 1):
        name = ".".join(words[-length:])
        if not any(other != key and (other == name or other.endswith(f".{name}")) for other in among):
            return name.replace("_", " ")
    return key


def text_of(value: Any, key: str = "") -> str:
    """A value of a setting, short."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    if text.startswith("["):
        return _list_text(text)
    if key.endswith("._target_"):
        return text.rpartition(".")[2]
    if key in ("data.path", "generator.checkpoint") and "/" in text:
        return text.rstrip("/").rpartition("/")[2]
    return text


def _list_text(text: str) -> str:
    """``4×50`` for four times 50, ``50, 20`` for others."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    if not values or any(isinstance(value, list | dict) for value in values):
        return text
    words = [text_of(value) for value in values]
    if len(set(words)) == 1:
        return words[0] if len(words) == 1 else f"{len(words)}×{words[0]}"
    return ", ".join(words)


def _keys(all_settings: Sequence[Settings]) -> list[str]:
    return list(dict.fromkeys(key for entry in all_settings for key in entry))


def _comparable(value: Any) -> Any:
    """Truth values and numbers are told apart, 1 and 1.0 are not."""
    return (type(value).__name__, value) if isinstance(value, bool) else value


def _prominence(key: str) -> tuple[int, int, str]:
    return (MAIN.index(key) if key in MAIN else len(MAIN), key.count("."), key)
