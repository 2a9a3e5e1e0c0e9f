from __future__ import annotations

from pathlib import Path

from benchmarks import charts

ROOT = Path(__file__).parents[2]


def test_the_figures_of_the_docs_are_drawn_from_the_results(tmp_path, capsys):
    assert charts.main([str(ROOT / "benchmarks/results"), str(tmp_path)]) == 0
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    assert drawn == set(charts.FIGURES)
    assert drawn == {path.stem for path in (ROOT / "docs/figures").glob("*.svg")}
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert all(f"](figures/{name}.svg)" in text for name in drawn)
    assert "no results" not in capsys.readouterr().out


def test_missing_results_are_named(tmp_path, capsys):
    assert charts.main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("no results") == len(charts.FIGURES)
