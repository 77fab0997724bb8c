"""Runs with operators and generators that somebody brought, with one thing wrong: refused, or one image's fault."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ilo_lightning.checks import generators
from ilo_lightning.main import main, measure
from ilo_lightning.operators import Measurement
from ilo_lightning.solution import Solution
from tests.test_run import arguments, comparable, rows_of


def with_operator(name: str, **more: object) -> list[str]:
    further = [f"+task.operator.{key}={value}" for key, value in more.items()]
    return ["task=denoising", f"task.operator._target_=tests.broken.{name}", *further]


def with_generator(name: str) -> list[str]:
    """In place of faces64, whose only option is its checkpoint."""
    one_stage = ["method.layers=[0]", "method.steps=[3]", "method.lr=[0.1]"]
    return ["generator=faces64", f"generator._target_=tests.broken.{name}", "~generator.checkpoint", *one_stage]


REFUSED = [
    (with_operator("OtherImages"), r"task\.operator takes images \(1, 5, 5\), the generator makes \(3, 16, 16\)"),
    (with_operator("WrongShape"), r"task\.operator: gives \(1, 3, 16, 15\) for one image, but says \(1, 3, 16, 16\)"),
    (with_operator("WrongPicture"), r"task\.operator: picture gives \(1, 16, 16\)"),
    (with_operator("NotFinite"), r"task\.operator: gives numbers that are not finite"),
    (with_operator("NegativeWeight"), r"task\.operator: NegativeWeight\.weight: .*>= 0"),
    (with_operator("NothingObserved"), r"task\.operator: NothingObserved\.weight: .* is 0 everywhere"),
    (with_operator("WeightOfAnotherShape"), r"task\.operator: WeightOfAnotherShape\.weight: .*does not broadcast"),
    (with_operator("Detached"), r"task\.operator: A\(x\) has no gradient"),
    (with_operator("NoInit"), r"task\.operator: NoInit has no input_shape"),
    (with_operator("Nowhere"), r"task\.operator\._target_=tests\.broken\.Nowhere: ImportError"),
    (with_operator("Whole", colour="red"), r"task\.operator\._target_=.*: TypeError: .*keyword argument 'colour'"),
    (with_operator("text"), r"task\.operator\._target_=.*: TypeError"),
    (with_operator("Raises", place="init"), r"task\.operator\._target_=.*: KeyError: 'no such thing'"),
    (with_operator("Raises"), r"task\.operator: fails on its first image \(RuntimeError: something in two lines\)"),
    (with_operator("Raises", place="picture"), r"task\.operator: picture fails \(RuntimeError: something in two lines"),
    (with_generator("text"), r"generator\._target_=tests\.broken\.text: gives a str, expected a LayeredGenerator"),
    (with_generator("leaves"), r"generator\._target_=tests\.broken\.leaves: SystemExit: 7"),
    (with_generator("not_finite"), "generator: gives numbers that are not finite"),
    (with_generator("NoAttributes"), "generator: NoAttributes has no image_shape"),
    (with_generator("FiveChannels"), r"generator: FiveChannels\.image_shape=\(5, 16, 16\)"),
    (with_generator("NoLayers"), r"generator: NoLayers\.num_layers=0"),
    (with_generator("CannotSample"), r"generator: fails on its way through the layers of method \(RuntimeError"),
]


@pytest.mark.few(8)
@pytest.mark.parametrize(("given", "why"), REFUSED, ids=lambda it: it[1] if isinstance(it, list) else "")
def test_what_can_t_work_is_refused_in_one_line(
    given: list[str], why: str, checkpoint: Path, pictures: Path, tmp_path: Path, capfd
):
    assert main([*arguments(checkpoint, pictures, tmp_path / "run"), *given]) == 2
    told = capfd.readouterr().err
    assert re.fullmatch(f"error: .*{why}.*\n", told), told
    assert not (tmp_path / "run" / "batches").exists()
    if given[0] == "task=denoising":
        assert measure([*arguments(checkpoint, pictures, tmp_path / "y"), *given]) == 2
        told = capfd.readouterr().err
        assert re.fullmatch(f"error: .*{why}.*\n", told), told
        assert not list(tmp_path.glob("y/*"))


# Of `Raises`, the first call of each kind is the rehearsal's; then come the three pictures.
def test_an_operator_that_fails_on_one_picture_costs_that_picture(
    checkpoint: Path, pictures: Path, tmp_path: Path, capfd
):
    for what, why in (
        ("error", r"can't be measured (RuntimeError: something in two lines)"),
        ("not_a_number", "is not finite"),
    ):
        folder = tmp_path / what
        given = with_operator("Raises", call=3, what=what)
        assert main([*arguments(checkpoint, pictures, folder), *given]) == 3
        rows = rows_of(folder)
        assert ["error" in row for row in rows] == [False, True, False]
        assert why in rows[1]["error"] and "Traceback" not in capfd.readouterr().err
        assert measure([*arguments(checkpoint, pictures, tmp_path / f"y-{what}"), *given]) == 3
        assert len(list((tmp_path / f"y-{what}").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (with_operator("Raises", call=3, what="no_file"), "can't be measured (FileNotFoundError: {})"),
        (with_operator("Raises", call=7, what="no_file"), "broken off at step 4 of 12: FileNotFoundError: {}"),
        (with_operator("Raises", place="picture", call=2, what="no_file"), "can't be shown (FileNotFoundError: {})"),
        (with_generator("reads_late"), "broken off: FileNotFoundError: {}"),
    ],
    ids=["measured", "solved", "shown", "begun"],
)
def test_a_file_that_can_t_be_read_is_not_called_a_full_disk(
    given: list[str], why: str, checkpoint: Path, pictures: Path, tmp_path: Path, capfd
):
    """Whatever a user's own module reads, and whenever; the same command goes on."""
    command = [*arguments(checkpoint, pictures, tmp_path), *given]
    if "generator=" in given[0]:
        command = [*given, f"data.path={pictures}", "trainer=cpu", f"hydra.run.dir={tmp_path}"]
    assert main(command) == 3
    reasons = {str(row.get("error") or row.get("fault")) for row in rows_of(tmp_path)} - {"None"}
    (reason,) = reasons
    assert why.format("[Errno 2] No such file or directory: 'lookup.npy'") in reason
    assert f"hydra.run.dir={tmp_path} to go on" in capfd.readouterr().err
    assert not (tmp_path / "batches" / "0000.jsonl").exists(), "taken up again by the next call"


