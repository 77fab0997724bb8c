"""Names of points and sweeps: the same for the same, another for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ilo_lightning.building import build
from ilo_lightning.identity import identity
from ilo_lightning.pipeline import parts_of
from ilo_lightning.sweeps.plan import (
    Plan,
    Point,
    command_line,
    digest_of,
    folder_of,
    folders,
    known_folders,
    quoted,
    read_plans,
    shard_of,
    sweep_name,
)

BASE = {
    "method": {"radius": 0.1, "steps": [50, 50]},
    "seed": 0,
    "data": {"path": "x", "shard": None},
    "trainer": {"accelerator": "auto", "precision": "32-true"},
}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"seed": 0},
        {"method.radius": 0.1},
        {"data.shard": "2/4"},
        {"trainer.accelerator": "gpu"},
        {"checkpoint_every_seconds": 5},
        {"logger.every": 1},
    ],
    ids=str,
)
def test_what_computes_the_same_has_the_same_digest(values: dict):
    assert digest_of(BASE, values) == digest_of(BASE, {})


PLACED = {
    "logger": "csv", "ops.impl": "torch", "checkpoint_every_seconds": 5, "pack": True, "data.shard": "1/2",
    "data.decode_batch_size": 1, "trainer": "auto", "+trainer.benchmark": True,
}  # fmt: skip
CHANGED = {
    "seed": 1, "method.radius": 0.3, "task": "inpainting", "trainer.precision": "bf16-mixed", "task.noise.sigma": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [*PLACED.items(), *CHANGED.items()])
def test_a_point_s_folder_and_its_identity_know_the_same(key: str, value: object, checkpoint: Path, pictures: Path):
    """What changes one changes the other; else a point would have two folders, or a folder two points."""
    common = ["generator=stylegan2", f"generator.checkpoint={checkpoint}", f"data.path={pictures}", "task=denoising",
              "trainer=cpu", "method.layers=[0]", "method.steps=[2]", "method.lr=[0.1]"]  # fmt: skip
    folders, identities = set(), set()
    for overrides in (common, [*common, f"{key}={value}"]):
        with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
            config = compose("config", overrides)
        tree: Any = OmegaConf.to_container(config)
        folders.add(digest_of(tree, {}))
        identities.add(identity(parts_of(build(config))))
    assert len(folders) == len(identities) == (1 if key in PLACED else 2)


def test_what_computes_something_else_has_another():
    changes = [{}, {"seed": 1}, {"method.radius": 0.2}, {"method.radius": None}, {"method.steps.0": 1},
               {"data.path": "y"}, {"trainer.precision": "bf16-mixed"}, {"new.key": 1}]  # fmt: skip
    assert len({digest_of(BASE, change) for change in changes}) == len(changes)


SIZED = {
    "size": "small",
    "sizes": {"small": {"images": 8, "judges": ["a", "b"], "methods": "csgm,ilo"}, "full": {"images": 16}},
    "data": {"limit": "${sizes.${size}.images}"},
    "metrics": {"perceptual": "${sizes.${size}.judges}"},
    "task": {"radius": "${method.radius}", "parts": ["x${sizes.full.images}"]},
}


def test_an_experiment_s_size_counts_by_what_it_sets():
    """A longer list of methods, or another size that sets the same, doesn't begin finished points anew."""
    written = {
        "data": {"limit": 8},
        "metrics": {"perceptual": ["a", "b"]},
        "task": {"radius": "${method.radius}", "parts": ["x16"]},
    }
    same = [{}, {"sizes.small.methods": "csgm,pulse,ilo"}, {"sizes.full.methods": "csgm"}, {"sizes.new": {"images": 1}}]
    assert {digest_of(SIZED, change) for change in same} == {digest_of(written, {})}
    assert digest_of(SIZED, {"sizes.small.images": 4}) == digest_of(written, {"data.limit": 4})
    assert digest_of(SIZED, {"sizes.small.judges": ["a"]}) == digest_of(written, {"metrics.perceptual": ["a"]})


@pytest.mark.parametrize(
    ("reference", "changes"),
    [
        ("${size}", {"size": "full"}),
        ("${..size}", {"size": "full"}),
        ("${sizes[${size}].images}", {"size": "full"}),
        ("${oc.select:sizes.${size}.images}", {"sizes.small.images": 4}),
        ("${sizes.nested}", {"sizes.judge": "b"}),
        ("x${seed}-${size}", {"size": "full"}),
    ],
)
def test_however_a_size_is_referred_to_it_counts(reference: str, changes: dict):
    sizes = {"small": {"images": 8}, "full": {"images": 16}, "judge": "a", "nested": ["${sizes.judge}"]}
    tree = {"size": "small", "sizes": sizes, "data": {"limit": reference}, "seed": 0}
    assert digest_of(tree, changes) != digest_of(tree, {})


