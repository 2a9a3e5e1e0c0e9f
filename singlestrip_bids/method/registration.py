"""Register the labelled scan to another one and propagate its mask, on the network's device.

The similarity is measured around the labelled brain, at voxels x of the labelled scan; the other
scan is read at ``affine(x + u(x))``, where u is the flow of a stationary velocity field. Both
can be undone, and the mask is propagated along the way back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..machine.runtime import one_by_one, side_by_side
from .classes import Source
from .synthesis import along, blur_matrix, halved_points, integrate, sample, voxel_indices

POINTS = 64  # along each axis of the labelled scan at the finest level
# how far around the brain the similarity counts: shares of the grid's edge, or of that of so many
# points, whichever is less; the affine is tried with both, and the flow takes the nearer one
WIDE, NEAR = 0.11, 0.08
SHIFTS = (-0.15, 0.0, 0.15)  # of the grid's edge along each axis: where the search starts
# finest points between two control points of the velocity, and how smooth it is to be
STIFF, FREE, SUPPLE = (5, 2.0), (3, 2.0), (3, 0.5)
HEARD = 0.3, 0.5  # squared local correlation at which a labelled scan begins to count, and fully
LATTICE = 3  # finest points between two points where the velocity is integrated
# points apart, steps, best ones kept, stiffness
ALIGN = ((4, 20, 9, 0.3), (4, 20, 3, 0.3), (2, 30, 1, 0.02))
FLOW = ((2, 60), (1, 15))  # (points apart, steps)
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


@dataclass(frozen=True)
class Start:
    """Rotations from a labelled scan to another, around both brains, from which it is sought."""

    rotation: Tensor  # (B, 3, 3)
    centre: Tensor  # (3,) of the labelled brain, in voxels of its source
    there: Tensor  # (B, 3) of the other brain, in voxels of its scan

    def apply(self, points: Tensor) -> Tensor:
        """Map points of the labelled scan (1 or B, 3, x, y, z) to the other one."""
        moved = self.rotation @ (points.flatten(2) - self.centre.view(1, 3, 1))
        return (moved + self.there[:, :, None]).view(len(moved), *points.shape[1:])

    def undo(self, points: Tensor) -> Tensor:
        """Map points of the other scan (1, 3, x, y, z) to the labelled one."""
        moved = self.rotation.transpose(1, 2) @ (points.flatten(2) - self.there[:, :, None])
        return (moved + self.centre.view(1, 3, 1)).view(len(moved), *points.shape[1:])

    def pick(self, which: Tensor) -> Start:
        """Return some of them."""
        return replace(self, rotation=self.rotation[which], there=self.there[which])

    def moved(self, pose: Tensor) -> Start:
        """Put affine poses (B, 3, 4) before them, without their stretch."""
        left, _, right = torch.linalg.svd(torch.eye(3, device=pose.device) + pose[:, :, :3])
        shift = (self.rotation @ pose[:, :, 3:])[:, :, 0]
        rotation = self.rotation @ left @ right
        return replace(self, rotation=rotation, there=self.there + shift)


@dataclass(frozen=True)
class Propagated:
    """A label on another scan's grid, or on that in voxels half as large."""

    mask: Tensor  # (X, Y, Z) in [0, 1]
    explained: float  # squared local correlation of both scans, in [0, 1]
    shares: Tensor | None = None  # (K, X, Y, Z) of its structures, in steps of 1/255


def propagate(
    origin: Source, image: Tensor, inside: Tensor, start: Start | None = None
) -> Propagated:
    """Propagate the mask of a labelled scan, and its structures, to another.

    The other ``image`` is (1, 1, X, Y, Z) in [0, 1], at the same voxel size; ``inside``, 0 and 1,
    is its field of view. What the source has in voxels half as large comes so. What is explained
    is as of the stiff registration, where it is seen. With a ``start`` the other scan is turned by
    that first.

    Notes
    -----
    First affine, from 27 starts, by mutual information (Studholme et al. 1999), within two margins
    around the brain, of which the one is kept that explains more; then with a
    diffeomorphism by scaling and squaring (Arsigny et al. 2006), by the squared local correlation
    (Avants et al. 2008). That is stiff, and once more free, whose mask counts the more, the better
    the scans explain each other: where they do not, as across contrasts, it follows what differs.
    Structures are read at a third, supple one. Nothing is random.
    """
    scan, box = torch.cat([image, inside], 1), cut_box(origin, NEAR)
    points = voxel_indices(image.shape[2:], image.device)
    if start:
        here = voxel_indices(origin.image.shape[2:], image.device)
        scan, points = sample(scan, start.apply(here)), start.undo(points)
        shift = torch.zeros(3, device=image.device)
    else:
        shift = centre_of_mass(image) - centre_of_mass(origin.image)
    do = one_by_one if image.is_cuda else side_by_side
    both = [partial(_align, cut_box(origin, share), scan, shift) for share in (WIDE, NEAR)]
    still = torch.zeros((1, 3, 4, 4, 4), device=image.device)
    pose = max(do(*both), key=lambda pose: _explained(box, scan, pose, still))
    kinds = (STIFF, FREE) if origin.parts is None else (STIFF, FREE, SUPPLE)
    found = do(*(partial(_deform, box, scan, pose, *kind) for kind in kinds))
    places = [_places(box, points, *deformation) for deformation in found]
    explained = _explained(box, scan, *found[0])
    vote = vote_of(explained)
    stiff, free = (_read_mask(origin, where) for where in places[:2])
    mask = (stiff + vote * free) / (1 + vote)
    return Propagated(mask, explained, _read_shares(origin, mask > 0, places[::2], vote))


