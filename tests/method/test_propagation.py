"""The label as a second voice at masking: joined, gated, kept in the model, and left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import run

import singlestrip_bids
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.errors import BadData
from singlestrip_bids.image.grid import Conformed, halved
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine.files import load_tensors
from singlestrip_bids.method.classes import source
from singlestrip_bids.method.expected_dice import bettered
from singlestrip_bids.method.propagation import (
    AGREED,
    LABEL_FILE,
    Opinion,
    coarsened,
    doubled,
    join,
    keep,
    kept,
)

MODEL = Path("code/singlestrip")


def ball(radius: float, shift: float = 0.0) -> np.ndarray:
    place = np.indices((24, 24, 24)).T - 11.5 - [shift, 0, 0]
    return (radius > ((place**2).sum(-1).T) ** 0.5).astype(np.float32)


def found(radius: float) -> Conformed:
    return Conformed(ball(radius), np.eye(4), np.ones((24, 24, 24), bool))


class TestJoin:
    @pytest.mark.parametrize(
        ("explained", "weight"), [(0.0, 0), (0.3, 0), (0.4, 3 / 7), (0.5, 2 / 3), (0.9, 2 / 3)]
    )
    def test_weight_by_what_the_label_explains(self, explained, weight):
        joined, heard = join(found(8), Opinion(found(8.4), explained))
        assert heard == pytest.approx(weight)
        expected = (1 - weight) * ball(8) + weight * ball(8.4)
        np.testing.assert_allclose(joined.data, expected, atol=1e-6)
        assert joined.data.dtype == np.float32

    @pytest.mark.parametrize("other", [ball(8, 4), ball(4), 0 * ball(1), 0.4 * ball(8)])
    def test_the_network_alone_where_they_do_not_agree(self, other):
        joined, heard = join(found(8), Opinion(replace(found(8), data=other), 0.9))
        assert dice(ball(8), other > 0.5) < AGREED
        assert heard == 0
        np.testing.assert_array_equal(joined.data, ball(8))

    def test_as_fine_as_the_label(self):
        one = replace(found(8), affine=np.diag([3.0, 3, 3, 1]))
        one.inside[:4] = False
        finer = Conformed(doubled(ball(8)), halved(one.affine), doubled(one.inside))
        joined, heard = join(one, Opinion(finer, 0.9))
        assert heard and joined.data.shape == (48, 48, 48) and joined.voxel_size == 1.5
        np.testing.assert_array_equal(joined.inside, doubled(one.inside))
        corner = [-0.5, -0.5, -0.5, 1]
        np.testing.assert_allclose(one.affine @ corner, joined.affine @ corner)  # the same field
        centre = np.array(np.nonzero(joined.data > 0.5)).mean(1)
        np.testing.assert_allclose(centre, 23.5)
        np.testing.assert_array_equal(coarsened(joined, one) > 0.5, ball(8) > 0.5)


def test_labels_come_back_from_disk(tmp_path):
    rng = np.random.default_rng(0)
    labels = []
    for radius in (6, 8):
        image = torch.from_numpy(rng.random((24, 24, 24)).astype(np.float32))
        labels.append(source(torch.zeros_like(image), image, torch.from_numpy(ball(radius))))
    fine = torch.from_numpy(doubled(ball(8)))[None, None]
    labels[1] = replace(labels[1], fine=fine)
    keep(tmp_path, labels)
    tensors = load_tensors(tmp_path / LABEL_FILE)[0]
    for one, other in zip(labels, kept(tensors), strict=True):
        assert torch.allclose(one.image, other.image, atol=1e-3)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.centre, other.centre)
    assert kept(tensors)[0].fine is None and torch.equal(kept(tensors)[1].fine, fine)
    with pytest.raises(LookupError, match="without its image, its mask"):
        kept({name: tensor for name, tensor in tensors.items() if name != "mask_1"})


class TestModel:
    def test_keeps_the_label_and_says_so(self, trained):
        card = json.loads((trained / MODEL / "model.json").read_text())
        assert card["label_kept"] is True
        assert LABEL_FILE in card["sha256"]

    def test_joins_it_only_if_asked(self, trained, heads):
        scan = find_scans(heads)[1].path
        joined = singlestrip_bids.load_model(trained / MODEL, device="cpu").mask(scan)
        alone = singlestrip_bids.load_model(trained / MODEL, device="cpu", propagation=False).mask(
            scan
        )
        assert 0 <= joined.evidence["PropagatedWeight"] <= 2 / 3
        assert "PropagatedWeight" not in alone.evidence
        moved = joined.evidence.get("NetworkAgreement", 1.0)
        assert "NetworkAgreement" not in alone.evidence
        known = (alone.expected_dice, *alone.interval)
        votes = joined.evidence["PropagatedWeight"]
        found = joined.expected_dice, *joined.interval
        assert found == pytest.approx(bettered(known, moved, votes))

    def test_another_label_than_the_card_was_written_for(self, trained, tmp_path):
        folder = Path(shutil.copytree(trained / MODEL, tmp_path / "model"))
        keep(folder, [source(*[torch.ones(8, 8, 8)] * 3)])
        with pytest.raises(BadData, match="not the file its card was written for"):
            singlestrip_bids.load_model(folder, device="cpu")
        (folder / LABEL_FILE).write_bytes(b"half a file")
        with pytest.raises(BadData, match="damaged or foreign"):
            singlestrip_bids.load_model(folder, device="cpu")


class TestCommand:
    WORDS = ("participant", "--device", "cpu", "--model")

    @staticmethod
    def sidecar(out: Path) -> dict:
        return json.loads(next(out.glob("sub-01/anat/*_mask.json")).read_text())

    def test_masks_without_it_are_other_masks(self, bids, trained, tmp_path):
        out, words = tmp_path / "out", (*self.WORDS, str(trained / MODEL))
        assert run(bids, out, *words) == 0
        first = self.sidecar(out)
        assert first["LabelSHA256"]
        assert ("joined with the propagated label" in first["Description"]) == (
            first["PropagatedWeight"] > 0
        )
        assert run(bids, out, *words, "--no-propagation") == 0
        second = self.sidecar(out)
        assert second["LabelSHA256"] == ""
        assert "PropagatedWeight" not in second
        assert run(bids, out, *words) == 0
        assert self.sidecar(out)["PropagatedWeight"] == first["PropagatedWeight"]

    def test_a_model_without_the_label(self, bids, trained, tmp_path):
        out = Path(shutil.copytree(trained, tmp_path / "out"))
        assert run(bids, out, "group", "--sloppy", "--device", "cpu", "--no-propagation") == 0
        assert not (out / MODEL / LABEL_FILE).exists()
        card = json.loads((out / MODEL / "model.json").read_text())
        assert card["label_kept"] is False
        assert LABEL_FILE not in card["sha256"]
        fresh = tmp_path / "fresh"
        assert run(bids, fresh, *self.WORDS, str(out / MODEL)) == 0
        assert not {"LabelSHA256", "PropagatedWeight"} & self.sidecar(fresh).keys()
