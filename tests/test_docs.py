"""The docs: short, current, and about the app alone."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def words(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split())


def test_they_take_ten_minutes():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150
    assert sum(map(words, PAGES[1:])) <= 14_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_is_a_diary(page):
    text = page.read_text(encoding="utf-8")
    dates = re.findall(r"\d{4}-\d\d-\d\d(?!-)", text)  # those of result files go on
    assert not dates


def test_the_tour_leads_to_the_right_lines():
    page = ROOT / "docs" / "tour.md"
    text = page.read_text(encoding="utf-8")
    assert runpy.run_path(str(page.with_suffix(".py")))["renewed"](text) == text, (
        "python docs/tour.py"
    )
    assert text.count("#L") > 30


def test_every_link_of_the_readme_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[0].read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) > 15
    assert not [target for target in local if not (ROOT / target).exists()]


def test_every_result_that_a_page_names_is_there():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"\d{4}-\d\d-\d\d-[\w-]+\.(?:json|md)", text))
    assert named
    assert not [name for name in named if not (ROOT / "benchmarks" / "results" / name).exists()]
