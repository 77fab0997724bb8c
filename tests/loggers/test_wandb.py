"""``logger=wandb``: what W&B's own reader finds in the runs, and that nothing about W&B breaks one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wandb
from omegaconf import OmegaConf
from PIL import Image

from ilo_lightning.loggers import WandbLog
from ilo_lightning.loggers.base import LoggerError, RunInfo
from ilo_lightning.loggers.wandb_login import choose_mode
from ilo_lightning.main import main
from ilo_lightning.solution import Solution
from tests.loggers.reading import OfflineRun, offline_runs
from tests.loggers.server import REFUSING, SILENT, Server, serving
from tests.test_run import CSGM, arguments, rows_of


@pytest.fixture(scope="module", autouse=True)
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the tester's own login, and W&B's files out of the home."""
    folder = tmp_path_factory.mktemp("account")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("NETRC", str(folder / "netrc"))
        for name in ("CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name))
        wandb.teardown()
        yield
        wandb.teardown()


@pytest.fixture
def afresh() -> Iterator[None]:
    """W&B's client, as in a process of its own: it reads the environment once, and keeps a login."""
    wandb.teardown()
    yield
    wandb.teardown()


KEY = "0" * 40


def of_its_own() -> dict[str, str]:
    """The environment of a process that doesn't share this one's W&B."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


WANDB = ["logger=wandb", "logger.mode=offline", "logger.every=2"]


@pytest.fixture(scope="module")
def two_batches(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OfflineRun]:
    """A run of three images in batches of two, with a baseline; and what W&B has of it."""
    folder = tmp_path_factory.mktemp("wandb")
    assert main(arguments(checkpoint, pictures, folder, *CSGM, *WANDB, "logger.images=2", "logger.tags=[mine]")) == 0
    (run,) = offline_runs(folder)
    return folder, run


def test_the_run_is_named_and_configured(two_batches: tuple[Path, OfflineRun]):
    folder, run = two_batches
    identity = json.loads((folder / "run.json").read_text())["identity"]
    assert run.about["run_id"] == identity[:16] and run.about["resume"]
    assert run.about["job_type"] == "inpainting" and run.about["project"] == "ilo"
    assert run.about["tags"] == ["ilo", "mine"]
    config = run.summary["config"]
    assert config["identity"] == identity
    for name, value in OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True).items():
        assert config[name] == value
    assert run.summary["state"] == "finished" and run.summary["exit_code"] == 0
    assert "run_group" not in run.about, "no multirun, no group"


def test_live_curves_run_through_all_batches_on_one_axis(two_batches: tuple[Path, OfflineRun]):
    _, run = two_batches
    assert run.steps_of["live/*"] == "live/step"
    fit, steps = run.curve("live/data_fit"), 2 * (12 + 12)
    assert list(fit) == sorted(fit) and max(fit) == steps - 1
    # On each batch csgm: 0, 2, … 10, and its last step 11; then ilo, whose stages end at 3, 6 and 11.
    csgm, ilo = [0, 2, 4, 6, 8, 10, 11], [0, 2, 3, 4, 6, 8, 10, 11]
    assert list(fit) == [*csgm, *(12 + s for s in ilo), *(24 + s for s in csgm), *(36 + s for s in ilo)]
    stages = run.curve("live/stage")
    assert [stages[12 + step] for step in ilo] == [0, 0, 0, 1, 1, 2, 2, 2]
    distances = run.curve("live/distance_activation")
    assert set(distances) == {s for s in fit if stages[s] > 0}, "the latent code has no ball"
    assert all(0 <= distance <= 1 + 1e-5 for distance in distances.values())
    surfaces = run.curve("live/surface_activation")
    assert all(surfaces[s] in (0, 0.5, 1) for s in surfaces) and all(
        distances[s] > 0.99 for s in surfaces if surfaces[s] == 1
    )


@pytest.mark.parametrize(("section", "suffix"), [("curve", ""), ("baseline_curve", "-csgm")])
def test_curves_are_means_over_all_images_of_the_run(section: str, suffix: str, two_batches: tuple[Path, OfflineRun]):
    """Against the histories that the solutions keep."""
    folder, run = two_batches
    assert run.steps_of[f"{section}/*"] == f"{section}/step"
    curve = run.curve(f"{section}/data_fit")
    solutions = [Solution.load(folder / row["folder"] / f"solution{suffix}.safetensors") for row in rows_of(folder)]
    assert len(curve) >= 7
    for step, value in curve.items():
        assert value == pytest.approx(np.mean([float(solution.history[int(step)]) for solution in solutions]), rel=1e-5)
    assert run.curve(f"{section}/loss") == pytest.approx(curve), "nothing but the data fit is minimised here"
    assert set(run.curve(f"{section}/lr")) == set(curve)


def test_the_summary_sorts_runs(two_batches: tuple[Path, OfflineRun]):
    folder, run = two_batches
    rows, found = rows_of(folder), run.summary["summary"]
    for prefix, outcomes in (("", rows), ("baseline/", [row["baseline"] for row in rows])):
        for metric in ("psnr", "mse", "ssim"):
            values = [outcome["metrics"][metric] for outcome in outcomes]
            assert found[prefix + metric] == pytest.approx(np.mean(values))
            half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
            assert found[f"{prefix}{metric}_interval"] == pytest.approx(half)
        for field in ("data_fit", "evaluations", "seconds"):
            assert found[prefix + field] == pytest.approx(np.mean([outcome[field] for outcome in outcomes]))
    assert (found["images"], found["failed"]) == (3, 0)
    assert not [name for name in found if name.startswith(("live/", "curve/"))], "curves stay out of the runs table"


def test_strips_and_table_hold_the_pictures(two_batches: tuple[Path, OfflineRun]):
    folder, run = two_batches
    strips = {name: value for name, value in run.summary["summary"].items() if name.startswith("strip/")}
    assert set(strips) == {"strip/face0", "strip/face1"}, "logger.images=2"
    for name, strip in strips.items():
        captions = [caption.split("  ")[0] for caption in strip["captions"]]
        stages = [f"ilo: after layer {layer}" for layer in (0, 1, 2)]
        assert captions == ["measurement", "csgm", *stages, "ilo: result", "truth"]
        shown = [np.array(Image.open(run.folder / "files" / file)) for file in strip["filenames"]]
        for place, picture in ((-2, "reconstruction.png"), (-1, "truth.png"), (1, "reconstruction-csgm.png")):
            assert np.array_equal(shown[place], np.array(Image.open(folder / "images" / name[6:] / picture)))
    table = json.loads((run.folder / "files" / run.summary["summary"]["results"]["path"]).read_text())
    lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert [(line["image"], line["method"]) for line in lines] == [
        (row["image"], method) for row in rows_of(folder) for method in ("ilo", "csgm")
    ]
    for line, outcome in zip(lines, [o for row in rows_of(folder) for o in (row, row["baseline"])], strict=True):
        assert line["psnr"] == pytest.approx(outcome["metrics"]["psnr"]) and line["problem"] is None
        assert (line["reconstruction"] is not None) == (line["image"] != "face2")
    staged = [path for path in folder.rglob("staging/*") if path.is_file()]
    assert staged, "what the table refers to lies with the run until it is uploaded"


@pytest.mark.slow
def test_a_multirun_of_four_gives_four_runs_of_one_group(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    sweep = tmp_path / "sweep"
    swept = [f"hydra.sweep.dir={sweep}", "method.radius=0.1,0.2", "seed=0,1", "data.limit=1"]
    assert main(["-m", *arguments(checkpoint, pictures, tmp_path / "unused", *WANDB), *swept]) == 0
    runs = offline_runs(sweep)
    assert len(runs) == 4 and len({run.about["run_id"] for run in runs}) == 4
    assert {run.about["run_group"] for run in runs} == {"sweep"}
    points = {(run.summary["config"]["method"]["radius"], run.summary["config"]["seed"]) for run in runs}
    assert points == {(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)}
    for run in runs:
        radius, seed = run.summary["config"]["method"]["radius"], run.summary["config"]["seed"]
        assert f"method.radius={radius} seed={seed}" in run.summary["name"]
        item = next(r["history"]["item"] for r in run.records if "sweep/psnr" in str(r))
        assert item["sweep/method/radius"] == radius and item["sweep/seed"] == seed
        assert item["sweep/psnr"] == run.summary["summary"]["psnr"]
        assert run.summary["state"] == "finished" and "curve/data_fit" in str(run.records)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B")]
    assert len(said) == 4 and all("wandb sync" in line for line in said)


LONG = ["method.steps=[60,60,60]", "checkpoint_every_seconds=0.05"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_requeued_job_keeps_its_id(kill: signal.Signals, checkpoint: Path, pictures: Path, tmp_path: Path):
    """Two run directories of one id, the first marked as preempted where the job could say so; the curves are whole."""
    command = arguments(checkpoint, pictures, tmp_path, *LONG, *WANDB)
    process = subprocess.Popen(
        [sys.executable, "-m", "ilo_lightning.cli", "solve", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=of_its_own(),
    )
    second = tmp_path / "batches" / "0001-ilo.ckpt"
    while not second.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(kill)
    process.communicate()
    assert process.returncode == (143 if kill == signal.SIGTERM else -kill)
    assert main(command) == 0
    ids = [path.name.split("-", 3)[3] for path in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    assert len(ids) == 2 and len(set(ids)) == 1
    last = offline_runs(tmp_path)[-1]
    assert last.about["run_id"] == ids[0] and last.about["resume"] and last.summary["state"] == "finished"
    if kill == signal.SIGTERM:  # after a kill, W&B has what it happened to have written
        first = offline_runs(tmp_path)[0]
        assert first.about["run_id"] == ids[0] and first.about["resume"]
        assert first.summary["exit_code"] == 1 and "preempting" in {record["type"] for record in first.records}
        live = first.curve("live/data_fit") | last.curve("live/data_fit")
        assert set(live) >= set(range(0, 360, 2)), "together they hold the whole course"
        uploaded = synchronise(sorted((tmp_path / "wandb").glob("offline-run-*")))
        assert uploaded.runs == {ids[0]}
        assert {row["live/step"] for row in uploaded.history if "live/step" in row} == set(live)
        steps = [row["_step"] for row in uploaded.history]
        assert steps == sorted(set(steps)), "the second goes on where the first ended"
    curve = last.curve("curve/data_fit")
    solutions = [Solution.load(tmp_path / row["folder"] / "solution.safetensors") for row in rows_of(tmp_path)]
    assert set(curve) >= set(range(0, 180, 2)), "the points of what was done before the kill are there too"
    for step, value in curve.items():
        assert value == pytest.approx(np.mean([float(solution.history[int(step)]) for solution in solutions]), rel=1e-5)


def synchronise(folders: list[Path]) -> Server:
    """What a server has got after ``wandb sync``."""
    with serving() as server:
        environment = {**of_its_own(), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folders[0])
    assert done.returncode == 0 or "not here" in done.stderr, done.stderr  # tables need more of a server
    return server


def test_a_finished_run_is_told_once(checkpoint: Path, pictures: Path, tmp_path: Path):
    command = arguments(checkpoint, pictures, tmp_path, *WANDB, "data.limit=1")
    assert main(command) == 0
    assert main(command) == 0
    assert len(offline_runs(tmp_path)) == 1


@pytest.mark.slow
def test_done_anew_no_log_is_lost(checkpoint: Path, pictures: Path, tmp_path: Path):
    """What wasn't uploaded is kept where `wandb sync FOLDER/wandb/offline-run-*` doesn't mix it with the new."""
    command = arguments(checkpoint, pictures, tmp_path, *WANDB, "data.limit=1")
    assert main(command) == 0
    (first,) = offline_runs(tmp_path)
    for count in (1, 2):
        assert main([*command, "force=true"]) == 0
        (now,) = tmp_path.glob("wandb/offline-run-*")
        kept = offline_runs(tmp_path / "wandb" / "superseded")
        assert len(kept) == count and kept[0].records == first.records and now.name != first.folder.name
    next(now.glob("*.wandb")).with_suffix(".wandb.synced").touch()  # as W&B marks what it has uploaded
    assert main([*command, "force=true"]) == 0
    assert len(offline_runs(tmp_path / "wandb" / "superseded")) == 2 and len(offline_runs(tmp_path)) == 3


def test_failed_images_are_counted_and_named(checkpoint: Path, pictures: Path, tmp_path: Path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "face1.png").write_text("no picture")
    assert main(arguments(checkpoint, folder, tmp_path / "run", *WANDB)) == 3
    (run,) = offline_runs(tmp_path / "run")
    assert (run.summary["summary"]["images"], run.summary["summary"]["failed"]) == (3, 1)
    table = json.loads((run.folder / "files" / run.summary["summary"]["results"]["path"]).read_text())
    problems = [line[table["columns"].index("problem")] for line in table["data"]]
    assert [problem is not None for problem in problems] == [False, True, False]
    assert "face1.png" in problems[1]


def test_a_run_of_the_caller_s_own_stays_theirs(checkpoint: Path, pictures: Path, tmp_path: Path):
    own = wandb.init(mode="offline", dir=str(tmp_path), project="own", settings=wandb.Settings(silent=True))
    assert main(arguments(checkpoint, pictures, tmp_path / "run", *WANDB, "data.limit=1")) == 0
    own.log({"still": 1})
    own.finish()
    (ours,) = offline_runs(tmp_path / "run")
    assert ours.about["project"] == "ilo" and "still" not in str(ours.records)


MURDER = """
import json, os, signal, sys, time
from pathlib import Path
from ilo_lightning.loggers import WandbLog
from ilo_lightning.main import main

def kill_wandb():
    for entry in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
        if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
            os.kill(int(entry.parent.name), signal.SIGKILL)
            return

def batch(self, rows):
    kill_wandb()
    time.sleep(0.2)
    untouched(self, rows)

first, second = json.loads(sys.argv[1])
untouched, WandbLog.batch = WandbLog.batch, batch
assert main(first) == 0
WandbLog.batch = untouched
assert main(second) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's process in /proc")
def test_when_wandb_dies_the_run_goes_on(checkpoint: Path, pictures: Path, tmp_path: Path):
    """And the next job of the same process is logged again."""
    jobs = [arguments(checkpoint, pictures, tmp_path / name, *WANDB) for name in ("a", "b")]
    done = subprocess.run(
        [sys.executable, "-c", MURDER, json.dumps(jobs)], capture_output=True, text=True, env=of_its_own()
    )
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "a")) == 3
    said = [line for line in done.stderr.splitlines() if "W&B" in line]
    assert len(said) == 1 and "going on without it" in said[0]
    assert "Traceback" not in done.stderr
    assert offline_runs(tmp_path / "b")[0].summary["state"] == "finished"


