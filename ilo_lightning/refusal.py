"""What is wrong with a command line, in one line with the nearest thing that would be right."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from .errors import first_line
from .sweeps.plan import quoted

EXTRAS = {"submitit_slurm": "slurm", "joblib": "joblib"}
"""Launchers that come from other packages, and the extra that brings them."""
CONFIGURATION_ERRORS = (HydraException, OmegaConfBaseException)
EXPLAINED = (*CONFIGURATION_ERRORS, YAMLError, ValueError)
"""What Hydra raises about a command line: a ValueError for a group set to null, say."""
OWN = ("generator.", "task.operator.", "task.noise.", "trainer.", "logger.")
"""Sections that go whole to somebody's own class, or to Lightning: they may get any key."""
OPEN = ("generator", "task", "method", "perceptual", "trainer", "logger", "hydra")
"""Sections of which somebody else refuses what is unknown, or where one's own configuration may read it."""
CLOSED = ("data", "metrics", "ops")
"""Sections of which the known keys are read, and no others."""
LISTS = ("metrics.perceptual",)
"""Take a list, although what ships is a word."""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One line for an error of Hydra's about ``arguments``, naming the nearest key or choice where one is unknown."""
    first = first_line(error)
    if isinstance(error, YAMLError):
        return _no_yaml(error)
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override, first)
    if first.startswith("Primary config module 'ilo_lightning.conf'"):
        return "ilo-lightning is not installed, only on the path; pip install -e . where its pyproject.toml is"
    overrides = _overrides(arguments)
    if isinstance(error, MissingConfigException):
        choices, missing = list(error.options or ()), str(error.missing_cfg_file).removesuffix(".yaml")
        extra = missing.partition("hydra/launcher/")[2]
        if extra in EXTRAS:
            return f"hydra/launcher: needs pip install 'ilo-lightning[{EXTRAS[extra]}]'"
        for override in overrides:
            for value in _values(override):
                if value not in choices and f"/{missing}".endswith(f"/{override.key_or_group}/{value}"):
                    named = override.get_key_element()
                    choices = choices or _choices_of(override.key_or_group)
                    return f"{named}={value}: no such choice{_nearest(value, choices)}; there are {', '.join(choices)}"
    if first.startswith("Config group override must be"):
        for override in overrides:
            if override.value() is None and "." not in override.key_or_group:
                return f"{override.get_key_element()}=null: expected the name of a choice; `--help` lists them"
    if first.startswith(("Multiple values for ", "Could not append to config")):
        words = [word.strip("'.") for word in first.split()]
        for override in overrides:
            if override.is_add() and override.get_key_element()[1:] in words:
                return f"{override.input_line}: is there already; write it without the +"
    if isinstance(error, ConfigCompositionException | ConfigKeyError):
        tree = _composed(arguments, overrides)
        for override in overrides if tree else ():
            if problem := _unknown(override, tree):
                return problem
        if first.startswith("Ambiguous value"):
            return f"{first}; for a run per value add -m{_instead(overrides, tree)}"
    if found := re.search(r"'sizes\.([^.]*)\.", first):
        return f"size={found[1]}: expected small or full"
    return first


