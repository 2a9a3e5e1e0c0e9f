"""The figure of the method: drawn from what a run leaves, and the one in the README."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import figure

DOCS = Path(__file__).parents[2] / "docs"


def test_it_is_drawn_from_a_run(heads, trained, tmp_path):
    figure.draw(heads, trained, tmp_path / "m.png")
    picture = Image.open(tmp_path / "m.png")
    assert picture.size == (figure.WIDTH * figure.DPI, figure.HEIGHT * figure.DPI)
    red, _, blue, _ = np.asarray(picture.convert("RGBA")).astype(int).transpose(2, 0, 1)
    assert (red - blue > 120).sum() > 5000  # outlines
    assert (blue - red > 100).sum() > 5000  # networks


def test_it_is_legible_on_any_page():
    path = DOCS / "method.png"
    assert path.stat().st_size < 400_000
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    assert pixels[0, 0, 3] == 0  # round corners
    margin = pixels[40:-40, 40:-40]
    assert margin[..., 3].min() > 250  # its own ground, whatever the page's
    assert f"docs/{path.name}" in (DOCS.parent / "README.md").read_text()
