from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel import orientations

from benchmarks import variants
from benchmarks.phantoms import write_dataset
from singlestrip_bids import volume
from singlestrip_bids.config import NetworkConfig
from singlestrip_bids.networks import UNet


def test_signed_distance_is_half_a_voxel_on_both_sides_of_the_border():
    brain = np.zeros((12, 1, 1), np.float32)
    brain[4:9] = 1
    found = variants._signed_distance(brain)[:, 0, 0].tolist()
    assert found == [3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    assert (variants._signed_distance(0 * brain) == variants.FAR).all()


def test_a_head_at_every_level_but_the_finest_learns():
    torch.manual_seed(0)
    network = variants.Supervised(UNet(NetworkConfig((4, 8, 8, 8), normalise=True, stem=2)))
    image, target = torch.rand(1, 1, 32, 32, 32), torch.zeros(1, 1, 32, 32, 32)
    target[..., 8:24] = 1
    variants.deep(network, image, target).backward()
    assert [side.weight.grad.abs().sum() > 0 for side in network.side] == [True, True]
    with torch.no_grad():
        assert network.eval()(image).shape == image.shape


@pytest.mark.parametrize("codes", ["RAS", "RAI", "SLP", "AIL"])
def test_a_slab_ends_at_the_lower_end_of_its_brain(codes):
    data = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[4:8, 4:8, 5:12] = True
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes)
    )
    nifti = nib.Nifti1Image(data, np.diag([2, 2, 3, 1])).as_reoriented(turn)
    turned = orientations.apply_orientation(mask, turn)
    image = volume.Image(Path("a.nii.gz"), np.asarray(nifti.dataobj), nifti)
    cut, kept = variants._cut(image, turned)
    back = nib.as_closest_canonical(nib.Nifti1Image(cut.data, cut.affine))
    np.testing.assert_array_equal(back.get_fdata(), data[:, :, 5:])
    np.testing.assert_array_equal(back.affine[:3, 3], [0, 0, 15])
    assert kept.sum() == mask.sum()


@pytest.mark.slow
def test_every_variant_is_trained_and_scored(tmp_path, capsys):
    heads = write_dataset(tmp_path / "heads", subjects=2, spacing_scale=4)
    call = [str(heads), "01", "02", "--steps", "2", "--out", str(tmp_path / "table"), "--slab"]
    assert variants.main(call) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(variants.VARIANTS)
    assert all(0 <= row["dice"] <= 1 and not math.isnan(row["hd95_mm"]) for row in rows)
    assert rows[0]["training_processor_seconds"] == rows[1]["training_processor_seconds"]
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
