"""What is wrong with a command line, in one line with the nearest thing that would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from .errors import first_line

EXTRAS = {"submitit_slurm": "slurm", "joblib": "joblib"}
"""Launchers that come from other packages, and the extra that brings them."""
CONFIGURATION_ERRORS = (HydraException, OmegaConfBaseException)


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One line for an error of Hydra's about ``arguments``, naming the nearest key or choice where one is unknown."""
    first = first_line(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not an override, expected key=value ({first})"
    if first.startswith("Primary config module 'ilo_lightning.conf'"):
        return "ilo-lightning is not installed, only on the path; pip install -e . where its pyproject.toml is"
    overrides = _overrides(arguments)
    if isinstance(error, MissingConfigException):
        choices = list(error.options or ())
        extra = str(error.missing_cfg_file).partition("hydra/launcher/")[2]
        if extra in EXTRAS:
            return f"hydra/launcher: needs pip install 'ilo-lightning[{EXTRAS[extra]}]'"
        for override in overrides:
            for value in _values(override):
                if value not in choices and f"{override.key_or_group}/" in f"{error.missing_cfg_file}/":
                    named = override.get_key_element()
                    return f"{named}={value}: no such choice{_nearest(value, choices)}; there are {', '.join(choices)}"
    if first.startswith("Config group override must be"):
        for override in overrides:
            if override.value() is None and "." not in override.key_or_group:
                return f"{override.get_key_element()}=null: expected the name of a choice; `--help` lists them"
    if isinstance(error, ConfigCompositionException | ConfigKeyError):
        known = list(_keys(_composed(overrides)))
        for override in overrides:
            key = override.key_or_group
            if key in _groups() or override.is_add() or override.is_force_add():
                continue
            if key.replace("/", ".") not in known:
                return f"{key}: no such option{_nearest(key, known)}; `--cfg job` shows all, +{key}=… adds one"
    if found := re.search(r"'sizes\.([^.]*)\.", first):
        return f"size={found[1]}: expected small or full"
    if first.startswith("Ambiguous value"):
        return f"{first}; for a run per value add --multirun, for a list write key=[a,b]"
    return first


def _overrides(arguments: Sequence[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for argument in arguments:
        if not argument.startswith("-"):
            try:
                parsed.append(parser.parse_override(argument))
            except HydraException:
                continue
    return parsed


def _values(override: Override) -> list[str]:
    """What an override sets, or each of the values that it sweeps."""
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [str(override.value())]


def _composed(overrides: Sequence[Override]) -> dict[str, Any]:
    """The configuration with those of the overrides that choose from a group; without any, if that fails too."""
    groups = [
        override for override in overrides if "." not in override.key_or_group and not override.is_sweep_override()
    ]
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        for chosen in ([override.input_line or "" for override in groups], []):
            try:
                config = compose("config", overrides=chosen, return_hydra_config=True)
                tree: Any = OmegaConf.to_container(config, resolve=False)
                return tree
            except CONFIGURATION_ERRORS:
                continue
    return {}


def _groups() -> set[str]:
    """Of configurations; among them ``experiment``, which is no key: an experiment sets keys of all sections."""
    return {entry.name for entry in resources.files("ilo_lightning.conf").iterdir() if entry.is_dir()}


def _keys(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for the whole key, or else for its last part at any place."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not close:
        leaves = {name.rpartition(".")[2]: name for name in known if not name.startswith("hydra.")}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(word.rpartition(".")[2], list(leaves), n=1)]
    return f"; did you mean {close[0]}?" if close else ""
