"""Structures as numbers and shares: to the model's grid and back."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest

from singlestrip_bids.errors import BadData
from singlestrip_bids.image import nifti
from singlestrip_bids.image.grid import Grid, HalvedGrid, halved, restore_most
from singlestrip_bids.image.structures import (
    Structure,
    coarsened_numbers,
    colour_of,
    conform_numbers,
    doubled,
    fill_gaps,
    indexed,
    most,
    numbered,
    overlaps,
)

TABLE = (Structure(4, "left", "#ff0000"), Structure(900, "right", "#00ff00"))
RNG = np.random.default_rng(0)


def image(shape=(20, 24, 18), affine=None) -> nifti.Image:
    data = RNG.random(shape).astype(np.float32)
    return nifti.from_memory(nib.Nifti1Image(data, np.eye(4) if affine is None else affine))


def halves(shape=(20, 24, 18)) -> np.ndarray:
    """Two boxes side by side, 1 and 2."""
    numbers = np.zeros(shape, np.uint8)
    numbers[4:10, 6:18, 4:14], numbers[10:16, 6:18, 4:14] = 1, 2
    return numbers


def test_numbers_stand_for_indices():
    indices = np.array([[[0, 4, 900], [7, 4, 0]]])
    numbers = numbered(indices, TABLE)
    assert numbers.tolist() == [[[0, 1, 2], [0, 1, 0]]] and numbers.dtype == np.uint8
    assert indexed(numbers, TABLE).tolist() == [[[0, 4, 900], [0, 4, 0]]]


def test_colours_are_of_the_form_and_differ():
    colours = [colour_of(index) for index in range(1, 60)]
    assert len(set(colours)) == 59
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_there_and_back(axes):
    affine = np.diag([*axes, 1.0])
    scan, numbers = image(affine=affine), halves()
    for grid, place in ((Grid(1.0, 24, 4), np.eye(4)), (HalvedGrid(Grid(2.0, 16, 4)), None)):
        found = conform_numbers(numbers, affine, grid)
        placed = grid.place(scan.data.shape, nifti.to_ras(scan.data, affine)[1])[1]
        shares = np.stack([(found == n) * np.uint8(255) for n in (1, 2)])
        np.testing.assert_array_equal(restore_most(shares, placed, scan), numbers)
        assert place is None or set(np.unique(found)) == {0, 1, 2}


def test_a_voxel_is_of_what_has_most_of_it():
    shares = np.zeros((2, 2, 2, 2), np.uint8)
    shares[0, 0], shares[1, 1] = 200, 10
    shares[0, 1, 0, 0] = 9
    shares[:, 0, 1, 1] = 0
    mask = np.ones((2, 2, 2), bool)
    mask[1, 1, 1] = False
    numbers = most(shares, mask)
    assert numbers[0, 0, 0] == 1 and numbers[1, 0, 0] == 2
    assert numbers[1, 1, 1] == 0  # outside the mask
    assert numbers[0, 1, 1] == 0  # there is nothing of any
    np.testing.assert_array_equal(most(shares, np.ones((1, 1, 1), bool))[0, 0, 0], 1)


def test_coarser_and_finer():
    numbers = halves()
    fine = doubled(numbers)
    np.testing.assert_array_equal(coarsened_numbers(fine, numbers.shape), numbers)
    np.testing.assert_array_equal(coarsened_numbers(numbers, numbers.shape), numbers)
    np.testing.assert_allclose(halved(np.eye(4))[:3, :3], np.eye(3) / 2)


def test_gaps_go_to_the_nearest_structure():
    numbers, mask = halves(), halves() > 0
    holed = numbers.copy()
    holed[5:8, 8:10, 6:8] = 0
    numbers[0, 0, 0] = 1  # outside the mask
    holed[0, 0, 0] = 1
    np.testing.assert_array_equal(fill_gaps(holed, mask), halves())
    assert not fill_gaps(np.zeros_like(numbers), mask).any()


def test_overlaps_by_structure():
    one, other = halves(), halves()
    one[one == 2] = 0
    found = overlaps(one, other, 3)
    assert found[0] == 1 and found[1] == 0 and np.isnan(found[2])


class TestLoadDseg:
    def write(self, path, data, dtype=np.float32):
        nib.save(nib.Nifti1Image(data.astype(dtype), np.eye(4)), path)
        return path

    def test_indices_as_they_are(self, tmp_path):
        data = indexed(halves(), TABLE)
        path = self.write(tmp_path / "a_dseg.nii.gz", data, np.int16)
        np.testing.assert_array_equal(nifti.load_dseg(path, image()), data)
        made = nifti.dseg_image(data, image().nifti)
        assert made.get_data_dtype() == np.int16

    @pytest.mark.parametrize(
        ("value", "message"),
        [(0.5, "holds 0.5; a segmentation has whole numbers"), (-3, "holds -3"),
         (np.nan, "holds nan"), (1e12, "holds 1e[+]12")],
    )  # fmt: skip
    def test_anything_else_is_named(self, tmp_path, value, message):
        data = halves().astype(np.float64)
        data[5, 7, 5] = value
        path = self.write(tmp_path / "a_dseg.nii.gz", data, np.float64)
        with pytest.raises(BadData, match=message):
            nifti.load_dseg(path, image())

    def test_empty_or_full(self, tmp_path):
        for data, message in ((halves() * 0, "empty"), (halves() * 0 + 2, "fills the volume")):
            path = self.write(tmp_path / "a_dseg.nii.gz", data)
            with pytest.raises(BadData, match=message):
                nifti.load_dseg(path, image())

    def test_another_grid(self, tmp_path):
        path = self.write(tmp_path / "a_dseg.nii.gz", halves((20, 24, 19)))
        with pytest.raises(BadData, match="another grid"):
            nifti.load_dseg(path, image())
