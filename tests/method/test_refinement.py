"""Pseudo-labels that the network is unsure of, put right by other heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from singlestrip_bids.image.grid import Conformed
from singlestrip_bids.image.masks import dice
from singlestrip_bids.image.structures import overlaps
from singlestrip_bids.machine.runtime import start
from singlestrip_bids.method import encoders, refinement
from singlestrip_bids.method.inference import View
from singlestrip_bids.method.phantoms import draw_phantom
from singlestrip_bids.method.refinement import Look, Regions, Volumes

CPU = start("cpu")
SIZE = 64
HEADS = 4


@pytest.fixture(scope="module")
def encoder():
    return encoders.own(deepest=False, runtime=CPU)


@pytest.fixture(scope="module")
def heads():
    return [
        draw_phantom(torch.Generator().manual_seed(seed), SIZE) for seed in range(5, 5 + HEADS)
    ]


def conformed(origin) -> Conformed:
    image = origin.image[0, 0].numpy()
    return Conformed(image, np.eye(4), origin.classes[0, 0].numpy() > 0)


def truth(origin) -> np.ndarray:
    return origin.mask[0, 0].numpy() > 0.5


def view(origin, doubt: np.ndarray | None = None) -> View:
    """Sure of all, but where there is doubt: there it says brain, just so."""
    brain = np.where(truth(origin), 0.99, 0.01).astype(np.float32)
    if doubt is not None:
        brain[doubt] = 0.6
    return View(brain)


def looks(heads, encoder, views, quota: int = 2000) -> list[Look]:
    pairs = zip(heads, views, strict=True)
    return [refinement._look(conformed(h), v, encoder, quota, CPU) for h, v in pairs]


def shell(origin) -> np.ndarray:
    """Voxels outside the brain, but close to it, on one side of the head."""
    from scipy import ndimage

    near = ndimage.binary_dilation(truth(origin), iterations=3) & ~truth(origin)
    near[: SIZE // 2] = False
    return near


class TestRegions:
    def corrected(self, heads, encoder, views):
        correct = Regions.among(looks(heads, encoder, views), encoder, CPU, 0)
        return correct(conformed(heads[-1]), views[-1])

    def test_what_is_unsure_is_like_what_is_sure(self, heads, encoder):
        doubt = shell(heads[-1])
        views = [*map(view, heads[:-1]), view(heads[-1], doubt)]
        found = self.corrected(heads, encoder, views)
        before, after = (dice(v.brain > 0.5, truth(heads[-1])) for v in (views[-1], found))
        assert after > before + 0.02
        assert np.array_equal(found.brain[~doubt], views[-1].brain[~doubt])

    def test_what_is_sure_stays(self, heads, encoder):
        views = [view(one) for one in heads]
        assert self.corrected(heads, encoder, views) is views[-1]


class TestVolumes:
    def test_the_least_sure_is_put_to_a_vote(self, heads, encoder):
        wrong = view(heads[-1])
        wrong.brain[:] = np.where(truth(heads[-1]), 0.55, 0.5).astype(np.float32)
        views = [*map(view, heads[:-1]), wrong]
        seen = looks(heads, encoder, views)
        correct = Volumes.among(seen, encoder, CPU, 0)
        assert len(correct.sure) == HEADS - 1
        found = correct(conformed(heads[-1]), wrong)
        others = np.mean([truth(one) for one in heads[:-1]], axis=0)
        assert np.abs(found.brain - others).mean() < 0.02  # alike heads have alike weights
        assert correct(conformed(heads[0]), views[0]) is views[0]

    def test_where_all_are_sure_alike_none_is_left_out(self, heads, encoder):
        seen = [replace(look, entropy=0.2) for look in looks(heads, encoder, map(view, heads))]
        assert len(Volumes.among(seen, encoder, CPU, 0).sure) == HEADS


class TestStructures:
    """Two halves of a brain, a fine grid."""

    def numbers(self, origin) -> np.ndarray:
        found = truth(origin).astype(np.uint8)
        middle = int(np.argwhere(truth(origin))[:, 2].mean())
        found[:, :, middle:] *= 2
        return found

    def view(self, origin, doubt=None) -> View:
        fine = self.numbers(origin).repeat(2, 0).repeat(2, 1).repeat(2, 2)
        shares = np.stack([np.where(fine == n, 255, 0) for n in (1, 2)]).astype(np.uint8)
        return View(view(origin, doubt).brain, shares)

    def test_regions(self, heads, encoder):
        origin, numbers = heads[-1], self.numbers(heads[-1])
        doubt = truth(origin).copy()
        doubt[: SIZE // 2] = False
        views = [*map(self.view, heads[:-1]), self.view(origin, doubt)]
        swapped = View(views[-1].brain, np.where(
            doubt.repeat(2, 0).repeat(2, 1).repeat(2, 2), views[-1].shares[::-1], views[-1].shares
        ))  # fmt: skip
        views[-1] = swapped
        correct = Regions.among(looks(heads, encoder, views), encoder, CPU, 2)
        found = correct(conformed(origin), swapped)
        assert found.shares.shape == swapped.shares.shape
        fine = numbers.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        before, after = (
            overlaps(one.numbers(truth(origin)), fine, 2).min() for one in (swapped, found)
        )
        assert after > before + 0.2

    def test_volumes(self, heads, encoder):
        views = [self.view(one) for one in heads]
        views[-1].brain[:] = 0.5
        correct = Volumes.among(looks(heads, encoder, views), encoder, CPU, 2)
        found = correct(conformed(heads[-1]), views[-1])
        assert found.shares.shape == (2, SIZE, SIZE, SIZE)
        assert overlaps(found.numbers(found.mask), self.numbers(heads[-1]), 2).min() > 0.5


def test_the_labelled_scan_is_sure(heads, encoder):
    look = refinement._label(heads[0], encoder, 2000, CPU)
    assert look.entropy == 0
    assert np.array_equal(look.every() > 0, truth(heads[0]))
    numbers = TestStructures().numbers(heads[0])
    parts = torch.from_numpy(numbers).float()[None, None]
    look = refinement._label(replace(heads[0], parts=parts, structures=2), encoder, 2000, CPU)
    assert np.array_equal(look.every(), numbers)
    assert set(look.classes.tolist()) == {0, 1, 2}


def test_memory_is_bounded(heads, encoder):
    (look,) = looks(heads[:1], encoder, [view(heads[0])], quota=50)
    assert len(look.vectors) == len(look.classes) == 50
    assert look.vectors.dtype == torch.float16
    assert sum(look.classes.tolist()) == 25


@pytest.mark.parametrize("shape", [(4, 6, 8), (6, 6, 6), (8, 4, 7)])
def test_voters_of_other_fields_of_view_are_centred(shape):
    numbers = np.zeros((6, 6, 6), np.uint8)
    numbers[2:4, 2:4, 2:4] = 1
    found = refinement._centred(numbers, shape)
    assert found.shape == shape and found.sum() == 8
    middle = np.argwhere(found).mean(axis=0)
    assert np.abs(middle - (np.array(shape) - 1) / 2).max() <= 0.5


def test_votes_are_shares():
    classes = np.array([[0, 1, 1, 2, 2], [1, 1, 1, 1, 1]])
    votes = refinement._votes(classes, np.array([[1, 1, -1, 0.5, 0.5], [1] * 5]), 2)
    assert votes.sum(0) == pytest.approx([1, 1])
    assert votes[:, 0] == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_features_are_read_where_the_voxels_are():
    features = torch.zeros(1, 3, 4, 4, 4)
    features[0, 0, 1, 2, 3] = 1
    features[0, 1] = 1e-3
    seen = refinement._at(features, np.array([[3, 5, 7], [2, 4, 6], [6, 0, 0]]), (8, 8, 8))
    assert seen.shape == (3, 3)
    assert (seen[:2, 0] > 0.9).all()
    assert seen[2, 0] == 0
