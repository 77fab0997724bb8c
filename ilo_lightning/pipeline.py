"""A whole run: observations -> batches -> solutions, pictures and results in one folder.

FOLDER/config.yaml                      the resolved configuration
FOLDER/run.json                         what makes this run this run (see ``identity``)
FOLDER/images/NAME/truth.png, measurement.png, reconstruction.png, figure.png (no truth.png where there is none)
FOLDER/images/NAME/solution.safetensors (a baseline's files carry its name: solution-csgm.safetensors)
FOLDER/batches/0000.jsonl               a finished batch; 0000-METHOD.ckpt while it is being worked on;
                                        0000-error.txt if something broke it off: it is taken up again by the next call
FOLDER/results.jsonl                    all batches merged, once every batch was worked on
"""

from __future__ import annotations

import json
import traceback
import warnings
from pathlib import Path
from typing import Any

from . import identity
from .callbacks import ResumeCheckpoint
from .callbacks.progress import Display
from .data.images import DataError
from .files import exclusive, write_atomically
from .interrupt import StopRequest
from .observations import Observation, Observations, observe
from .records import Row, write_image
from .rehearsal import one_line
from .setting import RunError, Setting
from .solve import Reconstruction, SolveError, solve


def run(setting: Setting, folder: Path, display: Display, stop: StopRequest | None = None) -> list[Row]:
    """Work through all images; go on where an earlier call on the same folder stopped.

    Returns:
        A row per image, as in results.jsonl. A row with ``error`` has no result: an unreadable image, say. A row with
        ``fault`` has the best found until something broke the work off, or left the finite numbers.

    Raises:
        RunError: if the folder holds another run, or another process is working in it.
        Interrupted: if asked to stop.
    """
    try:
        with exclusive(folder / ".lock"):
            return _run_batches(setting, folder, display, stop or StopRequest())
    except BlockingIOError:
        raise RunError(f"hydra.run.dir={folder}: another process is working in this folder; choose another") from None