def unread(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first override that Hydra takes and nothing would read: a ``+KEY`` that is no option, or
    a ``baseline=NAME``. None if there is none, or if Hydra refuses the command line anyway."""
    overrides = _overrides(arguments)
    for override in overrides:
        named = override.is_sweep_override() or isinstance(override.value(), str)
        if override.key_or_group == "baseline" and named:
            return _choose_baseline(override)
    added = [
        override
        for override in overrides
        if (override.is_add() or override.is_force_add())
        and (override.package or re.split("[./]", override.key_or_group)[0] not in OPEN)
    ]
    if not added:
        return None
    try:
        chosen = _choices(_load(arguments, overrides))
        added = [override for override in added if override.package or override.key_or_group not in chosen]
        tree = _load(arguments, [override for override in overrides if override not in added])
    except EXPLAINED:
        return None
    known = list(_keys(tree))
    for override in added:
        key = override.package or override.key_or_group
        section = key.partition(".")[0]
        if key in known or (section in (*tree, *OPEN) and section not in CLOSED) or key.startswith("_"):
            continue
        if re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", f"{tree} {arguments}"):
            continue
        if override.package:
            if override.get_key_element().lstrip("+") not in _choices(tree):
                return _no_place(override, list(_choices(tree)))
        elif section == "baseline":
            return _choose_baseline(override)
        else:
            return f"{override.input_line}: nothing reads {key}{_nearest(key, known)}; `--cfg job` shows all options"
    return None


def of_each_point(arguments: Sequence[str]) -> list[str]:
    """The arguments of an experiment, with an option that only some of its grids have as a sweep of one value: Hydra
    sets it at each point then, where the grid's own choice has it, and not before any was chosen."""
    overrides = _overrides(arguments)
    tree = _composed(arguments, overrides)
    sweeper = tree.get("hydra", {}).get("sweeper", {})
    grids = [sweeper.get("params") or {}, *(sweeper.get("either") or [])]
    chosen, known = {key for grid in grids for key in grid if "." not in key}, set(_keys(tree))
    single = {
        override.input_line: f"{key}=choice({str(override.input_line).partition('=')[2]})"
        for override in overrides
        if (key := override.key_or_group) not in known
        and key.partition(".")[0] in chosen - {key}
        and not override.is_sweep_override()
        and not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    }
    return [single.get(argument, argument) for argument in arguments]


def _no_yaml(error: YAMLError) -> str:
    """Where in which file, as far as the error says."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"{getattr(error, 'name', 'configuration')}: not YAML ({first_line(error)})"
    return f"{mark.name}:{mark.line + 1}: not YAML ({problem or first_line(error)})"


def _unparsed(argument: str, reason: str) -> str:
    """Of a value with characters that Hydra's grammar has another use for: how it is quoted."""
    key, equals, value = argument.partition("=")
    functions = "|".join(create_functions().definitions)
    remedy = f"{key}={quoted(value)}"
    if equals and not re.match(rf"[\[{{'\"]|({functions})\(", value) and _overrides([remedy]):
        typed = shlex.quote(remedy) if re.search(r'["$`!]|\\\\', remedy) else f'"{remedy}"'
        return f"{argument}: needs quotes: {typed}"
    return f"{argument}: not an override, expected key=value ({reason})"


def _unknown(override: Override, tree: Mapping[str, Any]) -> str | None:
    """What is wrong if it is of a key or a place that the configuration ``tree`` doesn't have."""
    key, known = override.key_or_group.replace("/", "."), list(_keys(tree))
    if override.is_add() or override.is_force_add():
        return None
    if override.package is not None:
        places = [*_choices(tree), *known]
        there = override.package.startswith("_") or override.package in known
        return None if there or override.get_key_element().lstrip("~") in places else _no_place(override, places)
    if key in _groups() or key in known:
        return None
    if key.partition(".")[0] == "baseline" and "baseline" not in tree:
        return _choose_baseline(override)
    group, values = _shipped(key)
    if values:
        name, *others = values
        more = f" (or {', '.join(others)})" if others else ""
        return f"{key}: {group}={_choices(tree).get(group)} has no such option; choose {group}={name}{more}"
    add = f", +{key}=… adds one" if key.startswith(OWN) and not override.is_delete() else ""
    return f"{override.key_or_group}: no such option{_nearest(key, known)}; `--cfg job` shows all{add}"


def _choose_baseline(override: Override) -> str:
    names = _choices_of("method")
    if "." in override.key_or_group:
        return f"{override.input_line}: there is no baseline; choose one by method@baseline=csgm"
    name = next((value for value in (*_values(override), "csgm") if value in names), "csgm")
    return f"{override.input_line}: choose a baseline by method@baseline={name}"


def _no_place(override: Override, places: Sequence[str]) -> str:
    named = override.get_key_element().lstrip("+~")
    return f"{override.input_line}: no such place{_nearest(named, places)}"


def _instead(overrides: Sequence[Override], tree: Mapping[str, Any]) -> str:
    """What else several values may have been meant for."""
    for override in overrides:
        if override.is_sweep_override():
            key = override.key_or_group
            if key == "data.path":
                return "; a folder or a glob takes several pictures"
            value = _at(tree, key.split("."))
            values = [value, *_shipped(key)[1].values()]
            if key in LISTS or value is None or any(isinstance(each, list) for each in values):
                return f", for a list write {key}=[{','.join(_values(override))}]"
            break
    return ""


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
    """What an override sets, or each of the values that it sweeps or lists."""
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    value = override.value()
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _composed(arguments: Sequence[str], overrides: Sequence[Override]) -> dict[str, Any]:
    """The configuration with those of the overrides that choose from a group; without any, if that fails too."""
    search = [override for override in overrides if override.key_or_group == "hydra.searchpath"]
    top = [override for override in overrides if "." not in override.key_or_group]
    groups = [override for override in top if override.key_or_group.partition("/")[0] in _groups()]
    for chosen in ([*search, *top], [*search, *groups], search, []):
        try:
            return _load(arguments, chosen)
        except EXPLAINED:
            continue
    return {}


def _load(arguments: Sequence[str], overrides: Sequence[Override]) -> dict[str, Any]:
    """The configuration that the flags among the arguments name, with these overrides; the first value of a sweep."""
    version.setbase("1.3")
    flags = get_args_parser().parse_known_args(list(arguments))[0]
    folder = flags.config_path or "pkg://ilo_lightning.conf"
    path = create_automatic_config_search_path(None, "ilo_lightning.main", folder)
    if flags.config_dir:
        path.prepend("command-line", f"file://{Path(flags.config_dir).absolute()}", SearchPathQuery("schema"))
    words = [
        f"{o.get_key_element()}={_values(o)[0]}" if o.is_discrete_sweep() else str(o.input_line)
        for o in overrides
        if o.is_discrete_sweep() or not o.is_sweep_override()
    ]
    config = ConfigLoaderImpl(path).load_configuration(flags.config_name or "config", words, RunMode.RUN)
    tree: Any = OmegaConf.to_container(config, resolve=False)
    return tree


def _choices(tree: Mapping[str, Any]) -> dict[str, str | None]:
    """Group, with its package if that isn't its own -> what was chosen."""
    return tree["hydra"]["runtime"]["choices"]


def _conf() -> Path:
    """The configuration that ships."""
    return Path(str(resources.files("ilo_lightning.conf")))


def _choices_of(group: str) -> list[str]:
    """Those that ship."""
    return sorted(path.stem for path in (_conf() / group).glob("*.yaml"))


def _shipped(key: str) -> tuple[str, dict[str, Any]]:
    """The group that a key belongs to, and choice -> value for each of its choices that has the key in its file."""
    parts = key.split(".")
    for at in range(len(parts) - 1, 0, -1):
        group = "/".join(parts[:at])
        files = {name: OmegaConf.load(_conf() / group / f"{name}.yaml") for name in _choices_of(group)}
        values = {name: _at(OmegaConf.to_container(file), parts[at:]) for name, file in files.items()}
        values = {name: value for name, value in values.items() if value is not ...}
        if values and group != "experiment":
            return group, values
    return "", {}


def _at(tree: Any, path: Sequence[str]) -> Any:
    """What is there in a tree of mappings; ``...`` for nothing."""
    for name in path:
        tree = tree.get(name, ...) if isinstance(tree, Mapping) else ...
    return tree


def _groups() -> set[str]:
    """Of configurations; among them ``experiment``, which is no key: an experiment sets keys of all sections."""
    return {entry.name for entry in _conf().iterdir() if entry.is_dir()}


def _keys(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for the whole key, or else for its last part at any place."""
    known = [name for name in known if not word.startswith(f"{name}.")]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not close:
        leaves = {name.rpartition(".")[2]: name for name in known if not name.startswith("hydra.")}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(word.rpartition(".")[2], list(leaves), n=1)]
    return f"; did you mean {close[0]}?" if close else ""
