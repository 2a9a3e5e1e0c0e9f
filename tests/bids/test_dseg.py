"""Look-up tables, and segmentations as labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import add_mask, make_dataset, write_nifti

from singlestrip_bids.bids.dseg import is_dseg, read_table, structures_in, table_of, write_table
from singlestrip_bids.bids.label import find_label
from singlestrip_bids.errors import BadData, Usage
from singlestrip_bids.image.structures import MOST, Structure, colour_of

HEAD = "index\tname\tcolor\n"
SCANS = ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_table_goes_to_disk_and_back(tmp_path):
    table = [Structure(2, "stem", "#aabbcc"), Structure(17, "left cortex", "#000001")]
    write_table(tmp_path / "dseg.tsv", table)
    assert list(read_table(tmp_path / "dseg.tsv").values()) == table


def test_what_a_table_may_lack(tmp_path):
    path = written(tmp_path / "dseg.tsv", "﻿index\tname\n0\tbackground\n3\ta\n4\tb\n")
    found = read_table(path)
    assert list(found) == [3, 4] and found[3].colour == colour_of(3)
    path = written(tmp_path / "dseg.tsv", HEAD + "3\ta\tred\n")
    assert read_table(path)[3].colour == colour_of(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "x\ta\t#000000\n", "without an index or a name"),
        (HEAD + "-1\ta\t#000000\n", "without an index or a name"),
        (HEAD + "1\t\t#000000\n", "without an index or a name"),
        ("label\tcolour\n1\t2\n", "without an index or a name"),
        (HEAD + "1\ta\n1\tb\n", "index 1 twice"),
        (HEAD + "1\ta\n2\ta\n", "two structures named a"),
        (HEAD + "²\ta\n", "without an index or a name"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, message):
    with pytest.raises(BadData, match=message):
        read_table(written(tmp_path / "dseg.tsv", text))


def test_a_table_of_other_bytes(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_bytes(b"index\tname\n1\t\xff\xfe\n")
    with pytest.raises(BadData, match="not a table"):
        read_table(path)


def test_the_nearest_table_counts(tmp_path):
    root = tmp_path / "derivatives" / "m"
    image = root / "sub-01" / "anat" / "sub-01_desc-aseg_dseg.nii.gz"
    written(root / "dataset_description.json", "{}")
    written(tmp_path / "dseg.tsv", HEAD)  # of another dataset
    assert table_of(image) is None
    far = written(root / "dseg.tsv", HEAD)
    assert table_of(image) == far
    closer = written(root / "desc-aseg_dseg.tsv", HEAD)
    written(root / "desc-other_dseg.tsv", HEAD)
    assert table_of(image) == closer
    own = written(image.with_name("sub-01_desc-aseg_dseg.tsv"), HEAD)
    assert table_of(image) == own


class TestStructuresIn:
    def image(self, folder: Path, rows: str | None, subject="01") -> Path:
        path = folder / f"sub-{subject}" / f"sub-{subject}_dseg.nii.gz"
        if rows is not None:
            written(path.with_name(path.name.replace(".nii.gz", ".tsv")), HEAD + rows)
        return path

    def test_those_that_occur_by_index(self, tmp_path):
        path = self.image(tmp_path, "9\tnine\t#000009\n2\ttwo\n5\tfive\n")
        found = structures_in({path: np.array([0, 9, 2, 2])})
        assert [one.name for one in found] == ["two", "nine"]

    def test_without_a_table_they_have_names(self, tmp_path):
        found = structures_in({self.image(tmp_path, None): np.array([0, 3, 1])})
        assert [one.name for one in found] == ["structure-1", "structure-3"]

    def test_an_index_without_a_line(self, tmp_path):
        path = self.image(tmp_path, "2\ttwo\n")
        with pytest.raises(BadData, match="holds index 3, 4, for which"):
            structures_in({path: np.array([0, 2, 3, 4])})

    def test_too_many(self, tmp_path):
        with pytest.raises(BadData, match=f"{MOST + 1} structures; {MOST} at most"):
            structures_in({self.image(tmp_path, None): np.arange(MOST + 2)})

    def test_too_many_of_several_labels(self, tmp_path):
        one, other = (self.image(tmp_path, None, subject) for subject in ("01", "02"))
        with pytest.raises(BadData, match=f"sub-02.*: {MOST + 1} structures"):
            structures_in({one: np.arange(1, MOST), other: np.arange(3, MOST + 2)})

    def test_two_labels_that_disagree(self, tmp_path):
        one = self.image(tmp_path, "2\ttwo\n")
        other = self.image(tmp_path, "2\tzwei\n", "02")
        with pytest.raises(Usage, match="index 2 is zwei, in another label two"):
            structures_in({one: np.array([2]), other: np.array([2])})


class TestLabel:
    def dseg(self, root: Path, subject: str = "01", desc: str = "") -> Path:
        name = f"sub-{subject}/anat/sub-{subject}{desc}_dseg.nii.gz"
        return write_nifti(root / "derivatives" / "manual" / name)

    def test_is_found_where_there_is_no_mask(self, tmp_path):
        root = make_dataset(tmp_path / "bids", SCANS)
        path = self.dseg(root, desc="_desc-aseg")
        (label,) = find_label(root)
        assert label.mask == path and label.is_dseg and label.scan.subject == "01"

    def test_a_mask_is_taken_first(self, tmp_path):
        root = make_dataset(tmp_path / "bids", SCANS)
        self.dseg(root, "02")
        mask = add_mask(root, "sub-01/anat/sub-01")
        (label,) = find_label(root)
        assert label.mask == mask and not label.is_dseg

    def test_is_named(self, tmp_path):
        root = make_dataset(tmp_path / "bids", SCANS)
        add_mask(root, "sub-01/anat/sub-01")
        (label,) = find_label(root, label_mask=self.dseg(root, "02"))
        assert label.is_dseg and label.scan.subject == "02"

    def test_names(self):
        assert is_dseg(Path("sub-01_dseg.nii.gz")) and is_dseg(Path("dseg.nii"))
        assert not is_dseg(Path("sub-01_desc-brain_mask.nii.gz"))
        assert not is_dseg(Path("sub-01_bigdseg.nii.gz"))
