"""What is said about a command line that can't be right. Nothing here is solved: `--cfg job` composes and prints."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ilo_lightning.main import _flags_first, main

ROOT = Path(__file__).parents[1]
SHOWS_ALL = "`--cfg job` shows all"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error with which they are."""
    assert main(["--cfg", "job", *arguments] if "-m" not in arguments else arguments, program="ilo solve") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").removesuffix("\n")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The configuration that they give."""
    assert main(["--cfg", "job", *arguments], program="ilo solve") == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.fixture
def myconf(tmp_path: Path) -> Path:
    """A folder with configuration of one's own."""
    files = {
        "experiment/mine.yaml": "# @package _global_\nthreshold: 3\ndata:\n  note: none\n",
        "experiment/asks.yaml": "# @package _global_\nseed: ${start}\n",
        "site/here.yaml": "root: /pictures\n",
        "task/mine.yaml": "defaults: [denoising, _self_]\nstrength: 2\n",
        "task/broken.yaml": "name: mine\noperator:\n  _target_: [broken\n",
        "task/bytes.yaml": "name: \0\n",
        "other.yaml": "defaults: [config, _self_]\nlevel: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sed=1", f"sed: no such option; did you mean seed?; {SHOWS_ALL}"),
        ("data.limt=3", f"data.limt: no such option; did you mean data.limit?; {SHOWS_ALL}"),
        ("metrics.sise=3", f"metrics.sise: no such option; did you mean metrics.size?; {SHOWS_ALL}"),
        ("task.fractoin=1", f"task.fractoin: no such option; did you mean task.fraction?; {SHOWS_ALL}"),
        ("method.radus=1", f"method.radus: no such option; did you mean method.radius?; {SHOWS_ALL}"),
        (
            "trainer.precison=16",
            f"trainer.precison: no such option; did you mean trainer.precision?; {SHOWS_ALL}, "
            "+trainer.precison=… adds one",
        ),
        (
            "task.noise.sigm=1",
            f"task.noise.sigm: no such option; did you mean task.noise.sigma?; {SHOWS_ALL}, "
            "+task.noise.sigm=… adds one",
        ),
        (
            "~trainer.precison",
            f"trainer.precison: no such option; did you mean trainer.precision?; {SHOWS_ALL}",
        ),
    ],
)
def test_an_unknown_key_is_offered_as_an_addition_only_where_somebody_reads_it(argument, message, capsys):
    assert refused(capsys, argument) == message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+batch_size=4", "nothing reads batch_size; did you mean data.batch_size?"),
        ("++batch_size=4", "nothing reads batch_size; did you mean data.batch_size?"),
        ("+batch_size=4,8", "nothing reads batch_size; did you mean data.batch_size?"),
        ("+data.limt=3", "nothing reads data.limt; did you mean data.limit?"),
        ("+metrics.sise=3", "nothing reads metrics.sise; did you mean metrics.size?"),
        ("+ops.imple=cpu", "nothing reads ops.imple; did you mean ops.impl?"),
        ("+own={a: 1}", "nothing reads own"),
    ],
)
def test_an_addition_that_nothing_reads_is_refused(argument, message, capsys):
    assert refused(capsys, argument, "task=denoising").startswith(f"{argument}: {message}")
    assert refused(capsys, "-m", argument, "seed=0,1").endswith(f"{SHOWS_ALL} options")


@pytest.mark.parametrize(
    "arguments",
    [
        ["+data.limit=3"],
        ["++data.limit=3", "++seed=3"],
        ["+task.mine=3", "task.operator._target_=mine.Own", "+task.operator.strength=${task.mine}"],
        ["+generator.more=1", "+trainer.benchmark=true", "+logger.more=1", "+method.more=1"],
        ["+hydra.job.env_set.NAME=1"],
        ["+task/noise@task.more_noise=poisson"],
        ["+root=/pictures", "data.path=${root}/a.png"],
        ["--config-dir", "MINE", "experiment=mine", "++threshold=4", "++data.note=some"],
        ["--config-dir=MINE", "experiment=asks", "+start=4"],
        ["--config-dir", "MINE", "+site=here"],
        ["--config-dir", "MINE", "+site=here", "++site.root=/others"],
        ["hydra.searchpath=[file://MINE]", "+site=here"],
        ["--config-dir", "MINE", "--config-name", "other", "++level=2"],
    ],
    ids=" ".join,
)
def test_an_addition_that_something_may_read_is_taken(arguments, myconf, capsys):
    assert "name: ilo" in shown(capsys, *(word.replace("MINE", str(myconf)) for word in arguments))


