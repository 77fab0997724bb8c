"""A cluster in simulated time, for sweep_simulation.py: nodes, a queue, preemptions, failures and kills.

Its jobs run the project's own code for planning, leases, status, resuming and merging; only the arithmetic is made up.
"""

from __future__ import annotations

import copy
import heapq
import io
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import setting_of

from ilo_lightning import pipeline, slurm
from ilo_lightning.callbacks.progress import QuietDisplay
from ilo_lightning.interrupt import Interrupted, StopRequest
from ilo_lightning.main import main as ilo
from ilo_lightning.observations import Observation, Observations
from ilo_lightning.sweeps import lease, sweeper
from ilo_lightning.sweeps.lease import Holder, Lease
from ilo_lightning.sweeps.plan import Point, key_of
from ilo_lightning.sweeps.shard import Shard

SECONDS_PER_IMAGE_STEP = 0.04
STEPS = 200
SLOTS_PER_NODE = 8
MEAN_HOURS = {"preemption": 6.0, "kill": 60.0, "node failure": 400.0}
"""Of a job until it is preempted, or killed without a word and not requeued; of a node until it fails."""
FAILING = 0.005
"""Share of the points that raise an error when they are begun for the first time."""
SAVED_EVERY = 30.0
EPOCH = 1e9
"""When the simulation begins, by the file server's clock."""


class SyntheticImages(Observations):
    """Images of which only the digests exist."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Observation:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise AssertionError("nothing is computed")

    def digest(self, index: int) -> str:
        return f"{index:064x}"


@dataclass(eq=False)
class Job:
    """An array task, and the thread in which its current attempt runs the project's code, one thread at a time."""

    id: str
    point: Point
    restarts: int = 0
    node: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    paused: threading.Event = field(default_factory=threading.Event)
    resumed: threading.Event = field(default_factory=threading.Event)
    wanted: float = 0.0  # seconds that the current batch takes
    began: float = 0.0
    batch: int = 0
    outcome: str | None = None  # None while it runs
    version: int = 0  # of its next event


