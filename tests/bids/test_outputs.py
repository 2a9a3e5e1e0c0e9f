"""What the participant level writes of a scan, and what is finished by it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import MODEL, STAMP, make_dataset, masked, participant_config, put_scan

from singlestrip_bids import cli
from singlestrip_bids.bids import outputs
from singlestrip_bids.bids.derivatives import provenance, sidecar_path
from singlestrip_bids.bids.outputs import OUTPUTS, Masked, Output, Request
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.errors import IOFailed
from singlestrip_bids.image import nifti
from singlestrip_bids.image.masks import clean, signed_distance
from singlestrip_bids.machine.files import read_json

SCANS = ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/func/sub-01_task-rest_bold.nii.gz"]
IMAGES = {
    "mask": "desc-brain_mask",
    "brain": "desc-brain_T1w",
    "probseg": "label-brain_probseg",
    "distance": "desc-brain_distance",
    "border": "desc-brainPlus2mm_mask",
}


@pytest.fixture
def scan(tmp_path) -> Scan:
    return find_scans(make_dataset(tmp_path / "bids", SCANS))[0]


@pytest.fixture
def request_all(tmp_path, scan) -> Request:
    """All that can be asked for."""
    config = participant_config(
        scan.bids_dir,
        output=("brain", "probseg", "distance"),
        border_mm=2.0,
        fmriprep_masks=tmp_path / "view",
    )
    return Request(config, frozenset([scan]))


def part_of(scan: Scan) -> Masked:
    """A scan whose mask is a part of its voxels."""
    mask = np.zeros(nifti.load(scan.path).data.shape, bool)
    mask[1:4, 1:5, 1:6] = True
    return masked(scan, mask)


def stamp(path: Path) -> dict[str, str]:
    return STAMP


class TestWanted:
    def test_the_mask_alone_unless_more_is_asked_for(self, scan):
        request = Request(participant_config(scan.bids_dir))
        ((output, path),) = outputs.wanted(scan, request)
        assert output.name == "mask"
        assert path == request.config.output_dir / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"

    def test_all(self, scan, request_all, tmp_path):
        places = {output.name: path for output, path in outputs.wanted(scan, request_all)}
        folder = request_all.config.output_dir / "sub-01/anat"
        view = tmp_path / "view/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
        expected = {name: folder / f"sub-01_{end}.nii.gz" for name, end in IMAGES.items()}
        assert places == {**expected, "fmriprep": view}
        assert list(places) == [output.name for output in OUTPUTS]

    def test_no_scan_without_its_skull_but_of_anatomical_ones(self, scan, request_all):
        (bold,) = find_scans(scan.bids_dir, ["bold"])
        names = [output.name for output, _ in outputs.wanted(bold, request_all)]
        assert names == ["mask", "probseg", "distance", "border"]


class TestWrite:
    def test_each_image_has_its_sidecar(self, scan, request_all):
        outputs.write(part_of(scan), request_all)
        for _, path in outputs.wanted(scan, request_all):
            assert path.is_file()
            card = read_json(sidecar_path(path))
            assert {**STAMP, **provenance(scan)}.items() <= card.items()
            assert card["Description"].endswith(".")

    def test_the_sidecar_of_a_mask(self, scan, request_all):
        outputs.write(part_of(scan), request_all)
        card = read_json(sidecar_path(request_all.out.mask(scan)))
        assert (card["Type"], card["Manual"]) == ("Brain", False)
        assert (card["ExpectedDice"], card["ExpectedDiceInterval"]) == (0.9, [0.8, 0.95])
        for name in outputs.EVIDENCE:
            assert card[name] == 0.9
            assert card[f"{name}Description"] == outputs.EVIDENCE[name]
        assert card["BrainVolumeMl"] == pytest.approx(3 * 4 * 5 * 3 / 1000)
        assert card["WorkingVoxelSizeMm"] == 2
        assert (card["Model"], card["ComputeSeconds"]) == ("sl1.safetensors", 1)
        assert not {"OutOfMemory", "Averaged"} & card.keys()

    @pytest.mark.parametrize(
        ("averaged", "said"),
        [(3, "mean over time of 3 volumes"), (2, "2 volumes without diffusion weighting, of 3")],
    )
    def test_what_is_said_of_a_series(self, scan, request_all, averaged, said):
        done = part_of(scan)
        image = replace(done.brain.image, volumes=3, averaged=averaged)
        done = replace(done, brain=replace(done.brain, image=image))
        assert said in OUTPUTS[0].fields(done, request_all)["Averaged"]

    def test_how_it_was_computed_where_the_memory_was_full(self, scan, request_all):
        done = masked(scan, out_of_memory="on the processor")
        fields = OUTPUTS[0].fields(done, request_all)
        assert fields["OutOfMemory"].endswith("computed on the processor.")

    def test_a_sidecar_never_tells_of_another_image(self, scan, request_all, monkeypatch):
        outputs.write(part_of(scan), request_all)
        mask = request_all.out.mask(scan)
        before = mask.read_bytes()

        def fail(path, image):
            raise IOFailed("disk full")

        monkeypatch.setattr(nifti, "save", fail)
        with pytest.raises(IOFailed):
            outputs.write(masked(scan), request_all)
        assert mask.read_bytes() == before
        assert not sidecar_path(mask).exists()

    def test_nothing_left_of_the_brain_is_said(self, scan, caplog):
        request = Request(participant_config(scan.bids_dir, border_mm=-30.0))
        with caplog.at_level(logging.WARNING):
            outputs.write(part_of(scan), request)
        assert "nothing is left of the brain at this --border-mm" in caplog.text


class TestFinished:
    def test_when_all_is_there(self, scan, request_all):
        assert not outputs.finished(scan, request_all, stamp)
        outputs.write(part_of(scan), request_all)
        assert outputs.finished(scan, request_all, stamp)
        assert outputs.finished(scan, Request(participant_config(scan.bids_dir)), stamp)

    @pytest.mark.parametrize("which", range(len(OUTPUTS)))
    @pytest.mark.parametrize("gone", ["image", "sidecar", "damaged", "other"])
    def test_not_when_one_is_not(self, scan, request_all, which, gone):
        outputs.write(part_of(scan), request_all)
        _, path = outputs.wanted(scan, request_all)[which]
        if gone in ("image", "sidecar"):
            (path if gone == "image" else sidecar_path(path)).unlink()
        else:
            text = {"damaged": "{", "other": '{"ModelSHA256": "another"}'}[gone]
            sidecar_path(path).write_text(text)
        assert not outputs.finished(scan, request_all, stamp)

    @pytest.mark.parametrize("name", STAMP)
    def test_not_by_another_model_or_from_another_scan(self, scan, request_all, name):
        outputs.write(part_of(scan), request_all)
        assert not outputs.finished(scan, request_all, lambda path: {**STAMP, name: "another"})

    def test_the_checksums_are_those_of_the_scan(self, scan, request_all):
        asked = []
        outputs.write(part_of(scan), request_all)
        outputs.finished(scan, request_all, lambda path: asked.append(path) or STAMP)
        assert asked == [scan.path]


def test_images_of_an_earlier_model_are_listed(scan, request_all):
    outputs.write(part_of(scan), request_all)
    newer = replace(part_of(scan), stamp={**STAMP, "ModelSHA256": "newer"})
    mask_alone = Request(participant_config(scan.bids_dir))
    assert not outputs.outdated(part_of(scan), mask_alone)
    outputs.write(newer, mask_alone)
    folder = request_all.config.output_dir / "sub-01/anat"
    (folder / "sub-01_desc-x_mask.json").write_text("{")
    (folder / "sub-01_desc-y_mask.json").write_text('{"SpatialReference": "another"}')
    old = [path for path in IMAGES.values() if path != IMAGES["mask"]]
    expected = sorted(folder / f"sub-01_{name}.json" for name in old)
    assert outputs.outdated(newer, mask_alone) == expected


class TestOneMoreRow:
    """The table is all that has to be changed for another output."""

    @pytest.fixture(autouse=True)
    def row(self, monkeypatch) -> Output:
        row = Output(
            "outside",
            wanted=lambda scan, request: scan.datatype == "anat",
            path=lambda scan, request: request.out.image(scan, "desc-outside_mask"),
            make=lambda brain, request: nifti.mask_image(~brain.voxels, brain.image.nifti),
            fields=lambda done, request: {**provenance(done.scan), **done.stamp, "Mine": True},
        )
        monkeypatch.setattr(outputs, "OUTPUTS", (*OUTPUTS, row))
        return row

    @pytest.fixture
    def request_mask(self, scan) -> Request:
        return Request(participant_config(scan.bids_dir))

    def test_it_is_wanted(self, scan, request_mask, row):
        (_, mask), found = outputs.wanted(scan, request_mask)
        assert found == (row, mask.with_name("sub-01_desc-outside_mask.nii.gz"))
        (bold,) = find_scans(scan.bids_dir, ["bold"])
        assert [output.name for output, _ in outputs.wanted(bold, request_mask)] == ["mask"]

    def test_it_is_written(self, scan, request_mask):
        done = part_of(scan)
        outputs.write(done, request_mask)
        (_, mask), (_, path) = outputs.wanted(scan, request_mask)
        inner, outer = (np.asarray(nib.load(one).dataobj) for one in (mask, path))
        assert np.array_equal(inner, 1 - outer)
        assert read_json(sidecar_path(path)) == {**provenance(scan), **STAMP, "Mine": True}

    def test_without_it_a_scan_is_not_finished(self, scan, request_mask, row, monkeypatch):
        with monkeypatch.context() as before:
            before.setattr(outputs, "OUTPUTS", OUTPUTS)
            outputs.write(part_of(scan), request_mask)
            assert outputs.finished(scan, request_mask, stamp)
        assert not outputs.finished(scan, request_mask, stamp)
        outputs.write(part_of(scan), request_mask)
        assert outputs.finished(scan, request_mask, stamp)


def test_the_app_writes_distances_on_the_scans_grid(heads, trained, tmp_path):
    model = str(trained / "code/singlestrip")
    words = ["--model", model, "--participant-label", "02", "--output", "distance"]
    command = [str(heads), str(tmp_path / "out"), "participant", *words, "--border-mm", "3"]
    assert cli.main(command) == 0
    stem = tmp_path / "out/sub-02/anat/sub-02_desc-brain"
    mask, distance, grown = (
        nib.load(f"{stem}{end}.nii.gz") for end in ("_mask", "_distance", "Plus3mm_mask")
    )
    assert distance.get_data_dtype() == np.float32
    assert distance.affine.tobytes() == mask.affine.tobytes()
    voxels = np.asarray(mask.dataobj) > 0
    sizes = np.array(mask.header.get_zooms())
    assert np.array_equal(np.asarray(distance.dataobj), signed_distance(voxels, sizes))
    assert np.array_equal(np.asarray(distance.dataobj) <= 3, np.asarray(grown.dataobj) > 0)
    card = read_json(stem.with_name("sub-02_desc-brain_distance.json"))
    assert card["Units"] == "mm"
    assert card["Sources"] == ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"]
    assert "inside, minus" in card["Description"]


def test_other_outputs(heads, trained, tmp_path):
    bids, out = tmp_path / "bids", tmp_path / "out"
    make_dataset(bids, [])
    for name, volumes in (
        ("sub-01/anat/sub-01_T1w.nii.gz", 1),
        ("sub-01/anat/sub-01_FLAIR.nii.gz", 2),
        ("sub-01/func/sub-01_task-rest_bold.nii.gz", 2),
    ):
        put_scan(bids, name, heads / "sub-01/anat/sub-01_T1w.nii.gz", volumes)
    words = ["participant", "--model", str(trained / MODEL), "--modalities", "all"]
    words += ["--output", "brain", "probseg", "--border-mm", "-4.5"]
    assert cli.main([str(bids), str(out), *words]) == 0
    anat = out / "sub-01" / "anat"
    for space, suffix, shape in (("", "T1w", ()), ("_space-FLAIR", "FLAIR", (2,))):
        scan = nib.load(bids / f"sub-01/anat/sub-01_{suffix}.nii.gz")
        mask = np.asarray(nib.load(anat / f"sub-01{space}_desc-brain_mask.nii.gz").dataobj) > 0
        brain = nib.load(anat / f"sub-01_desc-brain_{suffix}.nii.gz")
        assert brain.shape == mask.shape + shape
        assert brain.get_data_dtype() == scan.get_data_dtype()
        assert np.array_equal(brain.affine, scan.affine)
        data, original = np.asarray(brain.dataobj), np.asarray(scan.dataobj)
        assert np.array_equal(data[mask], original[mask])
        assert not data[~mask].any()
        card = read_json(anat / f"sub-01_desc-brain_{suffix}.json")
        assert card["SkullStripped"] is True

        probability = nib.load(anat / f"sub-01{space}_label-brain_probseg.nii.gz")
        values = probability.get_fdata()
        assert 0 <= values.min() < 0.5 < values.max() <= 1
        assert np.array_equal(clean(values > 0.5), mask)
        assert np.array_equal(probability.affine, scan.affine)

        shrunk = nib.load(anat / f"sub-01{space}_desc-brainMinus4p5mm_mask.nii.gz")
        inner = np.asarray(shrunk.dataobj) > 0
        assert inner.any()
        assert not (inner & ~mask).any()
        assert inner.sum() < mask.sum()
        card = read_json(anat / f"sub-01{space}_desc-brainMinus4p5mm_mask.json")
        assert card["BorderMm"] == -4.5
        assert "shrunk by 4.5 mm" in card["Description"]
    func = {path.name for path in (out / "sub-01" / "func").iterdir()}
    assert "sub-01_task-rest_label-brain_probseg.nii.gz" in func
    assert not any("desc-brain_bold" in name for name in func)