@pytest.mark.parametrize("argument", ["+experiment=demo", "+method@baseline=csgm", "+seed=3", "+data.batch_size=4"])
def test_what_is_there_already_is_not_added(argument, capsys):
    assert refused(capsys, "task=denoising", argument) == f"{argument}: is there already; write it without the +"


@pytest.mark.parametrize("argument", ["baseline=csgm", "+baseline=csgm", "baseline=bm3d", "baseline=cgsm"])
@pytest.mark.parametrize("more", [[], ["experiment=demo"]], ids=" ".join)
def test_a_baseline_is_chosen_by_its_group(argument, more, capsys):
    name = "bm3d" if "bm3d" in argument else "csgm"
    assert refused(capsys, argument, *more) == f"{argument}: choose a baseline by method@baseline={name}"


def test_what_a_baseline_that_is_not_there_is_told(capsys):
    for argument in ("baseline.steps=100", "+baseline.steps=100"):
        message = f"{argument}: there is no baseline; choose one by method@baseline=csgm"
        assert refused(capsys, argument) == message
    assert "steps: 100" in shown(capsys, "method@baseline=csgm", "baseline.steps=100", "+baseline.more=1")
    assert "did you mean baseline.steps?" in refused(capsys, "method@baseline=csgm", "baseline.stps=1")
    assert "baseline:" not in shown(capsys, "experiment=demo", "~baseline").splitlines()


@pytest.mark.parametrize("more", [[], ["task=denoising"], ["task=inpainting", "seed=3"]], ids=" ".join)
def test_a_missing_choice_is_that_of_its_own_group(more, capsys):
    message = refused(capsys, *more, "task/noise=poison")
    assert message.startswith("task/noise=poison: no such choice; did you mean poisson?; there are gaussian, ")
    assert refused(capsys, *more, "task=denoisin").startswith("task=denoisin: no such choice; did you mean denoising?")


def test_a_missing_choice_in_a_list(capsys):
    assert refused(capsys, "logger=[csv,foo]") == "logger=foo: no such choice; there are csv, none, tensorboard, wandb"


@pytest.mark.parametrize("value", ["~/photos", "/tmp/ä.png", "/tmp/photo(1).png", "photo(1).png", "/tmp/a=b.png"])
def test_what_needs_quotes(value, capsys):
    message = refused(capsys, f"data.path={value}")
    assert message == f"data.path={value}: needs quotes: \"data.path='{value}'\""
    (word,) = shlex.split(message.partition("quotes: ")[2])
    assert f"path: {value}" in shown(capsys, word)


@pytest.mark.parametrize("value", ["a'(b).png", "a$(b).png", '"(b).png', "a\\(b).png", "a`(b)!.png", "a\\'(1).png"])
def test_what_is_quoted_is_meant_for_a_shell(value, capsys):
    if value.startswith('"'):
        value = f"a{value}"
    message = refused(capsys, f"data.path={value}")
    (word,) = shlex.split(message.partition("quotes: ")[2])
    assert OverridesParser.create().parse_override(word).value() == value
    if value == "a'(b).png":
        assert message.endswith(r""": "data.path='a\'(b).png'" """.rstrip())


@pytest.mark.parametrize("argument", ["method.layers=[0,1", "seed=range(1,", "sätze=1", "data.path='a", "folder", "+x"])
def test_what_quotes_would_not_mend(argument, capsys):
    assert refused(capsys, argument).startswith(f"{argument}: not an override, expected key=value (")


@pytest.mark.parametrize(
    ("argument", "more"),
    [
        ("data.path=a.png,b.png", "; a folder or a glob takes several pictures"),
        ("method=csgm,ilo", ""),
        ("seed=0,1", ""),
        ("task/noise=gaussian,poisson", ""),
        ("method.steps=9,8", ", for a list write method.steps=[9,8]"),
        ("method.layers=0,1", ", for a list write method.layers=[0,1]"),
        ("task.box=0,1", ", for a list write task.box=[0,1]"),
        ("metrics.perceptual=none,auto", ", for a list write metrics.perceptual=[none,auto]"),
    ],
)
def test_a_list_is_offered_where_one_is_taken(argument, more, capsys):
    told = f"Ambiguous value for argument '{argument}'; for a run per value add -m"
    assert refused(capsys, argument) == told + more


