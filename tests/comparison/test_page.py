"""The page of a comparison in a real browser: it sorts, filters, draws and asks no server."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import write_run
from playwright.sync_api import Browser, Page, sync_playwright

from segline import tables
from segline.comparison import page as pages
from segline.comparison.compare import compare_runs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]
#: Names that would end a script or an attribute.
ODD = "a</script><b>\"'&"
DOT = "data:image/webp;base64,UklGRhoAAABXRUJQVlA4TA4AAAAvAAAAAAfQ//73v/+BiOh/AAA="


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a page of three losses with three learning rates each."""
    folder = tmp_path_factory.mktemp("runs")
    hard = np.random.default_rng(0).uniform(0.3, 0.8, (2, 16))
    for k, loss in enumerate(["dice", "focal", ODD]):
        for lr in (1e-4, 1e-3, 1e-2):
            gain = 0.05 * k - 0.01 * abs(np.log10(lr) + 3)
            write_run(
                folder / f"{k}_{lr:g}",
                {"cat": list(hard[0] + gain), ODD: [*(hard[1, 1:] + gain), None]},
                groups=[f"scene {n // 2}" for n in range(16)],
                choices={"loss": loss},
                optimizer={"lr": lr},
                objective="val/iou",
                costs={"weights": 1e6 * (k + 1), "steps": 100, "seconds": 60 * (k + 1), "memory_mb": 500},
            )
            for epoch in range(1, 4):
                row = {"epoch": epoch, "step": 10 * epoch, "seconds": 2.0 * epoch, "val/iou": 0.1 * epoch + gain}
                tables.append_row(folder / f"{k}_{lr:g}" / "metrics.csv", row)
    panels = [{"title": title, "panels": [{"name": ODD, "src": DOT}]} for title in (ODD, 64 * "f")]
    path = folder.parent / "compare.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segline.comparison.importance.LEAST_RUNS", 9)
        pages.write(path, compare_runs([str(folder)]), panels, "What is shown.")
    return path


@pytest.fixture
def opened(browser: Browser, path: Path) -> Iterator[Page]:
    """The page, which must ask for nothing and complain of nothing."""
    page, asked, said = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    yield page
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    # What drawing by a processor instead of a GPU makes the browser say is none of the page's.
    assert [text for text in said if "GPU stall" not in text and "WebGL" not in text] == []
    page.close()


def column(page: Page, name: str) -> list[str]:
    """Cells of the table of runs, as they stand."""
    heads = page.locator("#runs-table th").all_inner_texts()
    place = next(k for k, head in enumerate(heads) if head.split(" ▲")[0].split(" ▼")[0] == name) + 1
    return page.locator(f"#runs-table tbody tr:not([hidden]) td:nth-child({place})").all_inner_texts()


def draw(page: Page, chart: str) -> None:
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart} .main-svg")


def test_a_heading_sorts_by_number_up_and_down(opened: Page) -> None:
    head = opened.locator("#runs-table th", has_text="lr")
    head.click()
    rates = [float(text) for text in column(opened, "optimizer.lr")]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    head.click()
    assert [float(text) for text in column(opened, "optimizer.lr")] == sorted(rates, reverse=True)
    opened.locator("#runs-table th", has_text="minutes").press("Enter")  # by keyboard, too
    assert column(opened, "minutes") == ["1"] * 3 + ["2"] * 3 + ["3"] * 3


def test_the_filter_leaves_rows_and_curves_that_match(opened: Page) -> None:
    draw(opened, "curves-chart")
    points = "document.getElementById('curves-chart').data.flatMap(t => t.x).filter(x => x !== null).length"
    assert opened.evaluate(points) == 27
    opened.locator("#filter").fill("FOCAL 0.001")
    assert column(opened, "Run") == ["1_0.001"]
    assert opened.locator("#count").inner_text() == "1 of 9"
    assert opened.evaluate(points) == 3
    opened.locator("#filter").fill("nothing")
    assert column(opened, "Run") == []
    opened.locator("#filter").fill("")
    assert len(column(opened, "Run")) == 9
    assert opened.evaluate(points) == 27


def test_the_filter_holds_for_the_sorted_table(opened: Page) -> None:
    opened.locator("#runs-table th", has_text="Run").click()
    opened.locator("#filter").fill("focal")
    assert sorted(column(opened, "Run")) == ["1_0.0001", "1_0.001", "1_0.01"]


def test_pointing_at_a_chart_says_which_run_it_is(opened: Page) -> None:
    draw(opened, "cost-chart")
    opened.locator("#cost-chart .point").first.hover(force=True)
    opened.wait_for_selector("#cost-chart .hovertext")
    assert "_0." in opened.locator("#cost-chart .hovertext").first.text_content()  # type: ignore[operator]


