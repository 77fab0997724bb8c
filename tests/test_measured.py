"""Only y is given: `ilo measure`, data.mode=measured, `ilo score`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ilo_lightning import metrics, scoring
from ilo_lightning.data.images import load_images
from ilo_lightning.generators.checkpoints import load_generator
from ilo_lightning.main import main, measure
from ilo_lightning.operators import Inpainting, Measurement, SuperResolution
from ilo_lightning.solution import Solution
from tests.test_run import arguments, rows_of

GAUSSIAN = ["task=gaussian_compressed_sensing", "task.fraction=0.4", "task.seed=3", "task.noise.sigma=0.05"]


def measured(checkpoint: Path, pictures: Path, folder: Path, *more: str) -> list[str]:
    return arguments(checkpoint, pictures, folder, "data.mode=measured", *more)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "task",
    [
        GAUSSIAN,
        ["task=compressed_sensing", "task.fraction=0.4"],
        ["task=inpainting", "task.fraction=0.5"],
        ["task=super_resolution", "task.factor=2"],
        ["task=denoising"],
    ],
    ids=lambda task: task[0].removeprefix("task="),
)
def test_measured_here_solved_there_scored_later(task: list[str], checkpoint: Path, pictures: Path, tmp_path: Path):
    y, run, direct = tmp_path / "y", tmp_path / "run", tmp_path / "direct"
    assert measure([*arguments(checkpoint, pictures, y), *task]) == 0
    assert sorted(path.name for path in y.glob("*.safetensors")) == [f"face{i}.safetensors" for i in range(3)]
    assert main(measured(checkpoint, y, run, *task)) == 0
    rows = rows_of(run)
    assert [row["image"] for row in rows] == ["face0", "face1", "face2"]
    assert all({*row["metrics"]} == {*row["protocols"]} == {"residual"} for row in rows)
    assert all(stage["psnr"] is None for row in rows for stage in row["stages"])
    assert not list(run.rglob("truth.png"))

    # y is the one of a run that knows the truth, bit for bit.
    assert (
        main(
            [*arguments(checkpoint, pictures, direct), *task, "method.layers=[0]", "method.steps=[1]", "method.lr=[1]"]
        )
        == 0
    )
    for name in ("face0", "face1", "face2"):
        known, _ = Measurement.load(direct / "images" / name / "measurement.safetensors")
        for path in (y / f"{name}.safetensors", run / "images" / name / "measurement.safetensors"):
            assert torch.equal(Measurement.load(path)[0].y, known.y)

    assert scoring.main([str(run), "--truth", str(pictures)]) == 0
    scores = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    generator, truth = load_generator(checkpoint), load_images(pictures, (3, 16, 16))
    for index, score in enumerate(scores):
        decoded = Solution.load(run / "images" / score["image"] / "solution.safetensors").decode(generator)
        assert score["metrics"]["psnr"] == float(metrics.psnr(decoded[None], truth[index].pixels[None])[0])
        assert score["truth"] == truth[index].digest


def write(picture: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def random_picture(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_a_masked_picture_with_its_mask(checkpoint: Path, tmp_path: Path):
    """What is behind the mask doesn't matter, whatever colour the hole was painted."""
    mask = np.full((16, 16), 255, np.uint8)
    mask[4:12, 4:12] = 0
    write(mask, tmp_path / "mask.png")
    found = []
    for name, colour in (("black", 0), ("red", 200)):
        picture = random_picture(16)
        picture[4:12, 4:12] = colour
        masked = write(picture, tmp_path / name / "photo.png")
        task = [f"task.mask={tmp_path / 'mask.png'}", "method.steps=2"]
        assert main(measured(checkpoint, masked, tmp_path / f"run-{name}", *task)) == 0
        result = tmp_path / f"run-{name}" / "images" / "photo"
        found.append(Solution.load(result / "solution.safetensors").point)
        y, _ = Measurement.load(result / "measurement.safetensors")
        operator = Inpainting((3, 16, 16), mask=str(tmp_path / "mask.png"))
        expected = operator(torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1)
        assert torch.equal(y.y, expected.float()) and torch.equal(y.weight, operator.weight)
    points = [
        Solution.load(tmp_path / f"run-{name}" / "images" / "photo" / "solution.safetensors").point
        for name in ("black", "red")
    ]
    assert all(torch.equal(points[0][name], points[1][name]) for name in points[0].tensors)


