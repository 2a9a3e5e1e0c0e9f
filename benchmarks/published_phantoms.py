"""PUMBA's phantoms as its paper and its code have them, to be measured beside the app's.

arXiv:2505.07159, at half of its resolution: lengths are those of its grid of 128 voxels of 2 mm,
scaled. Three things differ: masks are rounded where they are turned, not truncated; flips and
shifts are drawn for each phantom, not once for all; and its two targets, interior and boundary,
are joined as its inference joins them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from singlestrip_bids.config import SynthesisConfig
from singlestrip_bids.method.losses import Example
from singlestrip_bids.method.phantoms import Draw, ellipsoid
from singlestrip_bids.method.synthesis import (
    acquire,
    draw_affine,
    draw_appearance,
    field_of_view,
    integrate,
    look_up,
    normalise,
    sample,
    voxel_indices,
)

EDGE = 128  # voxels of the published grid
HEAD = 122.5 / EDGE  # width of a phantom's head, of the grid's edge


def example(size: int, generator: Generator, border: int = 3) -> Example:
    """Draw a phantom of ``size`` voxels an edge: its image and its target, (1, 1, n, n, n).

    The published boundary is thick on both sides, so that the target is dilated by a cube of
    ``border`` voxels; 1 leaves it as it is.
    """
    image, mask = shapes(size, generator)
    return normalise(image), F.max_pool3d(mask, border, 1, border // 2)


def imaged(size: int, synthesis: SynthesisConfig, generator: Generator) -> Example:
    """Draw a phantom as published; remap and acquire it as the app does its own."""
    image, mask = shapes(size, generator)
    appearance = draw_appearance(generator, 1, size, synthesis)
    inside = torch.ones_like(mask)
    image = acquire(look_up(image, appearance.remap), inside, appearance)
    return image, mask * field_of_view(appearance.crop, size)


def shapes(size: int, generator: Generator) -> Example:
    """Draw a published phantom: its image as painted, and its brain, (1, 1, n, n, n)."""
    draw, scale = Draw(generator, size), size / EDGE
    grid = voxel_indices((size,) * 3, generator.device)[0] - (size - 1) / 2
    head = draw.three(*[(120, 125)] * 3)
    skull = head - draw.between(5, 49)
    brain = skull - draw.three((0, 19), (0, 19), (10, 29))
    middle = torch.zeros(3, device=generator.device)
    inside = [ellipsoid(grid, middle, edge * scale / 2) < 0 for edge in (head, skull, brain)]
    shift = (draw.three(*[(0, 9)] * 3) * scale).round().int().tolist()
    shell = (inside[0] ^ inside[1]).roll(shift, (0, 1, 2))
    image = 0.1 + 0.1 * draw.field(size)
    image = torch.where(shell, _octants(draw, grid), image)
    image = _lumps(draw, image, grid, ~inside[2] & inside[0], scale)
    image = torch.where(inside[2], _octants(draw, grid), image)
    image = _holes(draw, image, grid, scale)
    both = torch.stack([image, inside[2].float()])[None]
    image, mask = _deformed(draw, both, grid).split(1, 1)
    return image.clamp(0, 1), mask


def _octants(draw: Draw, grid: Tensor) -> Tensor:
    """Fill eight blocks with noise, each of its own mean and spread."""
    block = (grid > 0).long()
    index = 4 * block[0] + 2 * block[1] + block[2]
    means = torch.stack([draw.between(0.4, 1) for _ in range(8)])
    spreads = torch.stack([draw.between(0, 0.4) for _ in range(8)])
    return (means[index] + spreads[index] * draw.field(draw.size)).clamp(0, 1)


def _lumps(draw: Draw, image: Tensor, grid: Tensor, where: Tensor, scale: float) -> Tensor:
    for _ in range(5):
        place = draw.three(*[(-55, 55)] * 3) * scale
        lump = ellipsoid(grid, place, draw.three(*[(10, 29)] * 3) * scale / 2) < 0
        texture = draw.between(0.4, 1) + draw.between(0, 0.4) * draw.field(draw.size)
        image = torch.where(lump & where, texture.clamp(0, 1), image)
    return image


def _holes(draw: Draw, image: Tensor, grid: Tensor, scale: float) -> Tensor:
    """Cut holes into the image alone, all on the diagonal."""
    for number in range(4):
        if number > 1 and not draw.chance(0.5):
            continue
        place = (draw.between(-55, 55) * scale).expand(3)
        hole = ellipsoid(grid, place, (draw.between(3, 9) * scale / 2).expand(3)) < 0
        image = torch.where(hole, torch.zeros_like(image), image)
    return image


def _deformed(draw: Draw, both: Tensor, grid: Tensor) -> Tensor:
    """Warp, turn, flip and shift image and mask (1, 2, n, n, n)."""
    generator, half = draw.generator, draw.size // 2
    knots = torch.randn((1, 3, 10, 10, 10), generator=generator, device=generator.device)
    spread = draw.between(10, 14) * draw.size / EDGE / 2
    velocity = F.interpolate(knots * spread, size=(half,) * 3, mode="trilinear")
    field = integrate(velocity, 7)
    warp = F.interpolate(field, size=(draw.size,) * 3, mode="trilinear")  # not doubled
    turn = draw_affine(
        generator, 1, SynthesisConfig(rotation_deg=15, scaling=0, anisotropy=0, shear=0)
    )
    shift = draw.three(*[(-10, 10)] * 3) * draw.size / EDGE
    moved = torch.einsum("bij,bjxyz->bixyz", turn, (grid + warp[0])[None])
    where = moved + shift.view(1, 3, 1, 1, 1) + (draw.size - 1) / 2
    return sample(both, where, "border", "nearest")
