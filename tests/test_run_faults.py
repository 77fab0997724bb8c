"""What goes wrong in a run, how the command says so, and what it leaves behind."""

from __future__ import annotations

import gc
import json
import signal
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ilo_lightning import job, pipeline
from ilo_lightning.callbacks import ResumeCheckpoint
from ilo_lightning.data.images import Images, load_images
from ilo_lightning.fits import check_trainer
from ilo_lightning.generators.checkpoints import CheckpointError, load_generator, save_generator
from ilo_lightning.interrupt import Interrupted, listen
from ilo_lightning.main import main
from ilo_lightning.method import Method
from ilo_lightning.observations import Simulated
from ilo_lightning.operators import Denoising, GaussianNoise
from ilo_lightning.problem import InverseProblem
from ilo_lightning.schedule import ScheduleError
from ilo_lightning.solution import Solution, SolutionError
from ilo_lightning.solve import solve
from tests.networks import rngs, small_stylegan2
from tests.test_resume import assert_same
from tests.test_run import arguments, rows_of
from tests.test_solve import KEYS, ilo, problem


def test_a_damaged_checkpoint_costs_one_batch(checkpoint: Path, pictures: Path, tmp_path: Path, capfd):
    """It can only come from a failing disk; what is finished stays, and the batch begins anew."""
    damaged = tmp_path / "run" / "batches" / "0000-ilo.ckpt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.warns(UserWarning, match=r"0000-ilo\.ckpt: damaged .* starting this batch again"):
        assert main(arguments(checkpoint, pictures, tmp_path / "run")) == 0
    assert main(arguments(checkpoint, pictures, tmp_path / "whole")) == 0
    first, second = (Solution.load(tmp_path / run / "images/face0/solution.safetensors") for run in ("run", "whole"))
    assert torch.equal(first.history, second.history)


def test_a_log_survives_a_restart(checkpoint: Path, pictures: Path, tmp_path: Path):
    before = tmp_path / "logs" / "0000-ilo" / "version_0" / "metrics.csv"
    before.parent.mkdir(parents=True)
    before.write_text("step,fit\n0,1.0\n")
    assert main(arguments(checkpoint, pictures, tmp_path, "logger=csv", "logger.every=2")) == 0
    assert before.read_text() == "step,fit\n0,1.0\n"
    assert len((before.parents[1] / "version_1" / "metrics.csv").read_text().splitlines()) > 2


def test_what_breaks_off_a_batch_keeps_its_best_and_is_taken_up_again(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch, capfd
):
    """Out of memory in the first of two batches: the second is done; the next call goes on from the checkpoint."""
    assert main(arguments(checkpoint, pictures, tmp_path / "whole")) == 0
    capfd.readouterr()
    step, steps = InverseProblem.training_step, 0

    def out_of_memory(self, *args):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return step(self, *args)

    monkeypatch.setattr(InverseProblem, "training_step", out_of_memory)
    assert main(arguments(checkpoint, pictures, tmp_path / "run")) == 3
    said = capfd.readouterr().err
    assert "face0: broken off at step 6 of 12" in said and "lower data.batch_size" in said and "Traceback" not in said
    assert "OutOfMemoryError" in (tmp_path / "run" / "batches" / "0000-error.txt").read_text()
    rows = rows_of(tmp_path / "run")
    assert ["fault" in row for row in rows] == [True, True, False]
    history = Solution.load(tmp_path / "run" / rows[0]["folder"] / "solution.safetensors").history
    assert rows[0]["data_fit"] == pytest.approx(float(history.min()))

    monkeypatch.undo()
    assert main(arguments(checkpoint, pictures, tmp_path / "run")) == 0
    timing = ("seconds", "finished")
    expected, found = (
        [{key: value for key, value in row.items() if key not in timing} for row in rows_of(tmp_path / name)]
        for name in ("whole", "run")
    )
    assert expected == found
    assert not list((tmp_path / "run" / "batches").glob("*error*"))


def test_a_fault_in_the_project_itself_is_no_refusal(checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch):
    """Exit code 2 promises that nothing was begun."""

    def broken(*args, **kwargs):
        raise AssertionError("a bug")

    monkeypatch.setattr(pipeline, "solve", broken)
    assert main(arguments(checkpoint, pictures, tmp_path)) == 1


