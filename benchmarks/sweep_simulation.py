"""A large sweep on a cluster that preempts, fails and kills, in simulated time: is anything lost, or done twice?

    python benchmarks/sweep_simulation.py --points 10000 --images 100 --json simulation.json

What is simulated: the cluster (nodes, a queue, arrivals, preemptions, node failures, out-of-memory kills, points that
fail at first) and the arithmetic, which takes as long as the cost model of docs/cluster.md says, and gives synthetic
rows. What is real: planning and skipping points, identities, leases, status, and the writing, resuming, merging and
collecting of results. A second call of the same sweep is made while the first one runs; then calls follow until nothing
is missing.

Every point is done in ``--shards``, each a job of its own. ``collect_seconds_per_row_ratio`` is the time per row of
collecting all points over that of a tenth of them, 1 where the time is linear. Exit code 1 if it is more than 1.5 with
at least 100,000 rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Limit, publish, row
from simulated_cluster import SECONDS_PER_IMAGE_STEP, STEPS, Cluster

from ilo_lightning.report.collect import collect
from ilo_lightning.sweeps import overview


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=100, help="per point")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--shards", type=int, default=2, help="per point")
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--files", action="store_true", help="pictures as files; otherwise packed")
    parser.add_argument("--harshness", type=float, default=1.0, help="how many times more often things go wrong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the sweep is written (and removed)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    threading.stack_size(512 * 1024)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = simulate(arguments, Path(folder) / "sweep")
    large = arguments.points * arguments.images >= 100_000
    limits = [Limit("collect_seconds_per_row_ratio", 1.5)] if large else []
    publish("sweep_simulation", rows, arguments.json, limits)


def simulate(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The rows of the table; raises if anything was lost or done twice."""
    cluster = Cluster(
        folder,
        arguments.images,
        arguments.batch_size,
        arguments.nodes,
        not arguments.files,
        arguments.harshness,
        arguments.seed,
    )
    seeds = ",".join(str(seed) for seed in range(max(1, arguments.points // 20)))
    command = ["task=denoising", "task.noise.sigma=0.1,0.2,0.3,0.4", "method.radius=0.03,0.1,0.3,1,3", f"seed={seeds}"]
    shards = arguments.shards
    if shards > 1:
        command.append("data.shard=" + ",".join(f"{index}/{shards}" for index in range(1, shards + 1)))
    took: dict[str, float] = {}

    def timed(name: str, what: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = what()
        took[name] = took.get(name, 0.0) + time.perf_counter() - begin
        return result

    with cluster.simulated():
        points = timed("first call", lambda: cluster.launch(command)) // shards
        expected = points * arguments.images * STEPS * SECONDS_PER_IMAGE_STEP
        cluster.at(0.3 * expected / len(cluster.free), lambda: cluster.seen.update(second_call=cluster.launch(command)))
        timed("work", cluster.run)
        calls = 2
        while cluster.launch(command):
            calls += 1
            timed("work", cluster.run)
        timed("last call", lambda: cluster.launch(command))
        entries = timed("status", lambda: overview.entries(folder))
    folders = sorted({folder / entry.point.folder for entry in entries})
    collect(folders[:1])  # what is imported for it
    part = timed("collect a tenth", lambda: collect(folders[::10]))
    collection = timed("collect", lambda: collect([folder]))
    batches = -(-arguments.images // arguments.batch_size)
    assert len(entries) == points * shards and len(folders) == points, "points or shards are missing"
    assert all(entry.finding.state == "done" for entry in entries), "a point is not done"
    lost = points * batches - len(cluster.finished)
    twice = sum(count - 1 for count in cluster.finished.values())
    for point in folders:
        indices = [json.loads(line)["index"] for line in (point / "results.jsonl").open()]
        assert indices == list(range(arguments.images)), f"{point.name}: rows are lost, or there twice"
    assert lost == twice == 0, f"{lost} batches lost, {twice} done twice"
    rows = collection.rows.filter(collection.rows["error"].is_null()).n_unique(["number", "image"])
    assert rows == len(collection.rows) == points * arguments.images, f"{rows} rows of {len(collection.rows)} collected"
    assert not collection.problems, collection.problems[:3]
    ratio = took["collect"] / len(collection.rows) / (took["collect a tenth"] / len(part.rows))
    files = [path for path in folder.rglob("*") if path.is_file()]
    case = f"{points}x{arguments.images}"
    counts = {
        name: cluster.seen[name] for name in ("attempts", "preempted", "killed", "node failures", "failed", "busy")
    }
    print(f"{case}: {counts}, {calls} calls, {cluster.now / 86400:.1f} simulated days", file=sys.stderr)
    return [
        row(case, "batches_lost", lost, "1"),
        row(case, "batches_done_twice", twice, "1"),
        *(row(case, name.replace(" ", "_"), count, "1") for name, count in counts.items()),
        row(case, "wasted_fraction", cluster.wasted / cluster.used, "1"),
        row(case, "files_per_point", len(files) / points, "1"),
        row(case, "seconds_first_call", took["first call"], "s"),
        row(case, "seconds_last_call", took["last call"], "s"),
        row(case, "seconds_status", took["status"], "s"),
        row(case, "seconds_collect", took["collect"], "s"),
        row(case, "seconds_collect_a_tenth", took["collect a tenth"], "s"),
        row(case, "collect_seconds_per_row_ratio", ratio, "1"),
        row(case, "seconds_per_attempt", took["work"] / cluster.seen["attempts"], "s"),
    ]


if __name__ == "__main__":
    main()
