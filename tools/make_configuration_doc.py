"""Write docs/configuration.md from conf/*.yaml, their comments, and the docstrings of what they build.

python tools/make_configuration_doc.py           # or: make docs
python tools/make_configuration_doc.py --check   # exit 1 if the file isn't what would be written
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ilo_lightning.method import Method

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


@dataclass
class Option:
    """A key of a configuration file, as it is written on the command line.

    Args:
        key: dotted.
        value: as in the file; empty for a key that only holds others.
        meaning: its comment.
    """

    key: str
    value: str
    meaning: str = ""


@dataclass
class Choice:
    """A configuration file: its first comment, its defaults list and its options."""

    about: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    options: list[Option] = field(default_factory=list)


def read(path: Path, prefix: str) -> Choice:
    """Read a file with its comments. A comment belongs to the key on its line, or, on lines of its own, to the key
    before; those before the first key are about the file."""
    choice, parents = Choice(), [(-1, prefix)]
    for line in path.read_text(encoding="utf-8").splitlines():
        code, _, comment = line.partition("#") if re.match(r"\s*#", line) else _split_comment(line)
        comment = comment.strip()
        if not code.strip():
            if comment.startswith("@package") or not comment:
                continue
            if choice.options:
                choice.options[-1].meaning += f" {comment}"
            else:
                choice.about.append(comment)
            continue
        indent = len(code) - len(code.lstrip())
        if code.strip().startswith("- "):
            choice.defaults.append(code.strip()[2:] + (f"   # {comment}" if comment else ""))
            continue
        key, _, value = (part.strip() for part in code.strip().partition(":"))
        if key == "defaults":
            continue
        while parents[-1][0] >= indent:
            parents.pop()
        name = f"{parents[-1][1]}.{key}" if parents[-1][1] else key
        parents.append((indent, name))
        if value:
            choice.options.append(Option(name, value, comment))
    return choice


def _split_comment(line: str) -> tuple[str, str, str]:
    """Code and comment of a line; a # in the middle of a word is none."""
    code, mark, comment = re.match(r"(.*?)(?:(\s#\s?)(.*))?$", line).groups("")  # pyright: ignore[reportOptionalMemberAccess]
    return code, mark, comment


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
            docstring = inspect.cleandoc(Method.from_config.__doc__ or "")
            parts.append(_markdown(docstring.split("\n\n")[1].replace("\n", " ")) + "\n")
            types = {name: str(it.annotation) for name, it in inspect.signature(Method.from_config).parameters.items()}
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
    told = [o for o in choice.options if not skipped.fullmatch(o.key) and not handed_on.fullmatch(o.value)]
    if told:
        rows = [f"| `{option.key}` | `{_cell(option.value)}` | {_cell(option.meaning)} |" for option in told]
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
