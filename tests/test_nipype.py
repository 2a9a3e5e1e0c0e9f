"""The Nipype interface in a real workflow."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from singlestrip_bids.machine.files import read_json

REASON = "needs the extra nipype"
nipype = pytest.importorskip("nipype", reason=REASON)
interface = pytest.importorskip("singlestrip_bids.interfaces.nipype", reason=REASON)

MODEL = Path("code/singlestrip")


def report(in_file: str, score: float) -> tuple[int, float]:
    """Count the voxels of a mask, as a node after ours would."""
    import nibabel
    import numpy

    return int(numpy.asarray(nibabel.load(in_file).dataobj).sum()), score


def test_a_workflow_makes_the_mask_of_the_app(heads, trained, tmp_path):
    brain = nipype.Node(
        interface.SingleStrip(
            in_file=heads / "sub-02/anat/sub-02_T1w.nii.gz", model=trained / MODEL
        ),
        name="brain",
        mem_gb=interface.SingleStrip.mem_gb,
        n_procs=2,
    )
    after = nipype.Node(
        nipype.Function(function=report, output_names=["voxels", "score"]), name="after"
    )
    workflow = nipype.Workflow("test", base_dir=tmp_path)
    workflow.connect([(brain, after, [("out_mask", "in_file"), ("expected_dice", "score")])])
    results = {node.name: node.result.outputs for node in workflow.run(plugin="Linear").nodes()}

    mask = Path(results["brain"].out_mask)
    ours = trained / "sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    assert mask.read_bytes() == ours.read_bytes()
    assert mask.is_relative_to(tmp_path)
    assert results["after"].voxels == np.asarray(nib.load(ours).dataobj).sum()
    card = read_json(ours.with_name("sub-02_desc-brain_mask.json"))
    assert results["after"].score == pytest.approx(card["ExpectedDice"], abs=1e-4)


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


def test_drafts_by_the_word_phantom(heads, tmp_path):
    node = interface.SingleStrip(in_file=heads / "sub-02/anat/sub-02_T1w.nii.gz", model="phantom")
    found = nipype.Node(node, name="brain", base_dir=tmp_path).run().outputs
    assert np.asarray(nib.load(found.out_mask).dataobj).any()
    with pytest.raises(nipype.interfaces.base.traits.TraitError):
        interface.SingleStrip(model="no such folder")
