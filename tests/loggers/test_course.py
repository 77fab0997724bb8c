"""The curves of a run whose batches were worked on by several processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ilo_lightning.loggers.course import Course


def write(path: Path, batches: dict[int, tuple[int, np.ndarray]]) -> None:
    for batch, (images, values) in batches.items():
        course = Course(path)
        for step, value in enumerate(values):
            course.add(batch, "ilo", images, step, {"data_fit": value, "stage": float(step // 3)})
        course.close()


def test_means_weigh_batches_by_their_images(tmp_path: Path):
    values = {0: (8, np.arange(6.0)), 1: (8, np.arange(6.0) * 2), 2: (3, np.full(6, 40.0))}
    write(tmp_path / "course.jsonl", values)
    (points,) = Course(tmp_path / "course.jsonl").means().values()
    assert [point["step"] for point in points] == list(range(6))
    expected = np.average([v for _, v in values.values()], axis=0, weights=[n for n, _ in values.values()])
    assert [point["data_fit"] for point in points] == pytest.approx(expected)
    assert [point["stage"] for point in points] == [0, 0, 0, 1, 1, 1]


def test_a_resumed_batch_counts_once_and_torn_lines_do_not(tmp_path: Path):
    path = tmp_path / "course.jsonl"
    write(path, {0: (1, np.zeros(4)), 1: (1, np.ones(4))})
    write(path, {1: (1, np.full(4, 3.0))})
    with path.open("a") as file:
        file.write('{"batch": 0, "method": "ilo", "images": 1, "step": 0, "data_f')
    (points,) = Course(path).means().values()
    assert [point["data_fit"] for point in points] == [1.5] * 4


def test_what_is_not_finite_has_no_part_in_the_mean(tmp_path: Path):
    write(tmp_path / "course.jsonl", {0: (1, np.array([1.0, np.nan])), 1: (1, np.array([3.0, 5.0]))})
    (points,) = Course(tmp_path / "course.jsonl").means().values()
    assert [point["data_fit"] for point in points] == [2.0, 5.0]


def test_without_a_file_there_are_no_curves(tmp_path: Path):
    assert Course(tmp_path / "none.jsonl").means() == {}