INFO = RunInfo(Path("nowhere"), {}, "inpainting", (("ilo", 3),))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": -1}, "logger.images=-1"),
        ({"timeout": 0}, "logger.timeout=0"),
        ({"mode": "onlin"}, "logger.mode=onlin: expected one of online, offline, disabled"),
        ({"suffix": "a/b"}, "logger.suffix=a/b"),
        ({"every": 0}, "logger.every=0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, words: str):
    with pytest.raises(LoggerError, match=words):
        WandbLog(INFO, **options)


def test_every_shard_of_a_point_has_an_id_of_its_own():
    ids = []
    for shard in (None, "1/2", "2/2", "2/4"):
        log = WandbLog(replace(INFO, config={"data": {"shard": shard}}), mode="offline", suffix="-again")
        log.begin("0123456789abcdef" * 4)
        ids.append(log.run_id)
    names = ("", "-1of2", "-2of2", "-2of4")
    assert ids == [f"0123456789abcdef{name}-again" for name in names]


def test_without_a_login_it_is_offline(afresh: None):
    assert choose_mode(None) == ("offline", None)


def test_told_to_be_online_without_a_login_it_refuses(afresh: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(LoggerError, match=r"not logged in; run `wandb login`"):
        choose_mode(None)


def test_a_malformed_key_is_refused_unless_offline(afresh: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(LoggerError, match=r"WANDB_API_KEY invalid: .*40.*; correct WANDB_API_KEY or run `wandb login`"):
        choose_mode(None)
    assert choose_mode("offline") == ("offline", None)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode(None) == ("disabled", None)


def test_a_key_that_the_server_refuses_is_refused(afresh: None, monkeypatch: pytest.MonkeyPatch):
    with serving(REFUSING) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        with pytest.raises(LoggerError, match=f"{server.url} refuses the login \\(error 401\\)"):
            choose_mode(None)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_not_waited_for(afresh: None, monkeypatch: pytest.MonkeyPatch):
    with serving(SILENT) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        mode, remark = choose_mode(None)
    assert mode == "offline" and remark and remark.startswith(f"W&B: no answer from {server.url}; logging offline")


@pytest.fixture
def logged_in(afresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine that takes the key."""
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        wandb.teardown()


ONLINE = ["logger=wandb", "logger.every=2", "logger.timeout=5", "data.limit=1"]


def test_logged_in_it_is_online(logged_in: Server, checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    assert main(arguments(checkpoint, pictures, tmp_path, *ONLINE)) == 0
    identity = json.loads((tmp_path / "run.json").read_text())["identity"][:16]
    assert f"W&B: {logged_in.url}/me/ilo/runs/{identity}" in capsys.readouterr().out
    begun = next(variables for operation, variables in logged_in.queries if operation == "UpsertBucket")
    assert begun["name"] == identity and begun["jobType"] == "inpainting"
    live = {row["live/step"]: row["live/data_fit"] for row in logged_in.history if "live/step" in row}
    solution = Solution.load(tmp_path / "images" / "face0" / "solution.safetensors")
    assert list(live) == [0, 2, 3, 4, 6, 8, 10, 11]
    assert list(live.values()) == pytest.approx([float(solution.history[step]) for step in live], rel=1e-5)


@pytest.mark.slow
def test_a_server_that_falls_silent_does_not_hold_up_the_run(
    logged_in: Server, checkpoint: Path, pictures: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    def begin(self: WandbLog, *arguments) -> object:
        found = untouched(self, *arguments)
        logged_in.mood = SILENT
        return found

    untouched = WandbLog.loggers
    monkeypatch.setattr(WandbLog, "loggers", begin)
    assert main(arguments(checkpoint, pictures, tmp_path, *ONLINE)) == 0
    assert len(rows_of(tmp_path)) == 1
    assert "to upload what W&B has been told: wandb sync --include-online" in capsys.readouterr().err
