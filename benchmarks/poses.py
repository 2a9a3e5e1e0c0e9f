"""Rendered heads that lie as they like, off-centre in a large field of view among other tissue.

Usage: ``python -m benchmarks.poses COHORTS OUT SUBJECT... [--stacks]``. COHORTS is a dataset of
`benchmarks.cohorts`. Every head is turned at random; with ``--stacks`` it is half as large and
seen in thick slices that move, like a fetus. The mask of the first subject lies in the dataset as
the label, the truth of all beside it, in the folder ``<OUT>-truth``.
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
from scipy.spatial.transform import Rotation

from singlestrip_bids.demo.dataset import Matrix, write_descriptions, write_image, write_mask
from singlestrip_bids.image.masks import Mask
from singlestrip_bids.image.resampling import Array

HEAD, AIR, NOISE = 0.15, 0.05, 0.015  # shares of the 99th percentile
FLUID_MM, RIM_MM = 8.0, 12.0  # around the head; at the end of the field of view
DRIFT, JERK = 0.35, 0.4  # of slices, in voxels


@dataclass(frozen=True)
class Field:
    """How a head is seen."""

    voxel_mm: float
    voxels: int  # along each edge of the field of view
    size: float  # of the head, as a share of what it is
    away: float  # from the centre along each axis, in voxels, at most
    grain: float  # of the other tissue, in voxels
    thickness: int  # of a slice, in voxels


WHOLE = Field(2.0, 150, 1.0, 18.0, 6.0, 1)
STACKS = Field(1.5, 160, 0.5, 28.0, 5.0, 3)


def write_poses(
    cohorts: Path, root: Path, subjects: Sequence[str], field: Field, seed: int = 1
) -> Path:
    """Write a dataset; the truth goes to the folder named ``<root>-truth``.

    Raises
    ------
    FileExistsError
        If the dataset or the truth exists.
    ValueError
        If a subject has not one scan and one mask.
    """
    truth = root.with_name(f"{root.name}-truth")
    names = [f"sub-{subject}" for subject in subjects]
    about = "Rendered heads that lie as they like.\nWritten by benchmarks/poses.py.\n"
    masks = cohorts.with_name(f"{cohorts.name}-truth")
    pairs = {
        name: (_only(cohorts / name, "*.nii.gz"), _only(masks / name, "*_mask.nii.gz"))
        for name in names
    }
    labels = write_descriptions(
        root, truth, names, "Turned heads", "benchmarks.poses", about, "that of the label maps"
    )
    rng = np.random.default_rng(seed)
    for name in names:
        head, truth_of = (nib.as_closest_canonical(nib.load(path)) for path in pairs[name])
        image, brain, affine = turned(head, truth_of, field, rng)
        made = f"{name}/anat/{name}_T2w.nii.gz"
        write_image(root / made, image, affine)
        stem = Path(name) / "anat" / f"{name}_space-T2w_desc-brain_mask"
        for folder in (truth, labels) if name == names[0] else (truth,):
            write_mask(folder / stem, brain.astype(np.uint8), affine, made)
        print(f"{name}: brain of {brain.sum() * abs(np.linalg.det(affine)) / 1000:.0f} ml")
    return root


def _only(folder: Path, pattern: str) -> Path:
    """Find the one file of a name in a folder."""
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder}: {len(found)} files {pattern} there, one is needed")
    return found[0]


def turned(
    scan: nib.Nifti1Image, mask: nib.Nifti1Image, field: Field, rng: np.random.Generator
) -> tuple[Array, Mask, Matrix]:
    """Turn a head (X, Y, Z) and its brain at random, and put them among other tissue."""
    data, brain = np.asarray(scan.dataobj, np.float32), np.asarray(mask.dataobj) > 0
    bright, shape = float(np.percentile(data, 99)), np.array([field.voxels] * 3)
    turn = Rotation.random(random_state=rng.integers(1 << 30)).as_matrix()
    centre = shape / 2 + rng.uniform(-field.away, field.away, 3)
    sizes = nib.affines.voxel_sizes(scan.affine)
    matrix = np.diag(1 / sizes) @ turn.T * field.voxel_mm / field.size
    offset = np.argwhere(brain).mean(0) - matrix @ centre

    def seen(volume: NDArray) -> Array:
        return np.asarray(
            ndimage.affine_transform(volume.astype(np.float32), matrix, offset, shape, order=1)
        )

    parts, _ = ndimage.label(ndimage.binary_opening(data > HEAD * bright))
    head = seen(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])) > 0.5
    away = ndimage.distance_transform_edt(~head) * field.voxel_mm
    image, inside = np.where(away > 3, AIR * bright, seen(data)), seen(brain) > 0.5
    image = np.where(_body(away, field), bright * _tissue(shape, field, rng), image)
    image = image + rng.normal(0, NOISE * bright, shape)
    if field.thickness > 1:
        image, inside = _slices(image, inside, field.thickness, rng)
    affine = np.diag([*[field.voxel_mm] * 2, field.voxel_mm * field.thickness, 1.0])
    affine[:3, 3] = -field.voxel_mm * shape / 2
    return np.clip(image, 0, None).astype(np.float32), inside, affine


def _body(away: Array, field: Field) -> Mask:
    """Find where the other tissue is: beyond the fluid, within the rim."""
    place = np.arange(field.voxels)
    end = np.minimum(place, field.voxels - place) * field.voxel_mm > RIM_MM
    within = end[:, None, None] & end[:, None] & end
    return np.asarray((away > FLUID_MM) & within)


def _tissue(shape: NDArray, field: Field, rng: np.random.Generator) -> Array:
    """Draw smooth tissue of any grey, with texture."""
    blobs = ndimage.gaussian_filter(rng.normal(size=shape), field.grain)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return np.asarray(0.15 + 0.8 * blobs + 0.3 * texture / np.abs(texture).max())


def _slices(
    image: Array, brain: Mask, thickness: int, rng: np.random.Generator
) -> tuple[Array, Mask]:
    """See a volume in thick slices, each moved a little and of another brightness."""
    starts = range(0, image.shape[2], thickness)
    moves = np.cumsum(rng.normal(0, DRIFT, (len(starts), 2)), axis=0)
    moves -= ndimage.uniform_filter1d(moves, 9, axis=0)
    moves += rng.normal(0, JERK, moves.shape)
    planes, masks = [], []
    for start, move in zip(starts, moves, strict=True):
        slab, within = (v[:, :, start : start + thickness].mean(2) for v in (image, brain))
        plane = ndimage.shift(slab, move, order=1, mode="nearest")
        planes.append(plane * rng.uniform(0.9, 1.1))
        masks.append(ndimage.shift(within, move, order=1) > 0.5)
    return np.stack(planes, axis=2), np.stack(masks, axis=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a dataset from the command line; return 1 if it cannot be written."""
    parser = argparse.ArgumentParser(description="Turn rendered heads, as a BIDS dataset.")
    parser.add_argument("cohorts", type=Path, help="dataset of benchmarks.cohorts")
    parser.add_argument("root", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT", help="the labelled one first")
    parser.add_argument("--stacks", action="store_true", help="small heads in thick slices")
    args = parser.parse_args(argv)
    try:
        write_poses(args.cohorts, args.root, args.subjects, STACKS if args.stacks else WHOLE)
    except (FileExistsError, ValueError) as error:
        print(f"poses: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
