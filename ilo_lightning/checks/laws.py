"""Check laws one by one, and say what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from ..errors import one_line
from ..refusal import CONFIGURATION_ERRORS, explain

PASSED, FAILED, REFUSED = 0, 1, 2


class LawBroken(AssertionError):
    """A law doesn't hold; the message says what was measured, what was expected, and what usually causes it."""


@dataclass(frozen=True)
class Verdict:
    """What came of one law.

    Args:
        law: its name.
        holds: whether it does.
        detail: what was measured, or why it doesn't hold.
    """

    law: str
    holds: bool
    detail: str


def check(laws: Mapping[str, Callable[[], str]]) -> list[Verdict]:
    """Try every law: a function that returns what it measured, or raises. Whatever it raises breaks this law only."""
    verdicts = []
    for name, law in laws.items():
        try:
            verdicts.append(Verdict(name, True, law()))
        except LawBroken as error:
            verdicts.append(Verdict(name, False, str(error)))
        except Exception as error:  # of somebody's own code
            verdicts.append(Verdict(name, False, f"raises {one_line(error)}"))
    return verdicts


def expect_below(value: float, bound: float, what: str, hint: str) -> str:
    """``what value``, if the value is at most the bound.

    Raises:
        LawBroken: if it isn't, or is NaN.
    """
    if not value <= bound:
        raise LawBroken(f"{what} {value:.2g}, expected at most {bound:.0g}: {hint}")
    return f"{what} {value:.1g}"


def command(
    arguments: Sequence[str],
    name: str,
    group: str,
    select: Callable[[DictConfig], DictConfig],
    examine: Callable[[Callable[..., Any], Mapping[Any, Any]], list[Verdict]],
) -> int:
    """``ilo check-…``: build what the arguments describe, check it, print a line per law.

    Args:
        arguments: ``_target_=module.Class key=value …``, or overrides of the project's configuration, after
            ``--config-dir FOLDER`` of one's own.
        name: of the subcommand.
        group: of the configuration, for the usage line.
        select: the node that describes it in the configuration.
        examine: the verdicts on what a function makes, whose keyword arguments count where the node has none; and the
            node.

    Returns:
        0 if all laws hold, 1 if not, 2 if there is nothing to check.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: ilo {name} _target_=module.Class [key=value ...]")
        print(f"       ilo {name} [--config-dir FOLDER] {group}=NAME [overrides]")
        return PASSED if arguments else REFUSED
    try:
        if any(argument.startswith("_target_=") for argument in arguments):
            node: Any = OmegaConf.from_dotlist(list(arguments))
        else:
            node = select(_composed(arguments))

        def make(**more: Any) -> Any:
            return instantiate(node, _convert_="all", **{key: value for key, value in more.items() if key not in node})

        verdicts = examine(make, node)
    except (Exception, SystemExit) as error:  # whatever somebody's own module raises
        print(f"error: {_reason(error, arguments)}", file=sys.stderr)
        return REFUSED
    for verdict in verdicts:
        print(f"{'ok    ' if verdict.holds else 'FAILED'}  {verdict.law}: {verdict.detail}")
    broken = sum(not verdict.holds for verdict in verdicts)
    print(f"{len(verdicts) - broken} of {len(verdicts)} laws hold")
    return FAILED if broken else PASSED


def _composed(arguments: Sequence[str]) -> DictConfig:
    overrides = list(arguments)
    if overrides[0] == "--config-dir" and len(overrides) > 1:
        folder = Path(overrides[1]).absolute()
        if not folder.is_dir():
            raise ValueError(f"--config-dir {overrides[1]}: no such folder")
        overrides[:2] = [f"hydra.searchpath=['file://{folder}']"]
    with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
        return compose("config", overrides=overrides)


def _reason(error: BaseException, arguments: Sequence[str]) -> str:
    """Why there is nothing to check, on one line."""
    if isinstance(error, InstantiationException):
        error = error.__cause__ or error
    elif isinstance(error, CONFIGURATION_ERRORS):
        return explain(error, arguments)
    elif isinstance(error, YAMLError):
        return f"expected key=value …, with values as in YAML ({' '.join(str(error).split())})"
    return " ".join(str(error).split()) if isinstance(error, ValueError) else one_line(error)
