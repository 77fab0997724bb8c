"""Sweeps through the command line: what is done, done again, left alone, refused; and what `ilo status` says of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from ilo_lightning import __version__
from ilo_lightning.cli import main as cli
from ilo_lightning.main import main
from tests.test_run import arguments, comparable, rows_of


def sweep(checkpoint: Path, pictures: Path, *more: str) -> list[str]:
    """A multirun of points that take a moment."""
    given = [word for word in arguments(checkpoint, pictures, Path()) if not word.startswith("hydra.run.dir")]
    return ["--multirun", *given, "data.limit=2", "data.batch_size=1", *more]


def points(folder: Path) -> dict[str, dict]:
    """Status of every point, by the readable part of its folder."""
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/status.json")}
    return {name.rpartition("-")[0]: status for name, status in found.items()}


def folder_of(sweep: Path, name: str) -> Path:
    (folder,) = sweep.glob(f"{name}-*")
    return folder


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.name not in ("multirun.yaml",)
            and not path.name.startswith("plan-") and path.is_file()}  # fmt: skip


def status(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli(["status", str(folder), *more])
    code = exit.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().out


def test_a_sweep_does_only_what_is_missing(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}")
    assert main([*command, "seed=0,1"]) == 0
    before = times(tmp_path)
    assert main([*command, "seed=0,1"]) == 0
    assert "2 of 2 points need no work" in capsys.readouterr().out
    assert times(tmp_path) == before
    # Extended, in other words for the same, with another logger and another machine.
    assert main([*command, "task=inpainting", "method.radius=0.05,0.3", "seed=0", "checkpoint_every_seconds=5"]) == 0
    assert {path: stamp for path, stamp in times(tmp_path).items() if path in before} == before
    shutil.rmtree(folder_of(tmp_path, "seed-1"))
    assert main([*command, "seed=0,1"]) == 0
    assert "1 of 2 points need no work" in capsys.readouterr().out
    assert status(tmp_path, capsys)[0] == 0


def test_a_sweep_has_the_same_folder_again(checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(sweep(checkpoint, pictures, "seed=0")) == 0
    assert main(sweep(checkpoint, pictures, "seed=0", "trainer=auto", "force=false")) == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert len(list(folder.glob("*/results.jsonl"))) == 1


@pytest.mark.slow
def test_one_failed_point_never_takes_the_sweep_down(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    """Refused, crashed, with a corrupt image: recorded, with the command that does it again; the rest is done."""
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "face1.png").write_bytes(b"\x89PNG")
    folder = tmp_path / "sweep"
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={folder}", "method.radius=-1,0.1")
    command += [f"data.path={pictures},{tmp_path / 'pictures'}"]
    assert main(command) == 3
    found = sorted((entry["state"], str(entry["error"])) for entry in points_by_path(folder).values())
    assert [state for state, _ in found] == ["done", "failed", "failed", "failed"]
    assert "1 of 2 images: data.path=" in found[1][1] and "face1.png" in found[1][1]
    assert found[2][1] == found[3][1] == "method.radius=-1: expected a number at least 0"
    code, said = status(folder, capsys)
    assert code == 3 and "4 points: 1 done, 3 failed" in said
    assert said.count("ilo solve generator=stylegan2") == 3 and said.count("ilo solve -m ") == 1
    lines = [json.loads(line) for line in status(folder, capsys, "--json")[1].splitlines()]
    assert [line["state"] for line in lines].count("failed") == 3
    assert main([*command, "method.radius=0.1"]) == 3
    assert "1 of 2 points need no work" in capsys.readouterr().out


@pytest.mark.slow
def test_what_status_says_to_type_does_it(checkpoint: Path, pictures: Path, tmp_path: Path, capsys, monkeypatch):
    """In a shell, word for word: for a single point, and for all that is missing or failed."""
    shutil.copytree(pictures, tmp_path / "my pictures")
    folder = tmp_path / "my sweep"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ILO_TEST_FILE", str(tmp_path / "file"))
    operator = ["task=denoising", "task.operator._target_=tests.operators_that_fail.Reads"]
    words = sweep(checkpoint, Path("my pictures"), *operator, "seed=0,1,2", "hydra.sweep.dir=my sweep")
    assert main(words) == 3
    (tmp_path / "file").touch()
    shutil.rmtree(folder_of(folder, "seed-2"))
    monkeypatch.chdir("/")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    code, said = status(folder, capsys)
    typed = [line.strip() for line in said.splitlines() if "ilo solve" in line]
    assert code == 3 and len(typed) == 3 and ["-m" in line for line in typed] == [False, False, True]
    for line, expected in ((typed[0], "1 done, 1 failed, 1 missing"), (typed[2], "3 done")):
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert f"3 points: {expected}" in status(folder, capsys)[1]


def points_by_path(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/status.json")}


def test_a_sweep_of_which_every_point_is_refused(checkpoint: Path, pictures: Path, tmp_path: Path):
    assert main(sweep(checkpoint, pictures, "method.radius=-1,-2", f"hydra.sweep.dir={tmp_path}")) == 2
    for entry in points(tmp_path).values():
        assert (entry["state"], entry["exit_code"]) == ("failed", 2)
    assert "radius: -1" in (folder_of(tmp_path, "method.radius--1") / "config.yaml").read_text()


@pytest.mark.slow
def test_shards_merge_as_if_there_had_been_one(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    common = [*sweep(checkpoint, pictures), "data.limit=null", "task=denoising"]
    assert main([*common, f"hydra.sweep.dir={tmp_path / 'whole'}"]) == 0
    parts = [*common, f"hydra.sweep.dir={tmp_path / 'parts'}"]
    assert main([*parts, "data.shard=2/3,3/3"]) == 0
    point = folder_of(tmp_path / "parts", "point")
    assert not (point / "results.jsonl").exists()
    code, said = status(tmp_path / "parts", capsys)
    assert code == 0 and "shard 3/3" not in said  # what was asked for is done
    assert main([*parts, "data.shard=1/3,2/3,3/3"]) == 0
    assert "2 of 3 points need no work" in capsys.readouterr().out
    whole = folder_of(tmp_path / "whole", "point")
    assert comparable(rows_of(point)) == comparable(rows_of(whole))
    for name in ("config.yaml", "run.json"):
        assert (point / name).read_text() == (whole / name).read_text()
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (point, whole)]
    assert names[0] == names[1]


def test_shards_that_are_none_and_points_given_twice(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}")
    assert main([*command, "data.shard=1/2,3/2"]) == 2
    assert capsys.readouterr().err == "error: data.shard=3/2: expected i/n with 1 ≤ i ≤ n\n"
    assert main([*command, "data.shard=1/2,1/2,2/2", "seed=0,0"]) == 0
    assert "6 combinations are 2 different points" in capsys.readouterr().out
    assert main([*command, "hydra.sweep.subdir=x"]) == 2
    assert "hydra.sweep.subdir" in capsys.readouterr().err


@pytest.mark.slow
def test_force_does_it_anew_and_once(checkpoint: Path, pictures: Path, tmp_path: Path):
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}", "seed=0,1")
    assert main(command) == 0
    (folder_of(tmp_path, "seed-0") / "images" / "stale.png").touch()
    before = comparable(rows_of(folder_of(tmp_path, "seed-0"))), times(tmp_path)
    assert main([*command, "force=true", "data.shard=1/2,2/2"]) == 0
    after = times(tmp_path)
    assert all(stamp != before[1].get(path) for path, stamp in after.items())
    assert comparable(rows_of(folder_of(tmp_path, "seed-0"))) == before[0]
    assert not (folder_of(tmp_path, "seed-0") / "images" / "stale.png").exists()
    # The same call again, as of a requeued job, goes on instead.
    run = [word for word in command[1:] if not word.startswith(("hydra", "seed"))]
    assert main([*run, "seed=0", "force=call 1", f"hydra.run.dir={folder_of(tmp_path, 'seed-0')}"]) == 0
    before = times(tmp_path / folder_of(tmp_path, "seed-0") / "batches")
    assert main([*run, "seed=0", "force=call 1", f"hydra.run.dir={folder_of(tmp_path, 'seed-0')}"]) == 0
    assert times(tmp_path / folder_of(tmp_path, "seed-0") / "batches") == before


@pytest.mark.slow
def test_points_of_another_version_are_not_mixed_in(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}", "seed=0,1")
    assert main(command) == 0
    folder = folder_of(tmp_path, "seed-1")
    for name in ("status.json", "run.json"):
        (folder / name).write_text((folder / name).read_text().replace('"version": "', '"version": "0.0.'))
    before = times(tmp_path)
    assert main(command) == 3
    errors = capsys.readouterr().err
    assert f"1 points were made by ilo-lightning 0.0.{__version__}" in errors and "force=true" in errors
    assert times(tmp_path) == before
    assert "made by ilo-lightning 0.0." in status(tmp_path, capsys)[1]
    # Without its status, the point itself says so.
    (folder / "status.json").unlink()
    assert main(command) == 3
    assert "holds another run (version: " in capsys.readouterr().err
    assert main([*command, "force=true"]) == 0


def test_touched_files_are_looked_at(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    """The same contents are the same point; others are refused, and nothing is lost."""
    shutil.copytree(pictures, tmp_path / "pictures")
    folder = tmp_path / "sweep"
    command = sweep(checkpoint, tmp_path / "pictures", f"hydra.sweep.dir={folder}", "seed=0,1")
    assert main(command) == 0
    before = {name: comparable(rows_of(folder_of(folder, name))) for name in ("seed-0", "seed-1")}
    os.utime(tmp_path / "pictures" / "face0.png", (1, 1))
    assert main(command) == 0
    assert "need no work" not in capsys.readouterr().out
    shutil.copy(tmp_path / "pictures" / "face2.png", tmp_path / "pictures" / "face0.png")
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 2 and "holds another run (images: " in errors and "Traceback" not in errors
    assert {name: comparable(rows_of(folder_of(folder, name))) for name in before} == before


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("gone", "code", "words"),
    [
        (["results.jsonl"], 0, ""),
        (["status.json"], 0, ""),
        (["config.yaml"], 0, ""),
        (["images", "results.jsonl"], 0, ""),
        (["batches/0001.jsonl", "results.jsonl"], 0, ""),
        (["run.json", "results.jsonl"], 3, "holds results, but no run.json that says of what"),
        (["batches", "images", "run.json", "results.jsonl"], 0, ""),
    ],
    ids=str,
)
def test_a_half_deleted_sweep(
    gone: list[str], code: int, words: str, checkpoint: Path, pictures: Path, tmp_path: Path, capsys
):
    """Done again is what is missing, refused is what nobody can know."""
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}", "seed=0,1")
    assert main(command) == 0
    folder = folder_of(tmp_path, "seed-1")
    before = comparable(rows_of(folder))
    for name in gone:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "multirun.yaml").unlink()
    capsys.readouterr()
    assert main(command) == code
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors
    if code == 0:
        assert comparable(rows_of(folder)) == before
    else:
        assert main([*command, "force=true"]) == 0


def test_a_sweep_without_its_plan(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    assert main(sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}", "method.radius=-1,0.1")) == 3
    for path in tmp_path.glob("plan-*.json"):
        path.write_text(path.read_text().replace("1/1", "one"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli(["status", str(tmp_path)])
    told = capsys.readouterr()
    assert exit.value.code == 3 and "2 points: 1 done, 1 failed" in told.out and "no plan-*.json" in told.out
    assert ".json: damaged; which points were planned in it can't be told\n" in told.err


def test_status_of_what_is_no_sweep(tmp_path: Path, capsys):
    for folder, words in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "holds no points of a sweep")):
        with pytest.raises(SystemExit) as exit:
            cli(["status", str(folder)])
        assert exit.value.code == 2
        assert words in capsys.readouterr().err


def test_status_imports_nothing_heavy(tmp_path: Path):
    code = "import sys; from ilo_lightning.sweeps.overview import main; main([sys.argv[1]]); "
    code += "print(*(m for m in ('torch', 'hydra', 'numpy', 'yaml') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "" and done.returncode == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"],
            "hydra.launcher.partitoin: no such option; did you mean hydra.launcher.partition?",
        ),
        (["hydra/launcher=slrum"], "hydra/launcher=slrum: no such choice; did you mean slurm?"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: no SLURM on this machine"),
        (["hydra.sweep.dir={file}/sweep"], "hydra.sweep.dir: [Errno 20] Not a directory"),
        (["method=ilu,csgm"], "method=ilu: no such choice; did you mean ilo?"),
        (["seed=0,1", "sed=3"], "sed: no such option; did you mean seed?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_that_can_t_begin(
    overrides: list[str], words: str, checkpoint: Path, pictures: Path, tmp_path: Path, capsys, monkeypatch
):
    """One line, before anything is run."""
    pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun
    (tmp_path / "file").touch()
    given = [f"hydra.sweep.dir={tmp_path / 'sweep'}", *(word.format(file=tmp_path / "file") for word in overrides)]
    assert main([*sweep(checkpoint, pictures), *given]) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1
    assert not list(tmp_path.rglob("batches"))


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["experiment=sweep_measurements", "task=denoising"],
            "experiment=sweep_measurements: sweeps over task.fraction, which task=denoising does not have; these do: "
            "compressed_sensing, gaussian_compressed_sensing, inpainting",
        ),
        (
            ["experiment=sweep_noise", "task/noise=poisson"],
            "experiment=sweep_noise: sweeps over task.noise.sigma, which task/noise=poisson does not have; leave that",
        ),
        (
            ["experiment=sweep_radius,sweep_noise"],
            "experiment=sweep_radius: sweeps over task.fraction, method.radius itself, so it can't be one value among "
            "others; give each such experiment a command of its own",
        ),
        (
            ["experiment=mnist,sweep_noise"],
            "experiment=sweep_noise: sweeps over method, method.evaluations, task.noise.sigma itself",
        ),
        (
            ["hydra/launcher=slurm_container", "seed=0,1"],
            "hydra/launcher=slurm_container: the environment variable ILO_IMAGE is not set; ILO_IMAGE=… before the",
        ),
        (
            ["experiment=rtil_protocol"],
            "generator.checkpoint: not given, and no point can do without; add generator.checkpoint=…",
        ),
        (["generator=stylegan2", "seed=0,1"], "generator.checkpoint: not given"),
        (["logger=wandb", "seed=0,1"], "logger=wandb: WANDB_API_KEY invalid: "),
        (["logger=csv,wandb", "logger.every=5"], "logger=wandb: WANDB_API_KEY invalid: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_of_which_no_point_could_begin(overrides: list[str], words: str, tmp_path: Path, capsys, monkeypatch):
    """One line for all points, and none has lost an attempt."""
    pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed")
    monkeypatch.delenv("ILO_IMAGE", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    wandb.teardown()
    assert main(["-m", *overrides, f"hydra.sweep.dir={tmp_path}"]) == 2
    wandb.teardown()
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {words}") and errors.count("\n") == 1
    assert not list(tmp_path.glob("*/*"))


def test_points_that_lack_what_others_have(tmp_path: Path, capsys):
    """They fail on their own, since the sweep has others to run."""
    few = ["method=csgm_mse", "method.steps=[1]", "trainer=cpu", f"hydra.sweep.dir={tmp_path}"]
    assert main(["-m", "generator=faces64,stylegan2", *few]) != 0
    told = capsys.readouterr()
    assert "2 points: 1 done, 1 failed" in told.out and "generator.checkpoint: not given; add" in told.err


def test_an_unwritable_shared_folder(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    """Mounted read-only: nothing can be begun, and what is there can be looked at."""
    folder = tmp_path / "shared"
    folder.mkdir()
    command = sweep(checkpoint, pictures, f"hydra.sweep.dir={folder / 'sweep'}")
    assert main(command) == 0
    mounted = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"can't mount here: {mounted.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        capsys.readouterr()
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("error: hydra.sweep.dir: [Errno 30] Read-only file system")
        assert status(folder / "sweep", capsys)[0] == 0
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_two_calls_of_one_sweep_do_nothing_twice(checkpoint: Path, pictures: Path, tmp_path: Path):
    """At the same time, in different orders."""

    def command(seeds: str) -> list[str]:
        words = sweep(checkpoint, pictures, f"hydra.sweep.dir={tmp_path}", f"seed={seeds}", "method.steps=[40,40,40]")
        return [sys.executable, "-m", "ilo_lightning.cli", "solve", *words]

    calls = [subprocess.Popen(command(seeds), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
             for seeds in ("0,1,2,3", "3,2,1,0")]  # fmt: skip
    errors = [call.communicate()[1] for call in calls]
    assert {call.returncode for call in calls} <= {0, 2, 3}, errors
    assert "Traceback" not in "".join(errors)
    statuses = points_by_path(tmp_path)
    assert len(statuses) == 4 and all(entry["state"] == "done" for entry in statuses.values())
    assert sum(len(rows_of(folder)) for folder in tmp_path.glob("seed-*")) == 8
    for path in tmp_path.glob("seed-*/status.json"):  # whoever came second found all of it done
        finished = [row["finished"] for row in rows_of(path.parent)]
        assert all(time <= json.loads(path.read_text())["ended"] for time in finished)


@pytest.mark.slow
def test_joblib_does_the_same_and_survives_its_workers(checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch):
    """One point is impossible, one kills its process each time; the others are done, with the same results."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    common = sweep(checkpoint, pictures, "task=denoising")
    operators = "ilo_lightning.operators.Denoising,tests.operators_that_fail.Deadly"
    command = [*common, f"task.operator._target_={operators}", "seed=0,1.5", f"hydra.sweep.dir={tmp_path / 'joblib'}"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ilo_lightning.cli",
            "solve",
            *command,
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    found = points_by_path(tmp_path / "joblib")
    states = {name.rpartition("-")[0].replace("task.operator._target_-", ""): entry for name, entry in found.items()}
    assert states["ilo_lightning.operators.Denoising+seed-0"]["state"] == "done"
    deadly = states["tests.operators_that_fail.Deadly+seed-0"]
    assert deadly["state"] == "failed" and "its process was killed, 2 times" in deadly["error"]
    for operator in ("ilo_lightning.operators.Denoising", "tests.operators_that_fail.Deadly"):
        assert "seed=1.5" in states[f"{operator}+seed-1.5"]["error"]
    assert main([*common, "seed=0", f"hydra.sweep.dir={tmp_path / 'basic'}"]) == 0
    joblib = folder_of(tmp_path / "joblib", "task.operator._target_-ilo_lightning.operators.Denoising+seed-0")
    assert comparable(rows_of(joblib)) == comparable(rows_of(folder_of(tmp_path / "basic", "point")))


@pytest.mark.parametrize(("launcher", "extra"), [("slurm", "slurm"), ("joblib", "joblib")])
def test_a_launcher_that_is_not_installed(launcher: str, extra: str, tmp_path: Path):
    """Without the plugins of this environment."""
    code = "import sys, hydra_plugins; hydra_plugins.__path__ = []; from ilo_lightning.main import main; "
    code += "sys.exit(main(sys.argv[1:]))"
    arguments = ["-m", f"hydra/launcher={launcher}", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: hydra/launcher: needs pip install 'ilo-lightning[{extra}]'\n"
