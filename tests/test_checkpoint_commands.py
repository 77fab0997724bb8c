"""`ilo convert` and runs with checkpoints of others, through the command line's entry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ilo_lightning import load_generator
from ilo_lightning.cli import main
from ilo_lightning.generators import statistics
from ilo_lightning.generators.checkpoints import sha256
from ilo_lightning.main import main as run
from ilo_lightning.solution import Solution, SolutionError
from tests.generators.test_checkpoints import SMALL, label_of, write
from tests.networks import rngs
from tests.stylegan2_fixtures import load_fixture


def convert(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["convert", *map(str, arguments)])
    return int(exit.value.code or 0)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "SAMPLES", 2000)


@pytest.mark.parametrize("name", SMALL)
def test_converting_changes_no_image(name: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    fixture = load_fixture(name)
    source, result = write(fixture, tmp_path / "source"), tmp_path / "folder" / "result.safetensors"
    label = label_of(fixture)
    assert convert(source, result, *([] if label is None else ["--label", label])) == 0
    shown = capsys.readouterr().out
    digest = sha256(result)
    assert f"SHA-256 {sha256(source)}" in shown and f"generator.sha256={digest}" in shown

    original = load_generator(source, label=label)
    monkeypatch.setattr(statistics, "set_statistics", None)  # they are in the file
    converted = load_generator(result, sha256=digest)
    for space in ("gaussian_w_plus", "z"):
        points = [generator.sample(rngs(1), space) for generator in (original, converted)]
        assert (original(points[0]) - converted(points[1])).abs().max() <= 1e-6
    assert converted.config == original.config
    kept = converted.constant_noise()
    assert all(torch.equal(noise, kept[name]) for name, noise in original.constant_noise().items())
    with safe_open(result, framework="pt") as file:
        origin = json.loads(file.metadata()["provenance"])
    assert origin["source"] == "source" and origin["source_sha256"] == sha256(source)
    assert converted.provenance["layout"] == original.provenance["layout"] == origin["layout"]


def test_a_converted_file_takes_another_label(tmp_path: Path):
    fixture = load_fixture("nvidia_resnet_cond_32")
    source, result = write(fixture, tmp_path / "source.pkl"), tmp_path / "result.safetensors"
    assert convert(source, result, "--label", 2) == 0
    again, other = load_generator(result), load_generator(result, label=3)
    assert again.provenance["label"] == "[0.0, 0.0, 1.0, 0.0, 0.0]"
    reference = load_generator(source, label=3)
    for name in statistics.NAMES:
        torch.testing.assert_close(other.get_buffer(name), reference.get_buffer(name))
    assert not torch.equal(again.gaussian_mean, other.gaussian_mean)


def test_what_is_refused(tmp_path: Path, capsys):
    source = write(load_fixture("nvidia_32"), tmp_path / "source.pkl")
    taken = tmp_path / "taken.safetensors"
    taken.write_text("x")
    (tmp_path / "file").write_text("x")
    for arguments, words in (
        ((source, tmp_path / "x.pt"), r"x\.pt: expected a name that ends in \.safetensors"),
        ((source, taken), "is there already"),
        ((tmp_path / "no.pkl", tmp_path / "x.safetensors"), r"no\.pkl: no such file"),
        ((source, tmp_path / "x.safetensors", "--sha256", "ab"), r"generator\.sha256=ab"),
        ((source, tmp_path / "x.safetensors", "--label", "1"), "knows no labels"),
        ((source, tmp_path / "file" / "x.safetensors"), "file"),
    ):
        assert convert(*arguments) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert re.search(words, line), line
    assert convert(source, tmp_path / "x.safetensors", "--label", "x") == 2
    assert taken.read_text() == "x" and not (tmp_path / "x.safetensors").exists()


def test_runs_know_their_label(tmp_path: Path, capsys):
    """A folder goes on with the label it was begun with, and its solutions decode with no other."""
    source = write(load_fixture("nvidia_resnet_cond_32"), tmp_path / "source.pkl")
    command = ["generator=stylegan2", f"generator.checkpoint={source}", f"generator.sha256={sha256(source)}"]
    command += ["trainer=cpu", f"hydra.run.dir={tmp_path / 'run'}"]
    command += ["method.layers=[0,2]", "method.steps=1", "method.lr=0.1"]
    assert run([*command, "generator.label=1"]) == 0
    assert run([*command, "generator.label=2"]) == 2
    assert "holds another run (label: " in capsys.readouterr().err
    assert run([*command, "generator.label=[0,1,0,0,0]"]) == 0
    (path,) = (tmp_path / "run").rglob("solution.safetensors")
    solution = Solution.load(path)
    assert solution.decode(load_generator(source, label=1)).shape == (3, 32, 32)
    with pytest.raises(SolutionError, match=r"belongs to the label .*generator\.label"):
        solution.decode(load_generator(source, label=2))