def test_a_small_picture(checkpoint: Path, tmp_path: Path):
    """Its own pixels are y: nothing is resized."""
    small = random_picture(4)
    write(small, tmp_path / "small.png")
    task = ["task=super_resolution", "task.factor=4", "method.steps=2"]
    assert main(measured(checkpoint, tmp_path / "small.png", tmp_path / "run", *task)) == 0
    y, _ = Measurement.load(tmp_path / "run" / "images" / "small" / "measurement.safetensors")
    assert torch.equal(y.y, torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1)
    assert SuperResolution((3, 16, 16), factor=4).output_shape == (3, 4, 4)


@pytest.mark.parametrize("side", [8, 15, 32])
def test_a_picture_of_another_size_is_refused(side: int, checkpoint: Path, tmp_path: Path, capfd):
    write(random_picture(side), tmp_path / "noisy.png")
    assert main(measured(checkpoint, tmp_path / "noisy.png", tmp_path / "run", "task=denoising")) == 2
    assert f"{side}×{side} pixels, but this task measures 16×16" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (["task=gaussian_compressed_sensing", "task.fraction=0.3", "task.seed=3"], "y has the shape (307,), this task"),
        (["task=gaussian_compressed_sensing", "task.fraction=0.4", "task.seed=4"], "seed: 3 -> 4"),
        (["task=compressed_sensing", "task.fraction=0.4", "task.seed=3"], "measured by another operator"),
        (["task=denoising"], "y has the shape"),
    ],
)
def test_a_measurement_of_another_operator_is_refused(
    task: list[str], words: str, checkpoint: Path, pictures: Path, tmp_path: Path, capfd
):
    assert measure([*arguments(checkpoint, pictures, tmp_path / "y"), *GAUSSIAN, "data.limit=1"]) == 0
    assert main(measured(checkpoint, tmp_path / "y", tmp_path / "run", *task)) == 2
    said = capfd.readouterr().err
    assert words in said
    assert "its header says task=gaussian_compressed_sensing task.fraction=0.4 task.seed=3" in said


