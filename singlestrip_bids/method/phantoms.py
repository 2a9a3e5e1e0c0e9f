"""Heads that never were: nested random shapes, to learn from where there is no label at all.

A phantom is a map of intensity classes with a mask, like a labelled scan: `training_batch` paints,
deforms and images it. No real image, no atlas and no label enters. The idea is PUMBA's
(arXiv:2505.07159). What is otherwise here: whatever lies between brain and skull may be of any
grey, and of the same one as furrows and ventricles; there are layers, a neck, a face, eyes and
cavities; and proportions reach from a human head to one that is mostly snout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .classes import CLASSES, OUTSIDE, Source, source
from .synthesis import on_host, voxel_indices

WIDTH = 0.66  # of a head, left to right and back to front, as a share of the grid's edge
DARK = 0.5  # share of heads whose fluid is as dark as the air around, as in T1w and FLAIR
HUMAN = 0.6  # share of heads in which the brain is large and the face short
AIR, FLUID, BONE, SKIN, CORD, MUSCLE = 1, 2, 3, 4, 5, 6  # classes beyond the brain
MATTER = (1 + OUTSIDE, CLASSES - 1)  # first and last class of the brain's own


@dataclass(frozen=True)
class Draw:
    """Random numbers for one phantom of n voxels an edge, from its generator."""

    generator: Generator
    size: int

    def between(self, low: float, high: float) -> Tensor:
        """One number."""
        return low + (high - low) * self._rand(1)[0]

    def three(self, *limits: tuple[float, float]) -> Tensor:
        """Draw a number between each of three limits: (3,)."""
        low, high = torch.tensor(limits, device=self.generator.device).unbind(1)
        return low + (high - low) * self._rand(3)

    def chance(self, probability: float) -> Tensor:
        """Draw 1 with a probability, else 0."""
        return (self._rand(1)[0] < probability).float()

    def field(self, *points: int) -> Tensor:
        """Draw smooth noise (n, n, n), its spread about 1, from so many points an edge."""
        noise = [self._noise(min(count, self.size)) for count in points]
        return torch.stack(noise).sum(0) / len(noise) ** 0.5

    def _noise(self, points: int) -> Tensor:
        device = self.generator.device
        knots = torch.randn((points,) * 3, generator=self.generator, device=device)
        if points == self.size:
            return knots
        eye = torch.eye(points, device=device)[None]
        line = F.interpolate(eye, size=self.size, mode="linear", align_corners=True)[0]
        for _ in range(3):  # axis by axis: far faster than at once
            knots = torch.tensordot(knots, line, dims=([0], [0]))
        return knots * 1.6  # what interpolation takes from the spread

    def _rand(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.generator.device)


def draw_phantom(generator: Generator, size: int) -> Source:
    """Draw one head of ``size`` voxels an edge, on the generator's device.

    Its axes are those of RAS, more or less. The brain lies in the middle.
    """
    draw = Draw(generator, size)
    half = WIDTH * size / 2
    human = draw.chance(HUMAN)
    share = human * draw.between(0.78, 0.97) + (1 - human) * draw.between(0.4, 0.85)
    grid = voxel_indices((size,) * 3, generator.device)[0] - (size - 1) / 2
    grid = grid + torch.stack([draw.field(3, 5) for _ in range(3)]) * draw.between(0, 0.05) * half
    edges = draw.three((0.72, 1.0), (1.0, 1.3), (0.65, 1.05)) * share * half
    brain = _brain(draw, grid, edges)
    head = _head(draw, grid, brain, edges, half, human)
    classes = torch.where(head < 0, torch.full_like(head, SKIN), torch.full_like(head, AIR))
    classes = _soft_tissue(draw, classes)
    classes = _organs(draw, classes, grid, edges, head)
    classes = _layers(draw, classes, brain, head)
    classes = _matter(draw, classes, grid, brain, edges)
    if on_host(generator, "fluid").random() < DARK:
        classes = torch.where(classes == FLUID, AIR, classes)
    return source(classes, _textured(draw, classes), (brain < 0).float())


def ellipsoid(grid: Tensor, centre: Tensor, edges: Tensor) -> Tensor:
    """Distance in voxels to the border of an ellipsoid, about; negative within: (n, n, n)."""
    shape = (3, 1, 1, 1)
    rho = ((grid - centre.view(shape)) / edges.view(shape)).square().sum(0).sqrt()
    return (rho - 1) * edges.min()


def boxy(grid: Tensor, edges: Tensor, power: Tensor) -> Tensor:
    """Distance to the border of a body between ellipsoid (power 2) and box, in the middle."""
    rho = (grid / edges.view(3, 1, 1, 1)).abs().clamp(min=1e-4) ** power
    return (rho.sum(0) ** (1 / power) - 1) * edges.min()


def _brain(draw: Draw, grid: Tensor, edges: Tensor) -> Tensor:
    """Distance to the border of a brain, at times with a cerebellum and a stem."""
    x, y, z = edges
    rough = draw.field(6, 10) * draw.between(0, 0.05) * edges.min()
    whole = boxy(grid, edges, draw.between(1.9, 3.0)) + rough
    base = -z * draw.between(0.35, 1.2) - grid[2]  # flat below, at times
    whole = torch.maximum(whole, base - draw.between(0, 0.5) * y * (grid[1] < 0))
    below = torch.stack([0 * x, -y * draw.between(0.3, 0.9), -z * draw.between(0.3, 0.9)])
    hind = ellipsoid(grid, below, edges * draw.three((0.4, 0.75), (0.25, 0.5), (0.3, 0.5)))
    end = -z * draw.between(0.7, 1.5)
    stem = _column(grid, below * draw.between(0.2, 0.9), x * draw.between(0.08, 0.25))
    stem = torch.maximum(torch.maximum(stem, grid[2]), end - grid[2])
    for part in (hind, stem):
        whole = torch.minimum(whole, part + 1e3 * (1 - draw.chance(0.75)))
    return whole


def _column(grid: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Distance to the border of an upright column."""
    return ((grid[0] - centre[0]) ** 2 + (grid[1] - centre[1]) ** 2).sqrt() - radius


