"""CSGM against ILO at equal numbers of generator evaluations.

    python benchmarks/quality.py --images FOLDER_OR_NPZ --json quality.json

For each task and both methods, as configured in conf/method: PSNR (mean ± 1.96 s.e.) and the paired difference with its
95 % interval. Rows ``psnr_csgm``, ``psnr_ilo``, ``ilo_minus_csgm_db`` per case ``<stem>/<task>``; ``…_half`` is the
half-width of the interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import decoded, observed, publish, row, setting_of, solutions_of, truth_of
from torch import Tensor

from ilo_lightning import metrics
from ilo_lightning.method import Method
from ilo_lightning.setting import Setting

TASKS = {
    "inpainting_box": ["task=inpainting"],
    "random_pixels_10": ["task=inpainting", "task.fraction=0.1"],
    "super_resolution_x4": ["task=super_resolution"],
    "denoising_0.2": ["task=denoising"],
    "circulant_10": ["task=compressed_sensing"],
}


def psnr(setting: Setting, method: Method) -> Tensor:
    """PSNR of every image, of the batch-1 decode of its solution."""
    values = []
    for members in setting.batches:
        seen = observed(setting, members)
        values.append(metrics.psnr(decoded(setting, solutions_of(setting, method, seen)), truth_of(seen)))
    return torch.cat(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, or .npz with key images")
    parser.add_argument("--limit", type=int, default=16, help="use the first so many images")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--evaluations", type=int, default=400, help="generator evaluations per image, of both")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides, as for run.py")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        setting = setting_of(
            *TASKS[task],
            "method=ilo",
            f"method.evaluations={arguments.evaluations}",
            "method@baseline=csgm",
            f"baseline.evaluations={arguments.evaluations}",
            f"data.path={arguments.images}",
            f"data.limit={arguments.limit}",
            *arguments.override,
        )
        assert setting.baseline is not None
        budgets = {method.name: method.evaluations for method in setting.methods}
        if len(set(budgets.values())) != 1:
            raise SystemExit(f"unequal numbers of evaluations: {budgets}")
        ilo, csgm = psnr(setting, setting.method), psnr(setting, setting.baseline)
        case = f"{arguments.images.stem}/{task}"
        for name, values in (("psnr_csgm", csgm), ("psnr_ilo", ilo), ("ilo_minus_csgm_db", ilo - csgm)):
            mean, half = metrics.mean_and_interval(values.tolist())
            rows += [row(case, name, mean, "dB"), row(case, f"{name}_half", half, "dB")]
        print(f"{case}: csgm {csgm.mean():.2f}, ilo {ilo.mean():.2f}, difference {rows[-2]['value']:+.2f} ± "
              f"{rows[-1]['value']:.2f} dB", flush=True)  # fmt: skip
    publish("quality", rows, arguments.json)


if __name__ == "__main__":
    main()
