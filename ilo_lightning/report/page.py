"""One static HTML page with everything: no request leaves it, and its pictures lie beside it."""

from __future__ import annotations

import html
import importlib.resources
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import __version__
from .collect import Collection
from .grids import Grid
from .pictures import Comparison
from .plots import INK, Plot
from .settings import flat, name_of, text_of
from .summary import BESIDE, HIGHER_IS_BETTER, OPTIMISED, OPTIMISED_MEANS, UNRANKED, Mean, Summary, mixed, swept
from .sweep import DONE, FAILED, STATES
from .typeset import HEADINGS, decimals
from .units import Unit

_FAILED_IMAGES = 500  # listed on the page


def page(
    title: str,
    collection: Collection,
    summary: Summary,
    units: Sequence[Unit],
    figures: Sequence[tuple[Plot, str]],
    pictures: Sequence[Comparison],
    grids: Sequence[Grid] = (),
) -> str:
    """The page's HTML; ``figures`` come with their SVG."""
    data = _data(collection, units, pictures)
    parts = {
        "title": html.escape(title),
        "overview": _overview(collection, units),
        "problems": _problems(collection),
        "failures": _failures(collection, units),
        "plots": _plots(figures),
        "grids": _grids(grids),
        "protocols": _protocols(summary),
        "made": f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')} by ilo-lightning {__version__}",
        "data": "\n".join(_script(name, value) for name, value in data.items()),
        "style": _source("page.css"),
        "code": _source("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _source("page.html"))


def _source(name: str) -> str:
    return importlib.resources.files("ilo_lightning.report").joinpath(name).read_text(encoding="utf-8")


def _script(name: str, value: Any) -> str:
    """Data, read by the page when it needs them; nothing in them can end the element or be taken for markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _overview(collection: Collection, units: Sequence[Unit]) -> str:
    import polars as pl

    rows = collection.rows
    images = rows.select(pl.coalesce("digest", "image")).to_series().drop_nulls().n_unique()
    states = [unit.state for unit in units]
    counts = [f'<span class="state {s}">{states.count(s)} {s}</span>' for s in STATES if s in states]
    facts = [
        f"<b>{len(units)}</b> point{'s' * (len(units) != 1)}: {' '.join(counts)}",
        f"<b>{images}</b> image{'s' * (images != 1)}",
        f"<b>{rows['image'].count()}</b> results",
        *(f"code {html.escape(code)}" for code in rows["code"].drop_nulls().unique().sort().to_list()),
    ]
    return "".join(f"<li>{fact}</li>" for fact in facts)


def _problems(collection: Collection) -> str:
    if not collection.problems:
        return ""
    lines = "".join(f"<li>{html.escape(problem.message)}</li>" for problem in collection.problems)
    return (
        f'<section id="problems" aria-labelledby="problems-title"><h2 id="problems-title">To know first</h2>'
        f"<ul>{lines}</ul></section>"
    )


def _failures(collection: Collection, units: Sequence[Unit]) -> str:
    import polars as pl

    open_ = [(index, unit) for index, unit in enumerate(units) if unit.state != DONE]
    unit_of = {number: unit for unit in units for number in unit.numbers}
    failed = collection.rows.filter(pl.col("error").is_not_null()).unique(["number", "index"], maintain_order=True)
    parts = []
    if open_:
        lines = "".join(
            f'<tr><th scope="row"><button type="button" class="link" data-unit="{index}">{html.escape(unit.name)}'
            f'</button></th><td><span class="state {unit.state}">{unit.state}</span></td>'
            f"<td>{html.escape(unit.error or '')}</td></tr>"
            for index, unit in open_
        )
        number = sum(unit.state == FAILED for _, unit in open_)
        parts.append(
            f'<h2 id="failures-title">Points that are not done</h2><p>{len(open_)} of {len(units)}, of which {number} '
            f'failed.</p><div class="scroll"><table class="plain"><thead><tr><th scope="col">point</th><th scope="col">'
            f'state</th><th scope="col">error</th></tr></thead><tbody>{lines}</tbody></table></div>'
        )
    if len(failed):
        shown = failed.head(_FAILED_IMAGES).select("number", "image", "index", "error").iter_rows()
        lines = "".join(
            f'<tr><th scope="row">{html.escape(unit_of[number].name)}</th><td>{html.escape(image or f"image {index}")}'
            f"</td><td>{html.escape(error)}</td></tr>"
            for number, image, index, error in shown
        )
        more = f" (the first {_FAILED_IMAGES})" if len(failed) > _FAILED_IMAGES else ""
        parts.append(
            f'<details><summary>{len(failed)} images have no result{more}</summary><div class="scroll"><table '
            f'class="plain"><thead><tr><th scope="col">point</th><th scope="col">image</th><th scope="col">error</th>'
            f"</tr></thead><tbody>{lines}</tbody></table></div></details>"
        )
    if not parts:
        return ""
    label = 'aria-labelledby="failures-title"' if open_ else 'aria-label="Images without a result"'
    return f'<section id="failures" {label}>{"".join(parts)}</section>'


def _plots(figures: Sequence[tuple[Plot, str]]) -> str:
    if not figures:
        return '<p class="quiet">Nothing was swept over numbers, so there is nothing to plot.</p>'
    metrics = list(dict.fromkeys(plot.metric for plot, _ in figures))
    chosen = "psnr" if "psnr" in metrics else metrics[0]
    options = "".join(
        f'<option value="{html.escape(name)}"{" selected" * (name == chosen)}>{html.escape(HEADINGS.get(name, name))}'
        "</option>"
        for name in metrics
    )
    parts = [f'<label class="choice">Metric <select id="metric">{options}</select></label><div class="figures">']
    for number, (plot, svg) in enumerate(figures):
        parts.append(
            f'<figure data-metric="{html.escape(plot.metric)}"{" hidden" * (plot.metric != chosen)}>'
            f"{_inlined(svg, number, plot.title)}<figcaption>{html.escape(plot.title)}. Mean ± 1.96 standard errors. "
            f'{html.escape(plot.note)} <a href="plots/{html.escape(plot.name)}.svg">SVG</a> '
            f'<a href="plots/{html.escape(plot.name)}.png">PNG</a></figcaption></figure>'
        )
    return "".join([*parts, "</div>"])


def _grids(grids: Sequence[Grid]) -> str:
    if not grids:
        return ""
    figures = "".join(
        f'<figure><a href="figures/{html.escape(grid.name)}.png"><img src="figures/{html.escape(grid.name)}.png" '
        f'loading="lazy" alt="{html.escape(", ".join(grid.columns))}"></a><figcaption>{html.escape(grid.title)}. '
        f"{html.escape(grid.note)}</figcaption></figure>"
        for grid in grids
    )
    return (
        f'<section id="side-by-side" aria-labelledby="grids-title"><h2 id="grids-title">Side by side</h2>'
        f'<div class="grids">{figures}</div></section>'
    )


def _inlined(svg: str, number: int, title: str) -> str:
    """An SVG as part of the page: in the page's ink, without a background, its names apart from other plots'."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="patch_1">.*?</g>', "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'id="', f'id="p{number}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>p{number}-", body)
    body = re.sub(r"fill: #ffffff", "fill: none", body)
    body = body.replace(INK, "currentColor")
    body = re.sub(r"<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', body, count=1)
    return re.sub(r"\s*\n\s*", "\n", body)


def _protocols(summary: Summary) -> str:
    lines = [
        f"<dt>{html.escape(HEADINGS.get(name, name))}</dt>{''.join(f'<dd>{html.escape(p)}</dd>' for p in protocols)}"
        for name, protocols in summary.protocols.items()
    ]
    if any(name in group.optimised for group in summary.groups for name in summary.metrics):
        lines.append(f"<dt>{OPTIMISED}</dt><dd>{html.escape(OPTIMISED_MEANS)}</dd>")
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def _data(collection: Collection, units: Sequence[Unit], pictures: Sequence[Comparison]) -> dict[str, Any]:
    configs = [flat(collection.points[unit.numbers[0]].config) for unit in units]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    common = {
        key: configs[0].get(key)
        for key in keys
        if all(key in config and config[key] == configs[0].get(key) for config in configs)
    }
    columns, rows = _table(collection, units)
    data: dict[str, Any] = {"table": {"columns": columns, "rows": rows, "units": [unit.name for unit in units]}}
    data["common"] = common
    data["pictures"] = [[c.unit, c.image, c.measurement, c.truth, c.solved] for c in pictures]
    images = dict(_images(collection, units))
    for index, (unit, config) in enumerate(zip(units, configs, strict=True)):
        own = {key: value for key, value in config.items() if key not in common}
        folders = [str(collection.points[number].folder) for number in unit.numbers]
        data[f"unit-{index}"] = {
            "state": unit.state,
            "error": unit.error,
            "folders": folders,
            "config": own,
            **images.get(index, {"methods": [], "values": [], "images": []}),
        }
    return data


def _with_units(collection: Collection, units: Sequence[Unit]) -> Any:
    import polars as pl

    unit_of = {number: index for index, unit in enumerate(units) for number in unit.numbers}
    return collection.rows.with_columns(
        pl.col("number").replace_strict(unit_of, return_dtype=pl.Int64).alias("unit"),
        (pl.col("seconds") / pl.col("batch_size")).alias("seconds"),
        pl.col("found").cast(pl.Float64),
    )


def _table(collection: Collection, units: Sequence[Unit]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Columns and rows, one per unit and method. A mean is [value, half-width], and its mark if it has one."""
    import polars as pl

    values = [*collection.metrics, *BESIDE]
    mix = [name for name in mixed(collection) if name == "code"]
    grouped = (
        _with_units(collection, units)
        .group_by("unit", "method", *mix, maintain_order=True)
        .agg(
            pl.col("number").first(),
            pl.col("role").first(),
            pl.col("task").first(),
            pl.col("optimised").drop_nulls().first(),
            (pl.col("index").is_not_null() & pl.col("error").is_null()).sum().alias("images"),
            pl.col("error").count().alias("failed"),
            *(pl.col(name).mean().alias(f"mean {name}") for name in values),
            *((1.96 * pl.col(name).std() / pl.col(name).count().sqrt()).alias(f"half {name}") for name in values),
        )
        .sort("unit", maintain_order=True)
    )
    records = list(grouped.iter_rows(named=True))
    keys = swept(collection)
    settings = [collection.settings[record["number"]].get(record["role"], {}) for record in records]
    columns: list[dict[str, Any]] = [{"label": "point", "kind": "text"}]
    cells: list[list[Any]] = [[units[record["unit"]].name] for record in records]

    def add(column: dict[str, Any], of_rows: Sequence[Any]) -> None:
        columns.append(column)
        for row, value in zip(cells, of_rows, strict=True):
            row.append(value)

    if any(unit.state != DONE for unit in units):
        add({"label": "state", "kind": "state"}, [units[record["unit"]].state for record in records])
    if len({record["task"] for record in records}) > 1:
        add({"label": "task", "kind": "text"}, [record["task"] for record in records])
    add({"label": "method", "kind": "text"}, [record["method"] for record in records])
    for key in keys:
        own = [entry.get(key) for entry in settings]
        numeric = all(value is None or isinstance(value, int | float) for value in own)
        texts = own if numeric else [None if value is None else text_of(value, key) for value in own]
        add({"label": name_of(key, keys), "title": key, "kind": "number" if numeric else "text"}, texts)
    for name in mix:
        add({"label": name, "kind": "text"}, [record[name] for record in records])
    add({"label": "images", "kind": "count"}, [record["images"] for record in records])
    if any(record["failed"] for record in records):
        add({"label": "failed", "kind": "count"}, [record["failed"] for record in records])
    for name in values:
        means = [_mean(record, name) for record in records]
        there = [mean for mean in means if mean]
        if not there:
            continue
        better = None if name in (*BESIDE, *UNRANKED) else "higher" if name in HIGHER_IS_BETTER else "lower"
        column = {"label": HEADINGS.get(name, name.replace("_", " ")), "kind": "mean", "better": better}
        column |= {"digits": decimals(there, name), "interval": name not in BESIDE}
        marks = [[OPTIMISED] if name in (record["optimised"] or "").split(",") else [] for record in records]
        shown = zip(means, marks, strict=True)
        add(column, [mean and [_rounded(mean.value), _rounded(mean.half), *mark] for mean, mark in shown])
    return columns, [[record["unit"], record["method"], *row] for record, row in zip(records, cells, strict=True)]


def _mean(record: Mapping[str, Any], name: str) -> Mean | None:
    value = record[f"mean {name}"]
    return None if value is None else Mean(value, record[f"half {name}"])


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _images(collection: Collection, units: Sequence[Unit]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Per unit, a line per image: its name, what went wrong, and the values of each method in turn."""
    import polars as pl

    some_found = collection.rows["found"].count() > 0
    values = [*collection.metrics, *(name for name in BESIDE if name != "found" or some_found)]
    rows = _with_units(collection, units).filter(pl.col("index").is_not_null())
    for (unit,), part in rows.group_by("unit", maintain_order=True):
        methods = part["method"].unique(maintain_order=True).to_list()
        lines: dict[Any, list[Any]] = {}
        wanted = part.select("method", "image", "index", "error", "fault", *values)
        for method, image, index, error, fault, *numbers in wanted.iter_rows():
            name = image or f"image {index}"
            line = lines.setdefault(name, [name, error or fault, *([None] * len(methods))])
            line[2 + methods.index(method)] = [_rounded(number) for number in numbers]
        yield (
            int(unit),
            {
                "methods": methods,
                "values": [HEADINGS.get(name, name.replace("_", " ")) for name in values],
                "images": list(lines.values()),
            },
        )
