"""The order and the directions of voxel axes: what changes them, resampling nothing."""

from __future__ import annotations

import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray

from .errors import BadData

Grid = tuple[tuple[int, ...], NDArray]
"""Shape (X, Y, Z), and affine from voxel indices to mm (4, 4)."""

SAME_ORDER = np.array([[0, 1], [1, 1], [2, 1]])
TOLERANCE = 0.05  # of a voxel: programs round affines, or take the other form of a header


def to_ras(data: NDArray, affine: NDArray) -> tuple[NDArray, NDArray]:
    """Reorder and flip axes to the closest of RAS."""
    ornt = orientations.io_orientation(affine)
    if np.isnan(ornt).any():
        raise BadData(f"affine {affine.tolist()}: its axes have no clear directions; mend it.")
    moved = orientations.apply_orientation(data, ornt)
    return moved, affine @ orientations.inv_ornt_aff(ornt, data.shape)


@np.errstate(all="ignore")  # broken affines
def reordering(one: Grid, other: Grid) -> NDArray | None:
    """Find how to reorder and flip the axes of a grid so that it is another.

    Parameters
    ----------
    one, other : tuple
        The grids.

    Returns
    -------
    ndarray or None
        As of `nibabel.orientations` (3, 2); None where the grids are not the same.
    """
    if min(one[0]) < 1 or not np.isfinite([one[1], other[1]]).all():
        return None
    if _coincide(one, other):
        return SAME_ORDER
    ours, others = (orientations.io_orientation(affine) for _, affine in (one, other))
    if np.isnan([ours, others]).any():
        return None
    order = orientations.ornt_transform(ours, others)
    moved = orientations.apply_orientation(np.broadcast_to(np.False_, one[0]), order).shape
    placed = one[1] @ orientations.inv_ornt_aff(order, one[0])
    return order if _coincide((moved, placed), other) else None


def _coincide(one: Grid, other: Grid) -> bool:
    """Tell whether all corner voxels of two grids lie at the same places."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(one[0]) - 1)
    apart = np.abs(apply_affine(one[1] - other[1], corners)).max()
    edge = min(voxel_sizes(affine).min() for _, affine in (one, other))
    return one[0] == other[0] and bool(apart <= TOLERANCE * edge)
