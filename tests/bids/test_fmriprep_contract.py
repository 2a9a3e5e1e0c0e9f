"""What fMRIPrep does with the masks we hand over, by its own parts.

For a subject with one T1w scan smriprep denoises it with ANTs, conforms it, and validates its
header; then it applies the mask to the result. ANTs' part in the geometry is played by
SimpleITK: both read and write headers with ITK.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import affine_of, axes, hand_over, make_dataset, participant_config, turned

REASON = "needs the extra fmriprep-contract (make contract)"
sitk = pytest.importorskip("SimpleITK", reason=REASON)
bids_utils = pytest.importorskip("smriprep.utils.bids", reason=REASON)
images = pytest.importorskip("niworkflows.interfaces.images", reason=REASON)
header = pytest.importorskip("niworkflows.interfaces.header", reason=REASON)
masks = pytest.importorskip("niworkflows.interfaces.nibabel", reason=REASON)

SHAPE = (11, 12, 13)
T1W = "sub-01/anat/sub-01_T1w.nii.gz"
SCANNER_FORMS = [(1, 1), (1, 0), (2, 0), (1, 2)]  # sform and qform codes


def grids() -> list[tuple[str, np.ndarray]]:
    """Axes, obliqueness and voxel sizes."""
    found = []
    for codes, degrees, sizes in itertools.product(
        ("RAS", "LAS", "PIR", "LPI", "ASL"),
        ((0, 0, 0), (0.2, -0.1, 0.3), (18, -12, 8), (25, 30, -20)),
        ((1.0, 1.0, 1.0), (0.7, 0.9375, 3.3)),
    ):
        name = f"{codes}-{'x'.join(map(str, degrees))}-{'x'.join(map(str, sizes))}"
        found.append((name, affine_of(turned(codes, degrees), sizes, (-91.3, 60.07, -12.5))))
    return found


def reference(scan: Path) -> Path:
    """Make the T1w reference as smriprep does for one scan, in the working folder."""
    size = images.TemplateDimensions(anat_list=[str(scan)]).run().outputs
    denoised = Path.cwd() / "denoised.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(scan)), str(denoised))
    conformed = images.Conform(
        in_file=str(denoised), target_zooms=size.target_zooms, target_shape=size.target_shape
    ).run()
    valid = header.ValidateImage(in_file=conformed.outputs.out_file).run()
    return Path(valid.outputs.out_file)


def collect(view: Path, session: str | None = None) -> object:
    cache = bids_utils.collect_derivatives(view, "01", ["MNI152NLin2009cAsym"], session_id=session)
    return cache.get("t1w_mask")


@pytest.mark.parametrize("codes", SCANNER_FORMS)
def test_the_mask_is_found_and_fits_the_reference(tmp_path, monkeypatch, codes):
    rng = np.random.default_rng(0)
    for name, affine in grids():
        root = tmp_path / name
        (root / "work").mkdir(parents=True)
        monkeypatch.chdir(root / "work")
        bids = make_dataset(root / "bids", [])
        data = rng.integers(1, 1000, SHAPE).astype(np.int16)
        image = nib.Nifti1Image(data, affine)
        image.set_sform(affine, codes[0])
        image.set_qform(affine, codes[1])
        (bids / T1W).parent.mkdir(parents=True)
        nib.save(image, bids / T1W)
        mask = rng.random(SHAPE) > 0.5
        written = hand_over(participant_config(bids, fmriprep_masks=root / "view"), mask)
        assert len(written) == 1

        found = collect(root / "view")
        assert found == str(root / "view/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
        ours = masks.ApplyMask(in_file=str(reference(bids / T1W)), in_mask=found).run()
        cut = nib.load(ours.outputs.out_file)
        assert nib.aff2axcodes(cut.affine) == ("R", "A", "S")
        native = nib.Nifti1Image(np.where(mask, data, 0).astype(np.int16), affine)
        assert np.array_equal(
            np.asarray(cut.dataobj), np.asarray(nib.as_closest_canonical(native).dataobj)
        ), name


def test_a_mask_on_the_scans_own_grid_would_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    affine = affine_of(axes("LAS"), (1, 1, 1), (0, 0, 0))
    scan, native = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), affine), scan)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), affine), native)
    with pytest.raises(ValueError, match="not similar enough"):
        masks.ApplyMask(in_file=str(reference(scan)), in_mask=str(native)).run()


def test_two_masks_would_be_a_list_and_ours_is_one_or_none(tmp_path):
    scans = [f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in "12"]
    scans += ["sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz"]
    bids = make_dataset(tmp_path / "bids", scans)
    view = tmp_path / "view"
    hand_over(participant_config(bids, fmriprep_masks=view, fmriprep_sessionwise=True))
    assert isinstance(collect(view), list)
    for session in "12":
        found = collect(view, session)
        assert Path(found).name == f"sub-01_ses-{session}_desc-brain_mask.nii.gz"
    hand_over(participant_config(bids, fmriprep_masks=view))
    assert collect(view) is None
    assert not list(view.rglob("*_mask.*"))
