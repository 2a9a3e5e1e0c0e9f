"""Heads that lie as they like: the rotation is sought by which another lies as the labelled one.

Registration finds small rotations by itself. For large ones, many are tried, evenly spread over
all, around the brain as the network sees it.
"""

from __future__ import annotations

import math

import torch
from numpy.typing import NDArray
from torch import Tensor

from .classes import Source
from .registration import NEAR, Box, Start, ascend, cut_box, level, look, mutual_information
from .synthesis import sample, voxel_indices

ROTATIONS = 600  # neighbours are some 20 degrees apart
# points apart, steps, best ones kept, stiffness
SEARCH = ((4, 20, 4, 0.3), (2, 20, 1, 0.3))
REFINED = 24  # rotations that are refined


def find_start(origin: Source, scan: Tensor, seen: Tensor) -> Start:
    """Find the rotation under which another scan shares most information with a labelled one.

    ``scan`` is (1, 2, X, Y, Z), intensities and field of view; ``seen`` (X, Y, Z) where its brain
    is, roughly.
    """
    box, where = cut_box(origin, NEAR), seen.nonzero().float()
    there = where.mean(0) if len(where) else (torch.tensor(seen.shape) - 1) / 2
    turns = rotations(ROTATIONS).to(scan)
    start = Start(turns, origin.centre, there.to(scan).expand(len(turns), 3))
    start = start.pick(_shared(box, scan, start).topk(REFINED).indices)
    for apart, steps, kept, stiffness in SEARCH:
        still = torch.zeros((len(start.rotation), 3, 4), device=scan.device)
        moved, values = ascend(box, scan, still, apart, steps, stiffness, start)
        start = start.moved(moved).pick(values.topk(kept).indices)
    return start


def _shared(box: Box, scan: Tensor, start: Start) -> Tensor:
    """Mutual information under each of many rotations: (B,)."""
    points, fixed, weight, moving = level(box, scan, SEARCH[0][0])
    with torch.no_grad():
        read, seen = look(moving, start.apply(points))
        covered = (weight * seen).flatten(1).sum(1) / weight.sum()
        return covered * mutual_information(fixed.expand_as(read), read, weight * seen)


def rotations(count: int) -> Tensor:
    """Spread rotation matrices (N, 3, 3) evenly over all rotations.

    Notes
    -----
    Super-Fibonacci spirals (Alexa 2022).
    """
    from scipy.spatial.transform import Rotation  # slow to import, and most models need none

    first, second = math.sqrt(2), 1.533751168755204288118041
    place = torch.arange(count, dtype=torch.float64) + 0.5
    inner, outer = (place / count).sqrt(), (1 - place / count).sqrt()
    a, b = 2 * math.pi * place / first, 2 * math.pi * place / second
    quaternions = torch.stack([inner * a.sin(), inner * a.cos(), outer * b.sin(), outer * b.cos()])
    return torch.from_numpy(Rotation.from_quat(quaternions.T.numpy()).as_matrix()).float()


ORIENTATIONS = 12  # in which the autoencoder sees a brain


def turn(shape: NDArray) -> list[NDArray]:
    """Turn a mask (X, Y, Z), or the numbers of structures, to many orientations."""
    volume = torch.from_numpy(shape.astype("float32"))[None, None]
    size = [math.ceil(math.dist(shape.shape, (0, 0, 0)))] * 3
    points = voxel_indices(size, volume.device) - (size[0] - 1) / 2
    centre = volume[0, 0].nonzero().float().mean(0)
    found = []
    for rotation in rotations(ORIENTATIONS):
        start = Start(rotation[None], torch.zeros(3), centre[None])
        turned = sample(volume, start.apply(points), mode="nearest")[0, 0]
        found.append(turned.numpy().astype(shape.dtype))
    return found
