"""Whole runs through the command line: outputs, resuming, exit codes, what is refused and how."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ilo_lightning import metrics
from ilo_lightning.data.images import to_uint8
from ilo_lightning.files import read_stored
from ilo_lightning.generators.checkpoints import load_generator, save_generator
from ilo_lightning.main import main
from ilo_lightning.scoring import main as score
from ilo_lightning.solution import Solution, SolutionError
from ilo_lightning.sweeps.lease import Lease
from tests.networks import small_stylegan2

ILO = ["method.layers=[0,1,2]", "method.steps=[4,3,5]", "method.lr=[0.1,0.05,0.05]", "method.radius=0.05"]
"""A single path."""
AUTO = ["method.radius=auto", "method.refit_steps=4"]
"""After those."""
CSGM = ["method@baseline=csgm", "baseline.steps=[12]"]


def arguments(checkpoint: Path, pictures: Path, folder: Path, *more: str) -> list[str]:
    return [
        "generator=stylegan2",
        f"generator.checkpoint={checkpoint}",
        f"data.path={pictures}",
        "data.batch_size=2",
        "trainer=cpu",
        f"hydra.run.dir={folder}",
        *ILO,
        *more,
    ]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def comparable(rows: list[dict]) -> list[dict]:
    """Without what the clock says."""

    def strip(row: dict) -> dict:
        kept = {key: value for key, value in row.items() if key not in ("seconds", "finished")}
        return {**kept, "baseline": strip(row["baseline"])} if row.get("baseline") else kept

    return [strip(row) for row in rows]


def test_a_run_writes_what_it_promises(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    assert main(arguments(checkpoint, pictures, tmp_path, *CSGM)) == 0
    output = capsys.readouterr().out
    assert str(tmp_path / "images" / "face0" / "figure.png") in output
    assert (tmp_path / "config.yaml").read_text().count("???") == 0
    rows = rows_of(tmp_path)
    assert [row["image"] for row in rows] == ["face0", "face1", "face2"]
    generator = load_generator(checkpoint)
    for row in rows:
        folder = tmp_path / row["folder"]
        truth = torch.from_numpy(np.array(Image.open(pictures / f"{row['image']}.png"))).permute(2, 0, 1) / 127.5 - 1
        for suffix, outcome in (("", row), ("-csgm", row["baseline"])):
            solution = Solution.load(folder / f"solution{suffix}.safetensors")
            decoded = solution.decode(generator)
            shown = torch.from_numpy(np.array(Image.open(folder / f"reconstruction{suffix}.png"))).permute(2, 0, 1)
            assert torch.equal(to_uint8(decoded), shown), "the picture shown is not what the file decodes to"
            assert outcome["metrics"]["psnr"] == pytest.approx(
                metrics.psnr(decoded[None], truth[None]).item(), abs=1e-4
            )
            assert outcome["evaluations"] == 13
            assert solution.info["config"]["task"]["name"] == "inpainting"
            assert len(solution.history) == 12
        assert [stage["layer"] for stage in row["stages"]] == [0, 1, 2]
        assert set(row["protocols"]) == set(row["metrics"])
        with safe_open(folder / "measurement.safetensors", framework="pt") as file:
            hole = file.get_tensor("weight")[0] == 0
            assert torch.equal(file.get_tensor("y")[0], torch.where(hole, 0.0, truth))
            assert '"name": "inpainting"' in file.metadata()["info"]
        for name in ("truth.png", "measurement.png", "figure.png"):
            Image.open(folder / name).verify()
    leftovers = [path.name for path in tmp_path.rglob("*") if path.suffix in (".part", ".ckpt")]
    assert leftovers == []


@pytest.mark.parametrize(
    "task",
    [
        ["task=inpainting", "task.box=[0.25,0.25,0.25,0.5]"],
        ["task=inpainting", "task.fraction=0.1"],
        ["task=super_resolution", "task.factor=2"],
        ["task=denoising", "task.noise.sigma=0.2"],
        ["task=compressed_sensing", "task.fraction=0.2", "task.noise.sigma=0.01"],
    ],
    ids=lambda task: " ".join(task),
)
def test_every_task_runs(task: list[str], checkpoint: Path, pictures: Path, tmp_path: Path):
    assert main(arguments(checkpoint, pictures, tmp_path, *task, "data.limit=1", "logger=csv")) == 0
    assert len(rows_of(tmp_path)) == 1
    lines = (tmp_path / "logs" / "0000-ilo" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"data_fit", "distance_activation", "lr", "stage", "step"} <= set(lines[0].split(","))
    assert len(lines) == 1 + len({0, 3, 6, 10, 11}), "every tenth step, and the last of each stage"


def test_a_mask_picture_hides_exactly_its_black_pixels(checkpoint: Path, pictures: Path, tmp_path: Path):
    mask = np.full((16, 16), 255, np.uint8)
    mask[3:9, 5:12] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run = tmp_path / "run"
    assert main(arguments(checkpoint, pictures, run, f"task.mask={tmp_path / 'mask.png'}", "data.limit=1")) == 0
    shown = np.array(Image.open(run / "images" / "face0" / "measurement.png"))
    truth = np.array(Image.open(pictures / "face0.png"))
    assert np.array_equal(shown[mask > 0], truth[mask > 0])
    assert len(np.unique(shown[mask == 0])) == 1


def test_neither_batch_size_nor_order_changes_an_image_s_measurement(checkpoint: Path, pictures: Path, tmp_path: Path):
    noisy = ["task=denoising", "method.steps=[1,1,1]"]
    assert main(arguments(checkpoint, pictures, tmp_path / "a", *noisy)) == 0
    assert main(arguments(checkpoint, pictures / "face2.png", tmp_path / "b", *noisy, "data.batch_size=1")) == 0
    pixels = [(tmp_path / run / "images" / "face2" / "measurement.png").read_bytes() for run in "ab"]
    assert pixels[0] == pixels[1]


def test_one_unreadable_picture_does_not_stop_the_others(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    whole = (folder / "face1.png").read_bytes()
    (folder / "face1.png").write_bytes(whole[: len(whole) // 2])
    assert main(arguments(checkpoint, folder, tmp_path / "run")) == 3
    rows = rows_of(tmp_path / "run")
    assert ["error" in row for row in rows] == [False, True, False]
    assert "face1.png" in rows[1]["error"]
    assert "face1.png" in capsys.readouterr().err


def test_a_finished_run_is_not_repeated(checkpoint: Path, pictures: Path, tmp_path: Path):
    command = arguments(checkpoint, pictures, tmp_path)
    assert main(command) == 0
    before = (tmp_path / "results.jsonl").read_text()
    assert main(command) == 0
    assert (tmp_path / "results.jsonl").read_text() == before


def test_the_default_chooses_and_says_what(checkpoint: Path, pictures: Path, tmp_path: Path):
    """Radii by held-out measurements: what was chosen is in the results, and what was saved is what is shown."""
    assert main(arguments(checkpoint, pictures, tmp_path, *AUTO, "task.fraction=0.3")) == 0
    for row in rows_of(tmp_path):
        chosen = row["selection"]
        assert chosen["how"] == "stacking" and chosen["radii"] == [0.02, 0.05, 0.1, 0.2, 0.4, 1]
        assert sum(chosen["weights"]) == pytest.approx(1, abs=1e-3) and chosen["held_out_residual"] > 0
        assert [stage["layer"] for stage in row["stages"]] == [0, 1, 2, chosen["layer"]]
        assert row["evaluations"] == 6 * 12 + 4 + 5  # 6 + 7 + 1 looks
        solution = Solution.load(tmp_path / row["folder"] / "solution.safetensors")
        assert solution.point.layer == chosen["layer"] and len(solution.history) == 12 + 4
        assert row["kept"]["layer"] == chosen["layer"] and 12 <= row["kept"]["step"] <= 16
    assert not list((tmp_path / "batches").glob("*.ckpt"))


def test_a_folder_is_not_continued_with_other_settings(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    assert main(arguments(checkpoint, pictures, tmp_path, "data.limit=1")) == 0
    assert main(arguments(checkpoint, pictures, tmp_path, "data.limit=1", "method.radius=0.3")) == 2
    assert "method.radius: 0.05 -> 0.3" in capsys.readouterr().err


def test_two_processes_do_not_share_a_folder(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    command = arguments(checkpoint, pictures, tmp_path, "data.limit=1", "method.steps=1")
    lease = Lease(tmp_path / ".lease")
    lease.acquire()
    assert main(command) == 2
    lease.release()
    assert "another process is working in this folder" in capsys.readouterr().err
    assert main(command) == 0


def test_the_same_pictures_elsewhere_are_the_same_run(checkpoint: Path, pictures: Path, tmp_path: Path):
    shutil.copytree(pictures, tmp_path / "moved")
    assert main(arguments(checkpoint, pictures, tmp_path / "run", "data.limit=1")) == 0
    assert main(arguments(checkpoint, tmp_path / "moved", tmp_path / "run", "data.limit=1")) == 0


LONG = ["method.radius=auto", "method.steps=[60,60,60]", "method.refit_steps=100", "checkpoint_every_seconds=0.05"]


@pytest.fixture(scope="module")
def uninterrupted(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert main(arguments(checkpoint, pictures, folder, *LONG)) == 0
    return comparable(rows_of(folder))


@pytest.mark.parametrize(
    ("kill", "part"),
    [
        pytest.param(signal.SIGINT, "-search", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "", marks=pytest.mark.slow),
        (signal.SIGKILL, "-search"),
        pytest.param(signal.SIGKILL, "", marks=pytest.mark.slow),
    ],
    ids=["SIGINT", "SIGTERM in the refit", "SIGKILL", "SIGKILL in the refit"],
)
def test_a_stopped_process_goes_on_where_it_was(
    kill: signal.Signals, part: str, checkpoint: Path, pictures: Path, tmp_path: Path, uninterrupted: list[dict]
):
    """The real command in a real process, killed during the second batch's search or refit."""
    command = [sys.executable, "-m", "ilo_lightning.cli", "solve", *arguments(checkpoint, pictures, tmp_path, *LONG)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    second = tmp_path / "batches" / f"0001-ilo{part}.ckpt"
    while not second.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(kill)
    _, errors = process.communicate()
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[kill]
    assert process.returncode == expected, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "results.jsonl").exists()
    assert main(arguments(checkpoint, pictures, tmp_path, *LONG)) == 0
    assert comparable(rows_of(tmp_path)) == uninterrupted


