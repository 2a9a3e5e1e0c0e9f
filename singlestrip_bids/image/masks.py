"""Binary masks as arrays: their box, largest part, bits, overlap, volume and border."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .resampling import Array

Mask = NDArray[np.bool_]


def box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask; empty if the mask is."""
    planes = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(p[0], p[-1] + 1) if len(p) else slice(0) for p in planes)


def clean(mask: Mask) -> Mask:
    """Keep the largest connected component and fill its holes; an empty mask stays empty."""
    place = box(mask)
    parts, count = ndimage.label(mask[place])
    cleaned = np.zeros_like(mask)
    if count:
        largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        around = ndimage.label(np.pad(~largest, 1, constant_values=True))[0]
        cleaned[place] = (around != around[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return cleaned


def pack(mask: Mask) -> bytes:
    """Compress a mask to a few kilobytes."""
    return zlib.compress(np.packbits(mask).tobytes(), level=1)


def unpack(packed: bytes, shape: tuple[int, ...]) -> Mask:
    """Undo :func:`pack`."""
    bits = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def blank(packed: bytes) -> bool:
    """Tell whether a packed mask is empty."""
    return not any(zlib.decompress(packed))


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Dice coefficient ``2 |A ∩ B| / (|A| + |B|)`` of two masks, 1 if both are empty.

    Nonzero is inside. Raises ValueError if the shapes differ.

    References
    ----------
    Dice, L. R. (1945). Measures of the amount of ecologic association between species.
    Ecology 26(3), 297-302.

    Examples
    --------
    >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
    0.6666666666666666
    """
    first, second = np.asarray(a) != 0, np.asarray(b) != 0
    if first.shape != second.shape:
        raise ValueError(
            f"masks have different shapes, {first.shape} and {second.shape}: "
            "resample one to the grid of the other"
        )
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2.0 * int((first & second).sum()) / total


def millilitres(mask: Mask, affine: NDArray) -> float:
    """Volume of a mask (X, Y, Z) on the grid of ``affine``."""
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def signed_distance(mask: Mask, sizes: NDArray) -> Array:
    """Distance (X, Y, Z) in mm to the border of a mask, negative inside; ``sizes`` of voxels (3,).

    Outside, to the centre of the nearest voxel of the mask, which has one; inside, minus that to
    the nearest voxel outside, or minus the grid's diagonal if there is none.
    """
    if mask.all():
        return np.full(mask.shape, -np.linalg.norm(mask.shape * sizes), np.float32)
    outer, inner = (ndimage.distance_transform_edt(m, sampling=sizes) for m in (~mask, mask))
    return np.asarray(outer - inner, np.float32)


def move_border(mask: Mask, sizes: NDArray, distance_mm: float) -> Mask:
    """Grow a mask (X, Y, Z) by so many mm, or shrink it if negative, within its grid.

    Distances are those between voxel centres: less than a voxel changes nothing.
    """
    distance, limit = signed_distance(mask, sizes), np.float32(distance_mm)
    return distance <= limit if distance_mm > 0 else distance < limit
