"""Automatic ILO against every baseline, from almost clean and much measured to very noisy and hardly measured.

    python benchmarks/regimes.py --screen FOLDER --images FOLDER --cache FOLDER --json regimes.json

A cell is a task at a level. In each, all baselines are screened at equal numbers of generator evaluations on the first
images of ``--screen``; the three with the best mean PSNR over all screened cells are then run on ``--images``, beside
automatic ILO and ILO with each of several fixed radii. Each result of a method in a cell is a file below ``--cache``:
the same command goes on where it was stopped. ``--only``, ``--cells`` and ``--methods`` do a part of the work (finish
the screen before the images, since it chooses the three), and the table is of all that is there: with several
``--images``, each comparison is of all sets in which all of its methods were run in that cell.

Baselines are the methods that minimise the squared error with the generator. Left out: perceptual losses, which need a
picture as y; Langevin dynamics, whose samples are no estimate. What has no trained generator (total variation, the
Lasso, BM3D where there is noise) is screened beside them, for context, and not among the three.

Rows per case ``<task>/<level>``:

- ``psnr_<method>``: mean over images; ``psnr_ilo_fixed@0.1``: the paper's single path with that radius.
- ``auto_minus_best_baseline_db``: mean paired difference to that of the three which has the best mean in this cell.
  It is chosen on the same images, which favours it. ``images_…`` says on how many.
- ``auto_deficit_upper_bound_db``: one-sided 95 % upper bound on the largest of the three mean deficits, holding for all
  cells together and at most 0.2 just where Holm's procedure, over the cells of this table, rejects "the deficit to one
  of the three is 0.2 dB or more": see noninferiority.py. ``auto_deficit_p_holm`` is the adjusted p-value of that test.
- ``auto_minus_oracle_radius_db``: mean paired difference to the fixed radius whose mean is best in this cell, which
  only the truth can tell; ``oracle_radius`` is that radius.

Case ``screen`` has the baselines' means on ``--screen``, ``screen/<task>/<level>`` those of a cell, case ``all`` the
averages over the table's cells. A comparison that is there in all cells is judged: deficits of at most 0.2 dB, and an
average of at least 0; at most 0.3 dB to the oracle's radius.

Results are kept in ``screen/`` and, of each set, in a folder of the cache with the set's own name.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cache import computed_once, parts, stored
from common import Limit, Row, decoded, observed, publish, row, setting_of, solutions_of, truth_of
from noninferiority import cell_p_value, holm_adjusted, simultaneous_upper_bounds

from ilo_lightning import metrics
from ilo_lightning.setting import Setting

AUTOMATIC, FIXED = "ilo", "ilo_fixed"
RADII = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
WITH_RADIUS = [f"{FIXED}@{radius}" for radius in RADII]
BASELINES = (
    "csgm_mse", "csgm_z", "pulse", "projector", "projector_w_plus", "three_phase", f"{FIXED}@0.1", "ilo_range",
    "ilo_sparse", "ilo_original",
)  # fmt: skip
CONTEXT = {"total_variation": "pixels", "lasso": "wavelets", "bm3d": "pixels"}
"""Without a trained generator, as configured; and what stands in for it."""
HAS_BM3D = importlib.util.find_spec("bm3d") is not None  # an extra
BEST = 3
MARGIN_DB = 0.2
ORACLE_DB = 0.3
LEVELS = {
    "inpainting": ("task.fraction", (0.5, 0.2, 0.1, 0.03, 0.01)),
    "denoising": ("task.noise.sigma", (0.03, 0.1, 0.3, 0.6, 1.0)),
    "super_resolution": ("task.factor", (2, 4, 8, 16, 32)),
    "compressed_sensing": ("task.fraction", (0.5, 0.2, 0.1, 0.03, 0.01)),
}
CELLS = {
    f"{task}/{level}": [f"task={task}", f"{field}={level}"]
    for task, (field, levels) in LEVELS.items()
    for level in levels
}

LIMITS = {
    "auto_minus_best_baseline_db": [
        Limit("auto_deficit_upper_bound_db", MARGIN_DB),
        Limit("auto_minus_best_baseline_db", least=0.0, case="all"),
    ],
    "auto_minus_oracle_radius_db": [Limit("auto_minus_oracle_radius_db", least=-ORACLE_DB)],
}
"""Of each comparison; it is judged when it was made in all cells."""

Psnrs = dict[str, dict[str, list[float]]]
"""Per cell and method, the PSNR of every image in dB."""


@dataclass(frozen=True)
class Study:
    """Methods in cells on one set of images; what was found is kept in a folder.

    Args:
        images: folder of pictures, or .npz.
        limit: of them, the first so many.
        folder: of the results.
        overrides: of all cells and methods.
    """

    images: Path
    limit: int
    folder: Path
    overrides: Sequence[str]

    def stored(self, cells: Iterable[str], methods: Sequence[str]) -> Psnrs:
        """What is there and was found with these images, settings and version."""
        found: Psnrs = {}
        for cell in cells:
            for method in methods:
                path = self._path(cell, method)
                if path.exists() and (result := stored(path, parts(self._setting(cell, method)))) is not None:
                    found.setdefault(cell, {})[method] = result["psnr"]
        return found

    def run(self, cells: Sequence[str], methods: Sequence[str]) -> None:
        """Find what is not there, and say how far it is."""
        pairs = [(c, m) for c in cells for m in methods if m != "bm3d" or (HAS_BM3D and c.startswith("denoising/"))]
        total = len(pairs)
        for done, (cell, method) in enumerate(pairs, start=1):
            setting, start = self._setting(cell, method), time.perf_counter()
            result = computed_once(self._path(cell, method), parts(setting), lambda setting=setting: solved(setting))
            seconds = time.perf_counter() - start
            print(f"{self.folder.name} {done}/{total}  {cell}  {method}: {fmean(result['psnr']):.2f} dB, "
                  f"{result['evaluations']:.0f} evaluations, {seconds:.0f} s", flush=True)  # fmt: skip

    def _path(self, cell: str, method: str) -> Path:
        return self.folder / cell / f"{method}.json"

    def _setting(self, cell: str, method: str) -> Setting:
        name, _, radius = method.partition("@")
        context = [f"method={name}", f"generator={CONTEXT[name]}"] if name in CONTEXT else None
        fixed = [f"method={AUTOMATIC}", f"method.radius={radius}", "method.stop=null"]
        return setting_of(
            *CELLS[cell],
            *(context or (fixed if name == FIXED else [f"method={name}"])),
            f"data.path={self.images}",
            f"data.limit={self.limit}",
            *self.overrides,
            *(["method.evaluations=null"] if context else []),
        )


def solved(setting: Setting) -> dict:
    """PSNR of every image, and the evaluations per image that it took."""
    psnr: list[float] = []
    evaluations: list[float] = []
    for members in setting.batches:
        seen = observed(setting, members)
        solutions = solutions_of(setting, setting.method, seen)
        psnr += metrics.psnr(decoded(setting, solutions), truth_of(seen)).tolist()
        evaluations += [solution.info["evaluations"] for solution in solutions]
    return {"psnr": psnr, "evaluations": fmean(evaluations)}


def screen_means(screened: Psnrs) -> dict[str, float]:
    """The mean PSNR of each baseline over the cells in which all of them were screened, best first; empty without."""
    whole = [found for found in screened.values() if set(found) >= set(BASELINES)]
    means = {method: fmean(fmean(found[method]) for found in whole) for method in BASELINES} if whole else {}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def paired(minuend: Sequence[float], subtrahend: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(minuend, subtrahend, strict=True)]


def best_of(found: Mapping[str, Sequence[float]], methods: Iterable[str]) -> str:
    """The method with the best mean."""
    return max(methods, key=lambda method: fmean(found[method]))


def pooled(sets: Sequence[Psnrs], cell: str, methods: Iterable[str]) -> dict[str, list[float]]:
    """The PSNR of each method in a cell, of all images of the sets in which all of them were run; empty without."""
    whole = [found[cell] for found in sets if set(found.get(cell, ())) >= set(methods)]
    return {method: [psnr for found in whole for psnr in found[method]] for method in methods} if whole else {}


def table(sets: Sequence[Psnrs], baselines: Sequence[str]) -> list[Row]:
    """The rows of all cells, in order; comparisons where automatic ILO and what it is compared with are there."""
    rows: list[Row] = []
    cells = [cell for cell in CELLS if any(cell in found for found in sets)]
    against_best: dict[str, list[float]] = {}
    deficits: list[list[list[float]]] = []
    for cell in cells:
        methods = dict.fromkeys(method for found in sets for method in found.get(cell, ()))
        rows += [row(cell, f"psnr_{m}", fmean(pooled(sets, cell, [m])[m]), "dB") for m in methods]
        if baselines and (found := pooled(sets, cell, [AUTOMATIC, *baselines])):
            against_best[cell] = paired(found[AUTOMATIC], found[best_of(found, baselines)])
            deficits.append([paired(found[baseline], found[AUTOMATIC]) for baseline in baselines])
        if found := pooled(sets, cell, [AUTOMATIC, *WITH_RADIUS]):
            oracle = best_of(found, WITH_RADIUS)
            differences = paired(found[AUTOMATIC], found[oracle])
            rows.append(row(cell, "auto_minus_oracle_radius_db", fmean(differences), "dB"))
            rows.append(row(cell, "images_auto_minus_oracle_radius_db", len(differences), "1"))
            rows.append(row(cell, "oracle_radius", float(oracle.partition("@")[2]), "1"))
    if against_best:
        bounds = simultaneous_upper_bounds(deficits, MARGIN_DB)
        adjusted = holm_adjusted([cell_p_value(cell, MARGIN_DB) for cell in deficits])
        for (cell, differences), bound, p in zip(against_best.items(), bounds, adjusted, strict=True):
            rows.append(row(cell, "auto_minus_best_baseline_db", fmean(differences), "dB"))
            rows.append(row(cell, "images_auto_minus_best_baseline_db", len(differences), "1"))
            rows.append(row(cell, "auto_deficit_upper_bound_db", bound, "dB"))
            rows.append(row(cell, "auto_deficit_p_holm", p, "1"))
    rows.sort(key=lambda entry: cells.index(entry["case"]))
    for metric in ("auto_minus_best_baseline_db", "auto_minus_oracle_radius_db"):
        values = [entry["value"] for entry in rows if entry["metric"] == metric]
        if values:
            rows += [row("all", metric, fmean(values), "dB"), row("all", f"cells_{metric}", len(values), "1")]
    return rows


def judged_by(rows: Sequence[Row]) -> list[Limit]:
    """The limits of the comparisons that were made in all cells."""
    cells = {entry["metric"]: entry["value"] for entry in rows if entry["case"] == "all"}
    return [limit for made, limits in LIMITS.items() if cells.get(f"cells_{made}") == len(CELLS) for limit in limits]


def beyond(rows: Sequence[Row]) -> list[str]:
    """The cells whose best radius is the least or the largest of those tried."""
    ends = (RADII[0], RADII[-1])
    return [entry["case"] for entry in rows if entry["metric"] == "oracle_radius" and entry["value"] in ends]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screen", type=Path, required=True, help="pictures on which the baselines are screened")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="sets of pictures to compare the best on")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the results found so far")
    parser.add_argument("--screen-limit", type=int, default=8)
    parser.add_argument("--limit", type=int, default=32, help="use the first so many of each set; at least 2")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="work on these only")
    parser.add_argument("--methods", nargs="+", help="of those to be run on --images, work on these only")
    parser.add_argument("--only", choices=("screen", "images", "table"), help="do only this part of the work")
    parser.add_argument("--evaluations", type=int, default=400, help="generator evaluations per image")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides, as for run.py")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    overrides = [f"method.evaluations={arguments.evaluations}", *arguments.override]
    names = [images.resolve().stem for images in arguments.images]
    if len({*names, "screen"}) <= len(names):
        parser.error(f"--images {' '.join(map(str, arguments.images))}: the sets' results are kept under their names, "
                     "which must differ, and none be screen")  # fmt: skip
    screen = Study(arguments.screen, arguments.screen_limit, arguments.cache / "screen", overrides)
    sets = [
        Study(images, arguments.limit, arguments.cache / name, overrides)
        for name, images in zip(names, arguments.images, strict=True)
    ]

    if arguments.only in (None, "screen"):
        screen.run(arguments.cells, [*BASELINES, *CONTEXT])
    screened = screen.stored(CELLS, BASELINES)
    means = screen_means(screened)
    best = list(means)[:BEST]
    whole = sum(set(found) >= set(BASELINES) for found in screened.values())
    print(f"the best {len(best)} of {len(BASELINES)} baselines, screened in {whole} of {len(CELLS)} cells: "
          f"{', '.join(best) or 'not known yet'}", flush=True)  # fmt: skip
    if arguments.only in (None, "images"):
        if not best:
            raise SystemExit("no cell is screened with all baselines; run --only screen first")
        every = list(dict.fromkeys([AUTOMATIC, *best, *WITH_RADIUS]))
        if unknown := set(arguments.methods or ()) - set(every):
            raise SystemExit(f"--methods {' '.join(sorted(unknown))}: expected some of {' '.join(every)}")
        for images in sets:
            images.run(arguments.cells, arguments.methods or every)
    rows = [row("screen", f"psnr_{method}", value, "dB") for method, value in means.items()]
    rows += [
        row(f"screen/{cell}", f"psnr_{method}", fmean(psnr), "dB")
        for cell, found in screen.stored(CELLS, [*BASELINES, *CONTEXT]).items()
        for method, psnr in found.items()
    ]
    rows += table([images.stored(CELLS, [AUTOMATIC, *best, *WITH_RADIUS]) for images in sets], best)
    if not rows:
        raise SystemExit(f"{arguments.cache}: holds no results of these images, settings and version yet")
    if edges := beyond(rows):
        print(f"the best radius is the least or the largest of those tried: {', '.join(edges)}")
    publish("regimes", rows, arguments.json, judged_by(rows))


if __name__ == "__main__":
    main()