@pytest.mark.few(10)
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=/nowhere"], "data.path=/nowhere"),
        (["data.batch_size=0"], "data.batch_size=0"),
        (["data.decode_batch_size=0"], "data.decode_batch_size=0: expected a whole number, at least 1, or null"),
        (["data.limit=0"], "data.limit=0"),
        (["generator.checkpoint=/nowhere.pt"], "generator.checkpoint=/nowhere.pt: no such file"),
        (["task.fraction=1.5"], "task.fraction=1.5"),
        (["task.fraction=0.5", "task.box=[0.1,0.1,0.2,0.2]"], "task."),
        (["task=super_resolution", "task.factor=3"], "task.factor=3"),
        (["task.noise.sigma=-1"], "sigma=-1"),
        (["method.steps=[1,2]"], "method.steps=[1, 2]: 2 entries for 3 stages"),
        (["method.layers=[0,1,9]"], "method.layers=9"),
        (["method.radius=-1"], "method.radius=-1"),
        (["method.free=[latent,skin]"], "unknown variable 'skin'"),
        (["method@baseline=ilo", "baseline.layers=[0,1,2]", "baseline.steps=1", "baseline.lr=0.1"], "same name"),
        (
            ["method@baseline=csgm", "baseline.layers=[0,9]", "baseline.steps=1", "baseline.lr=1"],
            "use baseline.layers=[0] ",
        ),
        (["method@baseline=csgm", "baseline.space=x"], "such as method@baseline=ilo"),
        (["seed=abc"], "seed=abc"),
        (["checkpoint_every_seconds=-1"], "checkpoint_every_seconds=-1"),
        (["trainer.precision=99"], "trainer"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed: needs a GPU"),
        (["method.colour=red"], "colour"),
        (["task.noise=null"], "task.noise=None"),
        (["task.operator=null"], "task.operator=None"),
        (["method=ilu"], "ilu"),
        (["generator=stylegan2", "generator.checkpoint=???"], "generator.checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_line(
    overrides: list[str], words: str, checkpoint: Path, pictures: Path, tmp_path: Path, capfd
):
    assert main(arguments(checkpoint, pictures, tmp_path, *overrides)) == 2
    errors = capfd.readouterr().err
    assert words in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "batches").exists()


