"""Segmentations of several structures: numbers on a scan's grid, and shares on the model's.

A label may tell structures apart within the brain. Between files they go by their index in the
look-up table; within the app by their number, 1 to K in the order of that table, 0 elsewhere.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .grid import Grid, HalvedGrid, conform
from .masks import Mask, box
from .resampling import Array

Numbers = NDArray[np.uint8]  # (X, Y, Z), a structure's number in every voxel
Shares = NDArray[np.uint8]  # (K, X, Y, Z), what each structure has of it, in steps of 1/255
Kind = TypeVar("Kind", bound=np.generic)
MOST = 248  # structures, so that their intensity classes fit a byte, too
STEPS = 255


@dataclass(frozen=True)
class Structure:
    """A line of a look-up table."""

    index: int  # its voxels in a file
    name: str
    colour: str  # as ``#rrggbb``


def colour_of(index: int) -> str:
    """Choose a colour for a structure that has none; neighbours are told apart."""
    hue = index * 0.618034 % 1  # the golden ratio: never close to the last ones
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.2 * (index % 3), 0.95)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def numbered(indices: NDArray[np.int64], structures: Sequence[Structure]) -> Numbers:
    """Replace indices (X, Y, Z) by numbers; those of no structure become 0."""
    table = np.zeros(int(indices.max()) + 1, np.uint8)
    for number, one in enumerate(structures, 1):
        if one.index < len(table):
            table[one.index] = number
    return table[indices]


def indexed(numbers: Numbers, structures: Sequence[Structure]) -> NDArray[np.int64]:
    """Undo :func:`numbered`."""
    return np.array([0, *(one.index for one in structures)])[numbers]


def conform_numbers(
    numbers: Numbers, affine: NDArray, grid: Grid | HalvedGrid, fill: Mask | None = None
) -> Numbers:
    """Bring numbers to the model's grid: each voxel is of what has most of it."""
    best: Array | None = None
    for number in np.unique(numbers):
        placed = conform((numbers == number).astype(np.float32), affine, grid, fill).data
        if best is None:
            best, found = placed, np.full(placed.shape, number, np.uint8)
        else:
            found[placed > best] = number
            best = np.maximum(best, placed)
    return found


def most(shares: NDArray, mask: Mask) -> Numbers:
    """Find what has most of each voxel of a mask, by its number; 0 where there is nothing.

    The mask may be in voxels twice as large.
    """
    if mask.shape != shares.shape[1:]:
        mask = doubled(mask)
    numbers, within = np.zeros(mask.shape, np.uint8), shares[:, mask]
    numbers[mask] = np.where(within.max(axis=0) > 0, within.argmax(axis=0) + 1, 0)
    return numbers


def pack_numbers(numbers: Numbers) -> bytes:
    """Compress a volume of numbers, many of which are held at a time."""
    return zlib.compress(numbers.tobytes(), level=1)


def unpack_numbers(packed: bytes, shape: Sequence[int]) -> Numbers:
    """Undo :func:`pack_numbers`."""
    flat = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    return flat.reshape(shape).copy()


def doubled(mask: NDArray[Kind]) -> NDArray[Kind]:
    """Repeat every voxel of a volume (X, Y, Z) along each axis: (2X, 2Y, 2Z)."""
    return mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def coarsened_numbers(numbers: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Take what has most of each block of 2³ voxels, unless the shape is that already."""
    if numbers.shape == shape:
        return numbers
    x, y, z = shape
    blocks = numbers.reshape(x, 2, y, 2, z, 2).transpose(0, 2, 4, 1, 3, 5).reshape(x, y, z, 8)
    best, found = np.zeros(shape, np.int8), np.zeros(shape, np.uint8)
    for number in np.unique(numbers):
        count = (blocks == number).sum(axis=3, dtype=np.int8)
        found[count > best] = number
        best = np.maximum(best, count)
    return found


def fill_gaps(numbers: Numbers, mask: Mask) -> Numbers:
    """Cut numbers to a mask; its voxels that are of no structure go to the nearest one that is."""
    place = box(mask)
    inner, within = np.where(mask[place], numbers[place], 0), mask[place]
    if inner.any():
        from scipy import ndimage  # slow to import

        nearest = ndimage.distance_transform_edt(
            inner == 0, return_distances=False, return_indices=True
        )
        inner = np.where(within, inner[tuple(nearest)], 0)
    found = np.zeros_like(numbers)
    found[place] = inner
    return found


def overlaps(one: Numbers, other: Numbers, count: int) -> NDArray[np.float64]:
    """Dice of each of so many structures in two segmentations; NaN where the other has none."""
    sizes = [np.bincount(n.ravel(), minlength=count + 1)[1:] for n in (one, other)]
    both = np.bincount(one[one == other], minlength=count + 1)[1:]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(sizes[1] > 0, 2 * both / (sizes[0] + sizes[1]), np.nan))
