"""Checkpoints of every layout: recognised by content, computed as their authors do, pinned, refused in words."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ilo_lightning import load_generator
from ilo_lightning.generators import statistics
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.checkpoints import CheckpointError, save_generator, sha256
from ilo_lightning.generators.stylegan2 import StyleGAN2
from tests.networks import rngs, small_stylegan2
from tests.nvidia_pickles import PersistentObject, container, dump, network
from tests.stylegan2_fixtures import FOLDER, NAMES, Fixture, load_fixture

SMALL = ("rosinality_16", "nvidia_32", "nvidia_resnet_cond_32")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch):
    """What the statistics are fitted on matters in one test only."""
    monkeypatch.setattr(statistics, "SAMPLES", 2000)


def write(fixture: Fixture, path: Path, protocol: int = 4) -> Path:
    """The fixture's network as its authors would publish it."""
    state, record = fixture.state(), fixture.record
    if fixture.layout == "rosinality":
        torch.save({"g": {}, "g_ema": state, "latent_avg": torch.full([record["style_dim"]], 0.5)}, path)
    else:
        generator = network(state, record.get("conv_clamp"), num_fp16_res=record.get("num_fp16_res", 0))
        path.write_bytes(dump(container(generator), protocol))
    return path


def label_of(fixture: Fixture) -> int | None:
    return int(fixture.arrays["labels"][0].argmax()) if "labels" in fixture.arrays else None


def check_parity(generator: StyleGAN2, fixture: Fixture) -> None:
    """From z: mapping, label, constant noise or the fixture's, clamp, synthesis."""
    arrays = fixture.arrays
    noise = {name: tensor[:1] for name, tensor in fixture.noise().items()} or generator.constant_noise()
    image = generator(LatentPoint(0, {"latent": arrays["z"][:1, None], **noise}, "z"))
    assert (image - arrays["image_z"][:1]).abs().max() < 1e-4 * arrays["image_z"].std()


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_computes_what_its_authors_compute(name: str, tmp_path: Path):
    fixture = load_fixture(name)
    path = write(fixture, tmp_path / "a name without meaning")
    generator = load_generator(path, label=label_of(fixture))
    check_parity(generator, fixture)
    assert not any(module.training for module in generator.modules())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert generator.provenance["sha256"] == sha256(path)
    mean = fixture.state()["mapping.w_avg"] if fixture.layout == "nvidia" else torch.full([generator.style_dim], 0.5)
    assert torch.equal(generator.w_mean, mean)  # the authors' own, not ours


@pytest.mark.parametrize(
    ("name", "architecture", "clamp"), [("nvidia_32", "skip", None), ("nvidia_resnet_cond_32", "resnet", 2)]
)
def test_the_authors_own_pickles(name: str, architecture: str, clamp: float | None):
    """Written by NVIDIA's code, with its embedded source removed."""
    fixture = load_fixture(name)
    generator = load_generator(FOLDER / f"{name}.pkl", label=label_of(fixture))
    assert generator.config["architecture"] == architecture
    assert clamp is None or generator.config["conv_clamp"] == clamp
    check_parity(generator, fixture)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "parallel": lambda state: {"g_ema": prefixed(state, "module.")},
    "only g": lambda state: {"g": state, "d": {"final_conv.0.weight": torch.ones(2)}, "args": argparse.Namespace(x=1)},
    "both": lambda state: {"g": {name: tensor + 1 for name, tensor in state.items()}, "g_ema": state},
    "decoder": lambda state: {"state_dict": {**prefixed(state, "decoder."), "encoder.weight": torch.ones(2)}},
    "two inside one": lambda state: {
        **{f"net.g.{name}": tensor + 1 for name, tensor in state.items()},
        **prefixed(state, "net.g_ema."),
    },
    "without noise buffers": lambda state: {n: t for n, t in state.items() if not n.startswith("noises.")},
    "a tuple": lambda state: ({"weight": torch.ones(2)}, state),
}


@pytest.mark.few(6)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_wherever_it_is(wrapping: str, zipped: bool, tmp_path: Path, capsys):
    fixture = load_fixture("rosinality_16")
    path = tmp_path / "x.pt"
    torch.save(WRAPPINGS[wrapping](fixture.state()), path, _use_new_zipfile_serialization=zipped)
    generator = load_generator(path)
    check_parity(generator, fixture)
    assert bool(generator.constant_noise()) == (wrapping != "without noise buffers")
    assert ("it has no g_ema or G_ema; took g" in capsys.readouterr().err) == (wrapping == "only g")


