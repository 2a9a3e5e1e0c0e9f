"""Spoil the scans of a dataset whose masks are known, so that masks of them fail.

Usage: ``python -m benchmarks.spoil DATASET SUBJECT... --out OUT``. Each scan is spoilt in every
way of `WAYS`; the copies are subjects of their own in the new dataset OUT, such as
``sub-B13noise``, and their masks lie in ``OUT-truth``. None of this is the app's own corruption of
copies of the label (`singlestrip_bids.guard`): it works on the scanner's grid, by other rules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import dataset
from benchmarks.dataset import Matrix
from benchmarks.head import Array
from singlestrip_bids import derivatives, volume
from singlestrip_bids.config import ALL_MODALITIES
from singlestrip_bids.inputs import Scan, find_scans

Spoilt = tuple[Array, NDArray[np.bool_], Matrix]
Way = Callable[[Array, NDArray[np.bool_], Matrix, np.random.Generator], Spoilt]


def noise(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Rician noise of a fifth of the range in each channel."""
    real, imaginary = (0.2 * rng.standard_normal(data.shape, np.float32) for _ in range(2))
    return np.hypot(data + real, imaginary), mask, affine


def bias(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Signal that fades by a factor of 20 from one side of the field of view to the other."""
    lines = np.ix_(*(np.linspace(0, 1, n, dtype=np.float32) for n in data.shape))
    axis = int(rng.integers(3))
    return data * np.exp(-3 * lines[axis]), mask, affine


def thick(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Slices of 12 mm along one axis, on the same grid."""
    axis = int(rng.integers(3))
    count = max(round(12 / nib.affines.voxel_sizes(affine)[axis]), 1)
    starts = np.arange(0, data.shape[axis], count)
    slabs = np.add.reduceat(data, starts, axis=axis)
    sizes = np.diff([*starts, data.shape[axis]])
    means = slabs / np.expand_dims(sizes, tuple({0, 1, 2} - {axis})).astype(np.float32)
    return np.repeat(means, sizes, axis=axis), mask, affine


def ghost(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Half of the signal again, a third of the field of view away."""
    axis = int(rng.integers(2))
    return data + 0.5 * np.roll(data, data.shape[axis] // 3, axis=axis), mask, affine


def crop(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Field of view that leaves 40 % of the brain's height out, at the top or the bottom."""
    axis = int(np.argmax(np.abs(affine[2, :3])))
    planes = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    cut = round(0.4 * len(planes))
    low, high = (planes[0] + cut, None) if rng.random() < 0.5 else (0, planes[-1] + 1 - cut)
    window = tuple(slice(low, high) if a == axis else slice(None) for a in range(3))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, axis] * low
    return data[window], mask[window], moved


def invert(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Dark tissue bright and bright tissue dark; air stays."""
    return np.where(data > 0.1, 1.1 - data, data), mask, affine


def blur(data: Array, mask: NDArray, affine: Matrix, rng: np.random.Generator) -> Spoilt:
    """Point spread of 12 mm."""
    sigma = 12 / 2.355 / nib.affines.voxel_sizes(affine)
    return ndimage.gaussian_filter(data, sigma), mask, affine


WAYS: dict[str, Way] = {
    way.__name__: way for way in (noise, bias, thick, ghost, crop, invert, blur)
}


def spoil(root: Path, subjects: Sequence[str], out: Path, seed: int = 0) -> None:
    """Write the spoilt scans of some subjects as a dataset.

    Parameters
    ----------
    root : Path
        Dataset; its masks lie in ``<root>-truth``.
    subjects : sequence of str
        Whose scans.
    out : Path
        New dataset; its masks go to ``<out>-truth``.
    seed : int
        Of all draws.

    Raises
    ------
    FileExistsError
        If the dataset or the truth exists.
    """
    scans = find_scans(root, ALL_MODALITIES, subjects)
    truths = [folder.with_name(f"{folder.name}-truth") for folder in (root, out)]
    names = [f"sub-{scan.subject}{way}" for scan in scans for way in WAYS]
    about = "Spoilt copies of scans of another dataset; masks are exact.\n"
    title = "Spoilt scans"
    dataset.write_descriptions(out, truths[1], names, title, __name__, about, "CC0")
    for number, scan in enumerate(scans):
        for turn, (name, way) in enumerate(WAYS.items()):
            rng = np.random.default_rng([seed, number, turn])
            _write(scan, name, way, truths, out, rng)
        print(scan.name, flush=True)


def _write(
    scan: Scan, name: str, way: Way, truths: Sequence[Path], out: Path, rng: np.random.Generator
) -> None:
    image = volume.load(scan.path)
    mask = volume.load_mask(derivatives.mask_path(truths[0], scan), image)
    low, high = np.percentile(image.data, (0.5, 99))
    data = ((image.data - low) / (high - low)).clip(0).astype(np.float32)
    spoilt, kept, affine = way(data, mask, image.affine, rng)
    relative = Path(scan.relative.replace(f"sub-{scan.subject}", f"sub-{scan.subject}{name}"))
    dataset.write_image(out / relative, np.rint(1000 * spoilt).astype(np.int16), affine)
    mask_name = derivatives.mask_path(truths[0], scan).relative_to(truths[0])
    target = Path(str(mask_name).replace(f"sub-{scan.subject}", f"sub-{scan.subject}{name}"))
    stem = truths[1] / target.with_name(target.name.removesuffix(".nii.gz"))
    dataset.write_mask(stem, kept.astype(np.uint8), affine, str(relative))


def main(argv: Sequence[str] | None = None) -> int:
    """Spoil from the command line; return 1 if the dataset cannot be written."""
    parser = argparse.ArgumentParser(description="Spoil scans whose masks are known.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        spoil(args.dataset, args.subjects, args.out, args.seed)
    except FileExistsError as error:
        print(f"spoil: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