def test_noise_that_no_file_states_is_told(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    write(random_picture(16), tmp_path / "noisy.png")
    picture, few = tmp_path / "noisy.png", ["task=denoising", "method=ilo", "method.radius=0.1", "method.steps=1"]
    assert main(measured(checkpoint, picture, tmp_path / "told", *few)) == 0
    assert "task.noise.sigma=0.2: ilo counts on it, as the files of y state no noise" in capfd.readouterr().err
    baseline = ["method=csgm", "method@baseline=ilo", "baseline.radius=0.1", "baseline.steps=1"]
    assert main(measured(checkpoint, picture, tmp_path / "baseline", "task=denoising", *baseline)) == 0
    assert "ilo counts on it, as the files of y state no noise; give theirs, or baseline.stop=null where" in (
        capfd.readouterr().err
    )
    for number, quiet in enumerate((["method.stop=null"], ["task.noise.sigma=0"])):
        assert main(measured(checkpoint, picture, tmp_path / f"quiet{number}", *few, *quiet)) == 0
        assert "counts on it" not in capfd.readouterr().err
    assert measure([*arguments(checkpoint, pictures, tmp_path / "y"), "task=denoising", "data.limit=1"]) == 0
    assert main(measured(checkpoint, tmp_path / "y", tmp_path / "stated", *few)) == 0
    assert "counts on it" not in capfd.readouterr().err


def test_a_measurement_behind_another_mask_is_refused(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    """The settings are the same, the file is not."""
    masks = []
    for index in range(2):
        mask = np.full((16, 16), 255, np.uint8)
        mask[index] = 0
        masks.append(write(mask, tmp_path / f"{index}" / "mask.png"))
    assert measure([*arguments(checkpoint, pictures, tmp_path / "y"), f"task.mask={masks[0]}", "data.limit=1"]) == 0
    assert main(measured(checkpoint, tmp_path / "y", tmp_path / "a", f"task.mask={masks[1]}", "method.steps=1")) == 2
    assert "another mask" in capfd.readouterr().err
    assert main(measured(checkpoint, tmp_path / "y", tmp_path / "b", f"task.mask={masks[0]}", "method.steps=1")) == 0


def test_of_a_mask_in_a_composition_the_content_counts(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    """Not its name: measured behind one file, solved with a copy of it; another mask is refused."""
    masks = []
    for index, row in enumerate((0, 0, 1)):
        mask = np.full((16, 16), 255, np.uint8)
        mask[row] = 0
        masks.append(write(mask, tmp_path / f"mask{index}.png"))
    target = "_target_: ilo_lightning.operators"
    task = [
        "task=denoising",
        "task.name=blurred_and_masked",
        "task.operator._target_=ilo_lightning.operators.compose",
    ]

    def parts(mask: Path) -> str:
        blur = f"{{{target}.GaussianBlur, _partial_: true, sigma: 1}}"
        return f"+task.operator.operators=[{blur}, {{{target}.Inpainting, _partial_: true, mask: '{mask}'}}]"

    assert measure([*arguments(checkpoint, pictures, tmp_path / "y"), *task, parts(masks[0]), "data.limit=1"]) == 0
    given = [*task, "method.steps=1"]
    run = tmp_path / "run"
    assert main(measured(checkpoint, tmp_path / "y", run, *given, parts(masks[1]))) == 0
    assert main(measured(checkpoint, tmp_path / "y", run, *given, parts(masks[0]))) == 0, "the same run"
    capfd.readouterr()
    assert main(measured(checkpoint, tmp_path / "y", tmp_path / "other", *given, parts(masks[2]))) == 2
    assert "another mask" in capfd.readouterr().err


def test_what_is_no_measurement_is_refused(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"y": torch.zeros(3)}, foreign)
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 30)
    for path in (foreign, tmp_path / "broken.safetensors"):
        assert main(measured(checkpoint, path, tmp_path / "run", *GAUSSIAN)) == 2
        assert path.name in capfd.readouterr().err
    assert main(measured(checkpoint, pictures, tmp_path / "run", *GAUSSIAN)) == 2
    assert "is no picture; give .safetensors files" in capfd.readouterr().err


def test_score_says_what_it_can_t_match(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    assert measure([*arguments(checkpoint, pictures, tmp_path / "y"), "task=denoising"]) == 0
    assert main(measured(checkpoint, tmp_path / "y", tmp_path / "run", "task=denoising", "method.steps=1")) == 0
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "face1.png").write_bytes((pictures / "face1.png").read_bytes())
    assert scoring.main([str(tmp_path / "run"), "--truth", str(tmp_path / "truth")]) == 3
    said = capfd.readouterr()
    assert "image face0: no picture of this name" in said.err and "face1" in said.out
    assert scoring.main([str(tmp_path), "--truth", str(pictures)]) == 2
    assert scoring.main([str(tmp_path / "run"), "--truth", str(tmp_path / "nothing")]) == 2


def test_score_of_a_damaged_run(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    run = tmp_path / "run"
    assert main([*arguments(checkpoint, pictures, run, "method.steps=1"), "task=denoising"]) == 0
    score = [str(run), "--truth", str(pictures)]
    (run / "images" / "face1" / "solution.safetensors").write_bytes(b"no")
    # A point that has another shape than this generator's.
    path = run / "images" / "face2" / "solution.safetensors"
    solution = Solution.load(path)
    Solution(solution.point.map(lambda tensor: tensor[..., :-1]), solution.history, solution.info).save(path)
    capfd.readouterr()
    assert scoring.main(score) == 3
    told = capfd.readouterr()
    assert "image face1: " in told.err and "not a readable solution" in told.err
    assert "image face2: can't be scored (RuntimeError" in told.err
    assert [row["image"] for row in map(json.loads, (run / "scores.jsonl").read_text().splitlines())] == ["face0"]
    for content in ("a: [1,", "- 1", "generator: 3", "generator:\n  _target_: tests.broken.text"):
        (run / "config.yaml").write_text(content)
        assert scoring.main(score) == 2
        told = capfd.readouterr().err
        assert told.startswith("error: ") and len(told.splitlines()) == 1 and "Traceback" not in told
