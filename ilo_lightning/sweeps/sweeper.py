"""A Hydra sweeper for points that may be done already, fail or die.

All combinations of the values given are planned first (see ``plan``); those that are done, or being worked on by
somebody else, are not launched. What the jobs leave in their folders decides what became of them, since a launcher may
be killed, and its jobs may run anywhere.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import __version__, slurm
from ..errors import titled
from ..exit_codes import CRASHED, DONE, REFUSED, SOME_FAILED, of_many
from ..identity import SIZES, is_below
from . import status
from .admission import (
    SweepError,
    check_experiment,
    check_files,
    check_given,
    check_logins,
    has,
    unknown_parameter,
    unset_variable,
)
from .inputs import stamp_of
from .lease import Holder, clock_ahead
from .plan import (
    Plan,
    Point,
    alternatives,
    digest_of,
    folder_of,
    force_of,
    key_of,
    known_folders,
    quoted,
    shard_of,
    sweep_name,
    unforced,
    values_of,
)
from .shard import Shard

NAME = "hydra_plugins.ilo_lightning.PointSweeper"
"""In conf/hydra/sweeper: Hydra takes plugins from its own namespace only."""
TRIES = 2
"""How often a point is launched whose process dies, the second time alone: the first may be another's fault."""
POLL = 10.0
"""Seconds between two looks at SLURM's queue."""


def register() -> None:
    """Make the sweeper known to Hydra, under its own module's name, so that jobs can unpickle it."""
    Plugins.instance().class_name_to_class[NAME] = PointSweeper


