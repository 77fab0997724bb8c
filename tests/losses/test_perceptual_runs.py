"""Whole runs whose methods minimise perceptual distances, and whose results are judged by others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ilo_lightning import metrics, scoring
from ilo_lightning.building import judges_of
from ilo_lightning.generators.checkpoints import load_generator
from ilo_lightning.losses import NETS, PerceptualError, PerceptualNet
from ilo_lightning.main import main, measure
from ilo_lightning.method_config import method_from_config
from ilo_lightning.report import command
from ilo_lightning.solution import Solution
from tests.test_run import rows_of

pytest.importorskip("stlpips_pytorch", reason="needs the extra stlpips")

METHOD = ["method.layers=[0,1]", "method.steps=[3,3]", "method.lr=[0.1,0.05]", "trainer=cpu"]
LOSS = ["perceptual=stlpips_alex", "method.data_fit={mse: 0.1, perceptual: 1, dead_zone: 0.5}"]
JUDGES = ["metrics.perceptual=[stlpips_vgg,stlpips_alex]"]
BASELINE = ["method@baseline=csgm", "baseline.steps=[6]"]


def test_one_network_is_the_loss_and_another_the_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On the embedded generator and the bundled photograph: rows and tables mark the one that was optimised."""
    assert main([*METHOD, *LOSS, *JUDGES, *BASELINE, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    shown = capsys.readouterr().out
    assert "‡: by the network that the method itself minimised" in shown and "ST-LPIPS (VGG16), trunk" in shown
    (row,) = rows_of(tmp_path / "run")
    assert row["optimised"] == ["stlpips_alex"] and "optimised" not in row["baseline"]
    assert {"psnr", "ssim", "mse", "residual", "stlpips_vgg", "stlpips_alex"} == set(row["metrics"])
    assert set(row["protocols"]) == set(row["metrics"])
    folder, generator = tmp_path / "run" / row["folder"], load_generator(EMBEDDED)
    truth = torch.from_numpy(np.array(Image.open(folder / "truth.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    for suffix, outcome in (("", row), ("-csgm", row["baseline"])):
        solution = Solution.load(folder / f"solution{suffix}.safetensors")
        decoded = solution.decode(generator)[None]
        for name in ("stlpips_vgg", "stlpips_alex"):
            expected = float(PerceptualNet.open(name)(decoded.clamp(-1, 1), truth))
            assert outcome["metrics"][name] == pytest.approx(expected, rel=1e-4)
        # The best iterate is the best by the weighted sum: what is told as data fit is at most what it ended with.
        assert outcome["data_fit"] <= float(solution.history[-1])
    assert row["baseline"]["metrics"]["residual"] == pytest.approx(row["baseline"]["data_fit"] ** 0.5, rel=1e-4)

    assert command.report([str(tmp_path / "run"), "-o", str(tmp_path / "report")]) == 0
    table = (tmp_path / "report" / "tables.md").read_text()
    assert "ST-LPIPS (AlexNet) ↓" in table and "residual |" in table and "‡: by the network" in table
    (marked,) = [line for line in table.splitlines() if "‡ |" in line]
    assert marked.startswith("| ilo ") and marked.count("‡") == 1
    assert command.collect([str(tmp_path / "run"), "-o", str(tmp_path / "all.csv")]) == 0
    assert "stlpips_vgg" in (tmp_path / "all.csv").read_text().splitlines()[0]


def test_auto_is_what_is_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    shape = (3, 64, 64)
    config = OmegaConf.create({"metrics": {"perceptual": "auto", "size": None}})
    assert [net.name for net in judges_of(config, shape)] == ["stlpips_alex"]
    assert judges_of(config, (3, 16, 16)) == [], "too small"
    resized = OmegaConf.create({"metrics": {"perceptual": "auto", "size": 64}})
    assert [net.name for net in judges_of(resized, (3, 16, 16))] == ["stlpips_alex"]
    for size in (10, 16):  # given, and too small
        tiny = OmegaConf.create({"metrics": {"perceptual": "auto", "size": size}})
        with pytest.raises(PerceptualError, match=rf"^metrics\.size={size}: stlpips_alex needs pictures of at least"):
            judges_of(tiny, shape)
    for loss, judges in (("stlpips_alex", ["stlpips_vgg", "stlpips_alex"]), ("stlpips_vgg", ["stlpips_alex"])):
        given = OmegaConf.merge(config, {"perceptual": {"name": loss}})
        assert [net.name for net in judges_of(given, shape)] == judges
    for size in (5000, 0, "banana"):
        wrong = OmegaConf.create({"metrics": {"perceptual": "auto", "size": size}})
        with pytest.raises(PerceptualError, match=rf"^metrics\.size={size}: expected null or a number"):
            judges_of(wrong, shape)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert judges_of(config, shape) == [] and capsys.readouterr().err == ""


@pytest.mark.slow
def test_measured_first_and_scored_later(tmp_path: Path):
    """`ilo score` takes the networks from the run's configuration, and says which was optimised."""
    assert measure([f"hydra.run.dir={tmp_path / 'y'}"]) == 0
    given = ["data.mode=measured", f"data.path={tmp_path / 'y'}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main([*METHOD, *LOSS, *JUDGES, *given]) == 0
    (row,) = rows_of(tmp_path / "run")
    assert set(row["metrics"]) == {"residual"}
    truth = ["--truth", "pkg://ilo_lightning.data/astronaut.png"]
    assert scoring.main([str(tmp_path / "run"), *truth]) == 0
    (score,) = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert score["optimised"] == ["stlpips_alex"] and {"psnr", "stlpips_vgg", "stlpips_alex"} <= set(score["metrics"])
    assert command.collect([str(tmp_path / "run"), "-o", str(tmp_path / "all.csv")]) == 0
    (values,) = csv.DictReader((tmp_path / "all.csv").read_text().splitlines())
    assert float(values["stlpips_vgg"]) == pytest.approx(score["metrics"]["stlpips_vgg"])
    assert float(values["residual"]) == pytest.approx(row["metrics"]["residual"])


@pytest.mark.slow
def test_a_trunk_of_one_s_own_by_its_path(tmp_path: Path):
    """Random weights will do; what counts in a run's identity is what the file holds, not where it lies."""
    torch.manual_seed(0)
    for name in ("a.pth", "b.pth"):
        torch.save(NETS["lpips_alex"].build().state_dict(), tmp_path / name)
    (tmp_path / "c.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    loss = [
        "perceptual=lpips_alex",
        "method.data_fit.perceptual=1",
        "perceptual.masked=mask",
        "perceptual.kind=features",
    ]
    codes = []
    for name in ("a.pth", "c.pth", "b.pth"):
        where = [f"perceptual.trunk={tmp_path / name}", f"hydra.run.dir={tmp_path / 'run'}"]
        codes.append(main([*METHOD, *loss, *where, "metrics.perceptual=[lpips_alex,stlpips_alex]"]))
    assert codes == [0, 0, 2]  # the second has nothing left to do; the third would be another run


def test_a_batch_gives_what_each_image_alone_gives():
    """In float64, over a whole schedule, with all three terms and a hole."""
    from ilo_lightning.losses import DeadZone, PerceptualFit, WeightedFit, mean_squared_error
    from ilo_lightning.operators import GaussianNoise, Inpainting
    from ilo_lightning.operators import measure as observe
    from ilo_lightning.solve import solve
    from tests.networks import rngs, small_stylegan2

    generator = small_stylegan2(32)
    truth = generator(generator.sample(rngs(1, 2, 3), "z"))
    operator = Inpainting(generator.image_shape)
    measurement = observe(operator, GaussianNoise(0.05), truth, rngs(0, 1, 2))
    method = method_from_config(name="m", layers=[0, 1], steps=[4, 4], lr=0.05, free=["latent", "activation"])
    terms = {
        "mse": mean_squared_error,
        "dead_zone": DeadZone(0.1),
        "perceptual": PerceptualFit(PerceptualNet.open("stlpips_alex")),
    }
    fit = WeightedFit(terms, {"mse": 0.5, "dead_zone": 1.0, "perceptual": 1.0})
    keys = ["a", "b", "c"]
    together = solve(generator, operator, measurement, method, keys, data_fit=fit).solutions
    for i, solution in enumerate(together):
        (alone,) = solve(generator, operator, measurement.select([i]), method, [keys[i]], data_fit=fit).solutions
        torch.testing.assert_close(solution.history, alone.history, rtol=1e-8, atol=0)
        for name, tensor in solution.point.tensors.items():
            torch.testing.assert_close(tensor, alone.point.tensors[name], rtol=1e-8, atol=1e-10)


def test_residual_is_what_the_observed_entries_disagree_by():
    from ilo_lightning.operators import Measurement

    y, weight = torch.zeros(2, 1, 4, 4), torch.ones(1, 1, 4, 4)
    weight[..., :2] = 0
    prediction = torch.full((2, 1, 4, 4), 0.5)
    prediction[..., :2] = 7
    prediction[1] /= 2
    assert metrics.residual(prediction, Measurement(y, weight)).tolist() == [0.5, 0.25]


EMBEDDED = "pkg://ilo_lightning.generators/weights/faces64.safetensors"
