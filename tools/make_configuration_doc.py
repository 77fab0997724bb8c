"""Write docs/configuration.md from conf/*.yaml, their comments, and the docstrings of what they build.

python tools/make_configuration_doc.py           # or: make docs
python tools/make_configuration_doc.py --check   # exit 1 if the file isn't what would be written
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ilo_lightning.method_config import method_from_config

ROOT = Path(__file__).resolve().parents[1]
CONF, DOC = ROOT / "conf", ROOT / "docs" / "configuration.md"
FIRST = ("task", "task/noise", "generator", "method", "perceptual", "data")
INTRODUCTION = """\
# Configuration

<!-- Written by tools/make_configuration_doc.py from conf/ and docstrings: edit those, then `make docs`. -->

A run is configured by one choice per group and any number of values, as `group=choice` and `key=value` after
`python run.py` or `ilo solve` ([Hydra](https://hydra.cc/docs/1.3/intro/) composes them):

```sh
python run.py --help
python run.py --cfg job task=super_resolution task.factor=8
ilo solve task=super_resolution task.factor=8 data.path=photo.png
```

A folder with groups and choices of one's own is added by `--config-dir FOLDER`. What is misspelt is refused, with the
nearest that exists.
"""


Comments = dict[int, tuple[int, str]]  # by line, from 0: the column of the #, and what follows it


@dataclass
class Option:
    """A key of a configuration file, as it is written on the command line.

    Args:
        key: dotted.
        value: as in the file; empty for a key that only holds others.
        start: of the key in the file.
        meaning: its comments.
    """

    key: str
    value: str
    start: yaml.Mark
    meaning: str = ""


@dataclass
class Choice:
    """A configuration file: its first comment, its defaults list and its options."""

    about: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    options: list[Option] = field(default_factory=list)


def read(path: Path, prefix: str) -> Choice:
    """Read a file with its comments. A comment belongs to the key or the default on its line. On lines of its own, it
    belongs to the key right below if it begins in the same column, else to the key before; those above the first key
    are about the file."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: not a mapping")
    comments = _comments(text)
    choice = Choice()
    for key, value in root.value:
        if key.value == "defaults":
            choice.defaults = [_default(item, text, comments) for item in value.value]
    choice.options = list(_options([pair for pair in root.value if pair[0].value != "defaults"], prefix, text))
    first = root.start_mark.line
    for line, (column, comment) in comments.items():
        owner = _owner(choice.options, line, comments) if line >= first else None
        if owner is None:
            choice.about.append(comment)
        elif owner.meaning:
            continued = line - 1 in comments and comments[line - 1][0] == column
            owner.meaning += f" {comment}" if continued else f". {comment}"
        else:
            owner.meaning = comment
    return choice


def _comments(text: str) -> Comments:
    """What YAML's scanner leaves over at the ends of lines."""
    lines = text.splitlines()
    ends = [0] * (len(lines) + 1)  # columns where the code ends; a block of text ends in the line after it
    for token in yaml.scan(text):
        start, end = token.start_mark, token.end_mark
        if start.index < end.index:
            ends[start.line : end.line] = [len(line) for line in lines[start.line : end.line]]
            ends[end.line] = end.column
    comments = {}
    for number, line in enumerate(lines):
        column = line.find("#", ends[number])
        comment = line[column + 1 :].strip()
        if column >= 0 and comment and not comment.startswith("@package"):
            comments[number] = column, comment
    return comments


def _default(item: yaml.Node, text: str, comments: Comments) -> str:
    """An item of a defaults list, with the comment on its line, which is taken from the others."""
    _, comment = comments.pop(item.start_mark.line, (0, ""))
    written = ", ".join(_pairs(item, text)) if isinstance(item, yaml.MappingNode) else _value(item, text)
    return f"{written}   # {comment}" if comment else written


def _options(pairs: list[tuple[yaml.Node, yaml.Node]], prefix: str, text: str) -> Iterator[Option]:
    """The keys of a mapping and of those inside it. A mapping on the line of its key is one value."""
    for key, value in pairs:
        name = f"{prefix}.{key.value}" if prefix else key.value
        if isinstance(value, yaml.MappingNode) and value.start_mark.line > key.start_mark.line:
            yield Option(name, "", key.start_mark)
            yield from _options(value.value, name, text)
        else:
            yield Option(name, _value(value, text), key.start_mark)


def _value(node: yaml.Node, text: str) -> str:
    """A value on one line, its scalars as in the file; of a block of text, the first line."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(_inside(item, text) for item in node.value)}]"
    if isinstance(node, yaml.MappingNode):
        return f"{{{', '.join(_pairs(node, text))}}}"
    written = text[node.start_mark.index : node.end_mark.index]
    if _is_block(node):
        _, first, *others = written.strip().splitlines()
        return f"{first.strip()} …" if others else first.strip()
    return " ".join(written.split()) or "null"


def _pairs(node: yaml.MappingNode, text: str) -> list[str]:
    return [f"{_value(key, text)}: {_inside(value, text)}" for key, value in node.value]


def _inside(node: yaml.Node, text: str) -> str:
    """A value inside brackets: text that would end there is quoted."""
    value = _value(node, text)
    ends = isinstance(node, yaml.ScalarNode) and node.style is None and re.search(r"[][{},]", value)
    return json.dumps(value, ensure_ascii=False) if ends or _is_block(node) else value


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")


def _owner(options: list[Option], line: int, comments: Comments) -> Option | None:
    """The option to which the comment on a line belongs; None before the first."""
    starts = {option.start.line: option for option in reversed(options)}
    if line in starts:
        return starts[line]
    below = line + 1
    while below in comments and below not in starts:
        below += 1
    if below in starts and starts[below].start.column == comments[line][0]:
        return starts[below]
    before = [option for option in options if option.start.line < line]
    return before[-1] if before else None


def arguments_of(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and meanings in a docstring's Args section."""
    section = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(docstring), re.DOTALL)
    for name, meaning in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE):
        yield name, _markdown(" ".join(meaning.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def groups() -> list[str]:
    """Every folder of conf/ that has choices, the most used first, experiments last."""
    found = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."}
    return sorted(found, key=lambda it: (FIRST.index(it) if it in FIRST else len(FIRST), it == "experiment", it))


def document() -> str:
    """The whole document."""
    parts = [INTRODUCTION, "## Of the whole run\n", *_lines(read(CONF / "config.yaml", ""))]
    for group in groups():
        parts.append(f"## {group}\n")
        if group == "method":
            docstring = inspect.cleandoc(method_from_config.__doc__ or "")
            parts.append(_markdown(docstring.split("\n\n")[1].replace("\n", " ")) + "\n")
            types = {name: str(it.annotation) for name, it in inspect.signature(method_from_config).parameters.items()}
            rows = [
                f"| `method.{name}` | `{_cell(types[name])}` | {_cell(meaning)} |"
                for name, meaning in arguments_of(docstring)
                if name != "depth"  # the generator's, no option
            ]
            parts.append("\n".join(["| option | type | |", "|---|---|---|", *rows]) + "\n")
        for path in sorted((CONF / group).glob("*.yaml")):
            prefix = "" if group == "experiment" else group.replace("/", ".")
            parts += [f"### `{group}={path.stem}`\n", *_lines(read(path, prefix))]
    return "\n".join(parts)


def _lines(choice: Choice) -> Iterator[str]:
    targets = [option.value for option in choice.options if option.key.endswith("_target_")]
    about = choice.about + [f"Builds {', '.join(f'`{target}`' for target in targets)}."] * bool(targets)
    if about:
        yield " ".join(about) + "\n"
    if choice.defaults:
        yield "```yaml\ndefaults:\n" + "\n".join(f"  - {line}" for line in choice.defaults) + "\n```\n"
    # What only hands another option on says nothing new.
    handed_on = re.compile(r"\$\{task\.\w+\}")
    skipped = re.compile(r".*_target_|hydra\.help\..*")
    told = [
        option
        for option in choice.options
        if (option.value or option.meaning)
        and not skipped.fullmatch(option.key)
        and not handed_on.fullmatch(option.value)
    ]
    if told:
        rows = [f"| `{it.key}` | {f'`{_cell(it.value)}`' * bool(it.value)} | {_cell(it.meaning)} |" for it in told]
        yield "\n".join(["| option | default | |", "|---|---|---|", *rows]) + "\n"


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    options = parser.parse_args()
    text = document()
    if options.check:
        if not DOC.is_file() or DOC.read_text(encoding="utf-8") != text:
            print(f"{DOC.relative_to(ROOT)} is not current: make docs", file=sys.stderr)
            sys.exit(1)
        return
    DOC.write_text(text, encoding="utf-8")
    print(DOC.relative_to(ROOT))


if __name__ == "__main__":
    main()
