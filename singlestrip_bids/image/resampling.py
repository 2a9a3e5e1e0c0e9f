"""Linear interpolation between grids whose axes are parallel: one matrix for each axis.

Three products of matrices cost a fraction of visiting each voxel with its eight neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def weights(count: int, positions: NDArray[np.float64], block: int = 1) -> Array:
    """Weights (m, n) that sample a row of n voxels linearly, after averaging blocks of them.

    Each row sums to 1. ``positions`` (m,) count voxels from the centre of the first; beyond the
    first and last centres the row goes on as it ends. The last block is filled up with the last
    voxel.

    Examples
    --------
    >>> weights(3, np.array([-1.0, 0.25, 2.0]))
    array([[1.  , 0.  , 0.  ],
           [0.75, 0.25, 0.  ],
           [0.  , 0.  , 1.  ]], dtype=float32)
    """
    blocks = -(-count // block)
    places = np.clip((positions - (block - 1) / 2) / block, 0, blocks - 1)
    hats = np.maximum(0, 1 - abs(places[:, None] - np.arange(blocks)))
    fine = np.repeat(hats / block, block, axis=1)
    fine[:, count - 1] += fine[:, count:].sum(axis=1)
    return np.asarray(fine[:, :count], dtype=np.float32)


def sample(data: NDArray, lines: Sequence[NDArray]) -> Array:
    """Apply to each axis of (X, Y, Z), in any order of memory, its matrix (m, n) of `weights`.

    Returns float32 of the three sizes m.
    """
    lines = list(lines)
    for axis, step in enumerate(data.strides):  # voxels are read as they lie: nothing is copied
        if step < 0:
            data, lines[axis] = np.flip(data, axis), np.flip(lines[axis], 1)
    order = sorted(range(3), key=lambda axis: -data.strides[axis])
    first, middle, last = (np.ascontiguousarray(lines[axis], np.float32) for axis in order)
    found = np.ascontiguousarray(data.transpose(order), np.float32) @ last.T
    found = middle @ found
    found = (first @ found.reshape(len(found), -1)).reshape(len(first), *found.shape[1:])
    return found.transpose(np.argsort(order))