class Cluster:
    """Simulated time, a queue, and what happened."""

    def __init__(self, folder: Path, images: int, batch_size: int, nodes: int, pack: bool, harshness: float, seed: int):
        self.folder, self.pack, self.harshness = folder, pack, harshness
        self.setting = setting_of("trainer=cpu", "task=denoising", "data.batch_size=" + str(batch_size))
        self.images = SyntheticImages(images)
        self.free = [node for node in range(nodes) for _ in range(SLOTS_PER_NODE)]
        self.nodes = nodes
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = itertools.count()
        self.queue: list[Job] = []
        self.running: dict[str, Job] = {}
        self.jobs: dict[str, Job] = {}
        self.here = threading.local()
        self.finished: Counter[tuple[str, int]] = Counter()
        self.progress: dict[tuple[str, int], float] = {}
        self.seen: Counter[str] = Counter()
        self.failed_once: set[str] = set()
        self.wasted = self.used = 0.0

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.number), what))

    def after(self, hours: float, what: Callable[[], None]) -> None:
        self.at(self.random.expovariate(self.harshness / (hours * 3600)), what)

    def launch(self, command: list[str]) -> int:
        """A real call of `ilo solve -m`, whose launcher puts its jobs into the queue."""
        array = next(self.number)

        def enqueue(this: Any, points: list[Point], folder: Path, start: int) -> dict[Point, int]:
            for index, point in enumerate(points):
                job = Job(f"{array}_{start + index}", point)
                self.jobs[job.id] = job
                self.queue.append(job)
            return {}

        before = len(self.queue)
        with patch.object(sweeper.PointSweeper, "_launch", enqueue):
            ilo(["-m", *command, f"hydra.sweep.dir={self.folder}"])
        return len(self.queue) - before

    def run(self) -> None:
        """Until nothing is queued and nothing runs."""
        for node in range(self.nodes):
            self.after(MEAN_HOURS["node failure"], lambda node=node: self.fail_node(node))
        while True:
            while self.queue and self.free:
                self.start(self.queue.pop(0))
            if not self.running and not self.queue:
                self.events.clear()
                self.now += lease.STALE  # the next call comes a while later
                return
            self.now, _, what = heapq.heappop(self.events)
            what()

    def start(self, job: Job) -> None:
        job.node = self.free.pop(self.random.randrange(len(self.free)))
        job.stop, job.outcome = StopRequest(), None
        self.running[job.id] = job
        self.seen["attempts"] += 1
        version = job.version
        if self.random.random() < 0.5:
            self.after(MEAN_HOURS["preemption"], lambda: self.preempt(job, version))
        self.after(MEAN_HOURS["kill"], lambda: self.kill(job, version, requeue=False))
        threading.Thread(target=self.attempt, args=(job,), daemon=True).start()
        self.wait(job)

    def attempt(self, job: Job) -> None:
        """What a job's process does."""
        self.here.job = job
        setting = copy.copy(self.setting)
        values = {"overrides": [override for override in job.point.overrides if key_of(override) != "data.shard"]}
        for name, value in {"config": values, "observations": self.images, "pack": self.pack}.items():
            object.__setattr__(setting, name, value)
        object.__setattr__(setting, "shard", Shard.parse(job.point.shard))
        try:
            pipeline.run(setting, self.folder / job.point.folder, QuietDisplay(), job.stop)
            job.outcome = "done"
        except Interrupted:
            job.outcome = "preempted"
        except pipeline.RunError as error:
            job.outcome = "busy" if "another process" in str(error) else f"refused: {error}"
        except MemoryError:
            job.outcome = "failed"
        job.paused.set()

    def wait(self, job: Job) -> None:
        """Let the job's thread run, until it computes (then it is continued when that is over) or ends."""
        job.paused.wait()
        job.paused.clear()
        job.version += 1
        if job.outcome is None:
            version = job.version
            self.at(job.wanted, lambda: self.go_on(job, version))
            return
        self.seen[job.outcome.partition(":")[0]] += 1
        if job.outcome.startswith("refused"):
            raise AssertionError(job.outcome)
        self.leave(job)
        if job.outcome == "preempted":
            self.requeue(job)

    def leave(self, job: Job) -> None:
        if job.id in self.running:
            del self.running[job.id]
            self.free.append(job.node)

    def requeue(self, job: Job) -> None:
        again = Job(job.id, job.point, job.restarts + 1)
        self.jobs[job.id] = again
        self.at(self.random.uniform(5, 300), lambda: self.queue.append(again))
        # Keeps the loop alive while it waits; nothing else may be left.
        waiting = f"waiting {job.id} {again.restarts}"
        self.running[waiting] = again

        def is_back() -> None:
            self.running.pop(waiting, None)

        self.at(301, is_back)

    def go_on(self, job: Job, version: int) -> None:
        if job.version == version and self.running.get(job.id) is job:
            job.resumed.set()
            self.wait(job)

    def spend(self, job: Job, seconds: float, lost: float) -> None:
        self.used += seconds
        self.wasted += lost
        key = (job.point.folder, job.batch)
        self.progress[key] = self.progress.get(key, 0.0) + seconds - lost

    def preempt(self, job: Job, version: int) -> None:
        """SIGTERM, while it computes; it saves and leaves."""
        if self.running.get(job.id) is job and job.outcome is None:
            self.spend(job, self.now - job.began, 0.0)
            job.stop.signum = 15
            job.resumed.set()
            self.wait(job)

    def kill(self, job: Job, version: int, requeue: bool) -> None:
        """SIGKILL: its thread never runs again, and nothing is tidied up."""
        if self.running.get(job.id) is job and job.outcome is None:
            self.seen["killed"] += 1
            worked = self.now - job.began
            self.spend(job, worked, worked % SAVED_EVERY)
            job.outcome, job.version = "killed", job.version + 1
            self.leave(job)
            if requeue:
                self.requeue(job)

    def fail_node(self, node: int) -> None:
        self.seen["node failures"] += 1
        for job in [job for job in self.running.values() if job.node == node and job.outcome is None]:
            self.kill(job, job.version, requeue=True)
        self.after(MEAN_HOURS["node failure"], lambda: self.fail_node(node))

    def compute(self, setting, folder: Path, index: int, members: range, display, stop: StopRequest, log):
        """Instead of ``pipeline._run_batch``: takes its time, and gives rows."""
        job: Job = self.here.job
        name = job.point.folder
        if hash_of(name) < FAILING and name not in self.failed_once:
            self.failed_once.add(name)
            raise MemoryError("out of memory")
        whole = len(members) * STEPS * SECONDS_PER_IMAGE_STEP
        job.batch, job.began = index, self.now
        job.wanted = max(whole - self.progress.get((name, index), 0.0), 0.0)
        job.paused.set()
        job.resumed.wait()
        job.resumed.clear()
        stop.check()
        self.used += job.wanted
        self.finished[name, index] += 1
        if self.pack:
            (folder / "batches").mkdir(exist_ok=True)
            (folder / "batches" / f"{index:04d}.zip").write_bytes(b"")
        rows = [
            {"index": member, "image": f"face{member}", "digest": f"{member:064x}", "batch": index, "method": "ilo",
             "metrics": {"psnr": 20 + hash_of(f"{name} {member}"), "ssim": 0.5}, "seconds": job.wanted}
            for member in members
        ]  # fmt: skip
        return rows, True

    def server_time(self, folder: Path) -> float:
        """The file server's clock; who lives has given a sign of life."""
        for job in self.running.values():
            if job.outcome is None and (job.point.folder == folder.name or folder == self.folder):
                with suppress(FileNotFoundError):
                    name = f".lease{Shard.parse(job.point.shard).suffix}"
                    os.utime(self.folder / job.point.folder / name, (EPOCH + self.now, EPOCH + self.now))
        return EPOCH + self.now

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """The world as the project's code sees it."""

        def here() -> Holder:
            job = getattr(self.here, "job", None)
            if job is None:
                return Holder("login", "login", 1, "1", None, 0, "call")
            return Holder(
                f"node{job.node}", f"node{job.node} boot", 1, "1", job.id, job.restarts, str(next(self.number))
            )

        def current(attribute: str, otherwise: Any) -> Any:
            return getattr(getattr(self.here, "job", None), attribute, otherwise)

        def states(ids) -> list[str]:
            return ["RUNNING" if self.running.get(id) is not None and self.running[id].outcome is None else "COMPLETED"
                    for id in ids]  # fmt: skip

        real = Lease.acquire

        def acquire(lease: Lease, wait: float = 0.0) -> None:
            real(lease, wait)
            os.utime(lease.path, (EPOCH + self.now, EPOCH + self.now))

        with (
            patch.object(Holder, "here", staticmethod(here)),
            patch.object(slurm, "job_id", lambda: current("id", None)),
            patch.object(slurm, "restarts", lambda: current("restarts", 0)),
            patch.object(slurm, "states", states),
            patch.object(slurm, "preempted", lambda job: True),
            patch.object(lease, "server_time", self.server_time),
            patch.object(Lease, "acquire", acquire),
            patch.object(Lease, "renew", lambda lease: True),
            patch.object(pipeline, "_run_batch", self.compute),
            patch.object(os, "fsync", lambda descriptor: None),  # processes die here, machines don't lose their disks
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield


def hash_of(text: str) -> float:
    """In [0, 1), the same in every process."""
    return random.Random(text).random()
