from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import variants
from benchmarks.phantoms import write_dataset
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


@pytest.mark.slow
def test_every_variant_is_trained_and_scored(tmp_path, capsys):
    heads = write_dataset(tmp_path / "heads", subjects=2, spacing_scale=4)
    call = [str(heads), "01", "02", "--steps", "2", "--out", str(tmp_path / "table")]
    assert variants.main(call) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(variants.VARIANTS)
    assert all(0 <= row["dice"] <= 1 and not math.isnan(row["hd95_mm"]) for row in rows)
    assert rows[0]["training_processor_seconds"] == rows[1]["training_processor_seconds"]
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
