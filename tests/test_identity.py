"""What makes two runs the same run, and how a difference is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from ilo_lightning import identity as module
from ilo_lightning.identity import commit, differences, fingerprint, identity, without_places

PARTS = {"method": {"name": "ilo", "steps": [50, 50], "lr": 0.1}, "seed": 0, "images": ["ab", "cd"], "mask": None}


def test_identity_does_not_depend_on_the_order_of_keys():
    shuffled = {
        "mask": None,
        "images": ["ab", "cd"],
        "seed": 0,
        "method": {"lr": 0.1, "steps": [50, 50], "name": "ilo"},
    }
    assert list(shuffled) != list(PARTS)
    assert identity(shuffled) == identity(PARTS)
    assert re.fullmatch(r"[0-9a-f]{64}", identity(PARTS))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": None},
        {"seed": "0"},
        {"images": ["cd", "ab"]},
        {"method": {**PARTS["method"], "lr": 0.2}},
        {"method": {"name": "ilo", "steps": [50, 50]}},
        {"batch_size": 8},
    ],
    ids=str,
)
def test_identity_notices_every_change(change: dict):
    assert identity({**PARTS, **change}) != identity(PARTS)


def test_identity_is_the_same_in_every_process():
    """Pinned: it is compared with what earlier processes wrote down."""
    assert identity({"b": [1, 2.5, None], "a": "é"}) == (
        "84afbf1d4853005f9dd0c81cb1819b53ce86978340764c062160f6e8356665de"
    )


def test_differences_lists_nested_changes():
    old = {
        "method": {"name": "ilo", "radii": {"rgb": 0.1, "noise": None}, "steps": [4, 3]},
        "seed": 0,
        "same": {"a": 1},
    }
    new = {
        "method": {"name": "ilo", "radii": {"rgb": 0.2, "noise": 0.5}, "steps": [4, 3, 5]},
        "seed": 0,
        "same": {"a": 1},
    }
    assert differences(old, new) == [
        "method.radii.noise: null -> 0.5",
        "method.radii.rgb: 0.1 -> 0.2",
        "method.steps: [4, 3] -> [4, 3, 5]",
    ]
    assert differences(old, old) == []


def test_differences_looks_into_lists_of_parts():
    old, new = ({"parts": [{"a": 1}, {"size": size, "b": [1, 2]}]} for size in (3, 4))
    assert differences(old, new) == ["parts.1.size: 3 -> 4"]
    assert differences(old, {"parts": [{"a": 1}]})[0].startswith("parts: [")


def test_of_parts_contents_count_and_no_places(tmp_path: Path):
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"")
    told = [without_places({"parts": [{"size": 3, "mask": where}]}) for where in (str(mask), f"{tmp_path}/./mask.png")]
    assert told[0] == told[1] == {"parts": [{"size": 3}]}


def test_differences_lists_what_came_and_went():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": 3, "d": "x"}) == [
        "a: 1 -> null",
        'b: {"c": 2} -> 3',
        'd: null -> "x"',
    ]


def test_differences_shortens_long_values():
    (line,) = differences({"images": ["0" * 64] * 100}, {"images": []})
    assert line.startswith('images: ["000') and line.endswith("... -> []") and len(line) < 100


def layer(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
        network.register_buffer("cache", torch.zeros(3), persistent=False)
    return network


def test_fingerprint_is_of_the_numbers():
    """Not of the object, nor of the memory format, nor of buffers that aren't saved."""
    other = layer().to(memory_format=torch.channels_last).eval().requires_grad_(False)
    other.cache.add_(1)
    assert fingerprint(other) == fingerprint(layer())


@pytest.mark.parametrize("part", ["0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked"])
def test_fingerprint_notices_a_change_of_any_number(part: str):
    changed = layer()
    changed.state_dict()[part].flatten()[-1].add_(1)
    assert fingerprint(changed) != fingerprint(layer())


def test_fingerprint_notices_types_shapes_and_names():
    shapes = [
        nn.ParameterDict({name: torch.zeros(shape)}) for name, shape in (("a", (2, 3)), ("a", (3, 2)), ("b", (2, 3)))
    ]
    networks = [layer(), layer().double(), layer(1), *shapes]
    assert len({fingerprint(network) for network in networks}) == len(networks)


@pytest.fixture
def source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package as if it lay in ``tmp_path/ilo_lightning``; ``commit`` forgets what it knew, before and after."""
    monkeypatch.setattr(module, "__file__", str(tmp_path / "ilo_lightning" / "identity.py"))
    commit.cache_clear()
    yield tmp_path
    commit.cache_clear()


def git(folder: Path, *arguments: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = [
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@b.c",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=/dev/null",
    ]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, env=clean)


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git on the PATH")


def test_no_commit_for_an_installed_wheel(source_tree: Path):
    assert commit() is None


def test_no_commit_for_sources_without_a_repository(source_tree: Path):
    (source_tree / "pyproject.toml").touch()
    assert commit() is None


@needs_git
def test_no_commit_of_somebody_else_s_repository(source_tree: Path, monkeypatch: pytest.MonkeyPatch):
    """Sources unpacked inside another checkout: that one's commit says nothing about this code."""
    inner = source_tree / "vendor" / "ilo-lightning"
    (inner / "ilo_lightning").mkdir(parents=True)
    (inner / "pyproject.toml").touch()
    git(source_tree, "init", "--quiet")
    git(source_tree, "add", ".")
    git(source_tree, "commit", "--quiet", "-m", "theirs")
    monkeypatch.setattr(module, "__file__", str(inner / "ilo_lightning" / "identity.py"))
    assert commit() is None


@needs_git
def test_the_commit_of_a_checkout_and_whether_it_has_changes(source_tree: Path):
    (source_tree / "pyproject.toml").touch()
    git(source_tree, "init", "--quiet")
    git(source_tree, "add", ".")
    git(source_tree, "commit", "--quiet", "-m", "ours")
    git(source_tree, "tag", "-a", "v1", "-m", "a tag is not shown instead of the commit")
    clean = commit()
    assert clean is not None and re.fullmatch(r"[0-9a-f]{40}", clean)
    commit.cache_clear()
    (source_tree / "pyproject.toml").write_text("changed")
    assert commit() == f"{clean}-dirty"


def test_places_don_t_count_and_everything_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mask.png").touch()
    (tmp_path / "ilo").mkdir()
    monkeypatch.chdir(tmp_path)
    config = {
        "task": {"name": "inpainting", "mask": "mask.png", "box": [1, 2], "operator": {"_target_": "a.B", "seed": 0}},
        "generator": {"checkpoint": f"{tmp_path}/mask.png", "truncation": 0.7},
        "method": {"name": "ilo"},
        "data": {"path": "photos", "mode": "simulated", "limit": 3, "batch_size": 8},
    }
    assert without_places(config) == {
        "task": {"name": "inpainting", "box": [1, 2], "operator": {"_target_": "a.B", "seed": 0}},
        "generator": {"truncation": 0.7},
        "method": {"name": "ilo"},  # although there is a folder of that name
        "data": {"mode": "simulated"},
    }
