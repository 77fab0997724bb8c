"""`ilo collect`: every result once, whatever is missing, damaged or repeated."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal

from benchmarks.synthetic_sweep import Sweep
from ilo_lightning.report import command
from ilo_lightning.report.collect import collect, table
from ilo_lightning.report.summary import summarise
from ilo_lightning.report.sweep import _parse_yaml
from ilo_lightning.sweeps.lease import Lease


def points(sweep: Path) -> list[Path]:
    """The folders of a sweep."""
    return sorted(path.parent for path in sweep.glob("*/run.json"))


def raw_rows(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(sweep.rglob("results.jsonl")) for line in path.read_text().splitlines()]


def key_values(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    """The results of a frame, in an order of their own, without the folders they come from."""
    known = frame.filter(pl.col("image").is_not_null())
    columns = names or ("task.fraction", "method.radius", "seed", "method", "image", "psnr", "mse", "seconds")
    return known.select(columns).sort(columns)


def messages(sweep: Path) -> list[str]:
    return [problem.message for problem in collect([sweep]).problems]


def rewrite(path: Path, change: Any) -> None:
    """Apply ``change`` to every row of a JSONL file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def structure(value: Any) -> Any:
    """The keys of nested mappings."""
    if isinstance(value, dict):
        return {key: structure(inner) for key, inner in value.items()}
    return [structure(value[0])] if isinstance(value, list) and value else None


def test_a_row_per_image_point_and_method(finished_sweep: Path):
    frame = table(collect([finished_sweep]))
    assert len(frame) == 2 * 3 * 2
    assert len(points(finished_sweep)) == 2
    for folder in points(finished_sweep):
        config = OmegaConf.load(folder / "config.yaml")
        identity = json.loads((folder / "run.json").read_text())["identity"]
        for row in [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]:
            for outcome, section in ((row, config.method), (row["baseline"], config.baseline)):
                found = frame.filter(point=folder.name, image=row["image"], method=outcome["method"]).to_dicts()
                (entry,) = found
                assert {name: entry[name] for name in outcome["metrics"]} == outcome["metrics"]
                assert entry["task.fraction"] == config.task.fraction
                assert entry["method.radius"] == section.radius
                assert entry["method.steps"] == json.dumps(list(section.steps))
                assert [entry[name] for name in ("seconds", "evaluations", "data_fit")] == [
                    outcome[name] for name in ("seconds", "evaluations", "data_fit")
                ]
                kept = {"radius": None, **outcome["kept"]}
                assert {name: entry[f"kept.{name}"] for name in ("layer", "step", "radius")} == kept
                assert (entry["seed"], entry["digest"], entry["identity"]) == (row["seed"], row["digest"], identity)
                assert json.loads(entry["protocol"]) == row["protocols"]
                assert entry["commit"] == row["commit"] and entry["version"] == row["versions"]["ilo_lightning"]
                assert (folder / entry["folder"] / "reconstruction.png").is_file()
                assert entry["stages.0.psnr"] == outcome["stages"][0]["psnr"]


