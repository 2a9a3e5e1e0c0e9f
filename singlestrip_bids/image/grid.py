"""Images to the model's grid and back; the only module that resamples by affines.

The model sees every head on an isotropic grid whose axes are the image's own, reordered to the
closest of RAS: no rotation, so that back and forth costs one linear interpolation. The grid holds
the whole field of view, always: it is padded, never cropped. A head of another age or species,
half or twice as wide as the labelled one, comes to a grid of so much finer or coarser voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel import orientations
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import BadData
from .masks import Mask, box, clean, millilitres, support
from .nifti import SAME_ORDER, Geometry, Image, to_ras
from .resampling import Array, sample, weights

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


def conform(data: NDArray, affine: NDArray, grid: Grid) -> Conformed:
    """Bring a volume (X, Y, Z) to a grid, intensities as they are; 0 outside the field of view."""
    data, affine = to_ras(np.asarray(data), np.asarray(affine))
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
    lines = map(weights, data.shape, positions, blocks.tolist())
    sampled = sample(data, list(lines))
    return Conformed(np.where(inside, sampled, np.float32(0)), placed, inside)


def scale_intensity(volume: Conformed) -> Conformed:
    """Map the 0.5th to the 99th percentile of the field of view to [0, 1] and clip."""
    low, high = np.percentile(volume.data[volume.inside], PERCENTILES)
    if high <= low:
        high = low + max(float(np.ptp(volume.data[volume.inside])), 1e-6)
    scaled = np.clip((volume.data - low) / (high - low), 0, 1).astype(np.float32)
    return Conformed(np.where(volume.inside, scaled, np.float32(0)), volume.affine, volume.inside)


def conform_image(image: Image, grid: Grid) -> Conformed:
    """Bring an image to a grid and its intensities to [0, 1]."""
    return scale_intensity(conform(image.data, image.affine, grid))


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
    source = box(probability > 0.5)
    rows = [np.flatnonzero(line[:, s].any(axis=1)) for line, s in zip(lines, source, strict=True)]
    if all(len(row) for row in rows):
        target = tuple(slice(row[0], row[-1] + 1) for row in rows)
        within = [line[part] for line, part in zip(lines, target, strict=True)]
        cut = sample(probability, within) > 0.5
        found[target] = clean(cut) if cleaned else cut
    return np.asfortranarray(_from_ras(found, image))  # as NIfTI has it


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


def working_voxel_size(mask: Mask, affine: NDArray, size: int) -> float:
    """Voxel size in mm with which a grid of ``size``³ holds a whole head around this brain.

    The edge of the grid is 1.75 diameters of the sphere of the brain's volume (an adult human's
    is 147 mm, so 256 mm), not more than the field of view, not less than 1.2 times the brain.
    """
    sizes = voxel_sizes(affine)
    diameter = float((6000 / np.pi * millilitres(mask, affine)) ** (1 / 3))
    brain = max((edge.stop - edge.start) * s for edge, s in zip(box(mask), sizes, strict=True))
    field = max(n * s for n, s in zip(mask.shape, sizes, strict=True))
    edge = max(min(1.75 * diameter, field), 1.2 * brain)
    return float(f"{edge / size:.3g}")


AIR = 0.15  # of the intensities' range; what is brighter belongs to the head
RIM = 0.02  # planes with less of the head than this, against the fullest, are left out
FINEST = 64  # points along an axis at which a head is measured, about
CHANGE = 1.35  # a head must be so many times wider or narrower to be seen at another size
LARGEST = 16  # times the least grid's voxels: no grid gets larger for a head that looks small


def head_of(data: Array) -> Mask:
    """Find the head in intensities (X, Y, Z) in [0, 1]: bright, in one piece, without holes."""
    return clean(ndimage.binary_opening(data > AIR))


def head_width(conformed: Conformed) -> tuple[float, bool]:
    """Measure a head on the model's grid, left to right and back to front; intensities in [0, 1].

    Height says nothing, because fields of view end anywhere between vertex and shoulders. Returns
    the geometric mean of both widths in voxels, and whether the field of view ends within the
    head, which may then be wider.
    """
    step = max(max(conformed.data.shape) // FINEST, 1)
    thin = (slice(None, None, step),) * 3
    head = head_of(conformed.data[thin])
    widths, cut = [], False
    for across in ((1, 2), (0, 2)):
        area = head.sum(axis=across)
        planes = np.flatnonzero(area > RIM * area.max())
        field = np.flatnonzero(conformed.inside[thin].any(axis=across))
        if not len(planes):
            return 0.0, True
        widths.append(planes[-1] - planes[0] + 1)
        cut |= bool(planes[0] <= field[0] or planes[-1] >= field[-1])
    return step * float(np.sqrt(widths[0] * widths[1])), cut


def relative_size(conformed: Conformed, label_width: float) -> float:
    """Tell how many times wider a head is than the labelled one; 1 if they are much alike.

    Both at the voxel size of the label: 1, or above 1.35, or below 1 / 1.35. A field of view that
    cuts the head makes it no smaller.
    """
    width, cut = head_width(conformed)
    ratio = width / label_width
    wider, narrower = ratio > CHANGE, ratio < 1 / CHANGE and not cut
    return ratio if wider or narrower else 1.0


def refuse_stripped(image: Image, brain_ml: float) -> None:
    """Raise BadData if all that is not background is hardly more than a brain (ml).

    A head fills at least 1.5 times its brain's volume, also where the field of view is tight; 1.1
    times leaves room for smaller heads. Without a constant background nothing was stripped: the
    field of view may be as small.
    """
    head = support(image.data)
    filled = millilitres(head, image.affine)
    if filled < 1.1 * brain_ml and not head.all():
        raise BadData(
            f"{image.path}: already skull-stripped, it seems: only {filled:.0f} ml are not "
            f"background, and the labelled brain has {brain_ml:.0f} ml; give the scan with its "
            "skull."
        )


@dataclass(frozen=True)
class Frame:
    """How a model sees heads: those of the label's size on its grid, others finer or coarser."""

    grid: Grid  # on which the labelled head is seen
    brain_ml: float  # volume of the labelled brain
    head_width: float  # of the labelled head, in voxels of the grid

    @classmethod
    def around(
        cls,
        pairs: Sequence[tuple[Image, Mask]],
        size: int,
        multiple: int,
        voxel_size: float | None,
    ) -> Frame:
        """Settle the frame of labelled scans: medians of their sizes.

        Without a voxel size (mm), that is taken with which a grid of ``size`` holds the labelled
        heads.

        Raises
        ------
        BadData
            No head is found in a scan.
        """
        voxel_size = voxel_size or float(
            np.median([working_voxel_size(mask, image.affine, size) for image, mask in pairs])
        )
        grid = Grid(voxel_size, size, multiple)
        widths = [head_width(conform_image(image, grid))[0] for image, _ in pairs]
        for (image, _), width in zip(pairs, widths, strict=True):
            if not width:
                raise BadData(f"{image.path}: no head is found in it; label another scan.")
        brain_ml = float(np.median([millilitres(mask, image.affine) for image, mask in pairs]))
        return cls(grid, brain_ml, float(np.median(widths)))

    def conform(self, image: Image) -> Conformed:
        """Bring a scan to the model's grid, intensities to [0, 1].

        Raises BadData if the scan is already skull-stripped.
        """
        conformed = conform_image(image, self.grid)
        ratio = relative_size(conformed, self.head_width)
        # what looks like a small head may be a brain without its skull: no smaller brain then
        refuse_stripped(image, self.brain_ml * max(ratio, 1) ** 3)
        finer = replace(self.grid, voxel_size=self.grid.voxel_size * ratio)
        if ratio == 1 or (ratio < 1 and _too_large(image, finer)):
            return conformed
        return conform_image(image, finer)


def _too_large(image: Image, grid: Grid) -> bool:
    """Tell whether voxels so fine, over all of a field of view, would take too much memory."""
    shape, _ = grid.place(image.data.shape, image.affine)
    return math.prod(shape) > LARGEST * grid.size**3
