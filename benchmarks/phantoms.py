"""A raw BIDS dataset of synthetic heads whose brain masks are known exactly.

One scan is labelled, as the App needs it; the masks of the others go to a separate tree, for
`benchmarks.score`. Usage: ``python -m benchmarks.phantoms OUT [--subjects 10] [--seed 0]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from benchmarks.dataset import Matrix, acquire, write_descriptions, write_image, write_mask
from benchmarks.head import Array, Brain, draw_anatomy, load_brain, paint_head, waves

ABOUT = """Synthetic heads around warped copies of the MNI152 template, with exact brain masks.
No person was scanned. Written by benchmarks/phantoms.py of singlestrip-bids.
"""
CENTRE_MM = np.array([0.0, -18.0, 5.0])  # of the template's brain


@dataclass(frozen=True)
class Protocol:
    """How a head is scanned.

    Attributes
    ----------
    contrast : str
        ``T1w`` or ``T2w``.
    axes : str
        Where the voxel axes point, such as ``PIR``.
    voxel_mm : tuple of float
        Voxel size along X, Y, Z of the scanner, whatever `axes` says.
    margin_mm : tuple of float
        Field of view beyond the brain: right and left, anterior, posterior, superior, inferior.
    oblique_deg : tuple of float
        Rotation of the field of view about X, Y, Z.
    dtype : str
        Type of the stored data.
    """

    contrast: str
    axes: str
    voxel_mm: tuple[float, float, float]
    margin_mm: tuple[float, float, float, float, float]
    oblique_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dtype: str = "int16"


PROTOCOLS = (
    Protocol("T1w", "RAS", (1.6, 1.6, 1.6), (25, 40, 25, 25, 45)),
    Protocol("T1w", "LAS", (1.5, 1.5, 1.5), (22, 36, 30, 20, 30)),
    Protocol("T2w", "LAS", (1.0, 1.0, 4.0), (20, 30, 22, 18, 12)),
    Protocol("T1w", "PIR", (2.0, 1.3, 1.3), (24, 42, 22, 26, 75)),
    Protocol("T2w", "LPI", (2.0, 2.0, 2.0), (30, 45, 35, 30, 60), dtype="float32"),
    Protocol("T1w", "RAS", (1.8, 1.8, 1.8), (24, 38, 26, 28, 40), (18, -12, 8)),
    Protocol("T2w", "RSP", (1.4, 3.0, 1.4), (24, 30, 24, 22, 50)),
    Protocol("T1w", "ASL", (2.0, 2.0, 2.0), (7, 8, 7, 7, 7)),
    Protocol("T2w", "LPS", (1.5, 1.5, 3.0), (26, 36, 30, 24, 25), (-14, 8, 15)),
    Protocol("T1w", "SRP", (2.5, 2.5, 2.5), (35, 55, 40, 40, 90), dtype="float32"),
)


def write_dataset(
    root: Path, subjects: int = 10, seed: int = 0, spacing_scale: float = 1.0
) -> Path:
    """Write a raw dataset, its one label, and beside it the truth of the other scans.

    Parameters
    ----------
    root : Path
        Folder of the dataset. The truth goes to the folder named ``<root>-truth``. Neither may
        exist.
    subjects : int
        Number of heads, one scan each; past ten the protocols repeat with new heads.
    seed : int
        Equal seeds give equal bytes, and the first heads do not depend on `subjects`.
    spacing_scale : float
        Factor on the voxel sizes; 2 or more is quick, for tests.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    FileExistsError
        If either folder exists.
    """
    truth = root.parent / f"{root.name}-truth"
    names = [f"sub-{number:02d}" for number in range(1, subjects + 1)]
    labels = write_descriptions(
        root, truth, names, "Phantom heads", "benchmarks.phantoms", ABOUT, "CC0"
    )
    brain = load_brain(1.5 * min(max(spacing_scale, 1.0), 2.0))
    for index, name in enumerate(names):
        protocol = PROTOCOLS[index % len(PROTOCOLS)]
        rng = np.random.default_rng([seed, index])
        data, mask, affine = scan_head(brain, protocol, rng, spacing_scale)
        scan = f"{name}/anat/{name}_{protocol.contrast}.nii.gz"
        write_image(root / scan, data, affine)
        space = "" if protocol.contrast == "T1w" else f"_space-{protocol.contrast}"
        target = labels if index == 0 else truth
        write_mask(target / name / "anat" / f"{name}{space}_desc-brain_mask", mask, affine, scan)
    return root


def scan_head(
    brain: Brain, protocol: Protocol, rng: np.random.Generator, spacing_scale: float = 1.0
) -> tuple[NDArray[Any], NDArray[np.uint8], Matrix]:
    """Draw a head and scan it.

    Parameters
    ----------
    brain : Brain
        The template on the painting grid.
    protocol : Protocol
        Contrast and grid.
    rng : numpy.random.Generator
        Source of head, pose, warp, bias field and noise.
    spacing_scale : float
        Factor on the voxel sizes.

    Returns
    -------
    data : ndarray
        The scan, of the protocol's type, shape (X, Y, Z).
    mask : ndarray
        Brain mask on the same grid: voxels more than half of which are brain.
    affine : ndarray
        Voxel index to world mm, shape (4, 4).
    """
    head = paint_head(brain, draw_anatomy(protocol.contrast, rng), rng)
    pose = draw_pose(rng)
    affine, shape = scan_grid(brain, protocol, pose, spacing_scale)
    points, parts = _sample_points(brain, np.linalg.inv(pose) @ affine, affine, shape, rng)
    clean = _average(ndimage.map_coordinates(head, points, order=1, mode="nearest"), parts)
    share = _average(ndimage.map_coordinates(brain.mask, points, order=1), parts)
    mask = (share > 0.5).astype(np.uint8)
    return acquire(clean, affine, protocol.dtype, rng), mask, affine


def draw_pose(rng: np.random.Generator) -> Matrix:
    """Draw size, shape, tilt and place of a head.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of every draw.

    Returns
    -------
    ndarray
        Template mm to world mm, shape (4, 4): scales .85 to 1.15, shears up to .05, rotations up
        to 15 degrees, shifts up to 20 mm.
    """
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = rng.uniform(-0.05, 0.05, 3)
    turn = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True).as_matrix()
    pose = np.eye(4)
    # One common factor more than three apart: heads differ in size before they differ in shape.
    scales = np.clip(rng.uniform(0.9, 1.1) * rng.uniform(0.95, 1.05, 3), 0.85, 1.15)
    pose[:3, :3] = turn @ shear @ np.diag(scales)
    pose[:3, 3] = CENTRE_MM - pose[:3, :3] @ CENTRE_MM + rng.uniform(-20, 20, 3)
    return pose


def scan_grid(
    brain: Brain, protocol: Protocol, pose: Matrix, spacing_scale: float = 1.0
) -> tuple[Matrix, tuple[int, ...]]:
    """Return the affine and shape of a field of view that holds the posed brain.

    Parameters
    ----------
    brain : Brain
        The template on the painting grid.
    protocol : Protocol
        Orientation, voxel size and margins.
    pose : ndarray
        Template mm to world mm, shape (4, 4).
    spacing_scale : float
        Factor on the voxel sizes.

    Returns
    -------
    affine : ndarray
        Voxel index to world mm, shape (4, 4).
    shape : tuple of int
        Number of voxels along each axis.
    """
    turn = Rotation.from_euler("xyz", protocol.oblique_deg, degrees=True).as_matrix()
    inside = np.argwhere(brain.mask > 0.5)[::7]
    world = nib.affines.apply_affine(pose @ brain.affine, inside) @ turn
    side, front, back, top, bottom = protocol.margin_mm
    lower = world.min(axis=0) - np.array([side, back, bottom])
    upper = world.max(axis=0) + np.array([side, front, top])
    voxel = np.array(protocol.voxel_mm) * spacing_scale
    count = np.ceil((upper - lower) / voxel).astype(int)
    straight = np.diag([*voxel, 1.0])
    straight[:3, 3] = (lower + upper) / 2 - voxel * (count - 1) / 2
    ornt = nib.orientations.axcodes2ornt(protocol.axes)
    back_to_ras = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    affine = straight @ nib.orientations.inv_ornt_aff(back_to_ras, tuple(count))
    rotation = np.eye(4)
    rotation[:3, :3] = turn
    shape = tuple(int(count[int(axis)]) for axis in ornt[:, 0])
    return rotation @ affine, shape


def main(argv: Sequence[str] | None = None) -> int:
    """Write a dataset from the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Command line without the program's name.

    Returns
    -------
    int
        0, or 1 if the dataset exists.
    """
    parser = argparse.ArgumentParser(description="Write a BIDS dataset of phantom heads.")
    parser.add_argument("root", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing-scale", type=float, default=1.0, metavar="FACTOR")
    args = parser.parse_args(argv)
    try:
        write_dataset(args.root, args.subjects, args.seed, args.spacing_scale)
    except FileExistsError as error:
        print(f"phantoms: {error}", file=sys.stderr)
        return 1
    return 0


def _sample_points(
    brain: Brain,
    to_template: Matrix,
    affine: Matrix,
    shape: Sequence[int],
    rng: np.random.Generator,
) -> tuple[Array, tuple[int, ...]]:
    """Return painting-grid indices to sample, shape (3, X, Y, Z), and how many share a voxel.

    Voxels larger than the painting grid are sampled several times along an axis and averaged
    afterwards: this is the partial volume. The warp is a few mm, over waves of 100 to 220 mm.
    """
    sizes = nib.affines.voxel_sizes(affine)
    step = float(brain.affine[0, 0])
    parts = tuple(max(1, round(float(size) / (step + 0.1))) for size in sizes)
    fine = [(np.arange(n * f) + 0.5) / f - 0.5 for n, f in zip(shape, parts, strict=True)]
    i, j, k = np.ix_(*[line.astype(np.float32) for line in fine])
    mm = tuple(line * np.float32(size) for line, size in zip((i, j, k), sizes, strict=True))
    matrix = np.linalg.inv(brain.affine) @ to_template
    points = np.empty((3, i.size, j.size, k.size), np.float32)
    for row, point in zip(matrix[:3].astype(np.float32), points, strict=True):
        point[:] = row[0] * i + row[1] * j + row[2] * k + row[3]
        point += np.float32(7.0 / step) * waves(mm, 3, (100.0, 220.0), rng)
    return points, parts


def _average(fine: Array, parts: Sequence[int]) -> Array:
    """Return the mean of each block of `parts` samples."""
    shape = [size for n, f in zip(fine.shape, parts, strict=True) for size in (n // f, f)]
    return fine.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())
