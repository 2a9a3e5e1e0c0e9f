from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import write_description

from singlestrip_bids import __version__
from singlestrip_bids.derivatives import (
    brain_path,
    check_output,
    made_here,
    mask_path,
    model_dir,
    probability_path,
    read_json,
    sidecar,
    sidecar_path,
    write_brain,
    write_bytes,
    write_dataset,
    write_json,
    write_mask,
    write_probability,
    write_text,
    write_tsv,
)
from singlestrip_bids.errors import BadData, CannotCreate, IOFailed, Usage
from singlestrip_bids.inputs import Scan

HEADS = Path(__file__).parents[2] / "shared" / "data" / "heads"
SHAPE = (4, 5, 6)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def scan_at(relative: str) -> Scan:
    path = Path("/bids") / relative
    *_, datatype, name = path.parts
    suffix = name.split(".")[0].rsplit("_", 1)[1]
    return Scan(path, Path("/bids"), {"suffix": suffix, "datatype": datatype})


class TestPaths:
    @pytest.mark.parametrize(
        ("scan", "mask"),
        [
            ("sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_desc-brain_mask.nii.gz"),
            ("sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_desc-brain_mask.nii.gz"),
            (
                "sub-1/ses-2/anat/sub-1_ses-2_FLAIR.nii.gz",
                "sub-1/ses-2/anat/sub-1_ses-2_space-FLAIR_desc-brain_mask.nii.gz",
            ),
            (
                "sub-1/anat/sub-1_acq-hi_run-2_part-mag_chunk-3_T2w.nii.gz",
                "sub-1/anat/sub-1_acq-hi_run-2_part-mag_space-T2w_chunk-3_desc-brain_mask.nii.gz",
            ),
            (
                "sub-1/func/sub-1_task-rest_bold.nii.gz",
                "sub-1/func/sub-1_task-rest_desc-brain_mask.nii.gz",
            ),
            (
                "sub-1/func/sub-1_task-rest_sbref.nii.gz",
                "sub-1/func/sub-1_task-rest_space-sbref_desc-brain_mask.nii.gz",
            ),
            ("sub-1/perf/sub-1_asl.nii.gz", "sub-1/perf/sub-1_desc-brain_mask.nii.gz"),
            (
                "sub-1/perf/sub-1_m0scan.nii.gz",
                "sub-1/perf/sub-1_space-m0scan_desc-brain_mask.nii.gz",
            ),
            ("sub-1/dwi/sub-1_dwi.nii.gz", "sub-1/dwi/sub-1_desc-brain_mask.nii.gz"),
        ],
    )
    def test_mask_path(self, scan, mask):
        assert mask_path(Path("/out"), scan_at(scan)) == Path("/out") / mask

    def test_mask_path_differs_for_every_scan(self):
        entities = ("", "_acq-T2w", "_run-1", "_run-2", "_run-1_chunk-1", "_run-1_chunk-2")
        suffixes = {
            "anat": ("T1w", "T2w", "FLAIR"),
            "func": ("bold", "sbref"),
            "perf": ("asl", "m0scan"),
            "dwi": ("dwi", "sbref"),
        }
        scans = [
            f"sub-1/{datatype}/sub-1{entity}_{suffix}.nii.gz"
            for datatype, names in suffixes.items()
            for suffix, entity in itertools.product(names, entities)
        ]
        assert len({mask_path(Path(), scan_at(scan)) for scan in scans}) == len(scans)

    def test_names_are_in_the_bids_schema(self):
        schema = pytest.importorskip("bidsschematools.schema").load_schema()
        rule = schema.rules.files.deriv.imaging.func_mask
        assert {"task", "chunk", "part", "space", "description"} <= set(rule.entities)
        order = list(schema.rules.entities)
        assert order.index("part") < order.index("space") < order.index("chunk")

    def test_paths_beside_the_mask(self):
        scan = scan_at("sub-1/anat/sub-1_part-mag_chunk-3_T2w.nii")
        folder, name = Path("/out/sub-1/anat"), "sub-1_part-mag"
        for millimetres, desc in ((2.0, "brainPlus2mm"), (-1.5, "brainMinus1p5mm")):
            mask = f"{name}_space-T2w_chunk-3_desc-{desc}_mask.nii.gz"
            assert mask_path(Path("/out"), scan, millimetres) == folder / mask
        probseg = f"{name}_space-T2w_chunk-3_label-brain_probseg.nii.gz"
        assert probability_path(Path("/out"), scan) == folder / probseg
        brain = f"{name}_chunk-3_desc-brain_T2w.nii.gz"
        assert brain_path(Path("/out"), scan) == folder / brain

    def test_other_paths(self):
        assert model_dir(Path("/out")) == Path("/out/code/singlestrip")
        assert sidecar_path(Path("a/b_mask.nii.gz")) == Path("a/b_mask.json")
        assert sidecar_path(Path("a/b_mask.nii")) == Path("a/b_mask.json")


