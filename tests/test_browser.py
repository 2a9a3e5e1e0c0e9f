"""The pages in a real browser, as people use them: mouse, keyboard, light, dark, wide, narrow."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from pages import make

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
COUNT = 12


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "out"
    make(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def chromium():
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium (apt-get install chromium): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a page in a fresh browser; in the end there must be no error of any kind."""
    troubles, contexts = [], []

    def open_page(path, width=1280, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(request.url))
        page.on(
            "request",
            lambda request: request.url.startswith("http") and troubles.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def column(page, number: int) -> list[str]:
    return page.locator(f"#scores tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_table_sorts_by_mouse_and_by_keyboard(out, visit):
    page = visit(out / "group.html")
    ranks = [float(text) for text in column(page, 3)]
    assert len(ranks) == COUNT
    assert ranks == sorted(ranks, reverse=True)
    volume = page.get_by_role("button", name="Volume (ml)")
    volume.click()
    assert [float(text) for text in column(page, 6)] == sorted(map(float, column(page, 6)))
    volume.press("Enter")
    numbers = [float(text) for text in column(page, 6)]
    assert numbers == sorted(numbers, reverse=True)
    assert page.locator("#scores th[aria-sort]").count() == 1
    page.get_by_role("button", name="Agreement").click()
    assert column(page, 5)[0] == "n/a"
    assert "could <not> be read" in column(page, 8)


def test_table_and_masks_can_be_searched(out, visit):
    page = visit(out / "group.html")
    page.locator("#find-score").fill("SUB-0003")
    assert column(page, 2) == ["sub-0003_T1w"]
    page.locator("#find-mask").fill("0004")
    assert page.locator(".card:visible").count() == 1
    page.locator("#find-mask").fill("")
    assert page.locator(".card:visible").count() == COUNT


def test_a_row_and_a_card_open_the_mosaic(out, visit):
    page = visit(out / "group.html")
    page.locator("#scores a").filter(has_text="sub-0005_T1w").click()
    assert page.url.endswith("sub-0005.html#sub-0005_T1w")
    assert page.locator(".stage img").first.evaluate("image => image.naturalWidth") > 500
    page.go_back()
    page.locator(".card a").first.click()
    assert page.url.endswith(f"sub-{COUNT - 1:04}.html#sub-{COUNT - 1:04}_T1w")


def test_masks_are_sorted_worst_first(out, visit):
    page = visit(out / "group.html")
    names = page.locator(".card").evaluate_all("cards => cards.map((card) => card.dataset.scan)")
    assert names == sorted(names, reverse=True)


def test_ratings_are_kept_exported_and_come_back(out, visit, tmp_path):
    page = visit(out / "group.html")
    worst, second = page.locator(".card").nth(0), page.locator(".card").nth(1)
    worst.get_by_label("reject").check()
    worst.locator(".comment").fill('cut  "off"')
    second.get_by_label("open").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.locator("#count").inner_text() == f"1 accepted, 1 rejected of {COUNT}"
    expected = [
        {"scan": worst.get_attribute("data-scan"), "rating": "reject", "comment": 'cut "off"'},
        {"scan": second.get_attribute("data-scan"), "rating": "accept", "comment": ""},
    ]
    for kind in ("TSV", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Export ratings ({kind})").click()
        assert download.value.suggested_filename == f"ratings.{kind.lower()}"
        download.value.save_as(tmp_path / f"ratings.{kind.lower()}")
    assert json.loads((tmp_path / "ratings.json").read_text()) == expected
    lines = (tmp_path / "ratings.tsv").read_text().splitlines()
    assert lines[0] == "scan\trating\tcomment"
    assert lines[1] == f'{expected[0]["scan"]}\treject\tcut "off"'
    assert lines[2] == f"{expected[1]['scan']}\taccept\tn/a"
    page.reload()
    assert page.locator("#count").inner_text() == f"1 accepted, 1 rejected of {COUNT}"
    for kind in ("tsv", "json"):
        other = visit(out / "group.html")  # another browser, which knows of no ratings
        assert other.locator("#count").inner_text().startswith("0 accepted")
        other.locator("#import").set_input_files(tmp_path / f"ratings.{kind}")
        other.locator("#count").filter(has_text="1 accepted, 1 rejected").wait_for()
        assert other.locator(".card .comment").first.input_value() == 'cut "off"'


def test_outline_goes_on_and_off_by_keyboard(out, visit):
    page = visit(out / "sub-0000.html")

    def seen():
        kinds = ("outline", "outside")
        return [page.locator(f".stage .{kind}").is_visible() for kind in kinds]

    page.get_by_label("outline", exact=True).focus()
    assert seen() == [True, False]
    page.keyboard.press("ArrowRight")
    assert seen() == [False, False]
    page.keyboard.press("ArrowRight")
    assert seen() == [False, True]
    page.keyboard.press("ArrowRight")
    animations = page.locator(".stage .outline").evaluate("i => i.getAnimations().length")
    assert animations == 1


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratios = [];
  for (const node of document.querySelectorAll("p, a, td, th, dt, dd, li, label, h2, button")) {
    if (!node.innerText?.trim() || node.classList.contains("skip")) continue;
    const pair = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    ratios.push((Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05));
  }
  return Math.min(...ratios);
}"""


@pytest.mark.parametrize("name", ["group", "sub-0000"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_fits_and_is_legible(out, visit, name, scheme, width):
    page = visit(out / f"{name}.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) >= 4.5
    unnamed = page.evaluate(
        "[...document.images].filter((image) => !image.alt).length"
        " + [...document.querySelectorAll('input')].filter((i) => !i.labels.length"
        " && !i.ariaLabel).length"
    )
    assert unnamed == 0


def test_a_thousand_masks_open_at_once(tmp_path, visit):
    make(tmp_path, 1000, drawn=False)
    assert (tmp_path / "group.html").stat().st_size < 3_000_000
    began = time.monotonic()
    page = visit(tmp_path / "group.html")
    took = time.monotonic() - began
    assert page.locator(".card").count() == 1000
    loaded = "[...document.querySelectorAll('.card img')].filter((i) => i.naturalWidth).length"
    assert page.evaluate(loaded) < 200  # thumbnails far below are not there yet
    last = page.locator(".card").last
    last.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.card img')].at(-1).naturalWidth > 0")
    assert 0 < page.evaluate(loaded) < 1000
    assert took < 15  # on a machine that does other things, too
