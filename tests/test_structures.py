"""From one segmentation to segmentations of all scans, as a lab would do it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import MODEL, VALIDATOR, complaints, run, table

import singlestrip_bids
from singlestrip_bids.bids.dseg import read_table
from singlestrip_bids.bids.label import find_label
from singlestrip_bids.bids.outputs import label_names
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.image import nifti
from singlestrip_bids.image.masks import clean
from singlestrip_bids.image.structures import Structure
from singlestrip_bids.machine.files import load_tensors

NAMES = {3: "left half", 8: "right-half", 20: "stem"}
TABLE = "index\tname\tcolor\n" + "".join(f"{i}\t{n}\t#00{i:02x}ff\n" for i, n in NAMES.items())
PLACE = Path("derivatives/manual/sub-01/anat")


def segmented(mask: np.ndarray) -> np.ndarray:
    """Tell a mask's halves and its lowest part apart."""
    found = np.where(mask, 3, 0).astype(np.int16)
    where = np.nonzero(mask)
    found[mask & (np.indices(mask.shape)[0] > where[0].mean())] = 8
    low = np.percentile(where[2], 20)
    found[mask & (np.indices(mask.shape)[2] < low)] = 20
    return found


def relabelled(bids: Path) -> Path:
    """Put a segmentation in the place of the mask of a dataset."""
    (old,) = (bids / PLACE).glob("*_desc-brain_mask.nii.gz")
    image = nib.load(old)
    path = old.with_name(old.name.replace("_desc-brain_mask", "_dseg"))
    nib.save(nib.Nifti1Image(segmented(np.asarray(image.dataobj) > 0), image.affine), path)
    shutil.rmtree(bids / "derivatives" / "manual-fresh", ignore_errors=True)
    for file in (bids / PLACE).glob("*_desc-brain_mask*"):
        file.unlink()
    path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def dataset(heads, tmp_path_factory):
    bids = Path(shutil.copytree(heads, tmp_path_factory.mktemp("parts") / "bids"))
    relabelled(bids)
    return bids


