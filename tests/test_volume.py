from __future__ import annotations

import itertools
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from singlestrip_bids.errors import BadData
from singlestrip_bids.volume import (
    Conformed,
    Image,
    clean,
    conform,
    grid,
    load,
    load_mask,
    restore,
    scale_intensity,
    support,
    working_voxel_size,
)

SIZE, MULTIPLE = 16, 4
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
ORIENTATIONS = [
    "".join(codes)
    for signs in itertools.product("LR", "PA", "SI")
    for codes in itertools.permutations(signs)
]


def affine_of(turn: np.ndarray, sizes: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(sizes)
    affine[:3, 3] = origin
    return affine


def axes(codes: str) -> np.ndarray:
    """Directions of voxel axes named such as LAS: a signed permutation (3, 3)."""
    ornt = nib.orientations.axcodes2ornt(codes)
    matrix = np.zeros((3, 3))
    for voxel_axis, (world_axis, sign) in enumerate(ornt):
        matrix[int(world_axis), voxel_axis] = sign
    return matrix


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
    placed = conform(blob, affine, voxel_size, SIZE, MULTIPLE)

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
    coarse = conform(mask, affine, voxel_size, SIZE, MULTIPLE)
    again = restore(coarse.data, coarse.affine, image_of(mask, affine)) > 0.5
    wrong = distance[again != mask]
    allowed = max(voxel_size, *voxel_sizes(affine)) / 2
    assert again.any()
    assert abs(wrong - radius).max(initial=0) <= allowed
    overlap = 2 * (again & mask).sum() / (again.sum() + mask.sum())
    assert overlap > 0.93


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
        sizes=st.tuples(*[st.floats(0.8, 2.2)] * 3),
        origin=st.tuples(*[st.floats(-150, 150)] * 3),
        voxel_size=st.floats(1.7, 2.6),
        unit=st.sampled_from([1.0, 0.1, 10.0]),
    )
    def test_oblique_anisotropic_and_tiny(self, codes, angles, sizes, origin, voxel_size, unit):
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes(codes)
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
        counts, placed = grid(shape, affine, voxel_size, size, multiple)
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
        placed = conform(data, affine, 2.0, SIZE, MULTIPLE)
        blocks = data.reshape(16, 2, 16, 4, 24, 2).mean(axis=(1, 3, 5))
        np.testing.assert_allclose(placed.data, blocks, atol=1e-5)
        assert placed.inside.all()

    def test_own_grid_changes_nothing(self):
        data = np.random.default_rng(0).random((16, 20, 24)).astype(np.float32)
        affine = affine_of(np.eye(3), (1.5,) * 3, (-3.0, 4.0, 5.0))
        placed = conform(data, affine, 1.5, SIZE, MULTIPLE)
        np.testing.assert_allclose(placed.data, data, atol=1e-5)
        np.testing.assert_allclose(placed.affine, affine, atol=1e-9)

    def test_constant_stays_constant_up_to_the_border(self):
        affine = affine_of(axes("LAS"), (0.9, 1.1, 3.0), (0.0, 0.0, 0.0))
        placed = conform(np.full((31, 33, 9), 7.0), affine, 2.5, 24, 8)
        np.testing.assert_allclose(placed.data[placed.inside], 7, rtol=1e-5)

    @pytest.mark.parametrize("fine", [(32, 32, 32), (31, 30, 17)])
    def test_full_grid_fills_the_image(self, fine):
        affine = affine_of(np.eye(3), (1.0,) * 3, (0.0,) * 3)
        image = image_of(np.zeros(fine), affine)
        placed = conform(image.data, affine, 2.0, SIZE, MULTIPLE)
        full = restore(np.ones(placed.data.shape), placed.affine, image)
        np.testing.assert_allclose(full, 1, atol=1e-5)

    @pytest.mark.parametrize("thick", [0.5, 1.0, 3.0])
    def test_a_single_slice_is_not_lost(self, thick):
        data = np.arange(400, dtype=np.float32).reshape(20, 20, 1)
        affine = affine_of(np.eye(3), (4.0, 4.0, thick), (0.0,) * 3)
        placed = conform(data, affine, 4.0, SIZE, MULTIPLE)
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


@pytest.fixture
def scan(tmp_path):
    """Write an array as an image and return its path."""

    def write(data: np.ndarray, affine: np.ndarray | None = None, name: str = "x.nii.gz") -> Path:
        affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
        nib.save(nib.Nifti1Image(data, affine), tmp_path / name)
        return tmp_path / name

    return write


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