def test_what_was_held_out_is_a_column(made_up: Path):
    """Of the method that chose by it; the baseline beside it held nothing out."""
    path = next(made_up.glob("*/results.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    selection = {"how": "stacking", "radii": [0.1, 1], "weights": [0.5, 0.5], "steps": [3, 2], "layer": 4}
    rows[0]["selection"] = {**selection, "held_out_residual": 0.25}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame = table(collect([made_up]))
    found = frame.filter(point=path.parent.name, image=rows[0]["image"])
    assert dict(zip(found["role"], found["held_out_residual"], strict=True)) == {"method": 0.25, "baseline": None}
    assert frame["held_out_residual"].drop_nulls().to_list() == [0.25]


def test_made_up_sweeps_are_like_real_ones(finished_sweep: Path, made_up: Path):
    real, invented = raw_rows(finished_sweep)[0], raw_rows(made_up)[0]
    for row in (real, invented):
        row["stages"], row["baseline"]["stages"] = row["stages"][:1], row["baseline"]["stages"][:1]
    assert structure(invented) == structure(real)
    configs = [
        OmegaConf.to_container(OmegaConf.load(points(sweep)[0] / "config.yaml")) for sweep in (finished_sweep, made_up)
    ]
    assert structure(configs[1]) == structure(configs[0])
    records = [json.loads((points(sweep)[0] / "run.json").read_text()) for sweep in (finished_sweep, made_up)]
    assert set(records[1]) == set(records[0]) and set(records[1]["parts"]) <= set(records[0]["parts"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_command_writes_a_table_without_torch(suffix: str, made_up: Path, tmp_path: Path):
    output = tmp_path / f"results{suffix}"
    code = (
        "import sys; from ilo_lightning.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*({'torch', 'pytorch_lightning', 'hydra'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = ["collect", str(made_up), "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert "8 points: 8 done" in done.stdout and str(output) in done.stdout
    expected = table(collect([made_up]))
    if suffix == ".parquet":
        written = pl.read_parquet(output)
        assert written.schema == expected.schema
    else:
        written = pl.read_csv(output, schema_overrides={"image": pl.String})  # which are called 0000 …
    assert written.columns == expected.columns
    assert_frame_equal(key_values(written), key_values(expected), check_dtypes=False)


def test_only_what_varies_is_a_column_unless_asked(made_up: Path):
    few, all_of_them = table(collect([made_up])), table(collect([made_up]), all_settings=True)
    assert "data.path" not in few.columns and "method.layers" not in few.columns
    assert set(all_of_them["data.path"]) == {"pictures"}
    assert set(few.columns) < set(all_of_them.columns)
    config = OmegaConf.to_container(OmegaConf.load(made_up / "0" / "config.yaml"))
    assert isinstance(config, dict)
    for section in ("task", "method", "generator", "data"):
        assert {f"{section}.{key}" for key, value in config[section].items() if not isinstance(value, dict)} <= set(
            all_of_them.columns
        )


def test_a_setting_that_always_equals_another_is_one_column(made_up: Path):
    """method.radii.rgb is ${method.radius}, task.operator.fraction is ${task.fraction}."""
    columns = table(collect([made_up])).columns
    assert {"task.fraction", "method.radius"} <= set(columns)
    assert not {"method.radii.rgb", "task.operator.fraction"} & set(columns)


def test_a_partial_sweep_gives_the_part_that_is_there(made_up: Path):
    whole = key_values(table(collect([made_up])))
    (made_up / "0" / "results.jsonl").unlink()  # broken off: one of its batches is there
    rows = (made_up / "0" / "batches" / "0000.jsonl").read_text().splitlines(keepends=True)
    (made_up / "0" / "batches" / "0000.jsonl").write_text("".join(rows[:2]))
    shutil.rmtree(made_up / "1" / "batches")  # begun: only its configuration is there
    (made_up / "1" / "results.jsonl").unlink()
    shutil.rmtree(made_up / "2")
    collection = collect([made_up])
    states = {point.name: point.state for point in collection.points}
    assert states == {"0": "unfinished", "1": "missing", **{str(i): "done" for i in range(3, 8)}}
    frame = table(collection)
    part = key_values(frame)
    assert len(part) == len(whole) - 2 - 2 * 3 - 2 * 3
    assert part.join(whole, on=part.columns, how="anti", nulls_equal=True).is_empty()
    begun = frame.filter(point="1")
    assert begun["image"].to_list() == [None, None] and begun["method"].to_list() == ["ilo", "csgm"]
    assert begun["task.fraction"].to_list() == [0.05, 0.05]
    assert collection.problems == []


def test_a_batch_that_was_finished_later_replaces_its_failure(real_sweep: Path):
    """results.jsonl is written at the end of a call; the next call may be killed after it has redone a batch."""
    expected = key_values(table(collect([real_sweep])))
    results = points(real_sweep)[0] / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows[0] = {"index": 0, "image": "face0", "error": "broken off"}
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_frame_equal(key_values(table(collect([real_sweep]))), expected)
    shutil.rmtree(results.parent / "batches")
    errors = table(collect([real_sweep])).filter(pl.col("error").is_not_null())
    assert errors["method"].to_list() == ["ilo", "csgm"] and set(errors["image"]) == {"face0"}


def test_what_a_point_has_of_a_batch_that_was_broken_off(real_sweep: Path):
    """It counts as in results.jsonl, until the batch is finished."""
    expected = key_values(table(collect([real_sweep])))
    point = points(real_sweep)[0]
    (point / "results.jsonl").unlink()
    rows = (point / "batches" / "0001.jsonl").read_text().splitlines()
    row = json.loads(rows[0]) | {"fault": "broken off: out of memory"}
    (point / "batches" / "0001-fault.jsonl").write_text(json.dumps(row) + "\n")
    assert_frame_equal(key_values(table(collect([real_sweep]))), expected)
    (point / "batches" / "0001.jsonl").unlink()
    collection = collect([real_sweep])
    frame = table(collection)
    assert frame.filter(point=point.name, image=row["image"])["fault"].to_list() == ["broken off: out of memory"] * 2
    assert [entry.state for entry in collection.points] == ["unfinished", "done"]


def test_shards_that_share_a_folder(made_up: Path):
    """As `data.shard` leaves them: one of the two is done."""
    (made_up / "0" / "results.jsonl").unlink()
    status = {"state": "done", "shard": "1/2"}
    (made_up / "0" / "status-1-of-2.json").write_text(json.dumps(status))
    collection = collect([made_up])
    assert collection.points[0].state == "unfinished" and collection.problems == []
    assert len(table(collection).filter(point="0")) == 3 * 2


def test_a_point_whose_process_was_killed(made_up: Path):
    (made_up / "0" / "results.jsonl").unlink()
    (made_up / "0" / "status.json").write_text(json.dumps({"state": "running", "host": "node7"}))
    collection = collect([made_up])
    assert collection.points[0].state == "unfinished"
    (problem,) = collection.problems
    assert not problem.lost and f"{made_up}/0: its process on node7 was killed" in problem.message


def test_shards_in_folders_of_their_own_are_one_point(tmp_path: Path, capsys: pytest.CaptureFixture):
    """As `data.shard` leaves them with a `hydra.run.dir` for each; whoever has one twice counts it once."""
    (whole,) = Sweep(fractions=[0.1], radii=[0.1], images=6, batch_size=2).write(tmp_path / "whole")
    expected = key_values(table(collect([whole])))
    for shard in (1, 2):
        folder = tmp_path / "shards" / f"s{shard}"
        shutil.copytree(whole, folder)
        (folder / "results.jsonl").unlink()
        for path in (folder / "batches").iterdir():
            if int(path.stem) % 2 != shard - 1:
                path.unlink()
        (folder / f"status-{shard}-of-2.json").write_text(json.dumps({"state": "done", "shard": f"{shard}/2"}))
    both = collect([tmp_path / "shards"])
    assert_frame_equal(key_values(table(both)), expected)
    assert [point.state for point in both.points] == ["unfinished"] * 2 and both.problems == []
    shutil.copytree(tmp_path / "shards" / "s1", tmp_path / "shards" / "again")
    assert_frame_equal(key_values(table(collect([tmp_path / "shards"]))), expected)
    assert command.collect([str(tmp_path / "shards")]) == 3
    told = capsys.readouterr()
    assert "repeats 8 results of" in told.err and "counted once" in told.err
    assert told.out.startswith("1 point: 1 unfinished")
    # A whole run beside its shards repeats both.
    assert_frame_equal(key_values(table(collect([tmp_path / "shards", whole]))), expected)


def test_of_two_repetitions_the_better_counts(tmp_path: Path):
    (point,) = Sweep(fractions=[0.1], radii=[0.1]).write(tmp_path / "sweep")
    expected = key_values(table(collect([tmp_path / "sweep"])))
    shutil.copytree(point, tmp_path / "sweep" / "00")
    (tmp_path / "sweep" / "00" / "results.jsonl").write_text(
        "".join(json.dumps({"index": i, "image": f"{i:04d}", "error": "out of memory"}) + "\n" for i in range(3))
    )
    shutil.rmtree(tmp_path / "sweep" / "00" / "batches")
    frame = table(collect([tmp_path / "sweep"]))
    assert_frame_equal(key_values(frame), expected)
    assert frame["error"].null_count() == len(frame)


def test_two_code_versions_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture):
    Sweep(fractions=[0.1], radii=[0.1]).write(tmp_path / "sweep" / "old")
    Sweep(fractions=[0.1], radii=[0.1], version="0.2.0", commit="f" * 40 + "-dirty").write(tmp_path / "sweep" / "new")
    assert command.collect([str(tmp_path / "sweep"), "--output", str(tmp_path / "t.csv")]) == 0
    note = capsys.readouterr().err
    assert "2 code versions: 0.1.0@0123456789 (6 rows, 1 point), 0.2.0@ffffffffff-dirty (6 rows, 1 point)" in note
    assert pl.read_csv(tmp_path / "t.csv")["code"].n_unique() == 2
    summary = summarise(collect([tmp_path / "sweep"]))
    assert "code" in summary.solver_keys and len(summary.groups) == 4
    assert {group.images for group in summary.groups} == {3}


def test_two_protocols_are_told_apart(made_up: Path):
    changed = lambda row: row["protocols"].update(psnr="on the luma channel")  # noqa: E731
    rewrite(made_up / "0" / "results.jsonl", changed)
    assert any("2 protocols" in message for message in messages(made_up))
    summary = summarise(collect([made_up]))
    assert "protocol" in summary.solver_keys
    assert "on the luma channel" in summary.protocols["psnr"]


@pytest.mark.parametrize(
    "line",
    ["{", '{"index": 1}', "[]", '{"index": "a", "error": "x"}', '{"index": 1, "metrics": {"psnr": "high"}}', "\x00"],
)
def test_a_damaged_line_is_named_and_the_rest_is_read(line: str, made_up: Path, capsys: pytest.CaptureFixture):
    whole = table(collect([made_up]))
    shutil.rmtree(made_up / "0" / "batches")
    path = made_up / "0" / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2], ""]))
    assert command.collect([str(made_up)]) == 3
    warning = capsys.readouterr().err
    assert f"{path}: line 2 is damaged; the other 2 are read" in warning and "Traceback" not in warning
    assert len(pl.read_parquet(made_up / "collected.parquet")) == len(whole) - 2
    states = {point.name: point.state for point in collect([made_up]).points}
    assert states["0"] == "unfinished" and states["1"] == "done"


