"""How a model sees a scan: at the label's voxel size, and other heads at the label's size.

A head of another age or species may be half or twice as wide as the labelled one, which is more
than training covers. Its scan comes to a grid of so much finer or coarser voxels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from . import volume
from .inference import conform_image
from .masks import Mask, clean
from .volume import Array, Conformed, Image

AIR = 0.15  # of the intensities' range; what is brighter belongs to the head
RIM = 0.02  # planes with less of the head than this, against the fullest, are left out
FINEST = 64  # points along an axis at which a head is measured, about
CHANGE = 1.35  # a head must be so many times wider or narrower to be seen at another size
LARGEST = 16  # times the least grid's voxels: no grid gets larger for a head that looks small


def head_of(data: Array) -> Mask:
    """Find the head in intensities (X, Y, Z) in [0, 1]: bright, in one piece, without holes."""
    return clean(ndimage.binary_opening(data > AIR))


def head_width(conformed: Conformed) -> tuple[float, bool]:
    """Measure a head on the model's grid, left to right and back to front.

    Height says nothing, because fields of view end anywhere between vertex and shoulders.

    Parameters
    ----------
    conformed : Conformed
        (X, Y, Z) intensities in [0, 1], axes closest to RAS.

    Returns
    -------
    tuple
        The geometric mean of both widths in voxels, and whether the field of view ends within
        the head, which may then be wider.
    """
    step = max(max(conformed.data.shape) // FINEST, 1)
    thin = (slice(None, None, step),) * 3
    head = head_of(conformed.data[thin])
    widths, cut = [], False
    for across in ((1, 2), (0, 2)):
        area = head.sum(axis=across)
        planes = np.flatnonzero(area > RIM * area.max())
        field = np.flatnonzero(conformed.inside[thin].any(axis=across))
        if not len(planes):
            return 0.0, True
        widths.append(planes[-1] - planes[0] + 1)
        cut |= bool(planes[0] <= field[0] or planes[-1] >= field[-1])
    return step * float(np.sqrt(widths[0] * widths[1])), cut


def relative_size(conformed: Conformed, label_width: float) -> float:
    """Tell how many times wider a head is than the labelled one; 1 if they are much alike.

    Parameters
    ----------
    conformed : Conformed
        At the voxel size of the label.
    label_width : float
        Of the labelled head, in voxels.

    Returns
    -------
    float
        1, or above 1.35, or below 1 / 1.35. A field of view that cuts the head makes it no
        smaller.
    """
    width, cut = head_width(conformed)
    ratio = width / label_width
    wider, narrower = ratio > CHANGE, ratio < 1 / CHANGE and not cut
    return ratio if wider or narrower else 1.0


@dataclass(frozen=True)
class Frame:
    """What a model's grid is made for.

    Attributes
    ----------
    voxel_size : float
        Edge of the voxels at which the labelled head is seen, in mm.
    size, multiple : int
        Least size of the grid and what its size is a multiple of, in voxels.
    brain_ml : float
        Volume of the labelled brain.
    head_width : float
        Of the labelled head, in voxels of ``voxel_size``.
    """

    voxel_size: float
    size: int
    multiple: int
    brain_ml: float
    head_width: float

    def conform(self, image: Image) -> Conformed:
        """Bring a scan to the model's grid, intensities to [0, 1].

        Raises
        ------
        BadData
            The scan is already skull-stripped.
        """
        conformed = conform_image(image, self.voxel_size, self.size, self.multiple)
        ratio = relative_size(conformed, self.head_width)
        # what looks like a small head may be a brain without its skull: no smaller brain then
        volume.refuse_stripped(image, self.brain_ml * max(ratio, 1) ** 3)
        if ratio == 1 or self._too_large(image, ratio):
            return conformed
        return conform_image(image, self.voxel_size * ratio, self.size, self.multiple)

    def _too_large(self, image: Image, ratio: float) -> bool:
        """Tell whether voxels so fine, over all of a field of view, would take too much memory."""
        finer = self.voxel_size * ratio
        shape, _ = volume.grid(image.data.shape, image.affine, finer, self.size, self.multiple)
        return ratio < 1 and math.prod(shape) > LARGEST * self.size**3
