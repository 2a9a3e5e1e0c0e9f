"""Register the labelled scan to another and carry its mask over, on the network's device.

The labelled scan stays where it is; the other scan is read at ``affine(x + u(x))`` for each of
its voxels x, where u is the flow of a stationary velocity field, so that the way back is known:
the mask comes over along the inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .synthesis import integrate, sample, voxel_grid

MARGIN = 0.06  # of the grid's edge, around the brain: what counts for the similarity
SHIFTS = (-0.15, 0.0, 0.15)  # of the grid's edge along each axis: where the search starts
KNOTS = 16  # control points of the velocity along each axis


@dataclass(frozen=True)
class Schedule:
    """Steps of gradient descent, from the coarsest grid to the finest."""

    search: int = 60
    affine: tuple[int, ...] = (60, 30)
    flow: tuple[int, ...] = (60, 40)
    smoothness: float = 1.0


def similarity(a: Tensor, b: Tensor, weight: Tensor, window: int = 5) -> Tensor:
    """Squared local correlation of images (B, 1, n, n, n), weighted: (B,) in [0, 1].

    Notes
    -----
    Avants et al. (2008). Squared, so that it counts how well one image explains the other from
    place to place whatever their contrasts are.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, window, stride=1, padding=window // 2, count_include_pad=False)

    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    variance_a = (mean(a * a) - mean_a**2).clamp(min=0) + 1e-4
    variance_b = (mean(b * b) - mean_b**2).clamp(min=0) + 1e-4
    local = covariance**2 / (variance_a * variance_b)
    return (local * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