def test_curves_are_drawn_over_what_is_asked_for(opened: Page) -> None:
    draw(opened, "curves-chart")
    opened.locator("#curve-x").select_option("minutes")
    xs = opened.evaluate("document.getElementById('curves-chart').data[0].x.slice(0, 3)")
    assert xs == pytest.approx([2 / 60, 4 / 60, 6 / 60], rel=1e-4)
    assert opened.locator("#curve-y option").all_inner_texts() == ["val/iou", "train/loss"]


def test_every_chart_is_drawn(opened: Page) -> None:
    for chart in ("forest", "curves-chart", "cost-chart", "importance-chart", "parallel-chart"):
        draw(opened, chart)
        assert opened.evaluate(f"document.getElementById('{chart}').data.length") > 0


def test_pictures_load(opened: Page) -> None:
    image = opened.locator("#cases ~ div img").first
    image.scroll_into_view_if_needed()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_odd_names_are_shown_as_they_are(opened: Page) -> None:
    assert opened.locator("h3").first.inner_text() == ODD
    assert ODD in opened.locator("#runs-table tbody").inner_text()
    draw(opened, "forest")
    assert f"{ODD}, lr=0.01" in opened.locator("#forest .ytick").all_text_contents()
    assert opened.locator("#forest .xtitle").text_content() == f"{ODD}, lr=0.001 minus each of these, dice_case"


def test_a_method_of_every_pair_is_named_by_the_axis(browser: Browser, tmp_path: Path) -> None:
    for model, gain in {"unet": 0.0, "fcn": -0.1, "unetr": 0.1}.items():
        write_run(tmp_path / model, {"cat": list(np.linspace(0.3, 0.8, 8) + gain)}, choices={"model": model})
    pages.write(tmp_path / "compare.html", compare_runs([str(tmp_path)], against="unet"), [], "")
    page = browser.new_page()
    page.goto((tmp_path / "compare.html").as_uri())
    draw(page, "forest")
    assert page.locator("#forest .ytick").all_text_contents() == ["fcn", "unetr"]
    assert page.locator("#forest .xtitle").text_content() == "each of these minus unet, dice_case"
    page.close()


def test_tables_are_copied_for_a_paper(opened: Page) -> None:
    opened.evaluate("document.execCommand = name => { window.copied = document.activeElement.value; }")
    opened.locator("button", has_text="latex").click()
    assert opened.evaluate("window.copied").splitlines()[2].startswith(r"\begin{tabular}")


def test_it_is_read_on_a_phone_and_in_the_dark(browser: Browser, path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 22)"
    draw(page, "curves-chart")
    assert page.evaluate("document.getElementById('curves-chart').layout.font.color") == "#e8e8e8"
    page.emulate_media(color_scheme="light")
    page.wait_for_function("document.getElementById('curves-chart').layout.font.color === '#1c1c1c'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def contrast(one: str, other: str) -> float:
    """Of two colours, `rgb(r, g, b)`, by the formula of WCAG 2."""
    lights = []
    for color in (one, other):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(float(np.dot(linear, [0.2126, 0.7152, 0.0722])) + 0.05)
    return max(lights) / min(lights)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ranks_stand_out_from_the_page_the_best_most(browser: Browser, path: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "light" else "light")
    page.goto(path.as_uri())
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.wait_for_timeout(100)
    paint = "element => getComputedStyle(element).backgroundColor"
    back = page.locator("body").evaluate(paint)
    found = [contrast(swatch.evaluate(paint), back) for swatch in page.locator(".swatch").all()]
    assert len(found) == 9
    assert min(found) >= 3
    assert found == sorted(found, reverse=True)
    page.close()


def test_few_methods_stand_out_from_the_page_in_the_light_and_the_dark() -> None:
    few = re.search(r"const FEW = \[(.*?)\]", Path(pages.__file__).with_name("page.html").read_text())
    assert few
    for shade in re.findall(r"[0-9a-f]{6}", few[1]):
        rgb = ", ".join(str(part) for part in bytes.fromhex(shade))
        assert min(contrast(rgb, "255, 255, 255"), contrast(rgb, "22, 22, 22")) >= 3, shade


def test_the_smallest_p_is_sorted_first(opened: Page) -> None:
    table = opened.locator("#pairs ~ details table")
    opened.locator("#pairs ~ details summary").click()
    values = ["0.0001", "–", "0.3", "<0.0001", "0.02"]
    opened.evaluate(
        "values => values.forEach((p, k) => document.querySelectorAll('#pairs ~ details tbody tr')[k].cells[3].textContent = p)",
        values,
    )
    table.locator("th", has_text=re.compile("^p")).click()
    found = [p for p in table.locator("td:nth-child(4)").all_inner_texts() if p in values]
    assert found[:2] == ["<0.0001", "0.0001"]
    assert found[-1] == "–"
