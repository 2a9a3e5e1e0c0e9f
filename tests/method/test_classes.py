"""Intensity classes of a labelled scan, and heads whose field of view is extended."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn import mixture

from singlestrip_bids.config import SynthesisConfig
from singlestrip_bids.method.classes import (
    CLASSES,
    INSIDE,
    OUTSIDE,
    Source,
    class_map,
    distance_to_end,
    extend_field_of_view,
    source,
    within_ends,
)
from singlestrip_bids.method.synthesis import training_batch

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


SIZE = 64
NOTHING = SynthesisConfig(**{f.name: 0.0 for f in fields(SynthesisConfig)})
CENTRED = np.indices((SIZE,) * 3) - SIZE / 2 + 0.5
HEAD = np.linalg.norm(CENTRED / [[[[1.0]]], [[[1.2]]], [[[1.0]]]], axis=0) < 24
NECK = (np.linalg.norm(CENTRED[:2], axis=0) < 14) & (CENTRED[2] < 0)
BRAIN = np.linalg.norm(CENTRED, axis=0) < 16


def labelled(lowest: int, padded: bool) -> Source:
    """A head with a neck from plane ``lowest`` upwards, with air or nothing at all below."""
    body = HEAD | NECK
    body[..., :lowest] = False
    classes = np.where(BRAIN, 9, np.where(body, 4, 1)).astype(np.uint8)
    image = np.where(BRAIN, 0.8, np.where(body, 0.5, 0.02)).astype(np.float32)
    if not padded:
        classes[..., :lowest], image[..., :lowest] = 0, 0
    return source(*(torch.from_numpy(array) for array in (classes, image, BRAIN)))


LOWEST = int(np.argwhere(BRAIN)[:, 2].min())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("below", "ends"), [(0, True), (1, True), (8, False)])
def test_heads_that_end_at_the_brain_are_extended(padded, below, ends):
    origin = labelled(LOWEST - below, padded)
    further = extend_field_of_view(origin, SIZE)
    assert (further is not None) is ends
    if further is None:
        return
    end = LOWEST - below
    for one, other in ((origin.classes, further.classes), (origin.image, further.image)):
        assert torch.equal(one[..., end:], other[..., end:])
    beyond = further.classes[0, 0, :, :, : end - 2].numpy()
    assert set(np.unique(beyond)) == {1, 4}  # air below air, tissue below tissue and brain
    assert (beyond[SIZE // 2, SIZE // 2] == 4).all()
    assert (beyond[:6, :6] == 1).all()
    assert torch.equal(further.mask, origin.mask)


def test_a_whole_head_is_left_alone():
    assert extend_field_of_view(labelled(0, padded=True), SIZE) is None


def test_a_brain_outside_of_what_looks_like_a_head_is_no_obstacle():
    """Such as a dark brain above a bright neck that ends in a plane."""
    origin = labelled(0, padded=True)
    neck = torch.from_numpy(NECK & (CENTRED[2] < -20)).float()[None, None]
    further = extend_field_of_view(replace(origin, image=neck), SIZE)
    assert further is not None
    assert torch.equal(further.classes > 6, origin.classes > 6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("way", [1, -1])
def test_only_flat_ends_are_ends(axis, way):
    head = np.flip(HEAD.swapaxes(2, axis).copy(), () if way == 1 else axis)
    assert within_ends(head, 2).all()
    cut = head.copy()
    ahead = [slice(None)] * 3
    ahead[axis] = slice(None, 24) if way == 1 else slice(SIZE - 24, None)
    cut[tuple(ahead)] = False
    expected = np.ones_like(cut)
    expected[tuple(ahead)] = False
    np.testing.assert_array_equal(within_ends(cut, 2), expected)


def test_distance_to_the_end_counts_the_grid_and_what_is_not_seen():
    classes = np.ones((20, 20, 20), np.float32)
    classes[8:12, 8:12, 5:12] = 9
    assert distance_to_end(classes) == 6
    classes[..., :3] = 0
    assert distance_to_end(classes) == 3


@pytest.mark.parametrize("real", [0.0, 1.0])
def test_images_show_tissue_beyond_the_grid(real):
    """Below a brain that is cut off lies what is at its edge, and no brain."""
    config = replace(NOTHING, real_fraction=real)
    origin = labelled(LOWEST, padded=False)
    further = extend_field_of_view(origin, SIZE)
    drawn = [
        training_batch(torch.Generator().manual_seed(1), [one], 2 * SIZE, config)
        for one in (origin, further)
    ]
    (image, target), (more, same) = drawn
    assert torch.equal(same > 0.5, target > 0.5)
    bottom = image[0, 0, :, :, :8], more[0, 0, :, :, :8]
    assert not bottom[0].any()
    assert bottom[1][SIZE, SIZE].all()
    assert not same[0, 0, :, :, :8].any()
