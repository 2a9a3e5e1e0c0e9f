"""Pages of subjects: complete, alone in the world, and never in the way of a mask."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders import MODEL

from singlestrip_bids import cli
from singlestrip_bids.bids.derivatives import Derivatives, sidecar_path
from singlestrip_bids.machine import files
from singlestrip_bids.report import subject as subject_report


class Reader(HTMLParser):
    """Collects the addresses, ids and alternative texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses, self.ids, self.silent, self.tags = [], set(), [], set()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.addresses += [found[key] for key in ("src", "href") if key in found]
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "img" and not found.get("alt"):
            self.silent.append(found)


@pytest.fixture
def out(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "out"))


DRAWN = [name for name in subject_report.PICTURES if name != "parts"]


def sidecar_of(out: Path, subject: str) -> Path:
    return next((out / f"sub-{subject}").rglob("*_desc-brain_mask.json"))


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_every_subject_has_a_page_whose_pictures_are_there(trained):
    for subject in ("01", "02", "03", "04"):
        page = Reader(trained / f"sub-{subject}.html")
        files = [a for a in page.addresses if not a.startswith(("#", "data:"))]
        assert sum(not address.endswith(".html") for address in files) == 4
        assert "group.html" in files
        assert all((trained / address).is_file() for address in files)
        assert {a[1:] for a in page.addresses if a.startswith("#")} <= page.ids
        assert not page.silent
        names = {p.name for p in (trained / f"sub-{subject}/figures").iterdir()}
        assert {name.split("_")[1] for name in names} >= {f"desc-{d}" for d in DRAWN}
        assert ("desc-pseudo1" in str(names)) == (subject != "01")
        assert all(
            re.fullmatch(rf"sub-{subject}_desc-\w+_T[12]w\.(jpg|svg|html)", n) for n in names
        )


def test_page_needs_no_network_and_no_script(trained):
    page = Reader(trained / "sub-02.html")
    assert "script" not in page.tags
    assert "http" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_page_tells_the_numbers_of_the_sidecar(trained):
    fields = json.loads(sidecar_of(trained, "02").read_text())
    card = json.loads((trained / MODEL / "model.json").read_text())
    page = (trained / "sub-02.html").read_text()
    for number in (fields["ExpectedDice"], *fields["ExpectedDiceInterval"]):
        assert f"{number:.3f}".removeprefix("0") in page
    assert f"{fields['BrainVolumeMl']:.0f} ml" in page
    assert card["network"] in page
    assert card["versions"]["torch"] in page
    assert card["label"][0]["scan"] in page
    assert "seed 0" in page
    assert "of the 3 other masks" in page


def test_page_tells_how_much_label_and_fine_network_changed(out):
    path = sidecar_of(out, "02")
    fields = {"PropagatedWeight": 0.64, "FineWeight": 0.67, "NetworkAgreement": 0.8765}
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    subject_report.write(Derivatives(out), "02")
    page = (out / "sub-02.html").read_text()
    assert all(shown in page for shown in ("64 %", "67 %", ".876", "first network alone"))


CARD = {"brain_ml": 1500.0, "network": "n", "sha256": {"n": "abc"}}
GOOD = {
    "ExpectedDice": 0.95,
    "ExpectedDiceInterval": [0.9, 0.97],
    "MildContrastAgreement": 0.97,
    "BrainVolumeMl": 1400.0,
    "ModelSHA256": "abc",
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"ExpectedDice": 0.85, "ExpectedDiceInterval": [0.6, 0.9]}, "low (0.85)"),
        ({"ExpectedDiceInterval": [0.7, 0.97]}, "as low as 0.70"),
        ({"MildContrastAgreement": 0.8}, "slightly different contrast"),
        ({"BrainVolumeMl": 3000.0}, "2.0 times"),
        ({"BrainVolumeMl": 600.0}, "0.4 times"),
        ({"ModelSHA256": "other"}, "Another model"),
        ({"Averaged": "The mask is of the mean over time of 3 volumes."}, "3 volumes"),
    ],
)
def test_remarks(change, word):
    said = subject_report.remarks({**GOOD, **change}, CARD)
    assert len(said) == (word is not None)
    assert word is None or word in said[0]


def test_old_masks_without_an_expected_dice_have_a_page(out):
    path = sidecar_of(out, "02")
    fields = json.loads(path.read_text())
    kept = ("SpatialReference", "Type", "ModelSHA256")
    path.write_text(json.dumps({key: fields[key] for key in kept}))
    subject_report.write(Derivatives(out), "02")
    page = (out / "sub-02.html").read_text()
    assert "not known" in page
    assert "not in this folder" in page


