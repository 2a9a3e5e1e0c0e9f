"""Which scans there are, and which of them are selected."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from bidsschematools.schema import load_schema
from builders import SCANS, make_dataset, write_description, write_nifti

from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.config import ANATOMICAL, SUFFIXES
from singlestrip_bids.errors import BadData, InvalidDataset, NoInput, NothingSelected, Usage


def names(scans):
    return [scan.relative for scan in scans]


@pytest.mark.parametrize(
    "path",
    [
        "sub-01/anat/sub-02_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-2_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_T1w.nii.gz",
        "sub-01/anat/sub-01_ses-1_T1w.nii.gz",
    ],
)
def test_a_name_of_another_folder_is_left_out(bids, path, caplog):
    before = find_scans(bids, ["all"])
    write_nifti(bids / path)
    with caplog.at_level("WARNING", "singlestrip_bids"):
        assert find_scans(bids, ["all"]) == before
    assert f"{path} is left out: its name is of another folder" in caplog.text


class TestFindScans:
    def test_anatomical_by_default(self, bids):
        scans = find_scans(bids, ANATOMICAL)
        assert names(scans) == [SCANS[0], SCANS[1], SCANS[2], SCANS[4]]
        assert scans == find_scans(bids)

    def test_all_modalities(self, bids):
        assert names(find_scans(bids, ["all"])) == sorted(SCANS)

    def test_scan_properties(self, bids):
        scan = find_scans(bids, ["T1w"], ["02"])[0]
        assert scan.path == bids / SCANS[2]
        assert scan.bids_dir == bids
        assert (scan.subject, scan.session, scan.suffix) == ("02", "1", "T1w")
        assert scan.datatype == "anat"
        assert (scan.entities["acquisition"], scan.entities["run"]) == ("lo", "01")
        assert scan.name == "sub-02_ses-1_acq-lo_run-01_T1w"
        assert find_scans(bids, ["FLAIR"])[0].name == "sub-02_ses-2_FLAIR"

    def test_scan_is_hashable_and_picklable(self, bids):
        scan = find_scans(bids)[0]
        copy = pickle.loads(pickle.dumps(scan))
        assert {scan, copy} == {scan}
        assert copy.entities == scan.entities

    @pytest.mark.parametrize("label", ["02", "sub-02"])
    def test_participant(self, bids, label):
        assert {scan.subject for scan in find_scans(bids, ["all"], [label])} == {"02"}

    def test_participant_prefix_is_not_enough(self, bids):
        write_nifti(bids / "sub-011/anat/sub-011_T1w.nii.gz")
        assert {scan.subject for scan in find_scans(bids, ["T1w"], ["01"])} == {"01"}

    def test_participant_without_the_modality_is_logged(self, bids, caplog):
        find_scans(bids, ["T1w"], ["01", "03"])
        assert "sub-03 has no T1w" in caplog.text

    def test_relative_root_and_trailing_dots(self, bids, monkeypatch):
        monkeypatch.chdir(bids.parent)
        expected = find_scans(bids)
        assert find_scans(Path("bids")) == expected
        assert find_scans(Path("bids/sub-01/..")) == expected

    def test_folders_above_the_dataset_say_nothing(self, tmp_path):
        root = make_dataset(tmp_path / "sub-99" / "ses-9" / "func" / "run-7", SCANS)
        scan = find_scans(root)[0]
        assert (scan.subject, scan.session, scan.datatype) == ("01", None, "anat")
        assert "run" not in scan.entities

    def test_symlinks_are_kept(self, bids, tmp_path):
        target = write_nifti(tmp_path / "store" / "MD5E-1.nii.gz")
        link = bids / "sub-01/anat/sub-01_PDw.nii.gz"
        link.symlink_to(target)
        (bids / "sub-04").symlink_to(tmp_path / "store" / "four")
        write_nifti(tmp_path / "store/four/anat/sub-04_T1w.nii.gz")
        paths = [scan.path for scan in find_scans(bids)]
        assert link in paths
        assert bids / "sub-04/anat/sub-04_T1w.nii.gz" in paths
        (tmp_path / "linked").symlink_to(bids)
        assert tmp_path / "linked" / SCANS[0] in [s.path for s in find_scans(tmp_path / "linked")]

    def test_dangling_link_stays_in_the_list(self, bids):
        link = bids / "sub-04/anat/sub-04_T1w.nii.gz"
        link.parent.mkdir(parents=True)
        link.symlink_to("../../.git/annex/objects/gone.nii.gz")
        assert link in [scan.path for scan in find_scans(bids)]

    @pytest.mark.parametrize(
        "elsewhere",
        [
            "derivatives/manual/sub-01/anat/sub-01_T1w.nii.gz",
            "derivatives/sub-01/anat/sub-01_FLAIR.nii.gz",
            "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
            "sourcedata/raw/sub-01/anat/sub-01_T1w.nii.gz",
            "code/sub-01/anat/sub-01_T1w.nii.gz",
            ".hidden/sub-01/anat/sub-01_T1w.nii.gz",
            "sub-01/.cache/anat/sub-01_T1w.nii.gz",
            "sub-01/anat/._sub-01_T1w.nii.gz",
            "sub-01/anat/old/sub-01_FLAIR.nii.gz",
            "sub-01/fmap/sub-01_T1w.nii.gz",
            "sub-01/anat/sub-01_defacemask.nii.gz",
            "sub-01_copy/anat/sub-01_T1w.nii.gz",
        ],
    )
    def test_other_folders_are_never_scans(self, bids, elsewhere):
        before = find_scans(bids, ["all"])
        write_nifti(bids / elsewhere)
        assert find_scans(bids, ["all"]) == before

    @pytest.mark.parametrize(
        "name",
        ["part-phase_T1w.nii.gz", "part-imag_T1w.nii.gz", "desc-n4_T1w.nii.gz", "T1w.nii"],
    )
    def test_left_out_with_a_warning(self, bids, caplog, name):
        before = find_scans(bids)
        path = write_nifti(bids / f"sub-01/anat/sub-01_{name}")
        assert find_scans(bids) == before
        assert f"{path.name} is left out" in caplog.text
        caplog.clear()
        find_scans(bids, ["T2w"])
        assert not caplog.text

    def test_magnitude_is_kept(self, bids):
        path = write_nifti(bids / "sub-01/anat/sub-01_part-mag_T1w.nii.gz")
        assert path in [scan.path for scan in find_scans(bids)]

    def test_folder_that_must_not_be_read(self, bids, caplog, monkeypatch):
        whole, hidden = len(find_scans(bids)), str(bids / "sub-02")

        def listed(folder):
            if str(folder) == hidden:
                raise PermissionError
            return listdir(folder)

        listdir = os.listdir
        monkeypatch.setattr(os, "listdir", listed)
        assert 0 < len(find_scans(bids)) < whole
        assert f"{hidden} is left out: no permission" in caplog.text

    def test_empty_and_other_files_do_no_harm(self, bids):
        (bids / "sub-01/anat/sub-01_T1w.json").write_text("{broken")
        (bids / "sub-01/anat/sub-01_PDw.nii.gz").touch()
        assert "PDw" in {scan.suffix for scan in find_scans(bids)}

    def test_derivative_dataset_as_input(self, bids):
        write_description(bids, DatasetType="derivative")
        assert names(find_scans(bids, ["all"])) == sorted(SCANS)


class TestFindScansErrors:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(NoInput, match="gone is not a folder"):
            find_scans(tmp_path / "gone")

    def test_no_description(self, bids):
        (bids / "dataset_description.json").unlink()
        with pytest.raises(InvalidDataset, match="no dataset_description"):
            find_scans(bids)

    @pytest.mark.parametrize("content", ["{broken", "[]", "\xff"])
    def test_broken_description(self, bids, content):
        (bids / "dataset_description.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(InvalidDataset, match="dataset_description"):
            find_scans(bids)

    def test_no_subjects(self, tmp_path):
        write_description(tmp_path)
        with pytest.raises(InvalidDataset, match="no sub-"):
            find_scans(tmp_path)

    def test_missing_participants(self, bids):
        with pytest.raises(NothingSelected, match=r"no sub-08, sub-09\. It has: sub-01, sub-02"):
            find_scans(bids, ANATOMICAL, ["01", "08", "sub-09"])

    def test_long_lists_are_cut(self, bids):
        for number in range(100, 150):
            (bids / f"sub-{number}").mkdir()
        with pytest.raises(NothingSelected, match="and 23 more"):
            find_scans(bids, ANATOMICAL, ["99"])

    def test_nothing_of_these_modalities(self, bids):
        with pytest.raises(NothingSelected, match="Suffixes there: T1w, T2w"):
            find_scans(bids, ["PDw"], ["01"])
        (bids / "sub-09").mkdir()
        with pytest.raises(NothingSelected, match="there: none"):
            find_scans(bids, ["PDw"], ["09"])

    def test_unknown_modality(self, bids):
        with pytest.raises(Usage, match="Unknown modality T1"):
            find_scans(bids, ["T1", "T2w"])


class TestDatabase:
    def test_same_scans(self, bids, tmp_path):
        for _ in range(2):
            assert find_scans(bids, ["all"], database=tmp_path / "db") == find_scans(bids, ["all"])
        assert [path.name for path in (tmp_path / "db").iterdir()] == ["layout_index.sqlite"]
        assert names(find_scans(bids, ["T1w"], ["02"], ["1"], None, tmp_path / "db")) == [SCANS[2]]

    def test_it_is_used(self, bids, tmp_path):
        before = find_scans(bids, database=tmp_path / "db")
        write_nifti(bids / "sub-01/anat/sub-01_PDw.nii.gz")
        assert find_scans(bids, database=tmp_path / "db") == before
        assert len(find_scans(bids)) == len(before) + 1

    def test_errors(self, bids, tmp_path):
        with pytest.raises(Usage, match="Choose a folder outside"):
            find_scans(bids, database=bids / "derivatives" / "db")
        find_scans(bids, database=tmp_path / "db")
        other = make_dataset(tmp_path / "other", SCANS)
        with pytest.raises(Usage, match=r"is an index of .*bids, not of .*other"):
            find_scans(other, database=tmp_path / "db")
        (tmp_path / "db" / "layout_index.sqlite").write_text("no database")
        with pytest.raises(BadData, match="no index of pybids"):
            find_scans(bids, database=tmp_path / "db")


def test_annexed_description(bids):
    path = bids / "dataset_description.json"
    path.unlink()
    path.symlink_to(".git/annex/objects/aa/bb/MD5E-s1--0.json/MD5E-s1--0.json")
    with pytest.raises(InvalidDataset, match=f"datalad get {path}"):
        find_scans(bids)


class TestIgnored:
    @pytest.mark.parametrize("database", [False, True])
    def test_bidsignore_leaves_scans_out_and_says_how_many(self, bids, tmp_path, caplog, database):
        place = tmp_path / "db" if database else None
        before = names(find_scans(bids, ["all"], database=place))
        (bids / ".bidsignore").write_text("\ufeff# not ours\n*_FLAIR.nii*\n/sub-01/\n\nextra/**\n")
        scans = find_scans(bids, ["all"], database=place)
        gone = [name for name in before if "FLAIR" in name or name.startswith("sub-01/")]
        assert names(scans) == [name for name in before if name not in gone]
        assert gone
        assert f"{len(gone)} images are left out by {bids / '.bidsignore'}" in caplog.text

    def test_what_is_taken_back_stays(self, bids):
        (bids / ".bidsignore").write_text("*.nii*\n!sub-02/ses-2/anat/*_FLAIR.nii*\n")
        assert names(find_scans(bids, ["all"])) == ["sub-02/ses-2/anat/sub-02_ses-2_FLAIR.nii"]

    def test_nothing_left(self, bids):
        (bids / ".bidsignore").write_text("sub-*\n")
        with pytest.raises(NothingSelected, match="there: none"):
            find_scans(bids)

    def test_a_pattern_that_is_none(self, bids):
        (bids / ".bidsignore").write_text("!\n")
        with pytest.raises(InvalidDataset, match=r"\.bidsignore: .*Correct the pattern"):
            find_scans(bids)

    def test_without_images_of_it_nothing_is_said(self, bids, caplog):
        (bids / ".bidsignore").write_text("extra/\n")
        find_scans(bids)
        assert "left out" not in caplog.text


class TestSuffixes:
    def test_every_one_that_bids_has_for_a_head(self):
        """By the schema that pybids brings, whatever its version."""
        schema = load_schema().rules.files.raw
        no_head = {"phase", "noRF", "defacemask"}
        for datatype in ("anat", "func", "perf", "dwi"):
            for rule in schema[datatype].values():
                if any(".nii" in extension for extension in rule.extensions):
                    assert {*rule.suffixes} - no_head <= {*SUFFIXES}

    @pytest.mark.parametrize("suffix", ["UNIT1", "MEGRE", "T1map", "angio", "PDT2", "MTw"])
    def test_by_name_alone(self, bids, suffix):
        name = f"sub-01/anat/sub-01_{suffix}.nii.gz"
        write_nifti(bids / name)
        assert name not in names(find_scans(bids, ["all"]))
        assert names(find_scans(bids, [suffix])) == [name]
        assert name in names(find_scans(bids, ["all", suffix]))
        with pytest.raises(NothingSelected, match=f"Suffixes there: .*{suffix}"):
            find_scans(bids, ["cbv"])

    def test_each_echo_and_inversion_but_no_phase(self, bids):
        for name in ("inv-1_part-mag", "inv-2_part-mag", "inv-2_part-phase"):
            write_nifti(bids / f"sub-01/anat/sub-01_{name}_MP2RAGE.nii.gz")
        scans = find_scans(bids, ["MP2RAGE"])
        assert [scan.entities["inv"] for scan in scans] == ["1", "2"]
        assert {scan.mask_space for scan in scans} == {"MP2RAGE"}
