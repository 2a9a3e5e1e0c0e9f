"""Where everything lies in a dataset of masks, and what describes it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from builders import write_description

from singlestrip_bids import __version__
from singlestrip_bids.bids.derivatives import Derivatives, made_here, provenance, sidecar_path
from singlestrip_bids.bids.scans import Scan
from singlestrip_bids.errors import Usage
from singlestrip_bids.machine.files import read_json

OUT = Derivatives(Path("/out"))


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
        assert OUT.mask(scan_at(scan)) == OUT.root / mask

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
        assert len({OUT.mask(scan_at(scan)) for scan in scans}) == len(scans)

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
            assert OUT.mask(scan, millimetres) == folder / mask
        probseg = f"{name}_space-T2w_chunk-3_label-brain_probseg.nii.gz"
        assert OUT.image(scan, "label-brain_probseg") == folder / probseg
        distance = f"{name}_space-T2w_chunk-3_desc-brain_distance.nii.gz"
        assert OUT.image(scan, "desc-brain_distance") == folder / distance
        brain = f"{name}_chunk-3_desc-brain_T2w.nii.gz"
        assert OUT.brain(scan) == folder / brain

    def test_other_paths(self):
        assert OUT.model_dir == Path("/out/code/singlestrip")
        assert OUT.log_dir("20200101") == Path("/out/logs/20200101")
        assert OUT.page("sub-1") == Path("/out/sub-1.html")
        assert OUT.citation(".bib") == Path("/out/logs/CITATION.bib")
        figure = "sub-1/figures/sub-1_ses-2_desc-scan_T1w.jpg"
        found = OUT.figure("sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz", "scan", ".jpg")
        assert found == OUT.root / figure
        assert sidecar_path(Path("a/b_mask.nii.gz")) == Path("a/b_mask.json")
        assert sidecar_path(Path("a/b_mask.nii")) == Path("a/b_mask.json")

    def test_address(self, tmp_path):
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "a.jpg").touch()
        out = Derivatives(tmp_path)
        assert out.address(tmp_path / "figures" / "a.jpg") == "figures/a.jpg"
        assert out.address(tmp_path / "figures" / "b.jpg") == ""

    def test_sidecars_of_masks(self, tmp_path):
        names = [
            "sub-1/anat/sub-1_desc-brain_mask.json",
            "sub-1/ses-2/func/sub-1_ses-2_task-rest_desc-brain_mask.json",
            "sub-2/anat/sub-2_desc-brain_mask.json",
        ]
        others = ["sub-1/anat/sub-1_desc-brainPlus2mm_mask.json", "sub-1/anat/sub-1_T1w.json"]
        for name in (*names, *others):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = Derivatives(tmp_path).mask_sidecars()
        assert [str(path.relative_to(tmp_path)) for path in found] == names
        found = Derivatives(tmp_path).mask_sidecars("2")
        assert [str(path.relative_to(tmp_path)) for path in found] == names[2:]


class TestDataset:
    def test_provenance(self):
        assert provenance(scan_at("sub-1/anat/sub-1_T1w.nii.gz")) == {
            "Sources": ["bids:raw:sub-1/anat/sub-1_T1w.nii.gz"],
            "SpatialReference": "bids:raw:sub-1/anat/sub-1_T1w.nii.gz",
        }

    @pytest.mark.parametrize("kind", ["docker", "singularity"])
    def test_description(self, tmp_path, monkeypatch, kind):
        write_description(tmp_path / "bids")
        monkeypatch.setenv("SINGLESTRIP_CONTAINER", "img")
        if kind == "singularity":
            monkeypatch.setenv("APPTAINER_CONTAINER", "/images/img.sif")
        out = tmp_path / "bids" / "derivatives" / "singlestrip"
        Derivatives(out).start(tmp_path / "bids")
        description = read_json(out / "dataset_description.json")
        assert description["DatasetType"] == "derivative"
        assert description["BIDSVersion"] == "1.10.0"
        assert description["DatasetLinks"] == {"raw": "../.."}
        (tool,) = description["GeneratedBy"]
        assert (tool["Name"], tool["Version"]) == ("singlestrip-bids", __version__)
        assert tool["Container"] == {"Type": kind, "Tag": f"img:{__version__}"}
        assert "*.html\nlogs\nlog\nfigures\n" in (out / ".bidsignore").read_text()
        assert made_here(out)

    def test_again_changes_nothing(self, tmp_path):
        write_description(tmp_path / "bids")
        Derivatives(tmp_path / "out").start(tmp_path / "bids")
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert len(before) == 3
        Derivatives(tmp_path / "out").start(tmp_path / "bids")
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        (tmp_path / "out" / "README.md").write_text("mine")
        Derivatives(tmp_path / "out").start(tmp_path / "bids")
        assert (tmp_path / "out" / "README.md").read_text() == "mine"

    def test_links(self, tmp_path):
        def link(output: Path, raw: Path) -> str:
            Derivatives(output).start(raw)
            return read_json(output / "dataset_description.json")["DatasetLinks"]["raw"]

        assert link(tmp_path / "out", tmp_path / "my bids") == "../my%20bids"
        assert link(tmp_path / "out", Path("/nowhere/x")) == "file:///nowhere/x"

    @pytest.mark.parametrize("inside", [".", "code/out", "sub-01", "derivatives/../out"])
    def test_output_in_the_input(self, tmp_path, inside):
        with pytest.raises(Usage, match="inside the input"):
            Derivatives(tmp_path / inside).start(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_output_in_the_input_by_a_link(self, tmp_path):
        (tmp_path / "bids").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "bids")
        with pytest.raises(Usage, match="inside the input"):
            Derivatives(tmp_path / "link" / "out").check(tmp_path / "bids")
        Derivatives(tmp_path / "link" / "derivatives" / "out").check(tmp_path / "bids")
        Derivatives(tmp_path / "bids-out").check(tmp_path / "bids")

    def test_output_is_another_dataset(self, tmp_path):
        write_description(tmp_path / "out", GeneratedBy=[{"Name": "fMRIPrep"}])
        with pytest.raises(Usage, match="another dataset"):
            Derivatives(tmp_path / "out").start(tmp_path / "bids")

    def test_manual_masks_without_a_description_are_not_replaced(self, tmp_path):
        (tmp_path / "manual/sub-01").mkdir(parents=True)
        with pytest.raises(Usage, match="another dataset"):
            Derivatives(tmp_path / "manual").check(tmp_path / "bids")

    @pytest.mark.parametrize("made_by", ["singlestrip-bids", None, ["x"], [{}], {"Name": 3}])
    def test_odd_generated_by(self, tmp_path, made_by):
        write_description(tmp_path, GeneratedBy=made_by)
        assert not made_here(tmp_path)