class TestWriting:
    def test_makes_parents_and_replaces(self, tmp_path):
        path = tmp_path / "a" / "b" / "c.txt"
        write_text(path, "één")
        write_text(path, "twee")
        assert path.read_text(encoding="utf-8") == "twee"
        assert listing(path.parent) == ["c.txt"]

    def test_mode_follows_the_umask(self, tmp_path):
        (tmp_path / "plain").touch()
        write_bytes(tmp_path / "ours", b"")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CannotCreate, match=f"{tmp_path}/file/sub"):
            write_text(tmp_path / "file" / "sub" / "x.txt", "")

    def test_target_that_is_a_folder(self, tmp_path):
        (tmp_path / "x.txt").mkdir()
        with pytest.raises(IOFailed, match=r"x\.txt"):
            write_text(tmp_path / "x.txt", "")
        assert listing(tmp_path) == ["x.txt"]

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
    def test_interruption_leaves_the_old_file(self, tmp_path, monkeypatch, stop):
        write_text(tmp_path / "x.txt", "old")

        def replace(self, target):
            assert self.name.startswith(".")
            assert self.parent == target.parent
            raise stop

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(IOFailed if stop is OSError else stop):
            write_text(tmp_path / "x.txt", "new")
        assert listing(tmp_path) == ["x.txt"]
        assert (tmp_path / "x.txt").read_text() == "old"

    def test_json(self, tmp_path):
        path = tmp_path / "x.json"
        write_json(path, {"é": np.float32(0.5), "a": np.arange(2), "p": Path("q"), "n": None})
        assert json.loads(path.read_text()) == {"é": 0.5, "a": [0, 1], "p": "q", "n": None}
        assert path.read_text().endswith("}\n")

    def test_json_refuses_what_json_lacks(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", {"score": float("nan")})
        with pytest.raises(TypeError, match="set"):
            write_json(tmp_path / "x.json", {"score": {1}})
        assert not listing(tmp_path)

    def test_tsv(self, tmp_path):
        path = tmp_path / "x.tsv"
        rows = [
            {"participant_id": "sub-1", "score": 0.5, "n": 3},
            {"participant_id": "sub-2", "score": None, "note": "two\twords\n", "n": np.int64(4)},
            {"participant_id": "", "score": np.float32("nan"), "n": True},
        ]
        write_tsv(path, rows)
        assert path.read_text().splitlines() == [
            "participant_id\tscore\tn\tnote",
            "sub-1\t0.5000\t3\tn/a",
            "sub-2\tn/a\t4\ttwo words",
            "n/a\tn/a\tTrue\tn/a",
        ]


def oblique(tilt: float) -> np.ndarray:
    affine = np.eye(4)
    turn = nib.eulerangles.euler2mat(tilt, 0.3 - tilt, 0.2)
    affine[:3, :3] = turn @ np.diag([-0.9, 1.1, 3.3])
    affine[:3, 3] = (12.345, -67.891, 3.21)
    return affine


def reference(path: Path, sform: int, qform: int, **options) -> nib.Nifti1Image:
    """Save and load a scan whose two affines differ."""
    shape, kind = options.get("shape", SHAPE), options.get("kind", nib.Nifti1Image)
    image = kind(np.zeros(shape, np.int16), None, options.get("header"))
    image.header.set_sform(oblique(0.1), sform)
    image.header.set_qform(oblique(0.7), qform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    image.header["dim_info"] = 57
    nib.save(image, path)
    return nib.load(path)


class TestWriteMask:
    @pytest.mark.parametrize(
        ("sform", "qform"), [(0, 1), (1, 0), (1, 1), (4, 2), (2, 1), (0, 0), (0, 2)]
    )
    def test_geometry_is_kept_bit_by_bit(self, tmp_path, sform, qform):
        scan = reference(tmp_path / "scan.nii.gz", sform, qform)
        write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, bool), scan)
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert mask.affine.tobytes() == scan.affine.tobytes()
        assert mask.get_sform().tobytes() == scan.get_sform().tobytes()
        assert mask.get_qform().tobytes() == scan.get_qform().tobytes()
        for name in ("sform_code", "qform_code", "xyzt_units", "dim_info"):
            assert mask.header[name] == scan.header[name]
        assert mask.header["pixdim"][:4].tobytes() == scan.header["pixdim"][:4].tobytes()

    @pytest.mark.parametrize("codes", ["".join(c) for c in itertools.product("LR", "AP", "IS")])
    def test_every_flip_and_permutation(self, tmp_path, codes):
        for axes in itertools.permutations(codes):
            transform = nib.orientations.axcodes2ornt(axes)
            affine = nib.orientations.inv_ornt_aff(transform, SHAPE)
            scan = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
            write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, bool), scan)
            assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").affine, scan.affine)

    def test_values_and_header(self, tmp_path):
        scan = reference(tmp_path / "scan.nii.gz", 1, 1)
        voxels = np.random.default_rng(0).random(SHAPE) > 0.5
        for given in (voxels, voxels.astype(np.uint8), np.asfortranarray(voxels)):
            write_mask(tmp_path / "mask.nii.gz", given, scan)
            mask = nib.load(tmp_path / "mask.nii.gz")
            assert mask.get_data_dtype() == np.uint8
            assert np.array_equal(np.asarray(mask.dataobj), voxels)
        raw = nib.Nifti1Header(mask.header.binaryblock, check=True)
        assert raw["dim"].tolist() == [3, *SHAPE, 1, 1, 1, 1]
        assert (raw["cal_min"], raw["cal_max"]) == (0, 1)
        with mask.file_map["image"].get_prepare_fileobj() as stream:
            stored = nib.Nifti1Header.from_fileobj(stream, check=False)
        assert (stored["scl_slope"], stored["scl_inter"], stored["vox_offset"]) == (1, 0, 352)

    def test_4d_reference(self, tmp_path):
        scan = reference(tmp_path / "scan.nii.gz", 1, 2, shape=(*SHAPE, 3))
        write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, bool), scan)
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert mask.shape == SHAPE
        assert mask.affine.tobytes() == scan.affine.tobytes()
        assert mask.header["pixdim"][4] != 2.5

    def test_big_endian_and_nifti2(self, tmp_path):
        big = nib.Nifti1Header(endianness=">")
        for options in ({"header": big}, {"kind": nib.Nifti2Image}):
            scan = reference(tmp_path / "scan.nii.gz", 0, 1, **options)
            write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, bool), scan)
            mask = nib.load(tmp_path / "mask.nii.gz")
            assert type(mask) is type(scan)
            assert np.array_equal(mask.affine, scan.affine)
            assert mask.header["qform_code"] == 1

    def test_same_bytes(self, tmp_path):
        scan = reference(tmp_path / "scan.nii.gz", 1, 1)
        write_mask(tmp_path / "one.nii.gz", np.ones(SHAPE, bool), scan)
        write_mask(tmp_path / "two.nii.gz", np.ones(SHAPE, bool), scan)
        one = (tmp_path / "one.nii.gz").read_bytes()
        assert one == (tmp_path / "two.nii.gz").read_bytes()
        assert one[3:8] == bytes(5)  # no flags (so no file name), no time

    def test_probability_keeps_its_side_of_one_half(self, tmp_path):
        scan = reference(tmp_path / "scan.nii.gz", 0, 1, shape=(*SHAPE, 2))
        exact = np.linspace(0, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
        exact.flat[:3] = (0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1)
        write_probability(tmp_path / "p.nii.gz", exact, scan)
        written = nib.load(tmp_path / "p.nii.gz")
        assert (written.shape, written.get_data_dtype()) == (SHAPE, np.uint8)
        assert np.abs(written.get_fdata() - exact).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(written.get_fdata() > 0.5, exact > 0.5)
        assert written.affine.tobytes() == scan.affine.tobytes()

    def test_brain_has_the_scans_header_without_its_extensions(self, tmp_path):
        scan = reference(tmp_path / "scan.nii.gz", 1, 2, shape=(*SHAPE, 3))
        scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a name"))
        write_brain(tmp_path / "brain.nii.gz", np.asarray(scan.dataobj), scan)
        brain = nib.load(tmp_path / "brain.nii.gz")
        assert brain.shape == scan.shape
        assert not brain.header.extensions
        assert scan.header.extensions
        assert brain.header["pixdim"].tobytes() == scan.header["pixdim"].tobytes()
        assert brain.affine.tobytes() == scan.affine.tobytes()

    def test_wrong_shape(self, tmp_path):
        scan = reference(tmp_path / "scan.nii.gz", 1, 1)
        with pytest.raises(ValueError, match="not on the grid"):
            write_mask(tmp_path / "mask.nii.gz", np.ones((5, 4, 6), bool), scan)

    @pytest.mark.skipif(not HEADS.is_dir(), reason="the real heads are not here")
    def test_real_heads(self, tmp_path):
        for path in sorted(HEADS.glob("sub-*/**/*.nii.gz")):
            scan = nib.load(path)
            write_mask(tmp_path / "mask.nii.gz", np.zeros(scan.shape[:3], bool), scan)
            mask = nib.load(tmp_path / "mask.nii.gz")
            assert mask.affine.tobytes() == scan.affine.tobytes(), path
            for name in ("sform_code", "qform_code", "xyzt_units"):
                assert mask.header[name] == scan.header[name], path


class TestDataset:
    def test_sidecar(self):
        scan = scan_at("sub-1/anat/sub-1_T1w.nii.gz")
        assert sidecar(scan, {"Score": 1}) == {
            "Type": "Brain",
            "Sources": ["bids:raw:sub-1/anat/sub-1_T1w.nii.gz"],
            "SpatialReference": "bids:raw:sub-1/anat/sub-1_T1w.nii.gz",
            "Score": 1,
        }

    @pytest.mark.parametrize("kind", ["docker", "singularity"])
    def test_description(self, tmp_path, monkeypatch, kind):
        write_description(tmp_path / "bids")
        monkeypatch.setenv("SINGLESTRIP_CONTAINER", "img:1")
        if kind == "singularity":
            monkeypatch.setenv("APPTAINER_CONTAINER", "/images/img.sif")
        out = tmp_path / "bids" / "derivatives" / "singlestrip"
        write_dataset(out, tmp_path / "bids")
        description = read_json(out / "dataset_description.json")
        assert description["DatasetType"] == "derivative"
        assert description["BIDSVersion"] == "1.10.0"
        assert description["DatasetLinks"] == {"raw": "../.."}
        (tool,) = description["GeneratedBy"]
        assert (tool["Name"], tool["Version"]) == ("singlestrip-bids", __version__)
        assert tool["Container"] == {"Type": kind, "Tag": "img:1"}
        assert "*.html\nlogs\nlog\nfigures\n" in (out / ".bidsignore").read_text()
        assert made_here(out)

    def test_again_changes_nothing(self, tmp_path):
        write_description(tmp_path / "bids")
        write_dataset(tmp_path / "out", tmp_path / "bids")
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert len(before) == 3
        write_dataset(tmp_path / "out", tmp_path / "bids")
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        (tmp_path / "out" / "README.md").write_text("mine")
        write_dataset(tmp_path / "out", tmp_path / "bids")
        assert (tmp_path / "out" / "README.md").read_text() == "mine"

    def test_links(self, tmp_path):
        def link(output: Path, raw: Path) -> str:
            write_dataset(output, raw)
            return read_json(output / "dataset_description.json")["DatasetLinks"]["raw"]

        assert link(tmp_path / "out", tmp_path / "my bids") == "../my%20bids"
        assert link(tmp_path / "out", Path("/nowhere/x")) == "file:///nowhere/x"

    @pytest.mark.parametrize("inside", [".", "code/out", "sub-01", "derivatives/../out"])
    def test_output_in_the_input(self, tmp_path, inside):
        with pytest.raises(Usage, match="inside the input"):
            write_dataset(tmp_path / inside, tmp_path)
        assert not listing(tmp_path)

    def test_output_in_the_input_by_a_link(self, tmp_path):
        (tmp_path / "bids").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "bids")
        with pytest.raises(Usage, match="inside the input"):
            check_output(tmp_path / "link" / "out", tmp_path / "bids")
        check_output(tmp_path / "link" / "derivatives" / "out", tmp_path / "bids")
        check_output(tmp_path / "bids-out", tmp_path / "bids")

    def test_output_is_another_dataset(self, tmp_path):
        write_description(tmp_path / "out", GeneratedBy=[{"Name": "fMRIPrep"}])
        with pytest.raises(Usage, match="another dataset"):
            write_dataset(tmp_path / "out", tmp_path / "bids")

    def test_manual_masks_without_a_description_are_not_replaced(self, tmp_path):
        (tmp_path / "manual/sub-01").mkdir(parents=True)
        with pytest.raises(Usage, match="another dataset"):
            check_output(tmp_path / "manual", tmp_path / "bids")

    @pytest.mark.parametrize("made_by", ["singlestrip-bids", None, ["x"], [{}], {"Name": 3}])
    def test_odd_generated_by(self, tmp_path, made_by):
        write_description(tmp_path, GeneratedBy=made_by)
        assert not made_here(tmp_path)

    def test_read_json(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # with a byte order mark
        assert read_json(path) == {"a": 1}
        for content in ("{", "[]"):
            path.write_text(content)
            with pytest.raises(BadData, match=r"x\.json"):
                read_json(path)
        with pytest.raises(BadData, match=r"gone\.json"):
            read_json(tmp_path / "gone.json")
