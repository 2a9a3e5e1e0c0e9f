"""The pages in a real browser, as people use them: mouse, keyboard, light, dark, wide, narrow."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

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


def failed(request) -> bool:
    """Tell whether a request came to nothing, and not because the page was left before."""
    return request.failure != "net::ERR_ABORTED"


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
        page.on("requestfailed", lambda request: failed(request) and troubles.append(request.url))
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
    assert "could <not> be read" in column(page, 9)


def test_table_and_masks_can_be_searched(out, visit):
    page = visit(out / "group.html")
    page.locator("#find-score").fill("SUB-0003")
    assert column(page, 2) == ["sub-0003_T1w"]
    page.locator("#find-mask").fill("0004")
    assert page.locator(".card:visible").count() == 1
    page.locator("#find-mask").fill("")
    assert page.locator(".card:visible").count() == COUNT


def test_a_row_opens_its_pseudo_label(out, visit):
    page = visit(out / "group.html")
    viewer, title = page.locator("#viewer"), page.locator("#viewer-title")
    assert not viewer.is_visible()
    link = page.locator("#scores a.opens").filter(has_text="sub-0000_T1w")
    link.focus()
    page.keyboard.press("Enter")
    assert title.inner_text() == "sub-0000_T1w"
    page.wait_for_function("document.querySelector('#viewer-image').naturalWidth > 300")
    assert "Rank score: " in page.locator("#viewer-numbers").inner_text()
    page.keyboard.press("ArrowRight")
    rows = column(page, 2)
    assert title.inner_text() == rows[rows.index("sub-0000_T1w") + 1]
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == "sub-0000_T1w"
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert link.evaluate("link => link === document.activeElement")
    page.locator("#scores a").filter(has_text="sub-0005_T1w").click()
    page.locator("#viewer-page").click()
    assert page.url.endswith("sub-0005.html#sub-0005_T1w")


def test_a_point_opens_the_pseudo_label_of_its_row(out, visit):
    page = visit(out / "group.html")
    points = page.locator("#scatter .opens")
    assert points.count() == COUNT - 1  # one could not be read
    for place in (0, COUNT - 2):
        points.nth(place).dispatch_event("click")
        name = points.nth(place).locator("title").text_content()
        assert page.locator("#viewer-title").inner_text() == name
        page.locator("#viewer-close").click()
    ranks = dict(zip(column(page, 2), map(float, column(page, 3)), strict=True))
    heights = points.evaluate_all("all => all.map((p) => [p.textContent, p.getBBox().y])")
    by_height = [name.strip() for name, _ in sorted(heights, key=lambda pair: pair[1])]
    assert [ranks[name] for name in by_height] == sorted(map(ranks.get, by_height), reverse=True)


def test_a_card_opens_the_mosaic(out, visit):
    page = visit(out / "group.html")
    page.locator(".card a").first.click()
    page.wait_for_function("document.querySelector('.stage img').naturalWidth > 500")
    assert page.url.endswith(f"sub-{COUNT - 1:04}.html#sub-{COUNT - 1:04}_T1w")


def test_masks_are_sorted_worst_first(out, visit):
    page = visit(out / "group.html")
    names = page.locator(".card").evaluate_all("cards => cards.map((card) => card.dataset.scan)")
    assert names == sorted(names, reverse=True)


def test_ratings_by_key_and_what_is_shown(out, visit):
    page = visit(out / "group.html")
    cards = page.locator(".card")
    cards.nth(0).get_by_label("open").focus()
    for key in "arr":
        page.keyboard.press(key)
    ratings = cards.evaluate_all("cards => cards.map((card) => card.dataset.rating)")
    assert ratings[:4] == ["accept", "reject", "reject", None]
    assert page.locator("#count").inner_text() == f"1 accepted, 2 rejected of {COUNT}"
    cards.nth(4).locator(".comment").fill("a rare one")
    assert cards.nth(4).get_attribute("data-rating") == ""
    for choice, shown in (("rejected", 2), ("not rated yet", COUNT - 3), ("all", COUNT)):
        page.locator("#only").select_option(choice)
        assert page.locator(".card:visible").count() == shown
    page.locator("#only").select_option("with remarks")
    assert 0 < page.locator(".card:visible").count() < COUNT
    page.locator("#find-mask").fill("0011")
    assert page.locator(".card:visible").count() == 1


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
            page.get_by_role("button", name=f"Export {kind}").click()
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


def test_ratings_of_another_models_mask_are_left_out(out, visit, tmp_path):
    copy = Path(shutil.copytree(out, tmp_path / "out")) / "group.html"
    page = visit(copy)
    for card in page.locator(".card").all()[:2]:
        card.get_by_label("accept").check()
    count = page.locator("#count")
    api.expect(count).to_have_text(f"2 accepted, 0 rejected of {COUNT}")
    whole = copy.read_text(encoding="utf-8")
    changed = re.sub('data-model="[^"]+"', 'data-model="new"', whole, count=1)
    assert changed != whole
    copy.write_text(changed, encoding="utf-8")
    page.reload()
    api.expect(count).to_have_text(f"1 accepted, 0 rejected of {COUNT}")
    assert not page.locator(".card").first.get_by_label("accept").is_checked()


def test_outline_goes_on_and_off_by_keyboard(out, visit):
    page = visit(out / "sub-0000.html")

    def seen():
        kinds = ("outline", "outside", "rebuilt")
        return [page.locator(f".stage .{kind}").is_visible() for kind in kinds]

    page.get_by_label("outline", exact=True).focus()
    assert seen() == [True, False, False]
    page.keyboard.press("ArrowRight")
    assert seen() == [False, False, False]
    page.keyboard.press("ArrowRight")
    assert seen() == [False, True, False]
    page.keyboard.press("ArrowRight")
    animations = page.locator(".stage .outline").evaluate("i => i.getAnimations().length")
    assert animations == 1
    page.keyboard.press("ArrowRight")
    assert seen() == [True, False, True]
    assert page.locator(".on-rebuilt").is_visible()


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["group", "sub-0000"])
def test_axe_finds_nothing(out, visit, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    found = axe.Axe().run(visit(out / f"{name}.html", scheme=scheme)).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def scrolling_work(browser, page) -> float:
    """Scroll through masks for 100 frames; milliseconds of the page's thread for each of them.

    That is processor time: the time between frames would tell what else the machine does.
    """
    browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline"])
    page.evaluate(
        """async () => {
          const top = document.querySelector("#masks").offsetTop;
          for (let frame = 0; frame < 100; frame++) {
            window.scrollTo(0, top + 60 * frame);
            await new Promise((next) => requestAnimationFrame(next));
          }
        }"""
    )
    trace = json.loads(browser.stop_tracing())["traceEvents"]
    thread = {
        (event["pid"], event["tid"])
        for event in trace
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event["tdur"]
        for event in trace
        if event["name"] == "ThreadControllerImpl::RunTask"
        and (event["pid"], event["tid"]) in thread
        and "tdur" in event
    ]
    if not tasks:
        pytest.skip("this Chromium does not say how long its tasks took")
    return sum(tasks) / 1000 / 100


def test_a_thousand_masks_open_at_once(tmp_path, visit, chromium):
    make(tmp_path, 1000, drawn=False)
    assert (tmp_path / "group.html").stat().st_size < 3_000_000
    began = time.monotonic()
    page = visit(tmp_path / "group.html")
    took = time.monotonic() - began
    assert page.locator(".card").count() == 1000
    loaded = "[...document.querySelectorAll('.card img')].filter((i) => i.naturalWidth).length"
    assert page.evaluate(loaded) < 200  # thumbnails far below are not there yet
    work = scrolling_work(chromium, page)
    make(tmp_path / "few", 100, drawn=False)
    assert work < 4 * scrolling_work(chromium, visit(tmp_path / "few" / "group.html"))
    last = page.locator(".card").last
    last.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.card img')].at(-1).naturalWidth > 0")
    assert 0 < page.evaluate(loaded) < 1000
    assert took < 15  # on a machine that does other things, too