def test_a_damaged_line_is_made_up_for_by_its_batch(made_up: Path):
    whole = key_values(table(collect([made_up])))
    path = made_up / "0" / "results.jsonl"
    path.write_text(path.read_text()[:-200])
    assert_frame_equal(key_values(table(collect([made_up]))), whole)
    assert any("is damaged" in message for message in messages(made_up))


def test_no_row_whatever_its_values_stops_the_others(made_up: Path):
    """Every field of a row replaced by everything that JSON has."""
    path = made_up / "0" / "results.jsonl"
    shutil.rmtree(made_up / "0" / "batches")
    rest = {"optimised": ["stlpips_alex"], "selection": {"how": "stacking", "held_out_residual": 0.25}}
    good = [{**json.loads(line), **rest} for line in path.read_text().splitlines()]
    junk = [None, True, -1, 1.5, float("nan"), "text", [], [1], {}, {"a": 1}]
    places = [(name,) for name in good[0]] + [
        (outer, inner) for outer, value in good[0].items() if isinstance(value, dict) for inner in value
    ]
    for place in places:
        for value in junk:
            row = copy.deepcopy(good[1])
            target = row
            for name in place[:-1]:
                target = target[name]
            target[place[-1]] = value
            path.write_text("".join(json.dumps(entry) + "\n" for entry in (good[0], row, good[2])))
            collection = collect([made_up / "0"])
            rows = table(collection).filter(pl.col("point") == "0", pl.col("image").is_in(["0000", "0002"]))
            assert len(rows) == 4, (place, value)
            summarise(collection)


