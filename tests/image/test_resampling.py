"""Separable linear interpolation, against scipy's on the same grids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from singlestrip_bids.image.resampling import sample, weights


def lines(shape, counts, blocks=(1, 1, 1)):
    places = [np.linspace(-1.5, n + 0.7, m) for n, m in zip(shape, counts, strict=True)]
    return places, [weights(n, p, b) for n, p, b in zip(shape, places, blocks, strict=True)]


class TestWeights:
    @pytest.mark.parametrize(("count", "block"), [(1, 1), (1, 4), (7, 1), (7, 3), (8, 2)])
    def test_sum_to_one(self, count, block):
        rows = weights(count, np.linspace(-3, count + 3, 29), block)
        assert rows.shape == (29, count)
        assert (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)

    def test_of_blocks_are_those_of_their_means(self):
        row = np.random.default_rng(0).random(12)
        centres = np.arange(4) * 3 + 1.0
        np.testing.assert_allclose(
            weights(12, centres, 3) @ row, row.reshape(4, 3).mean(1), rtol=1e-6
        )


class TestSample:
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
    def test_agrees_with_scipy_in_any_order_of_memory(self, order, flips):
        shape, counts = (9, 12, 7), (15, 8, 11)
        stored = np.random.default_rng(0).random([shape[axis] for axis in order])
        data = np.flip(stored.transpose(np.argsort(order)), flips)
        places, matrices = lines(shape, counts)
        grid = np.meshgrid(*places, indexing="ij")
        expected = ndimage.map_coordinates(data, grid, order=1, mode="nearest")
        found = sample(data, matrices)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_of_integers(self):
        data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        same = [weights(n, np.arange(n)) for n in data.shape]
        np.testing.assert_array_equal(sample(data, same), data)
