"""``ilo dashboard``: the specification of the workspace, against the sweep that it is for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from ilo_lightning.dashboard import main as dashboard
from ilo_lightning.dashboard import read_logs
from ilo_lightning.main import main
from tests.loggers.server import REFUSING, serving
from tests.test_run import arguments

pytestmark = pytest.mark.slow  # all look at a sweep of eight points, logged offline


@pytest.fixture(scope="module")
def sweep(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods × two noise levels × two seeds, one image each."""
    folder = tmp_path_factory.mktemp("sweeps") / "noise"
    common = [
        argument
        for argument in arguments(checkpoint, pictures, folder, "task=denoising", "data.limit=1")
        if not argument.startswith(("method.", "hydra.run"))
    ]
    more = ["method=ilo,csgm", "method.steps=2", "method.layers=[0]", "method.lr=0.1"]
    swept = ["task.noise.sigma=0.02,0.5", "seed=0,1"]
    log = ["logger=wandb", "logger.mode=offline", "logger.entity=lab", f"hydra.sweep.dir={folder}"]
    assert main(["-m", *common, *more, *swept, *log]) == 0
    return folder


@pytest.fixture(scope="module")
def view(sweep: Path) -> dict[str, Any]:
    """What would be saved."""
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed: pip install -e '.[dashboard]'")
    assert dashboard([str(sweep), "--dry-run"]) == 0
    return json.loads((sweep / "dashboard.json").read_text())


def panels(view: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


def test_it_shows_the_runs_of_this_sweep_only(view: dict[str, Any]):
    assert (view["entity"], view["project"], view["displayName"]) == ("lab", "ilo", "ilo noise")
    (runs,) = view["spec"]["section"]["runSets"]
    assert '"group"' in json.dumps(runs["filters"]) and '"noise"' in json.dumps(runs["filters"])
    columns = runs["runFeed"]["columnOrder"]
    assert {"config:task.value.noise.sigma", "summary:psnr", "summary:failed"} <= set(columns)
    assert "summary:psnr" in json.dumps(runs["sort"]) or '"psnr"' in json.dumps(runs["sort"])


def test_error_against_swept_values_grouped_by_method(view: dict[str, Any], sweep: Path):
    lines = [panel for panel in panels(view, "Run History Line Plot") if panel["xAxis"].startswith("sweep/")]
    axes = {(panel["xAxis"], *panel["metrics"]) for panel in lines}
    assert axes == {("sweep/task/noise/sigma", f"sweep/{metric}") for metric in ("psnr", "mse", "ssim")}, "no seed"
    others = [*panels(view, "Parallel Coordinates Plot"), *panels(view, "Scatter Plot")]
    assert len(others) == 4 and "seed" not in json.dumps(others)
    assert all(panel["groupBy"] == "method.value.name" and panel["groupArea"] == "stderr" for panel in lines)
    logarithmic = {panel["xAxis"] for panel in lines if panel.get("xLogScale")}
    assert logarithmic == {"sweep/task/noise/sigma"}, "0.02 to 0.5 spans more than a factor of ten"
    points = {(panel["xAxis"], panel["yAxis"]) for panel in panels(view, "Scatter Plot")}
    assert ("config:task.value.noise.sigma", "summary:psnr") in points
    # What the charts draw is what the runs logged.
    from tests.loggers.reading import offline_runs

    runs = offline_runs(sweep)
    assert len(runs) == 8
    for run in runs:
        (item,) = [r["history"]["item"] for r in run.records if "sweep/psnr" in r.get("history", {}).get("item", {})]
        assert {key for axis in axes for key in axis} <= set(item)


def test_images_stage_by_configuration_and_a_comparer(view: dict[str, Any]):
    (grid,) = panels(view, "Media Browser")
    assert grid["mediaKeys"] == ["strip/face0"] and grid["gridSettings"] == {"xAxis": "index", "yAxis": "run"}
    (comparer,) = panels(view, "Run Comparer")
    assert comparer["diffOnly"] == "split"
    assert "results" in json.dumps(panels(view, "Weave"))


def test_the_package_reads_its_own_specification_back(view: dict[str, Any]):
    from wandb_workspaces.workspaces import Workspace, internal

    read = Workspace._from_model(internal.View.model_validate(view))
    assert read.sections[0].name == "Error against what was swept"
    assert read.runset_settings.filters.replace('"', "'") == "Metric('Group') == 'noise'"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder, "holds no run that was logged with logger=wandb"),
        (lambda folder: folder / "missing", "holds no run that was logged with logger=wandb"),
    ],
)
def test_without_runs_it_refuses(make, words: str, tmp_path: Path, capsys):
    assert dashboard([str(make(tmp_path)), "--entity=me", "--dry-run"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"group": ...}, {"group": 3}, {"swept": None}, {"swept": {"seed": "x"}}, {"strips": ...}, {"method": None}, None],
    ids=str,
)
def test_a_damaged_record_is_named_and_left_out(change: dict | None, sweep: Path, tmp_path: Path, capsys):
    shutil.copytree(sweep, tmp_path / "noise", ignore=shutil.ignore_patterns("wandb", "images"))
    first, *_ = sorted((tmp_path / "noise").glob("*/logs/wandb.json"))
    record = json.loads(first.read_text()) | (change or {})
    record = {key: value for key, value in record.items() if value is not ...}
    first.write_text(json.dumps(record) if change else "{")
    logged = read_logs(tmp_path / "noise")
    assert logged.group == "noise" and logged.swept == {"task.noise.sigma": [0.02, 0.5]}
    assert capsys.readouterr().err == f"{first}: damaged; left out\n"