@pytest.fixture(scope="module")
def out(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts-out") / "out"
    assert run(dataset, folder, "group", "participant", "--output", "probseg") == 0
    return folder


def test_every_scan_has_its_structures(dataset, out):
    for scan in find_scans(dataset):
        image = nifti.load(scan.path)
        (mask,) = (out / f"sub-{scan.subject}").rglob("*_desc-brain_mask.nii.gz")
        path = mask.with_name(mask.name.replace("_desc-brain_mask", "_dseg"))
        found, brain = nifti.load_dseg(path, image), nifti.load_mask(mask, image)
        np.testing.assert_array_equal(found > 0, brain)
        assert set(np.unique(found)) <= {0, *NAMES}
        said = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert list(said["Structures"]) == list(NAMES.values())
        voxel = np.prod(image.sizes) / 1000
        for index, name in NAMES.items():
            fields = said["Structures"][name]
            assert fields["Index"] == index
            assert fields["VolumeMl"] == pytest.approx((found == index).sum() * voxel, rel=1e-3)
            low, high = fields["ExpectedDiceInterval"]
            assert 0 <= low <= fields["ExpectedDice"] <= high <= 1


def test_tables_for_the_group(dataset, out):
    for path in out.rglob("*_dseg.nii.gz"):
        found = read_table(path.with_name(path.name.replace(".nii.gz", ".tsv")))
        assert {index: one.name for index, one in found.items()} == NAMES
    rows = table(out / "volumes.tsv")
    assert [row["scan"] for row in rows] == [scan.relative for scan in find_scans(dataset)]
    for row in rows:
        total = sum(float(row[name]) for name in NAMES.values())
        assert total == pytest.approx(float(row["brain_ml"]), rel=0.002)


def test_probabilities_of_each_on_request(out):
    for name in ("lefthalf", "righthalf", "stem"):
        found = list((out / "sub-02").rglob(f"*_label-{name}_probseg.nii.gz"))
        assert len(found) == 1
        assert 0 <= nib.load(found[0]).get_fdata().max() <= 1


def test_names_that_bids_does_not_have():
    table = [Structure(i, n, "#000000") for i, n in enumerate(("a b", "ab", "brain", "-", "c"), 1)]
    assert label_names(table) == ["ab1", "ab2", "brain3", "4", "c"]


def test_pages_show_them(out):
    page = (out / "sub-02.html").read_text()
    assert "left half" in page and "#0008ff" in page and "see-parts" in page
    assert list((out / "sub-02" / "figures").glob("*_desc-parts_*.png"))


def test_the_group_has_them_too(dataset, out):
    page = (out / "group.html").read_text()
    assert 'id="structures"' in page and "right-half" in page and "volumes.tsv" in page


def test_again_nothing_is_done_anew(dataset, out, capsys):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_dseg.nii.gz")}
    assert run(dataset, out, "participant", "--output", "probseg") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*_dseg.nii.gz")} == before


def test_a_table_that_is_gone_is_written_again(dataset, out, tmp_path):
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    (first, *_) = sorted(copy.glob("sub-02/anat/*_dseg.tsv"))
    content = first.read_text()
    first.unlink()
    assert run(dataset, copy, "participant", "--participant-label", "02") == 0
    assert first.read_text() == content


def test_other_names_make_another_model(dataset, out, tmp_path):
    bids = Path(shutil.copytree(dataset, tmp_path / "bids"))
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    (names,) = bids.glob("derivatives/manual/sub-01/anat/*_dseg.tsv")
    names.write_text(TABLE.replace("stem", "brain stem"))
    assert run(bids, copy, "group") == 0
    card = json.loads((copy / MODEL / "model.json").read_text())
    assert [one["name"] for one in card["structures"]] == ["left half", "right-half", "brain stem"]


def test_volumes_go_with_their_model(heads, trained, out, tmp_path):
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    shutil.rmtree(copy / MODEL)
    shutil.copytree(trained / MODEL, copy / MODEL)
    assert (copy / "volumes.tsv").is_file()
    assert run(heads, copy, "participant") == 0
    assert not (copy / "volumes.tsv").exists()


def test_pages_are_made_again_from_what_is_there(dataset, out):
    (picture,) = (out / "sub-02" / "figures").glob("*_desc-parts_*.png")
    before = picture.read_bytes()
    picture.unlink()
    assert run(dataset, out, "participant", "--reports-only") == 0
    assert picture.read_bytes() == before


def test_a_sidecar_that_another_program_changed_costs_no_page(dataset, out, tmp_path, capfd):
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    (path,) = (copy / "sub-02").rglob("*_dseg.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "Structures": {"a": {}}}))
    assert run(dataset, copy, "participant", "--reports-only") == 0
    assert "left out of the pages" in capfd.readouterr().err
    assert "left half" not in (copy / "sub-02.html").read_text()


def test_semisam_o1_tells_them_too(dataset, tmp_path):
    way = ["--method", "semisam-o1", "--set", "features=levels", "refinement=regions", "rounds=2"]
    assert run(dataset, tmp_path, "group", "participant", *way, "--no-propagation") == 0
    assert json.loads((tmp_path / MODEL / "model.json").read_text())["network"] == (
        "round-2.safetensors"
    )
    for path in tmp_path.rglob("*_dseg.nii.gz"):
        assert set(np.unique(np.asarray(nib.load(path).dataobj))) <= {0, *NAMES}
    assert len(list(tmp_path.rglob("*_dseg.nii.gz"))) == 4


def test_from_python(dataset, out):
    model = singlestrip_bids.load_model(out / MODEL, device="cpu")
    scan = find_scans(dataset)[1]
    brain = model.mask(scan.path)
    assert [one.name for one in brain.parts.structures] == list(NAMES.values())
    assert sum(brain.volumes_ml.values()) == pytest.approx(brain.volume_ml)
    (path,) = (out / f"sub-{scan.subject}").rglob("*_dseg.nii.gz")
    np.testing.assert_array_equal(brain.segmentation.dataobj, nib.load(path).dataobj)


def test_a_model_of_a_mask_tells_none(trained, heads):
    brain = singlestrip_bids.load_model(trained / MODEL, device="cpu").mask(
        find_scans(heads)[0].path
    )
    assert brain.parts is None and brain.segmentation is None and brain.volumes_ml == {}


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_it_is_valid_bids(out):
    assert complaints(out) == set()


def test_a_piece_apart_is_of_no_structure(dataset, tmp_path):
    bids = Path(shutil.copytree(dataset, tmp_path / "bids"))
    (path,) = bids.glob("derivatives/manual/sub-01/anat/*_dseg.nii.gz")
    image = nib.load(path)
    found = np.asarray(image.dataobj).copy()
    found[:2, :2, :2] = 20
    nib.save(nib.Nifti1Image(found, image.affine), path)
    runs = []
    for folder, where in (("one", dataset), ("other", bids)):
        assert run(where, tmp_path / folder, "group", "--rounds", "0", "--sloppy") == 0
        runs.append(load_tensors(tmp_path / folder / MODEL / "label.safetensors")[0])
    assert torch.equal(runs[0]["parts_0"], runs[1]["parts_0"])


def test_the_label_is_its_own_union(dataset):
    (path,) = (dataset / PLACE).glob("*_dseg.nii.gz")
    (label,) = find_label(dataset)
    image, mask = label.read()
    np.testing.assert_array_equal(mask, clean(nifti.load_dseg(path, image) > 0))


class TestBadInput:
    def changed(self, bids: Path, change) -> Path:
        path = relabelled(bids)
        image = nib.load(path)
        data = change(np.asarray(image.dataobj).astype(np.float32))
        nib.save(nib.Nifti1Image(data, image.affine), path)
        return path

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d * 0.3, "a segmentation has whole numbers"),
            (lambda d: np.where(d == 3, -3, d), "holds -3"),
            (lambda d: np.where(d == 3, 4, d), "holds index 4, for which"),
            (lambda d: d * 0, "an empty segmentation"),
        ],
    )
    def test_is_named_and_nothing_is_lost(self, bids, tmp_path, capsys, change, said):
        self.changed(bids, change)
        assert run(bids, tmp_path / "out", "group") == 65
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out" / MODEL / "model.json").exists()

    def test_a_structure_of_three_voxels_is_left_out(self, bids, tmp_path, capsys):
        path = relabelled(bids)
        image = nib.load(path)
        data = np.asarray(image.dataobj).copy()
        data[data == 20] = 3
        data[tuple(np.argwhere(data == 3)[:3].T)] = 20
        nib.save(nib.Nifti1Image(data, image.affine), path)
        assert run(bids, tmp_path / "out", "group", "--set", "rounds=0") == 0
        said = capsys.readouterr().err
        assert "stem (index 20) has" in said and "it is left out" in said
        card = json.loads((tmp_path / "out" / MODEL / "model.json").read_text())
        assert [one["name"] for one in card["structures"]] == ["left half", "right-half"]
