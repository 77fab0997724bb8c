"""Whatever results there are, as one table: a row per image, point and method."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from .settings import MAIN, Settings, settings, varying
from .sweep import Point, Problem, Row, read_sweeps

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".parquet", ".csv")
_CHUNK = 20_000  # rows held as Python objects, which take twenty times the room of a table's


@dataclass(frozen=True)
class Collection:
    """What was found in sweeps.

    Args:
        rows: a row per image × point × method; of a point without results, one without an image. See `COLUMNS`.
        points: without their rows; column ``number`` counts in them.
        settings: of each point, by role (``method``, ``baseline``); none where the configuration is not known.
        metrics: the names of their columns.
        problems: what a reader of the results must know.
    """

    rows: pl.DataFrame
    points: list[Point]
    settings: list[dict[str, Settings]]
    metrics: list[str]
    problems: list[Problem]

    @property
    def known_settings(self) -> list[Settings]:
        """Of all points and roles, but for points that have lost some of theirs: what is lost tells nothing apart."""
        whole = any(point.whole for point in self.points)
        pairs = zip(self.points, self.settings, strict=True)
        return [values for point, by_role in pairs if point.whole or not whole for values in by_role.values()]


def collect(directories: Sequence[str | Path]) -> Collection:
    """Read all results below the directories.

    Raises:
        SweepError: if a directory is none, or holds no point.
    """
    import polars as pl

    problems: list[Problem] = []
    points: list[Point] = []
    frames: list[pl.DataFrame] = []
    records: list[Row] = []
    metrics: dict[str, None] = {}
    for point in read_sweeps(directories, problems):
        for record in _records(point, len(points)):
            records.append(record)
            if len(records) >= _CHUNK:
                frames.append(_frame(records, metrics))
                records = []
        point.rows = []
        points.append(point)
    if records:
        frames.append(_frame(records, metrics))
    rows = _without_repetitions(pl.concat(frames, how="diagonal_relaxed"), points, problems)
    _check_code(rows, problems)
    _check_protocols(rows, problems)
    _check_finite(rows, list(metrics), problems)
    by_role = [{role: settings(point.config, role) for role in _roles(point) if point.config} for point in points]
    return Collection(rows, points, by_role, list(metrics), problems)


def _roles(point: Point) -> list[str]:
    return ["method", "baseline"] if point.config.get("baseline") else ["method"]


def _records(point: Point, number: int) -> Iterator[Row]:
    """Flat rows: scalars under their own names, metrics apart."""
    start: Row = {"number": number}
    if not point.rows:
        for role in _roles(point):
            yield start | {"role": role, "method": _name(point, role), "task": _task(point), "metrics": {}}
    for row in point.rows:
        versions = row.get("versions") or {}
        version, commit = _text(versions.get("ilo_lightning")), row.get("commit")
        protocols = row.get("protocols") or {}
        common = start | {
            "image": row.get("image"),
            "index": row["index"],
            "digest": row.get("digest"),
            "task": row.get("task", _task(point)),
            "seed": _storable(row.get("seed")),
            "operator_seed": _storable(row.get("operator_seed")),
            "batch": row.get("batch"),
            "batch_size": row.get("batch_size"),
            "finished": row.get("finished"),
            "version": version,
            "commit": commit,
            "code": f"{version}@{commit[:10]}{'-dirty' * commit.endswith('-dirty')}" if commit else version,
            **{name: _text(versions.get(name)) for name in ("torch", "python", "machine", "threads")},
            "folder": row.get("folder"),
            "error": row.get("error"),
            "fault": row.get("fault"),
            "protocol": json.dumps(protocols, ensure_ascii=False) if protocols else None,
        }
        for role in _roles(point) if "error" in row else ("method", "baseline"):
            outcome = row if role == "method" else row.get("baseline") or {}
            if "error" in row:
                yield common | {"role": role, "method": _name(point, role), "metrics": {}}
            elif outcome:
                stages = {
                    f"stages.{place}.psnr": stage.get("psnr") for place, stage in enumerate(outcome.get("stages") or [])
                }
                kept = outcome.get("kept") or {}
                yield common | {
                    "role": role,
                    "method": outcome.get("method"),
                    "metrics": outcome["metrics"],
                    **{name: outcome.get(name) for name in ("data_fit", "found", "evaluations", "seconds")},
                    "held_out_residual": (outcome.get("selection") or {}).get("held_out_residual"),
                    **{f"kept.{name}": kept.get(name) for name in ("layer", "step", "radius")},
                    **stages,
                    "optimised": ",".join(outcome.get("optimised") or []) or None,
                    "fault": outcome.get("fault") or row.get("fault"),
                }


def _storable(number: int | None) -> int | None:
    """Any whole number may be a seed, but no column holds more than 64 bits."""
    return number if number is not None and abs(number) < 2**63 else None


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _name(point: Point, role: str) -> str | None:
    section = point.config.get(role)
    return _text(section.get("name")) if isinstance(section, dict) else None


def _task(point: Point) -> str | None:
    return _name(point, "task")


def _schema() -> dict[str, Any]:
    import polars as pl

    text, number, whole = pl.String(), pl.Float64(), pl.Int64()
    names = {
        pl.Boolean(): ("found",),
        whole: ("number", "index", "seed", "operator_seed", "batch", "batch_size", "kept.layer", "kept.step"),
        number: ("data_fit", "held_out_residual", "evaluations", "seconds", "kept.radius"),
        text: ("task", "method", "role", "image", "digest", "code", "version", "commit", "torch", "python", "machine",
               "threads", "finished", "protocol", "folder", "error", "fault", "optimised"),
    }  # fmt: skip
    return {name: kind for kind, group in names.items() for name in group}


def _frame(records: list[Row], metrics: dict[str, None]) -> pl.DataFrame:
    import polars as pl

    for record in records:
        scores = record.pop("metrics")
        metrics.update(dict.fromkeys(scores))
        record.update(scores)
    schema = _schema()
    further = dict.fromkeys(name for record in records for name in record if name not in schema)
    frame = pl.DataFrame(records, schema={**schema, **dict.fromkeys(further, pl.Float64())}, strict=False)
    numbers = pl.col(name for name, kind in frame.schema.items() if kind == pl.Float64)
    return frame.with_columns(pl.when(numbers.is_finite()).then(numbers))


def _without_repetitions(rows: pl.DataFrame, points: Sequence[Point], problems: list[Problem]) -> pl.DataFrame:
    """Each result of an identity once, the better of two; those that are left out are named."""
    import polars as pl

    origin = pl.DataFrame(
        {"number": range(len(points)), "identity": [point.identity for point in points]},
        schema={"number": pl.Int64(), "identity": pl.String()},
    )
    unnamed = pl.format("#{}", "index")  # unreadable: its name is not known
    ranked = (
        rows.with_row_index("place")
        .join(origin, on="number", how="left", maintain_order="left")
        .with_columns(pl.coalesce("image", unnamed).alias("key"))
        .sort(pl.col("error").is_not_null(), pl.col("fault").is_not_null(), "place")
    )
    of_one_result = ["identity", "key", "method"]
    named = ranked.filter(pl.col("identity").is_not_null() & pl.col("key").is_not_null())
    repeated = named.filter(~named.select(pl.struct(of_one_result).is_first_distinct()).to_series())
    if repeated.is_empty():
        return rows
    first = named.unique(of_one_result, keep="first", maintain_order=True)
    pairs = repeated.join(first.select(*of_one_result, kept="number"), on=of_one_result, how="left")
    for number, kept, count in pairs.group_by("number", "kept", maintain_order=True).len().iter_rows():
        where = "its own folder" if number == kept else str(points[kept].folder)
        problems.append(
            Problem(f"{points[number].folder}: repeats {count} results of {where}; each is counted once", lost=True)
        )
    return rows.with_row_index("place").join(repeated.select("place"), on="place", how="anti").drop("place")


def _check_code(rows: pl.DataFrame, problems: list[Problem]) -> None:
    import polars as pl

    codes = rows.drop_nulls("code").group_by("code").agg(pl.len(), pl.col("number").n_unique().alias("points"))
    if len(codes) > 1:
        each = ", ".join(
            f"{code} ({count} rows, {n} point{'s' * (n != 1)})" for code, count, n in codes.sort("code").iter_rows()
        )
        problems.append(
            Problem(
                f"results of {len(codes)} code versions: {each}; the column `code` tells them apart, and no mean is "
                "taken over both"
            )
        )


def _check_protocols(rows: pl.DataFrame, problems: list[Problem]) -> None:
    most = max(map(len, protocols_of(rows).values()), default=0)
    if most > 1:
        problems.append(
            Problem(f"metrics by {most} protocols; the column `protocol` tells them apart, and no mean is "
                    "taken over both")
        )  # fmt: skip


def protocols_of(rows: pl.DataFrame) -> dict[str, list[str]]:
    """Per metric, the protocols by which it was computed. Not every result has every metric."""
    found: dict[str, dict[str, None]] = {}
    for text in rows["protocol"].drop_nulls().unique(maintain_order=True).to_list():
        for name, protocol in json.loads(text).items():
            found.setdefault(name, {})[str(protocol)] = None
    return {name: list(protocols) for name, protocols in found.items()}


def _check_finite(rows: pl.DataFrame, metrics: Sequence[str], problems: list[Problem]) -> None:
    import polars as pl

    for name in metrics:
        computed = pl.col("protocol").str.contains(f"{json.dumps(name)}:", literal=True)
        scored = pl.any_horizontal(pl.col(metrics).is_not_null()) & computed.fill_null(True)
        if count := len(rows.filter(scored & pl.col(name).is_null())):
            problems.append(Problem(f"{name}: {count} results have none that is finite; they are in no mean of it"))


def table(collection: Collection, all_settings: bool = False) -> pl.DataFrame:
    """The rows with what is known of their points: those settings that vary and `MAIN`, or all of them."""
    import polars as pl

    chosen = _columns(collection, all_settings)
    records = [
        {
            "number": number,
            "role": role,
            "sweep": point.sweep,
            "point": point.name,
            "state": point.state,
            "identity": point.identity,
            "point_error": point.error,
            **{name: by_role.get(role, {}).get(name) for name in chosen},
        }
        for number, (point, by_role) in enumerate(zip(collection.points, collection.settings, strict=True))
        for role in ("method", "baseline")
    ]
    text = dict.fromkeys(("role", "sweep", "point", "state", "identity", "point_error"), pl.String())
    kinds = {name: _kind([record[name] for record in records]) for name in chosen}
    for name, kind in kinds.items():
        if kind == pl.String():
            for record in records:
                value = record[name]
                record[name] = value if value is None or isinstance(value, str) else str(value)
    points = pl.DataFrame(records, schema={"number": pl.Int64(), **text, **kinds}, strict=False)
    joined = collection.rows.join(points, on=["number", "role"], how="left", maintain_order="left")
    first = ["sweep", "point", "state", "task", "method", "role", "image", *chosen, *collection.metrics]
    first += ["data_fit", "held_out_residual", "found", "evaluations", "seconds", "seed"]
    last = ["optimised", "protocol", "folder", "error", "fault", "point_error"]
    middle = [name for name in joined.columns if name not in (*first, *last, "number")]
    return joined.select(*first, *middle, *last)


def _columns(collection: Collection, all_settings: bool) -> list[str]:
    every = collection.known_settings
    known = dict.fromkeys(key for values in every for key in values)
    names = list(known) if all_settings else [*(name for name in MAIN if name in known), *varying(every)]
    columns = {*collection.rows.columns}
    return [name for name in dict.fromkeys(names) if name not in columns]


def _kind(values: Sequence[Any]) -> Any:
    """The narrowest type of a column that holds a setting."""
    import polars as pl

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Boolean()
    if kinds and kinds <= {int, float}:
        small = all(value is None or abs(value) < 2**63 for value in values)
        return (pl.Int64() if kinds == {int} else pl.Float64()) if small else pl.String()
    return pl.String()


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write .parquet or .csv, whole or not at all.

    Raises:
        ValueError: for another suffix.
        OSError: if it can't be written.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    buffer = io.BytesIO()
    if path.suffix == ".parquet":
        frame.write_parquet(buffer)
    else:
        frame.write_csv(buffer)
    write_atomically(path, buffer.getvalue())
