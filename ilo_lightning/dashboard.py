"""``ilo dashboard``: a saved Weights & Biases workspace for a sweep that was run with ``logger=wandb``.

It shows the error against every number that was swept, per method; the curves; each image in all its stages, a row per
configuration; the table of all images; and what differs between runs. Needs the package wandb-workspaces.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .exit_codes import DONE, REFUSED
from .files import write_atomically

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

IMAGES = 8
"""So many images have a grid of their own."""


class DashboardError(ValueError):
    """A workspace that can't be made; the message says why, and the remedy."""


@dataclass(frozen=True)
class Logged:
    """What a sweep's runs left of their logs.

    Args:
        group: of the W&B runs, the sweep's name.
        methods: that were run.
        swept: the numbers that were swept, key to values; without seeds.
        strips: keys of the images' pictures.
        metrics: names of the summary's metrics.
    """

    group: str
    project: str | None
    entity: str | None
    methods: list[str]
    swept: dict[str, list[float]]
    strips: list[str]
    metrics: list[str]


def main(arguments: Sequence[str]) -> int:
    """``ilo dashboard SWEEP``. Returns the exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="ilo dashboard",
        description="Save a Weights & Biases workspace for a sweep that was run with logger=wandb.",
    )
    parser.add_argument("sweep", type=Path, help="folder of the sweep (hydra.sweep.dir)")
    parser.add_argument("--entity", help="user or team; where the runs were logged, unless given")
    parser.add_argument("--project", help="where the runs were logged, unless given")
    parser.add_argument("--dry-run", action="store_true", help="only write what would be saved: SWEEP/dashboard.json")
    options = parser.parse_args(arguments)
    try:
        logged = read_logs(options.sweep)
        entity = options.entity or logged.entity or os.environ.get("WANDB_ENTITY")
        project = options.project or logged.project
        if not entity or not project:
            raise DashboardError("--entity: give the user or team whose workspace it is to be")
        workspace = build(logged, entity, project)
        if options.dry_run:
            path = options.sweep / "dashboard.json"
            write_atomically(path, specification(workspace) + "\n")
            print(f"specification: {path}")
        else:
            print(f"workspace: {save(workspace)}")
    except (DashboardError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    return DONE


def read_logs(sweep: Path) -> Logged:
    """What the runs below a folder logged.

    Raises:
        DashboardError: if there are none.
    """
    from .loggers.wandb_naming import read_record

    records: list[dict[str, Any]] = []
    for folder, folders, _ in os.walk(sweep):
        found = sorted(Path(folder, "logs").glob("wandb*.json"))
        for path in found:
            record = read_record(path)
            if record:
                records.append(record)
            else:
                print(f"{path}: damaged; left out", file=sys.stderr)
        # Of a run's folder only the logs matter; the rest may be thousands of folders.
        folders[:] = [] if found else sorted(name for name in folders if not name.startswith("."))
    if not records:
        raise DashboardError(f"{sweep}: holds no run that was logged with logger=wandb")
    groups = {record["group"] for record in records if record["group"]}
    if len(groups) != 1:
        what = f"runs of several groups ({', '.join(sorted(groups))})" if groups else "runs that are no multirun"
        raise DashboardError(f"{sweep}: holds {what}; give the folder of one sweep (hydra.sweep.dir)")
    values: dict[str, set[float]] = {}
    for record in records:
        for key, value in record["swept"].items():
            values.setdefault(key, set()).add(value)
    return Logged(
        group=groups.pop(),
        project=next((record["project"] for record in records if record["project"]), None),
        entity=next((record["entity"] for record in records if record["entity"]), None),
        methods=list(dict.fromkeys(record["method"] for record in records)),
        swept={key: sorted(found) for key, found in values.items() if len(found) > 1 and not _is_seed(key)},
        strips=list(dict.fromkeys(key for record in records for key in record["strips"])),
        metrics=list(dict.fromkeys(name for record in records for name in record["metrics"])),
    )


def _is_seed(key: str) -> bool:
    """Seeds are what means are taken over, and no axis."""
    return key.rpartition(".")[2] == "seed"


def build(logged: Logged, entity: str, project: str) -> ws.Workspace:
    """The workspace, not yet saved; needs neither a network nor a login.

    Raises:
        DashboardError: if the package is missing.
    """
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise DashboardError(
            "ilo dashboard: the package wandb-workspaces is missing; pip install 'ilo-lightning[dashboard]'"
        ) from None
    errors = [name for name in ("psnr", "mse", "ssim") if name in logged.metrics] or ["data_fit"]
    method = wr.Config("method.name")
    against = []
    for key, values in logged.swept.items():
        spread = values[0] > 0 and values[-1] / values[0] >= 10
        against += [_line(wr, name, key, method, log_x=spread) for name in errors]
        against += [_scatter(wr, name, key, log_x=spread) for name in errors]
    against += [
        wr.BarPlot(
            title=f"{name} per method",
            metrics=[name],
            groupby=method,
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        )
        for name in errors
    ]
    against.append(
        wr.ParallelCoordinatesPlot(
            title="all settings at once",
            columns=[
                wr.ParallelCoordinatesPlotColumn(metric)
                for metric in [*map(wr.Config, logged.swept), *map(wr.SummaryMetric, errors)]
            ],
        )
    )
    curves: list[Any] = [
        wr.LinePlot(title=title, x="curve/step", y=[f"curve/{name}"], log_y=log or None)
        for name, title, log in (
            ("data_fit", "data fit", True),
            ("distance_activation", "distance to the centre of the ball / radius", False),
            ("surface_activation", "fraction of images on the ball's surface", False),
            ("lr", "learning rate", False),
            ("stage", "stage", False),
        )
    ]
    grids: list[Any] = [
        wr.MediaBrowser(
            title=f"{key.partition('/')[2]}: stage × configuration",
            media_keys=[key],
            mode="grid",
            grid_x_axis="index",
            grid_y_axis="run",
            layout=wr.Layout(w=24, h=12),
        )
        for key in logged.strips[:IMAGES]
    ]
    summary = [*errors, "data_fit", "seconds", "evaluations", "images", "failed"]
    columns = [*map(_column, logged.swept), *(f"summary:{name}" for name in summary)]
    sections = [
        ws.Section(name="Error against what was swept", panels=against, is_open=True),
        ws.Section(name="Curves", panels=curves, is_open=True),
        ws.Section(name="Reconstructions", panels=grids, is_open=True),
        ws.Section(name="Images", panels=[wr.WeavePanelSummaryTable(table_name="results")], is_open=True),
        ws.Section(name="Compare runs", panels=[wr.RunComparer(diff_only="split")], is_open=True),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"ilo {logged.group}",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100, sort_panels_alphabetically=False),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == logged.group),
            order=[expr.Ordering(expr.Summary(errors[0]), ascending=errors[0] == "mse")],
            pinned_columns=["run:displayName", *columns],
        ),
    )


def _line(wr: Any, metric: str, key: str, group: Any, log_x: bool) -> Any:
    """A line per method through the runs' means, with their standard error."""
    from .loggers.wandb_naming import sweep_key

    return wr.LinePlot(
        title=f"{metric} against {key}",
        x=sweep_key(key),
        y=[f"sweep/{metric}"],
        title_x=key,
        title_y=metric,
        log_x=log_x or None,
        groupby=group,
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
    )