def test_a_pickle_of_one_network_alone(tmp_path: Path):
    fixture = load_fixture("nvidia_32")
    (tmp_path / "g.pkl").write_bytes(dump(network(fixture.state()), protocol=2))
    check_parity(load_generator(tmp_path / "g.pkl"), fixture)


def test_a_bare_state_dict_of_nvidia_s(tmp_path: Path, capsys):
    fixture = load_fixture("nvidia_32")
    torch.save(fixture.state(), tmp_path / "g.pt")
    check_parity(load_generator(tmp_path / "g.pt"), fixture)
    assert "doesn't say whether activations are clamped" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_with_a_note(dtype: torch.dtype, tmp_path: Path, capsys):
    state = {name: tensor.to(dtype) for name, tensor in load_fixture("rosinality_16").state().items()}
    torch.save({"g_ema": state}, tmp_path / "half.pt")
    torch.save({"g_ema": {name: tensor.float() for name, tensor in state.items()}}, tmp_path / "float.pt")
    generator, reference = load_generator(tmp_path / "half.pt"), load_generator(tmp_path / "float.pt")
    point = reference.sample(rngs(1), "z")
    assert generator.dtype == torch.float32 and torch.equal(generator(point), reference(point))
    notes = capsys.readouterr().err
    assert f"its weights in {str(dtype).removeprefix('torch.')} are computed with in float32" in notes


def test_what_tensors_cannot_tell_comes_from_the_record(tmp_path: Path):
    fixture = load_fixture("nvidia_32")
    state = fixture.state()

    def loaded(**options: Any) -> StyleGAN2:
        (tmp_path / "g.pkl").write_bytes(dump(container(network(state, **options))))
        return load_generator(tmp_path / "g.pkl")

    plain = loaded()
    assert (plain.config["conv_clamp"], plain.config["mapping_lr_multiplier"]) == (None, 0.01)
    clamped = loaded(conv_clamp=0.5)
    point = clamped.sample(rngs(1), "w")
    deep = clamped.advance(point, 2)
    assert float(deep["activation"].abs().max()) == 0.5
    mapped = loaded(lr_multiplier=0.02).mapping(point["latent"])
    torch.testing.assert_close(mapped, _mapping(state, point["latent"], 0.02), rtol=1e-5, atol=1e-5)
    quiet = loaded(use_noise=False)
    assert quiet.num_noise_maps == 0 and set(quiet.sample(rngs(1)).tensors) == {"latent"}
    noiseless = {name: tensor for name, tensor in state.items() if "noise" not in name}
    (tmp_path / "g.pkl").write_bytes(dump(container(network(noiseless, use_noise=False))))
    assert torch.equal(load_generator(tmp_path / "g.pkl")(quiet.sample(rngs(1))), quiet(quiet.sample(rngs(1))))


def _mapping(state: dict[str, Tensor], z: Tensor, rate: float) -> Tensor:
    w = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-8)
    for layer in range(2):
        weight, bias = (state[f"mapping.fc{layer}.{part}"] for part in ("weight", "bias"))
        w = torch.nn.functional.linear(w * (rate / weight.shape[1] ** 0.5), weight, bias * rate)
        w = torch.nn.functional.leaky_relu(w, 0.2) * 2**0.5
    return w


