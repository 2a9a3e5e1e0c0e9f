"""What the participant level does with less memory."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import MODEL

from singlestrip_bids import cli
from singlestrip_bids.config import RunConfig
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine.runtime import SLAB, THIN_SLAB
from singlestrip_bids.method import inference
from singlestrip_bids.method.slabs import forward_in_slabs
from singlestrip_bids.report import subject as subject_report


def mask(bids: Path, trained: Path, out: Path, *words: str) -> int:
    command = [str(bids), str(out), "participant", "--model", str(trained / MODEL)]
    return cli.main([*command, "--participant-label", "02", "03", *words])


def masks(out: Path) -> dict[str, np.ndarray]:
    paths = [*out.glob("sub-0[23]/anat/*_mask.nii.gz")]
    return {path.name: np.asarray(nib.load(path).dataobj) for path in paths}


@pytest.mark.parametrize("words", [("--low-mem",), ("--nprocs", "1")])
def test_the_same_masks_with_less(heads, trained, tmp_path, words):
    assert mask(heads, trained, tmp_path / "out", *words) == 0
    found, before = masks(tmp_path / "out"), masks(trained)
    assert len(found) == 2
    for name, values in found.items():
        assert dice(values, before[name]) > 0.998


def test_a_full_gpu_is_no_failed_scan(heads, trained, tmp_path, monkeypatch, capfd):
    """PyTorch's own error, raised where the network computes, on the processor."""
    slabs = []

    def run(network, image, slab):
        slabs.append(slab)
        if len(slabs) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward_in_slabs(network, image, slab)

    monkeypatch.setattr(inference, "forward_in_slabs", run)
    out = tmp_path / "out"
    assert mask(heads, trained, out) == 0
    assert slabs[:2] == [SLAB, THIN_SLAB]
    assert "OUT OF MEMORY" in capfd.readouterr().err
    cards = [json.loads(path.read_text()) for path in sorted(out.glob("sub-*/anat/*_mask.json"))]
    assert ["OutOfMemory" in card for card in cards] == [True, False]
    assert cards[0]["OutOfMemory"] in subject_report.remarks(cards[0], None)
    for name, values in masks(out).items():
        assert dice(values, masks(trained)[name]) > 0.998


@pytest.mark.parametrize(
    ("nprocs", "low_mem", "overlap"), [(None, False, True), (1, False, False), (2, True, False)]
)
def test_when_scans_overlap(nprocs, low_mem, overlap):
    given = {"bids_dir": Path(), "output_dir": Path(), "levels": (), "method": None}
    config = RunConfig(**given, modalities=(), nprocs=nprocs, low_mem=low_mem)
    assert config.overlap is overlap
