"""To the model's grid and back."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from builders import ORIENTATIONS, affine_of, axes, image_of, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from singlestrip_bids.image.grid import (
    Conformed,
    Grid,
    conform,
    restore,
    restore_mask,
    scale_intensity,
)
from singlestrip_bids.image.masks import clean

SIZE, MULTIPLE = 16, 4
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Positions in mm of all voxels, (X, Y, Z, 3)."""
    return apply_affine(affine, np.stack(np.indices(shape), axis=-1))


def centre_of(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return apply_affine(affine, (np.array(shape) - 1) / 2)


def check_geometry(shape: tuple[int, ...], affine: np.ndarray, voxel_size: float) -> None:
    """What holds of every conformed image: sizes, field of view, positions, and the way back."""
    middle = centre_of(shape, affine)
    centre = middle + voxel_size * np.array([0.3, -0.4, 0.2])
    radius = 0.3 * min(np.array(shape) * voxel_sizes(affine))
    distance = np.linalg.norm(world(shape, affine) - centre, axis=-1)
    blob = np.exp(-0.5 * (distance / (radius / 2)) ** 2)
    placed = conform(blob, affine, Grid(voxel_size, SIZE, MULTIPLE))

    assert placed.data.shape == placed.inside.shape
    assert placed.data.dtype == np.float32
    assert all(n >= SIZE and n % MULTIPLE == 0 for n in placed.data.shape)
    np.testing.assert_allclose(voxel_sizes(placed.affine), voxel_size, rtol=1e-6)
    directions = nib.io_orientation(placed.affine)
    assert directions[:, 0].tolist() == [0, 1, 2]
    assert (directions[:, 1] == 1).all()

    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape))))
    index = apply_affine(np.linalg.inv(placed.affine) @ affine, corners)
    assert (index >= -0.5 - 2e-3).all(), "the field of view is cropped"
    assert (index <= np.array(placed.data.shape) - 0.5 + 2e-3).all(), (
        "the field of view is cropped"
    )

    back = apply_affine(np.linalg.inv(affine) @ placed.affine, indices(placed.data.shape))
    depth = np.minimum(back + 0.5, np.array(shape) - 0.5 - back).min(axis=-1)
    sure = abs(depth) > 1e-5
    assert (placed.inside == (depth > 0))[sure].all()
    assert not placed.data[~placed.inside].any()

    weight = placed.data.astype(np.float64)
    found = (world(weight.shape, placed.affine) * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    stored = (world(shape, affine) * blob[..., None]).sum((0, 1, 2)) / blob.sum()
    assert np.linalg.norm(found - stored) < 0.05 * voxel_size

    mask = distance < radius
    coarse = conform(mask, affine, Grid(voxel_size, SIZE, MULTIPLE))
    again = restore(coarse.data, coarse.affine, image_of(mask, affine)) > 0.5
    wrong = distance[again != mask]
    allowed = max(voxel_size, *voxel_sizes(affine)) / 2
    assert again.any()
    assert abs(wrong - radius).max(initial=0) <= allowed
    overlap = 2 * (again & mask).sum() / (again.sum() + mask.sum())
    assert overlap > 0.93


def sheared(shears: tuple[float, float, float]) -> np.ndarray:
    """A matrix (3, 3) with ones on its diagonal and columns of length one."""
    matrix = np.eye(3)
    matrix[[0, 0, 1], [1, 2, 2]] = shears
    return matrix / np.linalg.norm(matrix, axis=0)


def indices(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.indices(shape), axis=-1)


class TestGeometry:
    @pytest.mark.parametrize("codes", ORIENTATIONS)
    def test_every_orientation(self, codes):
        affine = affine_of(axes(codes), (1.0, 1.3, 1.9), (-20.0, 35.0, 7.0))
        check_geometry((28, 23, 17), affine, 2.0)

    def test_there_are_48_orientations(self):
        assert len(set(ORIENTATIONS)) == 48

    @PROPERTY
    @given(
        codes=st.sampled_from(ORIENTATIONS),
        angles=st.tuples(*[st.floats(-44, 44)] * 3),
        shears=st.tuples(*[st.sampled_from([0.0, 0.0, -0.2, 0.15])] * 3),
        sizes=st.tuples(*[st.floats(0.8, 2.2)] * 3),
        origin=st.tuples(*[st.floats(-150, 150)] * 3),
        voxel_size=st.floats(1.7, 2.6),
        unit=st.sampled_from([1.0, 0.1, 10.0]),
    )
    def test_oblique_sheared_anisotropic_and_tiny(
        self, codes, angles, shears, sizes, origin, voxel_size, unit
    ):
        turn = turned(codes, angles)
        turn = turn @ sheared(shears)
        shape = tuple(round(30 / size) for size in sizes)
        scaled = tuple(unit * size for size in sizes)
        affine = affine_of(turn, scaled, tuple(unit * o for o in origin))
        check_geometry(shape, affine, unit * voxel_size)

    @PROPERTY
    @given(
        shape=st.tuples(*[st.integers(1, 90)] * 3),
        sizes=st.tuples(*[st.floats(0.05, 6)] * 3),
        voxel_size=st.floats(0.05, 8),
        size=st.integers(1, 40),
        multiple=st.integers(1, 16),
    )
    def test_grid_covers_the_field_of_view(self, shape, sizes, voxel_size, size, multiple):
        affine = affine_of(np.eye(3), sizes, (3.0, -5.0, 8.0))
        counts, placed = Grid(voxel_size, size, multiple).place(shape, affine)
        extent = np.array(shape) * sizes
        assert all(n >= size and n % multiple == 0 for n in counts)
        assert (np.array(counts) * voxel_size >= extent - 2e-3 * voxel_size).all()
        smaller = np.array(counts) - multiple
        assert ((smaller < size) | (smaller * voxel_size < extent)).all(), "larger than it need be"
        np.testing.assert_allclose(
            centre_of(counts, placed), centre_of(shape, affine), atol=1e-6 * max(extent)
        )

    def test_whole_blocks_are_averaged(self):
        data = np.random.default_rng(0).random((32, 64, 48)).astype(np.float32)
        affine = affine_of(np.eye(3), (1.0, 0.5, 1.0), (-3.0, 4.0, 5.0))
        placed = conform(data, affine, Grid(2.0, SIZE, MULTIPLE))
        blocks = data.reshape(16, 2, 16, 4, 24, 2).mean(axis=(1, 3, 5))
        np.testing.assert_allclose(placed.data, blocks, atol=1e-5)
        assert placed.inside.all()

    def test_own_grid_changes_nothing(self):
        data = np.random.default_rng(0).random((16, 20, 24)).astype(np.float32)
        affine = affine_of(np.eye(3), (1.5,) * 3, (-3.0, 4.0, 5.0))
        placed = conform(data, affine, Grid(1.5, SIZE, MULTIPLE))
        np.testing.assert_allclose(placed.data, data, atol=1e-5)
        np.testing.assert_allclose(placed.affine, affine, atol=1e-9)

    def test_constant_stays_constant_up_to_the_border(self):
        affine = affine_of(axes("LAS"), (0.9, 1.1, 3.0), (0.0, 0.0, 0.0))
        placed = conform(np.full((31, 33, 9), 7.0), affine, Grid(2.5, 24, 8))
        np.testing.assert_allclose(placed.data[placed.inside], 7, rtol=1e-5)

    @pytest.mark.parametrize("fine", [(32, 32, 32), (31, 30, 17)])
    def test_full_grid_fills_the_image(self, fine):
        affine = affine_of(np.eye(3), (1.0,) * 3, (0.0,) * 3)
        image = image_of(np.zeros(fine), affine)
        placed = conform(image.data, affine, Grid(2.0, SIZE, MULTIPLE))
        full = restore(np.ones(placed.data.shape), placed.affine, image)
        np.testing.assert_allclose(full, 1, atol=1e-5)

    @pytest.mark.parametrize("thick", [0.5, 1.0, 3.0])
    def test_a_single_slice_is_not_lost(self, thick):
        data = np.arange(400, dtype=np.float32).reshape(20, 20, 1)
        affine = affine_of(np.eye(3), (4.0, 4.0, thick), (0.0,) * 3)
        placed = conform(data, affine, Grid(4.0, SIZE, MULTIPLE))
        assert placed.inside.any()
        assert scale_intensity(placed).data.max() == 1


class TestIntensity:
    def test_percentiles_become_zero_and_one(self):
        rng = np.random.default_rng(0)
        inside = np.zeros((16, 16, 16), bool)
        inside[2:-2] = True
        data = np.where(inside, rng.normal(100, 20, inside.shape), -1e6).astype(np.float32)
        scaled = scale_intensity(Conformed(data, np.eye(4), inside))
        values = scaled.data[inside]
        assert values.min() == 0
        assert values.max() == 1
        assert np.mean(values == 0) == pytest.approx(0.005, abs=1e-3)
        assert np.mean(values == 1) == pytest.approx(0.01, abs=1e-3)
        assert not scaled.data[~inside].any()
        middle = (values > 0) & (values < 1)
        assert np.corrcoef(values[middle], data[inside][middle])[0, 1] > 1 - 1e-6

    @PROPERTY
    @given(
        seed=st.integers(0, 99),
        scale=st.sampled_from([1e-8, 1.0, 1e6]),
        shift=st.sampled_from([-1e3, 0.0, 1e3]),
        share=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    )
    def test_always_between_zero_and_one(self, seed, scale, shift, share):
        rng = np.random.default_rng(seed)
        shape = (8, 8, 8)
        data = (shift + scale * rng.normal(size=shape) * (rng.random(shape) < share)).astype("f4")
        scaled = scale_intensity(Conformed(data, np.eye(4), np.ones(shape, bool))).data
        assert np.isfinite(scaled).all()
        assert scaled.min() >= 0
        assert scaled.max() <= 1
        assert scaled.dtype == np.float32

    def test_scale_and_offset_do_not_matter(self):
        data = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
        inside = np.ones(data.shape, bool)
        one, two = (
            scale_intensity(Conformed(d, np.eye(4), inside)).data for d in (data, 30 * data - 400)
        )
        np.testing.assert_allclose(one, two, atol=1e-4)


class TestRestoreMask:
    @pytest.mark.parametrize("codes", ORIENTATIONS[::5])
    def test_is_the_whole_grid_cut_and_cleaned(self, codes):
        affine = affine_of(axes(codes), (1.0, 1.3, 1.9), (-20.0, 35.0, 7.0))
        image = image_of(np.zeros((28, 23, 17), "f4"), affine)
        placed = conform(image.data, affine, Grid(2.0, SIZE, MULTIPLE))
        noise = np.random.default_rng(1).random(placed.data.shape)
        probability = ndimage.gaussian_filter(noise, 2).astype("f4")
        probability += 0.5 - np.quantile(probability, 0.6).astype("f4")
        whole = clean(restore(probability, placed.affine, image) > 0.5)
        found = restore_mask(probability, placed.affine, image)
        assert found.any()
        assert (found != whole).sum() <= 2, "rounding alone may differ"

    def test_of_nothing_is_nothing(self):
        image = image_of(np.zeros((9, 8, 7), "f4"), np.eye(4))
        placed = conform(image.data, image.affine, Grid(2.0, SIZE, MULTIPLE))
        assert not restore_mask(placed.data, placed.affine, image).any()
