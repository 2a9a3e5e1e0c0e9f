from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from singlestrip_bids import cli, suggest
from singlestrip_bids.demo import write_dataset
from singlestrip_bids.method.pseudolabels import spread


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Four heads without a label; the third is nothing but noise."""
    folder = write_dataset(tmp_path_factory.mktemp("heads") / "bids", 4, spacing_scale=4)
    for mask in (folder / "derivatives").rglob("*.nii.gz"):
        mask.unlink()
    path = folder / "sub-03/anat/sub-03_T2w.nii.gz"
    path = path if path.is_file() else next((folder / "sub-03/anat").glob("*.nii.gz"))
    image = nib.load(path)
    noise = np.random.default_rng(0).normal(400, 100, image.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, image.affine), path)
    return folder


@pytest.fixture
def coarse(monkeypatch):
    """As the app does it, but sooner."""
    monkeypatch.setattr(suggest, "SIZE", 32)
    monkeypatch.setattr(suggest, "TARGETS", 2)


def test_worth_is_the_least_against_the_median_candidate_of_each_target():
    found = suggest.worth({"a": {"b": 0.9, "c": 0.7, "d": 0.6}, "b": {"a": 0.2, "c": 0.1}})
    assert found == pytest.approx({"a": 0.05, "b": 0.2, "c": -0.05, "d": -0.1})


def test_spread_takes_first_and_last_and_no_scan_twice():
    assert spread("abc", 5) == ["a", "b", "c"]
    assert spread(range(100), 4) == [0, 33, 66, 99]


@pytest.mark.slow
def test_heads_are_compared_and_the_spoilt_one_comes_last(heads, coarse, tmp_path, capfd):
    out = tmp_path / "out"
    assert cli.main([str(heads), str(out), "group", "--suggest-label"]) == 0
    with (out / "code/singlestrip/suggestion.tsv").open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert len(rows) == 4 and rows[-1]["scan"].startswith("sub-03")
    values = [float(row["likeness"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert f"1. {rows[0]['scan']}" in capfd.readouterr().err
    assert not list(out.rglob("*.safetensors")), "nothing is trained"


@pytest.mark.slow
def test_a_scan_that_cannot_be_read_is_named_and_the_others_are_compared(
    heads, coarse, tmp_path, capfd
):
    (heads / "sub-09/anat").mkdir(parents=True)
    (heads / "sub-09/anat/sub-09_T1w.nii.gz").write_bytes(b"no image")
    call = [str(heads), str(tmp_path / "out"), "group", "--suggest-label"]
    assert cli.main([*call, "--participant-label", "01", "02", "09"]) == 1
    said = capfd.readouterr().err
    assert "sub-09_T1w" in said and "1 of 3 scans were not compared" in said
    table = (tmp_path / "out/code/singlestrip/suggestion.tsv").read_text()
    assert "sub-01" in table and "sub-02" in table and "sub-09" not in table


@pytest.mark.slow
def test_a_scan_without_a_head_is_named_and_the_others_are_compared(
    heads, coarse, tmp_path, capfd
):
    specks = np.zeros((32, 32, 32), np.int16)
    specks[::8, ::8, ::8] = np.arange(64).reshape(4, 4, 4) + 1
    (heads / "sub-08/anat").mkdir(parents=True)
    nib.save(nib.Nifti1Image(specks, np.diag([6, 6, 6, 1])), heads / "sub-08/anat/sub-08_T1w.nii")
    call = [str(heads), str(tmp_path / "out"), "group", "--suggest-label"]
    assert cli.main([*call, "--participant-label", "01", "02", "08"]) == 1
    said = capfd.readouterr().err
    assert "no head is found" in said and "1 of 3 scans were not compared" in said


def test_one_scan_is_nothing_to_compare(heads, tmp_path, capfd):
    call = [str(heads), str(tmp_path / "out"), "group", "--suggest-label"]
    assert cli.main([*call, "--participant-label", "01"]) == 18
    assert "at least two" in capfd.readouterr().err


def test_why_nothing_can_be_compared_is_said(heads, tmp_path, capfd):
    bids = Path(shutil.copytree(heads, tmp_path / "bids"))
    for scan in bids.glob("sub-*/**/*.nii*"):
        scan.write_bytes(b"nonsense")
    assert cli.main([str(bids), str(tmp_path / "out"), "group", "--suggest-label"]) == 18
    said = capfd.readouterr().err.partition("0 scans can be compared")[2]
    for name in ("sub-01_T1w", "sub-04_T1w"):
        assert f"{name}.nii.gz: not a readable NIfTI image" in said


def test_no_mask_can_be_made_without_a_label(heads, tmp_path, capsys):
    call = [str(heads), str(tmp_path / "out"), "group", "participant", "--suggest-label"]
    assert cli.main(call) == 64
    assert "--suggest-label goes with the group level alone" in capsys.readouterr().err
