"""Images to the model's grid and back; the only module that resamples by affines.

The model sees every head on an isotropic grid whose axes are the image's own, reordered to the
closest of RAS: no rotation, so that back and forth costs one linear interpolation. The grid holds
the whole field of view, always: it is padded, never cropped. A head of another age or species,
half or twice as wide as the labelled one, comes to a grid of so much finer or coarser voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from nibabel.affines import from_matvec, voxel_sizes
from numpy.typing import NDArray

from .fill import bridge, split
from .masks import Mask, box, clean
from .nifti import SAME_ORDER, Geometry, Image, to_ras
from .resampling import Array, sample, weights

SMALL = 1e-3  # no share of data is less
PERCENTILES = (0.5, 99.0)  # the intensities that become 0 and 1


@dataclass(frozen=True)
class Grid:
    """The grid on which a network sees scans: isotropic, axes closest to RAS."""

    voxel_size: float  # edge of the voxels in mm
    size: int  # least size of the grid, in voxels
    multiple: int  # what its size is a multiple of, in voxels

    def place(self, shape: tuple[int, ...], affine: NDArray) -> Geometry:
        """Lay the grid over a canonical image: centred, covering its whole field of view."""
        sizes = voxel_sizes(affine)
        extent = np.array(shape) * sizes
        counts = np.maximum(np.ceil(extent / self.voxel_size - 1e-3).astype(int), self.size)
        counts = -(-counts // self.multiple) * self.multiple
        placed = np.eye(4)
        placed[:3, :3] = affine[:3, :3] / sizes * self.voxel_size
        centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
        placed[:3, 3] = centre - placed[:3, :3] @ ((counts - 1) / 2)
        return tuple(int(n) for n in counts), placed


def halved(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the affine (4, 4) of a grid that covers the same in voxels half as large."""
    return np.asarray(affine @ from_matvec(np.eye(3) / 2, np.full(3, -0.25)))


@dataclass(frozen=True)
class HalvedGrid:
    """A grid in voxels half as large."""

    whole: Grid

    @property
    def voxel_size(self) -> float:
        """Edge of the voxels in mm."""
        return self.whole.voxel_size / 2

    def place(self, shape: tuple[int, ...], affine: NDArray) -> Geometry:
        """Lay the grid over a canonical image, as the whole one."""
        counts, placed = self.whole.place(shape, affine)
        return tuple(2 * n for n in counts), halved(placed)


@dataclass(frozen=True)
class Conformed:
    """A volume on the model's grid."""

    data: Array  # (X, Y, Z) float32
    affine: NDArray[np.float64]  # voxel indices of this grid to mm (4, 4)
    inside: Mask  # (X, Y, Z), whether the voxel lies in the image's field of view

    @property
    def voxel_size(self) -> float:
        """Edge of the voxels in mm."""
        return float(voxel_sizes(self.affine)[0])