def test_a_seed_may_be_any_whole_number(made_up: Path):
    rewrite(made_up / "0" / "results.jsonl", lambda row: row.update(seed=10**30))
    config = OmegaConf.load(made_up / "0" / "config.yaml")
    config.seed = config.task.seed = 10**30
    OmegaConf.save(config, made_up / "0" / "config.yaml")
    frame = table(collect([made_up]))
    assert frame["psnr"].null_count() == 0 and str(10**30) in frame["task.seed"].to_list()


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb:\n- 1\n- 2\nc:\n  d: {e: 1}\n# a remark\nf: 'x\n\n  y'\n",
        "a: &x {b: 1}\nc: *x\n",
        "# only a remark\n",
        "",
        "a: |\n  text\n\n  more\nb: >-\n  folded\n  text\n",
        "---\na: 1\n",
        "? a\n: 1\n",
        "'quoted key': 1\n\"other\": 2\n",
        "a: 1\na: 2\n",
        "- 1\n- 2\n",
        "just text",
        "a:\n  b: [1,\n    2]\nc: null\n",
    ],
)
def test_a_configuration_is_what_yaml_says(text: str):
    expected = yaml.safe_load(text)
    assert _parse_yaml(text) == (expected if expected is not None else {})


def test_half_deleted_points(made_up: Path):
    whole = table(collect([made_up]))
    (made_up / "0" / "config.yaml").unlink()
    (made_up / "1" / "run.json").unlink()
    (made_up / "2" / "config.yaml").unlink()
    (made_up / "2" / "run.json").unlink()
    (made_up / "3" / "config.yaml").write_text("task: {name: [")
    collection = collect([made_up])
    frame = table(collection)
    kept, lost = pl.col("point") != "2", pl.col("point") == "2"
    assert_frame_equal(key_values(frame.filter(kept)), key_values(whole.filter(kept)))
    without_settings = ("seed", "method", "image", "psnr")
    assert_frame_equal(
        key_values(frame.filter(lost), *without_settings), key_values(whole.filter(lost), *without_settings)
    )
    # What run.json doesn't tell makes no difference.
    assert "data.path" not in frame.columns
    shutil.rmtree(made_up / "2")
    assert summarise(collect([made_up])).keys == ("task", "task.fraction", "method", "method.radius")
    found = [problem.message.removeprefix(f"{made_up}/") for problem in collection.problems]
    assert [message[0] for message in found if "config.yaml is gone" in message] == ["0"]
    assert [message[0] for message in found if message.endswith("can't be told")] == ["1", "2"]
    assert any(message.startswith("2: config.yaml and run.json are gone") for message in found)
    assert any(message.startswith("3/config.yaml: is damaged") for message in found)


