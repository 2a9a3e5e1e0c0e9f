"""The page of the group, without a browser."""

import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from builders import MODEL
from pages import CARD, make
from PIL import Image

from singlestrip_bids import cli
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.machine import files
from singlestrip_bids.report import charts, figures
from singlestrip_bids.report import group as group_report


def test_whole_app_leaves_a_page_with_its_pictures(trained):
    page = (trained / "group.html").read_text()
    card = json.loads((trained / MODEL / "model.json").read_text())
    assert card["guard"]["reason"] in page
    assert len(re.findall(r'<article class="card"', page)) == 4
    assert len(re.findall(r"<tr data-name", page)) == 3
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', page)
    assert len(pictures) == 5 + 3 + 4  # of the model, of both networks, of the masks
    assert len(re.findall(r'<a class="opens" href="([^"]+)"', page)) == 3
    assert all((trained / address).is_file() for address in pictures)
    assert "http" not in page
    sizes = {p.stem: Image.open(p).size for p in (trained / "figures").glob("*.[jp][pn]g")}
    size = card["method"]["size"]
    width, height = sizes["group_desc-synthetic_model"]
    assert (width, height) == (6 * 4 * size, 3 * 4 * size)


def test_reports_only_trains_nothing(heads, trained, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    (out / "group.html").unlink()
    before = {p: p.stat().st_mtime_ns for p in (out / MODEL).rglob("*") if p.is_file()}
    assert cli.main([str(heads), str(out), "group", "--reports-only"]) == 0
    assert (out / "group.html").is_file()
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())


def test_with_a_model_from_elsewhere_the_training_here_is_not_shown(heads, trained, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    other = Path(shutil.copytree(trained / MODEL, tmp_path / "other"))
    assert (out / "figures/group_desc-label_model.png").is_file()
    call = [str(heads), str(out), "group", "--reports-only"]
    assert cli.main([*call, "--model", str(other)]) == 0
    page = (out / "group.html").read_text()
    assert "desc-label" not in page and "desc-pseudo1" not in page
    assert "desc-calibration" in page  # that of the model
    assert cli.main(call) == 0
    page = (out / "group.html").read_text()
    assert "desc-label" in page and "desc-pseudo1" in page


def test_traces_of_an_earlier_model_are_left_out(tmp_path):
    scans = make(tmp_path, 5)
    folder = tmp_path / MODEL
    method = {**CARD["method"], "rounds": 0}
    card = {**CARD, "method": method, "unlabelled": scans, "network": "sl1.safetensors"}
    card["sha256"] = {"sl1.safetensors": "new"}
    files.write_json(folder / "model.json", card)
    group_report.write(Derivatives(tmp_path), folder)
    page = (tmp_path / "group.html").read_text()
    assert "<tr data-name" not in page
    assert 'id="scatter"' not in page
    assert "sl1, autoencoder." in page
    assert page.count("Another model than that of this folder made this mask") == 5


def test_what_was_done_about_the_label_is_told(tmp_path):
    make(tmp_path, 2)
    folder, found = tmp_path / MODEL, []
    for facts in (
        {},
        {"threshold": 0.5, "continued": False},
        {"threshold": 0.634, "continued": True},
    ):
        files.write_json(folder / "model.json", {**CARD, **facts})
        group_report.write(Derivatives(tmp_path), folder)
        page = (tmp_path / "group.html").read_text()
        found.append(
            (".634, because at one half" in page, "its field of view is extended" in page)
        )
    assert found == [(False, False), (False, False), (True, True)]
    assert "Threshold</th>" in page


def test_charts_follow_the_tables(tmp_path):
    make(tmp_path, 4)
    folder = tmp_path / MODEL
    charts = {"curves", "guard", "calibration"}

    def drawn():
        group_report.write(Derivatives(tmp_path), folder)
        page = (tmp_path / "group.html").read_text()
        return {name for name in charts if f"group_desc-{name}_model" in page}

    assert drawn() == charts
    (folder / "sl1_sample.tsv").unlink()
    assert drawn() == {"curves", "calibration"}
    (folder / "round-1_copies.tsv").unlink()
    assert drawn() == {"curves"}


def test_a_chart_is_drawn_again_only_for_other_tables(tmp_path):
    make(tmp_path, 4)
    folder = tmp_path / MODEL
    group_report.write(Derivatives(tmp_path), folder)
    charts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("group_desc-*_model.svg")}
    assert len(charts) == 4
    table = folder / "sl1_training.tsv"
    table.write_text(table.read_text().replace("0.5", "0.7"))
    group_report.write(Derivatives(tmp_path), folder)
    changed = {path for path, when in charts.items() if path.stat().st_mtime_ns != when}
    assert [path.name for path in changed] == ["group_desc-curves_model.svg"]
    page = (tmp_path / "group.html").read_text()
    assert page.count("points-1-kept") > 1  # a chart from disk is in the page, too


def test_points_are_in_the_order_of_their_rows():
    rows = [
        {"round": n, "kept": kept, "group": group, "rank": 0.9 - i / 10, "volume_ml": 1000.0 + i}
        for i, (n, kept, group) in enumerate(
            [
                ("1", True, "points-1-kept"),
                ("1", False, "points-1-not"),
                ("1", True, "points-1-kept"),
                ("2", True, "points-2-kept"),
                ("1", True, ""),
            ]
        )
    ]
    root = ET.fromstring(charts.ranks(rows))
    groups = {node.get("id"): node for node in root.iter() if "points-" in node.get("id", "")}
    assert set(groups) == {"points-1-kept", "points-1-not", "points-2-kept", "points-2-not"}
    places = {
        name: [float(use.get("x")) for use in node.iter() if use.tag.endswith("use")]
        for name, node in groups.items()
    }
    assert len(places["points-1-kept"]) == 2  # of a single point the path itself is drawn
    assert places["points-1-kept"] == sorted(places["points-1-kept"])
    assert len(groups["points-2-not"].findall(".//*[@d]")) <= 1


def test_without_a_model_there_are_masks_alone(tmp_path):
    make(tmp_path, 3)
    shutil.rmtree(tmp_path / MODEL)
    group_report.write(Derivatives(tmp_path), tmp_path / MODEL)
    page = (tmp_path / "group.html").read_text()
    assert page.count('<article class="card"') == 3
    assert "not in this folder" in page


def test_gallery_shows_voxels_in_colours():
    values = np.linspace(0, 1, 8**3).reshape(8, 8, 8)
    mask = np.zeros((8, 8, 8), bool)
    mask[2:6, 2:6, 2:6] = True
    grey = figures.gallery([(values, mask)] * 2)
    assert grey.shape == (3 * 32, 2 * 32, 3)
    colours = figures.gallery([(values, mask)], "cividis").astype(int)
    assert np.ptp(colours[0, 0]) > 30
    with pytest.raises(KeyError):
        figures.gallery([(values, mask)], "no such colours")
    assert Image.open(io.BytesIO(group_report.encode(grey))).size == (64, 96)
