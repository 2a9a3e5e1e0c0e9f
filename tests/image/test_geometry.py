"""From a file to the model's grid and back to a mask in a file, whatever the header says."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import affine_of, axes, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from singlestrip_bids.image.grid import Grid, conform, conform_image, restore
from singlestrip_bids.image.masks import signed_distance
from singlestrip_bids.image.nifti import Image, from_memory, load, mask_image, save

SIZE, MULTIPLE = 16, 4
FORMS = [(0, 0), (0, 1), (1, 0), (1, 1), (4, 2), (2, 3)]  # sform and qform codes
DTYPES = ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"]
KEPT = ("sform_code", "qform_code", "xyzt_units", "quatern_b", "qoffset_x", "srow_x", "srow_z")


@st.composite
def files(draw) -> tuple[nib.Nifti1Image, np.ndarray]:
    """An image that a scanner or a converter may have written; and where its head is."""
    codes = "".join(
        draw(st.permutations(draw(st.sampled_from([*itertools.product("LR", "PA", "SI")]))))
    )
    angles = draw(st.tuples(*[st.floats(-44, 44)] * 3))
    turn = turned(codes, angles)
    shape = draw(st.tuples(*[st.one_of(st.integers(1, 2), st.integers(8, 24))] * 3))
    sizes = draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    unit = draw(st.sampled_from([1.0, 0.05]))
    affine = affine_of(turn, tuple(unit * size for size in sizes), (5.0, -40.0, 12.0))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    data = rng.uniform(20, 200, shape)
    empty = draw(st.integers(0, 3))
    head = np.zeros(shape, bool)
    head[tuple(slice(min(empty, (n - 1) // 2), n - min(empty, (n - 1) // 2)) for n in shape)] = (
        True
    )
    data[~head] = 0
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind == "f":
        data *= draw(st.sampled_from([1.0, 1e-30, 1e30]))
        spoilt = draw(st.sampled_from([0.0, 0.02]))
        data[(rng.random(shape) < spoilt) & ~head] = draw(st.sampled_from([np.nan, np.inf]))
    header = nib.Nifti1Header(endianness=">" if dtype.byteorder == ">" else "<")
    header.set_data_dtype(dtype)
    nifti = nib.Nifti1Image(data.astype(dtype), None, header)
    sform, qform = draw(st.sampled_from(FORMS))
    nifti.header.set_qform(affine, qform)
    skewed = affine.copy()
    skewed[:3, 1] += draw(st.sampled_from([0.0, 0.2])) * affine[:3, 0]
    skewed[:3, 3] += draw(st.sampled_from([0.0, 30.0]))  # the forms disagree
    nifti.header.set_sform(skewed, sform)
    nifti.header.set_xyzt_units("mm")
    if dtype.kind != "f" and draw(st.booleans()):
        nifti.header.set_slope_inter(0.5, -3)
    return nifti, head


@settings(max_examples=60, deadline=None, derandomize=True)
@given(file=files(), voxel_size=st.floats(0.8, 5), zipped=st.booleans())
def test_from_a_file_to_a_mask_in_a_file(file, voxel_size, zipped):
    nifti, head = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan.nii{'.gz' if zipped else ''}"
        nib.save(nifti, path)
        if len(np.unique(nib.load(path).get_fdata()[head])) < 3:
            return  # a head of one or two voxels is a mask, it seems
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = load(path)
        size = voxel_size * float(image.sizes.min() if image.sizes.max() < 1 else 1.0)
        placed = conform_image(image, Grid(size, SIZE, MULTIPLE))
        assert np.isfinite(image.data).all()
        assert np.isfinite(placed.data).all()
        assert placed.data.min() == 0
        # an image of few voxels of the model may come without contrast
        wide = np.array(image.data.shape) > np.maximum(4 * size / image.sizes, 4)
        assert placed.data.max() == 1 or (placed.data.max() == 0 and not wide.any())
        index = apply_affine(np.linalg.inv(placed.affine) @ image.affine, np.argwhere(head))
        assert (np.round(index) >= 0).all(), "the head is cropped"
        assert (np.round(index) < placed.data.shape).all(), "the head is cropped"

        mask = restore(placed.data, placed.affine, image) > 0.5
        save(path.with_name("mask.nii.gz"), mask_image(mask, image.nifti))
        scan, written = nib.load(path), nib.load(path.with_name("mask.nii.gz"))
        assert written.shape == scan.shape
        assert written.affine.tobytes() == scan.affine.tobytes()
        for name in KEPT:
            assert np.array_equal(written.header[name], scan.header[name]), name
        assert np.array_equal(np.asarray(written.dataobj), mask)


@pytest.mark.parametrize(("voxel_size", "highest"), [(0.5, 0), (1.0, 0), (1.5, 1), (3.0, 1)])
def test_an_image_within_one_voxel_of_the_model_has_no_contrast(voxel_size, highest):
    data = np.array([[[20, 70], [100, 190]]], np.float32)
    image = from_memory(nib.Nifti1Image(data, np.diag([voxel_size] * 3 + [1.0])))
    placed = conform_image(image, Grid(2.0, SIZE, MULTIPLE))
    assert placed.inside.any()
    assert (placed.data.min(), placed.data.max()) == (0, highest)


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("thickness", [0.4, 2.0, 9.0])
@pytest.mark.parametrize("codes", ["RAS", "SPL", "AIR"])
def test_labels_on_few_slices_come_back(slices, thickness, codes):
    """Within half a working voxel, in the plane; and on the slices that they were on."""
    affine = affine_of(axes(codes), (1.0, 1.2, thickness), (3.0, 4.0, 5.0))
    place = (np.indices((40, 36)).T - (19.5, 17.5)).T * np.array([1.0, 1.2])[:, None, None]
    mask = np.repeat((np.hypot(*place) < 12)[..., None], slices, axis=2)
    voxel_size = 2.0
    placed = conform(mask, affine, Grid(voxel_size, SIZE, MULTIPLE))
    image = Image(Path("x.nii"), mask.astype("f4"), nib.Nifti1Image(mask.astype("u1"), affine))
    again = restore(placed.data, placed.affine, image) > 0.5
    distance = signed_distance(mask, image.sizes)
    assert np.abs(distance[again != mask]).max(initial=0) <= voxel_size
    assert again.any(axis=(0, 1)).all()


@pytest.mark.parametrize("value", [1e30, 3e38])
def test_huge_values_do_not_hide_the_head(tmp_path, value):
    data = np.zeros((12, 12, 12))
    data[3:9, 3:9, 3:9] = np.linspace(0.5, 1, 6) * value
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "x.nii")
    placed = conform_image(load(tmp_path / "x.nii"), Grid(2.0, 8, 4))
    assert np.isfinite(placed.data).all()
    assert placed.data[3, 3, 3] > 0.5
    assert placed.data[0, 0, 0] == 0
