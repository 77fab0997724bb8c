"""How near the truth ILO comes for how much work: against the published schedule, four stages of 300 steps.

    python benchmarks/budget.py --tune FOLDER --images FOLDER --cache FOLDER --json budget.json --plot budget.png

The published schedule is given what only the truth can tell: per task, the radius whose mean squared error is lowest
on the pictures of ``--tune``; per image, its best iterate. Each batch of ``--images`` is then solved by every
candidate, one after another in this process, with several seeds (of the noise and of the start). What they gave is a
file below ``--cache`` per batch and seed, so that the same command goes on where it was stopped; other candidates begin
it anew, since seconds are compared only within one process.

Work is counted at the generator itself: an image made with a gradient 1, without 1/3; whatever layer it is made from.
Advancing a point to a deeper layer, four times per solve, is not counted. Seconds are those of all of ``solve``.

Rows per case, the task, all means over images and seeds:

- ``mse_<candidate>`` on [0, 1], ``evaluations_<candidate>`` and ``seconds_<candidate>`` per image; ``mse_published`` is
  that of the best iterates, its evaluations and seconds those of the whole schedule.
- ``mse_ratio``: the default's mean squared error over that of the published schedule's best iterates;
  ``mse_ratio_upper_bound``: one-sided, 95 %, of a task alone, by the images' paired differences (means over seeds).
- ``evaluations_fraction``, ``seconds_fraction``: what the default spends of what the published schedule spends in all;
  nan, and said so, where its error is larger, so that it has not reached the same.
- ``radius_published``: the radius that was tuned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from cache import computed_once, parts
from common import Limit, Row, decoded, observed, publish, row, setting_of, solutions_of, truth_of
from noninferiority import upper_bound
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from ilo_lightning import metrics
from ilo_lightning.problem import InverseProblem
from ilo_lightning.setting import Setting

DEFAULT, PUBLISHED = "default", "published"
RADIUS = "method.radius=tuned"
"""Stands for the radius of the task: the paper's single path."""
FIXED = ["method=ilo", RADIUS, "method.stop=null"]
CANDIDATES = {
    DEFAULT: ["method=ilo"],
    PUBLISHED: [*FIXED, "method.steps=300", "method.rank=truth"],
    "ilo_fixed_100": [*FIXED, "method.evaluations=100"],
    "ilo_fixed_200": [*FIXED, "method.evaluations=200"],
    "ilo_fixed_400": [*FIXED, "method.evaluations=400"],
    "ilo_200": ["method=ilo", "method.evaluations=200"],
    "ilo_400": ["method=ilo", "method.evaluations=400"],
    "ilo_800": ["method=ilo", "method.evaluations=800"],
    "csgm_400": ["method=csgm", "method.evaluations=400"],
}
RADII = (0.05, 0.1, 0.2, 0.4, 1.0, 3.0)
LIMITS = [Limit("evaluations_fraction", 1 / 3), Limit("seconds_fraction", 1.0)]
TASKS = {
    "random_pixels_10": ["task=inpainting", "task.fraction=0.1"],
    "denoising_0.2": ["task=denoising", "task.noise.sigma=0.2"],
    "super_resolution_x4": ["task=super_resolution", "task.factor=4"],
    "circulant_10": ["task=compressed_sensing", "task.fraction=0.1"],
}

Outcomes = dict[str, list[dict[str, Any]]]
"""Per candidate, what each batch and seed gave: ``mse``, ``evaluations``, ``seconds``, and its ``course``."""


@dataclass
class Work:
    """Evaluations of the generator, per image: with a gradient 1, without 1/3."""

    evaluations: float = 0.0


@contextmanager
def counted(generator: nn.Module, images: int) -> Iterator[Work]:
    """The work of a generator on a batch of ``images``; candidates side by side count each."""
    work = Work()

    def count(module: nn.Module, inputs: tuple[Any, ...], made: Tensor) -> None:
        work.evaluations += len(made) / images * (1 if made.requires_grad else 1 / 3)

    handle = generator.register_forward_hook(count)
    try:
        yield work
    finally:
        handle.remove()


