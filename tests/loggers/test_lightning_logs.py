"""``logger=csv | tensorboard``: Lightning's own loggers, a course per fit; and what happens when one fails."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest

from ilo_lightning.loggers import LoggerError, RunInfo, tensorboard
from ilo_lightning.loggers import lightning as lightning_logs
from ilo_lightning.main import main
from ilo_lightning.solution import Solution
from tests.test_run import CSGM, arguments, rows_of

STEPS = [0, 3, 6, 9, 11]
"""Every third step; stages of 4, 3 and 5 steps end at 3, 6 and 11."""


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag to step to value, of all event files: TFRecords of length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_has_the_course_of_every_fit(checkpoint: Path, pictures: Path, tmp_path: Path):
    options = ["logger=tensorboard", "logger.every=3", "data.batch_size=1", "data.limit=2"]
    assert main(arguments(checkpoint, pictures, tmp_path, *CSGM, *options)) == 0
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"0000-csgm", "0000-ilo", "0001-csgm", "0001-ilo"}
    for index, row in enumerate(rows_of(tmp_path)):
        found = scalars(tmp_path / "logs" / f"{index:04d}-ilo")
        history = Solution.load(tmp_path / row["folder"] / "solution.safetensors").history
        assert list(found["data_fit"]) == STEPS
        assert list(found["data_fit"].values()) == pytest.approx([float(history[step]) for step in STEPS], rel=1e-5)
        assert list(found["stage"].values()) == [0, 0, 1, 2, 2]
        assert list(found["distance_activation"]) == [6, 9, 11]


def test_csv_has_the_same(checkpoint: Path, pictures: Path, tmp_path: Path):
    options = ["logger=csv", "logger.every=3", "data.batch_size=1", "data.limit=1"]
    assert main(arguments(checkpoint, pictures, tmp_path, *options)) == 0
    written = (tmp_path / "logs" / "0000-ilo" / "version_0" / "metrics.csv").read_text()
    lines = list(csv.DictReader(written.splitlines()))
    history = Solution.load(tmp_path / "images" / "face0" / "solution.safetensors").history
    assert [int(line["step"]) for line in lines] == STEPS
    assert [float(line["data_fit"]) for line in lines] == pytest.approx([float(history[step]) for step in STEPS])


def test_tensorboard_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lightning_logs, "find_spec", lambda name: None)
    with pytest.raises(LoggerError, match="pip install tensorboardX"):
        tensorboard(RunInfo(tmp_path, {}, "inpainting", (("ilo", 3),)))


def test_a_logger_that_fails_costs_one_line(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    def fail(self, metrics, step=None):
        raise OSError("No space left on device")

    monkeypatch.setattr(lightning_logs.CSVLogger, "log_metrics", fail)
    assert main(arguments(checkpoint, pictures, tmp_path, "logger=csv", "data.limit=1")) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "CSVLogger" in line]
    assert said == ["CSVLogger: OSError: No space left on device; going on without"]
    assert len(rows_of(tmp_path)) == 1
