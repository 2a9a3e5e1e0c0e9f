"""What a model finds in an image: the mask, the probability, and how good the mask may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import Usage
from .grid import Conformed, restore, restore_mask
from .masks import Mask, millilitres
from .nifti import Image, dseg_image, mask_image, probability_image, save
from .resampling import Array
from .structures import STEPS, Numbers, Shares, Structure, indexed

COVERAGE = 0.9  # of the interval of an expected Dice


@dataclass(frozen=True)
class Parts:
    """The structures of a brain.

    Attributes
    ----------
    structures : tuple of Structure
        Lines of the look-up table.
    numbers : ndarray of uint8
        (X, Y, Z) on the scan's own grid: 1 for the first structure, 0 outside the brain mask.
    expected : tuple
        For each, the Dice that can be expected and the ends of its 90 % interval; None where it
        is not known.
    shares : ndarray of uint8
        (K, x, y, z), what each has of every voxel of the grid of ``affine``, in steps of 1/255.
    affine : ndarray
        Voxel indices of that grid to mm (4, 4).
    """

    structures: tuple[Structure, ...]
    numbers: Numbers
    expected: tuple[tuple[float, float, float] | None, ...]
    shares: Shares
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Brain:
    """The brain in one image.

    Attributes
    ----------
    image : Image
        The scan as it was read.
    voxels : ndarray of bool
        (X, Y, Z) brain mask on the scan's own grid.
    conformed : Conformed
        The probability on the model's grid, or on that in voxels half as large.
    rebuilt : Conformed
        The network's mask as the autoencoder reconstructs it, 0 and 1, on the model's grid.
    expected_dice : float
        Dice with a reader's mask that can be expected, 0 to 1.
    interval : tuple of float
        Ends of its 90 % interval, the lower one first.
    evidence : mapping of str to float
        What the expected Dice is read from, by the names of sidecar fields.
    out_of_memory : str
        How it was computed where the GPU's memory was full; otherwise empty.
    orientation : str
        Why the axes may point elsewhere than the header says; empty where nothing speaks for it.
    parts : Parts or None
        Its structures, if the model tells any.
    """

    image: Image
    voxels: Mask
    conformed: Conformed
    rebuilt: Conformed
    expected_dice: float
    interval: tuple[float, float]
    evidence: Mapping[str, float]
    out_of_memory: str = ""
    orientation: str = ""
    parts: Parts | None = None

    @property
    def mask(self) -> nib.Nifti1Image:
        """Brain mask, uint8, on the grid of the scan."""
        return mask_image(self.voxels, self.image.nifti)

    @property
    def probability(self) -> nib.Nifti1Image:
        """Brain probability, 0 to 1 in steps of 1/255, on the grid of the scan."""
        image = probability_image(self.probabilities(), self.image.nifti)
        return type(image).from_bytes(image.to_bytes())  # its steps are scaled as from a file

    @property
    def segmentation(self) -> nib.Nifti1Image | None:
        """Indices of the structures, on the grid of the scan; None if the model tells none."""
        if self.parts is None:
            return None
        indices = indexed(self.parts.numbers, self.parts.structures)
        return dseg_image(indices, self.image.nifti)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each structure, by its name."""
        if self.parts is None:
            return {}
        names = [one.name for one in self.parts.structures]
        counts = np.bincount(self.parts.numbers.ravel(), minlength=len(names) + 1)[1:]
        voxel = float(np.prod(self.image.sizes)) / 1000
        return dict(zip(names, (counts * voxel).tolist(), strict=True))

    def share(self, number: int) -> Array:
        """Bring what a structure has, 0 to 1, to the grid of the scan; the first is 1."""
        assert self.parts is not None
        share = self.parts.shares[number - 1].astype(np.float32) / np.float32(STEPS)
        return restore(share, self.parts.affine, self.image)

    @property
    def volume_ml(self) -> float:
        """Volume of the mask."""
        return millilitres(self.voxels, self.image.affine)

    def probabilities(self) -> Array:
        """Bring the probability (X, Y, Z), 0 to 1, to the grid of the scan."""
        return restore(self.conformed.data, self.conformed.affine, self.image)

    def reconstruction(self) -> Mask:
        """Bring the rebuilt mask (X, Y, Z) to the grid of the scan."""
        return restore_mask(self.rebuilt.data, self.rebuilt.affine, self.image, cleaned=False)

    def save(self, path: str | Path) -> None:
        """Write the mask as `.nii.gz`, whole or not at all; its folder is made.

        Raises
        ------
        Usage
            The name does not end in `.nii.gz`.
        CannotCreate, IOFailed
            It cannot be written.
        """
        path = Path(path)
        if not path.name.endswith(".nii.gz"):
            raise Usage(f"{path}: masks are written as .nii.gz; name the file so.")
        save(path, self.mask)
