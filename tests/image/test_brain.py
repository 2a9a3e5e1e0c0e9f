"""What a model finds in an image, on the grid of that image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import affine_of, ramp, turned

from singlestrip_bids.errors import CannotCreate, Usage
from singlestrip_bids.image.brain import Brain
from singlestrip_bids.image.grid import Grid, conform
from singlestrip_bids.image.masks import dice
from singlestrip_bids.image.nifti import from_memory

SHAPE = (20, 24, 16)


@pytest.fixture
def brain() -> Brain:
    """A ball, found on a coarser grid."""
    affine = affine_of(turned("PIR"), (1.0, 1.0, 1.5), (4.0, 5.0, 6.0))
    place = (np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2).T
    ball = np.linalg.norm(place * np.array([1, 1, 1.5])[:, None, None, None], axis=0) < 8
    image = from_memory(nib.Nifti1Image(ramp(*SHAPE), affine))
    conformed = conform(ball.astype(np.float32), affine, Grid(2.0, 16, 4))
    rebuilt = replace(conformed, data=(conformed.data > 0.5).astype(np.float32))
    return Brain(image, ball, conformed, rebuilt, 0.9, (0.8, 0.95), {"QualityScore": 0.97})


def test_images_lie_on_the_grid_of_the_scan(brain):
    assert brain.mask.get_data_dtype() == brain.probability.get_data_dtype() == np.uint8
    for image in (brain.mask, brain.probability):
        assert image.shape == SHAPE
        assert image.affine.tobytes() == brain.image.affine.tobytes()
    assert np.array_equal(np.asarray(brain.mask.dataobj) > 0, brain.voxels)
    values = brain.probability.get_fdata()
    assert values.min() == 0
    assert values.max() == pytest.approx(1)


def test_a_saved_probability_keeps_its_values(brain, tmp_path):
    nib.save(brain.probability, tmp_path / "p.nii.gz")
    stored, values = nib.load(tmp_path / "p.nii.gz"), brain.probability.get_fdata()
    np.testing.assert_allclose(stored.get_fdata(), values, atol=1e-6)
    assert stored.affine.tobytes() == brain.image.affine.tobytes()


def test_the_probability_is_that_of_the_mask(brain):
    values = brain.probability.get_fdata()
    assert dice(values > 0.5, brain.voxels) > 0.9


def test_the_reconstruction_comes_back(brain):
    again = brain.reconstruction()
    assert again.dtype == bool
    assert dice(again, brain.voxels) > 0.9


def test_volume(brain):
    assert brain.volume_ml == pytest.approx(4 / 3 * np.pi * 8**3 / 1000, rel=0.03)


def test_saved_is_its_mask(brain, tmp_path):
    brain.save(str(tmp_path / "new" / "mask.nii.gz"))
    stored = nib.load(tmp_path / "new" / "mask.nii.gz")
    assert np.array_equal(np.asarray(stored.dataobj), brain.voxels)
    assert stored.affine.tobytes() == brain.image.affine.tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize("name", ["mask.nii", "mask.gz", "mask.img", "mask", "mask.nii.gz.txt"])
def test_other_names_are_refused(brain, tmp_path, name):
    with pytest.raises(Usage, match=r"written as \.nii\.gz; name the file so"):
        brain.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(brain, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreate):
        brain.save(Path(tmp_path / "file" / "mask.nii.gz"))
