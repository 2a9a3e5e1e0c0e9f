"""Intensity classes: an image and its brain mask become a map to paint at random.

A head that ends close to its brain is extended beyond, so that necks are learnt, too: fields of
view often end at the brain, and padded scans end there in a plane, with air beyond. A network that
never saw a neck takes every neck for brain.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..image.head import head_of
from ..image.masks import Mask

LOG = logging.getLogger("singlestrip_bids")

INSIDE, OUTSIDE = 10, 6  # SingleStrip, section 2.1
CLASSES = 1 + OUTSIDE + INSIDE  # with 0, what lies outside the field of view
EACH = 3  # inside, for each of several structures
_LEVELS = 1024  # intensities are told apart to one part in so many


@dataclass(frozen=True)
class Source:
    """One labelled volume to draw training images from; tensors (1, 1, X, Y, Z) in float32."""

    classes: Tensor  # class map, 0 to 16 (more where there are structures)
    image: Tensor  # real intensities in [0, 1]
    mask: Tensor  # brain mask or pseudo-label, in [0, 1]
    centre: Tensor  # (3,) of mass of the mask, in voxels
    extended: bool = False  # whether both go on beyond the grid as they are at its edges
    fine: Tensor | None = None  # the mask again, in voxels half as large: (1, 1, 2X, 2Y, 2Z)
    parts: Tensor | None = None  # numbers of its structures, in voxels as large or half as large
    structures: int = 0  # how many there may be
    turned: bool = False  # whether other heads may lie otherwise, as they like

    @property
    def count(self) -> int:
        """How many greys its class map takes, that of 0 among them."""
        return 1 + OUTSIDE + (self.structures + 1) * inside_each(self.structures)

    def to(self, device: torch.device) -> Source:
        """Return the same on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: t.to(device) for n, t in tensors.items() if isinstance(t, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


def source(classes: Tensor, image: Tensor, mask: Tensor) -> Source:
    """Bundle (X, Y, Z) tensors on one grid into a :class:`Source`."""
    points = (mask > 0.5).nonzero().float()
    return Source(
        classes[None, None].float(), image[None, None], mask[None, None].float(), points.mean(0)
    )


def inside_each(structures: int) -> int:
    """Say how many intensity classes each part of the brain gets: ten if it is one."""
    return max(min(EACH, 240 // (structures + 1)), 1) if structures else INSIDE


def class_map(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    seed: int,
    voxels: int = 20_000,
    parts: NDArray[np.uint8] | None = None,
    structures: int = 0,
) -> NDArray[np.uint8]:
    """Assign every voxel of an image (X, Y, Z) in [0, 1] to one of 16 intensity classes.

    They are 0 outside the field of view ``inside``, 1 to 6 outside the brain ``mask`` and 7 to 16
    inside it, darkest first. A mixture is fitted to so many ``voxels``, drawn at random. Where
    ``parts`` numbers structures of the brain, each has classes of its own, and so has the rest.

    Notes
    -----
    SingleStrip, section 2.1. The classes are clusters of intensity, not anatomy.
    """
    classes, each = np.zeros(image.shape, dtype=np.uint8), inside_each(structures)
    regions = [(inside & ~mask, OUTSIDE, 1), (inside & mask, each, 1 + OUTSIDE)]
    if parts is not None:
        regions[1:] = [
            (inside & mask & (parts == number), each, 1 + OUTSIDE + number * each)
            for number in range(structures + 1)
        ]
    for region, count, first in regions:
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


# shares of the edge of the grid, about a centimetre of a human head
NEAR = 1 / 24  # from the brain to an end that is close
ABRUPT = 1 / 32  # within which the cross-section of a head vanishes if it was cut
LARGE, SMALL = 0.5, 0.05  # cross-sections before and after a cut, of the largest


def extend_fields_of_view(sources: Sequence[Source], size: int) -> list[Source]:
    """Add those heads again, without an end, that end close to their brain."""
    extended = [head for one in sources if (head := extend_field_of_view(one, size)) is not None]
    if extended:
        LOG.info(
            "The labelled head ends close to its brain: images of the first training show it "
            "with an extended field of view."
        )
    return [*sources, *extended]


def extend_field_of_view(origin: Source, size: int) -> Source | None:
    """Continue a head that ends close to its brain; None if it does not.

    Beyond its end classes and intensities are as at the nearest place that is within and not
    brain. The model's grid is ``size`` voxels along each edge.
    """
    classes, image = (volume[0, 0].cpu().numpy() for volume in (origin.classes, origin.image))
    kept = within_ends(head_of(image), round(ABRUPT * size)) | (classes > OUTSIDE)
    classes = np.where(kept, classes, np.float32(0))
    if distance_to_end(classes) >= NEAR * size:
        return None
    where = _nearest(classes)
    device = origin.classes.device
    further = [torch.from_numpy(v[where]).to(device)[None, None] for v in (classes, image)]
    return replace(origin, classes=further[0], image=further[1], extended=True)


def within_ends(head: Mask, width: int) -> Mask:
    """Return where a head (X, Y, Z) can lie: not beyond a plane in which it ends, as if padded.

    Where it was cut its cross-section vanishes within ``width`` planes.
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
    """Return how many voxels lie between brain and end of the field of view, 1 at least."""
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
