"""What an image file says, read and written; grids whose axes lie otherwise."""

from __future__ import annotations

import gzip
import io
import itertools
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import HEADS, ORIENTATIONS, affine_of, axes, ramp, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from singlestrip_bids.errors import BadData
from singlestrip_bids.image.nifti import (
    SAME_ORDER,
    Image,
    brain_image,
    extract,
    from_memory,
    load,
    load_mask,
    mask_image,
    probability_image,
    reordering,
    save,
    to_canonical,
)

SIZES = (4, 5, 6)


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

    @pytest.mark.parametrize(
        ("data", "fact"),
        [
            (ramp(4, 5, 6, 2, 3), "5 dimensions"),
            (ramp(4, 5), "2 dimensions"),
            (ramp(4, 5, 6).astype(np.complex64), "complex"),
            (np.zeros((4, 5, 6), [(c, "u1") for c in "RGB"]), "RGB"),
            (np.zeros((4, 5, 6), "f4"), "every voxel is 0"),
            (np.full((4, 5, 6), 3, "u1"), "every voxel is 3"),
            ((ramp(4, 5, 6) > 9).astype("u1"), "a mask, it seems"),
            (np.full((4, 5, 6), np.nan, "f4"), "no voxel is finite"),
            (np.zeros((4, 5, 6, 3), "f4"), "every voxel is 0"),
            (np.full((4, 5, 6, 3), np.nan, "f4"), "finite|every voxel"),
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

    @pytest.mark.parametrize("content", [b"", b"anything " * 100])
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
        link.symlink_to("../gone.nii.gz")
        with pytest.raises(BadData, match=r"not there, \.\./gone\.nii\.gz; restore") as caught:
            load(link)
        assert str(link) in str(caught.value)
        assert "datalad" not in str(caught.value)

    def test_annexed_file_without_content(self, tmp_path):
        link, pointer = tmp_path / "x.nii.gz", tmp_path / "y.nii.gz"
        key = "MD5E-s4068--96d67fbd0fb1f9d8f2b4a9c1ea5c4a52.nii.gz"
        link.symlink_to(f".git/annex/objects/9X/Zw/{key}/{key}")
        pointer.write_text(f"/annex/objects/{key}\n")  # git-annex calls it unlocked
        for path in (link, pointer):
            with pytest.raises(BadData, match="git-annex") as caught:
                load(path)
            assert f"datalad get {path}" in str(caught.value)

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


class TestFromMemory:
    @pytest.mark.parametrize(
        "data", [ramp(4, 5, 6), ramp(4, 5, 6).astype(np.int16), ramp(4, 5, 6, 3)]
    )
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_as_from_its_file(self, tmp_path, data, kind):
        nifti = kind(data, affine_of(turned("PIR"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)))
        nib.save(nifti, tmp_path / "x.nii.gz")
        ours, stored = from_memory(nifti), load(tmp_path / "x.nii.gz")
        assert ours.data.dtype == stored.data.dtype
        np.testing.assert_array_equal(ours.data, stored.data)
        assert ours.affine.tobytes() == stored.affine.tobytes()
        assert (ours.volumes, ours.averaged) == (stored.volumes, stored.averaged)
        assert type(ours.nifti) is kind

    def test_of_scaled_integers(self, tmp_path):
        nifti = nib.Nifti1Image(ramp(4, 5, 6), np.eye(4))
        nifti.set_data_dtype(np.uint8)
        nib.save(nifti, tmp_path / "x.nii")
        np.testing.assert_array_equal(from_memory(nifti).data, load(tmp_path / "x.nii").data)

    def test_of_an_image_that_was_read(self, scan):
        path = scan(ramp(4, 5, 6))
        np.testing.assert_array_equal(from_memory(nib.load(path)).data, load(path).data)

    def test_what_is_done_to_it_later_changes_nothing(self):
        data = ramp(4, 5, 6)
        nifti = nib.Nifti1Image(data, np.eye(4))
        image = from_memory(nifti)
        data[:] = 0
        nifti.header["dim_info"] = 57
        np.testing.assert_array_equal(image.data, ramp(4, 5, 6))
        assert image.nifti.header["dim_info"] == 0

    @pytest.mark.parametrize("other", [nib.MGHImage(ramp(4, 5, 6), np.eye(4)), ramp(4, 5, 6)])
    def test_another_image_is_refused(self, other):
        with pytest.raises(BadData, match=f"{type(other).__name__} is not a NIfTI image"):
            from_memory(other)

    def test_what_is_no_scan_is_refused(self):
        with pytest.raises(BadData, match="image in memory: every voxel is 0"):
            from_memory(nib.Nifti1Image(np.zeros((4, 5, 6), "f4"), np.eye(4)))


class TestTwoForms:
    @staticmethod
    def written(tmp_path: Path, shift: float, codes: tuple[int, int]) -> Path:
        affine = affine_of(axes("LPS"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
        nifti = nib.Nifti1Image(ramp(4, 5, 6), affine)
        nifti.set_sform(affine, codes[0])
        affine[0, 3] += shift
        nifti.set_qform(affine, codes[1])
        nib.save(nifti, tmp_path / "x.nii.gz")
        return tmp_path / "x.nii.gz"

    @pytest.mark.parametrize("codes", [(1, 1), (4, 1), (2, 3)])
    def test_apart_the_sform_counts_and_it_is_said(self, tmp_path, caplog, codes):
        image = load(self.written(tmp_path, 7.0, codes))
        assert image.affine[0, 3] == 4
        assert "x.nii.gz: its sform and qform are up to 7 mm apart" in caplog.text

    @pytest.mark.parametrize(("shift", "codes"), [(0.4, (1, 1)), (7.0, (0, 1)), (7.0, (1, 0))])
    def test_else_nothing_is_said(self, tmp_path, caplog, shift, codes):
        load(self.written(tmp_path, shift, codes))
        assert not caplog.text

    def test_without_codes_left_and_right_are_unknown(self, tmp_path, caplog):
        image = load(self.written(tmp_path, 7.0, (0, 0)))
        assert not image.is_placed
        assert "x.nii.gz: its qform_code and sform_code are 0: left and right" in caplog.text

    def test_a_qform_that_means_nothing(self, tmp_path):
        path = self.written(tmp_path, 0, (1, 1))
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[256:268] = np.array([3, 3, 3], "<f4").tobytes()  # no unit quaternion
        path.write_bytes(gzip.compress(bytes(raw)))
        assert load(path).affine[0, 3] == 4


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

    @pytest.mark.parametrize("codes", ["LAS", "PIR", "ASL", "IRP", "RAS"])
    @pytest.mark.parametrize("own", ["RAS", "LPI", "SAR"])
    def test_axes_in_another_order(self, scan, caplog, own, codes):
        affine = affine_of(turned(own), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
        image = load(scan(ramp(4, 5, 6), affine, "scan.nii.gz"))
        expected = np.random.default_rng(0).random((4, 5, 6)) > 0.5
        stored = nib.Nifti1Image(expected.astype(np.uint8), affine)
        ornts = [nib.orientations.axcodes2ornt(c) for c in (own, codes)]
        moved = stored.as_reoriented(nib.orientations.ornt_transform(*ornts))
        with caplog.at_level(logging.INFO):
            mask = load_mask(scan(np.asarray(moved.dataobj), moved.affine), image)
        np.testing.assert_array_equal(mask, expected)
        assert ("its axes are reordered" in caplog.text) == (own != codes)

    def test_trailing_singleton(self, scan, image):
        data = np.zeros((4, 5, 6, 1), np.uint8)
        data[1, 1, 1] = 1
        assert load_mask(scan(data), image).sum() == 1

    @pytest.mark.parametrize(
        ("data", "affine", "fact"),
        [
            (np.ones((4, 5, 7), "u1"), None, "another grid"),
            (np.eye(4, 5)[..., None].repeat(6, 2), np.diag([2.0, 2.0, 3.5, 1.0]), "another grid"),
            (np.ones((4, 5, 6), "u1"), np.diag([2.0, -2.0, 3.0, 1.0]), "another grid"),
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


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_promises_too_much(tmp_path, ending):
    """It is refused before room is made for voxels that are not there."""
    path = tmp_path / f"x{ending}"
    nifti = nib.Nifti1Image(ramp(4, 5, 6), np.diag([0.05, 0.05, 0.05, 1]))
    data = bytearray(nifti.to_bytes())
    data[42:48] = np.array([32767] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data)) if ending == ".nii.gz" else bytes(data))
    with pytest.raises(BadData, match=f"832 bytes instead of {32767**3 * 4 + 352}"):
        load(path)


def test_an_infinite_offset_is_a_damaged_header(tmp_path):
    path = tmp_path / "sub-01_T1w.nii"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(np.inf).tobytes()
    path.write_bytes(content)
    with pytest.raises(BadData, match="restore the file"):
        load(path)


def grid(codes: str, degrees: tuple[float, ...] = (9, -12, 20)) -> nib.Nifti1Image:
    affine = affine_of(turned(codes, degrees), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    return nib.Nifti1Image(np.zeros(SIZES, np.uint8), affine)


class TestReordering:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        own=st.sampled_from(ORIENTATIONS),
        other=st.sampled_from(ORIENTATIONS),
        angles=st.tuples(*[st.floats(-40, 40)] * 3),
    )
    def test_from_every_orientation_to_every_other(self, own, other, angles):
        image = grid(own, angles)
        ornts = [nib.orientations.axcodes2ornt(codes) for codes in (own, other)]
        order = nib.orientations.ornt_transform(*ornts)
        moved = image.as_reoriented(order)
        found = reordering((moved.shape, moved.affine), (SIZES, image.affine))
        again = moved.as_reoriented(found)
        assert again.shape == SIZES
        np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)

    def test_half_way_between_two_orders_the_same_grid_is_the_same(self):
        """Where rounding decides which axis is the closest to R."""
        for angle in (44.9999999, 45, 45.0000001):
            one, other = grid("RAS", (0, 0, 45)).affine, grid("RAS", (0, 0, angle)).affine
            assert np.array_equal(reordering((SIZES, one), (SIZES, other)), SAME_ORDER)

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
    def test_another_grid(self, change):
        affine = grid("LPS").affine
        assert reordering((SIZES, affine), (SIZES, affine)) is not None
        assert reordering((SIZES, change(affine)), (SIZES, affine)) is None
        assert reordering((SIZES, affine), (SIZES, change(affine))) is None

    def test_another_shape(self):
        affine = grid("LPS").affine
        assert reordering(((4, 5, 7), affine), (SIZES, affine)) is None
        assert reordering(((6, 5, 4), affine), (SIZES, affine)) is None
        assert reordering(((4, -5, 6), affine), (SIZES, affine)) is None


class TestToCanonical:
    @pytest.mark.parametrize("codes", ORIENTATIONS)
    def test_no_voxel_moves_in_the_world(self, codes):
        affine = affine_of(turned(codes, (12, -7, 20)), (1, 2, 3), (9, -8, 7))
        image = from_memory(nib.Nifti1Image(ramp(5, 6, 7), affine))
        mask = np.random.default_rng(0).random(image.data.shape) > 0.5
        placed = to_canonical(mask, image)
        assert nib.aff2axcodes(placed.affine) == ("R", "A", "S")
        there = apply_affine(image.affine, np.argwhere(mask))
        index = apply_affine(np.linalg.inv(placed.affine), there)
        assert np.allclose(index, index.round(), atol=1e-6)
        found = np.asarray(placed.dataobj)
        assert found[tuple(index.round().astype(int).T)].all()
        assert found.sum() == mask.sum()

    def test_of_a_series_one_volume(self):
        nifti = nib.Nifti1Image(ramp(4, 5, 6, 3), np.diag([-1.0, 1, 1, 1]))
        image = Image(Path("bold.nii.gz"), ramp(4, 5, 6), nifti, 3)
        assert to_canonical(np.ones((4, 5, 6), bool), image).shape == (4, 5, 6)


@pytest.mark.parametrize(("slope", "dtype"), [(1.0, np.int16), (0.5, np.float32)])
def test_extract_keeps_the_series_within_the_mask(tmp_path, slope, dtype):
    nifti = nib.Nifti1Image(ramp(3, 4, 5, 2).astype(np.int16), np.eye(4))
    nifti.header.set_slope_inter(slope, 0 if slope == 1 else 10)
    nib.save(nifti, tmp_path / "scan.nii")
    image = load(tmp_path / "scan.nii")
    mask = image.data > np.median(image.data)
    data = extract(image, mask)
    assert (data.shape, data.dtype) == ((3, 4, 5, 2), dtype)
    assert np.array_equal(data[mask], np.asarray(image.nifti.dataobj)[mask])
    assert not data[~mask].any()


def tilted(tilt: float) -> np.ndarray:
    affine = np.eye(4)
    turn = nib.eulerangles.euler2mat(tilt, 0.3 - tilt, 0.2)
    affine[:3, :3] = turn @ np.diag([-0.9, 1.1, 3.3])
    affine[:3, 3] = (12.345, -67.891, 3.21)
    return affine


def scan_with(path: Path, sform: int, qform: int, **options) -> nib.Nifti1Image:
    """Save and load a scan whose two affines differ."""
    shape, kind = options.get("shape", SIZES), options.get("kind", nib.Nifti1Image)
    image = kind(np.zeros(shape, np.int16), None, options.get("header"))
    image.header.set_sform(tilted(0.1), sform)
    image.header.set_qform(tilted(0.7), qform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    image.header["dim_info"] = 57
    nib.save(image, path)
    return nib.load(path)


class TestWriting:
    @pytest.mark.parametrize(
        ("sform", "qform"), [(0, 1), (1, 0), (1, 1), (4, 2), (2, 1), (0, 0), (0, 2)]
    )
    def test_geometry_is_kept_bit_by_bit(self, tmp_path, sform, qform):
        scan = scan_with(tmp_path / "scan.nii.gz", sform, qform)
        save(tmp_path / "mask.nii.gz", mask_image(np.ones(SIZES, bool), scan))
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert mask.affine.tobytes() == scan.affine.tobytes()
        assert mask.get_sform().tobytes() == scan.get_sform().tobytes()
        assert mask.get_qform().tobytes() == scan.get_qform().tobytes()
        for name in ("sform_code", "qform_code", "xyzt_units", "dim_info"):
            assert mask.header[name] == scan.header[name]
        assert mask.header["pixdim"][:4].tobytes() == scan.header["pixdim"][:4].tobytes()

    @pytest.mark.parametrize("codes", ["".join(c) for c in itertools.product("LR", "AP", "IS")])
    def test_every_flip_and_permutation(self, tmp_path, codes):
        for order in itertools.permutations(codes):
            transform = nib.orientations.axcodes2ornt(order)
            affine = nib.orientations.inv_ornt_aff(transform, SIZES)
            scan = nib.Nifti1Image(np.zeros(SIZES, np.uint8), affine)
            save(tmp_path / "mask.nii.gz", mask_image(np.ones(SIZES, bool), scan))
            assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").affine, scan.affine)

    def test_values_and_header(self, tmp_path):
        scan = scan_with(tmp_path / "scan.nii.gz", 1, 1)
        voxels = np.random.default_rng(0).random(SIZES) > 0.5
        for stored_as in (voxels, voxels.astype(np.uint8), np.asfortranarray(voxels)):
            save(tmp_path / "mask.nii.gz", mask_image(stored_as, scan))
            mask = nib.load(tmp_path / "mask.nii.gz")
            assert mask.get_data_dtype() == np.uint8
            assert np.array_equal(np.asarray(mask.dataobj), voxels)
        raw = nib.Nifti1Header(mask.header.binaryblock, check=True)
        assert raw["dim"].tolist() == [3, *SIZES, 1, 1, 1, 1]
        assert (raw["cal_min"], raw["cal_max"]) == (0, 1)
        with mask.file_map["image"].get_prepare_fileobj() as stream:
            stored = nib.Nifti1Header.from_fileobj(stream, check=False)
        assert (stored["scl_slope"], stored["scl_inter"], stored["vox_offset"]) == (1, 0, 352)

    def test_4d_reference(self, tmp_path):
        scan = scan_with(tmp_path / "scan.nii.gz", 1, 2, shape=(*SIZES, 3))
        save(tmp_path / "mask.nii.gz", mask_image(np.ones(SIZES, bool), scan))
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert mask.shape == SIZES
        assert mask.affine.tobytes() == scan.affine.tobytes()
        assert mask.header["pixdim"][4] != 2.5

    def test_big_endian_and_nifti2(self, tmp_path):
        big = nib.Nifti1Header(endianness=">")
        for options in ({"header": big}, {"kind": nib.Nifti2Image}):
            scan = scan_with(tmp_path / "scan.nii.gz", 0, 1, **options)
            save(tmp_path / "mask.nii.gz", mask_image(np.ones(SIZES, bool), scan))
            mask = nib.load(tmp_path / "mask.nii.gz")
            assert type(mask) is type(scan)
            assert np.array_equal(mask.affine, scan.affine)
            assert mask.header["qform_code"] == 1

    def test_same_bytes(self, tmp_path):
        scan = scan_with(tmp_path / "scan.nii.gz", 1, 1)
        save(tmp_path / "one.nii.gz", mask_image(np.ones(SIZES, bool), scan))
        save(tmp_path / "two.nii.gz", mask_image(np.ones(SIZES, bool), scan))
        one = (tmp_path / "one.nii.gz").read_bytes()
        assert one == (tmp_path / "two.nii.gz").read_bytes()
        assert one[3:8] == bytes(5)  # no flags (so no file name), no time

    def test_probability_keeps_its_side_of_one_half(self, tmp_path):
        scan = scan_with(tmp_path / "scan.nii.gz", 0, 1, shape=(*SIZES, 2))
        exact = np.linspace(0, 1, np.prod(SIZES), dtype=np.float32).reshape(SIZES)
        exact.flat[:3] = (0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1)
        save(tmp_path / "p.nii.gz", probability_image(exact, scan))
        written = nib.load(tmp_path / "p.nii.gz")
        assert (written.shape, written.get_data_dtype()) == (SIZES, np.uint8)
        assert np.abs(written.get_fdata() - exact).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(written.get_fdata() > 0.5, exact > 0.5)
        assert written.affine.tobytes() == scan.affine.tobytes()

    def test_brain_has_the_scans_header_without_its_extensions(self, tmp_path):
        scan = scan_with(tmp_path / "scan.nii.gz", 1, 2, shape=(*SIZES, 3))
        scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a name"))
        save(tmp_path / "brain.nii.gz", brain_image(np.asarray(scan.dataobj), scan))
        brain = nib.load(tmp_path / "brain.nii.gz")
        assert brain.shape == scan.shape
        assert not brain.header.extensions
        assert scan.header.extensions
        assert brain.header["pixdim"].tobytes() == scan.header["pixdim"].tobytes()
        assert brain.affine.tobytes() == scan.affine.tobytes()

    def test_wrong_shape(self, tmp_path):
        scan = scan_with(tmp_path / "scan.nii.gz", 1, 1)
        with pytest.raises(ValueError, match="not on the grid"):
            save(tmp_path / "mask.nii.gz", mask_image(np.ones((5, 4, 6), bool), scan))

    @pytest.mark.skipif(not HEADS.is_dir(), reason="the real heads are not here")
    def test_real_heads(self, tmp_path):
        for path in sorted(HEADS.glob("sub-*/**/*.nii.gz")):
            scan = nib.load(path)
            save(tmp_path / "mask.nii.gz", mask_image(np.zeros(scan.shape[:3], bool), scan))
            mask = nib.load(tmp_path / "mask.nii.gz")
            assert mask.affine.tobytes() == scan.affine.tobytes(), path
            for name in ("sform_code", "qform_code", "xyzt_units"):
                assert mask.header[name] == scan.header[name], path


def with_fields(image: nib.Nifti1Image, **fields: object) -> bytes:
    """An image as a file has it, some fields of its header replaced, whatever they say."""
    content = image.to_bytes()
    header = type(image.header).from_fileobj(io.BytesIO(content), check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[header["sizeof_hdr"].item() :]


class TestWhatOthersRead:
    """Files that other programs read: read too, with a warning, or refused with the cause."""

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "sub-01_T1w.nii.gz"

    @pytest.fixture
    def image(self):
        data = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
        return nib.Nifti1Image(data, affine_of(turned("LAS", (5, 0, 0)), (1, 2, 3), (4, 5, 6)))

    @pytest.mark.parametrize(("unit", "factor"), [("micron", 1000.0), ("meter", 0.001)])
    def test_units_of_length(self, path, image, unit, factor):
        other = nib.Nifti1Image(
            image.get_fdata(dtype=np.float32), np.diag([*[factor] * 3, 1]) @ image.affine
        )
        other.header.set_xyzt_units(unit)
        nib.save(other, path)
        read = load(path)
        assert read.affine == pytest.approx(image.affine, rel=1e-5, abs=1e-5)
        assert mask_image(read.data > 0.5, read.nifti).header.get_xyzt_units()[0] == unit

    @pytest.mark.parametrize("factor", [0.001, 1000.0])
    def test_absurd_sizes_are_named(self, path, image, factor):
        nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([factor] * 3 + [1.0])), path)
        with pytest.raises(BadData, match=rf"voxels of \[{factor}.*mm and a field of view"):
            load(path)

    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_a_rotation_off_by_rounding(self, path, kind, caplog, image):
        turn = np.diag([-1.0, 1.0, -1.0, 1.0])
        other = kind(image.get_fdata(dtype=np.float32), turn)
        other.set_sform(None, 0)
        other.set_qform(turn, 1)
        path.write_bytes(gzip.compress(with_fields(other, quatern_c=1.0000002)))
        with caplog.at_level(logging.WARNING, "singlestrip_bids"):
            read = load(path)
        assert read.affine == pytest.approx(turn, abs=1e-5)
        assert np.array_equal(read.data, image.get_fdata(dtype=np.float32))

    def test_an_sform_of_zeros_beside_a_good_qform(self, path, image, caplog):
        image.set_qform(image.affine, 1)
        content = with_fields(image, sform_code=1, srow_x=0, srow_y=0, srow_z=0)
        path.write_bytes(gzip.compress(content))
        with caplog.at_level(logging.WARNING, "singlestrip_bids"):
            read = load(path)
        assert "its sform has no volume" in caplog.text
        assert read.affine == pytest.approx(image.get_qform(), abs=1e-5)
        made = mask_image(read.data > 0.5, read.nifti)
        assert made.affine == pytest.approx(image.get_qform(), abs=1e-5)

    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_not_compressed_in_spite_of_its_name(self, path, image, kind, caplog):
        path.write_bytes(kind(image.get_fdata(dtype=np.float32), image.affine).to_bytes())
        with caplog.at_level(logging.WARNING, "singlestrip_bids"):
            read = load(path)
        assert "not compressed" in caplog.text
        assert np.array_equal(read.data, image.get_fdata(dtype=np.float32))

    @pytest.mark.parametrize("more", [b"x", b"trailing " * 10_000])
    def test_bytes_after_the_end(self, path, image, more, caplog):
        nib.save(image, path)
        path.write_bytes(path.read_bytes() + more)
        with caplog.at_level(logging.WARNING, "singlestrip_bids"):
            read = load(path)
        assert "bytes after its end" in caplog.text
        assert np.array_equal(read.data, image.get_fdata(dtype=np.float32))

    def test_zeros_after_the_end_and_two_members_are_nothing_to_tell(self, path, image, caplog):
        content = image.to_bytes()
        parts = gzip.compress(content[:500]) + gzip.compress(content[500:]) + bytes(30)
        path.write_bytes(parts)
        with caplog.at_level(logging.WARNING, "singlestrip_bids"):
            assert np.array_equal(load(path).data, image.get_fdata(dtype=np.float32))
        assert not caplog.text

    @pytest.mark.parametrize(
        ("content", "cause"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
            (b"/annex/objects/MD5E-s1--a.nii.gz\n", "datalad get"),
            (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        ],
    )
    def test_what_lies_there_instead(self, path, content, cause):
        path.write_bytes(content)
        with pytest.raises(BadData, match=cause) as caught:
            load(path)
        assert str(path) in str(caught.value)
