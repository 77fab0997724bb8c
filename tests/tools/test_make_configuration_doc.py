"""The configuration document against the files it describes, both read here: the document by a few regular expressions,
the files by YAML's own loader."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilo_lightning.method_config import method_from_config
from tools.make_configuration_doc import document, read

CONF = Path(__file__).resolve().parents[2] / "conf"
HEADINGS = {
    "## Of the whole run"
    if path.parent == CONF
    else f"### `{path.parent.relative_to(CONF).as_posix()}={path.stem}`": path
    for path in sorted(CONF.rglob("*.yaml"))
}
SKIPPED = re.compile(r".*_target_|hydra\.help\b.*")
HANDED_ON = re.compile(r"\$\{task\.\w+\}")


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """What is below each heading, by the heading."""
    parts = re.split(r"^(##.*)\n", document(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def table(section: str) -> dict[str, list[str]]:
    """The other cells of a section's rows, without their backticks, by the key in the first."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.replace("\\|", "|").strip().strip("`") for cell in row[:2]] + [row[2].strip()] for row in rows]
    assert all(len(row) == 3 for row in rows), rows
    assert len({key for key, *_ in cells}) == len(rows), "a key twice"
    return {key: others for key, *others in cells}


def values(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key of a file, also those that hold others, with what it holds."""
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else key
        yield name, value
        if isinstance(value, dict):
            yield from values(value, name)


def agree(shown: Any, value: Any) -> bool:
    """Whether a value is the one shown, which may be shortened by …"""
    if isinstance(shown, str) and shown.endswith("…"):
        return value.startswith(shown[:-1].rstrip())
    if isinstance(shown, list) and isinstance(value, list):
        return len(shown) == len(value) and all(map(agree, shown, value))
    return shown == value


def test_there_is_a_section_for_each_file_and_for_nothing_else(sections: dict[str, str]):
    assert {it for it in sections if it.startswith("###")} | {"## Of the whole run"} == set(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_section_tells_what_its_file_says(heading: str, sections: dict[str, str]):
    path = HEADINGS[heading]
    group = path.parent.relative_to(CONF).as_posix()
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = config.pop("defaults", None)
    fence = re.search(r"^```yaml\n(.*?)^```$", sections[heading], re.MULTILINE | re.DOTALL)
    assert (yaml.safe_load(fence[1])["defaults"] if fence else None) == defaults

    there = dict(values(config, "" if group in (".", "experiment") else group.replace("/", ".")))
    rows = table(sections[heading])
    assert not set(rows) - set(there)
    for key, (shown, _) in rows.items():
        assert agree(yaml.safe_load(shown), there[key]) if shown else isinstance(there[key], dict), key

    told = tuple(key for key, (shown, _) in rows.items() if shown)
    for key, value in there.items():
        handed_on = isinstance(value, str) and HANDED_ON.fullmatch(value)
        if not isinstance(value, dict) and not SKIPPED.fullmatch(key) and not handed_on:
            assert any(f"{key}.".startswith(f"{it}.") for it in told), f"{key} is missing"
    order = list(there)
    assert [order.index(key) for key in rows] == sorted(order.index(key) for key in rows)


def test_the_table_of_methods_has_every_field(sections: dict[str, str]):
    fields = inspect.signature(method_from_config).parameters
    assert set(table(sections["## method"])) == {f"method.{name}" for name in fields if name != "depth"}


def test_comments_belong_to_the_keys_that_they_are_about(tmp_path: Path):
    path = tmp_path / "choice.yaml"
    path.write_text(
        """\
# @package _global_
# About the file.
defaults:
  - _self_   # a default

a: "x # y"   # of a,
             # continued
items:   # of items
  # an item
  - |
    # text: {
    text
  - "b, c"   # another item
  - {d: 1e-4, e: "f"}
# of g
g:
  h: {i: [1, 2],   # of h
      j: null}
  k:
    {l: 0,
     m: $#}   # of m
""",
        encoding="utf-8",
    )
    choice = read(path, "")
    assert (choice.about, choice.defaults) == (["About the file."], ["_self_   # a default"])
    assert [(it.key, it.value, it.meaning) for it in choice.options] == [
        ("a", '"x # y"', "of a, continued"),
        ("items", '["# text: { …", "b, c", {d: 1e-4, e: "f"}]', "of items. an item. another item"),
        ("g", "", "of g"),
        ("g.h", "{i: [1, 2], j: null}", "of h"),
        ("g.k", "", ""),
        ("g.k.l", "0", ""),
        ("g.k.m", "$#", "of m"),
    ]
