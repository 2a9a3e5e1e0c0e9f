"""How a model sees heads: at which voxel size each comes to its grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from ..errors import BadData
from .grid import Conformed, Grid, HalvedGrid, conform_image
from .head import find_noise, head_width, relative_size
from .masks import Mask, box, millilitres
from .nifti import Image

FITTINGS = 2  # measurements of a head whose size is not known: the first one is coarse
LARGEST = 16  # times the least grid's voxels: no grid gets larger for a head that looks small


def working_voxel_size(mask: Mask, affine: NDArray, size: int) -> float:
    """Voxel size in mm with which a grid of ``size``³ holds a whole head around this brain.

    The edge of the grid is 1.75 diameters of the sphere of the brain's volume (an adult human's
    is 147 mm, so 256 mm), not more than the field of view, not less than 1.2 times the brain.
    """
    sizes = voxel_sizes(affine)
    diameter = float((6000 / np.pi * millilitres(mask, affine)) ** (1 / 3))
    brain = max((edge.stop - edge.start) * s for edge, s in zip(box(mask), sizes, strict=True))
    field = max(n * s for n, s in zip(mask.shape, sizes, strict=True))
    edge = max(min(1.75 * diameter, field), 1.2 * brain)
    return float(f"{edge / size:.3g}")


@dataclass(frozen=True)
class Frame:
    """How a model sees heads: those of the label's size on its grid, others finer or coarser.

    If ``fitted`` there is no such size, and every head comes to the same width; if ``turned`` all
    are seen at the label's.
    """

    grid: Grid  # on which the labelled head is seen
    brain_ml: float  # volume of the labelled brain
    head_width: float  # of the labelled head, in voxels of the grid
    fitted: bool = False  # whether the size of a head says nothing
    turned: bool = False  # whether heads lie as they like, so that their widths say nothing

    @classmethod
    def around(
        cls,
        pairs: Sequence[tuple[Image, Mask]],
        size: int,
        multiple: int,
        voxel_size: float | None,
    ) -> Frame:
        """Settle the frame of labelled scans: medians of their sizes.

        Without a voxel size (mm), that is taken with which a grid of ``size`` holds the labelled
        heads.

        Raises
        ------
        BadData
            No head is found in a scan.
        """
        voxel_size = voxel_size or float(
            np.median([working_voxel_size(mask, image.affine, size) for image, mask in pairs])
        )
        grid = Grid(voxel_size, size, multiple)
        seen = [(image, conform_image(image, grid)) for image, _ in pairs]
        widths = [head_width(one, find_noise(image, one, grid))[0] for image, one in seen]
        for (image, _), width in zip(pairs, widths, strict=True):
            if not width:
                raise BadData(f"{image.path}: no head is found in it; label another scan.")
        brain_ml = float(np.median([millilitres(mask, image.affine) for image, mask in pairs]))
        return cls(grid, brain_ml, float(np.median(widths)))

    def conform(self, image: Image) -> Conformed:
        """Bring a scan to the model's grid, intensities to [0, 1]."""
        if self.fitted:
            return self._fit(image)
        conformed = conform_image(image, self.grid)
        if self.turned:
            return conformed
        noise = find_noise(image, conformed, self.grid)
        ratio = relative_size(conformed, self.head_width, noise)
        finer = replace(self.grid, voxel_size=self.grid.voxel_size * ratio)
        if ratio == 1 or (ratio < 1 and _too_large(image, finer)):
            return conformed
        return conform_image(image, finer)

    def conform_finer(self, image: Image, conformed: Conformed) -> Conformed:
        """Bring a scan to the grid on which it is ``conformed``, in voxels half as large."""
        grid = replace(self.grid, voxel_size=conformed.voxel_size)
        return conform_image(image, HalvedGrid(grid))

    def _fit(self, image: Image) -> Conformed:
        """Bring a head of any size to the same width; first its field of view fills the grid."""
        grid = replace(self.grid, voxel_size=float(np.max(image.data.shape * image.sizes)))
        grid = replace(grid, voxel_size=grid.voxel_size / grid.size)
        for _ in range(FITTINGS):
            conformed = conform_image(image, grid)
            width, _ = head_width(conformed, find_noise(image, conformed, grid))
            finer = replace(grid, voxel_size=grid.voxel_size * width / self.head_width)
            if not width or _too_large(image, finer):
                return conformed
            grid = finer
        return conform_image(image, grid)


def _too_large(image: Image, grid: Grid) -> bool:
    """Tell whether voxels so fine, over all of a field of view, would take too much memory."""
    shape, _ = grid.place(image.data.shape, image.affine)
    return math.prod(shape) > LARGEST * grid.size**3
