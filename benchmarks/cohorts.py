"""Scans rendered from whole-head label maps, in three cohorts, as one raw BIDS dataset.

Any folder of FreeSurfer-style label maps serves (``*.nii.gz``; brain below 500, other tissue as in
SAMSEG's head atlas above, background 0). Subjects are named by cohort and map: ``sub-A01``. Masks
of cohort A, from which labels are taken, lie in the dataset; the truth of all, as masks and as
segmentations, lies beside it.
Usage: ``python -m benchmarks.cohorts LABELMAPS OUT [--cohorts A B C] [--seed 0]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from singlestrip_bids.bids.dseg import write_table
from singlestrip_bids.demo.dataset import (
    Matrix,
    acquire,
    write_descriptions,
    write_image,
    write_mask,
)
from singlestrip_bids.demo.head import BACKGROUND, waves
from singlestrip_bids.image.masks import Mask, clean
from singlestrip_bids.image.resampling import Array
from singlestrip_bids.image.structures import Structure, colour_of

Labels = NDArray[np.int16]

BRAIN = 500  # labels of the brain, its fluid among them, are below
VENTRICLES, CORTEX, FLUID = (4, 5, 43, 44), (3, 42), 24
CEREBELLUM_AND_STEM = (7, 8, 16, 46, 47)
BELOW_MM = 5.0  # how far below them the brain goes; fluid of the spinal canal goes on
LABELS_OF = {
    "ventricles": (*VENTRICLES, 14, 15, 72), "cerebellum": (7, 8, 46, 47), "brain-stem": (16,),
}  # fmt: skip
STRUCTURES = tuple(
    Structure(number, name, colour_of(number))
    for number, name in enumerate((*LABELS_OF, "rest"), 1)
)
TISSUE_OF = {
    "csf": (*VENTRICLES, 14, 15, FLUID, 72),
    "white": (2, 41, 7, 46, 16, 28, 60, 77, 85, 251, 252, 253, 254, 255),
    "deep": (10, 11, 12, 13, 26, 49, 50, 51, 52, 58),
    "artery": (502,), "eye": (506,), "other": (507,), "muscle": (508,), "mucosa": (509,),
    "skin": (511,), "cord": (512,), "vein": (514,), "cortical": (515,), "marrow": (516,),
    "nerve": (530,),
}  # fmt: skip
T1W = {
    "air": BACKGROUND, "grey": 0.55, "csf": 0.2, "white": 0.82, "deep": 0.66, "artery": 0.4,
    "eye": 0.18, "other": 0.55, "muscle": 0.48, "mucosa": 0.45, "skin": 0.75, "cord": 0.75,
    "vein": 0.35, "cortical": 0.06, "marrow": 0.6, "nerve": 0.65,
}  # fmt: skip
EPI = {
    "air": BACKGROUND, "grey": 0.78, "csf": 0.95, "white": 0.66, "deep": 0.72, "artery": 0.5,
    "eye": 0.95, "other": 0.3, "muscle": 0.45, "mucosa": 0.6, "skin": 0.25, "cord": 0.65,
    "vein": 0.5, "cortical": 0.06, "marrow": 0.2, "nerve": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """Whom it holds and how they are scanned.

    Attributes
    ----------
    maps : range
        Which label maps, counted from 1.
    datatype, suffix : str
        BIDS names of the scan.
    tissues : dict of str to float
        Mean intensities.
    axes : str
        Where the voxel axes point.
    voxel_mm : tuple of float
        Voxel size toward right, anterior, superior.
    bias : float
        Largest departure of the bias field from 1.
    noise : tuple of float
        Least and largest standard deviation of the noise.
    atrophy_mm : tuple of float
        Least and largest widening of ventricles; sulci widen by a third of it.
    distortion_mm : float
        Largest displacement along the anterior-posterior axis.
    """

    maps: range
    datatype: str
    suffix: str
    tissues: dict[str, float]
    axes: str
    voxel_mm: tuple[float, float, float]
    bias: float
    noise: tuple[float, float]
    atrophy_mm: tuple[float, float] = (0.0, 0.0)
    distortion_mm: float = 0.0


_OTHER_SCANNER = T1W | {"grey": 0.48, "white": 0.68, "deep": 0.58, "skin": 0.9, "marrow": 0.75}
COHORTS = {
    "A": Cohort(range(1, 9), "anat", "T1w", T1W, "LIA", (1, 1, 1), 0.15, (0.01, 0.03)),
    "B": Cohort(
        range(9, 16), "anat", "T1w", _OTHER_SCANNER, "PSR", (1.2, 1, 1), 0.35, (0.03, 0.06), (1, 5)
    ),
    "C": Cohort(
        range(9, 16), "perf", "m0scan", EPI, "LAS", (3.4, 3.4, 5), 0.3, (0.02, 0.05), (0, 3), 6
    ),
}


def write_cohorts(maps: Sequence[Path], root: Path, names: Sequence[str], seed: int = 0) -> Path:
    """Render cohorts into a dataset; the truth goes to the folder named ``<root>-truth``.

    Parameters
    ----------
    maps : sequence of Path
        Label maps; a cohort takes those of its numbers that are there.
    root : Path
        Folder of the dataset; it must not exist.
    names : sequence of str
        Cohorts.
    seed : int
        Equal seeds give equal bytes.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    FileExistsError
        If the dataset or the truth exists.
    """
    truth = root.parent / f"{root.name}-truth"
    plan = [(n, k) for n in names for k in COHORTS[n].maps if k <= len(maps)]
    subjects = [f"sub-{name}{number:02d}" for name, number in plan]
    about = (
        "Scans rendered from whole-head label maps, with exact brain masks.\n"
        "Written by benchmarks/cohorts.py of singlestrip-bids.\n"
    )
    terms = "that of the label maps"
    labels = write_descriptions(
        root, truth, subjects, "Rendered heads", "benchmarks.cohorts", about, terms
    )
    for subject, (name, number) in zip(subjects, plan, strict=True):
        cohort = COHORTS[name]
        print(f"{subject} from {maps[number - 1].name}", flush=True)
        image = nib.as_closest_canonical(nib.load(maps[number - 1]))
        head = np.asarray(image.dataobj).astype(np.int16)
        rng = np.random.default_rng([seed, ord(name), number])
        data, mask, numbers, affine = render(head, image.affine, cohort, rng)
        scan = f"{subject}/{cohort.datatype}/{subject}_{cohort.suffix}.nii.gz"
        write_image(root / scan, data, affine)
        space = "" if cohort.suffix == "T1w" else f"_space-{cohort.suffix}"
        stem = Path(subject) / cohort.datatype / f"{subject}{space}_desc-brain_mask"
        for folder in (truth, labels) if name == "A" else (truth,):
            write_mask(folder / stem, mask, affine, scan)
        stem = truth / subject / cohort.datatype / f"{subject}{space}_dseg"
        write_image(stem.with_suffix(".nii.gz"), numbers, affine)
        write_table(stem.with_suffix(".tsv"), STRUCTURES)
    return root


def render(
    head: Labels, affine: Matrix, cohort: Cohort, rng: np.random.Generator
) -> tuple[NDArray, NDArray[np.uint8], NDArray[np.uint8], Matrix]:
    """Age a head, paint it and scan it.

    Parameters
    ----------
    head : ndarray
        Label map (X, Y, Z), axes closest to right, anterior, superior.
    affine : ndarray
        Voxel index to world mm, shape (4, 4).
    cohort : Cohort
        How.
    rng : numpy.random.Generator
        Source of every draw.

    Returns
    -------
    tuple
        Scan, brain mask (voxels more than half brain, without stray parts), which of the
        `STRUCTURES` has most of each voxel in it, and affine.
    """
    head = age(head, rng.uniform(*cohort.atrophy_mm), rng)
    brain = brain_of(head, float(nib.affines.voxel_sizes(affine)[2]))
    steps = np.array(cohort.voxel_mm) / nib.affines.voxel_sizes(affine)
    count = np.ceil(np.array(head.shape) / steps).astype(int)
    lines = np.ix_(*(np.arange(n) * step for n, step in zip(count, steps, strict=True)))
    points = np.stack(np.broadcast_arrays(*lines)).astype(np.float32)
    squeeze = np.ones(tuple(count), np.float32)
    if cohort.distortion_mm:
        shift = _distortion(points, cohort.distortion_mm, rng)
        points[1] += shift
        squeeze += np.gradient(shift, float(steps[1]), axis=1).astype(np.float32)
    sigma = 0.45 * steps  # of a point spread as wide as a voxel

    def sample(volume: Array) -> Array:
        blurred = ndimage.gaussian_filter(volume, sigma)
        return ndimage.map_coordinates(blurred, points, order=1)

    signal = sample(paint(head, cohort.tissues, rng)) * squeeze
    mask = (sample(brain.astype(np.float32)) > 0.5).astype(np.uint8)
    parts = [sample((brain & _of(head, one)).astype(np.float32)) for one in STRUCTURES]
    numbers = np.where(mask, np.argmax(parts, axis=0) + 1, 0).astype(np.uint8)
    grid = affine @ np.diag([*steps, 1.0])
    data = acquire(signal, grid, "int16", rng, cohort.bias, cohort.noise)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(cohort.axes)
    )
    back = nib.orientations.inv_ornt_aff(turn, data.shape)
    turned = [nib.orientations.apply_orientation(one, turn) for one in (data, mask, numbers)]
    return turned[0], turned[1], turned[2], grid @ back


def _of(head: Labels, structure: Structure) -> Mask:
    """Find a structure in a label map; the last one is all that no other has."""
    if structure != STRUCTURES[-1]:
        return np.isin(head, LABELS_OF[structure.name])
    return ~np.isin(head, np.concatenate(list(LABELS_OF.values())))


def brain_of(head: Labels, height_mm: float) -> Mask:
    """Return the brain of a label map, whose third axis points up, without the spinal canal.

    It ends 5 mm below the lowest voxel of cerebellum and stem; voxels are so many mm high.
    """
    brain = (head > 0) & (head < BRAIN)
    planes = np.flatnonzero(np.isin(head, CEREBELLUM_AND_STEM).any((0, 1)))
    if len(planes):
        brain[..., : max(planes[0] - round(BELOW_MM / height_mm), 0)] = False
    return clean(brain)


def age(head: Labels, growth: float, rng: np.random.Generator) -> Labels:
    """Push the ventricles outward by up to ``growth`` voxels, and thin the cortex from outside."""
    ventricles = np.isin(head, VENTRICLES)
    if growth <= 0 or not ventricles.any():
        return head
    reach = 4 * growth
    found = np.argwhere(ventricles)
    low = np.maximum(found.min(0) - int(reach) - 1, 0)
    window = tuple(slice(a, b) for a, b in zip(low, found.max(0) + int(reach) + 2, strict=True))
    distance, nearest = ndimage.distance_transform_edt(~ventricles[window], return_indices=True)
    index = np.indices(distance.shape)
    pull = growth * np.clip(1 - distance / reach, 0, 1) ** 2 / np.maximum(distance, 1)
    moves = [
        ndimage.gaussian_filter((n - i) * pull, 1.5) for n, i in zip(nearest, index, strict=True)
    ]
    aged = head.copy()
    aged[window] = ndimage.map_coordinates(
        head[window], index + np.stack(moves), order=0, mode="nearest"
    )
    lines = np.ix_(*(np.arange(n, dtype=np.float32) for n in head.shape))
    depth = growth / 3 * (1 + waves(lines, 3, (20.0, 60.0), rng))
    near_fluid = ndimage.distance_transform_edt(aged != FLUID) <= depth
    aged[np.isin(aged, CORTEX) & near_fluid] = FLUID
    return aged


def paint(head: Labels, tissues: dict[str, float], rng: np.random.Generator) -> Array:
    """Give every voxel an intensity: its tissue's mean, this head's departure, and texture.

    Tissue of the brain varies by 3 %, other by 8 %, over some 3 mm; where muscle and fat are one
    label, by a quarter over some 8 mm.
    """
    grey = np.full(TISSUE_OF["nerve"][0] + 1, tissues["grey"], np.float32)
    grey[0] = tissues["air"]
    for name, ids in TISSUE_OF.items():
        mean = tissues[name] * rng.uniform(0.92, 1.08)
        for label in ids:
            grey[label] = mean * rng.uniform(0.97, 1.03)
    fine = np.full(grey.shape, 0.03, np.float32)
    fine[BRAIN:] = 0.08
    coarse = np.zeros(grey.shape, np.float32)
    coarse[list(TISSUE_OF["other"])] = 0.25
    texture = 1 + fine[head] * _grain(head.shape, 1.3, rng)
    texture += coarse[head] * _grain(head.shape, 3.5, rng)
    return grey[head] * np.clip(texture, 0.1, 2)


def _grain(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Array:
    """Smooth noise of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size)
    return noise / noise.std()


def _distortion(points: Array, largest: float, rng: np.random.Generator) -> Array:
    """Smooth displacement along the second axis, strongest at the front and low: (X, Y, Z)."""
    lines = np.ix_(*(np.unique(axis) for axis in points))
    field = waves([line.astype(np.float32) for line in lines], 3, (60.0, 160.0), rng)
    front = points[1] / points[1].max() * (1 - 0.5 * points[2] / points[2].max())
    field = field * (0.3 + front)
    return (largest * field / np.abs(field).max()).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a dataset from the command line; return 1 if it cannot be written."""
    parser = argparse.ArgumentParser(description="Render label maps as a BIDS dataset.")
    parser.add_argument("labelmaps", type=Path, help="folder of label maps")
    parser.add_argument("root", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--cohorts", nargs="+", choices=sorted(COHORTS), default=sorted(COHORTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    maps = sorted(args.labelmaps.glob("*.nii.gz"))
    if not maps:
        print(f"cohorts: {args.labelmaps}: no label map (*.nii.gz) there", file=sys.stderr)
        return 1
    try:
        write_cohorts(maps, args.root, args.cohorts, args.seed)
    except FileExistsError as error:
        print(f"cohorts: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