@pytest.mark.parametrize(
    ("what", "why"), [("error", "broken off at step 5 of 12"), ("not_a_number", "not finite from step 5 on")]
)
def test_a_failure_in_the_middle_keeps_the_best(
    what: str, why: str, checkpoint: Path, pictures: Path, tmp_path: Path, capfd
):
    """Calls: the rehearsal, one picture, then the steps."""
    given = [*with_operator("Raises", call=7, what=what), "data.limit=1"]
    assert main([*arguments(checkpoint, pictures, tmp_path), *given]) == 3
    (row,) = rows_of(tmp_path)
    assert why in row["fault"] and row["metrics"]["psnr"] > 0
    solution = Solution.load(tmp_path / row["folder"] / "solution.safetensors")
    assert row["data_fit"] == pytest.approx(float(solution.history[:4].min()))
    assert "Traceback" not in capfd.readouterr().err


def test_a_picture_that_can_t_be_drawn_loses_no_result(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    """The point is saved before anything is drawn, and the same command, mended, goes on from there."""
    given = with_operator("Raises", place="picture", call=3)
    assert main([*arguments(checkpoint, pictures, tmp_path / "run"), *given]) == 3
    rows = rows_of(tmp_path / "run")
    assert ["error" in row for row in rows] == [False, True, False]
    assert "can't be shown (RuntimeError: something in two lines)" in rows[1]["error"]
    told = capfd.readouterr().err
    assert "Traceback" not in told and f"hydra.run.dir={tmp_path / 'run'} to go on" in told
    before = Solution.load(tmp_path / "run" / "images" / "face1" / "solution.safetensors")
    assert "RuntimeError" in (tmp_path / "run" / "batches" / "0000-error.txt").read_text()

    command = [*arguments(checkpoint, pictures, tmp_path / "run"), *given]
    # In this process it is built anew, and fails at another image: of the batch that is left, the second.
    assert main(command) == 3
    Measurement.load(tmp_path / "run" / "images" / "face1" / "measurement.safetensors")
    after = Solution.load(tmp_path / "run" / "images" / "face1" / "solution.safetensors")
    assert before.info["data_fit"] == after.info["data_fit"]
    assert before.info["evaluations"] == after.info["evaluations"]


def test_a_run_is_not_continued_with_another_operator(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    """Neither of the two has a number that would tell them apart."""
    assert main([*arguments(checkpoint, pictures, tmp_path, "data.limit=1"), *with_operator("Whole")]) == 0
    assert main([*arguments(checkpoint, pictures, tmp_path, "data.limit=1"), *with_operator("Offset")]) == 2
    assert 'task.operator._target_: "tests.broken.Whole" -> "tests.broken.Offset"' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "law", "why"),
    [
        ("DrawsFloat32", "gradients", "sample gives a torch.float32 latent for torch.float64 weights"),
        ("CannotSample", "randomness", "raises RuntimeError: can't sample"),
        ("not_finite", "images", "gives values that are not finite"),
    ],
)
def test_check_generator_says_which_law_is_broken(name: str, law: str, why: str, capfd):
    assert generators.main([f"_target_=tests.broken.{name}"]) == 1
    told = capfd.readouterr()
    (line,) = [line for line in told.out.splitlines() if f"  {law}: " in line]
    assert line.startswith("FAILED") and why in line
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["_target_=tests.broken.text"], "generator: str is no ilo_lightning.generators.base.LayeredGenerator"),
        (["_target_=tests.broken.NoAttributes"], "NoAttributes has no image_shape"),
        (["_target_=tests.broken.leaves"], "SystemExit: 7"),
        (["_target_=tests.broken.Nowhere"], "Error loading"),
        (["generator=dcgn"], "did you mean dcgan"),
        (["generator=stylegan2"], "generator.checkpoint"),
    ],
)
def test_what_is_no_generator_is_refused(given: list[str], why: str, capfd):
    assert generators.main(given) == 2
    told = capfd.readouterr().err
    assert why in told and len(told.splitlines()) == 1


