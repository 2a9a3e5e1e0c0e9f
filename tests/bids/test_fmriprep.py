"""The fMRIPrep view: which scans get a mask there, on which grid, and what is refused."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import MODEL, hand_over, make_dataset, participant_config

from singlestrip_bids import cli
from singlestrip_bids.bids import fmriprep
from singlestrip_bids.bids.derivatives import made_here
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.config import RunConfig
from singlestrip_bids.errors import Usage
from singlestrip_bids.machine.files import read_json


def config_of(bids: Path, view: Path | None, sessionwise: bool = False) -> RunConfig:
    return participant_config(bids, fmriprep_masks=view, fmriprep_sessionwise=sessionwise)


SCANS = [
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_T2w.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
    "sub-02/ses-2/anat/sub-02_ses-2_acq-x_T1w.nii.gz",
    "sub-03/anat/sub-03_run-1_T1w.nii.gz",
    "sub-03/anat/sub-03_run-2_T1w.nii.gz",
    "sub-04/anat/sub-04_T2w.nii.gz",
]
SUBJECTWISE = ["sub-01/anat/sub-01_desc-brain_mask.nii.gz"]
SESSIONWISE = [
    *SUBJECTWISE,
    "sub-02/ses-1/anat/sub-02_ses-1_desc-brain_mask.nii.gz",
    "sub-02/ses-2/anat/sub-02_ses-2_acq-x_desc-brain_mask.nii.gz",
]


def test_one_mask_a_subject_and_a_warning_for_the_others(tmp_path, caplog):
    config = config_of(make_dataset(tmp_path / "bids", SCANS), tmp_path / "view")
    with caplog.at_level(logging.WARNING, "singlestrip_bids"):
        assert hand_over(config) == SUBJECTWISE
    two, three = [record.getMessage() for record in caplog.records]
    for word in ("sub-02 has 2 T1w", *SCANS[2:4], "--fmriprep-sessionwise", "--bids-filter-file"):
        assert word in two
    for word in ("sub-03 has 2 T1w", *SCANS[4:6], "--bids-filter-file"):
        assert word in three
    assert "sessionwise" not in three


def test_one_mask_a_session(tmp_path, caplog):
    config = config_of(make_dataset(tmp_path / "bids", SCANS), tmp_path / "view", sessionwise=True)
    assert hand_over(config) == SESSIONWISE
    assert [r.getMessage()[:6] for r in caplog.records if r.levelname == "WARNING"] == ["sub-03"]


def test_masks_of_another_selection_are_removed(tmp_path, caplog):
    bids = make_dataset(tmp_path / "bids", SCANS)
    hand_over(config_of(bids, tmp_path / "view", sessionwise=True))
    caplog.clear()
    assert hand_over(config_of(bids, tmp_path / "view")) == SUBJECTWISE
    removed = [r.getMessage() for r in caplog.records if "is removed" in r.getMessage()]
    assert len(removed) == 2
    assert len(list((tmp_path / "view").rglob("*_mask.json"))) == 1
    shutil.rmtree(bids / "sub-01")
    make_dataset(bids, ["sub-01/anat/sub-01_acq-b_T1w.nii.gz"])
    masks = hand_over(config_of(bids, tmp_path / "view"))
    assert masks == ["sub-01/anat/sub-01_acq-b_desc-brain_mask.nii.gz"]


def test_the_dataset_says_what_it_is(tmp_path):
    bids = make_dataset(tmp_path / "bids", SCANS[:1])
    hand_over(config_of(bids, tmp_path / "view"))
    assert made_here(tmp_path / "view")
    assert "--derivatives" in (tmp_path / "view" / "README.md").read_text()
    description = read_json(tmp_path / "view" / "dataset_description.json")
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {"raw": "../bids"}
    card = json.loads(next((tmp_path / "view").rglob("*_mask.json")).read_text())
    assert card["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert card["QualityScore"] == 0.9
    assert "RAS" in card["Description"]


def test_nothing_asked_for_nothing_written(tmp_path):
    config = config_of(make_dataset(tmp_path / "bids", SCANS), None)
    assert fmriprep.start(config, find_scans(config.bids_dir)) == frozenset()
    assert {path.name for path in tmp_path.iterdir()} == {"bids"}


@pytest.mark.parametrize(
    "place", ["bids", "bids/sub-01/x", "bids/code/x", "out", "out/view", ".", "bids/../out"]
)
def test_places_that_are_refused(tmp_path, place):
    bids = make_dataset(tmp_path / "bids", SCANS[:1])
    with pytest.raises(Usage, match=r"inside the input|within each other"):
        fmriprep.check(config_of(bids, tmp_path / place))
    fmriprep.check(config_of(bids, tmp_path / "view"))
    fmriprep.check(config_of(bids, bids / "derivatives" / "view"))


def test_other_contradictions(tmp_path):
    config = config_of(make_dataset(tmp_path / "bids", SCANS[:1]), tmp_path / "view")
    with pytest.raises(Usage, match="T1w"):
        fmriprep.check(replace(config, modalities=("T2w",)))
    fmriprep.check(replace(config, modalities=("all",)))
    with pytest.raises(Usage, match="--fmriprep-masks DIR"):
        fmriprep.check(replace(config, fmriprep_masks=None, fmriprep_sessionwise=True))


@pytest.mark.parametrize("subject", ["01", "02", "04"])
def test_the_app_writes_the_same_mask_to_the_view(heads, trained, tmp_path, subject, capfd):
    words = ["participant", "--model", str(trained / MODEL), "--participant-label", subject]
    view = tmp_path / "view"
    words += ["--fmriprep-masks", str(view)]
    assert cli.main([str(heads), str(tmp_path / "out"), *words]) == 0, capfd.readouterr().err
    name = f"sub-{subject}/anat/sub-{subject}_desc-brain_mask.nii.gz"
    native, handed = nib.load(tmp_path / "out" / name), nib.load(view / name)
    canonical = nib.as_closest_canonical(native)
    assert nib.aff2axcodes(handed.affine) == ("R", "A", "S")
    assert np.array_equal(handed.affine, canonical.affine)
    assert np.array_equal(np.asarray(handed.dataobj), np.asarray(canonical.dataobj))
    assert np.asarray(handed.dataobj).any()
    assert handed.get_data_dtype() == np.uint8


def test_several_jobs_write_to_one_view(heads, trained, tmp_path):
    command = [sys.executable, "-m", "singlestrip_bids.cli", str(heads), str(tmp_path / "out")]
    command += ["participant", "--model", str(trained / MODEL)]
    command += ["--fmriprep-masks", str(tmp_path / "view"), "--participant-label"]
    jobs = [subprocess.Popen([*command, subject]) for subject in ("01", "02", "04")]
    assert [job.wait(300) for job in jobs] == [0, 0, 0]
    view = tmp_path / "view"
    masks = [f"sub-{s}/anat/sub-{s}_desc-brain_mask" for s in ("01", "02", "04")]
    files = {str(path.relative_to(view)) for path in view.rglob("*") if path.is_file()}
    named = {f"{mask}{end}" for mask, end in itertools.product(masks, (".nii.gz", ".json"))}
    assert files == {"dataset_description.json", "README.md", ".bidsignore"} | named