def _head(
    draw: Draw, grid: Tensor, brain: Tensor, edges: Tensor, half: float, human: Tensor
) -> Tensor:
    """Distance to the skin: of what covers the brain, of a face or a snout, and of a neck."""
    x, y, z = edges
    cover = (half - (x * y).sqrt()).clamp(min=0.03 * half)
    head = brain - cover * (1 + 0.3 * draw.field(3)).clamp(0.3, 2) * draw.between(0.7, 1.2)
    front = human * draw.between(0.3, 0.8) + (1 - human) * draw.between(0.6, 1.6)
    place = torch.stack([0 * x, y * front, -z * draw.between(0.3, 1.3)])
    face = ellipsoid(grid, place, half * draw.three((0.4, 0.85), (0.5, 1.1), (0.5, 1.1)))
    neck = _column(grid, place * draw.between(-0.8, 0.1), half * draw.between(0.4, 0.85))
    neck = torch.maximum(neck, grid[2] + z * draw.between(0, 0.6))
    head = torch.minimum(head, face + 1e3 * (1 - draw.chance(0.85)))
    return torch.minimum(head, neck + 1e3 * (1 - draw.chance(0.75)))


def _soft_tissue(draw: Draw, classes: Tensor) -> Tensor:
    """Mix bone and muscle into the skin, in blobs."""
    blobs, skin = draw.field(5, 9, 14), classes == SKIN
    classes = torch.where(skin & (blobs > 1), BONE, classes)
    return torch.where(skin & (blobs < -draw.between(0.3, 1.5)), MUSCLE, classes)


