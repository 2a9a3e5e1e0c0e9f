"""Boxes, parts and bits of masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from singlestrip_bids.masks import box, clean, pack, unpack


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