def test_failed_scans_are_named(out):
    why = "/data/sub-02_FLAIR.nii.gz: damaged <truncated>; restore the file."
    failures = {"sub-02/anat/sub-02_FLAIR.nii.gz": why, "sub-03/anat/sub-03_T1w.nii.gz": "other"}
    subject_report.write(Derivatives(out), "02", None, failures)
    page = (out / "sub-02.html").read_text()
    assert "damaged &lt;truncated&gt;; restore the file." in page
    assert "sub-03" not in page
    scan = json.loads(sidecar_of(out, "03").read_text())["SpatialReference"].split(":")[2]
    subject_report.write(Derivatives(out), "03", None, {scan: "out of memory"})
    assert "this mask is an earlier one: out of memory" in (out / "sub-03.html").read_text()


def test_a_picture_that_fails_loses_no_mask(heads, trained, tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise ValueError("no pen")

    monkeypatch.setattr(subject_report, "mosaic", broken)
    out = tmp_path / "out"
    words = ("participant", "--model", str(trained / MODEL), "--participant-label", "02")
    assert cli.main([str(heads), str(out), *words]) == 0
    assert "could not be drawn" in capfd.readouterr().err
    assert sidecar_of(out, "02").is_file()
    page = (out / "sub-02.html").read_text()
    assert "There is no picture of this mask" in page
    assert "<img" not in page


def test_without_the_model_the_shape_check_stays(heads, out):
    (picture,) = out.glob("sub-02/figures/*_desc-rebuilt_*")
    before = picture.read_bytes()
    shutil.rmtree(out / MODEL)
    assert cli.main([str(heads), str(out), "participant", "--reports-only"]) == 0
    assert picture.read_bytes() == before


def test_a_card_that_cannot_be_read_costs_no_page(heads, out, capfd):
    (out / MODEL / "model.json").write_text('{"format": 0}')
    (out / "sub-02.html").unlink()
    assert cli.main([str(heads), str(out), "participant", "--reports-only"]) == 0
    assert "No reconstruction is drawn" in capfd.readouterr().err
    assert (out / "sub-02.html").is_file()


def test_reports_only_draws_what_is_on_disk_and_masks_nothing(heads, out, capfd):
    masks = {path: path.read_bytes() for path in out.rglob("*_mask.nii.gz")}
    for folder in out.glob("sub-*/figures"):
        shutil.rmtree(folder)
    for page in out.glob("*.html"):
        page.unlink()
    path = next((out / "sub-02").rglob("*_mask.nii.gz"))
    path.unlink()
    code = cli.main([str(heads), str(out), "participant", "--reports-only"])
    assert code == 1  # one mask is gone, and that is said
    assert path.name in capfd.readouterr().err
    assert {p: p.read_bytes() for p in out.rglob("*_mask.nii.gz")} == {
        p: data for p, data in masks.items() if p != path
    }
    assert len(list(out.glob("sub-*.html"))) == 4
    assert len(list(out.glob("sub-*/figures/*"))) == 3 * len(DRAWN)


def test_without_its_autoencoder_a_mask_is_drawn_without_a_shape_check(heads, out, capfd):
    shutil.rmtree(out / "sub-02/figures")
    (out / MODEL / "autoencoder.safetensors").unlink()
    words = ["participant", "--reports-only", "--participant-label", "02"]
    assert cli.main([str(heads), str(out), *words]) == 0
    assert "No reconstruction is drawn" in capfd.readouterr().err
    assert len(list((out / "sub-02/figures").iterdir())) == len(DRAWN) - 1
    assert "shape check" not in (out / "sub-02.html").read_text()


def test_a_volume_has_its_place_among_the_others():
    volumes = [1000.0, 1200.0, 1200.0, 1500.0]
    place = subject_report.crowd(1200.0, volumes, 1400.0)
    assert (place["smaller"], place["others"], place["median"]) == (1, 3, 1200)
    assert place["low"] < 1000 < 1500 < place["high"]
    assert place["own"] < place["label"]
    assert max(place["bars"]) == 1
    highest = place["bars"].index(1)
    assert highest <= place["own"] * subject_report.BARS <= highest + 1
    assert subject_report.crowd(1200.0, [1200.0], 1400.0) is None
    assert subject_report.crowd(None, volumes, 1400.0) is None
    assert subject_report.crowd(1200.0, [1200.0, 1200.0], None)["label"] is None


def test_jobs_of_two_sessions_leave_one_whole_page(tmp_path):
    for session, written in (("1", 1), ("2", 2)):
        name = f"sub-01_ses-{session}"
        mask = tmp_path / f"sub-01/ses-{session}/anat/{name}_desc-brain_mask.nii.gz"
        scan = f"sub-01/ses-{session}/anat/{name}_T1w.nii.gz"
        files.write_json(sidecar_path(mask), {**GOOD, "SpatialReference": f"bids:raw:{scan}"})
        subject_report.write(Derivatives(tmp_path), "01")
        page = (tmp_path / "sub-01.html").read_text()
        assert page.count("<h2>sub-01_ses-") == written
