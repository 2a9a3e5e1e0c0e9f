from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids import border, cli

SIZES = np.array([1.0, 1.0, 3.0])


def ball(shape: tuple[int, ...], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A ball on thick slices, and how far each voxel is from its centre, in mm."""
    place = (np.stack(np.indices(shape), -1) - (np.array(shape) - 1) / 2) * SIZES
    distance = np.linalg.norm(place, axis=-1)
    return distance <= radius, distance


def by_hand(mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The same from all pairs of voxels."""
    place = np.stack(np.indices(mask.shape), -1) * sizes
    apart = np.linalg.norm(place[..., None, :] - place[~mask][None, None, None], axis=-1)
    towards = np.linalg.norm(place[..., None, :] - place[mask][None, None, None], axis=-1)
    return np.where(mask, -apart.min(-1, initial=np.inf), towards.min(-1, initial=np.inf))


class TestSignedDistance:
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 999),
        sizes=st.tuples(*[st.floats(0.05, 9)] * 3),
        shape=st.tuples(*[st.integers(1, 6)] * 3),
    )
    def test_to_the_nearest_voxel_of_the_other_side(self, seed, sizes, shape):
        mask = np.random.default_rng(seed).random(shape) < 0.3
        mask.flat[0], mask.flat[-1] = True, mask.size == 1
        found = border.signed_distance(mask, np.array(sizes))
        assert found.dtype == np.float32
        assert np.array_equal(found < 0, mask)
        if not mask.all():
            np.testing.assert_allclose(found, by_hand(mask, np.array(sizes)), rtol=1e-5)

    def test_of_a_ball_on_thick_slices(self):
        mask, distance = ball((41, 41, 15), 12)
        found = border.signed_distance(mask, SIZES)
        assert np.abs(found - (distance - 12)).max() < 3

    def test_nothing_outside(self):
        found = border.signed_distance(np.ones((3, 4, 1), bool), np.array([1.0, 1.0, 12.0]))
        assert (found == -13).all()


class TestMove:
    def test_ball_on_thick_slices(self):
        mask, distance = ball((41, 41, 15), 12)
        grown, shrunk = border.move(mask, SIZES, 4), border.move(mask, SIZES, -4)
        assert grown[distance <= 14.5].all()
        assert not grown[distance > 16].any()
        assert shrunk[distance <= 7.5].all()
        assert not shrunk[distance > 10].any()

    @pytest.mark.parametrize("millimetres", [0.9, -0.9])
    def test_less_than_a_voxel_changes_nothing(self, millimetres):
        mask = np.random.default_rng(0).random((9, 9, 9)) > 0.5
        assert np.array_equal(border.move(mask, np.ones(3), millimetres), mask)

    @pytest.mark.parametrize("step", [0.1, 0.7, 1.3])
    def test_one_voxel_is_one_voxel(self, step):
        """Also where its edge has no exact number."""
        mask = np.zeros((9, 9, 9), bool)
        mask[3:6, 3:6, 3:6] = True
        assert border.move(mask, np.full(3, step), step)[2, 4, 4]
        assert not border.move(mask, np.full(3, step), -step)[3, 4, 4]

    def test_more_than_the_brain_leaves_nothing(self):
        mask = np.zeros((9, 9, 9), bool)
        mask[3:6, 3:6, 3:6] = True
        assert not border.move(mask, np.ones(3), -5).any()


def test_the_app_writes_distances_on_the_scans_grid(heads, trained, tmp_path):
    model = str(trained / "code/singlestrip")
    words = ["--model", model, "--participant-label", "02", "--output", "distance"]
    command = [str(heads), str(tmp_path / "out"), "participant", *words, "--border-mm", "3"]
    assert cli.main(command) == 0
    stem = tmp_path / "out/sub-02/anat/sub-02_desc-brain"
    mask, distance, grown = (
        nib.load(f"{stem}{end}.nii.gz") for end in ("_mask", "_distance", "Plus3mm_mask")
    )
    assert distance.get_data_dtype() == np.float32
    assert distance.affine.tobytes() == mask.affine.tobytes()
    voxels = np.asarray(mask.dataobj) > 0
    sizes = np.array(mask.header.get_zooms())
    assert np.array_equal(np.asarray(distance.dataobj), border.signed_distance(voxels, sizes))
    assert np.array_equal(np.asarray(distance.dataobj) <= 3, np.asarray(grown.dataobj) > 0)
    card = json.loads(stem.with_name("sub-02_desc-brain_distance.json").read_text())
    assert card["Units"] == "mm"
    assert card["Sources"] == ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"]
    assert "inside, minus" in card["Description"]
