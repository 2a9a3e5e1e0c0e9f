"""The BIDS validator has nothing to say against what we write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import VALIDATOR, complaints, make_dataset, put_scan

from singlestrip_bids import cli

pytestmark = pytest.mark.skipif(
    VALIDATOR is None, reason="bids-validator-deno is not installed (extra test)"
)

ONE, TWO = "sub-01/ses-1", "sub-01_ses-1"
SERIES = {
    f"{ONE}/anat/{TWO}_FLAIR.nii.gz": 2,
    f"{ONE}/func/{TWO}_task-rest_bold.nii.gz": 3,
    f"{ONE}/perf/{TWO}_asl.nii.gz": 2,
    f"{ONE}/dwi/{TWO}_dir-AP_dwi.nii.gz": 2,
}
VOLUMES = [
    f"{ONE}/anat/{TWO}_acq-fast_run-1_T1w.nii.gz",
    f"{ONE}/anat/{TWO}_T2w.nii.gz",
    f"{ONE}/anat/{TWO}_part-mag_chunk-1_PDw.nii.gz",
    f"{ONE}/anat/{TWO}_T2starw.nii.gz",
    f"{ONE}/anat/{TWO}_inplaneT2.nii.gz",
    f"{ONE}/func/{TWO}_task-rest_sbref.nii.gz",
    f"{ONE}/func/{TWO}_task-rest_boldref.nii.gz",
    f"{ONE}/perf/{TWO}_m0scan.nii.gz",
    f"{ONE}/dwi/{TWO}_dir-AP_sbref.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
    "sub-02/anat/sub-02_T1w.nii",
]


@pytest.fixture(scope="module")
def written(heads, trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("valid")
    bids, out = make_dataset(root / "bids", []), root / "out"
    source = heads / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    for name in [*VOLUMES, *SERIES]:
        put_scan(bids, name, source, SERIES.get(name, 1))
    shutil.copytree(trained / "code", out / "code")
    words = ["participant", "--modalities", "all", "--output", "brain", "probseg", "distance"]
    words += ["--border-mm", "-1.5", "--fmriprep-masks", str(root / "view")]
    assert cli.main([str(bids), str(out), *words, "--fmriprep-sessionwise"]) == 0
    return root


def test_all_that_the_participant_level_writes(written):
    out = written / "out"
    scans = len(VOLUMES) + len(SERIES)
    assert len(list(out.rglob("*_desc-brain_mask.nii.gz"))) == scans
    assert len(list(out.rglob("*_probseg.nii.gz"))) == scans
    assert len(list(out.rglob("*_distance.nii.gz"))) == scans
    assert len(list(out.rglob("*_desc-brainMinus1p5mm_mask.nii.gz"))) == scans
    assert complaints(out) == set()


def test_the_view_for_fmriprep(written):
    assert len(list((written / "view").rglob("*_mask.nii.gz"))) == 3
    assert complaints(written / "view") == set()


def test_group_and_participant_in_one_dataset(trained):
    assert (trained / "code" / "singlestrip" / "scores.tsv").is_file()
    assert {code for code, _ in complaints(trained)} <= {"NIFTI_UNIT"}  # the heads name no unit


def test_the_validator_sees_what_is_wrong(written, tmp_path):
    broken = Path(shutil.copytree(written / "view", tmp_path / "view"))
    mask = next(broken.rglob("*_mask.nii.gz"))
    mask.rename(mask.with_name(mask.name.replace("_desc", "_mod-T2w_desc")))
    assert complaints(broken)
