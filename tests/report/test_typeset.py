"""The Markdown and LaTeX tables, read back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.synthetic_sweep import PROTOCOLS, Sweep
from ilo_lightning.report.collect import collect, table
from ilo_lightning.report.summary import Mean, Summary, summarise
from ilo_lightning.report.typeset import decimals, latex, markdown, mean_text

NUMBER = re.compile(r"(\d+\.?\d*) ± (\d+\.?\d*)")


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    Sweep(fractions=(0.05, 0.1), sigmas=(0.0, 0.05), radii=(0.02, 0.1), seeds=(0, 1)).write(tmp_path / "s")
    return summarise(collect([tmp_path / "s"]))


def body(text: str) -> list[list[str]]:
    """The rows of the only Markdown table, without its headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_markdown_has_every_mean_and_its_interval(summary: Summary):
    rows = body(markdown(summary, "sweep"))
    assert len(rows) == len(summary.groups)
    for row, group in zip(rows, summary.groups, strict=True):
        assert row[:3] == [f"{group.problem[1]:g}", f"{group.problem[2]:g}", group.solver[0]]
        for cell, metric in zip(row[4:7], ("mse", "psnr", "ssim"), strict=True):
            match = NUMBER.search(cell)
            assert match, cell
            mean, half = group.means[metric].value, group.means[metric].half
            assert mean is not None and half is not None
            step = 10.0 ** -len(match[1].partition(".")[2])
            assert abs(float(match[1]) - mean) <= step / 2 + 1e-12
            assert abs(float(match[2]) - half) <= step / 2 + 1e-12


@pytest.mark.parametrize("form", [markdown, latex])
def test_exactly_the_best_is_bold(form, summary: Summary):
    text = form(summary, "sweep")
    bold = re.findall(r"\*\*([\d.]+) ± [\d.]+\*\*|\\textbf\{([\d.]+)\}", text)
    best = [group for group in summary.groups for metric in summary.metrics if group in summary.best(metric)]
    assert len(bold) == len(best) == 3 * 4, "by the residual nothing is best"
    rows = [line for line in text.splitlines() if "**" in line or "textbf" in line]
    assert all("ilo" in row for row in rows) and len(rows) == 4


def test_a_network_that_was_optimised_is_marked_and_not_compared(tmp_path: Path):
    for point in Sweep(radii=(0.1,), fractions=(0.1,)).write(tmp_path):
        path = point / "results.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["protocols"]["lpips_alex"], row["optimised"] = "LPIPS", ["lpips_alex"]
            row["metrics"]["lpips_alex"], row["baseline"]["metrics"]["lpips_alex"] = 0.1, 0.2
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = markdown(summarise(collect([tmp_path])), "sweep")
    assert "LPIPS (AlexNet) ↓" in text and "‡: by the network that the method itself minimised, not compared" in text
    (ilo,) = [line for line in text.splitlines() if line.startswith("| ilo ")]
    assert ilo.count("‡") == 1 and re.search(r"\| 0\.10+ ± 0\.0+‡ \|", ilo)
    assert sum(line.count("‡") for line in text.splitlines()) == 2
    assert "textdaggerdbl" in latex(summarise(collect([tmp_path])), "sweep")


def test_the_share_of_images_that_a_method_found(tmp_path: Path):
    """A column of the collected table, and a share in reports: of methods that say so, where there is one."""
    for point in Sweep(radii=(0.1,), fractions=(0.1,), images=3).write(tmp_path):
        assert "found" not in markdown(summarise(collect([tmp_path])), "sweep")
        path = point / "results.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "found": row["index"] == 1}) + "\n" for row in rows))
    collection = collect([tmp_path])
    found = table(collection).select("method", "index", "found").rows()
    assert sorted(found) == [("csgm", 0, None), ("csgm", 1, None), ("csgm", 2, None), *(
        ("ilo", index, index == 1) for index in range(3)
    )]  # fmt: skip
    text = markdown(summarise(collection), "sweep")
    headings = next(line for line in text.splitlines() if line.startswith("| ")).split(" | ")
    shares = {row[0]: row[headings.index("found (share)")] for row in body(text)}
    assert shares == {"csgm": "–", "ilo": "0.33"}


def test_every_table_names_its_protocols(summary: Summary):
    for text in (
        markdown(summary, "sweep"),
        latex(summary, "sweep").replace("$\\cdot$", "·").replace("$\\times$", "×").replace("$^2$", "²"),
    ):
        for protocol in PROTOCOLS.values():
            assert protocol in text
        assert "1.96 standard errors over 3 images (each with 2 seeds, averaged first)".replace("±", "") in text


