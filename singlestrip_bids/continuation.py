"""A labelled head that ends close to its brain is continued beyond, so that necks are learnt too.

Fields of view often end at the brain, and padded scans end there in a plane, with air beyond. A
network that never saw a neck takes every neck for brain.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from .frame import head_of
from .labels import OUTSIDE
from .masks import Mask
from .synthesis import Source

# shares of the edge of the grid, about a centimetre of a human head
NEAR = 1 / 24  # from the brain to an end that is close
ABRUPT = 1 / 32  # within which the cross-section of a head vanishes if it was cut
LARGE, SMALL = 0.5, 0.05  # cross-sections before and after a cut, of the largest


def continued(origin: Source, size: int) -> Source | None:
    """Continue a head that ends close to its brain.

    Parameters
    ----------
    origin : Source
        A labelled scan.
    size : int
        Edge of the model's grid in voxels.

    Returns
    -------
    Source or None
        The same head without an end: beyond it classes and intensities are as at the nearest
        place that is within and not brain. None if it does not end close to its brain.
    """
    classes, image = (volume[0, 0].cpu().numpy() for volume in (origin.classes, origin.image))
    kept = within_ends(head_of(image), round(ABRUPT * size)) | (classes > OUTSIDE)
    classes = np.where(kept, classes, np.float32(0))
    if distance_to_end(classes) >= NEAR * size:
        return None
    where = _nearest(classes)
    device = origin.classes.device
    further = [torch.from_numpy(v[where]).to(device)[None, None] for v in (classes, image)]
    return replace(origin, classes=further[0], image=further[1], endless=True)


def within_ends(head: Mask, width: int) -> Mask:
    """Find the planes between which a head lies if it ends in a plane, as in padded scans.

    Parameters
    ----------
    head : ndarray of bool
        (X, Y, Z), not empty.
    width : int
        Planes within which a cross-section vanishes if the head was cut.

    Returns
    -------
    ndarray of bool
        (X, Y, Z), false in all planes beyond such an end.
    """
    within = np.ones(head.shape, dtype=bool)
    for axis, way in itertools.product(range(3), (1, -1)):
        planes = np.moveaxis(within, axis, 0)[::way]
        areas = np.moveaxis(head, axis, 0)[::way].sum((1, 2))
        last = int(np.flatnonzero(areas >= LARGE * areas.max())[-1])
        if (areas[last + 1 + width :] <= SMALL * areas.max()).all():
            planes[last + 1 :] = False
    return within


def distance_to_end(classes: NDArray[np.float32]) -> float:
    """Measure how many voxels lie between a brain and the end of its field of view, 1 at least.

    Parameters
    ----------
    classes : ndarray
        (X, Y, Z) as of `labels.class_map`; some of it is brain.
    """
    left = ndimage.distance_transform_edt(np.pad(classes > 0, 1))[1:-1, 1:-1, 1:-1]
    return float(left[classes > OUTSIDE].min())


def _nearest(classes: NDArray[np.float32]) -> tuple[NDArray[np.intp], ...]:
    """Take for every voxel itself, or the nearest that is in the field of view and not brain."""
    where = np.indices(classes.shape)
    outside, tissue = classes == 0, (classes > 0) & (classes <= OUTSIDE)
    if tissue.any():
        nearest = ndimage.distance_transform_edt(
            ~tissue, return_distances=False, return_indices=True
        )
        where[:, outside] = nearest[:, outside]
    return tuple(where)
