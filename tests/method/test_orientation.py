"""Scans whose axes lie otherwise than the header says."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import HEADS
from torch import Tensor

import singlestrip_bids
from singlestrip_bids.config import NetworkConfig
from singlestrip_bids.image.grid import Conformed
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.inference import mask_from, predict
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.orientation import _turns, doubt

CPU = Runtime(torch.device("cpu"), bfloat16=False)
MODEL = HEADS.parent / "models" / "quick-heads"
TURNS = _turns()
RNG = np.random.default_rng(0)


def test_they_are_all_rotations_by_right_angles_once():
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    seen = {(turn.apply(volume).shape, turn.apply(volume).tobytes()) for turn in TURNS}
    assert len(seen) == 23
    assert (volume.shape, volume.tobytes()) not in seen
    mirrors = {volume[::-1].tobytes(), volume[:, ::-1].tobytes(), volume[:, :, ::-1].tobytes()}
    assert not mirrors & {content for _, content in seen}


@pytest.mark.parametrize("turn", TURNS)
def test_turning_back(turn):
    volume = RNG.random((4, 5, 6))
    np.testing.assert_array_equal(turn.undo(turn.apply(volume)), volume)


@pytest.mark.parametrize("turn", TURNS)
def test_words_name_the_new_ends_of_axes(turn):
    """What is said to be the bottom comes to the first plane of the third axis, and so on."""
    said = turn.words.split("calls ")[1].split("; look")[0].split(", ")
    ends = dict(phrase.split(" is ")[::-1] for phrase in said)
    for axis, (low, high) in enumerate((("left", "right"), ("back", "front"), ("bottom", "top"))):
        named = ends.get(low, low)
        volume = np.zeros((3, 3, 3))
        for place, pair in enumerate((("left", "right"), ("back", "front"), ("bottom", "top"))):
            if named in pair:
                np.moveaxis(volume, place, 0)[0 if named == pair[0] else -1] = 1
        assert np.moveaxis(turn.apply(volume), axis, 0)[0].all(), (low, high)


class Upright(UNet):
    """A network that is sure of a wedge whose thick end is below, and of nothing else."""

    def forward(self, image: Tensor) -> Tensor:
        wedge = torch.from_numpy(WEDGE)[None, None]
        parts = [
            torch.stack([image[i][0][wedge[0, 0] == v].mean() for v in (0, 1)])
            for i in range(len(image))
        ]
        out = []
        for one, (outside, inside) in zip(image, parts, strict=True):
            seen = abs(inside - outside) > 0.7 * (one.max() - one.min())
            out.append(40.0 * (wedge[0] - 0.5) if seen else 40.0 * torch.sin(60 * one))
        return torch.stack(out)


WEDGE = np.zeros((16, 16, 16), np.float32)
for z in range(2, 14):
    WEDGE[4:12, 3 : 14 - z // 2, z] = 1
WEDGE = (WEDGE + WEDGE[::-1] > 0).astype(np.float32)


def as_seen(volume: np.ndarray) -> Conformed:
    return Conformed(volume, np.eye(4), np.ones(volume.shape, bool))


@pytest.fixture
def network():
    return Upright(NetworkConfig(features=(3, 4), normalise=True, stem=2))


def test_upright_is_not_doubted(network):
    seen = as_seen(0.2 + 0.6 * WEDGE)
    assert doubt(network, seen, mask_from(predict(network, seen, CPU)), None, CPU) is None


@pytest.mark.parametrize(
    "turn", [turn for turn in TURNS if turn.flips and turn.order == (0, 1, 2)]
)
def test_turned_is_doubted_and_measured(network, turn):
    volume = turn.apply(0.2 + 0.6 * WEDGE)
    if np.array_equal(volume, 0.2 + 0.6 * WEDGE):
        pytest.skip("the wedge looks the same from there")
    seen = as_seen(volume + RNG.normal(0, 0.01, volume.shape).astype(np.float32))
    mask = mask_from(predict(network, seen, CPU))
    found = doubt(network, seen, mask, None, CPU)
    assert found is not None
    assert found.agreement == pytest.approx(dice(mask, turn.apply(WEDGE)), abs=1e-6)


@pytest.fixture(scope="module")
def model():
    return singlestrip_bids.load_model(MODEL)


@pytest.mark.skipif(not MODEL.is_dir(), reason="the real heads are not here")
class TestRealHeads:
    @staticmethod
    def scan(name: str, upside_down: bool = False) -> nib.Nifti1Image:
        image = nib.load(next(HEADS.glob(f"sub-*/**/{name}.nii.gz")))
        data = np.asarray(image.dataobj, np.float32)
        return nib.Nifti1Image(data[:, :, ::-1] if upside_down else data, image.affine)

    @pytest.mark.parametrize("name", ["sub-04_T1w", "sub-08_T2w", "sub-20_ses-2_FLAIR"])
    def test_upside_down(self, model, name, caplog):
        upright = model.mask(self.scan(name))
        assert not upright.orientation
        turned = model.mask(self.scan(name, upside_down=True))
        assert "what it calls" in turned.orientation
        assert turned.orientation in caplog.text
        true = dice(turned.voxels, upright.voxels[:, :, ::-1])
        assert turned.expected_dice == pytest.approx(true, abs=0.06)
        assert turned.interval[0] < true < turned.interval[1]

    @pytest.mark.parametrize("name", ["sub-24_asl", "sub-26_bold", "sub-19_ses-2_FLAIR"])
    def test_hard_scans_are_not_doubted(self, model, name):
        path: Path = next(HEADS.glob(f"sub-*/**/{name}.nii.gz"))
        assert not model.mask(path).orientation
