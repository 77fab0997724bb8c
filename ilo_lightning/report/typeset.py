"""The means as tables for a paper: Markdown, and LaTeX for booktabs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .settings import Settings, name_of, text_of
from .summary import BESIDE, COSTS, HIGHER_IS_BETTER, OPTIMISED, OPTIMISED_MEANS, UNRANKED, Group, Mean, Summary

HEADINGS = {
    "psnr": "PSNR (dB)", "mse": "MSE", "ssim": "SSIM", "seconds": "s / image", "found": "found (share)",
    "probability": "p(class)",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_vgg": "LPIPS (VGG16)", "lpips_squeeze": "LPIPS (SqueezeNet)", "stlpips_alex": "ST-LPIPS (AlexNet)",
    "stlpips_vgg": "ST-LPIPS (VGG16)",
}  # fmt: skip
CUSTOMARY = {"psnr": 2, "ssim": 3}  # decimals, at least
OTHER_IMAGES = "other or fewer images or seeds than the rest of its problem, not compared"
_LONG = 40  # rows that one page takes


@dataclass(frozen=True)
class Cell:
    """Text of one cell: bold for the best of its problem; of a heading, whether its column holds numbers."""

    text: str
    bold: bool = False
    number: bool = False


@dataclass(frozen=True)
class Table:
    """All groups of one task: rows of cells, in blocks of one problem each, which the first columns name."""

    task: str
    headings: list[Cell]
    problem_columns: int
    blocks: list[list[list[Cell]]]
    notes: list[str]


def tables(summary: Summary, costs: bool = True) -> Iterator[Table]:
    """A table per task, with what it cost or without. A setting that is the same for all its groups, or all of a
    method, goes to the notes."""
    for task in dict.fromkeys(group.problem[0] for group in summary.groups):
        groups = [group for group in summary.groups if group.problem[0] == task]
        values = [name for name in (*summary.metrics, *BESIDE) if any(name in group.means for group in groups)]
        values = [name for name in values if costs or name not in COSTS]
        digits = {name: decimals([g.means[name] for g in groups if name in g.means], name) for name in values}
        some_failed = any(group.failed for group in groups)
        best = {name: summary.best(name, digits[name]) for name in values if name in summary.metrics}
        some_fewer = len({group.images for group in groups}) > 1
        some_seeds = len({group.seeds for group in groups}) > 1
        settings = [group.settings(summary) for group in groups]
        keys = [key for key in summary.keys if _differs(key, settings)]
        headings = [Cell(name_of(key, keys), number=_numeric(key, settings)) for key in keys]
        counts = {"images": some_fewer, "seeds": some_seeds, "failed": some_failed}
        headings += [Cell(name, number=True) for name, shown in counts.items() if shown]
        headings += [Cell(heading(name), number=True) for name in values]
        blocks: list[list[list[Cell]]] = []
        last = None
        for group, values_of in zip(groups, settings, strict=True):
            row = [Cell(text_of(values_of[key], key)) for key in keys]
            row += [Cell(str(getattr(group, name) or "")) for name, shown in counts.items() if shown]
            for name in values:
                shown = mean_text(group.means.get(name), digits[name], interval=name not in BESIDE)
                shown += "" if group.same_images or name in BESIDE or name not in group.means else "†"
                shown += OPTIMISED if name in group.optimised and name in group.means else ""
                row.append(Cell(shown, any(group is other for other in best.get(name, ()))))
            if group.problem != last:
                blocks.append([])
                last = group.problem
            blocks[-1].append(row)
        notes = [*_intervals(groups), *_constants(summary, settings, keys), *_protocols(summary, values)]
        if any(not group.same_images for group in groups):
            notes.append(f"†: {OTHER_IMAGES}.")
        if any(name in group.optimised for group in groups for name in values):
            notes.append(f"{OPTIMISED}: {OPTIMISED_MEANS}.")
        problem_columns = sum(key in summary.problem_keys for key in keys)
        yield Table(str(task), headings, problem_columns, blocks, notes)


def _differs(key: str, settings: Sequence[Settings]) -> bool:
    """Whether a key tells groups of the task apart: of one method, unless it is of the problem."""
    if key == "task":
        return False
    if key == "method":
        return True
    methods = [entry["method"] if key.startswith("method.") else None for entry in settings]
    return len({(method, entry[key]) for method, entry in zip(methods, settings, strict=True)}) > len(set(methods))


def _numeric(key: str, settings: Sequence[Settings]) -> bool:
    return all(entry[key] is None or isinstance(entry[key], int | float) for entry in settings)


def _intervals(groups: Sequence[Group]) -> Iterator[str]:
    seeds, counts = min(group.seeds for group in groups), {group.images for group in groups}
    seeds = seeds if seeds == max(group.seeds for group in groups) else 1  # else they have a column
    if counts == {1}:
        text = "One image"
    else:
        text = f"Mean ± 1.96 standard errors over {counts.pop() if len(counts) == 1 else 'the'} images"
    text += f" (each with {seeds} seeds, averaged first)" if seeds > 1 else ""
    yield f"{text}{'; the best of each problem in bold' if len(groups) > 1 else ''}."


def _constants(summary: Summary, settings: Sequence[Settings], shown: Sequence[str]) -> Iterator[str]:
    """Settings that tell this task, or one of its methods, from others."""
    hidden = [key for key in settings[0] if key not in (*shown, "task", "protocol")]
    groups = [("Everywhere", [key for key in hidden if key in summary.problem_keys], settings[0])]
    for method in dict.fromkeys(entry["method"] for entry in settings):
        own = next(entry for entry in settings if entry["method"] == method)
        groups.append((str(method), [key for key in hidden if key in summary.solver_keys], own))
    for name, keys, values in groups:
        words = [f"{name_of(key, hidden)} {text_of(values[key], key)}" for key in keys if values[key] is not None]
        if words:
            yield f"{name}: {', '.join(words)}."


def _protocols(summary: Summary, values: Sequence[str]) -> Iterator[str]:
    for name in values:
        for protocol in summary.protocols.get(name, ()):
            yield f"{heading(name, arrow=False)}: {protocol}."


def heading(name: str, arrow: bool = True) -> str:
    """Of a metric or cost, with the direction in which it is better."""
    text = HEADINGS.get(name, name.replace("_", " "))
    if not arrow or name in (*BESIDE, *UNRANKED):
        return text
    return f"{text} {'↑' if name in HIGHER_IS_BETTER else '↓'}"


def decimals(means: Sequence[Mean], name: str) -> int:
    """As many as show two digits of the usual interval, and those that are customary; of a cost, three of its mean."""
    if name == "found":
        return 2
    if name == "evaluations":
        return 0 if all(mean.value == round(mean.value) for mean in means) else 1
    halves = [mean.half for mean in means if mean.half and name not in BESIDE]
    size = statistics.median(halves) if halves else statistics.median(abs(mean.value) for mean in means)
    digits = (2 if halves else 3) - 1 - math.floor(math.log10(size)) if size > 0 else 0
    return min(max(digits, CUSTOMARY.get(name, 0)), 8)


def mean_text(mean: Mean | None, digits: int, interval: bool = True) -> str:
    """``21.72 ± 0.53``."""
    if mean is None:
        return "–"
    if mean.half is None or not interval:
        return f"{mean.value:.{digits}f}"
    return f"{mean.value:.{digits}f} ± {mean.half:.{digits}f}"


def markdown(summary: Summary, title: str) -> str:
    """All tables as a Markdown document."""
    lines = [f"# {title}", ""]
    for table in tables(summary):
        lines += [f"## {table.task.replace('_', ' ')}", ""]
        lines.append(_pipes(cell.text for cell in table.headings))
        lines.append(_pipes("---:" if cell.number else "---" for cell in table.headings))
        for block in table.blocks:
            lines += [_pipes(f"**{c.text}**" if c.bold else c.text for c in row) for row in block]
        lines += ["", *(line for note in table.notes for line in (note, ""))]
    return "\n".join(lines)


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def latex(summary: Summary, title: str) -> str:
    """All tables as LaTeX, to be ``\\input``, without costs; needs booktabs and graphicx. One that is too wide for its
    column is made smaller, one that is too long for a page goes on in another."""
    parts = [f"% {title}", "% \\usepackage{booktabs,graphicx}", ""]
    for table in tables(summary, costs=False):
        pages = _pages(table.blocks)
        for number, blocks in enumerate(pages, start=1):
            parts += _latex_table(table, blocks, number, len(pages))
    return "\n".join(parts)


def _pages(blocks: Sequence[list[list[Cell]]]) -> list[list[list[list[Cell]]]]:
    """Blocks of rows, as many together as a page takes; one of more has pages of its own."""
    pages: list[list[list[list[Cell]]]] = []
    for block in blocks:
        for start in range(0, len(block), _LONG):
            part = block[start : start + _LONG]
            if not pages or sum(map(len, pages[-1])) + len(part) > _LONG:
                pages.append([])
            pages[-1].append(part)
    return pages


def _latex_table(table: Table, blocks: Sequence[list[list[Cell]]], number: int, count: int) -> list[str]:
    """One of ``count`` pages of a table; the first has its notes."""
    columns = "".join("r" if cell.number else "l" for cell in table.headings)
    name = _escape(table.task.replace("_", " ").capitalize())
    part = f" (part {number} of {count})" if count > 1 else ""
    notes = " ".join(map(_escape, table.notes)) if number == 1 else ""
    label = f"tab:{table.task.replace('_', '-')}" + (f"-{number}" if number > 1 else "")
    caption = f"\\caption{{{f'{name}{part}. {notes}'.strip()}}}\\label{{{label}}}"
    head = " & ".join(_escape(cell.text) for cell in table.headings) + r" \\"
    body: list[str] = []
    for block in blocks:
        body += [r"\addlinespace"] if body else []
        for place, row in enumerate(block):
            cells = [_latex_cell(cell) for cell in row]
            if place:  # the problem is named once
                cells[: table.problem_columns] = [""] * table.problem_columns
            body.append(" & ".join(cells) + r" \\")
    return [
        r"\begin{table}", r"\centering", caption, r"\medskip\footnotesize\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}{%",
        f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}}", r"\end{table}", "",
    ]  # fmt: skip


def _latex_cell(cell: Cell) -> str:
    mean, separator, half = cell.text.partition(" ± ")
    shown = f"\\textbf{{{_escape(mean)}}}" if cell.bold else _escape(mean)
    return shown + _escape(separator + half)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "σ": r"$\sigma$", "×": r"$\times$", "·": r"$\cdot$", "–": "--", "†": r"\textsuperscript{\textdagger}", "²": r"$^2$",
    "‡": r"\textsuperscript{\textdaggerdbl}", "…": r"\ldots{}",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