class TestLoad:
    def test_as_stored(self, scan):
        affine = affine_of(axes("PIR"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
        image = load(scan(ramp(4, 5, 6), affine))
        assert image.data.dtype == np.float32
        assert image.volumes == 1
        np.testing.assert_array_equal(image.data, ramp(4, 5, 6))
        np.testing.assert_allclose(image.affine, affine)

    def test_scaled_integers(self, tmp_path):
        nifti = nib.Nifti1Image(ramp(4, 5, 6), np.eye(4))
        nifti.set_data_dtype(np.uint8)
        nib.save(nifti, tmp_path / "x.nii")
        np.testing.assert_allclose(load(tmp_path / "x.nii").data, ramp(4, 5, 6), atol=0.5)

    def test_mean_over_time(self, scan):
        data = np.random.default_rng(0).random((4, 5, 6, 7)).astype(np.float32)
        image = load(scan(data))
        np.testing.assert_allclose(image.data, data.mean(axis=3), rtol=1e-5)
        assert image.volumes == 7

    @pytest.mark.parametrize("extra", [(1,), (1, 1)])
    def test_trailing_singletons(self, scan, extra):
        image = load(scan(ramp(4, 5, 6, *extra)))
        np.testing.assert_array_equal(image.data, ramp(4, 5, 6))
        assert image.volumes == 1

    def test_series_with_a_trailing_singleton(self, scan):
        image = load(scan(ramp(4, 5, 6, 3, 1)))
        np.testing.assert_allclose(image.data, ramp(4, 5, 6, 3).mean(axis=3))
        assert image.volumes == 3

    def test_one_slice(self, scan):
        assert load(scan(ramp(4, 5, 1))).data.shape == (4, 5, 1)

    def test_some_not_finite(self, scan, caplog):
        data = ramp(4, 5, 6)
        data[0, 0, :2] = np.nan
        data[3, 4, 5] = np.inf
        path = scan(data)
        with caplog.at_level(logging.WARNING):
            image = load(path)
        assert str(path) in caplog.text
        lowest = data[np.isfinite(data)].min()
        np.testing.assert_array_equal(
            image.data, np.where(np.isfinite(data), data, lowest).astype("f4")
        )

    def test_some_not_finite_in_a_series(self, scan):
        data = ramp(4, 5, 6, 2)
        data[0, 0, 0, 0] = np.nan
        assert np.isfinite(load(scan(data)).data).all()

    @pytest.mark.parametrize(
        ("data", "fact"),
        [
            (ramp(4, 5, 6, 2, 3), "5 dimensions"),
            (ramp(4, 5), "2 dimensions"),
            (ramp(4, 5, 6).astype(np.complex64), "complex"),
            (np.zeros((4, 5, 6), [(c, "u1") for c in "RGB"]), "RGB"),
            (np.zeros((4, 5, 6), "f4"), "every voxel is 0"),
            (np.full((4, 5, 6), 3, "u1"), "every voxel is 3"),
            (np.full((4, 5, 6), np.nan, "f4"), "100 % of the voxels are not finite"),
            (np.where(ramp(4, 5, 6) > 9, np.nan, ramp(4, 5, 6)), "not finite"),
            (np.zeros((4, 5, 6, 3), "f4"), "every voxel is 0"),
            (np.full((4, 5, 6, 3), np.nan, "f4"), "not finite|every voxel"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_unusable_voxels(self, scan, data, fact):
        path = scan(data)
        with pytest.raises(BadData, match=fact) as caught:
            load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("keep", [0.5, 0.9])
    @pytest.mark.parametrize("shape", [(20, 20, 20), (10, 10, 10, 8)])
    @pytest.mark.parametrize("name", ["x.nii.gz", "x.nii"])
    def test_truncated(self, scan, keep, shape, name):
        path = scan(np.random.default_rng(0).random(shape), name=name)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(BadData, match=r"truncated|not a readable") as caught:
            load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("where", [slice(12, 76), slice(200, 264), slice(-8, -4)])
    def test_damaged_in_the_middle(self, scan, where):
        path = scan(np.random.default_rng(0).random((20, 20, 20)))
        content = bytearray(path.read_bytes())
        content[where] = bytes(len(content[where]))  # the last: the checksum of the whole
        path.write_bytes(content)
        with pytest.raises(BadData, match=r"damaged|not a readable") as caught:
            load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        "content", [b"", b"version https://git-lfs.github.com/spec/v1\n" * 20]
    )
    @pytest.mark.parametrize("name", ["x.nii.gz", "x.nii"])
    def test_not_an_image(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match="not a readable NIfTI") as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(BadData, match=r"gone\.nii\.gz"):
            load(tmp_path / "gone.nii.gz")

    def test_other_format(self, tmp_path):
        nib.save(nib.MGHImage(ramp(4, 5, 6), np.eye(4)), tmp_path / "x.mgz")
        with pytest.raises(BadData, match=r"x\.mgz.*not NIfTI"):
            load(tmp_path / "x.mgz")

    def test_dangling_link(self, tmp_path):
        link = tmp_path / "x.nii.gz"
        link.symlink_to(tmp_path / "annex" / "object")
        with pytest.raises(BadData, match=r"datalad get x\.nii\.gz") as caught:
            load(link)
        assert str(link) in str(caught.value)

    @pytest.mark.parametrize(
        "matrix", [np.diag([1.0, 1.0, 0.0]), np.ones((3, 3)), np.diag([1.0, np.nan, 1.0])]
    )
    def test_affine_without_inverse(self, tmp_path, matrix):
        nifti = nib.Nifti1Image(ramp(4, 5, 6), None)
        affine = np.eye(4)
        affine[:3, :3] = matrix
        nifti.header["sform_code"] = 1
        for row, values in zip(("srow_x", "srow_y", "srow_z"), affine, strict=False):
            nifti.header[row] = values
        nib.Nifti1Image(ramp(4, 5, 6), None, nifti.header).to_filename(tmp_path / "x.nii")
        raw = bytearray((tmp_path / "x.nii").read_bytes())
        raw[254:256] = np.int16(1).tobytes()
        raw[280:328] = affine[:3].astype("f4").tobytes()
        (tmp_path / "x.nii").write_bytes(raw)
        with pytest.raises(BadData, match="affine") as caught:
            load(tmp_path / "x.nii")
        assert str(tmp_path / "x.nii") in str(caught.value)

    def test_microscopic_voxels(self, scan):
        affine = np.diag([0.01, 0.01, 0.01, 1.0])
        np.testing.assert_allclose(load(scan(ramp(4, 5, 6), affine)).affine, affine)


class TestLoadMask:
    @pytest.fixture
    def image(self, scan):
        return load(scan(ramp(4, 5, 6), name="scan.nii.gz"))

    def test_above_one_half(self, scan, image):
        data = np.zeros((4, 5, 6), np.float32)
        data[1, 1, :4] = (0.4, 0.6, 1, 7)
        mask = load_mask(scan(data), image)
        assert mask.dtype == bool
        assert np.argwhere(mask).tolist() == [[1, 1, 1], [1, 1, 2], [1, 1, 3]]

    def test_trailing_singleton(self, scan, image):
        data = np.zeros((4, 5, 6, 1), np.uint8)
        data[1, 1, 1] = 1
        assert load_mask(scan(data), image).sum() == 1

    @pytest.mark.parametrize(
        ("data", "affine", "fact"),
        [
            (np.ones((4, 5, 7), "u1"), None, "another grid"),
            (np.eye(4, 5)[..., None].repeat(6, 2), np.diag([2.0, 2.0, 3.5, 1.0]), "another grid"),
            (np.zeros((4, 5, 6), "u1"), None, "empty"),
            (np.full((4, 5, 6), np.nan, "f4"), None, "empty"),
            (np.ones((4, 5, 6), "u1"), None, "fills"),
        ],
    )
    def test_unusable(self, scan, image, data, affine, fact):
        path = scan(data, affine)
        with pytest.raises(BadData, match=fact) as caught:
            load_mask(path, image)
        assert str(path) in str(caught.value)

    def test_missing(self, image, tmp_path):
        with pytest.raises(BadData, match=r"gone\.nii"):
            load_mask(tmp_path / "gone.nii", image)


class TestSupport:
    @pytest.mark.parametrize("background", [0.0, -1000.0, 5.0])
    def test_constant_background(self, background):
        head = np.zeros((9, 8, 7), bool)
        head[2:6, 3:5, 1:5] = True
        data = np.where(head, ramp(9, 8, 7) + 10, background).astype("f4")
        np.testing.assert_array_equal(support(data), head)

    def test_noise_all_over(self):
        noise = np.random.default_rng(0).random((9, 8, 7)).astype("f4")
        assert support(noise).all()

    def test_some_corners_cut_by_the_head(self):
        data = np.zeros((9, 8, 7), np.float32)
        data[1:, 1:, 3:] = 1 + ramp(8, 7, 4)
        np.testing.assert_array_equal(support(data), data > 0)

    @pytest.mark.parametrize("shape", [(1, 5, 5), (5, 5, 1), (2, 2, 2), (1, 1, 1)])
    def test_thin(self, shape):
        assert support(np.zeros(shape, "f4")).shape == shape


class TestClean:
    def test_largest_component_without_holes(self):
        body = np.zeros((14, 14, 14), bool)
        body[2:9, 2:9, 2:9] = True
        dirty = body.copy()
        dirty[4:6, 4:6, 4:6] = False
        dirty[11:13, 11:13, 11:13] = True
        np.testing.assert_array_equal(clean(dirty), body)

    def test_empty(self):
        assert not clean(np.zeros((4, 4, 4), bool)).any()

    @PROPERTY
    @given(seed=st.integers(0, 999), share=st.floats(0, 1))
    def test_one_component_and_again_the_same(self, seed, share):
        mask = np.random.default_rng(seed).random((6, 6, 6)) < share
        once = clean(mask)
        assert ndimage.label(once)[1] == int(mask.any())
        np.testing.assert_array_equal(clean(once), once)
        assert np.array_equal(ndimage.binary_fill_holes(once), once)
