"""To the model's grid and back, and the frame in which a model sees heads."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import ORIENTATIONS, affine_of, axes, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from singlestrip_bids.errors import BadData
from singlestrip_bids.image.grid import (
    Conformed,
    Frame,
    Grid,
    conform,
    head_width,
    relative_size,
    restore,
    restore_mask,
    scale_intensity,
    working_voxel_size,
)
from singlestrip_bids.image.masks import clean
from singlestrip_bids.image.nifti import Image

SIZE, MULTIPLE = 16, 4
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


def image_of(data: np.ndarray, affine: np.ndarray) -> Image:
    data = data.astype(np.float32)
    return Image(Path("scan.nii.gz"), data, nib.Nifti1Image(data, affine))


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


class TestWorkingVoxelSize:
    @staticmethod
    def ball(diameter: float, field: float, voxel: float) -> np.ndarray:
        n = round(field / voxel)
        place = (np.indices((n, n, n)) - (n - 1) / 2) * voxel
        return (place**2).sum(0) <= (diameter / 2) ** 2

    def test_human(self):
        head = self.ball(147, 300, 4)
        assert working_voxel_size(head, np.diag([4, 4, 4, 1]), 64) == pytest.approx(4, rel=0.03)

    @pytest.mark.parametrize("scale", [0.1, 10.0])
    def test_proportional_to_the_animal(self, scale):
        head = self.ball(147, 300, 5)
        human = working_voxel_size(head, np.diag([5, 5, 5, 1]), 64)
        other = working_voxel_size(head, np.diag([5 * scale] * 3 + [1]), 64)
        assert other == pytest.approx(scale * human, rel=1e-6)

    def test_inverse_to_the_size(self):
        head, affine = self.ball(147, 300, 5), np.diag([5, 5, 5, 1])
        coarse, fine = (working_voxel_size(head, affine, size) for size in (64, 256))
        assert coarse == pytest.approx(4 * fine, rel=0.01)

    def test_not_more_than_the_field_of_view(self):
        tight = self.ball(120, 160, 4)
        assert working_voxel_size(tight, np.diag([4, 4, 4, 1]), 64) == pytest.approx(160 / 64)

    def test_a_long_brain_fits(self):
        rod = np.zeros((20, 20, 60), bool)
        rod[8:12, 8:12, 2:58] = True
        voxel = working_voxel_size(rod, np.diag([1, 1, 3, 1]), 32)
        assert 32 * voxel == pytest.approx(1.2 * 56 * 3, rel=0.01)

    @pytest.mark.parametrize("codes", ["RAS", "SLP", "AIR"])
    def test_orientation_does_not_matter(self, codes):
        head = self.ball(100, 180, 6)
        turned = affine_of(axes(codes), (6.0,) * 3, (1.0, 2.0, 3.0))
        assert working_voxel_size(head, turned, 64) == pytest.approx(
            working_voxel_size(head, np.diag([6, 6, 6, 1]), 64)
        )


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


HEAD = (48, 56, 52)
RADII = (15, 19, 17)


def head(zoom: float = 1.0, shift: int = 0, noise: float = 0.02) -> np.ndarray:
    """An ellipsoid with a brighter one in it, in noise."""
    place = np.indices(HEAD).T - (np.array(HEAD) - 1) / 2 - [shift, 0, 0]
    radius = np.sqrt(((place / (np.array(RADII) * zoom)) ** 2).sum(-1)).T
    data = np.where(radius < 0.7, 0.9, np.where(radius < 1, 0.5, 0.0))
    rng = np.random.default_rng(0)
    return np.abs(data + rng.normal(0, noise, HEAD)).clip(0, 1).astype(np.float32)


def conformed(data: np.ndarray, inside: np.ndarray | None = None) -> Conformed:
    inside = np.ones(data.shape, bool) if inside is None else inside
    return Conformed(np.where(inside, data, np.float32(0)), np.eye(4), inside)


def seen_at(data: np.ndarray, voxel_size: float) -> Image:
    return image_of(data, np.diag([voxel_size] * 3 + [1.0]))


class TestHeadWidth:
    @pytest.mark.parametrize("noise", [0.0, 0.02, 0.08])
    def test_is_that_of_the_head(self, noise):
        width, cut = head_width(conformed(head(noise=noise)))
        assert width == pytest.approx(2 * np.sqrt(RADII[0] * RADII[1]), abs=2)
        assert not cut

    def test_does_not_depend_on_height(self):
        data = head()
        low = data.copy()
        low[..., : HEAD[2] // 2] = 0
        assert head_width(conformed(low))[0] == head_width(conformed(data))[0]

    def test_tells_when_the_field_of_view_ends_in_the_head(self):
        inside = np.zeros(HEAD, bool)
        inside[14:] = True
        assert head_width(conformed(head(), inside))[1]
        assert head_width(conformed(head(shift=12)))[1]

    def test_of_nothing(self):
        assert head_width(conformed(np.zeros(HEAD, np.float32))) == (0.0, True)

    def test_of_a_fine_grid(self):
        fine = head().repeat(3, 0).repeat(3, 1).repeat(3, 2)
        width, _ = head_width(conformed(fine))
        assert width == pytest.approx(3 * head_width(conformed(head()))[0], abs=4)


class TestRelativeSize:
    @pytest.mark.parametrize("zoom", [0.8, 1.0, 1.2])
    def test_like_heads_are_left_alone(self, zoom):
        assert relative_size(conformed(head(zoom)), head_width(conformed(head()))[0]) == 1

    @pytest.mark.parametrize("zoom", [0.5, 0.65])
    def test_smaller(self, zoom):
        ratio = relative_size(conformed(head(zoom)), head_width(conformed(head()))[0])
        assert ratio == pytest.approx(zoom, abs=0.07)

    @pytest.mark.parametrize("zoom", [0.5, 0.65])
    def test_larger(self, zoom):
        ratio = relative_size(conformed(head()), head_width(conformed(head(zoom)))[0])
        assert ratio == pytest.approx(1 / zoom, rel=0.12)

    def test_a_slab_is_no_small_head(self):
        inside = np.zeros(HEAD, bool)
        inside[18:30] = True
        assert relative_size(conformed(head(), inside), head_width(conformed(head()))[0]) == 1


class TestFrame:
    def frame(self, brain_ml: float = 10.0) -> Frame:
        return Frame(Grid(1.0, 32, 8), brain_ml, head_width(conformed(head()))[0])

    def test_the_labelled_head_keeps_its_voxel_size(self):
        assert self.frame().conform(seen_at(head(), 1.0)).voxel_size == 1

    @pytest.mark.parametrize("zoom", [0.5, 1.8])
    def test_another_head_is_seen_at_the_size_of_the_label(self, zoom):
        seen = self.frame(brain_ml=1.0).conform(seen_at(head(noise=0), zoom))
        assert seen.voxel_size == pytest.approx(zoom, rel=0.07)
        same = self.frame().conform(seen_at(head(noise=0), 1.0))
        assert (seen.data > 0.2).sum() == pytest.approx((same.data > 0.2).sum(), rel=0.2)

    def test_a_small_head_is_not_taken_for_a_stripped_one(self):
        data = head()
        brain_ml = (data > 0.7).sum() / 1000
        assert self.frame(brain_ml).conform(seen_at(data, 0.5)).voxel_size < 0.6

    def test_a_stripped_one_is_refused(self):
        data = np.where(head(noise=0) > 0.7, head(noise=0), np.float32(0))
        with pytest.raises(BadData, match="already skull-stripped"):
            self.frame((data > 0).sum() / 1000).conform(seen_at(data, 1.0))

    def test_a_field_of_view_smaller_than_the_brain_is_none(self):
        slab = head()[10:-10, 10:-10, 20:32]
        assert self.frame(brain_ml=slab.size / 1000).conform(seen_at(slab, 1.0)).data.any()

    def test_a_bright_spot_makes_no_grid_too_large_for_the_memory(self):
        spot = head(0.2, noise=0)
        assert self.frame(brain_ml=0.1).conform(seen_at(spot, 1.0)).voxel_size == 1
