"""Phantoms: heads to learn from where there is no label."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from singlestrip_bids.config import SynthesisConfig
from singlestrip_bids.method.classes import CLASSES, OUTSIDE
from singlestrip_bids.method.phantoms import AIR, FLUID, WIDTH, draw_phantom
from singlestrip_bids.method.synthesis import training_batch

SIZE = 48


def phantom(number: int):
    return draw_phantom(torch.Generator().manual_seed(number), SIZE)


def test_same_generator_same_phantom():
    first, second = phantom(3), phantom(3)
    assert torch.equal(first.classes, second.classes)
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.classes, phantom(4).classes)


@pytest.mark.parametrize("number", range(8))
def test_is_a_head_with_a_brain(number):
    one = phantom(number)
    classes, mask = one.classes[0, 0].numpy(), one.mask[0, 0].numpy() > 0.5
    assert one.classes.shape == one.image.shape == one.mask.shape == (1, 1, SIZE, SIZE, SIZE)
    assert 0.01 < mask.mean() < 0.3
    labels, _ = ndimage.label(mask)
    assert np.bincount(labels.ravel())[1:].max() > 0.95 * mask.sum()  # in one piece
    middle = np.array(ndimage.center_of_mass(mask)) / SIZE
    assert np.abs(middle - 0.5).max() < 0.15
    assert classes.min() >= AIR and classes.max() < CLASSES
    own = classes[mask]
    low = set(np.unique(own[own <= OUTSIDE]))  # furrows and ventricles, nothing else
    assert low in ({FLUID}, {AIR}, set())
    assert not (classes[~mask] > OUTSIDE).any()
    assert (mask.sum() < (classes != AIR).sum()) and one.image.min() >= 0 and one.image.max() <= 1


def test_heads_are_about_as_wide_as_they_are_said_to_be():
    widths = []
    for number in range(12):
        head = phantom(number).classes[0, 0].numpy() != AIR
        upper = head[:, :, SIZE // 2 :]  # above neck and face
        edges = [np.ptp(np.flatnonzero(upper.any(axis=a))) + 1 for a in ((1, 2), (0, 2))]
        widths.append(np.sqrt(edges[0] * edges[1]) / SIZE)
    assert np.median(widths) == pytest.approx(WIDTH, rel=0.2)


def test_proportions_vary_from_human_to_animal():
    shares = []
    for number in range(24):
        one = phantom(number)
        shares.append(float(one.mask.sum() / (one.classes != AIR).sum()))
    assert min(shares) < 0.15 and max(shares) > 0.45


def test_fluid_is_that_of_air_in_half_of_them():
    wet = [bool((phantom(number).classes == FLUID).any()) for number in range(24)]
    assert 6 <= sum(wet) <= 18


def test_fluid_around_the_brain_may_be_brighter_or_darker_than_it():
    """PUMBA's phantoms have brains that are always brighter, which spoils T2w images."""
    brighter = 0
    for number in range(24):
        one = phantom(number)
        rim = ndimage.binary_dilation(one.mask[0, 0] > 0.5, iterations=2)
        rim &= one.mask[0, 0].numpy() == 0
        image = one.image[0, 0].numpy()
        brighter += image[rim].mean() > image[one.mask[0, 0] > 0.5].mean()
    assert 4 <= brighter <= 20


def test_becomes_training_images_like_a_labelled_scan():
    generator = torch.Generator().manual_seed(5)
    image, target = training_batch(generator, [phantom(5)], SIZE, SynthesisConfig())
    assert image.shape == target.shape == (1, 1, SIZE, SIZE, SIZE)
    assert image.min() >= 0 and image.max() == 1 and target.sum() > 100