def _positions(matrix: NDArray, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Where the planes of a grid lie along each axis of a parallel one, in its voxels."""
    return [matrix[axis, axis] * np.arange(n) + matrix[axis, 3] for axis, n in enumerate(shape)]


def conform(
    data: NDArray, affine: NDArray, grid: Grid | HalvedGrid, fill: Mask | None = None
) -> Conformed:
    """Bring a volume (X, Y, Z) to a grid, intensities as they are; 0 outside the field of view.

    Where ``fill`` says that voxels hold no data the others alone count.
    """
    gone = None if fill is None else to_ras(fill, np.asarray(affine))[0]
    data, affine = to_ras(np.asarray(data), np.asarray(affine))
    if gone is not None:  # the field of view ends where no data begin
        place = box(~gone)
        data, gone = data[place], gone[place]
        affine = affine @ from_matvec(np.eye(3), [edge.start for edge in place])
    shape, placed = grid.place(data.shape, affine)
    matrix = np.linalg.inv(affine) @ placed
    positions = _positions(matrix, shape)
    inside = np.ones(shape, dtype=bool)
    for axis, (index, n) in enumerate(zip(positions, data.shape, strict=True)):
        reach = max(n, matrix[axis, axis]) / 2 + 1e-6  # at least one voxel of a single slice
        within = abs(index - (n - 1) / 2) < reach
        inside &= within.reshape([-1 if a == axis else 1 for a in range(3)])
    # whole blocks of voxels are averaged, the largest that fit into a voxel of the model
    blocks = np.maximum(np.floor(grid.voxel_size / voxel_sizes(affine) + 1e-3).astype(int), 1)
    lines = list(map(weights, data.shape, positions, blocks.tolist()))
    if gone is None:
        sampled = sample(data, lines)
    else:
        weight = sample(~gone, lines)
        known = sample(np.where(gone, 0, data), lines) / np.maximum(weight, np.float32(SMALL))
        outside, gaps = split(weight, inside)
        inside &= ~outside
        sampled = bridge(known.astype(np.float32), gaps, inside & ~gaps)
    return Conformed(np.where(inside, sampled, np.float32(0)), placed, inside)


def scale_intensity(volume: Conformed) -> Conformed:
    """Map the 0.5th to the 99th percentile of the field of view to [0, 1] and clip."""
    low, high = np.percentile(volume.data[volume.inside], PERCENTILES)
    if high <= low:
        high = low + max(float(np.ptp(volume.data[volume.inside])), 1e-6)
    scaled = np.clip((volume.data - low) / (high - low), 0, 1).astype(np.float32)
    return Conformed(np.where(volume.inside, scaled, np.float32(0)), volume.affine, volume.inside)


def conform_image(image: Image, grid: Grid | HalvedGrid) -> Conformed:
    """Bring an image to a grid and its intensities to [0, 1]."""
    return scale_intensity(conform(image.data, image.affine, grid, image.fill))


def restore(data: NDArray, affine: NDArray, image: Image) -> Array:
    """Sample a volume on the model's grid (``affine``) linearly on the grid of ``image``."""
    lines = _lines_back(data.shape, affine, image)
    return _from_ras(sample(data, lines), image)


def restore_mask(
    probability: NDArray, affine: NDArray, image: Image, cleaned: bool = True
) -> Mask:
    """Interpolate a probability or mask on the model's grid, and cut it at one half.

    Only the box in which the mask can lie is sampled. If ``cleaned``, the largest component alone
    is kept, and its holes are filled.
    """
    lines = _lines_back(probability.shape, affine, image)
    found = np.zeros([len(line) for line in lines], dtype=bool)
    target, within = _reach(lines, probability > 0.5)
    if within:
        cut = sample(probability, within) > 0.5
        found[target] = clean(cut) if cleaned else cut
    return np.asfortranarray(_from_ras(found, image))  # as NIfTI has it


def restore_most(shares: NDArray[np.uint8], affine: NDArray, image: Image) -> NDArray[np.uint8]:
    """Interpolate shares (K, X, Y, Z) on the grid of ``image``; 1 to K, of which there is most.

    It is 0 where there is nothing of any. Each is sampled in the box that it reaches.
    """
    lines = _lines_back(shares.shape[1:], affine, image)
    best = np.zeros([len(line) for line in lines], np.float32)
    found = np.zeros(best.shape, np.uint8)
    for number, share in enumerate(shares, 1):
        source = box(share > 0)
        target, within = _reach(lines, share > 0)
        if within:
            within = [line[:, s] for line, s in zip(within, source, strict=True)]
            here = sample(share[source], within)
            more = here > best[target]
            best[target][more] = here[more]
            found[target][more] = number
    return np.asfortranarray(_from_ras(found, image))


def _reach(lines: list[Array], source: Mask) -> tuple[tuple[slice, ...], list[Array]]:
    """Find the box of a grid that a mask reaches, and the weights there; none if it is empty."""
    rows = [
        np.flatnonzero(line[:, s].any(axis=1)) for line, s in zip(lines, box(source), strict=True)
    ]
    if not all(len(row) for row in rows):
        return (), []
    target = tuple(slice(row[0], row[-1] + 1) for row in rows)
    return target, [line[part] for line, part in zip(lines, target, strict=True)]


def _lines_back(shape: tuple[int, ...], affine: NDArray, image: Image) -> list[Array]:
    """Weights from the model's grid to that of ``image``, whose axes are turned to RAS."""
    turned, source = to_ras(image.data, image.affine)
    positions = _positions(np.linalg.inv(affine) @ source, turned.shape)
    return [weights(n, index) for n, index in zip(shape, positions, strict=True)]


def _from_ras(data: NDArray, image: Image) -> NDArray:
    """Put back the axes that were turned to the closest of RAS."""
    ornt = orientations.io_orientation(image.affine)
    back = orientations.ornt_transform(SAME_ORDER, ornt)
    return orientations.apply_orientation(data, back)
