"""The fine network: where it looks, how it joins, what it learns from, how a model keeps it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import MODEL, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import singlestrip_bids as ss
from singlestrip_bids.config import NetworkConfig
from singlestrip_bids.errors import BadData
from singlestrip_bids.image import nifti
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import Conformed, Grid
from singlestrip_bids.image.structures import unpack_numbers
from singlestrip_bids.machine.files import load_tensors, sha256
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.fine import MARGIN, OF_STRUCTURES, WEIGHT, _window, draw, edge_of
from singlestrip_bids.method.inference import View, mask_from
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.propagation import finer

CPU = Runtime(torch.device("cpu"), bfloat16=False)
SIZE, LEAST = 48, 32


def ball(radius: float, size: int = SIZE, shift: float = 0.0) -> np.ndarray:
    place = np.indices((size,) * 3).T - (size - 1) / 2 - [shift, 0, 0]
    return (radius > ((place**2).sum(-1).T) ** 0.5).astype(np.float32)


def conformed(data: np.ndarray) -> Conformed:
    return Conformed(data, np.eye(4), np.ones(data.shape, bool))


class Bright(UNet):
    """A network that takes what is bright for brain."""

    def __init__(self) -> None:
        super().__init__(NetworkConfig((2, 4), stem=2))
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, image, numbers=None):
        return (image - 0.5) * self.scale


class TestWindow:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        low=st.tuples(*[st.integers(0, 40)] * 3),
        size=st.tuples(*[st.integers(1, 48)] * 3),
        least=st.sampled_from([8, 24, 32, 48, 64]),
    )
    def test_holds_the_brain_and_suits_the_network(self, low, size, least):
        mask = np.zeros((48, 64, 48), bool)
        place = tuple(slice(a, a + b) for a, b in zip(low, size, strict=True))
        mask[place] = True
        window = _window(mask, least, 8)
        assert mask[window].sum() == mask.sum()
        for edge, count in zip(window, mask.shape, strict=True):
            width = edge.stop - edge.start
            assert width % 8 == 0 and 0 <= edge.start < edge.stop <= count
            assert width >= min(least, count)

    def test_leaves_a_margin(self):
        window = _window(ball(6) > 0, 8, 8)
        assert window == (slice(24 - 16, 24 + 16),) * 3
        assert MARGIN <= 16 - 6


class TestDraw:
    def test_has_two_thirds_of_the_votes(self):
        scan, found = conformed(ball(9.6)), conformed(ball(10.0))
        joined, shares, weight = draw(Bright(), scan, found, None, LEAST, CPU)
        assert shares is None
        assert weight == WEIGHT
        inner, between = ball(8.0) > 0, (ball(10.0) > 0) & (ball(9.6) == 0)
        assert (joined.data[inner] > 0.99).all()
        np.testing.assert_allclose(joined.data[between], 1 - WEIGHT, atol=0.01)
        assert (found.data == ball(10.0)).all()

    @pytest.mark.parametrize("seen", [ball(5.0), ball(9.0, shift=4), 0 * ball(1)])
    def test_is_not_heard_where_it_does_not_agree(self, seen):
        found = conformed(ball(9.0))
        shares = np.full((1, *(SIZE,) * 3), 7, np.uint8)
        joined, same, weight = draw(Bright(), conformed(seen), found, shares, LEAST, CPU)
        assert same is shares and (shares == 7).all()
        assert weight == 0 and joined is found

    def test_says_nothing_of_a_scan_without_brain(self):
        found = conformed(0 * ball(1))
        joined, _, weight = draw(Bright(), conformed(ball(9.0)), found, None, LEAST, CPU)
        assert weight == 0 and joined is found

    def test_comes_to_voxels_half_as_large(self):
        coarse = conformed(ball(5.0, SIZE // 2))
        joined, _, weight = draw(Bright(), conformed(ball(10.0)), coarse, None, LEAST, CPU)
        assert weight == WEIGHT and joined.data.shape == (SIZE,) * 3
        np.testing.assert_allclose(joined.affine, finer(coarse, (SIZE,) * 3).affine)


def told(network: UNet, cut: Conformed, *_) -> View:
    """Take what is bright for brain, and all of it for the first of two structures."""
    return View(cut.data, np.stack([255 * cut.data, 0 * cut.data]).astype(np.uint8))


@pytest.mark.parametrize("size", [SIZE, SIZE // 2])
def test_structures_are_joined_alike(size, monkeypatch):
    monkeypatch.setattr("singlestrip_bids.method.fine.view", told)
    shares = np.stack([(255 * ball(size / 4.8, size)).astype(np.uint8)] * 2)
    scan, found = conformed(ball(9.6)), conformed(ball(10.0))
    _, joined, weight = draw(
        UNet(NetworkConfig((2, 4), stem=2), 2), scan, found, shares, LEAST, CPU
    )
    assert weight == WEIGHT
    assert joined is not None and joined.shape == (2, *(SIZE,) * 3)
    inner = ball(8.0) > 0
    assert (joined[0][inner] >= 250).all()
    assert np.abs(joined[1][inner].astype(int) - 255 * (1 - OF_STRUCTURES)).max() <= 3.5


def test_its_images_are_half_as_large_again():
    assert edge_of(Grid(4.0, 64, 16)) == 96
    assert edge_of(Grid(4.0, 40, 16)) == 64  # a multiple


def test_a_finer_scan_lies_where_the_coarse_one_does(heads):
    (path,) = heads.glob("sub-01/anat/*T1w.nii.gz")
    image, frame = nifti.load(path), Frame(Grid(6.0, 32, 4), 1400.0, 24.0)
    coarse = frame.conform(image)
    fine = frame.conform_finer(image, coarse)
    same = finer(coarse, fine.data.shape)
    np.testing.assert_allclose(fine.affine, same.affine)
    assert np.corrcoef(fine.data.ravel(), same.data.ravel())[0, 1] > 0.9


@pytest.fixture(scope="module")
def model(heads, tmp_path_factory):
    """A model whose guard keeps the fine-tuned network."""
    out = tmp_path_factory.mktemp("fine") / "out"
    assert run(heads, out, "group", "--sloppy", "--random-seed", "3") == 0
    return out


class TestModel:
    def card(self, out: Path) -> dict:
        return json.loads((out / MODEL / "model.json").read_text())

    def test_keeps_it_with_its_pupil(self, trained, model):
        for out in (trained, model):
            card = self.card(out)
            refused = card["network"] == "sl1.safetensors"
            assert card["fine"] == (None if refused else "fine.safetensors")
            assert ("fine.safetensors" in card["sha256"]) != refused
            weights, _ = load_tensors(out / MODEL / "fine.safetensors")
            before, _ = load_tensors(out / MODEL / "round-1.safetensors")
            assert weights.keys() == before.keys()
            assert not all(weights[name].equal(before[name]) for name in weights)

    def changed(self, out: Path, folder: Path, **fields) -> Path:
        shutil.copytree(out / MODEL, folder)
        path = folder / "model.json"
        card = self.card(out)
        card["sha256"]["fine.safetensors"] = fields.pop("checksum", None) or sha256(
            folder / "fine.safetensors"
        )
        path.write_text(json.dumps({**card, "fine": "fine.safetensors", **fields}))
        return folder

    def test_is_read_and_used(self, model, heads, tmp_path):
        (scan,) = heads.glob("sub-02/anat/*T1w.nii.gz")
        with_it = ss.load_model(self.changed(model, tmp_path / "a"), device="cpu")
        assert with_it.fine is not None
        without = replace(with_it, fine=None)
        one, other = with_it.mask(scan), without.mask(scan)
        assert one.evidence["FineWeight"] in (0.0, WEIGHT)
        assert "FineWeight" not in other.evidence
        assert one.evidence["QualityScore"] == other.evidence["QualityScore"]
        if one.evidence["FineWeight"]:
            assert one.evidence["NetworkAgreement"] < 1
            assert one.expected_dice > other.expected_dice

    def test_a_damaged_one_is_refused(self, model, tmp_path):
        folder = self.changed(model, tmp_path / "a", checksum="0" * 64)
        with pytest.raises(BadData, match=r"fine\.safetensors: not the file its card"):
            ss.load_model(folder, device="cpu")

    def test_none_if_that_is_wanted(self, heads, tmp_path):
        assert run(heads, tmp_path, "group", "--sloppy", "--set", "fine_steps=0") == 0
        assert self.card(tmp_path)["fine"] is None
        assert not (tmp_path / MODEL / "fine.safetensors").exists()

    def test_soft_masks_are_made_once(self, heads, tmp_path, capfd):
        assert run(heads, tmp_path, "group", "--sloppy") == 0
        (folder,) = tmp_path.rglob("work/fine")
        made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert len(made) == 3
        for path in made:
            tensors, card = load_tensors(path)
            soft = unpack_numbers(tensors["mask"].numpy().tobytes(), card["shape"]) / 255
            assert not ((soft > 0.505) & ~mask_from(soft)).any()  # nothing lies apart
        (tmp_path / MODEL / "fine.safetensors").unlink()
        first = next(iter(made))
        first.write_bytes(first.read_bytes()[:99])
        assert run(heads, tmp_path, "group", "--sloppy") == 0
        again = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert {path for path in made if again[path] != made[path]} == {first}
        assert (tmp_path / MODEL / "fine.safetensors").is_file()