def _run_batches(setting: Setting, folder: Path, display: Display, stop: StopRequest) -> list[Row]:
    claim(setting, folder, stop)
    rows: list[Row] = []
    for index, members in enumerate(setting.batches):
        stop.check()
        batch = folder / "batches" / f"{index:04d}"
        finished = batch.with_suffix(".jsonl")
        if (before := _finished(finished)) is not None:
            display.step("finished before", setting.steps_per_batch, None)
            rows += before
            continue
        try:
            found, complete = _run_batch(setting, folder, index, members, display, stop)
            if complete:
                write_atomically(finished, "".join(json.dumps(row) + "\n" for row in found))
                for leftover in (*batch.parent.glob(f"{batch.name}-*.ckpt"), Path(f"{batch}-error.txt")):
                    leftover.unlink(missing_ok=True)
        except OSError as error:  # a full disk, say: what is there stays, and the next call takes up this batch again
            found = [{"index": member, "error": f"can't be written: {error}"} for member in members]
        rows += found
    write_atomically(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for place, pattern in ((folder, ".*.part"), (folder / "batches", ".*.part"), (folder / "images", "*/.*.part")):
        for leftover in place.glob(pattern):  # of processes that were killed while they wrote a file
            leftover.unlink(missing_ok=True)
    return rows


def _finished(path: Path) -> list[Row] | None:
    """The rows of a batch that an earlier call finished; None where it must be done (again)."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{path}: damaged ({error}); doing this batch again", stacklevel=2)
        return None
    return rows


def claim(setting: Setting, folder: Path, stop: StopRequest | None = None) -> None:
    """Write down which run the folder holds, or check that it is this one."""
    parts: dict[str, Any] = {name: setting.config.get(name) for name in ("task", "method", "baseline", "seed")}
    parts["batch_size"] = setting.batch_size  # resuming re-forms the same batches
    # What files hold counts, not where they lie.
    parts["task"] = _without_paths(parts["task"])
    parts["task"]["operator"] = _without_paths(parts["task"].get("operator"))
    parts["operator"] = identity.fingerprint(setting.operator)
    parts["generator"] = _without_paths(setting.config.get("generator"))
    parts["label"] = setting.generator.provenance.get("label")
    parts["weights"] = setting.generator.provenance.get("sha256") or identity.fingerprint(setting.generator)
    parts["images"] = _digests(setting.observations, stop or StopRequest())
    parts["precision"] = (setting.trainer or {}).get("precision")
    parts["version"] = identity.versions()["ilo_lightning"]
    record = folder / "run.json"
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))["parts"]
            changes = identity.differences(found, parts)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RunError(f"hydra.run.dir={folder}: its run.json is damaged; choose another folder") from None
        if changes:
            raise RunError(
                f"hydra.run.dir={folder}: holds another run ({'; '.join(changes[:4])}); "
                "choose another folder or empty it"
            )
        return
    write_atomically(record, json.dumps({"identity": identity.identity(parts), "parts": parts}, indent=1))


def _without_paths(section: Any) -> Row:
    """Of a section of the configuration, what is not told by the content of files."""
    elsewhere = ("mask", "checkpoint", "sha256", "label")
    return {name: value for name, value in (section or {}).items() if name not in elsewhere}


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
    setting: Setting, folder: Path, index: int, members: range, display: Display, stop: StopRequest
) -> tuple[list[Row], bool]:
    """A row per image, and whether the batch was worked through: if something broke it off, the next call goes on."""
    rows: dict[int, Row] = {}
    known: dict[int, Observation] = {}
    for member in members:
        stop.check()
        try:
            known[member] = setting.observations[member]
        except DataError as error:
            rows[member] = {"index": member, "error": str(error)}
        except Exception as error:  # whatever a user's own operator raises
            rows[member] = {"index": member, "error": f"can't be measured ({one_line(error)})"}
    if not known:
        display.step("no readable image", setting.steps_per_batch, None)
        return [rows[member] for member in members], True
    measurement = observe(list(known.values()))
    digests = [observation.digest for observation in known.values()]
    runs: dict[str, Reconstruction] = {}
    fault: str | None = None
    for method in setting.methods:
        stop.check()
        display.begin(f"batch {index + 1}/{len(setting.batches)}  {method.name}")
        name = f"{index:04d}-{method.name}"
        try:
            runs[method.name] = solve(
                setting.generator,
                setting.operator,
                measurement,
                method,
                keys=digests,
                seed=setting.seed,
                checkpoint=ResumeCheckpoint(
                    folder / "batches" / f"{name}.ckpt", setting.checkpoint_every_seconds, stop=stop
                ),
                trainer=setting.trainer,
                loggers=setting.logger(folder / "logs", name) if setting.logger else (),
                log_every=setting.log_every,
                display=display,
                info={
                    "task": setting.task_name,
                    "config": dict(setting.config),
                    "versions": identity.versions(),
                    "commit": identity.commit(),
                    "batch": digests,
                },
            )
        except SolveError as error:
            fault = str(error)
            _note(error, folder, index)
            if error.reconstruction is not None:
                runs[method.name] = error.reconstruction
    complete = fault is None
    for place, (member, observation) in enumerate(known.items()):
        if setting.method.name not in runs:
            rows[member] = {"index": member, "image": observation.name, "error": fault}
            continue
        stop.check()
        target = folder / "images" / observation.name
        try:
            row = write_image(setting, target, member, observation, runs, place)
        except OSError:
            raise
        except Exception as error:  # whatever a user's own operator or generator raises: the point itself is saved
            _note(error, folder, index)
            rows[member] = {"index": member, "image": observation.name, "error": f"can't be shown ({one_line(error)})"}
            complete = False
            continue
        row |= {"folder": str(target.relative_to(folder)), "batch": index}
        rows[member] = row if fault is None else row | {"fault": fault}
    return [rows[member] for member in members], complete


def _note(error: BaseException, folder: Path, index: int) -> None:
    """Keep the traceback of what broke a batch off."""
    write_atomically(folder / "batches" / f"{index:04d}-error.txt", "".join(traceback.format_exception(error)))
