"""Voxels that hold no data: found, and blended with no others."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from builders import ellipsoid
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.image.fill import find_fill
from singlestrip_bids.image.grid import Grid, conform_image, restore
from singlestrip_bids.image.nifti import from_memory

GRID = Grid(2.0, 32, 8)


def scan(low: float = 0.0, high: float = 800.0) -> np.ndarray:
    return (low + (high - low) * ellipsoid()).astype(np.float32)


def seen(data: np.ndarray, sizes: float = 1.0):
    return conform_image(from_memory(nib.Nifti1Image(data, np.diag([sizes] * 3 + [1.0]))), GRID)


def planes(shape: tuple[int, ...]) -> np.ndarray:
    return np.indices(shape)[2] < 4


def border(shape: tuple[int, ...]) -> np.ndarray:
    where = np.ones(shape, bool)
    where[3:-3, 3:-3, 3:-3] = False
    return where


def column(shape: tuple[int, ...]) -> np.ndarray:
    where = np.zeros(shape, bool)
    where[20:26, 24:30] = True
    return where


def cylinder(shape: tuple[int, ...]) -> np.ndarray:
    x, y, _ = np.indices(shape)
    return ((x - 23.5) / 24) ** 2 + ((y - 27.5) / 28) ** 2 > 1


def salt(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).random(shape) < 0.02


def air(shape: tuple[int, ...]) -> np.ndarray:
    return ellipsoid(1.1, noise=0) == 0


SHAPES = [planes, border, column, cylinder, salt, air]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@pytest.mark.parametrize("value", [-32768.0, -1024.0, 32767.0, np.nan, np.inf, -np.inf])
def test_fill_is_found_whole_and_alone(shape, value):
    data = scan()
    where = shape(data.shape)
    stored = np.where(where, np.float32(value), data)
    for order in "CF":
        np.testing.assert_array_equal(find_fill(np.asarray(stored, order=order)), where)


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4"])
def test_planes_of_zero_under_a_raised_head(dtype):
    data = (1000 + scan()).astype(dtype)
    data[:, :, :4] = 0
    np.testing.assert_array_equal(find_fill(data), planes(data.shape))


@pytest.mark.parametrize("shape", [border, air])
def test_a_value_amid_the_others_that_ends_the_field_of_view(shape):
    data = scan(-2, 3)
    where = shape(data.shape)
    np.testing.assert_array_equal(find_fill(np.where(where, np.float32(0), data)), where)


def test_several_kinds_at_once():
    data = scan()
    data[:, :, :3], data[:3], data[-3:] = -1024, -32768, np.nan
    where = (data < -1) | ~np.isfinite(data)
    np.testing.assert_array_equal(find_fill(data), where)


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_interpolation_made_of_it(order):
    data = scan()
    data[:, :, :4] = -3000
    data[:, :, 4] = (data[:, :, 4] - 3000) / 2
    found = find_fill(np.asarray(data, order=order))
    assert found[:, :, :5].all()
    assert not found[:, :, 5:].any()


def test_outliers_with_nothing_in_common():
    data, where = scan(), salt(ellipsoid().shape)
    where |= column(data.shape)
    data[where] = np.random.default_rng(4).uniform(8000, 30000, where.sum())
    np.testing.assert_array_equal(find_fill(data), where)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    noise=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
    zoom=st.sampled_from([0.25, 0.6, 1.0, 3.0]),
    low=st.sampled_from([0.0, -1000.0, 500.0]),
    levels=st.sampled_from([0, 40, 255]),
    dtype=st.sampled_from(["f4", "i2"]),
)
def test_scans_without_fill_have_none(noise, zoom, low, levels, dtype):
    """Air, tissue, saturated fat and a head that is small in its field of view are data."""
    data = ellipsoid(zoom, noise=noise) * 1000
    data = np.minimum(data, 850) if levels == 40 else data
    data = np.round(data / 60) * 60 if levels == 255 else data
    if np.unique(data).size > 8:
        assert find_fill((low + data).astype(dtype)) is None


def test_bright_vessels_are_data():
    data = scan()
    data[10:40, 27:29, 25:27] = 4095
    data[10:40, 26, 25:27] = 3000 + 30 * np.arange(30)[:, None]
    assert find_fill(data) is None


@pytest.mark.parametrize("shape", [planes, border, column, cylinder, salt])
@pytest.mark.parametrize("value", [-32768.0, 32767.0, np.nan])
@pytest.mark.parametrize("sizes", [1.0, 0.5, 2.5])
def test_it_changes_nothing_where_there_are_data(shape, value, sizes):
    data = scan(300, 900)
    where = shape(data.shape)
    affine = np.diag([sizes] * 3 + [1.0])
    both = []
    for voxels in (data, np.where(where, np.float32(value), data)):
        image = from_memory(nib.Nifti1Image(voxels, affine))
        placed = conform_image(image, GRID)
        both.append(restore(placed.data, placed.affine, image))
    apart = abs(both[0] - both[1])[~where]
    assert np.mean(apart) < 0.03
    assert np.mean(apart > 0.15) < 0.06


def test_what_covers_a_face_is_no_field_of_view():
    data = scan()
    data[:, :, :12] = -1000
    assert seen(data, 2.0).inside.sum() == (data > -1000).sum()


def test_gaps_take_the_value_of_their_neighbours():
    data = scan()
    data[22:26, 26:30, 24:28] = 32767
    placed = seen(data, 2.0)
    assert placed.inside[placed.data > 0.5].all()
    middle = tuple(n // 2 for n in placed.data.shape)
    assert placed.data[middle] == pytest.approx(
        placed.data[tuple(m + 6 for m in middle)], abs=0.15
    )


def test_it_is_said_and_shown_as_dark(caplog):
    data = scan()
    data[:, :, :4] = 32767
    image = from_memory(nib.Nifti1Image(data, np.eye(4)))
    assert "7.69 % of the voxels hold no data; left out" in caplog.text
    assert image.data.max() < 900
    assert image.fill.sum() == planes(data.shape).sum()
