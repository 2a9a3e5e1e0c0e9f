"""What a model finds in an image: the mask, the probability, and how good the mask may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib

from ..errors import Usage
from .grid import Conformed, restore, restore_mask
from .masks import Mask, millilitres
from .nifti import Image, mask_image, probability_image, save
from .resampling import Array

COVERAGE = 0.9  # of the interval of an expected Dice


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
