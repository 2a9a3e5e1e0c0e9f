"""What is head in an image on the model's grid: how wide it is, and whether its skull is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import BadData
from .grid import Conformed, Grid, conform
from .masks import Mask, box, clean
from .nifti import Image
from .resampling import Array

AIR = 0.15  # of the intensities' range; what is brighter belongs to the head
CUT = 0.25  # of the largest plane of a head: one so large at an end was cut there
RIM = 0.02  # planes with less of the head than this, against the fullest, are left out
FINEST = 64  # points along an axis at which a head is measured, about
NOISE_POINTS = 128  # points along an axis at which noise is told from tissue, about
WINDOW = 5  # points along each edge of the cube in which it is
ROUGH = 0.5  # of the variance there, shared by no neighbour: noise
BACKGROUND = 0.005  # of the intensities' range
BORDER = 0.065  # of the brain's diameter: no head's border lies so close to that of its brain
THIN = 0.1  # nor so close where there is no skull
DARK = 0.62  # of the brain's median intensity: darker is bone
CHANGE = 1.35  # a head must be so many times wider or narrower to be seen at another size


def head_of(data: Array) -> Mask:
    """Find the head in intensities (X, Y, Z) in [0, 1]: bright, in one piece, without holes."""
    return clean(ndimage.binary_opening(data > AIR))


def head_width(conformed: Conformed, noise: Mask | None = None) -> tuple[float, bool]:
    """Measure a head on the model's grid, left to right and back to front; intensities in [0, 1].

    Height says nothing, because fields of view end anywhere between vertex and shoulders. Returns
    the geometric mean of both widths in voxels, and whether the field of view ends within the
    head, which may then be wider. Where there is ``noise`` (see `find_noise`) there is no head.
    """
    step = max(max(conformed.data.shape) // FINEST, 1)
    thin = (slice(None, None, step),) * 3
    bright = conformed.data if noise is None else np.where(noise, np.float32(0), conformed.data)
    head = head_of(bright[thin])
    widths, cut = [], False
    for across in ((1, 2), (0, 2)):
        area = head.sum(axis=across)
        planes = np.flatnonzero(area > RIM * area.max())
        field = np.flatnonzero(conformed.inside[thin].any(axis=across))
        if not len(planes):
            return 0.0, True
        widths.append(planes[-1] - planes[0] + 1)
        ends = area[[field[0], field[-1]]]
        cut |= bool(ends.max() > CUT * area.max())
    return step * float(np.sqrt(widths[0] * widths[1])), cut


def relative_size(conformed: Conformed, label_width: float, noise: Mask | None = None) -> float:
    """Tell how many times wider a head is than the labelled one; 1 if they are much alike.

    Both at the voxel size of the label: 1, or above 1.35, or below 1 / 1.35. A field of view that
    cuts the head makes it no smaller.
    """
    width, cut = head_width(conformed, noise)
    ratio = width / label_width
    wider, narrower = ratio > CHANGE, ratio < 1 / CHANGE and not cut
    return ratio if wider or narrower else 1.0


def find_noise(image: Image, conformed: Conformed, grid: Grid) -> Mask | None:
    """Find where an image that is bright all around (``conformed``) is noise; else None.

    In noise neighbours have nothing in common, as bright as it may be: the air of MP2RAGE images.
    """
    field = conformed.data[box(conformed.inside)]
    faces = [np.moveaxis(field, axis, 0)[end].ravel() for axis in range(3) for end in (0, -1)]
    if np.mean(np.concatenate(faces) > AIR) <= 0.5:
        return None
    steps = [max(n // NOISE_POINTS, 1) for n in image.data.shape]
    data = image.data[tuple(slice(None, None, step) for step in steps)].astype(np.float32)
    mean = ndimage.uniform_filter(data, WINDOW)
    variance = np.maximum(ndimage.uniform_filter(data**2, WINDOW) - mean**2, 0)
    rough = np.full(data.shape, np.inf, np.float32)
    for axis in range(3):
        change = np.diff(data, axis=axis, append=np.take(data, [-1], axis)) ** 2 / 2
        rough = np.minimum(rough, ndimage.uniform_filter(change, WINDOW))
    noisy = (rough > ROUGH * variance) & (variance > 0)
    # in windows on the seam noise and tissue are mixed
    noisy = ndimage.binary_erosion(noisy, iterations=WINDOW // 2, border_value=1)
    for axis, step in enumerate(steps):  # to the scan's own voxels
        noisy = noisy.repeat(step, axis)
    whole = noisy[tuple(map(slice, image.data.shape))].astype(np.float32)
    return conform(whole, image.affine, grid, image.fill).data > 0.5


def refuse_stripped(path: Path, conformed: Conformed, mask: Mask) -> None:
    """Raise BadData if a scan has no skull any more; ``mask`` (X, Y, Z) is that of its brain.

    Then the border of what is not background lies on that of the brain; or it lies close to it,
    since a network's mask may be small, and no dark band lies between. Both are seen on the
    model's grid; intensities in [0, 1].
    """
    place = box(conformed.inside)
    seen, brain = conformed.data[place] > BACKGROUND, mask[place]
    core = ndimage.binary_dilation(ndimage.binary_erosion(seen, border_value=1))
    head = clean(seen & (core | brain))
    edge = brain & ~ndimage.binary_erosion(brain, border_value=1)
    if head.all() or not edge.any():
        return
    depth = ndimage.distance_transform_edt(head)
    diameter = (6 / np.pi * brain.sum()) ** (1 / 3)
    near = np.percentile(depth[edge], 25) / diameter
    if near < BORDER or (
        near < THIN and not _has_skull(conformed.data[place], head, brain, depth)
    ):
        raise BadData(
            f"{path}: already skull-stripped, it seems: no skull lies between its brain and its "
            "background; give the scan with its skull."
        )


def _has_skull(data: Array, head: Mask, brain: Mask, depth: Array) -> bool:
    """Tell whether a dark band lies around a brain; ``depth`` is that below the head's border."""
    above = ndimage.distance_transform_edt(~brain)
    share = above / (above + depth + 1e-6)  # of the way from the brain's border to the head's
    bands = (data[head & ~brain & (low <= share) & (share < low + 0.25)] for low in (0, 0.25))
    middle = DARK * np.median(data[brain])
    return any(len(band) and np.median(band) < middle for band in bands)
