"""A whole run: observations -> batches -> solutions, pictures and results in one folder.

FOLDER/config.yaml                      the resolved configuration
FOLDER/run.json                         what makes this run this run (see ``identity``)
FOLDER/status.json                      what became of it (see ``sweeps.status``)
FOLDER/images/NAME/truth.png, measurement.png, reconstruction.png, figure.png (no truth.png where there is none)
FOLDER/images/NAME/solution.safetensors (a baseline's files carry its name: solution-csgm.safetensors)
FOLDER/batches/0000.jsonl               a finished batch; 0000-METHOD.ckpt while it is being worked on;
                                        0000-error.txt if something broke it off, and 0000-fault.jsonl with what there
                                        is: it is taken up again by the next call
FOLDER/batches/0000.zip                 with ``pack``, the files of a batch's images instead of images/NAME
FOLDER/results.jsonl                    all batches merged, once every batch was worked on
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from . import identity
from .callbacks import ResumeCheckpoint
from .callbacks.progress import Display
from .data.images import DataError
from .errors import one_line
from .files import WriteError, pack, write_atomically
from .interrupt import StopRequest
from .loggers import RunLog
from .observations import Observation, Observations, observe
from .reconstruction import Reconstruction
from .records import Row, write_image
from .setting import RunError, Setting
from .solve import SolveError, solve
from .sweeps.point import Busy, working
from .sweeps.shard import Shard
from .sweeps.status import RESULTS

SUPERSEDED = "superseded"
"""Below a run's folder ``wandb``: logs of earlier results, not known to be uploaded when they were done anew."""


def run(
    setting: Setting, folder: Path, display: Display, stop: StopRequest | None = None, log: RunLog | None = None
) -> list[Row]:
    """Work through the images of the shard; go on where an earlier call on the same folder stopped. ``log`` follows it.

    Returns:
        A row per image, as in results.jsonl. A row with ``error`` has no result: an unreadable image, say. A row with
        ``fault`` has the best found until something broke the work off, or left the finite numbers.

    Raises:
        RunError: if the folder holds another run, or another process is working in it.
        Interrupted: if asked to stop.
    """
    stop, log = stop or StopRequest(), log or RunLog()
    parts = parts_of(setting, stop)

    def enter(others: bool) -> None:
        claim(setting, parts, folder, others)

    try:
        with working(folder, setting.shard, enter, stop, setting.inputs, setting.overrides) as work, closing(log):
            log.begin(identity.identity(parts))
            rows = _run_batches(setting, folder, display, stop, log)
            found = [row_problems for row in rows if (row_problems := problems(row))]
            work.images = {"done": len(rows) - len(found), "failed": len(found)}
            if found:
                work.error = f"{len(found)} of {len(rows)} images: {found[0][0]}"
            return rows
    except Busy as busy:
        raise RunError(
            f"hydra.run.dir={folder}: another process is working in this folder: {busy}; choose another folder, or wait"
        ) from None


def problems(row: Row) -> list[str]:
    """What went wrong with an image."""
    outcomes = (row, row.get("baseline") or {})
    return [str(outcome[key]) for outcome in outcomes for key in ("error", "fault") if key in outcome]


def _run_batches(setting: Setting, folder: Path, display: Display, stop: StopRequest, log: RunLog) -> list[Row]:
    rows: list[Row] = []
    unwritten: dict[int, list[Row]] = {}
    for index, members in setting.own_batches:
        stop.check()
        batch = folder / "batches" / f"{index:04d}"
        finished, faulty = batch.with_suffix(".jsonl"), Path(f"{batch}-fault.jsonl")
        if (before := _read_rows(finished)) is not None:
            display.step("finished before", setting.steps_per_batch, None)
            log.batch(before)
            rows += before
            continue
        try:
            found, complete = _run_batch(setting, folder, index, members, display, stop, log)
            write_atomically(finished if complete else faulty, _lines(found))
            if complete:
                for leftover in (*batch.parent.glob(f"{batch.name}-*.ckpt"), faulty, Path(f"{batch}-error.txt")):
                    leftover.unlink(missing_ok=True)
        except OSError as error:  # a full disk, say: what is there stays, and the next call takes up this batch again
            written = isinstance(error, WriteError)
            problem = f"can't be written: {error}" if written else f"broken off: {one_line(error)}"
            found = [{"index": member, "error": problem} for member in members]
            unwritten[index] = found
        log.batch(found)
        rows += found
    _merge(setting, folder, unwritten)
    log.finish()
    return rows