def test_a_generator_of_one_s_own_that_is_whole(tmp_path: Path, pictures: Path, capfd):
    assert generators.main(["_target_=tests.broken.generator"]) == 0
    command = [
        *with_generator("generator"),
        f"data.path={pictures}",
        f"hydra.run.dir={tmp_path / 'run'}",
        "trainer=cpu",
    ]
    assert main(command) == 0
    before = comparable(rows_of(tmp_path / "run"))
    assert main(command) == 0 and comparable(rows_of(tmp_path / "run")) == before


def test_names_that_no_folder_can_have(checkpoint: Path, tmp_path: Path, capfd):
    """Too long, not UTF-8, nothing but dots: pictures keep a name that their files can be named after."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "plain.png")
    names = ["é" * 120 + ".png", "new\nline.png", "-x=[1,2].png"]
    for name in [*names, b"\xff\xfe.png".decode("utf-8", "surrogateescape")]:
        shutil.copy(folder / "plain.png", folder / name)
    (folder / "dangling.png").symlink_to(tmp_path / "gone.png")
    assert main(arguments(checkpoint, folder, tmp_path / "run", "method.steps=1")) == 3
    rows = rows_of(tmp_path / "run")
    assert sum("error" in row for row in rows) == 1 and len(rows) == 6
    assert all((tmp_path / "run" / row["folder"] / "figure.png").is_file() for row in rows if "error" not in row)
    shutil.copy(folder / "plain.png", tmp_path / "...png")
    assert main(arguments(checkpoint, tmp_path / "...png", tmp_path / "dots", "method.steps=1")) == 0
    assert (tmp_path / "dots" / "images" / "image" / "figure.png").is_file()
