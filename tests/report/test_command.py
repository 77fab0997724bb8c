"""`ilo report`: its files, and what it does to a folder that is there already."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.synthetic_sweep import Sweep
from ilo_lightning.files import pack
from ilo_lightning.report import command
from ilo_lightning.report.collect import collect
from ilo_lightning.report.pictures import gather
from ilo_lightning.report.units import units


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """Two points, of two radii."""
    Sweep(fractions=(0.1,)).write(tmp_path / "sweep")
    return tmp_path / "sweep"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_report_of_a_real_sweep(real_sweep: Path, capsys: pytest.CaptureFixture):
    assert command.report([str(real_sweep)]) == 0
    report = real_sweep / "report"
    assert str(report / "index.html") in capsys.readouterr().out
    written = files_of(report)
    assert {"index.html", "tables.md", "tables.tex", "plots/psnr-against-task.fraction.png"} <= written
    assert {name.replace(".png", ".svg") for name in written if re.match(r"plots/.*\.png", name)} <= written
    # The truth once, a measurement per point, ILO's and CSGM's reconstructions.
    pictures = [name for name in written if name.startswith("pictures/")]
    assert len(pictures) == 3 + 2 * 3 + 2 * 2 * 3
    for name in pictures:
        Image.open(report / name).verify()
    assert (real_sweep / "collected.parquet").exists() is False
    # The report is no part of the sweep.
    assert len(collect([real_sweep]).points) == 2


def test_a_report_needs_no_torch(little: Path):
    code = (
        "import sys; from ilo_lightning.report.command import report\n"
        "assert report(sys.argv[1:]) == 0\n"
        "print(*({'torch', 'pytorch_lightning', 'hydra'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(little)], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_next_report_replaces_the_last(little: Path, tmp_path: Path):
    output = tmp_path / "out"
    assert command.report([str(little), "--output", str(output)]) == 0
    before = files_of(output)
    assert "plots/psnr-against-method.radius.svg" in before
    (output / "notes.txt").write_text("mine")
    shutil.rmtree(little / "1")
    assert command.report([str(little), "--output", str(output)]) == 0
    after = files_of(output)
    assert "plots/psnr-against-method.radius.svg" not in after
    assert (output / "notes.txt").read_text() == "mine"
    assert after == set(json.loads((output / "files.json").read_text())) | {"files.json", "notes.txt"}


@pytest.mark.parametrize("manifest", [None, "{", '{"a": 1}', "[1]"])
def test_a_folder_with_something_else_is_left_alone(
    manifest: str | None, little: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    output = tmp_path / "out"
    output.mkdir()
    (output / "index.html").write_text("mine")
    if manifest:
        (output / "files.json").write_text(manifest)
    expected = files_of(output)
    assert command.report([str(little), "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(output) in line and "choose another" in line
    assert files_of(output) == expected and (output / "index.html").read_text() == "mine"


def test_no_file_outside_the_report_is_removed(little: Path, tmp_path: Path):
    output, precious = tmp_path / "out", tmp_path / "precious.txt"
    precious.write_text("x")
    output.mkdir()
    (output / "files.json").write_text(json.dumps(["../precious.txt", str(precious), "a/../../precious.txt"]))
    assert command.report([str(little), "--output", str(output)]) == 0
    assert precious.exists()


def test_a_report_that_was_broken_off_is_made_anew(little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patched:

        def stop(*_):
            raise KeyboardInterrupt

        patched.setattr("ilo_lightning.report.plots.draw", stop)
        with pytest.raises(KeyboardInterrupt):
            command.report([str(little), "--output", str(output)])
    assert not (output / "index.html").exists()
    assert command.report([str(little), "--output", str(output)]) == 0
    assert (output / "index.html").exists()


@pytest.mark.parametrize(("limit", "expected"), [("0", 0), ("2", 2), ("all", 3)])
def test_pictures_of_so_many_images(limit: str, expected: int, tmp_path: Path):
    Sweep(fractions=(0.1,), pictures=True).write(tmp_path / "sweep")
    assert command.report([str(tmp_path / "sweep"), "--images", limit]) == 0
    collection = collect([tmp_path / "sweep"])
    shown = gather(collection, units(collection.points), None if limit == "all" else int(limit), tmp_path / "again")
    assert [sum(entry.unit == unit for entry in shown) for unit in range(2)] == [expected] * 2
    assert {entry.image for entry in shown} == {f"{i:04d}" for i in range(expected)}
    for entry in shown:
        folder = collection.points[entry.unit].folder / "images" / entry.image
        names = {"measurement": entry.measurement, "truth": entry.truth}
        names |= {"reconstruction": entry.solved["ilo"], "reconstruction-csgm": entry.solved["csgm"]}
        for name, path in names.items():
            assert path and (tmp_path / "sweep" / "report" / path).read_bytes() == (folder / f"{name}.png").read_bytes()


@pytest.mark.parametrize("limit", ["-1", "1.5", "some"])
def test_another_number_of_images_is_refused(limit: str, little: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        command.report([str(little), "--images", limit])
    assert end.value.code == 2 and "a whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_that_are_packed_are_shown(real_sweep: Path):
    """With `pack=true` they are in a zip file per batch."""
    found = []
    for packed in (False, True):
        if packed:
            for point in {path.parent for path in real_sweep.glob("*/run.json")}:
                rows = [json.loads(line) for line in (point / "results.jsonl").read_text().splitlines()]
                for batch in {row["batch"] for row in rows}:
                    for row in rows:
                        if row["batch"] == batch:
                            shutil.move(point / row["folder"], real_sweep / ".scratch" / row["folder"])
                    pack(real_sweep / ".scratch", point / "batches" / f"{batch:04d}.zip")
                    shutil.rmtree(real_sweep / ".scratch")
                (point / "images").rmdir()
        report = real_sweep.parent / f"report {packed}"
        assert command.report([str(real_sweep), "--output", str(report)]) == 0
        found.append({name for name in files_of(report) if name.startswith("pictures/")})
    assert found[0] == found[1] and found[0]


def test_pictures_that_are_gone_are_not_shown(tmp_path: Path):
    Sweep(pictures=True, fractions=(0.1,), radii=(0.1,)).write(tmp_path / "sweep")
    images = tmp_path / "sweep" / "0" / "images"
    shutil.rmtree(images / "0000")
    (images / "0001" / "truth.png").unlink()
    collection = collect([tmp_path / "sweep"])
    shown = gather(collection, units(collection.points), None, tmp_path / "out")
    assert [(entry.image, entry.truth is None) for entry in shown] == [("0001", True), ("0002", False)]


def test_damage_and_failures_are_told_and_counted(little: Path, capsys: pytest.CaptureFixture):
    shutil.rmtree(little / "0" / "batches")
    path = little / "0" / "results.jsonl"
    path.write_text(path.read_text() + "{\n")
    (little / "1" / "status.json").write_text(json.dumps({"state": "failed", "error": "node <b>lost</b>"}))
    (little / "1" / "results.jsonl").unlink()
    shutil.rmtree(little / "1" / "batches")
    assert command.report([str(little)]) == 3
    told = capsys.readouterr()
    assert "2 points: 1 failed, 1 unfinished" in told.out
    assert "failed: 1: node <b>lost</b>" in told.err and "line 4 is damaged" in told.err
    page = (little / "report" / "index.html").read_text()
    assert "line 4 is damaged" in page
    assert "node &lt;b&gt;lost&lt;/b&gt;" in page and "<b>lost" not in page


def test_a_sweep_without_any_result_has_a_report(little: Path):
    for path in little.rglob("*.jsonl"):
        path.unlink()
    assert command.report([str(little)]) == 0
    assert "2 missing" in (little / "report" / "index.html").read_text()
