"""A head that ends close to its brain goes on beyond, in the images that are learnt from."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from singlestrip_bids.config import SynthesisConfig
from singlestrip_bids.continuation import continued, distance_to_end, within_ends
from singlestrip_bids.synthesis import Source, source, training_batch

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
def test_heads_that_end_at_the_brain_go_on(padded, below, ends):
    origin = labelled(LOWEST - below, padded)
    further = continued(origin, SIZE)
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
    assert continued(labelled(0, padded=True), SIZE) is None


def test_a_brain_outside_of_what_looks_like_a_head_is_no_obstacle():
    """Such as a dark brain above a bright neck that ends in a plane."""
    origin = labelled(0, padded=True)
    neck = torch.from_numpy(NECK & (CENTRED[2] < -20)).float()[None, None]
    further = continued(replace(origin, image=neck), SIZE)
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
    further = continued(origin, SIZE)
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
