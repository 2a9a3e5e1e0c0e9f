from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from builders import affine_of, axes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from singlestrip_bids.axes import SAME_ORDER, reordering

SHAPE = (4, 5, 6)
ORIENTATIONS = [
    "".join(codes)
    for signs in itertools.product("LR", "PA", "SI")
    for codes in itertools.permutations(signs)
]


def grid(codes: str, angles: tuple[float, ...] = (9, -12, 20)) -> nib.Nifti1Image:
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = affine_of(turn @ axes(codes), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    return nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    own=st.sampled_from(ORIENTATIONS),
    other=st.sampled_from(ORIENTATIONS),
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
)
def test_from_every_orientation_to_every_other(own, other, angles):
    image = grid(own, angles)
    ornts = [nib.orientations.axcodes2ornt(codes) for codes in (own, other)]
    order = nib.orientations.ornt_transform(*ornts)
    moved = image.as_reoriented(order)
    found = reordering((moved.shape, moved.affine), (SHAPE, image.affine))
    again = moved.as_reoriented(found)
    assert again.shape == SHAPE
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)


def test_half_way_between_two_orders_the_same_grid_is_the_same():
    """Where rounding decides which axis is the closest to R."""
    for angle in (44.9999999, 45, 45.0000001):
        one, other = grid("RAS", (0, 0, 45)).affine, grid("RAS", (0, 0, angle)).affine
        assert np.array_equal(reordering((SHAPE, one), (SHAPE, other)), SAME_ORDER)


@pytest.mark.parametrize(
    "change",
    [
        lambda affine: affine + 0.1 * np.eye(4)[:, [3, 3, 3, 3]].T,
        lambda affine: affine * np.array([1, 1, 1.1, 1]),
        lambda affine: affine * np.array([1, -1, 1, 1]),
        lambda affine: affine * np.nan,
        lambda affine: affine * np.array([1, 0, 1, 1]),
        lambda affine: np.full((4, 4), 1e308),
    ],
)
def test_another_grid(change):
    affine = grid("LPS").affine
    assert reordering((SHAPE, affine), (SHAPE, affine)) is not None
    assert reordering((SHAPE, change(affine)), (SHAPE, affine)) is None
    assert reordering((SHAPE, affine), (SHAPE, change(affine))) is None


def test_another_shape():
    affine = grid("LPS").affine
    assert reordering(((4, 5, 7), affine), (SHAPE, affine)) is None
    assert reordering(((6, 5, 4), affine), (SHAPE, affine)) is None
    assert reordering(((4, -5, 6), affine), (SHAPE, affine)) is None
