"""Results that are computed once: each a JSON file that says what it is the result of, written whole or not at all.

It is the result of a method as it was built, whatever fields it was built from, and of a version of the package: code
that finds something else needs another version.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ilo_lightning import identity
from ilo_lightning.files import write_atomically
from ilo_lightning.pipeline import parts_of
from ilo_lightning.setting import Setting

OF_A_SELECTION = ("select", "held_out", "refit", "refit_deviation", "anchor")
"""Fields of a method that mean nothing where one path is followed."""


def parts(setting: Setting) -> dict[str, Any]:
    """What a result of this setting depends on, as JSON values: as a run's, but the method as it was built."""
    method = dataclasses.asdict(setting.method)
    if not setting.method.selects:
        method = {name: value for name, value in method.items() if name not in OF_A_SELECTION}
    return json.loads(json.dumps({**parts_of(setting), "method": method}))


def stored(path: Path, parts: Mapping[str, Any]) -> Any | None:
    """The result in ``path``, if it is whole and was computed from just these ``parts`` (JSON values); else None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["result"] if record["identity"] == identity.identity(parts) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def computed_once(path: Path, parts: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """The result in ``path``; where there is none, or one of other ``parts``, what ``compute`` gives, kept there."""
    found = stored(path, parts)
    if found is not None:
        return found
    result = compute()
    record = {
        "identity": identity.identity(parts),
        "parts": parts,
        "versions": identity.versions(),
        "commit": identity.commit(),
        "result": result,
    }
    write_atomically(path, json.dumps(record) + "\n")
    return json.loads(json.dumps(result))  # the same whether it was there or not: lists, no tuples