def test_a_size_that_refers_to_other_options_counts_by_its_table():
    outside = {**SIZED, "sizes": {"small": {"images": "${seed}", "judges": "a"}}, "seed": 0}
    assert len({digest_of(outside, change) for change in ({}, {"seed": 1}, {"sizes.small.judges": "b"})}) == 3


def test_a_folder_is_named_by_what_is_swept():
    overrides = ["task=denoising", "method.radius=0.1", "data.path=/a/b", "trainer=gpu", "data.shard=1/2", "seed=1"]
    swept = {"method.radius", "seed", "data.shard", "trainer"}
    assert folder_of("0123456789ab", overrides, swept, {}) == "method.radius-0.1+seed-1-0123456789ab"
    assert folder_of("0123456789ab", overrides, set(), {}) == "point-0123456789ab"
    assert folder_of("0123456789ab", overrides, {"seed"}, {"0123456789ab": "as before"}) == "as before"


@pytest.mark.parametrize("value", ["[1, 2, 3]", "a b/c\\d", "'x'", "é" * 300, "a=b", "{a: 1}"])
def test_folder_names_are_file_names(value: str, tmp_path: Path):
    name = folder_of("0123456789ab", [f"key={value}"], {"key"}, {})
    (tmp_path / name).mkdir()
    assert quoted(name) == name and "/" not in name and len(name) <= 140
    assert known_folders(tmp_path) == {"0123456789ab": name}


def test_a_sweep_keeps_its_name():
    command = ["method=ilo,csgm", "seed=0,1"]
    name = sweep_name(command, {})
    assert name == sweep_name([*command[::-1], "force=true", "data.shard=1/2,2/2", "logger=csv", "trainer=gpu"], {})
    assert name != sweep_name([*command, "task=denoising"], {})
    assert name != sweep_name(command, {"method.radius": "0.1,0.2"})
    assert sweep_name(["experiment=sweep_radius"], {}).startswith("sweep_radius-")


def test_plans_are_kept_side_by_side(tmp_path: Path):
    plans = [Plan(["seed=0,1"], "/there", [Point("a", "1/1", ("seed=0",)), Point("b", "2/3", ("seed=1",))]),
             Plan(["seed=2"], "/there", [Point("c", "1/1", ("seed=2",))])]  # fmt: skip
    for plan in (*plans, plans[0]):
        plan.write(tmp_path)
    point = '{{"command": [], "directory": "/", "points": [{}]}}'
    points = ('{"folder": "a", "shard": "x"}', '{"folder": 3}', '{"shard": "1/1"}')
    broken = ["{", "[]", "{}", *map(point.format, points)]
    for number, text in enumerate(broken):
        (tmp_path / f"plan-broken-{number}.json").write_text(text)
    damaged: list[Path] = []
    assert len(read_plans(tmp_path, damaged)) == 2 and len(damaged) == len(broken)
    found = {tuple(plan.command): plan for plan in read_plans(tmp_path)}
    assert found == {tuple(plan.command): plan for plan in plans}
    assert [tuple(point.overrides) for point in found["seed=0,1",].points] == [("seed=0",), ("seed=1",)]


def test_shards_are_read_from_overrides():
    assert shard_of(["seed=0", "data.shard=2/4"]) == shard_of(["data.shard='2/4'"]) == "2/4"
    assert shard_of(["seed=0"]) is shard_of(["data.shard=null"]) is None


def test_what_is_printed_can_be_typed(tmp_path: Path):
    """Through a real shell and Hydra's own parser."""
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    for path in ("it's \\here, [really] $HOME", "\\'\\\\'", "end\\", "a b=c"):
        words = shlex.split(command_line([f"hydra.sweep.dir={quoted(path)}", "method.steps=[1,2]"]))
        assert words[:2] == ["ilo", "solve"]
        first, second = OverridesParser.create().parse_overrides(words[2:])
        assert first.value() == path and second.value() == [1, 2]


def test_points_are_found_at_any_depth(tmp_path: Path):
    for name in (
        "a/run.json",
        "b/c/status-1-of-2.json",
        "d/config.yaml",
        "a/images/x/config.yaml",
        "e/nothing",
        ".s/run.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(folder.relative_to(tmp_path)) for folder in folders(tmp_path)] == ["a", "b/c", "d"]