def _merge(setting: Setting, folder: Path, unwritten: Mapping[int, list[Row]]) -> None:
    """Write results.jsonl, if all batches were worked on, here or elsewhere. Whoever comes last can, and if two do,
    they write the same."""
    rows: list[Row] = []
    for index in range(len(setting.batches)):
        found = _read_rows(folder / "batches" / f"{index:04d}.jsonl")
        if found is None:
            found = unwritten.get(index) or _read_rows(folder / "batches" / f"{index:04d}-fault.jsonl")
        if found is None:
            return
        rows += found
    write_atomically(folder / RESULTS, _lines(rows))
    alone = setting.shard == Shard()
    if alone or not any(problems(row) for row in rows):  # otherwise somebody else may be writing
        for place, pattern in (("batches", ".*.part"), ("images", "*/.*.part"), *([(".", ".*.part")] if alone else ())):
            for leftover in (folder / place).glob(pattern):  # of processes that were killed while they wrote a file
                leftover.unlink(missing_ok=True)


def _read_rows(path: Path) -> list[Row] | None:
    """The rows of a batch that was worked on before; None where it must be done (again)."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{path}: damaged ({error}); doing this batch again", stacklevel=2)
        return None


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parts_of(setting: Setting, stop: StopRequest | None = None) -> dict[str, Any]:
    """What makes a run this run: its configuration, and of the files that it names the contents, not the places."""
    provenance = setting.generator.provenance
    return identity.without_places(setting.config) | {
        "batch_size": setting.batch_size,  # resuming re-forms the same batches
        "operator": identity.fingerprint(setting.operator),
        "label": provenance.get("label"),
        "weights": provenance.get("sha256") or identity.fingerprint(setting.generator),
        "images": _digests(setting.observations, stop or StopRequest()),
        "networks": {net.name: net.sha256 for net in setting.networks},
        "target": setting.target
        and {
            "classifier": identity.fingerprint(setting.target.classifier),
            "class": int(setting.target.target.argmax()),
        },
        "precision": (setting.trainer or {}).get("precision"),
        "version": identity.versions()["ilo_lightning"],
    }


def claim(setting: Setting, parts: Mapping[str, Any], folder: Path, others: bool = False) -> None:
    """Write down which run the folder holds, or check that it is this one.

    Args:
        others: whether other processes work in it, on other shards.
    """
    record = folder / "run.json"
    found = _recorded(record)
    if setting.force is not None and (found or {}).get("force") != setting.force:
        if others:
            raise RunError(f"force: other processes work in {folder}; stop them first")
        for name in ("batches", "images", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        _set_aside(folder / "wandb")
        for path in (folder / RESULTS, record, folder / "config.yaml", *folder.glob("status*.json")):
            path.unlink(missing_ok=True)
        found = None
    if found == {}:
        raise RunError(
            f"hydra.run.dir={folder}: its run.json is damaged; choose another folder, or begin anew with force=true"
        )
    if found is not None:
        changes = identity.differences(found["parts"], parts)
        if changes:
            raise RunError(
                f"hydra.run.dir={folder}: holds another run ({'; '.join(changes[:4])}); "
                "choose another folder, or begin anew with force=true"
            )
        return
    if any((folder / "batches").glob("*.jsonl")):
        raise RunError(
            f"hydra.run.dir={folder}: holds results, but no run.json that says of what; choose another folder, or "
            "begin anew with force=true"
        )
    write_atomically(folder / "config.yaml", setting.yaml)
    content = {"identity": identity.identity(parts), "parts": parts, "force": setting.force}
    write_atomically(record, json.dumps(content, indent=1))


def _set_aside(logs: Path) -> None:
    """Keep the W&B logs that may not be uploaded yet, where the command that uploads the new ones doesn't find them."""
    for path in logs.glob("*"):
        if path.name == SUPERSEDED:
            continue
        if path.name.startswith(("offline-run-", "run-")) and not any(path.glob("*.wandb.synced")):
            target = logs / SUPERSEDED / f"{path.name}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
            print(f"W&B: the log of results that are done anew is kept as {target}", file=sys.stderr)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _recorded(record: Path) -> dict[str, Any] | None:
    """A folder's run.json: None if there is none, empty if it is damaged."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return found if isinstance(found["parts"], dict) else {}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return {}


def _digests(observations: Observations, stop: StopRequest) -> list[str]:
    """Of those that can be read; refuses to begin if that is none."""
    digests, errors = [], []
    for index in range(len(observations)):
        stop.check()
        try:
            digests.append(observations.digest(index))
        except DataError as error:
            errors.append(error)
    if not digests:
        more = f" (nor can the {len(errors) - 1} others be used)" if len(errors) > 1 else ""
        raise RunError(f"{errors[0]}{more}")
    return digests


def _run_batch(
    setting: Setting, folder: Path, index: int, members: range, display: Display, stop: StopRequest, log: RunLog
) -> tuple[list[Row], bool]:
    """A row per image, and whether the batch was worked through: if something broke it off, the next call goes on."""
    rows: dict[int, Row] = {}
    known: dict[int, Observation] = {}
    complete = True
    for member in members:
        stop.check()
        try:
            known[member] = setting.observations[member]
        except DataError as error:
            rows[member] = {"index": member, "error": str(error)}
        except Exception as error:  # whatever a user's own operator raises
            rows[member] = {"index": member, "error": f"can't be measured ({one_line(error)})"}
            complete = False
    if not known:
        display.step("no readable image", setting.steps_per_batch, None)
        return [rows[member] for member in members], complete
    measurement = observe(list(known.values()))
    digests = [observation.digest for observation in known.values()]
    truths = [observation.truth for observation in known.values() if observation.truth is not None]
    # A checkpoint is of so many images; the next call may be able to measure those that are missing.
    part = "" if len(known) == len(members) else f"-{identity.identity({'batch': digests})[:8]}"
    runs: dict[str, Reconstruction] = {}
    fault: str | None = None
    for method in setting.methods:
        stop.check()
        display.begin(f"batch {index + 1}/{len(setting.batches)}  {method.name}")
        name = f"{index:04d}-{method.name}{part}"
        try:
            runs[method.name] = solve(
                setting.generator,
                setting.operator,
                measurement,
                method,
                keys=digests,
                seed=setting.seed,
                data_fit=setting.data_fits(method),
                truth=torch.stack(truths) if len(truths) == len(known) else None,
                checkpoint=ResumeCheckpoint(
                    folder / "batches" / f"{name}.ckpt", setting.checkpoint_every_seconds, stop=stop
                ),
                trainer=setting.trainer,
                at_once=setting.decode_batch_size,
                loggers=log.loggers(index, method.name, len(known)),
                log_every=log.every,
                display=display,
                info={
                    "task": setting.task_name,
                    "config": dict(setting.config),
                    "versions": identity.versions(),
                    "commit": identity.commit(),
                    "batch": digests,
                    "optimised": setting.optimised(method),
                },
            )
        except SolveError as error:
            fault = str(error)
            _note(error, folder, index)
            if error.reconstruction is not None:
                runs[method.name] = error.reconstruction
        if fault is not None:
            gc.collect()  # the traceback's frames, in cycles with it, hold the tensors of the step that was broken off
    complete = complete and fault is None
    with tempfile.TemporaryDirectory() if setting.pack else nullcontext(folder) as base:
        for place, (member, observation) in enumerate(known.items()):
            if setting.method.name not in runs:
                rows[member] = {"index": member, "image": observation.name, "error": fault}
                continue
            stop.check()
            try:
                target = Path(base, "images", observation.name)
                row = write_image(setting, target, member, observation, runs, place, log)
            except WriteError:
                raise
            except Exception as error:  # whatever a user's own operator or generator raises: the point itself is saved
                _note(error, folder, index)
                problem = f"can't be shown ({one_line(error)})"
                rows[member] = {"index": member, "image": observation.name, "error": problem}
                complete = False
                continue
            row |= {"folder": f"images/{observation.name}", "batch": index}
            rows[member] = row if fault is None else row | {"fault": fault}
        packed = folder / "batches" / f"{index:04d}.zip"
        if setting.pack:
            pack(Path(base), packed)
            for observation in known.values():  # of an earlier call that didn't pack
                shutil.rmtree(folder / "images" / observation.name, ignore_errors=True)
        else:
            packed.unlink(missing_ok=True)
    return [rows[member] for member in members], complete


def _note(error: BaseException, folder: Path, index: int) -> None:
    """Keep the traceback of what broke a batch off."""
    write_atomically(folder / "batches" / f"{index:04d}-error.txt", "".join(traceback.format_exception(error)))
