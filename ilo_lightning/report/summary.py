"""Means over images, for every problem and every way to solve it.

A *problem* is a task with its settings; a *solver* a method with its own. Where an image was solved several times with
the same settings (with other seeds, or because a baseline was run beside every point), it counts once, with its mean:
the intervals are over images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .collect import Collection, protocols_of
from .settings import Settings, telling

HIGHER_IS_BETTER = ("psnr", "ssim", "probability")  # every other metric is an error
UNRANKED = ("residual",)
"""Metrics by which nothing is better: where little was measured, what fits it best is not what was there."""
OPTIMISED = "‡"  # marks a distance
OPTIMISED_MEANS = "by the network that the method itself minimised, not compared with others"
COSTS = ("evaluations", "seconds")
BESIDE = ("found", *COSTS)
"""What stands beside the metrics, and no solver is the best by: the share of images that a method found, and costs."""


@dataclass(frozen=True)
class Mean:
    """A mean over images, and 1.96 standard errors of it (None for one image)."""

    value: float
    half: float | None


@dataclass(frozen=True)
class Group:
    """All results of one solver on one problem.

    Args:
        problem: values of `Summary.problem_keys`.
        solver: values of `Summary.solver_keys`.
        means: of each metric and of `BESIDE`, where there is one; seconds are per image.
        images: how many have results.
        failed: how many images have none.
        seeds: how often each image was solved with another seed, at most.
        optimised: the metrics that are networks which the solver itself minimised: not to be compared.
        same_images: False if the problem has a group with more images or seeds, or with others: not to be compared.
    """

    problem: tuple[Any, ...]
    solver: tuple[Any, ...]
    means: dict[str, Mean]
    images: int
    failed: int
    seeds: int
    same_images: bool = True
    optimised: tuple[str, ...] = ()

    def settings(self, summary: Summary) -> Settings:
        """By key, of the problem and the solver."""
        return dict(zip(summary.keys, (*self.problem, *self.solver), strict=True))


@dataclass(frozen=True)
class Summary:
    """Groups in the order of their settings; keys are settings, or ``task``, ``method``, ``code`` and ``protocol``."""

    problem_keys: tuple[str, ...]
    solver_keys: tuple[str, ...]
    metrics: tuple[str, ...]
    groups: list[Group]
    protocols: dict[str, list[str]]

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.problem_keys, *self.solver_keys)

    def best(self, metric: str, digits: int = 12) -> list[Group]:
        """The groups with the best mean of their problem, as it is written with so many decimals, where there is more
        than one to choose from."""
        if metric in UNRANKED:
            return []
        rivals: dict[tuple[Any, ...], list[Group]] = {}
        for group in self.groups:
            if metric in group.means and group.same_images and metric not in group.optimised:
                rivals.setdefault(group.problem, []).append(group)
        choose = max if metric in HIGHER_IS_BETTER else min
        found = []
        for groups in rivals.values():
            values = [round(group.means[metric].value, digits) for group in groups]
            best = choose(values)
            if len(groups) > 1:
                found += [group for group, value in zip(groups, values, strict=True) if value == best]
        return found


def swept(collection: Collection) -> list[str]:
    """The settings that tell the points apart, seed included."""
    known = collection.known_settings
    names = [[values.get(key) for values in known] for key in ("task.name", "method.name")]
    return telling(known, names)


def mixed(collection: Collection) -> list[str]:
    """Of the columns that no mean may be taken over, those that differ."""
    found = ["code"] if collection.rows["code"].drop_nulls().n_unique() > 1 else []
    return found + ["protocol"] * any(len(each) > 1 for each in protocols_of(collection.rows).values())


def summarise(collection: Collection) -> Summary:
    """Group all rows that have results."""
    import polars as pl

    keys = [key for key in swept(collection) if key != "seed"]
    of_problem = [key for key in keys if key.startswith(("task.", "data."))]
    problem_keys = ("task", *of_problem)
    solver_keys = ("method", *(key for key in keys if key not in of_problem), *mixed(collection))
    records = [
        {"number": number, "role": role, **{key: _text(values.get(key)) for key in keys}}
        for number, by_role in enumerate(collection.settings)
        for role, values in by_role.items()
    ]
    kinds = {"number": pl.Int64(), "role": pl.String(), **dict.fromkeys(keys, pl.String())}
    rows = collection.rows.join(pl.DataFrame(records, schema=kinds), on=["number", "role"], how="left")
    rows = rows.filter(pl.col("index").is_not_null()).with_columns(
        pl.coalesce("digest", "image", pl.format("#{}", "index")).alias("image"),
        (pl.col("seconds") / pl.col("batch_size")).alias("seconds"),
        pl.col("found").cast(pl.Float64),
    )
    rows = rows.sort("image", "seed", "number")  # sums don't depend on the folders that the rows come from
    values = [*collection.metrics, *BESIDE]
    by = [*problem_keys, *solver_keys]
    solved_with = pl.col("seed").filter(pl.col("error").is_null())
    per_image = rows.group_by([*by, "image"], maintain_order=True).agg(
        *(pl.col(name).mean() for name in values),
        pl.col("error").is_null().any().alias("solved"),
        solved_with.n_unique().alias("seeds"),
        pl.format("{} {}", pl.col("image").first(), solved_with.cast(pl.String).unique().sort().str.join(" ")).alias(
            "name"
        ),
        pl.col("optimised").drop_nulls().first(),
    )
    grouped = per_image.group_by(by, maintain_order=True).agg(
        *(pl.col(name).mean().alias(f"mean {name}") for name in values),
        *((1.96 * pl.col(name).std() / pl.col(name).count().sqrt()).alias(f"half {name}") for name in values),
        pl.col("solved").sum().alias("images"),
        (~pl.col("solved")).sum().alias("failed"),
        pl.col("seeds").max(),
        pl.col("optimised").drop_nulls().first(),
        pl.col("name").filter("solved").sort().alias("names"),
    )
    decode = _decoder(collection, keys)
    groups, names = [], []
    for record in grouped.iter_rows(named=True):
        groups.append(
            Group(
                tuple(decode(key, record[key]) for key in problem_keys),
                tuple(decode(key, record[key]) for key in solver_keys),
                {
                    name: Mean(record[f"mean {name}"], record[f"half {name}"])
                    for name in values
                    if record[f"mean {name}"] is not None
                },
                record["images"],
                record["failed"],
                record["seeds"],
                optimised=tuple(record["optimised"].split(",")) if record["optimised"] else (),
            )
        )
        names.append(tuple(record["names"]))
    return Summary(
        problem_keys,
        solver_keys,
        tuple(collection.metrics),
        sorted(_judged(groups, names), key=lambda group: _order((*group.problem, *group.solver))),
        protocols_of(collection.rows),
    )


def _text(value: Any) -> str | None:
    """Settings of any type as one, to group by: 0 and 0.0 are the same."""
    if value is None or isinstance(value, bool | str):
        return None if value is None else repr(value)
    return repr(float(value))


def _decoder(collection: Collection, keys: Sequence[str]) -> Callable[[str, str | None], Any]:
    known = {
        (key, _text(values.get(key))): values.get(key)
        for by_role in collection.settings
        for values in by_role.values()
        for key in keys
    }
    return lambda key, text: known.get((key, text), text)


def _judged(groups: list[Group], names: list[tuple[str, ...]]) -> list[Group]:
    """Mark the groups of a problem that have other images or seeds than its largest."""
    largest: dict[tuple[Any, ...], tuple[int, int, tuple[str, ...]]] = {}
    for group, images in zip(groups, names, strict=True):
        own = (len(images), group.seeds, images)
        largest[group.problem] = max(largest.get(group.problem, own), own, key=lambda each: each[:2])
    return [
        group if images == largest[group.problem][2] else replace(group, same_images=False)
        for group, images in zip(groups, names, strict=True)
    ]


def _order(values: Sequence[Any]) -> list[tuple[int, Any]]:
    """Numbers by size, before texts; what isn't set comes first."""
    return [
        (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, str(value))
        for value in values
    ]
