"""Intensity mixtures: an image and its brain mask become a map of classes to paint at random."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

INSIDE, OUTSIDE = 10, 6  # SingleStrip, section 2.1
CLASSES = 1 + OUTSIDE + INSIDE  # with 0, what lies outside the field of view
_LEVELS = 1024  # intensities are told apart to one part in so many


def class_map(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    seed: int,
    voxels: int = 20_000,
) -> NDArray[np.uint8]:
    """Assign every voxel to one of 16 intensity classes, 6 outside and 10 inside the brain.

    Parameters
    ----------
    image : ndarray
        (X, Y, Z) intensities in [0, 1].
    mask : ndarray of bool
        (X, Y, Z) brain mask or pseudo-mask.
    inside : ndarray of bool
        (X, Y, Z) field of view; voxels outside it become class 0.
    seed : int
        Of the sample and of the mixtures.
    voxels : int
        Number of voxels that a mixture is fitted to, drawn at random.

    Returns
    -------
    ndarray of uint8
        (X, Y, Z): 0 outside the field of view; 1 to 6 outside the brain and 7 to 16 inside it,
        darkest first.

    Notes
    -----
    SingleStrip, section 2.1. The classes are clusters of intensity, not anatomy.
    """
    classes = np.zeros(image.shape, dtype=np.uint8)
    for region, count, first in (
        (inside & ~mask, OUTSIDE, 1),
        (inside & mask, INSIDE, 1 + OUTSIDE),
    ):
        values = image[region]
        if values.size:
            classes[region] = first + _cluster(values, count, seed, voxels)
    return classes


def _cluster(values: NDArray[np.float32], count: int, seed: int, voxels: int) -> NDArray[np.uint8]:
    """Index of the mixture component of each value, components in order of their means."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and masking needs none
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    sample = values if values.size <= voxels else rng.choice(values, voxels, replace=False)
    count = min(count, np.unique(sample).size)
    if count == 1:
        return np.zeros(values.shape, dtype=np.uint8)
    mixture = GaussianMixture(count, reg_covar=1e-6, random_state=seed, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(sample.reshape(-1, 1).astype(np.float64))
    rank = np.argsort(np.argsort(mixture.means_.ravel())).astype(np.uint8)
    levels = np.linspace(0, 1, _LEVELS).reshape(-1, 1)
    table = rank[mixture.predict(levels)]
    return table[np.clip(np.rint(values * (_LEVELS - 1)), 0, _LEVELS - 1).astype(int)]