def _organs(draw: Draw, classes: Tensor, grid: Tensor, edges: Tensor, head: Tensor) -> Tensor:
    """Add eyes, a spinal cord in its canal, and cavities and lumps anywhere in the head."""
    x, y, z = edges
    apart, front, low = x * draw.between(0.3, 0.6), y * draw.between(0.7, 1.1), -z
    height = low * draw.between(0.1, 0.8)
    radius = edges.min() * draw.between(0.14, 0.28)
    back = torch.stack([0 * x, -y * draw.between(0.0, 0.6), 0 * x])
    canal = _column(grid, back, x * draw.between(0.1, 0.25))
    parts = [
        (torch.maximum(canal, grid[2]), FLUID, 0.6),
        (torch.maximum(canal + x * draw.between(0.03, 0.1), grid[2]), CORD, 0.6),
    ]
    for side in (-1, 1):
        place = torch.stack([side * apart, front, height])
        parts.append((ellipsoid(grid, place, radius.expand(3)), FLUID, 0.8))
    for kind in (AIR, AIR, AIR, BONE, MUSCLE, CORD, SKIN):
        place = edges * draw.three((-1.2, 1.2), (-1.2, 1.6), (-1.8, 0.2))
        lump = ellipsoid(grid, place, edges.min() * draw.three(*[(0.06, 0.35)] * 3))
        parts.append((lump, kind, 0.6))
    for distance, kind, probability in parts:
        here = (distance < 0) & (head < -1) & (draw.chance(probability) > 0)
        classes = torch.where(here, torch.full_like(classes, kind), classes)
    return classes


def _layers(draw: Draw, classes: Tensor, brain: Tensor, head: Tensor) -> Tensor:
    """Wrap the brain in fluid, a membrane at times, and bone; all of uneven thickness."""
    scale = draw.size / 64
    fluid = (draw.between(-0.5, 2.0) + 0.8 * draw.field(4, 8)).clamp(min=0) * scale
    bone = fluid + (draw.between(0.3, 2.5) + 0.6 * draw.field(4)).clamp(min=0) * scale
    gaps = draw.chance(0.5) * (draw.field(5) > 1.0)  # where no bone is seen
    inside = head < -0.5
    classes = torch.where((brain < bone) & inside & (gaps == 0), BONE, classes)
    kind = FLUID if draw.chance(0.85) else SKIN
    return torch.where((brain < fluid) & inside, torch.full_like(classes, kind), classes)


def _matter(draw: Draw, classes: Tensor, grid: Tensor, brain: Tensor, edges: Tensor) -> Tensor:
    """Fill the brain: bark and core, furrows, ventricles, nuclei, blobs of anything."""
    first, last = MATTER
    within, scale = brain < 0, draw.size / 64
    bark = -(draw.between(0.3, 2.0) + 1.2 * draw.field(10, 20).clamp(-1.5, 1.5)) * scale
    matter = torch.where(brain > bark, first, first + 1)
    blobs = draw.field(4, 8, 12)
    for number in range(first + 2, last + 1):
        low = draw.between(-1.5, 1.5)
        some = (blobs > low) & (blobs < low + draw.between(0, 0.4)) & (draw.chance(0.5) > 0)
        matter = torch.where(some, number, matter)
    furrows = (draw.field(12, 20) > draw.between(0.3, 2.5)) & (brain > -3.5 * scale)
    matter = torch.where(furrows & (draw.chance(0.7) > 0), FLUID, matter)
    for side in (-1, 1):
        place = edges * draw.three((0.05, 0.2), (-0.3, 0.3), (-0.2, 0.3))
        place = place * torch.tensor([side, 1, 1], device=edges.device)
        hollow = ellipsoid(grid, place, edges * draw.three((0.04, 0.2), (0.1, 0.5), (0.05, 0.25)))
        here = (hollow < 0) & (draw.chance(0.7) > 0)
        matter = torch.where(here, FLUID if draw.chance(0.8) else last, matter)
    return torch.where(within, matter.float(), classes)


def _textured(draw: Draw, classes: Tensor) -> Tensor:
    """Make an image (n, n, n) in [0, 1]: a grey for each class, noise of its own within."""
    generator, device = draw.generator, draw.generator.device
    grey = torch.rand(CLASSES, generator=generator, device=device)
    grey[AIR] = grey[AIR] * (1 - draw.chance(0.9))
    rough = torch.rand(CLASSES, generator=generator, device=device) * 0.25
    rough[AIR] = 0.02
    noise = draw.between(0, 1) * draw.field(16, 32) + draw.between(0, 1) * draw.field(draw.size)
    index = classes.long()
    return (grey[index] + rough[index] * noise).clamp(0, 1)
