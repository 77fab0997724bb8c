"""`ilo check-operator` passes the project's operators, and says of a broken one which law it breaks and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import Tensor

from ilo_lightning.checks import operators
from ilo_lightning.checks.operators import check_operator
from ilo_lightning.operators import Clipping
from tests import broken
from tests.operators.test_operator_laws import SHAPES, operators_for

SHAPE = [3, 8, 8]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] in (1, 3)])
def test_every_law_holds_for_ours(shape: tuple[int, int, int]):
    for name, operator in operators_for(shape):
        verdicts = check_operator(lambda operator=operator: operator, shape)
        assert [verdict for verdict in verdicts if not verdict.holds] == [], name


def test_every_law_holds_for_a_whole_one():
    verdicts = check_operator(lambda: broken.Whole(SHAPE), tuple(SHAPE))
    assert [verdict.law for verdict in verdicts if not verdict.holds] == []
    assert len(verdicts) == 8


CASES = [
    ("OtherImages", "shapes", r"built for images \(3, 8, 8\), but input_shape says \(1, 5, 5\)"),
    ("WrongShape", "shapes", r"A\(x\) has the shape \(2, 3, 8, 7\) .* output_shape says \(2, 3, 8, 8\)"),
    ("WrongPicture", "shapes", r"picture gives \(2, 8, 8\)"),
    ("AdjointOfAnotherShape", "shapes", r"the adjoint gives \(2, 1, 8, 8\)"),
    ("AlwaysFloat32", "dtypes", r"float64 images give torch\.float32"),
    ("NotFinite", "dtypes", "not finite"),
    ("MixesImages", "batch = one at a time", "images of a batch influence each other"),
    ("DrawsAtEveryCall", "determinism", "two calls on the same images differ"),
    ("DrawsWhenBuilt", "determinism", "built twice it is another A"),
    ("Detached", "gradient", "has no gradient"),
    ("Rounds", "gradient", r"doesn't change with x|not differentiable"),
    ("WrongDerivative", "gradient", "difference from central differences .* the gradient is wrong"),
    ("Offset", "linearity", "A is not linear"),
    ("WrongAdjoint", "adjoint", "adjoint is not the transpose of forward"),
    ("LeavesTheRange", "range", r"y leaves \[-1, 1\]"),
    ("Raises", "shapes", "raises RuntimeError: something in two lines"),
]


@pytest.mark.parametrize(("name", "law", "why"), CASES, ids=[name for name, _, _ in CASES])
def test_every_law_catches_who_breaks_it(name: str, law: str, why: str, capfd):
    assert operators.main([f"_target_=tests.broken.{name}", f"image_shape={SHAPE}"]) == 1
    told = capfd.readouterr()
    (line,) = [line for line in told.out.splitlines() if f"  {law}: " in line]
    assert line.startswith("FAILED") and re.search(why, line), told.out
    assert re.search(r"\n\d of \d laws hold\n$", told.out) and told.err == ""


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["_target_=tests.broken.NoInit"], "NoInit has no input_shape; set it in __init__"),
        (["_target_=tests.broken.NegativeWeight"], "NegativeWeight.weight: .* finite and >= 0"),
        (["_target_=tests.broken.NothingObserved"], "weight of a measurement is 0 everywhere: nothing was observed"),
        (["_target_=tests.broken.WeightOfAnotherShape"], r"a weight of shape \(1, 7, 7\) does not broadcast"),
        (["_target_=tests.broken.Whole", "image_shape=[3,64"], "expected key=value"),
        (["_target_=tests.broken.Whole", "colour=red"], "unexpected keyword argument 'colour'"),
        (["_target_=tests.broken.Raises", "place=init"], "KeyError: 'no such thing'"),
        (["_target_=tests.broken.text"], "unexpected keyword argument 'image_shape'"),
        (["_target_=tests.broken.Nowhere"], r"Error loading 'tests\.broken\.Nowhere'"),
        (["_target_=nowhere.X"], "No module named 'nowhere'"),
        (["task=inpainting", "task.fraction=7"], r"task\.fraction=7: expected a number in \(0, 1\]"),
        (["tsk=inpainting"], "tsk: no such option; did you mean task"),
        (["--config-dir", "nowhere", "task=inpainting"], "--config-dir nowhere: no such folder"),
        ([], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_t_be_checked_is_refused_in_one_line(arguments: list[str], why: str, capfd):
    assert operators.main(arguments) == 2
    told = capfd.readouterr()
    assert re.search(why, told.err) and len(told.err.splitlines()) <= 1 and "Traceback" not in told.err


def test_a_task_of_one_s_own(tmp_path: Path, capsys):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("name: mine\noperator:\n  _target_: tests.broken.Whole\n")
    assert operators.main(["--config-dir", str(tmp_path), "task=mine"]) == 0
    assert "8 of 8 laws hold" in capsys.readouterr().out


def test_what_only_claims_to_be_affine_is_found_out():
    class Offset(Clipping):
        affine = True

        def forward(self, image: Tensor) -> Tensor:
            return 0.5 * image + 1

    class Clipped(Clipping):
        affine = True

    shape = (3, 8, 8)
    laws = {kind: {verdict.law: verdict for verdict in check_operator(lambda kind=kind: kind(shape))}
            for kind in (Offset, Clipped)}  # fmt: skip
    assert laws[Offset]["affinity"].holds
    assert not laws[Clipped]["affinity"].holds and "affine = False" in laws[Clipped]["affinity"].detail