@pytest.mark.parametrize(
    ("outcomes", "expected", "jobs"),
    [
        ([0, 0, 0], 0, 3),
        ([0, 3, 0], 3, 3),
        ([0, RuntimeError("out of memory"), 0], 3, 3),
        ([2, 2, 2], 2, 3),
        ([0, 2, 0], 3, 3),
        ([0, 130, 0], 130, 2),
        ([143, 0, 0], 143, 1),
    ],
    ids=["all well", "an image failed", "a crash", "all refused", "one refused", "Ctrl-C", "SIGTERM"],
)
def test_the_exit_code_of_a_multirun(outcomes: list, expected: int, jobs: int, tmp_path: Path, monkeypatch, capfd):
    """3 if some of its points failed, in whatever way; an interruption ends it."""
    left = list(outcomes)

    def outcome(config, folder) -> int:
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(job, "run_job", outcome)
    assert main(["--multirun", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"]) == expected
    assert len(outcomes) - len(left) == jobs


def test_a_multirun_with_an_impossible_configuration_is_refused(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(job, "run_job", lambda config, folder: 0)
    assert main(["--multirun", "method=ilo,ilu", f"hydra.sweep.dir={tmp_path}"]) == 2
    assert "ilu" in capfd.readouterr().err


class SignalsItself(ResumeCheckpoint):
    """The signals arrive right after the step was looked at, where the next to notice them is Lightning."""

    def __init__(self, path: Path, signum: signal.Signals, times: int):
        super().__init__(path, every_seconds=1e9, every_steps=1)
        self.signum, self.left = signum, times

    def on_train_batch_end(self, trainer, *args) -> None:
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step >= 2:
            for _ in range(self.left):
                self.left -= 1
                signal.raise_signal(self.signum)


@pytest.mark.parametrize(("signum", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2)])
def test_a_signal_between_two_callbacks_is_an_interruption(signum: signal.Signals, times: int, tmp_path: Path):
    """Lightning leaves by SystemExit at SIGTERM and at the second SIGINT, and would make the exit code 0 or 1."""
    generator, operator, measurement = problem(dtype=torch.float32)

    def run(saving: ResumeCheckpoint):
        return solve(generator, operator, measurement, ilo(), KEYS, checkpoint=saving)

    path = tmp_path / "last.ckpt"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with listen() as stop:
        saving = SignalsItself(path, signum, times)
        saving.stop = stop
        with pytest.raises(Interrupted) as interruption:
            run(saving)
    assert interruption.value.exit_code == 128 + signum
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_same(run(ResumeCheckpoint(path)), run(ResumeCheckpoint(tmp_path / "other.ckpt")))


def test_somebody_else_s_exit_is_not_swallowed(tmp_path: Path):
    class Leaves(ResumeCheckpoint):
        def on_train_batch_end(self, *args) -> None:
            sys.exit(7)

    with pytest.raises(SystemExit) as exit:
        solve(*problem(), ilo(), KEYS, checkpoint=Leaves(tmp_path / "last.ckpt"))
    assert exit.value.code == 7


def test_ctrl_c_twice_is_an_interruption(checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch, capsys):
    """The second one while pictures are written, where nobody looks at the request."""

    def twice(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pipeline, "write_image", twice)
    assert main(arguments(checkpoint, pictures, tmp_path)) == 130
    assert f"hydra.run.dir={tmp_path} to go on" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments(checkpoint, pictures, tmp_path)) == 0


def test_a_refused_run_leaves_the_folder_s_configuration(checkpoint: Path, pictures: Path, tmp_path: Path):
    """config.yaml says what made the results that lie beside it."""
    assert main(arguments(checkpoint, pictures, tmp_path, "data.limit=1")) == 0
    before = (tmp_path / "config.yaml").read_text()
    assert "radius: 0.05" in before
    assert main(arguments(checkpoint, pictures, tmp_path, "data.limit=1", "method.radius=0.3")) == 2
    assert (tmp_path / "config.yaml").read_text() == before


def test_what_killed_processes_left_is_removed(checkpoint: Path, pictures: Path, tmp_path: Path):
    leftovers = [tmp_path / "batches" / ".0000-ilo.ckpt.4711.part", tmp_path / "images" / "face0" / ".truth.png.x.part"]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert main(arguments(checkpoint, pictures, tmp_path, "data.limit=1")) == 0
    assert not any(path.exists() for path in leftovers)


def test_an_optimisation_that_diverges_still_gives_its_best(checkpoint: Path, pictures: Path, tmp_path: Path):
    """The stage's last picture is no picture at all, the best iterate is the first point; the row is JSON."""
    diverging = ["method.lr=1e30", "method.radius=null", "method.spheres=[]", "data.limit=1"]
    assert main(arguments(checkpoint, pictures, tmp_path, *diverging)) == 3

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "results.jsonl").read_text()
    row = json.loads(text, parse_constant=refuse)
    assert row["stages"][-1]["psnr"] is None
    assert row["metrics"]["psnr"] > 0
    assert "data fit not finite from step 2 on" in row["fault"]
    Image.open(tmp_path / row["folder"] / "figure.png").verify()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.batch_size=abc"], "data.batch_size=abc"),
        (["data.batch_size=2.5"], "data.batch_size=2.5"),
        (["data.limit=1.5"], "data.limit=1.5"),
        (["data.limit=abc"], "data.limit=abc"),
        (["logger=csv", "logger.every=0"], "logger.every=0"),
        (["checkpoint_every_seconds=abc"], "checkpoint_every_seconds=abc"),
        (["trainer.precision=64-true"], "trainer.precision=64-true"),
        (["+trainer.max_steps=5"], "trainer.max_steps=5"),
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=2"),
        (["method.name=../../elsewhere"], "method.name=../../elsewhere"),
        (["method.free=latent"], "method.free=latent: expected a list"),
        (["method.spheres=latent"], "method.spheres=latent: expected a list"),
        (["method.radii=3"], "method.radii=3"),
        (["method.lr_scale=3"], "method.lr_scale=3"),
        (["generator.checkpoint=pkg://no_such_package/x"], "generator.checkpoint=pkg://no_such_package/x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_more_bad_input_is_refused_in_one_line(
    overrides: list[str],
    words: str,
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    capfd,
):
    assert main(arguments(checkpoint, pictures, tmp_path, *overrides)) == 2
    errors = capfd.readouterr().err
    assert words in errors
    assert "Traceback" not in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "batches").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_a_trainer_may_be_told(precision: str):
    check_trainer({"accelerator": "cpu", "precision": precision, "benchmark": False})