def _scatter(wr: Any, metric: str, key: str, log_x: bool) -> Any:
    """A point per run."""
    title = f"{metric} against {key}, every run"
    return wr.ScatterPlot(title=title, x=wr.Config(key), y=wr.SummaryMetric(metric), log_x=log_x or None)


def _column(key: str) -> str:
    """A key of the configuration as a column of the runs table."""
    section, *rest = key.split(".")
    return "config:" + ".".join([section, "value", *rest])


def specification(workspace: ws.Workspace) -> str:
    """What would be saved, as JSON."""
    view: Mapping[str, Any] = workspace._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    return json.dumps(view, indent=1, ensure_ascii=False)


def save(workspace: ws.Workspace) -> str:
    """Save to W&B; the address of the workspace.

    Raises:
        DashboardError: without a login, or if W&B refuses.
    """
    from .errors import first_line
    from .loggers.base import LoggerError
    from .loggers.wandb_login import choose_mode

    try:
        mode, _ = choose_mode("online")
    except LoggerError as error:
        message = str(error).replace("logger=wandb", "ilo dashboard").replace("logger.mode=offline", "--dry-run")
        raise DashboardError(message) from None
    if mode != "online":
        raise DashboardError("ilo dashboard: W&B doesn't answer; try again, or use --dry-run, which sends nothing")
    try:
        workspace.save()
        return workspace.url
    except Exception as error:  # whatever W&B's client raises
        raise DashboardError(f"W&B: {first_line(error)}") from None
