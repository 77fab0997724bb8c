"""The HTML page, used in a real Chromium from a folder of its own, over file://."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from omegaconf import OmegaConf

from benchmarks.synthetic_sweep import Sweep
from ilo_lightning.report import command
from ilo_lightning.report.collect import collect
from ilo_lightning.report.summary import summarise

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1300,900"
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 points with pictures; one of them failed, one image of another did."""
    folder = tmp_path_factory.mktemp("made") / "sweep"
    points = Sweep(
        fractions=(0.02, 0.05, 0.1, 0.2), sigmas=(0.0, 0.05), seeds=range(2), radii=(0.02, 0.1, 0.5), pictures=True
    )
    made = points.write(folder)
    shutil.rmtree(made[7] / "batches")
    (made[7] / "results.jsonl").unlink()
    (made[7] / "status.json").write_text(json.dumps({"state": "failed", "error": "</script><b>out of memory"}))
    shutil.rmtree(made[8] / "batches")
    lines = (made[8] / "results.jsonl").read_text().splitlines()
    lines[1] = json.dumps({"index": 1, "image": "0001", "error": "can't be read"})
    (made[8] / "results.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def moved_report(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `swept`, moved elsewhere."""
    made = tmp_path_factory.mktemp("made") / "report"
    assert command.report([str(swept), "--output", str(made)]) == 0
    return shutil.move(made, tmp_path_factory.mktemp("elsewhere") / "a report")


@pytest.fixture
def page(chromium: Chrome, moved_report: Path) -> Iterator[Chrome]:
    """The page, opened. In the end nothing was written to the console, and nothing but its own files was asked for."""
    chromium.get_log("browser")
    chromium.get_log("performance")
    chromium.get((moved_report / "index.html").as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked, "no request was seen, not even that for the page"
    assert [url for url in asked if not url.startswith((moved_report.as_uri(), "data:"))] == []


def text(page: Chrome, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())", selector
    )


def find(page: Chrome, selector: str) -> Any:
    return page.find_element("css selector", selector)


def column(page: Chrome, label: str) -> list[str]:
    place = [head.partition("\u00a0")[0].rstrip(" ▾▴") for head in text(page, "#grid thead th")].index(label) + 1
    return text(page, f"#grid tbody tr > :nth-child({place})")


def sort(page: Chrome, label: str) -> None:
    heads = [h.partition("\u00a0")[0].rstrip(" ▾▴") for h in text(page, "#grid thead th")]
    page.find_elements("css selector", "#grid thead button")[heads.index(label)].click()


def wait(condition: Callable[[], Any]) -> Any:
    """Until it is true."""
    while not (value := condition()):
        time.sleep(0.02)
    return value


def select(page: Chrome, selector: str, label: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(find(page, selector)).select_by_visible_text(label)


def mean(cell: str) -> float:
    return float(cell.partition(" ")[0])


def test_the_table_has_every_point_and_its_means(page: Chrome, swept: Path):
    assert text(page, "#range") == ["1–50 of 96 rows"]
    shown = [column(page, label) for label in ("point", "method", "measured fraction", "noise σ", "l1 radius", "seed")]
    psnr = column(page, "PSNR (dB)")
    find(page, "#forward").click()
    shown = [first + second for first, second in zip(shown, [column(page, label) for label in (
        "point", "method", "measured fraction", "noise σ", "l1 radius", "seed")], strict=True)]  # fmt: skip
    psnr += column(page, "PSNR (dB)")
    for point, method, fraction, sigma, radius, seed, cell in zip(*shown, psnr, strict=True):
        config = OmegaConf.load(swept / point / "config.yaml")
        own = config.method if method == "ilo" else config.baseline
        assert [float(fraction), float(sigma), int(seed)] == [
            config.task.fraction,
            config.task.noise.sigma,
            config.seed,
        ]
        assert radius == (f"{own.radius:g}" if own.radius else "–")
        if point == "7":
            assert cell == "–"
            continue
        rows = [json.loads(line) for line in (swept / point / "results.jsonl").read_text().splitlines()]
        found = [row if method == "ilo" else row["baseline"] for row in rows if "error" not in row]
        assert mean(cell) == pytest.approx(sum(r["metrics"]["psnr"] for r in found) / len(found), abs=0.0051)


def test_sorting_and_back(page: Chrome):
    sort(page, "PSNR (dB)")
    best = [mean(cell) for cell in column(page, "PSNR (dB)")]
    assert best == sorted(best, reverse=True)
    assert find(page, "#grid th[aria-sort]").get_attribute("aria-sort") == "descending"
    sort(page, "PSNR (dB)")
    worst = [mean(cell) for cell in column(page, "PSNR (dB)")]
    assert worst == sorted(worst) and worst[0] < best[-1]
    sort(page, "MSE")
    errors = [mean(cell) for cell in column(page, "MSE")]
    assert errors == sorted(errors), "the least error first"
    sort(page, "point")
    numbers = [int(name) for name in column(page, "point")]
    assert numbers == sorted(numbers) and numbers[-1] > 9
    for _ in range(2):  # what is missing comes last, either way
        sort(page, "PSNR (dB)")
        find(page, "#forward").click()
        assert column(page, "PSNR (dB)")[-2:] == ["–", "–"]


def test_filtering(page: Chrome):
    find(page, "#search").send_keys("ILO 0.05")
    rows = text(page, "#grid tbody tr")
    assert rows and all("ilo" in row and "0.05" in row for row in rows)
    find(page, "#filters button").click()
    select(page, "#filters label:nth-of-type(3) select", "csgm")
    assert set(column(page, "method")) == {"csgm"} and text(page, "#range") == ["1–48 of 48 rows (96 in all)"]
    find(page, "#search").send_keys("no such words")
    assert text(page, "#range") == ["no rows: change the filter"]
    find(page, "#filters button").click()
    assert text(page, "#range") == ["1–50 of 96 rows"]


def test_it_can_be_used_by_the_keyboard_alone(page: Chrome):
    from selenium.webdriver.common.keys import Keys

    active = lambda: page.switch_to.active_element  # noqa: E731
    page.execute_script("document.querySelector('#grid thead button').focus()")
    active().send_keys(Keys.ENTER)
    assert find(page, "#grid th").get_attribute("aria-sort") == "ascending"
    page.execute_script("document.querySelector('#grid tbody button').focus()")
    opener = active().text
    active().send_keys(Keys.ENTER)
    wait(lambda: find(page, "#details").get_attribute("open"))
    page.execute_script("document.querySelector('#slider').focus()")
    before = split(page)
    active().send_keys(Keys.ARROW_RIGHT * 4)
    assert split(page) == before + 2
    active().send_keys(Keys.ESCAPE)
    wait(lambda: not find(page, "#details").get_attribute("open"))
    assert active().text == opener, "the focus is where it was"


def split(page: Chrome) -> float:
    value = page.execute_script("return document.querySelector('#viewer').style.getPropertyValue('--split') || '50%'")
    return float(value.rstrip("%"))


def open_row(page: Chrome, words: str) -> None:
    find(page, "#search").clear()
    find(page, "#search").send_keys(words)
    find(page, "#grid tbody button").click()


def loaded(page: Chrome, selector: str) -> bool:
    return page.execute_script(
        "const i = document.querySelector(arguments[0]); return i.complete && i.naturalWidth > 0", selector
    )


def source(page: Chrome, selector: str) -> str:
    return find(page, selector).get_attribute("src").rpartition("/")[2]


def test_pictures_are_compared_by_a_slider(page: Chrome, moved_report: Path, swept: Path):
    open_row(page, "csgm")
    assert text(page, "#strip button")[0] == "measurement" and text(page, "#strip button")[-1] == "truth"
    wait(lambda: loaded(page, "#left-picture") and loaded(page, "#right-picture"))
    folder = swept / "0" / "images" / "0000"
    shown = {
        name: (moved_report / "pictures" / source(page, f"#{name}-picture")).read_bytes() for name in ("left", "right")
    }
    assert shown["left"] == (folder / "measurement.png").read_bytes()
    assert shown["right"] == (folder / "reconstruction-csgm.png").read_bytes()
    box = page.execute_script(
        "const b = document.querySelector('#viewer').getBoundingClientRect(); return [b.left, b.width]"
    )

    from selenium.webdriver import ActionChains

    slider = find(page, "#slider")
    ActionChains(page).move_to_element(slider).click_and_hold().move_by_offset(round(box[1] / 4), 0).release().perform()
    assert split(page) == pytest.approx(75, abs=2)
    clip = page.execute_script("return getComputedStyle(document.querySelector('#left-picture')).clipPath")
    assert clip == f"inset(0px {100 - split(page):g}% 0px 0px)"
    # Another image, another pair.
    select(page, "#image", "0002")
    select(page, "#left", "truth")
    wait(lambda: loaded(page, "#left-picture"))
    assert (moved_report / "pictures" / source(page, "#left-picture")).read_bytes() == (
        swept / "0" / "images" / "0002" / "truth.png"
    ).read_bytes()
    page.find_elements("css selector", "#strip button")[1].click()
    assert text(page, "#right-tag")[0].startswith("ilo ") and "dB" in text(page, "#right-tag")[0]
    # A row of another point that saw the same measurement.
    other = text(page, "#right optgroup option")
    assert other and all(label.startswith(("ilo, ", "csgm, ")) for label in other)
    # The next row shows the same image.
    find(page, "#next").click()
    assert find(page, "#image").get_property("selectedOptions")[0].text == "0002"
    find(page, "#close").click()


def test_a_row_shows_its_whole_configuration(page: Chrome, swept: Path):
    open_row(page, "ilo")
    rows = dict(zip(text(page, "#configuration th"), text(page, "#configuration td"), strict=True))
    assert rows["folder"] == str(swept / "0") and rows["state"] == "done"

    def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    for key, value in leaves(OmegaConf.to_container(OmegaConf.load(swept / "0" / "config.yaml"))):
        shown = rows[key]
        plain = isinstance(value, str) or value is None
        assert (shown == (value or "null")) if plain else (json.loads(shown) == value), key
    find(page, "#find").send_keys("method.radius")
    assert text(page, "#configuration tr:last-child th") == ["method.radius_mode"]
    find(page, "#find").clear()
    find(page, "#close").click()


def test_each_image_has_its_numbers(page: Chrome, swept: Path):
    open_row(page, "ilo")
    lines = text(page, "#per-image tbody tr")
    rows = [json.loads(line) for line in (swept / "0" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row["image"])
        assert f"{row['metrics']['psnr']:.4g}" in line and f"{row['baseline']['metrics']['psnr']:.4g}" in line
    find(page, "#close").click()


def test_what_failed_is_listed_and_can_be_opened(page: Chrome):
    assert text(page, "#failures > div tbody th") == ["7"]
    assert text(page, "#failures > div td:last-child") == ["</script><b>out of memory"]
    find(page, "#failures button").click()
    assert text(page, "#details-title") == ["7"]
    assert "</script><b>out of memory" in text(page, "#configuration")[0]
    assert not find(page, "#comparison").is_displayed()
    find(page, "#close").click()
    find(page, "#failures summary").click()
    assert "can't be read" in text(page, "#failures details tbody tr")[0]


def test_plots_of_the_chosen_metric(page: Chrome, swept: Path, moved_report: Path):
    def shown() -> list[str]:
        return text(page, "#plots figure:not([hidden]) figcaption")

    assert shown() and all(caption.startswith("PSNR (dB) against") for caption in shown())
    select(page, "#metric", "MSE")
    assert shown() and all(caption.startswith("MSE against") for caption in shown())
    for link in page.find_elements("css selector", "figcaption a"):
        assert (moved_report / link.get_dom_attribute("href")).is_file()
    count = len({group.problem for group in summarise(collect([swept])).groups})
    assert count == 8


def test_pictures_side_by_side(page: Chrome, moved_report: Path):
    """A picture per problem, each with all methods, that the browser can show."""
    images = page.find_elements("css selector", "#side-by-side img")
    assert len(images) == len(list((moved_report / "figures").iterdir())) > 0
    for image in images:
        page.execute_script("arguments[0].scrollIntoView()", image)
        page.execute_async_script("const done = arguments[1]; arguments[0].decode().then(() => done())", image)
        names = (image.get_dom_attribute("alt") or "").split(", ")
        assert names[0] == "measurement" and names[-1] == "truth" and len(names) > 2
        assert image.get_property("naturalWidth") > 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page: Chrome, scheme: str):
    """WCAG 2 AA: a contrast of 4.5 for all text, 3 for the states' marks and the plots' axes."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        colours = page.execute_script(
            """
            const background = getComputedStyle(document.body).backgroundColor;
            return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.closest('svg') &&
              [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
                let box = e;
                while (box && getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)') box = box.parentElement;
                return [e.tagName + '.' + e.className, getComputedStyle(e).color,
                        box ? getComputedStyle(box).backgroundColor : background, e.disabled ?? false];
              });
            """
        )
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    checked = {(what, ink, paper) for what, ink, paper, disabled in colours if not disabled}
    assert len(checked) > 10
    low = [(what, ink, paper) for what, ink, paper in checked if contrast(ink, paper) < 4.5]
    assert low == []
    assert (luminance(colours[0][2]) < 0.5) == (scheme == "dark")


def luminance(colour: str) -> float:
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_a_narrow_window_scrolls_in_its_table_only(page: Chrome):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        assert page.execute_script(wide)[0] <= page.execute_script(wide)[1]
        find(page, "#grid tbody button").click()
        inner = "const d = document.querySelector('#details'); return d.scrollWidth - d.clientWidth"
        assert page.execute_script(inner) <= 0
        find(page, "#close").click()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_thousand_points_stay_responsive(chromium: Chrome, tmp_path: Path):
    """The work of a click doesn't grow with the number of points: only one page of the table is in the document."""
    radii = [0.01 * i for i in range(1, 51)]
    Sweep(fractions=(0.05, 0.1), sigmas=(0.0, 0.1), radii=radii, seeds=range(5), images=2, baseline=False).write(
        tmp_path
    )
    assert command.report([str(tmp_path)]) == 0
    chromium.get((tmp_path / "report" / "index.html").as_uri())
    assert text(chromium, "#range") == ["1–50 of 1000 rows"]
    assert len(chromium.find_elements("css selector", "#grid tbody tr")) == 50
    sort(chromium, "PSNR (dB)")
    find(chromium, "#search").send_keys("0.05")
    wait(lambda: "in all" in text(chromium, "#range")[0])
    find(chromium, "#grid tbody button").click()
    assert len(text(chromium, "#configuration tr")) > 30
    assert chromium.get_log("browser") == []
