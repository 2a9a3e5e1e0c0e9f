"""Prototypes: a label spreads by the features of a network that was trained on phantoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from singlestrip_bids.image.grid import Conformed
from singlestrip_bids.image.masks import dice
from singlestrip_bids.image.structures import overlaps
from singlestrip_bids.machine.runtime import start
from singlestrip_bids.method import encoders
from singlestrip_bids.method.classes import source
from singlestrip_bids.method.phantoms import draw_phantom
from singlestrip_bids.method.prototypes import learn

CPU = start("cpu")
SIZE = 64


@pytest.fixture(scope="module")
def encoder():
    return encoders.own(deepest=False, runtime=CPU).network


@pytest.fixture(scope="module")
def published():
    return encoders.own(deepest=True, runtime=CPU).network


@pytest.fixture(scope="module")
def head():
    return draw_phantom(torch.Generator().manual_seed(5), SIZE)


def seen(origin, flip: bool = False) -> Conformed:
    image = origin.image[0, 0].numpy()
    image = image[::-1].copy() if flip else image
    return Conformed(image, np.eye(4), np.ones(image.shape, bool))


@torch.inference_mode()
def test_features_are_of_unit_length_and_finer_than_the_published_ones(encoder, published, head):
    fine, coarse = (network(head.image) for network in (encoder, published))
    assert fine.shape[2:] == (32, 32, 32) and coarse.shape[2:] == (4, 4, 4)
    for one in (fine, coarse):
        torch.testing.assert_close(one.norm(dim=1), torch.ones_like(one[:, 0]))


def test_the_label_finds_itself_and_its_mirror_image(encoder, head):
    known = learn(encoder, [head], CPU)
    truth = head.mask[0, 0].numpy() > 0.5
    for flip in (False, True):
        found = known.view(seen(head, flip), CPU)
        assert found.shares is None and found.brain.shape == truth.shape
        assert dice(found.mask, truth[::-1] if flip else truth) > 0.8


def test_finer_features_make_better_masks(encoder, published, head):
    truth = head.mask[0, 0].numpy() > 0.5
    fine, coarse = (
        dice(learn(network, [head], CPU).view(seen(head), CPU).mask, truth)
        for network in (encoder, published)
    )
    assert fine > coarse + 0.05


def test_structures_spread_too(encoder, head):
    mask = head.mask[0, 0].numpy() > 0.5
    middle = int(np.argwhere(mask)[:, 2].mean())
    numbers = np.where(mask, 1, 0).astype(np.uint8)
    numbers[:, :, middle:][mask[:, :, middle:]] = 2
    parts = torch.from_numpy(numbers).float()[None, None]
    known = learn(encoder, [replace(head, parts=parts, structures=2)], CPU)
    found = known.view(seen(head), CPU)
    assert found.shares.shape == (2, SIZE, SIZE, SIZE)
    assert overlaps(found.numbers(found.mask), numbers, 2).min() > 0.6


def test_a_finer_grid_is_seen_at_the_resolution_that_is_known(encoder, head):
    large = [v[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
             for v in (head.classes, head.image, head.mask)]  # fmt: skip
    origin = source(*large)
    found = learn(encoder, [origin], CPU).view(seen(origin), CPU)
    assert found.brain.shape == (128, 128, 128)
    assert dice(found.mask, origin.mask[0, 0].numpy() > 0.5) > 0.8
