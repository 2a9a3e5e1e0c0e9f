"""Reading images and masks: :mod:`singlestrip_bids.volume` at its outer edge."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import affine_of, axes, ramp
from scipy.spatial.transform import Rotation

from singlestrip_bids.errors import BadData
from singlestrip_bids.volume import load, load_mask


@pytest.fixture
def scan(tmp_path):
    """Write an array as an image and return its path."""

    def write(data: np.ndarray, affine: np.ndarray | None = None, name: str = "x.nii.gz") -> Path:
        affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
        nib.save(nib.Nifti1Image(data, affine), tmp_path / name)
        return tmp_path / name

    return write


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
            ((ramp(4, 5, 6) > 9).astype("u1"), "a mask, it seems"),
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


class TestDiffusion:
    """Of a diffusion series, the volumes without weighting."""

    @pytest.fixture
    def dwi(self, scan):
        rng = np.random.default_rng(0)
        return scan(rng.random((4, 5, 6, 4)).astype("f4"), name="sub-01_dwi.nii.gz")

    @pytest.mark.parametrize(
        ("table", "chosen"),
        [
            ("0 1000 5 2000\n", [0, 2]),
            ("1000\n0\n1000\n1000", [1]),
            ("\ufeff50 51 51.5 1e3", [0]),
            ("1000 2000 1000 2000", [0, 1, 2, 3]),
        ],
    )
    def test_mean_of_low_b_values(self, dwi, table, chosen):
        dwi.with_name("sub-01_dwi.bval").write_text(table)
        image = load(dwi)
        data = nib.load(dwi).get_fdata()
        np.testing.assert_allclose(image.data, data[..., chosen].mean(-1), rtol=1e-5)
        assert (image.volumes, image.averaged) == (4, len(chosen))

    @pytest.mark.parametrize(
        ("tables", "chosen"),
        [
            ({"dwi.bval": "0 9 900 900"}, [0, 1]),
            ({"dwi.bval": "0 9 900 900", "sub-01/sub-01_dwi.bval": "900 0 900 900"}, [1]),
            (
                {
                    "sub-01/dwi/sub-01_dwi.bval": "900 0 900 900",
                    "sub-01/dwi/sub-01_dir-AP_dwi.bval": "900 900 0 0",
                },
                [2, 3],
            ),
            ({"sub-01/dwi/sub-01_run-1_dwi.bval": "0 9 900 900"}, [0, 1, 2, 3]),
            ({"sub-01/dwi/sub-01_sbref.bval": "0 9 900 900"}, [0, 1, 2, 3]),
            ({"../dwi.bval": "0 9 900 900"}, [0, 1, 2, 3]),
        ],
        ids=["dataset", "nearest", "closest", "other run", "other suffix", "above the dataset"],
    )
    def test_tables_are_inherited(self, tmp_path, caplog, tables, chosen):
        data = np.random.default_rng(0).random((4, 5, 6, 4)).astype("f4")
        path = tmp_path / "study/sub-01/dwi/sub-01_dir-AP_part-mag_dwi.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        for name, values in tables.items():
            (tmp_path / "study" / name).write_text(values)
        np.testing.assert_allclose(load(path).data, data[..., chosen].mean(-1), rtol=1e-5)
        assert (f"{path}: no .bval holds for it" in caplog.text) == (len(chosen) == 4)

    @pytest.mark.parametrize("table", ["0 1000", "0 0 0 nan", "0 0 0 x", "", "\x00"])
    def test_a_table_that_does_not_fit(self, dwi, table):
        path = dwi.with_name("sub-01_dwi.bval")
        path.write_text(table)
        with pytest.raises(BadData, match="b-values") as caught:
            load(dwi)
        assert str(path) in str(caught.value)


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

    @pytest.mark.parametrize(
        ("shift", "codes"), [(0.4, (1, 1)), (7.0, (0, 1)), (7.0, (1, 0)), (7.0, (0, 0))]
    )
    def test_else_nothing_is_said(self, tmp_path, caplog, shift, codes):
        load(self.written(tmp_path, shift, codes))
        assert not caplog.text

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
        turn = Rotation.from_euler("xyz", (9, -12, 20), degrees=True).as_matrix()
        affine = affine_of(turn @ axes(own), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
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
    nifti = nib.Nifti1Image(ramp(4, 5, 6), np.eye(4))
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
