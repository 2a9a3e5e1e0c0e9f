"""The border of a mask: how far each voxel is from it, and the mask with its border moved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .volume import Array, Mask


def signed_distance(mask: Mask, sizes: NDArray) -> Array:
    """Distance to the border of a mask, negative inside it.

    Parameters
    ----------
    mask : ndarray of bool
        (X, Y, Z), with at least one voxel.
    sizes : ndarray
        Edges of the voxels in mm (3,).

    Returns
    -------
    ndarray
        (X, Y, Z) float32 in mm: outside, to the centre of the nearest voxel of the mask; inside,
        minus that to the nearest voxel outside, or minus the grid's diagonal if there is none.
    """
    if mask.all():
        return np.full(mask.shape, -np.linalg.norm(mask.shape * sizes), np.float32)
    outer, inner = (ndimage.distance_transform_edt(m, sampling=sizes) for m in (~mask, mask))
    return np.asarray(outer - inner, np.float32)


def move(mask: Mask, sizes: NDArray, distance_mm: float) -> Mask:
    """Grow a mask (X, Y, Z) by so many mm, or shrink it if negative, within its grid.

    Distances are those between voxel centres: less than a voxel changes nothing.
    """
    distance, limit = signed_distance(mask, sizes), np.float32(distance_mm)
    return distance <= limit if distance_mm > 0 else distance < limit
