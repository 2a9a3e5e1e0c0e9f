"""Boxes, parts, bits, overlap, volume and borders of masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from singlestrip_bids.image.masks import (
    blank,
    box,
    clean,
    dice,
    millilitres,
    move_border,
    pack,
    signed_distance,
    unpack,
)

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


class TestBox:
    def test_is_the_smallest(self):
        mask = np.zeros((9, 8, 7), bool)
        mask[2, 3:6, 0] = mask[5, 4, 6] = True
        assert box(mask) == (slice(2, 6), slice(3, 6), slice(0, 7))

    def test_of_nothing_is_empty(self):
        mask = np.zeros((4, 4, 4), bool)
        assert mask[box(mask)].size == 0


class TestClean:
    def test_largest_component_without_holes(self):
        body = np.zeros((14, 14, 14), bool)
        body[2:9, 2:9, 2:9] = True
        dirty = body.copy()
        dirty[4:6, 4:6, 4:6] = False
        dirty[11:13, 11:13, 11:13] = True
        np.testing.assert_array_equal(clean(dirty), body)

    def test_empty(self):
        assert not clean(np.zeros((4, 4, 4), bool)).any()

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 999), share=st.floats(0, 1))
    def test_one_component_and_again_the_same(self, seed, share):
        mask = np.random.default_rng(seed).random((6, 6, 6)) < share
        once = clean(mask)
        assert ndimage.label(once)[1] == int(mask.any())
        np.testing.assert_array_equal(clean(once), once)
        assert np.array_equal(ndimage.binary_fill_holes(once), once)

    def test_a_hole_that_opens_at_the_border_is_none(self):
        mask = np.ones((6, 6, 6), bool)
        mask[3, 3, 2:] = False
        np.testing.assert_array_equal(clean(mask), mask)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (16, 8, 4)])
def test_packing_loses_nothing(shape):
    mask = np.random.default_rng(0).random(shape) > 0.5
    np.testing.assert_array_equal(unpack(pack(mask), shape), mask)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 5, 5)])
def test_a_packed_mask_tells_whether_it_is_empty(shape):
    mask = np.zeros(shape, bool)
    assert blank(pack(mask))
    mask[0, 0, 0] = True
    assert not blank(pack(mask))


class TestDice:
    def test_of_known_overlap(self):
        a, b = np.zeros((2, 6, 6, 6), bool)
        a[:4, :4, :4] = b[2:, :4, :4] = True
        assert dice(a, b) == pytest.approx(0.5)
        assert dice(a, a) == 1.0
        assert dice(a.astype(np.uint8) * 7, b.astype(float)) == dice(b, a)

    def test_of_empty_masks(self):
        empty, full = np.zeros((4, 4, 4)), np.ones((4, 4, 4))
        assert dice(empty, empty) == 1.0
        assert dice(empty, full) == 0.0

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match="different shapes"):
            dice(np.ones((3, 3, 3)), np.ones((3, 3, 4)))


def test_volume_of_sheared_voxels():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 1] = 1.5
    assert millilitres(np.ones((5, 5, 5), bool), affine) == pytest.approx(1)


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
        found = signed_distance(mask, np.array(sizes))
        assert found.dtype == np.float32
        assert np.array_equal(found < 0, mask)
        if not mask.all():
            np.testing.assert_allclose(found, by_hand(mask, np.array(sizes)), rtol=1e-5)

    def test_of_a_ball_on_thick_slices(self):
        mask, distance = ball((41, 41, 15), 12)
        found = signed_distance(mask, SIZES)
        assert np.abs(found - (distance - 12)).max() < 3

    def test_nothing_outside(self):
        found = signed_distance(np.ones((3, 4, 1), bool), np.array([1.0, 1.0, 12.0]))
        assert (found == -13).all()


class TestMove:
    def test_ball_on_thick_slices(self):
        mask, distance = ball((41, 41, 15), 12)
        grown, shrunk = move_border(mask, SIZES, 4), move_border(mask, SIZES, -4)
        assert grown[distance <= 14.5].all()
        assert not grown[distance > 16].any()
        assert shrunk[distance <= 7.5].all()
        assert not shrunk[distance > 10].any()

    @pytest.mark.parametrize("millimetres", [0.9, -0.9])
    def test_less_than_a_voxel_changes_nothing(self, millimetres):
        mask = np.random.default_rng(0).random((9, 9, 9)) > 0.5
        assert np.array_equal(move_border(mask, np.ones(3), millimetres), mask)

    @pytest.mark.parametrize("step", [0.1, 0.7, 1.3])
    def test_one_voxel_is_one_voxel(self, step):
        """Also where its edge has no exact number."""
        mask = np.zeros((9, 9, 9), bool)
        mask[3:6, 3:6, 3:6] = True
        assert move_border(mask, np.full(3, step), step)[2, 4, 4]
        assert not move_border(mask, np.full(3, step), -step)[3, 4, 4]

    def test_more_than_the_brain_leaves_nothing(self):
        mask = np.zeros((9, 9, 9), bool)
        mask[3:6, 3:6, 3:6] = True
        assert not move_border(mask, np.ones(3), -5).any()