def test_one_run_is_no_sweep(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    log = ["logger=wandb", "logger.mode=offline", "data.limit=1"]
    assert main(arguments(checkpoint, pictures, tmp_path, *log)) == 0
    assert dashboard([str(tmp_path), "--entity=me", "--dry-run"]) == 2
    assert "no multirun" in capsys.readouterr().err


def refusal(sweep: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert dashboard([str(sweep), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_without_the_package_it_refuses(sweep: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert "pip install 'ilo-lightning[dashboard]'" in refusal(sweep, capsys=capsys)


def test_without_a_login_it_refuses(sweep: Path, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed: pip install -e '.[dashboard]'")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    assert "not logged in; run `wandb login`" in refusal(sweep, capsys=capsys)
    with serving(REFUSING) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        assert "refuses the login" in refusal(sweep, capsys=capsys)
    wandb.teardown()


def test_saving_sends_the_specification(sweep: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed: pip install -e '.[dashboard]'")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        assert dashboard([str(sweep)]) == 0
        (sent,) = [variables for name, variables in server.queries if "spec" in variables]
        wandb.teardown()
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("lab", "ilo", "ilo noise")
    assert json.loads(sent["spec"])["section"]["panelBankConfig"]["sections"]
    assert f"workspace: {server.url}/lab/ilo?nw=" in capsys.readouterr().out


def test_after_online_runs_it_knows_whose_they_are(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """W&B says which entity a run belongs to where nobody named one."""
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed: pip install -e '.[dashboard]'")
    common = [word for word in arguments(checkpoint, pictures, tmp_path) if not word.startswith("hydra.run")]
    log = ["logger=wandb", "logger.timeout=5", "data.limit=1", f"hydra.sweep.dir={tmp_path / 'online'}"]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        assert main(["-m", *common, "task=denoising", "task.noise.sigma=0.1,0.2", *log]) == 0
        wandb.teardown()
    assert dashboard([str(tmp_path / "online"), "--dry-run"]) == 0
    assert json.loads((tmp_path / "online" / "dashboard.json").read_text())["entity"] == "me"


def test_it_is_a_subcommand():
    done = subprocess.run(
        [sys.executable, "-m", "ilo_lightning.cli", "dashboard", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--dry-run" in done.stdout