def test_what_a_point_says_of_itself(made_up: Path):
    def status(number: int, name: str = "status.json", **values: Any) -> None:
        (made_up / str(number) / name).write_text(json.dumps(values))

    for number in (2, 3, 4, 5):
        (made_up / str(number) / "results.jsonl").unlink()
        shutil.rmtree(made_up / str(number) / "batches")
    status(0, state="done")
    status(1, state="running")  # it was killed after its last file
    status(2, state="running")
    Lease(made_up / "2" / ".lease").acquire()
    status(3, state="failed", error="CUDA out of memory")
    status(4, state="done")
    status(5, "status-1-of-2.json", state="done")
    status(5, "status-2-of-2.json", state="failed", error="bad node")
    (made_up / "6" / "status.json").write_text("{")
    (made_up / "7" / "status-of-mine.json").write_text("[]")
    (made_up / "plan-12345678.json").write_text(
        json.dumps({"points": [{"folder": name, "overrides": []} for name in ("8", "0", "../x", "/nowhere")]})
    )
    (made_up / "plan-damaged.json").write_text('{"points": [1]}')
    collection = collect([made_up])
    states = [point.state for point in collection.points]
    assert states == ["done", "done", "running", "failed", "missing", "failed", "done", "done", "missing"]
    assert [point.error for point in collection.points if point.error] == ["CUDA out of memory", "bad node"]
    found = [problem.message for problem in collection.problems]
    assert any("4: status.json says done, but 0 of 3 images have results" in message for message in found)
    assert any("6/status.json: is damaged" in message for message in found)
    assert len(found) == 2
    names = [point.name for point in collect([made_up.parent]).points]
    assert f"{made_up.name}/8" in names and len(names) == 9


def test_a_point_whose_images_all_failed_has_failed(made_up: Path):
    lines = [json.dumps({"index": i, "error": f"can't read {i}"}) for i in range(3)]
    (made_up / "0" / "results.jsonl").write_text("\n".join(lines))
    shutil.rmtree(made_up / "0" / "batches")
    record = json.loads((made_up / "0" / "run.json").read_text())
    record["parts"]["images"] = []
    (made_up / "0" / "run.json").write_text(json.dumps(record))
    point = collect([made_up]).points[0]
    assert (point.state, point.error) == ("failed", "can't read 0")


def judged(row: dict[str, Any]) -> None:
    """As by a network that one method minimised, and the baseline didn't."""
    row["protocols"]["lpips_alex"], row["optimised"] = "LPIPS", ["lpips_alex"]
    row["metrics"]["lpips_alex"], row["baseline"]["metrics"]["lpips_alex"] = 0.1, 0.2