def test_settings_may_be_in_the_arguments_of_the_whole(tmp_path: Path):
    """A record whose layers keep nothing, but whose constructor's arguments are there."""

    def strip(record: PersistentObject) -> None:
        for name in ("conv_clamp", "bias_gain"):
            record.state.pop(name, None)
        for part in record.state["_modules"].values():
            strip(part)

    record = network(load_fixture("nvidia_32").state())
    strip(record)
    record.state["_init_kwargs"] = {"synthesis_kwargs": {"conv_clamp": 3}, "mapping_kwargs": {"lr_multiplier": 0.1}}
    (tmp_path / "g.pkl").write_bytes(dump(record))
    config = load_generator(tmp_path / "g.pkl").config
    assert (config["conv_clamp"], config["mapping_lr_multiplier"]) == (3.0, 0.1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda layers: layers["synthesis.b8.conv1"].update(conv_clamp=3.0), "layers differ in conv_clamp: 3.0, None"),
        (lambda layers: layers["synthesis.b8.conv1"].update(activation="relu"), "differ in activation: lrelu, relu"),
        (lambda layers: layers["mapping.fc1"].update(bias_gain=1.0), "differ in lr_multiplier"),
        (lambda layers: layers["mapping.fc1"].update(bias_gain="x", _init_kwargs={}), "differ in lr_multiplier"),
        (lambda layers: [part.update(conv_clamp="x") for n, part in layers.items() if "conv" in n or "torgb" in n],
         "conv_clamp is no number"),
    ],
)  # fmt: skip
def test_what_our_network_does_not_compute_is_refused(spoil: Callable, words: str, tmp_path: Path):
    record = network(load_fixture("nvidia_32").state())
    layers: dict[str, dict] = {}

    def walk(part: PersistentObject, name: str) -> None:
        layers[name] = part.state
        for key, child in part.state["_modules"].items():
            walk(child, f"{name}.{key}" if name else key)

    walk(record, "")
    spoil(layers)
    (tmp_path / "g.pkl").write_bytes(dump(record))
    with pytest.raises(CheckpointError, match=words):
        load_generator(tmp_path / "g.pkl")


def without(*names: str) -> Callable[[dict], dict]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("conv1.conv.weight"), r"rosinality's stylegan2-pytorch, under 'g_ema': it lacks conv1\.conv\.weight$"),
        (
            without(*[f"convs.{i}.activate.bias" for i in range(4)]),
            r"it lacks convs\.0\.activate\.bias, convs\.1\.activate\.bias, convs\.2\.activate\.bias and 1 more",
        ),
        (lambda state: {**state, "convs.9.extra": torch.ones(1)}, r"it has unknown convs\.9\.extra$"),
        (
            lambda state: {**state, "to_rgbs.0.conv.weight": torch.ones(1, 3, 7, 1, 1)},
            r"it has to_rgbs\.0\.conv\.weight \(1, 3, 7, 1, 1\), expected \(3, 512, 1, 1\)",
        ),
        (
            lambda state: {**state, "conv1.activate.bias": torch.ones(512, dtype=torch.int64)},
            r"not floating-point are conv1\.activate\.bias",
        ),
        (
            lambda state: {**state, "conv1.activate.bias": torch.full((512,), torch.nan)},
            r"conv1\.activate\.bias has numbers that are not finite",
        ),
        (
            lambda state: {**state, "convs.0.conv.blur.kernel": torch.eye(4)},
            r"filter is not the outer product",
        ),
        (
            lambda state: {**state, "convs.0.conv.blur.kernel": torch.ones(4, 4)},
            r"different up-sampling filters",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_differs(spoil: Callable, words: str, tmp_path: Path):
    torch.save({"g_ema": spoil(load_fixture("rosinality_16").state())}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        load_generator(tmp_path / "x.pt")


def test_nothing_is_read_from_a_pipe(tmp_path: Path):
    """Opening one would wait for a writer that never comes."""
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="a device or pipe, expected a file"):
        load_generator(tmp_path / "x.pt")


def test_pinning(checkpoint: Path):
    digest = sha256(checkpoint)
    assert load_generator(checkpoint, sha256=digest.upper()).provenance["sha256"] == digest
    with pytest.raises(CheckpointError, match=rf"^generator\.sha256=0000: .* has {digest}"):
        load_generator(checkpoint, sha256="0000")


def test_labels(tmp_path: Path):
    fixture = load_fixture("nvidia_resnet_cond_32")
    path = write(fixture, tmp_path / "g.pkl")
    first, listed, second = (load_generator(path, label=label) for label in (0, [1, 0, 0, 0, 0], 1))
    point = first.sample(rngs(1), "z")
    assert torch.equal(first(point), listed(point)) and not torch.equal(first(point), second(point))
    assert not torch.equal(first.gaussian_mean, second.gaussian_mean)  # statistics are those of the label
    assert first.provenance["label"] != second.provenance["label"]
    for label, words in (
        (None, "label=null: this generator is conditional; expected a class, 0 … 4, or a list of 5 numbers"),
        (5, "label=5: expected a class, 0 … 4"),
        (-1, "label=-1: expected"),
        (True, "label=True: expected"),
        (1.5, r"label=1\.5: expected"),
        ("1", "label=1: expected"),
        ([1, 0], r"label=\[1, 0\]: expected"),
        ([1, 0, 0, 0, float("nan")], r"label=\[1, 0, 0, 0, nan\]: expected"),
    ):
        with pytest.raises(CheckpointError, match=rf"^generator\.{words}"):
            load_generator(path, label=label)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"^generator\.label=0: this generator knows no labels"):
        load_generator(FOLDER.parents[2] / "ilo_lightning/generators/weights/faces64.safetensors", label=0)


