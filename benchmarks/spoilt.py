"""Scans with faults: copies of good scans, each spoilt in one way, as a BIDS dataset.

Usage: ``python -m benchmarks.spoilt DATASET OUT SUBJECT...``. The first scan of every subject is
taken, and its mask from the folder ``<DATASET>-truth``. A subject of OUT is named by the other one
and the fault (``sub-B13noise``); the truth of all lies beside, in the folder ``<OUT>-truth``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.config import ALL_MODALITIES
from singlestrip_bids.demo.dataset import write_descriptions, write_image, write_mask
from singlestrip_bids.demo.head import waves
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image.masks import Mask
from singlestrip_bids.image.resampling import Array

NOISE, BIAS, GHOST = 0.15, 0.8, 0.4  # shares of the 99th percentile, of 1, of the image
BLUR_MM, THICK_MM = 2.5, 9.0  # standard deviation; slices
HEAD = 0.15  # brighter than air, share of the 99th percentile
CUT = 0.25  # of the brain's height, above the end of the field of view

Pair = tuple[Array, Mask]
Fault = Callable[[Array, Mask, Sequence[float], np.random.Generator], Pair]


def noise(data: Array, brain: Mask, _: Sequence[float], rng: np.random.Generator) -> Pair:
    """Add noise to both parts of the signal."""
    sigma = NOISE * np.percentile(data, 99)
    real, imaginary = rng.normal(0, sigma, (2, *data.shape)).astype(np.float32)
    return np.hypot(data + real, imaginary), brain


def bias(data: Array, brain: Mask, sizes: Sequence[float], rng: np.random.Generator) -> Pair:
    """Brighten some sides and darken others."""
    lengths = (np.arange(n) * size for n, size in zip(data.shape, sizes, strict=True))
    field = waves(np.ix_(*(line.astype(np.float32) for line in lengths)), 3, (150.0, 400.0), rng)
    return data * (1 + BIAS * field / np.abs(field).max()), brain


def blur(data: Array, brain: Mask, sizes: Sequence[float], _: np.random.Generator) -> Pair:
    """Lose detail."""
    return ndimage.gaussian_filter(data, [BLUR_MM / size for size in sizes]), brain


def thick(data: Array, brain: Mask, sizes: Sequence[float], _: np.random.Generator) -> Pair:
    """Average neighbouring slices; the grid stays."""
    count = max(round(THICK_MM / sizes[2]), 2)
    places = np.arange(data.shape[2])
    slabs = np.stack([data[:, :, p : p + count].mean(2) for p in places[::count]], axis=2)
    return slabs[:, :, places // count], brain


def ghost(data: Array, brain: Mask, _: Sequence[float], __: np.random.Generator) -> Pair:
    """Add a pale copy, a third of the field of view away along the phase axis."""
    return data + GHOST * np.roll(data, data.shape[1] // 3, axis=1), brain


def invert(data: Array, brain: Mask, _: Sequence[float], __: np.random.Generator) -> Pair:
    """Make dark tissue bright; air stays dark."""
    bright = np.percentile(data, 99)
    return np.where(data > HEAD * bright, np.clip(1.2 * bright - data, 0, None), data), brain


def cut(data: Array, brain: Mask, _: Sequence[float], __: np.random.Generator) -> Pair:
    """End the field of view below the top of the brain."""
    planes = np.flatnonzero(brain.any((0, 1)))
    end = planes[-1] - round(CUT * np.ptp(planes))
    return data[:, :, :end], brain[:, :, :end]


def turn(data: Array, brain: Mask, _: Sequence[float], __: np.random.Generator) -> Pair:
    """Lie otherwise than the header says: the face where it has an ear."""
    return np.rot90(data), np.rot90(brain)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault for fault in (noise, bias, blur, thick, ghost, invert, cut, turn)
}


def write_spoilt(dataset: Path, root: Path, subjects: Sequence[str], seed: int = 0) -> Path:
    """Write every scan with every fault; equal seeds give equal bytes.

    Raises
    ------
    FileExistsError
        If the dataset or the truth exists.
    ValueError
        If a subject has no scan with a mask.
    """
    truth = root.with_name(f"{root.name}-truth")
    masks, made = (Derivatives(f.with_name(f"{f.name}-truth")) for f in (dataset, root))
    every = find_scans(dataset, ALL_MODALITIES, subjects)
    scans = list({scan.subject: scan for scan in reversed(every)}.values())[::-1]
    for scan in scans:
        if not masks.mask(scan).is_file():
            raise ValueError(f"{masks.mask(scan)}: no such mask")
    names = [f"sub-{scan.subject}{fault}" for scan in scans for fault in FAULTS]
    about = "Scans, each spoilt in one way.\nWritten by benchmarks/spoilt.py.\n"
    write_descriptions(root, truth, names, "Spoilt scans", "benchmarks.spoilt", about, "as it was")
    for number, scan in enumerate(scans):
        pair = nib.load(scan.path), nib.load(masks.mask(scan))
        image, mask = map(nib.as_closest_canonical, pair)
        data, brain = np.asarray(image.dataobj, np.float32), np.asarray(mask.dataobj) > 0
        for name, fault in FAULTS.items():
            rng = np.random.default_rng([seed, number])
            spoilt, within = fault(data, brain, voxel_sizes(image.affine), rng)
            copy = _copy(scan, root, name)
            write_image(copy.path, spoilt.astype(np.float32), image.affine)
            stem = made.mask(copy).with_name(made.mask(copy).name.removesuffix(".nii.gz"))
            write_mask(stem, within.astype(np.uint8), image.affine, copy.relative)
        print(f"{scan.name}: {', '.join(FAULTS)}", flush=True)
    return root


def _copy(scan: Scan, root: Path, fault: str) -> Scan:
    """Name a copy of a scan in another dataset."""
    subject = f"{scan.subject}{fault}"
    path = root / scan.relative.replace(f"sub-{scan.subject}", f"sub-{subject}")
    return Scan(path, root, {**scan.entities, "subject": subject})


def main(argv: Sequence[str] | None = None) -> int:
    """Write a dataset from the command line; return 1 if it cannot be written."""
    parser = argparse.ArgumentParser(description="Spoil scans in several ways, as a BIDS dataset.")
    parser.add_argument("dataset", type=Path, help="with its truth beside it")
    parser.add_argument("root", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT")
    args = parser.parse_args(argv)
    try:
        write_spoilt(args.dataset, args.root, args.subjects)
    except (FileExistsError, ValueError, SingleStripError) as error:
        print(f"spoilt: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
