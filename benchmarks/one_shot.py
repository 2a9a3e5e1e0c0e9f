"""One-shot segmentation: register the labelled scan to another with ANTs, propagate its mask.

Usage: ``python -m benchmarks.one_shot LABEL LABEL_MASK SCAN MASK MM``. Both scans are brought to
voxels of MM mm for the registration (antsRegistrationSyNQuick: rigid, affine, symmetric
diffeomorphic, by mutual information); the mask goes straight to the scan's own grid.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np


def propagate(
    label: Path,
    label_mask: Path,
    scan: Path,
    mm: float,
    interpolator: str = "linear",
    transform: str = "antsRegistrationSyNQuick[s]",
) -> np.ndarray:
    """Return the labelled brain on the grid of another scan, in [0, 1].

    Parameters
    ----------
    label, label_mask, scan : Path
        NIfTI volumes, the first two on one grid.
    mm : float
        Edge of the voxels at which the scans are registered.
    interpolator : str
        ``genericLabel`` for a segmentation, of which the indices come back.
    transform : str
        What is looked for.

    Returns
    -------
    ndarray
        (X, Y, Z) of `scan`.
    """
    import ants

    target, source = ants.image_read(str(scan)), ants.image_read(str(label))
    coarse = [ants.resample_image(image, (mm,) * 3, False, 0) for image in (target, source)]
    found = ants.registration(*coarse, transform, random_seed=1)
    mask = ants.image_read(str(label_mask))
    moved = ants.apply_transforms(target, mask, found["fwdtransforms"], interpolator=interpolator)
    return np.asarray(moved.numpy())


def main(argv: Sequence[str] | None = None) -> int:
    """Write the mask."""
    parser = argparse.ArgumentParser(description="Propagate one label by ANTs.")
    for name in ("label", "label_mask", "scan", "mask"):
        parser.add_argument(name, type=Path)
    parser.add_argument("mm", type=float, help="voxel size of the registration")
    args = parser.parse_args(argv)
    mask = propagate(args.label, args.label_mask, args.scan, args.mm) > 0.5
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), nib.load(args.scan).affine), args.mask)
    return 0


if __name__ == "__main__":
    sys.exit(main())