def test_saving_keeps_everything(tmp_path: Path):
    for options in ({}, {"architecture": "resnet", "label_dim": 2, "conv_clamp": 2.0}, {"noise": False, "colors": 1}):
        generator = small_stylegan2(dtype=torch.float32, constant_noise=options.get("noise", True), **options)
        for noise in generator.constant_noise():
            generator.get_buffer(noise).normal_()
        save_generator(generator, tmp_path / "g.safetensors")
        loaded = load_generator(tmp_path / "g.safetensors")
        assert loaded.config == generator.config
        for name, tensor in generator.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        point = generator.sample(rngs(1))
        assert torch.equal(loaded(point), generator(point))


def test_statistics_are_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("ILO_CACHE", str(tmp_path / "cache"))
    path = write(load_fixture("nvidia_32"), tmp_path / "g.pkl")
    fitted = load_generator(path)
    assert "latent statistics of 2,000 samples" in capsys.readouterr().err
    fresh = small_stylegan2().double()
    fresh.__init__(**fitted.config)
    monkeypatch.setattr(StyleGAN2, "fit_statistics", lambda *_, **__: pytest.fail("fitted again"))
    cached = load_generator(path)
    assert capsys.readouterr().err == ""
    assert all(torch.equal(cached.get_buffer(name), fitted.get_buffer(name)) for name in statistics.NAMES)


@pytest.mark.parametrize("damage", ["truncated", "other", "shape", "folder"])
def test_a_damaged_cache_is_fitted_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ILO_CACHE", str(tmp_path / "cache"))
    path = write(load_fixture("nvidia_32"), tmp_path / "g.pkl")
    expected = load_generator(path).gaussian_mean
    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    if damage == "truncated":
        kept.write_bytes(kept.read_bytes()[:-9])
    elif damage == "folder":
        kept.unlink()
        kept.mkdir()
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(kept)
        tensors["gaussian_mean"] = torch.zeros(3 if damage == "shape" else 32)
        save_file(tensors, kept, {"format": statistics.FORMAT if damage == "shape" else "x"})
    assert torch.equal(load_generator(path).gaussian_mean, expected)


def test_a_cache_that_cannot_be_written_costs_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("ILO_CACHE", str(tmp_path / "file" / "cache"))
    generator = load_generator(write(load_fixture("nvidia_32"), tmp_path / "g.pkl"))
    assert float(generator.gaussian_std.std()) > 0
    assert "can't be written" in capsys.readouterr().err


def test_at_once_one_fits_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ILO_CACHE", str(tmp_path / "cache"))
    path = write(load_fixture("nvidia_32"), tmp_path / "g.pkl")
    fits, fit = [], StyleGAN2.fit_statistics
    monkeypatch.setattr(StyleGAN2, "fit_statistics", lambda *args, **more: (fits.append(1), fit(*args, **more)))
    with ThreadPoolExecutor(4) as pool:
        means = [generator.gaussian_mean for generator in pool.map(load_generator, [path] * 4)]
    assert len(fits) == 1 and all(torch.equal(mean, means[0]) for mean in means)


def test_statistics_are_those_of_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ILO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(statistics, "SAMPLES", 30_000)
    generator = load_generator(write(load_fixture("nvidia_32"), tmp_path / "g.pkl"))
    w = generator.mapping(torch.randn(30_000, 32, generator=rngs(5)[0]))
    code = (torch.nn.functional.leaky_relu(w, 5.0) - generator.gaussian_mean) / generator.gaussian_std
    assert code.mean(0).abs().max() < 0.05 and (code.std(0) - 1).abs().max() < 0.05


def test_the_header_says_where_weights_came_from(checkpoint: Path):
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["config"])["resolution"] == 16 and json.loads(header["provenance"]) == {}
