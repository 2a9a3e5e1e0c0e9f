"""Which scans carry the label, and which mask belongs to which scan."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import pytest
from builders import (
    HEADS,
    OTHER_AFFINE,
    SCANS,
    SHAPE,
    add_mask,
    write_description,
    write_nifti,
)

from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.label import find_label
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.errors import BadData, NoInput, Usage


class TestScanOf:
    @pytest.mark.parametrize(
        ("mask", "scan"),
        [
            ("sub-02/ses-1/anat/sub-02_ses-1_acq-lo_run-01", SCANS[2]),
            ("sub-02/ses-1/anat/sub-02_ses-1", SCANS[2]),
            ("sub-02/anat/sub-02", SCANS[2]),
            ("sub-02/ses-1/func/sub-02_ses-1_task-rest", SCANS[3]),
            ("sub-02/ses-1/anat/sub-02_ses-1_space-bold", None),
            ("sub-03/perf/sub-03", SCANS[5]),
        ],
    )
    def test_scan_by_name(self, bids, mask, scan):
        add_mask(bids, mask)
        if scan is None:  # both scans of the session are on the mask's grid
            with pytest.raises(Usage, match="fits several scans"):
                find_label(bids)
        else:
            assert find_label(bids)[0].scan.relative == scan

    def test_every_mask_name_leads_back_to_its_scan(self, bids):
        for scan in find_scans(bids, ["all"]):
            mask = write_nifti(Derivatives(bids / "derivatives" / scan.name).mask(scan))
            (label,) = find_label(bids, (), (), [bids / "derivatives" / scan.name])
            assert (label.scan, label.mask) == (scan, mask)

    @pytest.mark.parametrize("key", ["SpatialReference", "Sources"])
    def test_scan_by_sidecar(self, bids, key):
        mask = add_mask(bids, "sub-01/anat/sub-01")
        uri = f"bids:raw:{SCANS[1]}"
        fields = {"SpatialReference": "orig", key: uri if key != "Sources" else [uri]}
        Path(str(mask).replace(".nii.gz", ".json")).write_text(json.dumps(fields))
        assert find_label(bids)[0].scan.relative == SCANS[1]

    def test_scan_by_grid(self, bids):
        second = "sub-01/anat/sub-01_run-2_T1w.nii.gz"
        write_nifti(bids / second, affine=OTHER_AFFINE)
        add_mask(bids, "sub-01/anat/sub-01", affine=OTHER_AFFINE)
        assert find_label(bids)[0].scan.relative == second

    def test_several_scans_on_the_grid(self, bids):
        write_nifti(bids / "sub-01/anat/sub-01_run-2_T1w.nii.gz")
        add_mask(bids, "sub-01/anat/sub-01")
        with pytest.raises(Usage, match=r"fits several scans: .*sub-01_T1w.*, .*run-2_T1w.*JSON"):
            find_label(bids)

    @pytest.mark.parametrize("codes", ["RAS", "PIR", "LSA"])
    def test_axes_in_another_order(self, bids, codes):
        mask = add_mask(bids, "sub-01/anat/sub-01")
        image = nib.load(mask)
        ornts = [nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)]
        nib.save(image.as_reoriented(nib.orientations.ornt_transform(*ornts)), mask)
        assert nib.aff2axcodes(nib.load(mask).affine) == tuple(codes)
        assert find_label(bids)[0].scan.relative == SCANS[0]

    def test_the_order_of_axes_tells_two_scans_apart(self, bids):
        second = bids / "sub-01/anat/sub-01_run-2_T1w.nii.gz"
        nib.save(nib.as_closest_canonical(nib.load(bids / SCANS[0])), second)
        mask = add_mask(bids, "sub-01/anat/sub-01")
        assert find_label(bids)[0].scan.relative == SCANS[0]
        nib.save(nib.as_closest_canonical(nib.load(mask)), mask)
        assert find_label(bids)[0].scan.path == second

    def test_another_grid(self, bids):
        add_mask(bids, "sub-01/anat/sub-01", affine=OTHER_AFFINE)
        with pytest.raises(BadData, match=r"another grid .*sub-01_T1w.*Resample"):
            find_label(bids)

    def test_another_shape(self, bids):
        add_mask(bids, "sub-01/anat/sub-01", shape=(5, 6, 8))
        with pytest.raises(BadData, match=r"\(5, 6, 8\).*\(5, 6, 7\)"):
            find_label(bids)

    def test_4d_scan_and_masks(self, bids):
        write_nifti(bids / SCANS[5], shape=(*SHAPE, 3))
        add_mask(bids, "sub-03/perf/sub-03", shape=(*SHAPE, 1))
        assert find_label(bids)[0].scan.relative == SCANS[5]
        add_mask(bids, "sub-03/perf/sub-03", shape=(*SHAPE, 2))
        with pytest.raises(BadData, match="one volume"):
            find_label(bids)

    def test_session_without_scans(self, bids):
        add_mask(bids, "sub-02/ses-9/anat/sub-02_ses-9")
        with pytest.raises(NoInput, match="sub-02 ses-9 has none"):
            find_label(bids)

    def test_dangling_mask(self, bids):
        mask = bids / "derivatives/manual/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
        mask.parent.mkdir(parents=True)
        mask.symlink_to("gone")
        with pytest.raises(BadData, match="a link to a file that is not there, gone"):
            find_label(bids)

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\x1f\x8b\x08\x00"])
    def test_unreadable_mask(self, bids, content):
        add_mask(bids, "sub-01/anat/sub-01").write_bytes(content)
        with pytest.raises(BadData, match=r"mask\.nii\.gz: (not a readable NIfTI|damaged)"):
            find_label(bids)

    def test_flat_mask(self, bids):
        add_mask(bids, "sub-01/anat/sub-01", shape=(5, 6))
        with pytest.raises(BadData, match="not a volume"):
            find_label(bids)

    def test_unreadable_sidecar(self, bids):
        mask = add_mask(bids, "sub-01/anat/sub-01")
        Path(str(mask).replace(".nii.gz", ".json")).write_text("{")
        with pytest.raises(BadData, match=r"mask\.json is not readable JSON"):
            find_label(bids)

    def test_free_name_goes_by_grid_then_contrast(self, bids, tmp_path):
        mask = write_nifti(tmp_path / "drawn.nii")
        assert find_label(bids, (), ["01"], (), mask)[0].scan.relative == SCANS[0]
        write_nifti(bids / SCANS[0], affine=OTHER_AFFINE)
        assert find_label(bids, (), ["01"], (), mask)[0].scan.relative == SCANS[1]

    def test_a_scan_that_cannot_be_read_does_no_harm_to_others(self, bids, tmp_path):
        mask = write_nifti(tmp_path / "drawn.nii")
        (bids / SCANS[1]).unlink()
        (bids / SCANS[1]).symlink_to("../../.git/annex/objects/aa/bb/scan.nii.gz")
        assert find_label(bids, (), ["01"], (), mask)[0].scan.relative == SCANS[0]
        write_nifti(bids / SCANS[0], affine=OTHER_AFFINE)
        with pytest.raises(BadData, match=r"T2w\.nii\.gz: its content is not here"):
            find_label(bids, (), ["01"], (), mask)


class TestFindLabel:
    def test_the_only_mask(self, bids):
        mask = add_mask(bids, "sub-01/anat/sub-01")
        (label,) = find_label(bids, find_scans(bids))
        assert label.mask == mask
        assert label.scan.relative == SCANS[0]

    def test_masks_in_derivatives_itself(self, bids):
        mask = add_mask(bids, "sub-01/anat/sub-01", dataset=".")
        assert find_label(bids)[0].mask == mask

    def test_named_subjects_in_their_order(self, bids):
        add_mask(bids, "sub-01/anat/sub-01")
        add_mask(bids, "sub-02/ses-2/anat/sub-02_ses-2_space-FLAIR")
        labels = find_label(bids, (), ["sub-02", "01"])
        assert [label.scan.relative for label in labels] == [SCANS[4], SCANS[0]]

    def test_scan_outside_the_selection(self, bids, caplog):
        caplog.set_level(logging.INFO)
        add_mask(bids, "sub-01/anat/sub-01_space-T2w")
        scans = find_scans(bids, ["FLAIR"], ["02"])
        assert find_label(bids, scans)[0].scan.relative == SCANS[1]
        assert "though not selected" in caplog.text

    def test_own_predictions_are_no_labels(self, bids):
        add_mask(bids, "sub-01/anat/sub-01", dataset="predicted")
        own = bids / "derivatives" / "predicted"
        write_description(own, GeneratedBy=[{"Name": "singlestrip-bids"}])
        with pytest.raises(NoInput, match="No brain mask"):
            find_label(bids)
        assert find_label(bids, (), (), [own])[0].scan.relative == SCANS[0]

    def test_own_predictions_are_none_though_not_fetched(self, bids):
        add_mask(bids, "sub-01/anat/sub-01", dataset="predicted")
        description = bids / "derivatives/predicted/dataset_description.json"
        description.symlink_to("../../.git/annex/objects/aa/bb/description.json")
        with pytest.raises(NoInput, match="No brain mask"):
            find_label(bids)

    @pytest.mark.parametrize("kind", ["desc-brain_mask", "dseg"])
    def test_what_is_drawn_by_hand_comes_first(self, bids, kind):
        name = "sub-01/anat/sub-01"
        for subject in ("01", "02"):
            add_mask(bids, name.replace("01", subject), dataset="fmriprep")
        drawn = write_nifti(bids / f"derivatives/manual/{name}_{kind}.nii.gz")
        (label,) = find_label(bids)
        assert label.mask == drawn
        with pytest.raises(Usage, match="holds brain masks of 2 subjects"):
            find_label(bids, (), (), [bids / "derivatives/fmriprep"])

    def test_unreadable_derivative_is_skipped(self, bids, caplog):
        add_mask(bids, "sub-01/anat/sub-01")
        add_mask(bids, "sub-02/anat/sub-02", dataset="odd")
        (bids / "derivatives/odd/dataset_description.json").write_text("{")
        assert find_label(bids)[0].scan.subject == "01"
        assert "No label is taken" in caplog.text

    def test_derivatives_restrict_the_search(self, bids, tmp_path):
        add_mask(bids, "sub-01/anat/sub-01")
        mask = write_nifti(tmp_path / "mine/sub-03/perf/sub-03_desc-brain_mask.nii.gz")
        assert find_label(bids, (), (), [tmp_path / "mine"])[0].mask == mask

    @pytest.mark.parametrize(
        "name",
        [
            "sourcedata/x/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "derivatives/.x/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "derivatives/x/sub-01/anat/._sub-01_desc-brain_mask.nii.gz",
            "derivatives/x/sub-01/anat/sub-01_desc-tumour_mask.nii.gz",
            "derivatives/x/sub-01/anat/sub-01_desc-brain_mask.nii.gz.bak/f.nii",
        ],
    )
    def test_not_a_label(self, bids, name):
        write_nifti(bids / name)
        with pytest.raises(NoInput):
            find_label(bids)


class TestFindLabelErrors:
    def test_no_mask(self, bids):
        with pytest.raises(NoInput, match=r"derivatives/manual/sub-XX/anat.*--label-mask"):
            find_label(bids)

    def test_no_mask_of_the_named_subject(self, bids):
        add_mask(bids, "sub-01/anat/sub-01")
        with pytest.raises(NoInput, match=r"of sub-02 in .*manual\. Masks there: sub-01"):
            find_label(bids, (), ["02"])

    def test_several_subjects(self, bids):
        add_mask(bids, "sub-01/anat/sub-01")
        add_mask(bids, "sub-03/perf/sub-03")
        with pytest.raises(Usage, match=r"sub-01, sub-03\..*--label-subject"):
            find_label(bids)

    @pytest.mark.parametrize("named", [(), ("01",)])
    def test_two_masks_of_a_subject(self, bids, named):
        add_mask(bids, "sub-01/anat/sub-01")
        add_mask(bids, "sub-01/anat/sub-01_space-T2w")
        with pytest.raises(Usage, match=r"sub-01 has 2 brain masks: .*--label-mask"):
            find_label(bids, (), named)

    def test_subject_not_in_the_dataset(self, bids):
        with pytest.raises(NoInput, match="no sub-77"):
            find_label(bids, (), ["77"])
        add_mask(bids, "sub-88/anat/sub-88")
        with pytest.raises(NoInput, match="no sub-88"):
            find_label(bids)

    def test_missing_derivatives_folder(self, bids):
        with pytest.raises(NoInput, match=r"gone .--derivatives. is not a folder"):
            find_label(bids, (), (), [bids / "gone"])


class TestLabelMask:
    def test_subject_in_its_name(self, bids, tmp_path):
        mask = write_nifti(tmp_path / "sub-01_brain.nii.gz")
        add_mask(bids, "sub-02/anat/sub-02")
        assert find_label(bids, label_mask=mask)[0].mask == mask

    def test_chooses_between_two_masks(self, bids):
        add_mask(bids, "sub-01/anat/sub-01")
        mask = add_mask(bids, "sub-01/anat/sub-01_space-T2w")
        (label,) = find_label(bids, (), ["sub-01"], (), mask)
        assert (label.scan.relative, label.mask) == (SCANS[1], mask)

    def test_relative_path(self, bids, tmp_path, monkeypatch):
        write_nifti(tmp_path / "sub-01_brain.nii.gz")
        monkeypatch.chdir(tmp_path)
        (label,) = find_label(bids, label_mask=Path("sub-01_brain.nii.gz"))
        assert label.mask == tmp_path / "sub-01_brain.nii.gz"

    @pytest.mark.parametrize(
        ("name", "named", "error", "match"),
        [
            ("drawn.nii.gz", (), Usage, "names no subject"),
            ("drawn.nii.gz", ("01", "02"), Usage, "sub-01, sub-02 are named"),
            ("sub-01_brain.nii.gz", ("02",), Usage, "of sub-01 by its name"),
            ("sub-77_brain.nii.gz", (), NoInput, "no sub-77"),
            ("gone.nii.gz", ("01",), NoInput, "is not there"),
        ],
    )
    def test_errors(self, bids, tmp_path, name, named, error, match):
        if name != "gone.nii.gz":
            write_nifti(tmp_path / name)
        with pytest.raises(error, match=match):
            find_label(bids, (), named, (), tmp_path / name)


@pytest.mark.skipif(not HEADS.is_dir(), reason="the real heads are not here")
class TestRealHeads:
    def test_masks_lead_to_their_scans(self):
        masks = sorted(HEADS.glob("derivatives/reference-masks/**/*_mask.nii.gz"))
        assert masks
        for mask in masks:
            (label,) = find_label(HEADS, label_mask=mask)
            folder = HEADS / "derivatives" / "reference-masks"
            assert Derivatives(folder).mask(label.scan) == mask

    def test_two_masks_of_sub_20(self):
        with pytest.raises(Usage, match="sub-20 has 2 brain masks"):
            find_label(HEADS, (), ["20"])
