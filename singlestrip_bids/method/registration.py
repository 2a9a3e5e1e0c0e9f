"""Register the labelled scan to another one and propagate its mask, on the network's device.

The similarity is measured around the labelled brain, at voxels x of the labelled scan; the other
scan is read at ``affine(x + u(x))``, where u is the flow of a stationary velocity field. Both
can be undone, and the mask is propagated along the way back.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .classes import Source
from .synthesis import along, blur_matrix, integrate, sample, voxel_indices

POINTS = 64  # along each axis of the labelled scan at the finest level
MARGIN = 0.06  # of the grid's edge: how far around the brain the similarity counts
SHIFTS = (-0.15, 0.0, 0.15)  # of the grid's edge along each axis: where the search starts
KNOT_SPACINGS = 5, 3  # finest points between two control points of the velocity, as free as
EXPLAINED = 0.5  # the squared local correlation allows that the coarser one reaches
LATTICE = 3  # finest points between two points where the velocity is integrated
ALIGN = ((4, 50, 4, 0.3), (2, 50, 1, 0.02))  # (points apart, steps, best ones kept, stiffness)
FLOW = ((2, 60), (1, 15))  # (points apart, steps)
SMOOTHNESS = 2.0  # of the velocity
BINS = 24
WINDOW = 4.0  # FWHM of the local similarity, in points
RATE = 0.5  # points by which the brain's edge moves in a first step


@dataclass(frozen=True)
class Box:
    """The labelled brain and its surroundings, cut out of its source."""

    image: Tensor  # (1, 1, X, Y, Z) intensities
    weight: Tensor  # (1, 1, X, Y, Z), where the similarity counts
    start: Tensor  # (3,) voxel of the source where the box begins
    centre: Tensor  # (3,) of the brain, in voxels of the source: fixed by rotation and scaling
    step: int  # voxels from one of the finest points to the next

    def points(self, apart: int) -> Tensor:
        """Every so manyth of the finest points, in voxels of the source: (1, 3, x, y, z)."""
        grid = voxel_indices(self.image.shape[2:], self.image.device)
        return self.at(grid, apart) + self.start.view(1, 3, 1, 1, 1)

    def at(self, volume: Tensor, apart: int) -> Tensor:
        """Values of a volume of the box at the points."""
        stride = self.step * apart
        return volume[..., ::stride, ::stride, ::stride]


def propagate(origin: Source, image: Tensor) -> tuple[Tensor, float]:
    """Propagate the mask of a labelled scan to another: (X, Y, Z) in [0, 1] on its grid.

    The other ``image`` is (1, 1, X, Y, Z) in [0, 1], at the same voxel size. Returns also the
    squared local correlation that is reached, in [0, 1]: how well one explains the other.

    Notes
    -----
    First affine, from 27 starts, by mutual information (Studholme et al. 1999); then with a
    diffeomorphism by scaling and squaring (Arsigny et al. 2006), by the squared local correlation
    (Avants et al. 2008). That is freer where the images explain each other well: where they do
    not, as across contrasts, it would follow what differs. Nothing is random.
    """
    box = cut_box(origin)
    start = _align(box, image, centre_of_mass(image) - centre_of_mass(origin.image))
    coarse, fine = KNOT_SPACINGS
    pose, knots = _deform(box, image, start, coarse)
    explained = _explained(box, image, pose, knots)
    if explained >= EXPLAINED:
        pose, knots = _deform(box, image, start, fine)
    return _pull_back(box, origin.mask, image, pose, knots), explained


@torch.no_grad()
def _explained(box: Box, image: Tensor, pose: Tensor, knots: Tensor) -> float:
    """Measure the squared local correlation under a deformation, in [0, 1]."""
    points, fixed, weight, moving = _level(box, image, 1)
    where = place(points + displacement(box, knots, points), pose, box.centre)
    return float(similarity(fixed, sample(moving, where), weight).sum())


def likeness(origin: Source, image: Tensor) -> float:
    """Tell how well a scan with a mask of its head is explained by another, aligned by an affine.

    The other ``image`` is (1, 1, X, Y, Z) in [0, 1], at the same voxel size. The answer is the
    mean squared local correlation around the head of ``origin``, in [0, 1].
    """
    box = cut_box(origin)
    pose = _align(box, image, centre_of_mass(image) - centre_of_mass(origin.image))
    points, fixed, weight, moving = _level(box, image, ALIGN[-1][0])
    read = sample(moving, place(points, pose, box.centre))
    return float(similarity(fixed, read, weight).sum())


def centre_of_mass(image: Tensor) -> Tensor:
    """Centre of the intensities of (1, 1, X, Y, Z), in voxels: (3,)."""
    sums = [image[0, 0].sum([a for a in range(3) if a != axis]) for axis in range(3)]
    places = [torch.arange(len(s), device=s.device, dtype=s.dtype) for s in sums]
    return torch.stack([(s * p).sum() / s.sum() for s, p in zip(sums, places, strict=True)])


def cut_box(origin: Source) -> Box:
    """Cut the brain and a margin out of a source."""
    size = max(origin.image.shape[2:])
    step = max(size // POINTS, 1)
    margin = max(round(MARGIN * size), 1)
    weight = (origin.mask > 0.5).float()
    for axis in torch.eye(3, dtype=torch.int).tolist():  # one by one: the same, far faster
        around = [margin * a for a in axis]
        weight = F.max_pool3d(weight, [2 * m + 1 for m in around], 1, around)
    found = weight[0, 0].nonzero()
    start, stop = found.amin(0), found.amax(0) + 1
    x, y, z = (slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
    image, weight = origin.image[..., x, y, z], weight[..., x, y, z]
    return Box(image, weight, start, origin.centre, step)


def smooth(image: Tensor, fwhm: float) -> Tensor:
    """Smooth images (B, 1, X, Y, Z) by a Gaussian of some voxels' width."""
    widths = torch.full((len(image),), fwhm, device=image.device)
    for axis in range(3):
        image = along(image, blur_matrix(widths, image.shape[2 + axis]), axis)
    return image