def test_latex_rows_have_as_many_cells_as_columns(summary: Summary):
    text = latex(summary, "100% of a_sweep & more")
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert columns and len(rows) == len(summary.groups) + 1
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns[1])}
    assert text.isascii()


def test_a_long_table_goes_on_in_another(tmp_path: Path):
    """Whole problems at a time; all rows are there, and only the first has the notes."""
    Sweep(fractions=[0.01 * i for i in range(1, 16)]).write(tmp_path)
    summary = summarise(collect([tmp_path]))
    text = latex(summary, "long")
    parts = text.split(r"\begin{table}")[1:]
    assert len(parts) > 1 and len(set(re.findall(r"\\label\{(.*?)\}", text))) == len(parts)
    rows = [line for part in parts for line in part.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(summary.groups) + len(parts)
    for number, part in enumerate(parts, start=1):
        assert f"(part {number} of {len(parts)})" in part and ("standard errors" in part) == (number == 1)
        first = part.split(r"\midrule")[1].strip().splitlines()[0]
        assert re.match(r"0\.\d+ &", first), "begins with its problem"


def test_latex_has_no_costs_and_markdown_has(summary: Summary):
    assert "s / image" in markdown(summary, "sweep") and "s / image" not in latex(summary, "sweep")


def test_latex_escapes_what_users_name(tmp_path: Path):
    Sweep(fractions=(0.1,), radii=(0.1,)).write(tmp_path)
    for path in (tmp_path / "0" / "results.jsonl",):
        path.write_text(path.read_text().replace('"method": "ilo"', '"method": "my_method 50% #1 {x} ~^\\\\"'))
    text = latex(summarise(collect([tmp_path])), "names")
    assert r"my\_method 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the PATH")
def test_latex_compiles(summary: Summary, tmp_path: Path):
    (tmp_path / "tables.tex").write_text(latex(summary, "sweep"))
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{tables}\end{document}"
    (tmp_path / "doc.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "doc.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    wide = [line for line in done.stdout.splitlines() if line.startswith("Overfull \\hbox")]
    assert wide == [], "nothing sticks out"


def test_a_table_per_task_shows_what_differs_in_it(tmp_path: Path):
    Sweep(radii=(0.1,)).write(tmp_path / "a")
    other = {"name": "super_resolution", "factor": 4, "noise": {"_target_": "GaussianNoise", "sigma": 0.1}}
    Sweep(fractions=(0.1,), radii=(0.1, 0.2), more={"task": other | {"fraction": 0.1}}).write(tmp_path / "b")
    for path in (tmp_path / "b").rglob("*.jsonl"):
        path.write_text(path.read_text().replace('"task": "compressed_sensing"', '"task": "super_resolution"'))
    text = markdown(summarise(collect([tmp_path])), "two tasks")
    first, second = text.split("\n## ")[1:]
    assert first.startswith("compressed sensing") and second.startswith("super resolution")
    headings = [part.splitlines()[2] for part in (first, second)]
    assert "measured fraction" in headings[0] and "l1 radius" not in headings[0]
    assert "l1 radius" in headings[1] and "measured fraction" not in headings[1]
    assert "ilo: l1 radius 0.1." in first  # the same for all, yet other than in the second table


def test_images_that_failed_are_counted(tmp_path: Path):
    Sweep(fractions=(0.1,), radii=(0.1, 0.2)).write(tmp_path)
    shutil.rmtree(tmp_path / "0" / "batches")
    results = tmp_path / "0" / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows[1] = {"index": 1, "image": "0001", "digest": rows[1]["digest"], "error": "no"}
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = markdown(summarise(collect([tmp_path])), "failed")
    assert "| images | failed |" in text and "†: other or fewer images or seeds" in text
    (row,) = [row for row in body(text) if row[:2] == ["ilo", "0.1"]]
    assert row[2:4] == ["2", "1"] and row[4].endswith("†") and "**" not in "".join(row)


def test_digits_show_two_of_the_interval():
    assert decimals([Mean(21.7234, 0.537)], "psnr") == 2
    assert decimals([Mean(21.7234, 12.0)], "psnr") == 2  # never fewer than is customary
    assert decimals([Mean(0.0067371, 0.00123)], "mse") == 4
    assert decimals([Mean(123.0, 12.0)], "other") == 0
    assert decimals([Mean(0.0067371, None)], "mse") == 5
    assert decimals([Mean(0.0, None)], "mse") == 0
    assert decimals([Mean(201.0, 0.0)], "evaluations") == 0 and decimals([Mean(201.5, 0.0)], "evaluations") == 1
    assert mean_text(Mean(21.7234, 0.537), 2) == "21.72 ± 0.54"
    assert mean_text(Mean(21.7234, None), 2) == "21.72" and mean_text(None, 2) == "–"