class Course(Callback):
    """The true error after so much work, at every step of a method that follows one path per image."""

    def __init__(self, truth: Tensor, work: Work) -> None:
        self.truth, self.work, self.start = truth, work, time.perf_counter()
        self.spent: list[tuple[float, float]] = []
        self.errors: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: InverseProblem) -> None:
        if len(pl_module.measurement) == len(self.truth):
            pl_module.truth = self.truth.to(pl_module.device)  # it only looks; ranks stay what the method says

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: InverseProblem, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.last_error is not None and len(pl_module.last_error) == len(self.truth):
            self.spent.append((self.work.evaluations, time.perf_counter() - self.start))
            self.errors.append(pl_module.last_error.mean() / 4)  # of images in [-1, 1], as if in [0, 1]

    @property
    def points(self) -> list[tuple[float, float, float]]:
        """Evaluations, seconds and mean squared error."""
        errors = torch.stack(self.errors).tolist() if self.errors else []
        return [(*spent, error) for spent, error in zip(self.spent, errors, strict=True)]


def solved(setting: Setting, members: Sequence[int]) -> dict[str, Any]:
    """What a method makes of images that are solved together: means over them, and the ``errors`` of each."""
    seen = observed(setting, members)
    truth = truth_of(seen)
    with counted(setting.generator, len(seen)) as work:
        course = Course(truth, work)
        solutions = solutions_of(setting, setting.method, seen, [course])
        seconds = time.perf_counter() - course.start
    errors = metrics.mse(decoded(setting, solutions), truth).tolist()
    return {
        "mse": fmean(errors),
        "errors": dict(zip(map(str, members), errors, strict=True)),
        "evaluations": work.evaluations,
        "seconds": seconds / len(seen),
        "course": [(evaluations, spent / len(seen), mse) for evaluations, spent, mse in course.points],
    }


@dataclass(frozen=True)
class Study:
    """What is compared, and where results are kept."""

    cache: Path
    tune: Sequence[str]  # overrides that say which pictures
    images: Sequence[str]
    overrides: Sequence[str]
    candidates: Sequence[str]

    def tuned_radius(self, task: str) -> float:
        """Of the published schedule: that with the least true error on the pictures for it."""
        errors: dict[float, float] = {}
        for radius in RADII:
            setting = self._setting(task, PUBLISHED, self.tune, radius)
            path = self.cache / "tune" / task / f"radius{radius}.json"
            outcomes = computed_once(
                path, parts(setting), lambda setting=setting: [solved(setting, part) for part in setting.batches]
            )
            errors[radius] = fmean(outcome["mse"] for outcome in outcomes)
            print(f"{task}  {PUBLISHED} with radius {radius}: mse {errors[radius]:.5f}", flush=True)
        best = min(errors, key=errors.__getitem__)
        if best in (RADII[0], RADII[-1]):
            print(f"{task}: the best radius, {best}, is the last that was tried on its side")
        return best

    def outcomes(self, task: str, radius: float, seeds: Sequence[int]) -> Outcomes:
        """What every candidate makes of every batch, with every seed; one after another for each batch."""
        found: Outcomes = {name: [] for name in self.candidates}
        for seed in seeds:
            settings = {
                name: self._setting(task, name, self.images, radius, f"seed={seed}") for name in self.candidates
            }
            depends = {name: parts(setting) for name, setting in settings.items()}
            for number, members in enumerate(settings[DEFAULT].batches):
                path = self.cache / "images" / task / f"seed{seed}-{number:03d}.json"
                outcome = computed_once(
                    path,
                    {"batch": number, "candidates": depends},
                    lambda settings=settings, members=members: {
                        name: solved(setting, members) for name, setting in settings.items()
                    },
                )
                for name in self.candidates:
                    found[name].append(outcome[name])
                print(f"{task}  seed {seed}, batch {number}: " + ", ".join(
                    f"{name} {outcome[name]['mse']:.5f}" for name in self.candidates), flush=True)  # fmt: skip
        return found

    def _setting(self, task: str, candidate: str, images: Sequence[str], radius: float, *more: str) -> Setting:
        method = [f"method.radius={radius}" if override == RADIUS else override for override in CANDIDATES[candidate]]
        return setting_of(*TASKS[task], *method, *images, *more, *self.overrides)