def test_results_without_a_metric_that_others_have(made_up: Path):
    """They were computed by the same protocols as far as they go; what wasn't computed is not called infinite."""
    rewrite(made_up / "0" / "results.jsonl", judged)
    collection = collect([made_up])
    assert collection.problems == [] and "lpips_alex" in collection.metrics
    assert "protocol" not in summarise(collection).solver_keys
    rows = table(collection).filter(table(collection)["optimised"].is_not_null())
    assert set(rows["method"]) == {"ilo"} and set(rows["lpips_alex"]) == {0.1}


def test_scores_that_were_added_later(made_up: Path):
    scores = []
    for row in [json.loads(line) for line in (made_up / "0" / "results.jsonl").read_text().splitlines()]:
        for outcome in (row, row["baseline"]):
            score = {name: outcome[name] for name in ("method", "metrics")}
            scores.append({"image": row["image"], "protocols": row["protocols"], **score})
    whole = key_values(table(collect([made_up])))

    def forget(row: dict[str, Any]) -> None:
        row["metrics"], row["protocols"], row["baseline"]["metrics"] = {}, {}, {}

    rewrite(made_up / "0" / "results.jsonl", forget)
    assert key_values(table(collect([made_up])))["psnr"].null_count() == 6
    (made_up / "0" / "scores.jsonl").write_text("".join(json.dumps(score) + "\n" for score in scores))
    assert_frame_equal(key_values(table(collect([made_up]))), whole)


def test_numbers_that_are_not_finite_are_in_no_mean(made_up: Path):
    def diverge(row: dict[str, Any]) -> None:
        if row["index"] == 0:
            row["metrics"]["psnr"], row["metrics"]["mse"] = None, float("nan")

    rewrite(made_up / "0" / "results.jsonl", diverge)
    collection = collect([made_up])
    found = [problem.message for problem in collection.problems]
    assert found == [
        f"{name}: 1 results have none that is finite; they are in no mean of it" for name in ("mse", "psnr")
    ]
    assert table(collection)["mse"].is_nan().sum() == 0


def test_folders_are_read_in_any_order_and_once(made_up: Path, tmp_path: Path):
    shutil.move(made_up / "3", tmp_path / "elsewhere" / "deep" / "3")
    one, other = [made_up, tmp_path / "elsewhere"], [tmp_path / "elsewhere", made_up, made_up / "0"]
    assert_frame_equal(key_values(table(collect(one))), key_values(table(collect(other))))
    assert collect(other).problems == []
    (made_up / "latest").symlink_to(made_up / "7")
    assert len(collect([made_up]).points) == 7
    names = [point.name for point in collect([made_up]).points]
    assert names == ["0", "1", "2", "4", "5", "6", "7"]
    assert [point.name for point in collect([made_up / "0"]).points] == ["0"]


def test_points_are_in_the_order_of_their_numbers(tmp_path: Path):
    Sweep(seeds=range(3)).write(tmp_path)
    assert [point.name for point in collect([tmp_path]).points] == [str(i) for i in range(12)]


@pytest.mark.parametrize("program", [command.collect, command.report])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: f / "nowhere", "no such directory"),
        (lambda f: f, "holds no results"),
        (lambda f: (f / "file", (f / "file").write_text("x"))[0], "not a directory"),
        (lambda f: ((f / "config.yaml").write_text("colour: red"), f)[1], "holds no results"),
    ],
    ids=["nowhere", "empty", "a file", "another program's"],
)
def test_what_is_no_sweep_is_refused_in_one_line(
    make: Any, words: str, program: Any, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert program([str(make(tmp_path))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not list(tmp_path.rglob("collected.parquet")) and not list(tmp_path.rglob("index.html"))


def test_an_output_that_can_not_be_written_is_refused(made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("x")
    for output, words in (
        (tmp_path / "t.xlsx", "ends in .parquet or .csv"),
        (tmp_path / "file" / "t.csv", "can't be written"),
    ):
        assert command.collect([str(made_up), "--output", str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and str(output) in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_can_not_be_listed_is_named(made_up: Path):
    (made_up / "0").chmod(0)
    try:
        assert any("can't be listed" in message for message in messages(made_up))
    finally:
        (made_up / "0").chmod(0o755)
