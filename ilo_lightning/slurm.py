"""What SLURM says about jobs, where there is one. Every question may go unanswered: None means that nobody knows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

PATIENCE = 30
"""Seconds for an answer; a busy controller may take that long."""


def job_id() -> str | None:
    """This job's id as users write it, ``4711`` or ``4711_3``; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """How many times this job was requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


def states(jobs: Sequence[str]) -> list[str] | None:
    """Of jobs and of all their array tasks, as far as the controller remembers them."""
    return _lines(["squeue", "--noheader", "--array", "--jobs", ",".join(jobs), "--states", "all", "--format", "%T"])


def is_running(job: str) -> bool | None:
    """Whether a job has processes: running, or on its way out."""
    found = states([job])
    return any(state not in ENDED | WAITING for state in found) if found else None


def is_unfinished(jobs: Sequence[str]) -> bool:
    """Whether any of these jobs runs, or will; for all that is known, if SLURM doesn't answer."""
    found = states(jobs)
    return found is None or any(state not in ENDED for state in found)


def preempted(job: str) -> bool | None:
    """Whether a running job has been told to make room. SLURM then requeues it only if it is still there when its grace
    time is over: who leaves on SIGTERM, as on `scancel`, must requeue itself."""
    answer = _ask(["scontrol", "show", "job", job])
    if answer is None:
        return None
    fields = dict(re.findall(r"(\w+)=(\S*)", answer))
    asked, began = fields.get("PreemptTime", ""), fields.get("StartTime", "")
    return fields.get("JobState") == "RUNNING" and asked[:1].isdigit() and asked >= began


def requeue(job: str) -> bool:
    """Put this job back into the queue, which ends it here. Returns whether SLURM agreed."""
    return _ask(["scontrol", "requeue", job]) is not None


def _lines(command: Sequence[str]) -> list[str] | None:
    answer = _ask(command)
    return None if answer is None else answer.split()


def _ask(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