@pytest.mark.parametrize("command", [["run.py"], ["-m", "ilo_lightning.cli", "solve"]], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
def test_nobody_reads_what_is_printed(command, flag):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *command, flag], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_slip_in_a_file_of_ones_own(myconf, capsys):
    message = refused(capsys, "--config-dir", str(myconf), "task=broken")
    assert message.startswith(f"{myconf}/task/broken.yaml:4: not YAML (expected ',' or ']', but got ")
    assert ": not YAML (" in refused(capsys, f"--config-dir={myconf}", "task=bytes", "seed=3")


def test_what_ones_own_files_have_is_known(myconf, capsys):
    message = refused(capsys, "--config-dir", str(myconf), "task=mine", "task.strenth=3")
    assert message.startswith("task.strenth: no such option; did you mean task.strength?")


@pytest.mark.parametrize(
    "arguments",
    [
        "task=denoising -c job seed=3",
        "task=denoising --cfg job seed=3",
        "task=denoising --cfg=job seed=3 --resolve",
        "task=denoising seed=3 --cfg job",
        "--cfg job task=denoising --package _global_ seed=3",
        "task=denoising -cd MINE seed=3 --cfg job",
        "task=denoising --config-dir MINE seed=3 -c job",
        "task=denoising --config-dir=MINE seed=3 -cn config -c job",
    ],
)
def test_flags_may_stand_anywhere(arguments, myconf, capsys):
    assert main(arguments.replace("MINE", str(myconf)).split(), program="ilo solve") == 0
    out, err = capsys.readouterr()
    assert err == "" and "\nseed: 3\n" in f"\n{out}" and "name: denoising" in out


def test_flags_in_the_middle_of_a_sweep(capsys):
    message = refused(capsys, "task=denoising", "-m", "seed=0,1", "sed=3")
    assert message.startswith("sed: no such option; did you mean seed?")


@pytest.mark.parametrize(
    ("words", "sorted_words"),
    [
        ("seed=1 --info searchpath seed=2", "--info=searchpath seed=1 seed=2"),
        ("seed=1 seed=2 -i", "--info=all seed=1 seed=2"),
        ("seed=1 -m -cd a=b seed=2 --hydra-help", "--hydra-help --multirun --config-dir=a=b seed=1 seed=2"),
        ("seed=1", "seed=1"),
        ("", ""),
    ],
)
def test_flags_come_first(words, sorted_words):
    assert _flags_first(words.split()) == sorted_words.split()


def test_an_unknown_flag_is_all_that_is_unknown(capsys):
    assert main(["seed=1", "--multirn", "task=denoising"], program="ilo solve") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ilo solve: error: unrecognized arguments: --multirn"


@pytest.mark.parametrize("argument", ["method@baselin=csgm", "+method@baselin=csgm"])
def test_a_place_that_is_not_there(argument, capsys):
    assert refused(capsys, argument) == f"{argument}: no such place; did you mean method@baseline?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-m", "hydra.launcher.partition=gpu"],
            "hydra/launcher=basic has no such option; choose hydra/launcher=slurm",
        ),
        (["task.noise.peak=30"], "task/noise=gaussian has no such option; choose task/noise=poisson"),
        (["task.noise.peak=30", "task=denoising"], "task/noise=gaussian_strong has no such option; choose task/noise="),
        (["task.factor=2"], "task=inpainting has no such option; choose task=blurred_super_resolution (or super_res"),
        (["generator.label=3"], "generator=faces64 has no such option; choose generator=stylegan2"),
        (["logger.project=mine", "sed=3"], "logger=none has no such option; choose logger=wandb"),
    ],
)
def test_an_option_of_another_choice(arguments, message, capsys):
    key = next(word for word in arguments if "." in word).partition("=")[0]
    assert refused(capsys, *arguments).startswith(f"{key}: {message}")


def test_an_unknown_key_does_not_hide_what_was_chosen(capsys):
    assert refused(capsys, "task=super_resolution", "task.factor=2", "sed=3").startswith("sed: no such option")


def test_no_torch_is_needed_to_refuse():
    code = "import sys, ilo_lightning.refusal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