def test_a_stage_with_nothing_free_is_refused_before_the_first():
    """The noise maps that are free have been used up where the stage enters."""
    method = ilo(free=["noise"], noise_maps=1, radii={}, lr_scale={}, spheres=[])
    with pytest.raises(ScheduleError, match="noise_maps=1: nothing to optimise at layer 1"):
        solve(*problem(), method, KEYS)


@pytest.mark.parametrize(
    ("images", "space", "spheres", "words"),
    [
        (2, "gaussian_w_plus", ["latent"], "2 images for a measurement of 3"),
        (3, "w", ["latent"], "codes in w .* lie on no sphere"),
        (3, "x", [], "method.space=x"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(images: int, space: str, spheres: list[str], words: str):
    generator, operator, measurement = problem()
    point = generator.sample(rngs(*range(images)), space if space in generator.spaces else None)
    object.__setattr__(point, "space", space)
    with pytest.raises(ValueError, match=words):
        solve(generator, operator, measurement, ilo(spheres=spheres), KEYS, init=point)


@pytest.mark.parametrize("name", ["ilo", "ilo-3+noise", "csgm_0.1"])
def test_method_names_are_file_names(name: str):
    assert Method(name, ilo().schedule).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "ilo\n"])
def test_method_names_that_are_none(name: str):
    with pytest.raises(ScheduleError, match=r"method\.name"):
        Method(name, ilo().schedule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path):
    """And what is not stored, the filter, has it too."""
    generator = small_stylegan2(dtype=dtype)
    save_generator(generator, tmp_path / "own.safetensors")
    loaded = load_generator(tmp_path / "own.safetensors")
    point = generator.sample(rngs(1, 2))
    assert torch.equal(loaded(point), generator(point)) and loaded(point).dtype == dtype


def test_a_package_that_is_not_there_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match=r"generator\.checkpoint=pkg://no_such_package/x: .*no_such_package"):
        load_generator("pkg://no_such_package/x")


def test_a_damaged_solution_is_refused_in_words(tmp_path: Path):
    (solution, *_) = solve(*problem(), ilo(), KEYS).solutions
    solution.save(tmp_path / "whole.safetensors")
    tensors = load_file(tmp_path / "whole.safetensors")
    header = {"format": "ilo_lightning.solution/1", "layer": "2", "space": "w", "info": "{}"}
    damaged = [
        (tensors, {**header, "layer": "two"}),
        (tensors, {**header, "info": "{"}),
        (tensors, {name: value for name, value in header.items() if name != "space"}),
        ({name: tensor for name, tensor in tensors.items() if name != "history"}, header),
        ({"history": tensors["history"]}, header),
    ]
    for contents, metadata in damaged:
        save_file(contents, tmp_path / "damaged.safetensors", metadata)
        with pytest.raises(SolutionError, match=r"damaged\.safetensors"):
            Solution.load(tmp_path / "damaged.safetensors")


def test_images_are_not_all_held_in_memory(pictures: Path, tmp_path: Path, monkeypatch):
    """To identify a run its pictures are read one after the other: a thousand of 1024² would take 12 GB."""

    generator = small_stylegan2(dtype=torch.float32)
    alive: list[weakref.ref] = []
    most = 0
    read = Images.__getitem__

    def noting(self, index):
        nonlocal most
        image = read(self, index)
        gc.collect()
        alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(image)]
        most = max(most, len(alive))
        return image

    monkeypatch.setattr(Images, "__getitem__", noting)
    operator, images = Denoising(generator.image_shape), load_images(pictures, generator.image_shape)
    setting = pipeline.Setting(
        config={},
        generator=generator,
        operator=operator,
        method=ilo(),
        observations=Simulated(images, operator, GaussianNoise(0.1), 0, generator.dtype),
    )
    assert len(pipeline.parts_of(setting)["images"]) == len(setting.observations) == 3 and most <= 2