def similarity(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Squared local correlation of images (B, 1, x, y, z), weighted: (B,) in [0, 1].

    Avants et al. (2008), in Gaussian windows. Squared, so that it counts how well one image
    explains the other from place to place, whatever their contrasts are.
    """
    means = smooth(torch.cat([a, b, a * a, b * b, a * b]), WINDOW)
    mean_a, mean_b, squares_a, squares_b, products = means.chunk(5)
    covariance = products - mean_a * mean_b
    variance_a = (squares_a - mean_a**2).clamp(min=0) + 1e-4
    variance_b = (squares_b - mean_b**2).clamp(min=0) + 1e-4
    local = covariance**2 / (variance_a * variance_b)
    return (local * weight).flatten(1).sum(1) / weight.sum()


def mutual_information(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Normalised mutual information of images (B, 1, x, y, z) in [0, 1], less 1: (B,) in [0, 1].

    Studholme et al. (1999); linear (Parzen) bins, so that it has a gradient.
    """
    bins = torch.arange(BINS, device=a.device).view(1, BINS, 1)

    def members(x: Tensor) -> Tensor:
        return (1 - (x.flatten(1)[:, None] * (BINS - 1) - bins).abs()).clamp(min=0)

    joint = (members(a) * weight.flatten(1)[:, None]) @ members(b).transpose(1, 2)
    joint = joint / joint.sum((1, 2), keepdim=True)

    def entropy(p: Tensor) -> Tensor:
        return -(p * (p + 1e-9).log()).flatten(1).sum(1)

    return (entropy(joint.sum(1)) + entropy(joint.sum(2))) / entropy(joint) - 1


def place(points: Tensor, pose: Tensor, centre: Tensor) -> Tensor:
    """Move points (1 or B, 3, x, y, z) by each pose (B, 3, 4): linear part less 1, and shift."""
    centre = centre.view(1, 3, 1)
    linear = torch.eye(3, device=pose.device) + pose[:, :, :3]
    moved = linear @ (points.flatten(2) - centre) + centre + pose[:, :, 3:]
    return moved.view(len(pose), *points.shape[1:])


def unplace(points: Tensor, pose: Tensor, centre: Tensor) -> Tensor:
    """Undo :func:`place`."""
    centre = centre.view(1, 3, 1)
    linear = torch.eye(3, device=pose.device) + pose[:, :, :3]
    moved = torch.linalg.inv(linear) @ (points.flatten(2) - centre - pose[:, :, 3:]) + centre
    return moved.view(len(pose), *points.shape[1:])


def _level(box: Box, image: Tensor, apart: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, labelled values, weights and the smoothed other image of one level."""
    blur = float(box.step * apart) if box.step * apart > 1 else 0.0
    fixed = box.at(smooth(box.image, blur), apart)
    return box.points(apart), fixed, box.at(box.weight, apart), smooth(image, blur)


def _align(box: Box, image: Tensor, shift: Tensor) -> Tensor:
    """Find the affine pose (1, 3, 4) from many starts around a first shift."""
    scale, edge = _scale(box), box.step * POINTS
    starts = torch.tensor(list(itertools.product(SHIFTS, repeat=3)), device=image.device)
    pose = torch.zeros((len(starts), 3, 4), device=image.device)
    pose[:, :, 3] = starts * edge + shift
    for apart, steps, kept, stiffness in ALIGN:
        points, fixed, weight, moving = _level(box, image, apart)
        free = (pose / scale).requires_grad_()
        adam = torch.optim.Adam([free])
        for step in range(steps):
            adam.param_groups[0]["lr"] = RATE * (1 - step / steps)
            where = place(points, free * scale, box.centre)
            read = sample(moving.expand(len(where), -1, -1, -1, -1), where)
            values = mutual_information(fixed.expand_as(read), read, weight)
            values = values - stiffness * (free * scale)[:, :, :3].square().sum((1, 2))
            adam.zero_grad()
            (-values.sum()).backward()
            adam.step()
        pose = (free.detach() * scale)[values.topk(kept).indices]
    return pose


def _deform(box: Box, image: Tensor, pose: Tensor, spacing: int) -> tuple[Tensor, Tensor]:
    """Refine the pose and find the velocity at its control points (1, 3, a, b, c)."""
    shape = [max(n // (box.step * spacing), 4) for n in box.image.shape[2:]]
    knots = torch.zeros((1, 3, *shape), device=image.device, requires_grad=True)
    scale = _scale(box)
    free = (pose / scale).requires_grad_()
    rates = (0.15, 0.003)
    adam = torch.optim.Adam([{"params": [knots]}, {"params": [free]}])
    for apart, steps in FLOW:
        points, fixed, weight, moving = _level(box, image, apart)
        for step in range(steps):
            for group, rate in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - 0.9 * step / steps)
            where = place(points + displacement(box, knots, points), free * scale, box.centre)
            rough = torch.stack([knots.diff(dim=a).square().mean() for a in (2, 3, 4)]).sum()
            found = similarity(fixed, sample(moving, where), weight).sum()
            adam.zero_grad()
            (SMOOTHNESS * rough - found).backward()
            adam.step()
    return (free * scale).detach(), knots.detach()


def displacement(box: Box, knots: Tensor, points: Tensor) -> Tensor:
    """Displacement by the flow of a velocity at points (1, 3, x, y, z), all in source voxels."""
    shape = [max(n // (LATTICE * box.step), 4) for n in box.image.shape[2:]]
    field = integrate(F.interpolate(knots, size=shape, mode="trilinear", align_corners=True))
    ratio = [(n - 1) / (m - 1) for n, m in zip(box.image.shape[2:], shape, strict=True)]
    unit = torch.tensor(ratio, device=knots.device).view(1, 3, 1, 1, 1)
    start = box.start.view(1, 3, 1, 1, 1)
    return sample(field, (points - start) / unit, "border") * unit


@torch.no_grad()
def _pull_back(box: Box, mask: Tensor, image: Tensor, pose: Tensor, knots: Tensor) -> Tensor:
    points = unplace(voxel_indices(image.shape[2:], image.device), pose, box.centre)
    return sample(mask, points + displacement(box, -knots, points))[0, 0]


def _scale(box: Box) -> Tensor:
    """Change of each number of a pose that moves the edge of the brain by about one point."""
    return torch.tensor([3 / POINTS] * 3 + [float(box.step)], device=box.image.device)
