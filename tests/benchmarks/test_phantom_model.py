"""The model that ships: trained here in seconds, loaded, and used on a head."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from benchmarks import phantom_model, published_phantoms, zero_label
from singlestrip_bids.config import sloppy
from singlestrip_bids.machine import files
from singlestrip_bids.machine.runtime import start
from singlestrip_bids.method import model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    counts = {"SEEN": 4, "SHAPES": 4}
    method = sloppy(phantom_model.settings(3, 0))
    method = replace(method, training=replace(method.training, steps=3))
    work = tmp_path_factory.mktemp("phantom")
    with patch.multiple(phantom_model, **counts):
        return phantom_model.train(work, method, start("cpu"))


def test_is_a_model_folder_like_any_other(tiny):
    found = model.load(tiny, start("cpu"))
    assert found.draft and found.frame.fitted and not found.labels
    card = files.read_json(tiny / "model.json")
    assert card["label"] == [] and card["unlabelled"] == []
    assert card["command"].startswith("python -m benchmarks.phantom_model")
    assert set(card["sha256"]) == {"phantom.safetensors", "autoencoder.safetensors"}


def test_weights_are_of_half_precision_and_load_whole(tiny):
    tensors, _ = files.load_tensors(tiny / "phantom.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    loaded = model.load(tiny, start("cpu")).network.state_dict()
    assert all(torch.equal(loaded[name], t.float()) for name, t in tensors.items())


def test_published_phantoms_are_bright_brains_with_thick_borders():
    darker = 0
    for seed in range(6):
        image, target = published_phantoms.example(48, torch.Generator().manual_seed(seed))
        assert image.shape == target.shape == (1, 1, 48, 48, 48)
        assert set(target.unique().tolist()) == {0.0, 1.0} and image.min() >= 0
        rim = torch.nn.functional.max_pool3d(target, 5, 1, 2) - target > 0
        darker += bool(image[rim].mean() < image[target > 0].mean())
    assert darker >= 5  # ours may be either


def test_the_table_of_no_label_groups_scans():
    rows = [
        {"tool": tool, "scan": scan, "contrast": contrast, "dice": dice, "dataset": "d",
         "error": None}
        for tool, bonus in (("phantom", 0), ("deepbet", 0.05))
        for scan, contrast, dice in (
            ("sub-1", "T1w", 0.8), ("sub-2", "T1w", 0.9), ("sub-dog", "T1w", 0.7 + bonus),
        )
    ]  # fmt: skip
    facts = {"date": "d", "commit": "c", "hardware": "h"}
    text = zero_label.table({"tools": {"phantom": {}, "deepbet": {}}, "rows": rows, **facts})
    head, _, first, second = text.splitlines()[:4]
    assert head.split(" | ")[1:] == ["animals (1)", "T1w (2) |"]
    assert "0.700, 0.700" in first and "0.850, 0.800" in first
    assert "0.750, 0.750" in second
    assert np.all(["phantom" in first, "deepbet" in second])
