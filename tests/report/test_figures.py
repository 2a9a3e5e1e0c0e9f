"""Mosaics of masks: what is drawn lies where the mask is."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from singlestrip_bids.report.figures import COLUMNS, OUTLINE, SECOND, mosaic, sheet


def ball(shape, sizes, radius, centre=None):
    """Distances in mm from the centre, and the ball within a radius."""
    centre = centre or [(n - 1) / 2 for n in shape]
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = np.sqrt(
        sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, sizes, strict=True))
    )
    return distance.astype(np.float32), distance < radius


def outlines(svg: str) -> list[np.ndarray]:
    """Closed outlines of the first path, each (N, 2) in pixels."""
    root = ET.fromstring(svg)
    d = next(node.get("d") for node in root.iter() if node.get("d"))
    found = []
    for part in d.split("z")[:-1]:
        numbers = np.array([float(n) for n in re.findall(r"-?[\d.]+", part)]).reshape(-1, 2)
        found.append(np.cumsum(numbers, axis=0))
    return found


def area(line: np.ndarray) -> float:
    x, y = line.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_outline_encloses_the_mask_and_nothing_else():
    shape, sizes = (120, 100, 110), np.array([1.0, 1.0, 1.0])
    distance, mask = ball(shape, sizes, 30)
    drawn = mosaic(100 - distance, mask, sizes)
    lines = outlines(drawn.outline)
    assert len(lines) == 3 * COLUMNS
    middle = lines[COLUMNS // 2]
    assert area(middle) == pytest.approx(np.pi * 30**2, rel=0.05)
    picture = np.asarray(Image.open(io.BytesIO(drawn.scan)))
    assert picture.shape == (100 + 110 + 110, 7 * 120)
    # the brightest pixels are the centre of the ball, and so is the centre of the outline
    top = picture[:100, 3 * 120 : 4 * 120].astype(float)
    bright = np.argwhere(top > top.max() - 8).mean(0)
    assert middle.mean(0) == pytest.approx([3 * 120 + bright[1] + 0.5, bright[0] + 0.5], abs=1.5)


def test_thick_slices_keep_their_proportions():
    sizes = np.array([0.8, 0.8, 5.0])
    distance, mask = ball((250, 250, 40), sizes, 60)
    drawn = mosaic(100 - distance, mask, sizes)
    lines = outlines(drawn.outline)
    width, height = np.ptp(lines[COLUMNS + COLUMNS // 2], axis=0)  # a middle coronal slice
    assert width == pytest.approx(height, rel=0.08)


def test_left_is_left_and_up_is_up():
    shape = (100, 110, 120)
    _, mask = ball(shape, (1, 1, 1), 25)
    data = np.ones(shape, np.float32)
    data[:40, :, 100:] = 50  # left and superior, within what is shown
    data[mask] = 40
    picture = np.asarray(Image.open(io.BytesIO(mosaic(data, mask, np.ones(3)).scan))).astype(int)
    coronal = picture[110 : 110 + 120, (picture.shape[1] - 7 * 100) // 2 :][:, 300:400]
    assert coronal[:18, :38].mean() > 200
    assert coronal[:18, 45:].mean() < 60
    assert coronal[100:, :38].mean() < 60


def test_mask_at_the_edge_of_the_field_of_view_is_closed():
    mask = np.zeros((40, 40, 40), bool)
    mask[:20] = True
    drawn = mosaic(np.ones(mask.shape, np.float32), mask, np.full(3, 3.0))
    lines = outlines(drawn.outline)
    assert len(lines) == 3 * COLUMNS
    assert all(area(line) > 100 for line in lines)


def test_a_second_mask_is_drawn_where_it_is():
    shape, sizes = (100, 100, 100), np.ones(3)
    distance, mask = ball(shape, sizes, 30)
    drawn = mosaic(100 - distance, mask, sizes, distance < 20)
    root = ET.fromstring(drawn.rebuilt)
    filled, line = (node for node in root.iter() if node.get("d"))
    assert filled.get("fill-rule") == "evenodd"
    assert filled.get("d").endswith(line.get("d"))
    second = outlines(drawn.rebuilt.replace(filled.get("d"), "", 1))
    inner = outlines(f'<svg><path d="{line.get("d")}"/></svg>')
    middle = min(inner, key=lambda one: abs(one.mean(0) - [350, 50]).sum())
    assert area(middle) == pytest.approx(np.pi * 20**2, rel=0.06)
    assert second
    assert mosaic(100 - distance, mask, sizes).rebuilt is None


def test_sheet_shows_both_masks_and_takes_empty_ones():
    distance, mask = ball((64, 64, 64), np.full(3, 4.0), 70)
    empty = np.zeros_like(mask)
    data = (1 - distance / distance.max()).astype(np.float32)

    def colours(*masks):
        picture = Image.open(io.BytesIO(sheet(data, masks, 4.0))).convert("RGB")
        red, _, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
        return (red - blue > 60).sum(), (blue - red > 60).sum()

    orange, blue = colours(mask, distance < 50)
    assert orange > 1000
    assert 300 < blue < orange
    assert colours(mask)[1] == 0
    assert colours(empty, mask)[0] == 0
    assert colours(empty, empty) == (0, 0)
    assert (OUTLINE, SECOND) == ("#ffb000", "#56b4e9")  # the page's keys name them


def test_pictures_are_small_and_safe():
    rng = np.random.default_rng(0)
    distance, mask = ball((256, 256, 256), (1, 1, 1), 70)
    drawn = mosaic(rng.normal(100 - distance, 3).astype(np.float32), mask, np.ones(3))
    assert len(drawn.scan) < 900_000  # of noise, which compresses worst
    assert len(drawn.outline) < 150_000
    assert len(drawn.thumbnail) < 15_000
    assert OUTLINE in drawn.outline
    for svg in (drawn.outline, drawn.outside):
        tags = {node.tag.rsplit("}")[-1] for node in ET.fromstring(svg).iter()}
        assert tags <= {"svg", "g", "path", "use"}
    small = Image.open(io.BytesIO(drawn.thumbnail))
    assert small.height == 88
    red, _, blue = np.asarray(small).astype(int).transpose(2, 0, 1)
    assert (red - blue > 80).any()
