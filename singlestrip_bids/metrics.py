"""Agreement of two binary masks: Dice overlap and surface distance.

The app compares masks that it has made itself. Comparing with a second reader's is for benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .masks import box

BoolArray = NDArray[np.bool_]


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """Return the Dice coefficient ``2 |A ∩ B| / (|A| + |B|)`` of two masks.

    Parameters
    ----------
    a, b : array_like
        Masks of the same shape; nonzero is inside.

    Returns
    -------
    float
        Between 0 and 1; 1 if both masks are empty.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    Dice, L. R. (1945). Measures of the amount of ecologic association between species.
    Ecology 26(3), 297-302.

    Examples
    --------
    >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
    0.6666666666666666
    """
    first, second = _masks(a, b)
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2.0 * int((first & second).sum()) / total


def hausdorff95(a: ArrayLike, b: ArrayLike, voxel_size: Sequence[float]) -> float:
    """Return the 95th percentile of the symmetric surface distances, in mm.

    The surface of a mask is its voxels with at least one of the six face neighbours outside the
    mask or outside the volume. The distance of each surface voxel of ``a`` to the closest
    surface voxel of ``b``, and of each of ``b`` to the closest of ``a``, are pooled, and the 95th
    percentile (linear interpolation) is taken over the pool. Some authors take the larger of the
    two directed percentiles instead, which is never smaller than the pooled one.

    Parameters
    ----------
    a, b : array_like
        Three-dimensional masks of the same shape; nonzero is inside.
    voxel_size : sequence of float
        Edge lengths of a voxel in mm, one an axis.

    Returns
    -------
    float
        Distance in mm: 0 if both masks are empty, infinity if one is.

    Raises
    ------
    ValueError
        If the shapes differ, or `voxel_size` does not hold one positive length an axis.

    References
    ----------
    Huttenlocher, D. P. et al. (1993). Comparing images using the Hausdorff distance. IEEE TPAMI
    15(9), 850-863. The ranked (here: 95 %) form of its Section III, pooled over both
    directions.

    Examples
    --------
    >>> line, shifted = np.zeros((2, 5, 5, 5))
    >>> line[:, 1, 1] = shifted[:, 3, 1] = 1
    >>> hausdorff95(line, shifted, (1, 1.5, 1))
    3.0
    """
    first, second = _masks(a, b)
    spacing = [float(size) for size in voxel_size]
    if len(spacing) != first.ndim or not all(0 < size < np.inf for size in spacing):
        raise ValueError(
            f"voxel_size {spacing} is not one positive length for each of {first.ndim} axes"
        )
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else float("inf")
    place = box(first | second)
    one, two = _surface(first[place]), _surface(second[place])
    to_two = ndimage.distance_transform_edt(~two, sampling=spacing)[one]
    to_one = ndimage.distance_transform_edt(~one, sampling=spacing)[two]
    return float(np.percentile(np.concatenate([to_two, to_one]), 95))


def _masks(a: ArrayLike, b: ArrayLike) -> tuple[BoolArray, BoolArray]:
    """Return both masks as booleans, after checking that they have the same shape."""
    first, second = np.asarray(a) != 0, np.asarray(b) != 0
    if first.shape != second.shape:
        raise ValueError(
            f"masks have different shapes, {first.shape} and {second.shape}: "
            "resample one to the grid of the other"
        )
    return first, second


def _surface(mask: BoolArray) -> BoolArray:
    """Return the mask voxels with a face neighbour outside the mask or the array."""
    return mask & ~ndimage.binary_erosion(mask, border_value=0)