def vote_of(explained: float) -> float:
    """Say how much a labelled scan counts, 0 to 1, by the squared local correlation reached."""
    low, high = HEARD
    return min(max((explained - low) / (high - low), 0.0), 1.0)


@torch.no_grad()
def _explained(box: Box, scan: Tensor, pose: Tensor, knots: Tensor) -> float:
    """Measure the squared local correlation under a deformation, in [0, 1]."""
    points, fixed, weight, moving = level(box, scan, 1)
    read, seen = look(moving, place(points + displacement(box, knots, points), pose, box.centre))
    return float(similarity(fixed, read, weight * seen).sum())


def likeness(origin: Source, image: Tensor) -> float:
    """Tell how well a scan with a mask of its head is explained by another, aligned by an affine.

    The other ``image`` is (1, 1, X, Y, Z) in [0, 1], at the same voxel size. The answer is the
    mean squared local correlation around the head of ``origin``, in [0, 1].
    """
    box, scan = cut_box(origin, WIDE), torch.cat([image, torch.ones_like(image)], 1)
    pose = _align(box, scan, centre_of_mass(image) - centre_of_mass(origin.image))
    points, fixed, weight, moving = level(box, scan, ALIGN[-1][0])
    read, _ = look(moving, place(points, pose, box.centre))
    return float(similarity(fixed, read, weight).sum())


def centre_of_mass(image: Tensor) -> Tensor:
    """Centre of the intensities of (1, 1, X, Y, Z), in voxels: (3,)."""
    sums = [image[0, 0].sum([a for a in range(3) if a != axis]) for axis in range(3)]
    places = [torch.arange(len(s), device=s.device, dtype=s.dtype) for s in sums]
    return torch.stack([(s * p).sum() / s.sum() for s, p in zip(sums, places, strict=True)])


