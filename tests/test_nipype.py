"""The Nipype interface in a real workflow."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

REASON = "needs the extra nipype"
nipype = pytest.importorskip("nipype", reason=REASON)
interface = pytest.importorskip("singlestrip_bids.interfaces.nipype", reason=REASON)

MODEL = Path("code/singlestrip")


def count(in_file: str) -> int:
    """Count the voxels of a mask, as a node after ours would."""
    import nibabel
    import numpy

    return int(numpy.asarray(nibabel.load(in_file).dataobj).sum())


def test_a_workflow_makes_the_mask_of_the_app(heads, trained, tmp_path):
    brain = nipype.Node(
        interface.SingleStrip(
            in_file=heads / "sub-02/anat/sub-02_T1w.nii.gz", model=trained / MODEL
        ),
        name="brain",
        mem_gb=interface.SingleStrip.mem_gb,
        n_procs=2,
    )
    voxels = nipype.Node(nipype.Function(function=count, output_names=["voxels"]), name="voxels")
    workflow = nipype.Workflow("test", base_dir=tmp_path)
    workflow.connect(brain, "out_mask", voxels, "in_file")
    done = {node.name: node for node in workflow.run(plugin="Linear").nodes()}

    outputs = done["brain"].result.outputs
    ours = trained / "sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    assert Path(outputs.out_mask).read_bytes() == ours.read_bytes()
    assert Path(outputs.out_mask).is_relative_to(tmp_path)
    assert 0 <= outputs.quality_score <= 1
    assert done["voxels"].result.outputs.voxels == np.asarray(nib.load(ours).dataobj).sum()


def test_what_a_scheduler_is_told(heads, trained):
    single = interface.SingleStrip(
        in_file=heads / "sub-02/anat/sub-02_T1w.nii.gz", model=trained / MODEL, num_threads=3
    )
    node = nipype.Node(single, name="brain", mem_gb=single.mem_gb)
    assert (node.n_procs, node.mem_gb) == (3, interface.SingleStrip.mem_gb)
    node.n_procs = 2
    assert node.inputs.num_threads == 2


def test_a_scan_and_a_model_are_needed(tmp_path):
    with pytest.raises(ValueError, match="in_file"):
        interface.SingleStrip(model=tmp_path).run()
    with pytest.raises(nipype.interfaces.base.traits.TraitError):
        interface.SingleStrip(model=tmp_path / "gone")


def test_an_error_says_what_is_wrong(heads, tmp_path):
    single = interface.SingleStrip(in_file=heads / "sub-02/anat/sub-02_T1w.nii.gz", model=tmp_path)
    with pytest.raises(Exception, match="run the group level first"):
        single.run(cwd=tmp_path)
