"""What a sweep is refused for before any of its points is launched: one line, instead of one failure per point."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..identity import is_below
from .plan import key_of


class SweepError(ValueError):
    """A sweep that can't begin; one line, with a remedy."""


def unset_variable(error: OmegaConfBaseException, master: DictConfig) -> SweepError | None:
    """For a launcher that needs an environment variable; None for another error."""
    found = re.search(r"Environment variable '(\w+)' not found", str(error))
    if found is None:
        return None
    launcher, name = master.hydra.runtime.choices.get("hydra/launcher"), found[1]
    return SweepError(
        f"hydra/launcher={launcher}: the environment variable {name} is not set; {name}=… before the command sets it, "
        f"see conf/hydra/launcher/{launcher}.yaml"
    )


def check_experiment(chosen: Sequence[str], config: DictConfig, master: DictConfig) -> None:
    """Refuse to sweep over experiments that are sweeps themselves: theirs would silently be left out.

    Args:
        chosen: the groups of a point.
        config: what they compose.
        master: the sweep's own configuration.
    """
    own, ours = _grids(config), _grids(master)
    if own != ours:
        own = {**own["params"], **{key: "" for each in own["either"] for key in each}}
        names = " ".join(override for override in chosen if key_of(override) == "experiment") or " ".join(chosen)
        raise SweepError(f"{names}: sweeps over {', '.join(own)} itself, so it can't be one value among others; give "
                         "each such experiment a command of its own")  # fmt: skip


def _grids(config: DictConfig) -> dict[str, Any]:
    """What a configuration sweeps over, as it is written: its values may depend on the command line."""
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    return {"params": sweeper.get("params") or {}, "either": sweeper.get("either") or []}


def unknown_parameter(
    loader: ConfigLoader, master: DictConfig, params: Sequence[str], chosen: Sequence[str], typed: Sequence[str]
) -> SweepError | None:
    """For a point that lacks what its experiment sweeps over, since another choice doesn't have it; None where it is
    something else that can't be composed.

    Args:
        params: the keys that the experiment sweeps over.
        chosen: the groups of the point.
        typed: the keys on the command line.
    """
    config, choices = loader.load_sweep_config(master, list(chosen)), master.hydra.runtime.choices
    for key in params:
        group = key.partition(".")[0]
        options = loader.get_group_options(group)
        if key in typed or "." not in key or not options or has(config, key):
            continue
        others = [each for each in chosen if key_of(each) != group]
        having = [name for name in options if has(loader.load_sweep_config(master, [*others, f"{group}={name}"]), key)]
        ours = [each for each in chosen if is_below(key_of(each), [group])] or [f"{group}={choices.get(group)}"]
        experiment = choices.get("experiment")
        what = f"experiment={experiment}" if experiment else "hydra.sweeper.params"
        remedy = f"these do: {', '.join(having)}" if having else "leave that out"
        return SweepError(f"{what}: sweeps over {key}, which {' '.join(ours)} does not have; {remedy}")
    return None


def has(config: DictConfig, key: str) -> bool:
    """Whether a configuration has a dotted key, whatever its value."""
    *path, last = key.split(".")
    section = OmegaConf.select(config, ".".join(path))
    return isinstance(section, DictConfig) and last in section


def check_given(configs: Sequence[DictConfig]) -> None:
    """Refuse a sweep whose points all lack the same mandatory value (``???``), such as the path of a checkpoint.

    Args:
        configs: of the points, one of each kind.
    """
    missing = [[*_missing(OmegaConf.to_container(config, resolve=False))] for config in configs]
    lacking = [key for key in missing[0] if all(key in keys for keys in missing)] if missing else []
    if lacking:
        remedy = " ".join(f"{key}=…" for key in lacking)
        raise SweepError(f"{', '.join(lacking)}: not given, and no point can do without; add {remedy}")


def check_files(configs: Sequence[DictConfig], swept: Collection[str]) -> None:
    """Refuse a sweep whose points would all look for the same pictures or checkpoint, where nothing is.

    Args:
        configs: of the points, one of each kind.
        swept: keys whose values differ.
    """
    for key in ("data.path", "generator.checkpoint"):
        try:
            values = {OmegaConf.select(config, key) for config in configs} if key not in swept else set()
        except OmegaConfBaseException:
            continue  # a job says what is wrong with it
        if len(values) == 1 and isinstance(value := values.pop(), str) and "://" not in value:
            path = Path(value).expanduser()
            if not set(value) & set("*?[") and not path.exists():
                raise SweepError(f"{key}={value}: no such file or folder (looked at {path.absolute()})")


def _missing(tree: Any, prefix: str = "") -> Iterator[str]:
    """Keys without a value; Hydra's own get theirs when a job begins."""
    for key, value in tree.items():
        if value == "???":
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and f"{prefix}{key}" != "hydra":
            yield from _missing(value, f"{prefix}{key}.")


def check_logins(loggers: Iterable[DictConfig]) -> None:
    """Refuse a key that W&B refuses, once and not for each point."""
    chosen = {each.get("mode") for each in loggers if each.get("_target_") == "ilo_lightning.loggers.WandbLog"}
    if not chosen:
        return
    from ..loggers.base import LoggerError
    from ..loggers.wandb_login import choose_mode

    for mode in chosen:
        try:
            choose_mode(mode)
        except LoggerError as error:
            raise SweepError(str(error)) from None
