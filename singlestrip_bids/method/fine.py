"""The fine network at work: in the brain's box, in voxels half as large, it draws the border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from nibabel.affines import from_matvec

from ..image.grid import Conformed, Grid
from ..image.masks import Mask, box, dice
from ..image.structures import Shares
from ..machine.runtime import Runtime, as_memory_allows
from .inference import AUGMENTED, mask_from, view
from .networks import UNet
from .propagation import AGREED, finer, finer_shares

NAME = "fine"
EDGE = 1.5  # of its images, of the grid's edge, both in voxels
MARGIN = 8  # voxels around the brain, at least
WEIGHT = 2 / 3  # of its voice, beside those of network and label
OF_STRUCTURES = 1 / 3  # the same where it tells structures, which the label knows better


def edge_of(grid: Grid) -> int:
    """Edge of the images that it sees, in voxels."""
    return _rounded(round(EDGE * grid.size), grid.multiple)


def draw(
    network: UNet,
    scan: Conformed,
    found: Conformed,
    shares: Shares | None,
    least: int,
    runtime: Runtime,
) -> tuple[Conformed, Shares | None, float]:
    """Join what a fine network makes of a scan with the probability ``found`` before.

    So are the ``shares`` of structures, if there are any; they may be changed in place. The scan
    is in voxels half as large as the model's; the network sees ``least`` of them along each axis,
    or more if the brain is larger. Returns also the network's weight: it is 0, and all as it was,
    where both do not agree.
    """
    before = finer(found, scan.data.shape)
    mask = mask_from(before.data)
    if not mask.any():
        return found, shares, 0.0
    window = _window(mask, least, network.config.multiple)
    cut = Conformed(
        scan.data[window],
        scan.affine @ from_matvec(np.eye(3), [edge.start for edge in window]),
        scan.inside[window],
    )
    seen = as_memory_allows(
        lambda machine: view(network, cut, machine, AUGMENTED), runtime.rungs()
    )
    known = before.data[window]
    if dice(seen.mask, mask[window]) < AGREED:
        return found, shares, 0.0
    joined = before.data.copy()
    joined[window] = np.float32(1 - WEIGHT) * known + np.float32(WEIGHT) * seen.brain
    if shares is not None and seen.shares is not None:
        shares = finer_shares(shares, scan.data.shape)
        for old, new in zip(shares, seen.shares, strict=True):
            old[window] = np.rint((1 - OF_STRUCTURES) * old[window] + OF_STRUCTURES * new)
    return replace(before, data=joined), shares, WEIGHT


def _window(mask: Mask, least: int, multiple: int) -> tuple[slice, ...]:
    """Take a box around the brain, its edges multiples of what the network needs."""
    window = []
    for edge, count in zip(box(mask), mask.shape, strict=True):
        width = _rounded(max(edge.stop - edge.start + 2 * MARGIN, least), multiple)
        width = min(width, count)
        first = (edge.start + edge.stop - width) // 2
        first = min(max(first, 0), count - width)
        window.append(slice(first, first + width))
    return tuple(window)


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
