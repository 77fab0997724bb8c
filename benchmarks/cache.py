"""Results that are computed once: each a JSON file that says what it is the result of, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ilo_lightning import identity
from ilo_lightning.files import write_atomically


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