def cut_box(origin: Source, share: float) -> Box:
    """Cut the brain and a margin out of a source."""
    size = max(origin.image.shape[2:])
    step = max(size // POINTS, 1)
    margin = max(round(share * min(size, step * POINTS)), 1)
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
    return (local * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)


def mutual_information(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Normalised mutual information of images (B, 1, x, y, z) in [0, 1], less 1: (B,) in [0, 1].

    Studholme et al. (1999); linear (Parzen) bins, so that it has a gradient.
    """
    bins = torch.arange(BINS, device=a.device).view(1, BINS, 1)

    def members(x: Tensor) -> Tensor:
        return (1 - (x.flatten(1)[:, None] * (BINS - 1) - bins).abs()).clamp(min=0)

    joint = (members(a) * weight.flatten(1)[:, None]) @ members(b).transpose(1, 2)
    joint = joint / joint.sum((1, 2), keepdim=True).clamp(min=1e-6)

    def entropy(p: Tensor) -> Tensor:
        return -(p * (p + 1e-9).log()).flatten(1).sum(1)

    return (entropy(joint.sum(1)) + entropy(joint.sum(2))) / entropy(joint).clamp(min=1e-6) - 1


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


def level(box: Box, scan: Tensor, apart: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, labelled values, weights and the smoothed other scan of one level."""
    blur = float(box.step * apart) if box.step * apart > 1 else 0.0
    fixed = box.at(smooth(box.image, blur), apart)
    moving = torch.cat([smooth(channel, blur) for channel in scan.split(1, 1)], 1)
    return box.points(apart), fixed, box.at(box.weight, apart), moving


def look(moving: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Read a smoothed scan and its field of view (1, 2, X, Y, Z) at voxels (B, 3, x, y, z).

    Return intensities, free of what lies outside the field of view, and 1 where there is any.
    """
    read, share = sample(moving.expand(len(where), -1, -1, -1, -1), where).split(1, 1)
    share = share.detach()
    return read / share.clamp(min=0.1), (share > 0.5).float()


def _align(box: Box, scan: Tensor, shift: Tensor) -> Tensor:
    """Find the affine pose (1, 3, 4) from many starts around a first shift."""
    edge = box.step * POINTS
    starts = torch.tensor(list(itertools.product(SHIFTS, repeat=3)), device=scan.device)
    pose = torch.zeros((len(starts), 3, 4), device=scan.device)
    pose[:, :, 3] = starts * edge + shift
    for apart, steps, kept, stiffness in ALIGN:
        pose, values = ascend(box, scan, pose, apart, steps, stiffness)
        pose = pose[values.topk(kept).indices]
    return pose


def ascend(
    box: Box,
    scan: Tensor,
    pose: Tensor,
    apart: int,
    steps: int,
    stiffness: float,
    start: Start | None = None,
) -> tuple[Tensor, Tensor]:
    """Improve affine poses (B, 3, 4) by mutual information; return also its values, (B,).

    It is seen at every so manyth point. A ``start`` maps the points further, to the other scan.
    """
    scale = _scale(box)
    points, fixed, weight, moving = level(box, scan, apart)
    free = (pose / scale).requires_grad_()
    adam = torch.optim.Adam([free])
    values = torch.zeros(len(pose), device=pose.device)
    for step in range(steps):
        adam.param_groups[0]["lr"] = RATE * (1 - step / steps)
        where = place(points, free * scale, box.centre)
        read, seen = look(moving, start.apply(where) if start else where)
        covered = (weight * seen).flatten(1).sum(1) / weight.sum()
        values = covered * mutual_information(fixed.expand_as(read), read, weight * seen)
        values = values - stiffness * (free * scale)[:, :, :3].square().sum((1, 2))
        adam.zero_grad()
        (-values.sum()).backward()
        adam.step()
    return free.detach() * scale, values.detach()


def _deform(
    box: Box, scan: Tensor, pose: Tensor, spacing: int, smoothness: float
) -> tuple[Tensor, Tensor]:
    """Refine the pose and find the velocity at its control points (1, 3, a, b, c)."""
    shape = [max(n // (box.step * spacing), 4) for n in box.image.shape[2:]]
    knots = torch.zeros((1, 3, *shape), device=scan.device, requires_grad=True)
    scale = _scale(box)
    free = (pose / scale).requires_grad_()
    rates = (0.15, 0.003)
    adam = torch.optim.Adam([{"params": [knots]}, {"params": [free]}])
    for apart, steps in FLOW:
        points, fixed, weight, moving = level(box, scan, apart)
        for step in range(steps):
            for group, rate in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - 0.9 * step / steps)
            where = place(points + displacement(box, knots, points), free * scale, box.centre)
            rough = torch.stack([knots.diff(dim=a).square().mean() for a in (2, 3, 4)]).sum()
            read, seen = look(moving, where)
            found = similarity(fixed, read, weight * seen).sum()
            adam.zero_grad()
            (smoothness * rough - found).backward()
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
def _places(box: Box, points: Tensor, pose: Tensor, knots: Tensor) -> Tensor:
    """Find where in the labelled scan points of the other one lie: (1, 3, X, Y, Z)."""
    points = unplace(points, pose, box.centre)
    return points + displacement(box, -knots, points)


def _read_mask(origin: Source, where: Tensor) -> Tensor:
    if origin.fine is None:
        return sample(origin.mask, where)[0, 0]
    return sample(origin.fine, halved_points(where))[0, 0]


def _read_shares(
    origin: Source, brain: Tensor, places: Sequence[Tensor], vote: float
) -> Tensor | None:
    """Read the structures at places of the stiff and the supple registration, within the brain.

    The supple one counts by its vote, the stiff one for the rest: deep structures differ far more
    between people than the brain's border does.
    """
    if origin.parts is None:
        return None
    if origin.parts.shape[2] > origin.mask.shape[2]:
        places = [halved_points(where) for where in places]
    shape = places[0].shape[2:]
    shares = torch.zeros((origin.structures, *shape), dtype=torch.uint8, device=brain.device)
    found = F.interpolate(brain[None, None].float(), size=shape)[0, 0].nonzero()
    if not len(found):
        return shares
    ends = zip(found.amin(0).tolist(), (found.amax(0) + 1).tolist(), strict=True)
    x, y, z = (slice(a, b) for a, b in ends)
    places = [where[..., x, y, z] for where in places]
    for number in range(origin.structures):
        one = (origin.parts == number + 1).float()
        stiff, supple = (sample(one, where)[0, 0] for where in places)
        mean = (1 - vote) * stiff + vote * supple
        shares[number, x, y, z] = (255 * mean).round().to(torch.uint8)
    return shares


def _scale(box: Box) -> Tensor:
    """Change of each number of a pose that moves the edge of the brain by about one point."""
    return torch.tensor([3 / POINTS] * 3 + [float(box.step)], device=box.image.device)