class PointSweeper(Sweeper):
    """See the module. For ``main``: the folder of this process's last sweep, and its exit code when it is over."""

    folder: str | None = None
    exit_code: int | None = None

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        either: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        self.max_batch_size, self.params, self.either = max_batch_size, dict(params or {}), [*map(dict, either or [])]
        self.launcher: Launcher | None = None
        self.loggers: dict[str, DictConfig] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Name the sweep's folder before a launcher takes it over."""
        given = [override.lstrip("+") for override in config.hydra.overrides.hydra]
        if any(override.startswith("hydra.sweep.subdir=") for override in given):
            raise SweepError("hydra.sweep.subdir: a point's folder is named by its overrides; set hydra.sweep.dir only")
        if not any(override.startswith("hydra.sweep.dir=") for override in given):
            name = sweep_name(list(config.hydra.overrides.task), self.params, self.either)
            config.hydra.sweep.dir = os.path.join(str(config.hydra.sweep.dir), name)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(config.hydra.sweep.dir))}")
        type(self).folder = str(config.hydra.sweep.dir)
        self.hydra_context, self.config = hydra_context, config
        try:
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )
        except OmegaConfBaseException as error:
            raise unset_variable(error, config) or error from None

    def sweep(self, arguments: list[str]) -> dict[Point, int]:
        """Plan, launch what is missing, and sum up. Returns the exit code of every point."""
        assert self.config is not None
        folder = Path(str(self.config.hydra.sweep.dir))
        forced = force_of(arguments)
        plan = self._plan(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        plan.write(folder)
        missing, codes = _sort_out(plan, folder, forced)
        if missing:
            check_logins(self.loggers.values())
        if forced:  # a word that all jobs of this call share, and their requeued ones
            word = f"force='call {time.time_ns()}'"
            missing = [replace(point, overrides=(*point.overrides, word)) for point in missing]
        if len(missing) < len(plan.points):
            print(f"{len(plan.points) - len(missing)} of {len(plan.points)} points need no work", flush=True)
        size = self.max_batch_size or max(len(missing), 1)
        for start in range(0, len(missing), size):
            codes |= self._launch(missing[start : start + size], folder, start)
        type(self).exit_code = _sum_up(plan, folder, codes)
        return codes

    def _plan(self, arguments: Sequence[str]) -> Plan:
        """The points, each once. One of every kind is composed, so that what Hydra would refuse is refused now."""
        assert self.hydra_context is not None and self.config is not None
        # Hydra executes this module anew when it looks for plugins.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        loader, master = self.hydra_context.config_loader, self.config
        parser = OverridesParser.create(config_loader=loader)
        swept, combinations = [], []
        given = parser.parse_overrides(unforced(arguments))
        for override in given:
            if override.is_sweep_override() and is_below(override.key_or_group, SIZES):
                remedy = (
                    "give each a command of its own"
                    if override.key_or_group == "size"
                    else ("give other values of what it sweeps as such, e.g. seed=0,1 or task.factor=2,4")
                )
                raise SweepError(f"{override.input_line}: an experiment has one size; {remedy}")
        grids = alternatives(self.params, self.either, given)
        for words in self._having(grids, given):
            overrides = parser.parse_overrides(words)
            swept += [override for override in overrides if override.is_sweep_override()]
            combinations += BasicSweeper.split_arguments(overrides, None)[0]

        @functools.cache
        def is_group(name: str) -> bool:
            return bool(loader.get_group_options(name))

        @functools.cache
        def composed(chosen: tuple[str, ...]) -> Mapping[str, Any]:
            config = loader.load_sweep_config(master, list(chosen))
            check_experiment(chosen, config, master)
            tree: Any = OmegaConf.to_container(config, resolve=False)
            return {key: value for key, value in tree.items() if key != "hydra"}

        @functools.cache
        def value(override: str) -> Any:
            return parser.parse_override(override).value()

        keys = {key_of(override.input_line or "") for override in swept} | {
            key_of(k) for each in self.either for k in each
        }
        known = known_folders(Path(str(master.hydra.sweep.dir)))
        kinds: dict[tuple[str, ...], DictConfig] = {}
        points: dict[Point, Point] = {}
        for combination in combinations:
            groups = tuple(o for o in combination if is_group(o.lstrip("+~").partition("=")[0].partition("@")[0]))
            kind = (*groups, "", *(override.partition("=")[0] for override in combination))
            base = composed(groups)
            if kind not in kinds:
                try:
                    kinds[kind] = loader.load_sweep_config(master, list(combination))
                except ConfigCompositionException as error:
                    typed = [key_of(argument) for argument in arguments]
                    params = [key_of(override) for override in combination if key_of(override) not in typed]
                    raise unknown_parameter(loader, master, params, groups, typed) or error from None
                logger = kinds[kind].get("logger")
                if isinstance(logger, DictConfig):
                    self.loggers[str(logger)] = logger
            try:
                shard = Shard.parse(shard_of(combination))
            except ValueError as error:
                raise SweepError(str(error)) from None
            values = {key_of(override): value(override) for override in combination if override not in groups}
            digest = digest_of(base, values)
            name = folder_of(digest, combination, keys, known)
            point = Point(name, str(shard), tuple(combination))
            points.setdefault(point, point)
        check_given([*kinds.values()])
        if not self._is_slurm:  # whose nodes may have other files
            check_files([*kinds.values()], keys)
        if len(points) < len(combinations):
            print(f"{len(combinations)} combinations are {len(points)} different points", flush=True)
        kept = [o for o in master.hydra.overrides.hydra if key_of(o) not in ("hydra.mode", "hydra.sweep.dir")]
        return Plan([*kept, *unforced(arguments)], os.getcwd(), list(points))

    def _having(self, grids: list[list[str]], given: Sequence[Override]) -> list[list[str]]:
        """The grids that have all options of the command line, where some have and others don't."""
        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        if len(grids) < 2:
            return grids
        parser = OverridesParser.create(config_loader=loader)
        configs = []
        for words in grids:
            parsed = parser.parse_overrides(words)
            groups = [
                f"{o.get_key_element()}={values_of(o)[0]}" for o in parsed if loader.get_group_options(o.key_or_group)
            ]
            configs.append(loader.load_sweep_config(self.config, groups))
        for override in given:
            key = override.key_or_group
            having = [has(config, key) for config in configs]
            if "." in key and not override.is_add() and any(having) and not all(having):
                print(f"{override.input_line}: {having.count(False)} of {len(grids)} grids don't have it: left out")
                grids = [words for words, it in zip(grids, having, strict=True) if it]
                configs = [config for config, it in zip(configs, having, strict=True) if it]
        return grids

    @property
    def _is_slurm(self) -> bool:
        assert self.config is not None
        return "slurm" in str(self.config.hydra.launcher.get("_target_", "")).lower()

    def _launch(self, points: Sequence[Point], folder: Path, start: int) -> dict[Point, int]:
        """Launch points; where the launcher itself fails, wait for what goes on without it, or launch the rest."""
        assert self.launcher is not None and self.config is not None
        codes: dict[Point, int] = {}
        tries: Counter[Point] = Counter()
        rounds = [list(points)]
        while rounds:
            points = rounds.pop()
            before = {point: _attempts(folder, point) for point in points}
            known = _jobs(folder)
            jobs = [[*point.overrides, f"hydra.sweep.subdir={quoted(point.folder)}"] for point in points]
            try:
                returns = self.launcher.launch(jobs, initial_job_idx=start)
            except Exception as error:
                problem = error
            else:
                for point, returned in zip(points, returns, strict=True):
                    value = returned._return_value
                    codes[point] = value if returned.status == JobStatus.COMPLETED and value is not None else CRASHED
                continue
            if self._is_slurm:
                submitted = _jobs(folder) - known
                if not submitted:
                    raise SweepError(_submission_refused(problem)) from problem
                _wait_for(submitted)
                continue
            _end_workers()
            left = [point for point in points if _find(folder, point).state == status.MISSING]
            begun = [point for point in left if tries[point] or _attempts(folder, point) > before[point]]
            tries.update(begun)
            untouched = [point for point in left if point not in begun]
            if len(untouched) == len(points):
                print(f"error: the launcher failed: {titled(problem)}", file=sys.stderr)
                return codes
            if untouched:
                rounds.append(untouched)
            for point in begun:
                if tries[point] >= TRIES:
                    _give_up(folder, point, problem)
                else:
                    rounds.append([point])  # alone: the process of one kills those of others
        return codes


def _end_workers() -> None:
    """Joblib's, when one of them was killed: the others are being killed, too, and may live for a moment."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(kill_workers=True).shutdown(wait=True, kill_workers=True)


def _sort_out(plan: Plan, folder: Path, forced: bool) -> tuple[list[Point], dict[Point, int]]:
    """The points to launch, and the exit codes of the others, as far as they are known."""
    ahead = clock_ahead(folder)
    stamp = functools.cache(stamp_of)
    missing: list[Point] = []
    codes: dict[Point, int] = {}
    outdated: Counter[str] = Counter()
    busy: list[str] = []
    for point in plan.points:
        finding = _find(folder, point, ahead)
        if finding.state == status.RUNNING:
            busy.append(f"{point.label}, {finding.note}")
        elif finding.state != status.DONE or forced:
            missing.append(point)
        elif any(entry.version != __version__ for entry in finding.statuses):
            outdated.update({entry.version for entry in finding.statuses})
            codes[point] = REFUSED
        elif finding.statuses and all(stamp(path) == then for s in finding.statuses for path, then in s.inputs.items()):
            codes[point] = DONE
        else:
            missing.append(point)  # files were touched; the job sees whether their contents changed
    if busy:
        print(f"{len(busy)} of them are being worked on: {busy[0]}{' …' if len(busy) > 1 else ''}", file=sys.stderr)
    for version, count in outdated.items():
        print(
            f"error: {folder}: {count} points were made by ilo-lightning {version}, and this is {__version__}; they "
            "stay as they are: choose another hydra.sweep.dir, or do them anew with force=true",
            file=sys.stderr,
        )
    return missing, codes


def _find(folder: Path, point: Point, ahead: float | None = None) -> status.Finding:
    return status.find(folder / point.folder, Shard.parse(point.shard), ahead)


def _attempts(folder: Path, point: Point) -> int:
    return sum(entry.attempt for entry in status.read(folder / point.folder) if entry.shard == point.shard)


def _give_up(folder: Path, point: Point, problem: Exception) -> None:
    entry = status.begin(Holder.here(), Shard.parse(point.shard), point.overrides)
    error = f"its process was killed, {TRIES} times (out of memory?): {titled(problem)}"
    status.write(folder / point.folder, entry.end(status.FAILED, CRASHED, error))


def _sum_up(plan: Plan, folder: Path, codes: Mapping[Point, int]) -> int:
    """Say what became of the points, and give the exit code of the whole."""
    ahead, states, final = clock_ahead(folder), Counter[str](), []
    for point in plan.points:
        finding = _find(folder, point, ahead)
        code = codes.get(point)
        if code is None:
            entries = [entry.exit_code for entry in finding.statuses if entry.exit_code]
            code = DONE if finding.state == status.DONE else next(iter(entries), SOME_FAILED)
            code = SOME_FAILED if code > 128 else code  # a job that was stopped, not this process
        state = finding.state if code != DONE or finding.state == status.DONE else status.DONE
        states[state] += 1
        final.append(code)
        if state == status.FAILED:
            print(f"failed: {point.label}: {finding.note}", file=sys.stderr)
    counts = ", ".join(f"{states[state]} {state}" for state in status.STATES if states[state])
    print(f"sweep: {folder}: {len(plan.points)} points: {counts}")
    if set(states) - {status.DONE}:
        print(f"`ilo status {folder}` says more; the same command again does what is missing", file=sys.stderr)
    return of_many(final)


def _jobs(folder: Path) -> set[str]:
    """Ids of the jobs that submitit has submitted for this sweep."""
    try:
        return {entry.name for entry in os.scandir(folder / ".submitit") if re.fullmatch(r"\d+(_\d+)?", entry.name)}
    except OSError:
        return set()


def _wait_for(jobs: set[str]) -> None:
    """Until SLURM has finished with these jobs: the launcher gives up with the first that was killed."""
    ids = sorted({job.partition("_")[0] for job in jobs})
    print(
        f"a job was killed; waiting for the others of {', '.join(ids)} (Ctrl-C leaves them to SLURM)", file=sys.stderr
    )
    while slurm.is_unfinished(ids):
        time.sleep(POLL)


def _submission_refused(problem: Exception) -> str:
    lines = [line for line in str(problem).strip().splitlines() if line.strip()]
    first = lines[0] if lines else type(problem).__name__
    if "srun" in first and "Could not detect" in first:
        return (
            "hydra/launcher=slurm: no SLURM on this machine (srun is not on the PATH); log in to the cluster, or use "
            "hydra/launcher=joblib"
        )
    return f"hydra/launcher=slurm: nothing was submitted: {first}; see hydra.launcher.partition, account, timeout_min …"