def table(task: str, outcomes: Outcomes, radius: float) -> list[Row]:
    """The rows of a task."""
    means = {
        name: {key: fmean(outcome[key] for outcome in found) for key in ("mse", "evaluations", "seconds")}
        for name, found in outcomes.items()
    }
    units = {"mse": "1", "evaluations": "1", "seconds": "s"}
    rows = [row(task, f"{key}_{name}", of[key], unit) for name, of in means.items() for key, unit in units.items()]
    default, published = means[DEFAULT], means[PUBLISHED]
    ratio = default["mse"] / published["mse"]
    pairs = zip(_errors(outcomes[DEFAULT]), _errors(outcomes[PUBLISHED]), strict=True)
    bound = upper_bound([mine - other for mine, other in pairs], 0.05) / published["mse"]
    reached = ratio <= 1
    if not reached:
        print(f"{task}: the default's error is {ratio:.3f} times the published schedule's: it has not reached it")
    rows.append(row(task, "mse_ratio", ratio, "1"))
    rows.append(row(task, "mse_ratio_upper_bound", 1 + bound, "1"))
    for key in ("evaluations", "seconds"):
        rows.append(row(task, f"{key}_fraction", default[key] / published[key] if reached else float("nan"), "1"))
    rows.append(row(task, "radius_published", radius, "1"))
    return rows


def _errors(outcomes: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of every image, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        for image, error in outcome["errors"].items():
            found.setdefault(image, []).append(error)
    return [fmean(errors) for errors in found.values()]


def draw(found: Mapping[str, Outcomes], path: Path) -> None:
    """The mean course of every candidate that has one, and where each ends, against both kinds of work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 7), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (task, outcomes) in enumerate(found.items()):
        for index, key in enumerate(("evaluations", "seconds")):
            panel = axes[index][column]
            for number, (name, all_of) in enumerate(outcomes.items()):
                colour = f"C{number}"
                if len({len(outcome["course"]) for outcome in all_of}) == 1 and all_of[0]["course"]:
                    course = torch.tensor([outcome["course"] for outcome in all_of]).mean(dim=0)
                    panel.plot(course[:, index], course[:, 2], color=colour, linewidth=0.8)
                spent, mse = (fmean(outcome[part] for outcome in all_of) for part in (key, "mse"))
                panel.plot([spent], [mse], "o", color=colour, label=name)
            panel.set(xscale="log", yscale="log", xlabel=key, title=task)
    for line in axes:
        line[0].set_ylabel("true mean squared error")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path, required=True, help="pictures on which the published radius is tuned")
    parser.add_argument("--images", type=Path, required=True, help="pictures on which the candidates are compared")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the results found so far")
    parser.add_argument("--tune-limit", type=int, default=8)
    parser.add_argument("--limit", type=int, default=16, help="use the first so many of --images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=8, help="images that are solved together")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    more = [name for name in CANDIDATES if name not in (DEFAULT, PUBLISHED)]
    parser.add_argument("--candidates", nargs="*", choices=more, default=more, help="besides the two that are compared")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of all candidates, as for run.py")
    parser.add_argument("--plot", type=Path, help="draw the courses, as .png, .pdf or .svg")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    study = Study(
        arguments.cache,
        [f"data.path={arguments.tune}", f"data.limit={arguments.tune_limit}"],
        [f"data.path={arguments.images}", f"data.limit={arguments.limit}"],
        [f"data.batch_size={arguments.batch_size}", *arguments.override],
        [DEFAULT, PUBLISHED, *arguments.candidates],
    )
    rows: list[Row] = []
    found: dict[str, Outcomes] = {}
    for task in arguments.tasks:
        radius = study.tuned_radius(task)
        found[task] = study.outcomes(task, radius, arguments.seeds)
        rows += table(task, found[task], radius)
    if arguments.plot is not None:
        draw(found, arguments.plot)
    publish("budget", rows, arguments.json, LIMITS)


if __name__ == "__main__":
    main()
