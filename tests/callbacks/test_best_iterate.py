"""The best iterate of each image, driven with data fits of our choosing; see test_solve for whole optimisations."""

from __future__ import annotations

import math

import pytest
import torch

from ilo_lightning.callbacks import BestIterate
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.problem import InverseProblem
from tests.networks import rngs
from tests.test_solve import ilo, problem

NAN, INF = math.nan, math.inf


class Course:
    """An optimisation of two images whose points move at random and whose data fits are given."""

    def __init__(self) -> None:
        generator, operator, measurement = problem(images=2)
        start = generator.sample(rngs(1, 2))
        self.problem = InverseProblem(generator, operator, measurement, ilo().schedule, start)
        self.best = BestIterate()
        self.seen: list[LatentPoint] = []

    def step(self, *fit: float) -> None:
        """Observe the current point, then move it."""
        self.seen.append(self.problem.point.detach())
        self.problem.last_fit = torch.tensor(fit, dtype=torch.float64)
        self.best.observe(self.problem)
        with torch.no_grad():
            for parameter in self.problem.variables.values():
                parameter.add_(torch.randn(parameter.shape, generator=rngs(len(self.seen))[0], dtype=parameter.dtype))

    def assert_best(self, *steps: int) -> None:
        """Image i's best point is what it was at step ``steps[i]``, with that step's layer."""
        for image, (step, point) in enumerate(zip(steps, self.best.points, strict=True)):
            expected = self.seen[step].select([image])
            assert (point.layer, point.space, point.batch_size) == (expected.layer, expected.space, 1)
            assert set(point.tensors) == set(expected.tensors)
            assert all(torch.equal(point[name], tensor) for name, tensor in expected.tensors.items())


def test_images_that_were_best_in_different_stages_have_different_layers():
    course = Course()
    course.step(5.0, 1.0)
    course.step(4.0, 3.0)
    course.problem.enter(1)
    course.step(6.0, 2.0)
    course.step(3.0, 7.0)
    course.problem.enter(2)
    course.step(3.5, 1.5)
    course.assert_best(3, 0)
    assert [point.layer for point in course.best.points] == [1, 0]
    assert course.best.fit is not None and course.best.fit.tolist() == [3.0, 1.0]
    course.step(2.0, 4.0)
    course.assert_best(5, 0)
    assert [point.layer for point in course.best.points] == [2, 0]


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        ([(2.0, 2.0), (2.0, 2.0)], (0, 0)),
        ([(NAN, INF), (9.0, 9.0), (NAN, 8.0)], (1, 2)),
        ([(1.0, 1.0), (NAN, -INF), (0.5, NAN)], (2, 1)),
        ([(NAN, 3.0), (NAN, 2.0)], (0, 1)),
    ],
    ids=["a tie keeps the first", "anything finite beats NaN", "NaN beats nothing", "never finite: the first point"],
)
@pytest.mark.parametrize("stages", [False, True], ids=["one stage", "a stage per step"])
def test_ranking(fits: list[tuple[float, float]], expected: tuple[int, int], stages: bool):
    course = Course()
    for index, fit in enumerate(fits):
        if stages and index:
            course.problem.enter(index)
        course.step(*fit)
    course.assert_best(*expected)


def test_asking_for_the_points_changes_nothing():
    course, quiet = Course(), Course()
    for fit in ((5.0, 1.0), (4.0, 3.0), (3.0, 0.5)):
        for each in (course, quiet):
            each.step(*fit)
        assert len(course.best.points) == 2
    course.assert_best(2, 2)
    quiet.assert_best(2, 2)


@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_a_saved_state_goes_on_where_it_was(saved_after: int):
    """Also where the points of earlier stages are the best so far."""
    course = Course()
    for index, fit in enumerate(((5.0, 1.0), (4.0, 3.0), (6.0, 0.5), (2.0, 9.0))):
        if index == 2:
            course.problem.enter(1)
        course.step(*fit)
        if index + 1 == saved_after:
            state = course.best.state_dict()
            course.best = BestIterate()
            course.best.load_state_dict(state)
    course.assert_best(3, 2)
    assert [point.layer for point in course.best.points] == [1, 1]


def test_an_empty_state_can_be_saved():
    best = BestIterate()
    best.load_state_dict(BestIterate().state_dict())
    assert best.fit is None