def test_a_solution_belongs_to_its_generator(checkpoint: Path, pictures: Path, tmp_path: Path):
    assert main(arguments(checkpoint, pictures, tmp_path, "data.limit=1", "method.steps=1")) == 0
    other = tmp_path / "other.safetensors"
    save_generator(small_stylegan2(dtype=torch.float32, seed=1), other)
    solution = Solution.load(tmp_path / "images" / "face0" / "solution.safetensors")
    with pytest.raises(SolutionError, match="belongs to the generator"):
        solution.decode(load_generator(other))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(SolutionError, match="not a readable solution"):
        Solution.load(tmp_path / "broken.safetensors")
    with pytest.raises(SolutionError, match="format"):
        Solution.load(other)


def test_help_is_quick_to_import():
    """--help composes a configuration but loads no torch."""
    code = (
        "import sys; from ilo_lightning.main import main; main(['--help']); "
        "print('torch' in sys.modules, 'pytorch_lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip().endswith("False False"), done.stderr
    assert "== Configuration groups ==" in done.stdout


def test_a_packed_run_has_a_file_per_batch(checkpoint: Path, pictures: Path, tmp_path: Path, capsys):
    """The same bytes, in zip files; and scores are made from them."""
    assert main(arguments(checkpoint, pictures, tmp_path / "files", *CSGM)) == 0
    assert main(arguments(checkpoint, pictures, tmp_path / "packed", *CSGM, "pack=true")) == 0
    assert "batches/*.zip" in capsys.readouterr().out
    assert not (tmp_path / "packed" / "images").exists()
    assert sorted(path.name for path in (tmp_path / "packed" / "batches").iterdir()) == [
        "0000.jsonl", "0000.zip", "0001.jsonl", "0001.zip"]  # fmt: skip
    assert comparable(rows_of(tmp_path / "packed")) == comparable(rows_of(tmp_path / "files"))
    for row in rows_of(tmp_path / "packed"):
        for path in (tmp_path / "files" / row["folder"]).iterdir():
            stored = read_stored(tmp_path / "packed", row, path.name)
            assert path.suffix != ".png" or stored == path.read_bytes()
    assert (tmp_path / "packed" / "run.json").read_text() == (tmp_path / "files" / "run.json").read_text()
    scores = []
    for run in ("files", "packed"):
        assert score([str(tmp_path / run), "--truth", str(pictures)]) == 0
        scores.append((tmp_path / run / "scores.jsonl").read_text())
    assert scores[0] == scores[1]


def test_a_run_goes_on_packed_or_not(checkpoint: Path, pictures: Path, tmp_path: Path):
    """Whatever the earlier call did, every image is in one place."""
    for packing, again in (("false", "true"), ("true", "false")):
        run = tmp_path / packing
        assert main(arguments(checkpoint, pictures, run, *CSGM, f"pack={packing}")) == 0
        rows = rows_of(run)
        (run / "batches" / "0001.jsonl").unlink()
        assert main(arguments(checkpoint, pictures, run, *CSGM, f"pack={again}")) == 0
        assert comparable(rows_of(run)) == comparable(rows)
        for row in rows:
            in_folder = row["batch"] == (0 if packing == "false" else 1)
            assert (run / row["folder"]).exists() == in_folder
            assert (run / "batches" / f"{row['batch']:04d}.zip").exists() != in_folder
            assert read_stored(run, row, "figure.png").startswith(b"\x89PNG")
        assert score([str(run), "--truth", str(pictures)]) == 0
        scored = [json.loads(line)["image"] for line in (run / "scores.jsonl").read_text().splitlines()]
        assert set(scored) == {row["image"] for row in rows}


def test_a_run_that_samples_shows_mean_and_deviation(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Also as a baseline, and next to a method that says whether it found anything."""
    shipped = ["task=denoising", "method=pulse", "method.steps=[3]", "method.layers=[0]", "method.lr=[0.4]"]
    samples = ["method@baseline=langevin", "baseline.steps=[4,6]", "baseline.samples=3", "baseline.burn_in=0"]
    assert main([*arguments(checkpoint, pictures, tmp_path), *shipped, *samples]) == 0
    said = capsys.readouterr().err
    for row in rows_of(tmp_path):
        unmixed = row["baseline"]["posterior"]["rhat"] > 1.1
        assert (f"image {row['image']}: the chain has not mixed" in said) is unmixed
        assert row["found"] in (True, False) and "found" not in row["baseline"]
        posterior = row["baseline"]["posterior"]
        assert posterior["samples"] == 3 and posterior["mean_std"] > 0
        folder = tmp_path / row["folder"]
        mean = torch.from_numpy(np.array(Image.open(folder / "posterior-mean-langevin.png"))).permute(2, 0, 1)
        truth = torch.from_numpy(np.array(Image.open(folder / "truth.png"))).permute(2, 0, 1)
        found = metrics.psnr(mean[None] / 127.5 - 1, truth[None] / 127.5 - 1).item()
        assert posterior["metrics_of_mean"]["psnr"] == pytest.approx(found, abs=0.05)  # pictures are rounded
        last = max(folder.glob("sample-*-langevin.png"))
        shown = folder / "reconstruction-langevin.png"
        difference = np.array(Image.open(last)).astype(int) - np.array(Image.open(shown)).astype(int)
        assert last.name == "sample-2-langevin.png" and np.abs(difference).max() <= 1
        assert (folder / "posterior-std-langevin.png").is_file()
