"""Sweeps on a real SLURM, whose jobs are requeued, cancelled, preempted, timed out and killed.

One cluster of one node is started for all tests here (as root); what happens to the jobs happens to all of them at the
same time, once, and the tests look at what came of it. Resumed = uninterrupted, bit for bit.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch

from ilo_lightning.main import main
from ilo_lightning.solution import Solution
from tests.test_run import comparable, rows_of

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

HERE = Path(__file__).parent
ILO = [sys.executable, "-m", "ilo_lightning.cli"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]


class Cluster:
    """A one-node SLURM in ``folder``, and the environment of commands that use it."""

    def __init__(self, folder: Path, slow: Path):
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(HERE.parents[1]),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ILO_TEST_SLOW": str(slow),
        }

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def ilo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*ILO, *arguments], env=self.environment, capture_output=True, text=True)

    @contextmanager
    def launch(
        self, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        with log.open("w") as file:
            variables = self.environment | dict(environment or {})
            process = subprocess.Popen([*ILO, *arguments], env=variables, stdout=file, stderr=file)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        while not condition():
            queue = self.run("squeue", "--noheader", check=False)
            assert queue.strip() or condition(), f"no job is left, and not yet: {what}"
            time.sleep(0.2)

    def state(self, job: str) -> str:
        return self.run("sacct", "-X", "-n", "-P", "-o", "State", "-j", job).strip()


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports that nobody uses."""
    for first in range(26817, 60000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ilo-slurm-"))  # the database's user must get there
    with (Path(tempfile.gettempdir()) / "ilo-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one cluster at a time, whoever runs tests
        try:
            start = [str(HERE / "start_slurm.sh"), str(folder), str(free_ports(4))]
            with (folder / "start.log").open("w") as log:  # daemons keep a pipe open
                done = subprocess.run(start, stdout=log, stderr=log)
            assert done.returncode == 0, (folder / "start.log").read_text()
            yield Cluster(folder, tmp_path_factory.mktemp("slow") / "slow")
        finally:
            subprocess.run([str(HERE / "stop_slurm.sh"), str(folder)], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def problem(checkpoint: Path, pictures: Path) -> list[str]:
    """A point that takes two minutes while ``cluster.slow`` exists, and else two seconds."""
    return [
        "generator=stylegan2",
        f"generator.checkpoint={checkpoint}",
        f"data.path={pictures / 'face0.png'}",
        "task=denoising",
        "task.operator._target_=tests.slurm.slow.Slow",
        "trainer=cpu",
        "method.radius=0.05",
        "method.layers=[0,1,2]",
        "method.steps=[150,150,150]",
        "method.lr=[0.1,0.05,0.05]",
        "checkpoint_every_seconds=0.5",
    ]


SEEDS = ("requeued", "cancelled", "killed", "killed while it saves", "left alone", "timed out", "preempted")
SEEDS += ("contained",)
"""What happens to the job of each seed."""


def seed_of(fate: str) -> int:
    return SEEDS.index(fate)


@pytest.fixture(scope="module")
def uninterrupted(problem: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of a seed's result, computed here without SLURM and without an interruption."""
    sweep = tmp_path_factory.mktemp("uninterrupted")
    seeds = ",".join(str(seed) for seed in range(len(SEEDS)))
    assert main(["-m", *problem, f"seed={seeds}", f"hydra.sweep.dir={sweep}"]) == 0
    return lambda seed: point(sweep, seed)


def point(sweep: Path, seed: int) -> Path:
    (folder,) = sweep.glob(f"seed-{seed}-*")
    return folder


def status(folder: Path) -> dict:
    try:
        return json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}


def assert_same(folder: Path, expected: Path) -> None:
    a, b = comparable(rows_of(folder)), comparable(rows_of(expected))
    assert a == b
    for row in a:
        x, y = (Solution.load(run / row["folder"] / "solution.safetensors") for run in (folder, expected))
        assert torch.equal(x.history, y.history)
        assert all(torch.equal(x.point[name], tensor) for name, tensor in y.point.tensors.items())


def with_apptainer(folder: Path, path: str) -> dict[str, str]:
    """Environment variables with a stand-in for Apptainer on the PATH: it notes what it runs, and hides SLURM's own
    commands, which are in no image."""
    (folder / "bin").mkdir()
    (folder / "image").mkdir()
    hidden = {"scontrol", "squeue", "sacct", "srun", "sbatch", "scancel", "sinfo"}
    for program in (program for place in path.split(":") for program in Path(place).glob("*")):
        link = folder / "image" / program.name
        if program.name not in hidden and not program.name.startswith("python") and not link.is_symlink():
            link.symlink_to(program)
    inside = f"PATH={Path(sys.executable).parent}:{folder / 'image'}"  # a virtual environment is known by its python
    lines = ["#!/bin/sh", f'echo "$@" >> {folder}/apptainer.log', "shift 3", f'exec env {inside} "$@"']
    (folder / "bin" / "apptainer").write_text("\n".join([*lines, ""]))
    (folder / "bin" / "apptainer").chmod(0o755)
    return {"ILO_IMAGE": "image.sif", "PATH": f"{folder / 'bin'}:{path}"}


@pytest.fixture(scope="module")
def array(cluster: Cluster, problem: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A sweep of five points of which one is impossible, in a container."""
    folder = tmp_path_factory.mktemp("array")
    environment = cluster.environment | with_apptainer(folder, cluster.environment["PATH"])
    command = [*ILO, "solve", "-m", *problem, "method.steps=[4,4,4]", "seed=0,1,2,3,-1.5"]
    command += [*SLURM, "hydra/launcher=slurm_container", f"hydra.sweep.dir={folder / 'sweep'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return folder / "sweep", done.stdout + done.stderr, done.returncode


def test_a_multirun_is_one_array_and_one_bad_point_fails_alone(cluster: Cluster, array: tuple[Path, str, int]):
    sweep, said, code = array
    assert code == 3, said
    assert "5 points: 4 done, 1 failed" in said and "seed=-1.5" in said
    jobs = [status(point(sweep, seed))["job"] for seed in range(4)]
    assert len({job.partition("_")[0] for job in jobs}) == 1 and len(set(jobs)) == 4
    (failed,) = sweep.glob("seed--1.5-*")
    assert "seed=-1.5: expected a whole number" in status(failed)["error"]


def test_every_task_gets_a_gpu_of_its_own(array: tuple[Path, str, int]):
    sweep, _, _ = array
    assert sorted(status(point(sweep, seed))["gpus"] for seed in range(4)) == ["0", "1", "2", "3"]


def test_a_container_runs_the_jobs_and_nothing_else(array: tuple[Path, str, int]):
    lines = (array[0].parent / "apptainer.log").read_text().splitlines()
    assert len(lines) == 5
    assert all(line.startswith("exec --nv image.sif python -u -m submitit.core._submit") for line in lines)


def test_what_slurm_refuses_is_one_line(cluster: Cluster, problem: list[str], tmp_path: Path):
    done = cluster.ilo(
        "solve", "-m", *problem, *SLURM, "hydra.launcher.partition=nowhere", "seed=0,1", f"hydra.sweep.dir={tmp_path}"
    )
    assert done.returncode == 2
    assert "nothing was submitted: sbatch: error: invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr


class Drama:
    """What was seen while it happened, and the folders."""

    def __init__(self, folder: Path):
        self.sweep, self.limited, self.plain = folder / "sweep", folder / "limited", folder / "plain"
        self.contained = folder / "contained"
        self.command: list[str] = []
        self.before: dict[str, dict] = {}
        self.code: dict[str, int] = {}
        self.said: dict[str, str] = {}


@pytest.fixture(scope="module")
def drama(cluster: Cluster, problem: list[str], tmp_path_factory: pytest.TempPathFactory) -> Drama:
    """See ``SEEDS``. In the end everything that runs on ``main`` is preempted once, and the launcher is long dead."""
    drama = Drama(tmp_path_factory.mktemp("drama"))
    slow = Path(cluster.environment["ILO_TEST_SLOW"])
    slow.touch()
    common = [*problem, *SLURM, "hydra.launcher.gpus_per_node=null"]
    seeds = ",".join(str(seed) for seed in range(5))
    drama.command = ["solve", "-m", *common, f"seed={seeds}", f"hydra.sweep.dir={drama.sweep}"]
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=5"]
    limited = ["solve", "-m", *common, *limit, f"seed={seed_of('timed out')}", f"hydra.sweep.dir={drama.limited}"]
    contained = ["solve", "-m", *common, *limit, f"seed={seed_of('contained')}", f"hydra.sweep.dir={drama.contained}"]
    contained += ["hydra/launcher=slurm_container"]
    inside = with_apptainer(tmp_path_factory.mktemp("container"), cluster.environment["PATH"])
    # Told to leave by SIGTERM alone, as where preempt_send_user_signal isn't set.
    script = drama.plain.with_suffix(".sh")
    words = " ".join(f"'{word}'" for word in [*problem, f"seed={seed_of('preempted')}", f"hydra.run.dir={drama.plain}"])
    script.write_text(f"#!/bin/sh\nsrun {' '.join(ILO)} solve {words}\n")
    options = ["--requeue", "--cpus-per-task=1", "--mem=1G", "--open-mode=append", f"--output={script}.log"]

    def at_the_limit() -> list[Path]:
        return [folder for sweep in (drama.limited, drama.contained) for folder in sweep.glob("point-*")]

    def attempts() -> list[int]:
        return [status(folder).get("attempt", 0) for folder in at_the_limit()]

    def saved() -> int:
        folders = [*drama.sweep.glob("seed-*"), *at_the_limit(), drama.plain]
        return sum((folder / "batches" / "0000-ilo.ckpt").exists() for folder in folders)

    with (
        cluster.launch(script.with_name("limited.log"), *limited) as patient,
        cluster.launch(script.with_name("contained.log"), *contained, environment=inside) as outside,
    ):
        with cluster.launch(script.with_name("sweep.log"), *drama.command):
            plain = cluster.run("sbatch", "--parsable", *options, str(script)).strip()
            cluster.wait_for("every job has saved once", lambda: saved() == 8)
        jobs = {fate: status(point(drama.sweep, seed_of(fate))) for fate in SEEDS[:5]}
        cluster.run("scontrol", "requeue", jobs["requeued"]["job"])
        cluster.run("scancel", jobs["cancelled"]["job"])
        os.kill(jobs["killed"]["pid"], signal.SIGKILL)
        kill_while_it_saves(jobs["killed while it saves"]["pid"], point(drama.sweep, seed_of("killed while it saves")))
        cluster.wait_for("the time limit", lambda: min(attempts()) >= 2)
        drama.before = {fate: status(point(drama.sweep, seed_of(fate))) for fate in SEEDS[:5]}
        urgent = ["--partition=urgent", "--cpus-per-task=8", "--mem=1G", "--output=/dev/null", "--wrap=sleep 1"]
        cluster.run("sbatch", *urgent)
        cluster.wait_for("the preempted job comes back", lambda: status(drama.plain).get("attempt") == 2)
        slow.unlink()
        drama.code |= {"timed out": patient.wait(), "contained": outside.wait()}
    while cluster.run("squeue", "--noheader").strip():
        time.sleep(0.5)
    drama.said = {"timed out": script.with_name("limited.log").read_text(), "plain": cluster.state(plain)}
    drama.said["contained"] = script.with_name("contained.log").read_text()
    return drama


def kill_while_it_saves(pid: int, folder: Path) -> None:
    """Freeze the process when a half-written checkpoint is seen, and kill it if it is still half-written then."""
    while True:
        if any((folder / "batches").glob(".*.part")):
            os.kill(pid, signal.SIGSTOP)
            if any((folder / "batches").glob(".*.part")):
                os.kill(pid, signal.SIGKILL)
                return
            os.kill(pid, signal.SIGCONT)


def test_a_time_limit_is_no_end_in_a_container(drama: Drama, uninterrupted: Callable[[int], Path]):
    """The job can't ask SLURM; the shell that started the container does, on the job's exit code."""
    log = next((drama.contained / ".submitit").glob("*/*_log.out")).read_text()
    assert "no scontrol here: exit code 75 asks to be requeued" in log and "Requeued job" in log
    assert "Traceback" not in log
    assert drama.code["contained"] == 0, drama.said["contained"]
    folder = next(drama.contained.glob("point-*"))
    assert status(folder)["attempt"] >= 2
    assert_same(folder, uninterrupted(seed_of("contained")))


@pytest.mark.parametrize("fate", ["requeued", "left alone"])
def test_jobs_go_on_without_their_launcher(fate: str, drama: Drama, uninterrupted: Callable[[int], Path]):
    """`scontrol requeue`; and preemption, which both went through in the end."""
    folder = point(drama.sweep, seed_of(fate))
    assert status(folder)["state"] == "done"
    assert status(folder)["attempt"] >= 2
    assert_same(folder, uninterrupted(seed_of(fate)))


def test_a_time_limit_is_no_end(drama: Drama, uninterrupted: Callable[[int], Path]):
    """Saved at SIGUSR2, requeued by submitit; the launcher waits for it."""
    folder = next(drama.limited.glob("point-*"))
    assert "Requeued job" in next((drama.limited / ".submitit").glob("*/*_log.out")).read_text()
    assert drama.code["timed out"] == 0, drama.said["timed out"]
    assert_same(folder, uninterrupted(seed_of("timed out")))


def test_who_is_preempted_by_sigterm_alone_comes_back(drama: Drama, uninterrupted: Callable[[int], Path]):
    """SLURM requeues a preempted job only if it is still there when the grace time is over, or asks for it."""
    assert drama.said["plain"] == "COMPLETED"
    assert status(drama.plain)["attempt"] == 2
    assert_same(drama.plain, uninterrupted(seed_of("preempted")))


def test_what_was_stopped_says_so_and_the_same_command_does_it(
    cluster: Cluster, drama: Drama, uninterrupted: Callable[[int], Path]
):
    """`scancel`; kill -9 between two checkpoints, and in the middle of one."""
    stopped = ("cancelled", "killed", "killed while it saves")
    assert drama.before["cancelled"]["state"] == "interrupted"
    assert [drama.before[fate]["state"] for fate in stopped[1:]] == ["running", "running"], "nobody could write it down"
    assert any((point(drama.sweep, seed_of("killed while it saves")) / "batches").glob(".*.part"))
    seen = cluster.ilo("status", str(drama.sweep))
    assert seen.returncode == 3 and "5 points: 2 done, 3 missing" in seen.stdout
    found = collected(cluster, drama.sweep)
    finished = {str(seed_of(fate)) for fate in ("requeued", "left alone")}
    assert {seed for seed, state in found.items() if state == "done"} == finished
    assert {state for seed, state in found.items() if seed not in finished} == {"missing"} and len(found) == 5
    for fate in stopped:
        folder = point(drama.sweep, seed_of(fate))
        assert torch.load(folder / "batches" / "0000-ilo.ckpt", weights_only=True)["global_step"] > 0
        assert not (folder / "results.jsonl").exists()
    again = cluster.ilo(*drama.command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 5 points need no work" in again.stdout
    for fate in stopped:
        folder = point(drama.sweep, seed_of(fate))
        assert status(folder)["attempt"] == 2
        assert_same(folder, uninterrupted(seed_of(fate)))
        assert not any(folder.rglob("*.part")) and not (folder / ".lease").exists()
    assert cluster.ilo("status", str(drama.sweep)).returncode == 0
    assert set(collected(cluster, drama.sweep).values()) == {"done"}


def collected(cluster: Cluster, sweep: Path) -> dict[str, str]:
    """State of each point by its seed, as `ilo collect` tells it; who is done has a result, and nobody else."""
    done = cluster.ilo("collect", str(sweep))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    table = pl.read_parquet(sweep / "collected.parquet")
    states = dict(table.select("point", "state").unique().rows())
    assert set(table.drop_nulls("psnr")["point"]) == {point for point, state in states.items() if state == "done"}
    said = done.stdout + done.stderr
    for point, state in states.items():
        if state != "done" and status(sweep / point)["state"] == "running":  # who killed it couldn't write that down
            assert f"{sweep / point}: its process on" in said
    assert all(f"{count} {state}" in said for state, count in Counter(states.values()).items())
    return {point.split("-")[1]: state for point, state in states.items()}
