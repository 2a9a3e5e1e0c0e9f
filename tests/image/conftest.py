"""Images of the tests of images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def scan(tmp_path):
    """Write an array as an image and return its path."""

    def write(data: np.ndarray, affine: np.ndarray | None = None, name: str = "x.nii.gz") -> Path:
        affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
        nib.save(nib.Nifti1Image(data, affine), tmp_path / name)
        return tmp_path / name

    return write
