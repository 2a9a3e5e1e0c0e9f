from __future__ import annotations

import numpy as np
import pytest
from sklearn import mixture

from singlestrip_bids.labels import CLASSES, INSIDE, OUTSIDE, class_map

SHAPE = (16, 16, 16)


def regions() -> tuple[np.ndarray, np.ndarray]:
    """Brain mask and field of view."""
    mask = np.zeros(SHAPE, bool)
    mask[4:12, 4:12, 4:12] = True
    inside = np.zeros(SHAPE, bool)
    inside[1:, :, :-2] = True
    return mask, inside


def painted(levels_outside: int, levels_inside: int) -> np.ndarray:
    """Intensities in distinct, evenly spaced levels, in random places."""
    mask, _ = regions()
    rng = np.random.default_rng(0)
    outside = np.linspace(0, 1, levels_outside)[rng.integers(0, levels_outside, SHAPE)]
    brain = np.linspace(0, 1, levels_inside)[rng.integers(0, levels_inside, SHAPE)]
    return np.where(mask, brain, outside).astype(np.float32)


def test_number_of_classes():
    assert (OUTSIDE, INSIDE, CLASSES) == (6, 10, 17)


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_levels_are_told_apart_darkest_first(noise):
    mask, inside = regions()
    clear = painted(OUTSIDE, INSIDE)
    image = np.clip(clear + np.random.default_rng(1).normal(0, noise, SHAPE), 0, 1)
    classes = class_map(image.astype(np.float32), mask, inside, seed=0)
    expected = np.where(
        mask, 7 + np.rint(clear * (INSIDE - 1)), 1 + np.rint(clear * (OUTSIDE - 1))
    )
    np.testing.assert_array_equal(classes, np.where(inside, expected, 0))


def test_ranges_by_region():
    mask, inside = regions()
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    classes = class_map(image, mask, inside, seed=3)
    assert classes.dtype == np.uint8
    assert classes.shape == SHAPE
    np.testing.assert_array_equal(classes == 0, ~inside)
    assert set(classes[inside & ~mask]) == set(range(1, 1 + OUTSIDE))
    assert set(classes[inside & mask]) == set(range(1 + OUTSIDE, CLASSES))


def test_brain_outside_the_field_of_view_is_class_zero():
    mask, inside = regions()
    mask[0] = True
    classes = class_map(painted(6, 10), mask, inside, seed=0)
    assert not classes[0].any()


def test_order_of_means():
    mask, inside = regions()
    rng = np.random.default_rng(0)
    image = rng.beta(2, 3, SHAPE).astype(np.float32)
    classes = class_map(image, mask, inside, seed=0)
    for first, count in ((1, OUTSIDE), (1 + OUTSIDE, INSIDE)):
        means = [image[classes == c].mean() for c in range(first, first + count)]
        assert means == sorted(means)


def test_seed_decides():
    mask, inside = regions()
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    one, same, other = (class_map(image, mask, inside, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_global_random_state_is_left_alone():
    mask, inside = regions()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    class_map(painted(6, 10), mask, inside, seed=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_regions(value):
    mask, inside = regions()
    classes = class_map(np.full(SHAPE, value, np.float32), mask, inside, seed=0)
    assert set(classes[inside & ~mask]) == {1}
    assert set(classes[inside & mask]) == {1 + OUTSIDE}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_distinct_values(count):
    mask, inside = regions()
    image = painted(count, count)
    classes = class_map(image, mask, inside, seed=0)
    step = np.rint(image * (count - 1))
    np.testing.assert_array_equal(classes[inside & mask], (7 + step)[inside & mask])
    np.testing.assert_array_equal(classes[inside & ~mask], (1 + step)[inside & ~mask])


@pytest.mark.parametrize("voxels", [1, 2, 5])
def test_few_voxels(voxels):
    mask, inside = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    mask[8, 8, :voxels] = True
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    classes = class_map(image, mask, inside, seed=0)
    assert (classes[mask] > OUTSIDE).all()
    assert (classes[~mask] <= OUTSIDE).all()


def test_mask_that_fills_the_field_of_view():
    _, inside = regions()
    classes = class_map(painted(6, 10), inside, inside, seed=0)
    assert set(classes[inside]) == set(range(1 + OUTSIDE, CLASSES))


def test_fit_is_to_a_bounded_sample(monkeypatch):
    sizes = []

    class Recorded(mixture.GaussianMixture):
        def fit(self, values, y=None):
            sizes.append(len(values))
            return super().fit(values, y)

    monkeypatch.setattr(mixture, "GaussianMixture", Recorded)
    mask, inside = regions()
    image = painted(6, 10)
    classes = class_map(image, mask, inside, seed=0, voxels=400)
    assert sizes == [400, 400]
    np.testing.assert_array_equal(classes, class_map(image, mask, inside, seed=0))


def test_intensities_outside_the_range_take_the_closest_class():
    mask, inside = regions()
    image = painted(6, 10)
    wild = np.where(image == 1, 3, np.where(image == 0, -2, image)).astype(np.float32)
    brain, around = inside & mask, inside & ~mask
    classes = class_map(wild, mask, inside, seed=0)
    assert set(classes[brain]) <= set(range(1 + OUTSIDE, CLASSES))
    assert set(classes[around]) <= set(range(1, 1 + OUTSIDE))
