"""Random training images from class maps (and from the real images), on the network's device.

Every random number is drawn by ``draw_*`` from an explicit generator; what is done with the
numbers is deterministic, and nothing is read back from a GPU, so that no step waits for it. Linear
operators along one axis (blur, thick slices, field of view) are n × n matrices, so that a batch
costs a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..config import SynthesisConfig
from .classes import CLASSES, Source

_FWHM = 2 * math.sqrt(2 * math.log(2))
CORNERS = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))  # of a tetrahedron


@dataclass(frozen=True)
class Appearance:
    """Random numbers behind the intensities of one batch of B images, of n voxels an edge."""

    grey: Tensor  # (B, 17 or more) of the classes
    remap: Tensor  # (B, K) knots of the look-up table of real images
    blur: Tensor  # (B, 3) FWHM in voxels
    bias: Tensor  # (B, 1, c, c, c) control points, logarithmic
    noise: Tensor  # (B, 1, n, n, n)
    thickness: Tensor  # (B, 3) in voxels, 1 = none
    phase: Tensor  # (B, 3) of the thick slices, in [0, 1)
    gamma: Tensor  # (B,) exponent
    lines: Tensor  # (B, n) gain of each plane across the first axis
    crop: Tensor  # (B, 3, 2) fraction of the field of view cut from each end


def _uniform(generator: Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _with_probability(generator: Generator, batch: int, probability: float) -> Tensor:
    return torch.rand((batch, 1), generator=generator, device=generator.device) < probability


def on_host(generator: Generator, purpose: str) -> Random:
    """Random numbers that the host needs at once, whatever the device: from a generator's seed."""
    return Random(f"{purpose} {generator.initial_seed()}")


def draw_affine(
    generator: Generator, batch: int, config: SynthesisConfig, flips: bool = True
) -> Tensor:
    """Random rotation, scaling, shear and, if there are ``flips``, left-right flip: (B, 3, 3)."""
    angles = _uniform(generator, (batch, 3), -1, 1) * math.radians(config.rotation_deg)
    common = _uniform(generator, (batch, 1), -1, 1) * config.scaling
    scales = torch.exp(common + _uniform(generator, (batch, 3), -1, 1) * config.anisotropy)
    shears = _uniform(generator, (batch, 3), -1, 1) * config.shear
    flip = 1 - 2 * flips * _with_probability(generator, batch, 0.5).float()
    eye = torch.eye(3, device=generator.device).expand(batch, 3, 3)
    matrix = eye.clone()
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = eye.clone()
        cos, sin = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        turn[:, i, i], turn[:, j, j] = cos, cos
        turn[:, i, j], turn[:, j, i] = -sin, sin
        matrix = matrix @ turn
    upper = eye.clone()
    upper[:, 0, 1], upper[:, 0, 2], upper[:, 1, 2] = shears.unbind(1)
    stretch = torch.diag_embed(torch.cat([scales[:, :1] * flip, scales[:, 1:]], dim=1))
    return matrix @ upper @ stretch


def draw_warp(generator: Generator, batch: int, size: int, config: SynthesisConfig) -> Tensor:
    """Random smooth diffeomorphic displacement in voxels: (B, 3, n, n, n).

    A stationary velocity field, normal at coarse control points, is integrated by scaling and
    squaring (Arsigny et al. 2006) on a grid of half the resolution.
    """
    half = max(size // 2, 4)
    velocity = torch.zeros((batch, 3, half, half, half), device=generator.device)
    for points in (4, 8):
        spread = _uniform(generator, (batch, 1, 1, 1, 1), 0, config.warp * size / 2)
        shape = (batch, 3, points, points, points)
        knots = torch.randn(shape, generator=generator, device=generator.device) * spread
        velocity = velocity + F.interpolate(
            knots, size=(half,) * 3, mode="trilinear", align_corners=True
        ) * (4 / points)
    displacement = integrate(velocity)
    full = F.interpolate(displacement, size=(size,) * 3, mode="trilinear", align_corners=True)
    return full * ((size - 1) / (half - 1))


def integrate(velocity: Tensor, squarings: int = 5) -> Tensor:
    """Integrate a stationary velocity field (B, 3, X, Y, Z), in voxels, over unit time."""
    displacement = velocity / 2**squarings
    identity = voxel_indices(velocity.shape[2:], velocity.device)
    for _ in range(squarings):
        displacement = displacement + sample(displacement, identity + displacement, "border")
    return displacement


def voxel_indices(shape: Sequence[int], device: torch.device) -> Tensor:
    """Voxel indices (1, 3, X, Y, Z)."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(
    volume: Tensor, points: Tensor, padding: str = "zeros", mode: str = "bilinear"
) -> Tensor:
    """Read a volume (B, C, X, Y, Z) at voxel indices ``points`` (B, 3, n, n, n)."""
    return read(volume, grid_of(points, volume.shape[2:]), padding, mode)


def grid_of(points: Tensor, shape: Sequence[int]) -> Tensor:
    """Voxel indices (B, 3, n, n, n) in a volume of a shape -> PyTorch's grid (B, n, n, n, 3)."""
    axes = zip(points.unbind(1), shape, strict=True)
    return torch.stack([where * (2 / max(n - 1, 1)) - 1 for where, n in axes][::-1], dim=-1)


def read(volume: Tensor, grid: Tensor, padding: str = "zeros", mode: str = "bilinear") -> Tensor:
    """Read a volume (B, C, X, Y, Z) at a grid: (B, C, n, n, n).

    PyTorch has one core of the processor read each volume of a batch, so that a single one is
    read as a batch of planes.
    """
    by_plane = volume.is_cpu and len(volume) == 1 and not volume.requires_grad
    if by_plane:
        volume, grid = volume.expand(grid.shape[1], -1, -1, -1, -1), grid.transpose(0, 1)
    found = F.grid_sample(volume, grid, mode=mode, padding_mode=padding, align_corners=True)
    return found.transpose(0, 2) if by_plane else found


def halve(volume: Tensor) -> Tensor:
    """Interpolate volumes (B, C, X, Y, Z) at voxels half as large: (B, C, 2X, 2Y, 2Z)."""
    return F.interpolate(volume, scale_factor=2, mode="trilinear", align_corners=False)


def halved_points(points: Tensor) -> Tensor:
    """Points between points (B, 3, x, y, z), in voxels half as large: (B, 3, 2x, 2y, 2z)."""
    return 2 * halve(points) + 0.5


def draw_points(
    generator: Generator, sources: list[Source], size: int, config: SynthesisConfig
) -> Tensor:
    """Where in its source every voxel of every image is read: voxel indices (B, 3, n, n, n).

    Sources with structures are not flipped: many structures are left or right.
    """
    batch, flips = len(sources), not any(s.structures for s in sources)
    shift = _uniform(generator, (batch, 3), -1, 1) * config.shift * size
    centres = torch.stack([s.centre for s in sources])
    matrix = draw_affine(generator, batch, config, flips)
    warp = draw_warp(generator, batch, size, config)
    grid = voxel_indices((size,) * 3, generator.device)
    centred = grid - (size - 1) / 2 + shift.view(batch, 3, 1, 1, 1)
    moved = torch.einsum("bij,bjxyz->bixyz", matrix, centred + warp)
    return moved + centres.view(batch, 3, 1, 1, 1)


def draw_appearance(
    generator: Generator, batch: int, size: int, config: SynthesisConfig, classes: int = CLASSES
) -> Appearance:
    """Draw all that decides the intensities of a batch."""
    device = generator.device
    grey = _uniform(generator, (batch, classes), 0, 1)
    grey[:, 0] = 0
    dark = _with_probability(generator, batch, config.dark_air_probability)
    grey[:, 1:2] = torch.where(dark, grey[:, 1:2] * 0.05, grey[:, 1:2])
    strength = _uniform(generator, (batch, 1, 1, 1, 1), 0, config.bias)
    control = torch.randn((batch, 1, 4, 4, 4), generator=generator, device=device)
    sigma = _uniform(generator, (batch, 1, 1, 1, 1), 0, config.noise)
    noise = torch.randn((batch, 1, size, size, size), generator=generator, device=device) * sigma
    thick = _with_probability(generator, batch, config.slice_probability)
    axis = F.one_hot(torch.randint(0, 3, (batch,), generator=generator, device=device), 3)
    widths = _uniform(generator, (batch, 1), 1, max(config.slice_thickness * size, 1.0))
    cut = torch.rand((batch, 6), generator=generator, device=device) < config.crop_probability
    crop = cut * _uniform(generator, (batch, 6), 0, config.crop)
    faulty = _with_probability(generator, batch, config.lines_probability)
    gains = _uniform(generator, (batch, size), 0.5, 1.2)
    hit = torch.rand((batch, size), generator=generator, device=device) < 0.1
    return Appearance(
        grey=grey,
        remap=draw_remap(generator, batch, config.mild),
        blur=_uniform(generator, (batch, 3), 0, config.blur * size),
        bias=control * strength,
        noise=noise,
        thickness=torch.where(thick & (axis > 0), widths, torch.ones_like(widths)),
        phase=_uniform(generator, (batch, 3), 0, 1),
        gamma=torch.exp(_uniform(generator, (batch,), -1, 1) * config.gamma),
        lines=torch.where(faulty & hit, gains, torch.ones_like(gains)),
        crop=crop.view(batch, 3, 2),
    )


def draw_remap(generator: Generator, batch: int, mild: float = 0.0, knots: int = 12) -> Tensor:
    """Random look-up tables (B, K) from [0, 1] to [0, 1], a share ``mild`` close to the identity.

    A real image so remapped keeps its edges and texture while its contrast becomes another's:
    anything from a mild change to inverted or folded intensities.
    """
    device = generator.device
    coarse = torch.rand((batch, 1, 5), generator=generator, device=device)
    wild = F.interpolate(coarse, size=knots, mode="linear", align_corners=True)[:, 0]
    identity = torch.linspace(0, 1, knots, device=device)
    close = _with_probability(generator, batch, mild)
    mix = _uniform(generator, (batch, 1), 0, 1) * (1 - 0.8 * close.float())
    table = (1 - mix) * identity + mix * wild
    dark = _with_probability(generator, batch, 0.7)
    table[:, :1] = torch.where(dark, torch.zeros_like(mix), table[:, :1])
    return table


def look_up(image: Tensor, table: Tensor) -> Tensor:
    """Pass each image (B, 1, ...) in [0, 1] through its table (B, K), linear between knots."""
    last = table.shape[1] - 1
    position = image.flatten(1).clamp(0, 1) * last
    low = position.floor().clamp(max=last - 1)
    below = table.gather(1, low.long())
    above = table.gather(1, low.long() + 1)
    return (below + (position - low) * (above - below)).view_as(image)


def along(volume: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply one matrix (B, n, n) to each volume (B, 1, X, Y, Z) along a spatial axis."""
    moved = volume.movedim(2 + axis, 2)
    return (
        torch.bmm(matrix, moved.flatten(2)[:, 0].view(*matrix.shape[:2], -1))
        .view_as(moved)
        .movedim(2, 2 + axis)
    )


def blur_matrix(fwhm: Tensor, size: int) -> Tensor:
    """Gaussian smoothing along an axis, rows summing to one: (B,) FWHM in voxels -> (B, n, n)."""
    index = torch.arange(size, device=fwhm.device)
    distance = (index[:, None] - index[None, :]).float()
    sigma = (fwhm / _FWHM).clamp(min=0.05).view(-1, 1, 1)
    weight = torch.exp(-0.5 * (distance / sigma) ** 2)
    return weight / weight.sum(-1, keepdim=True)


def slice_matrix(thickness: Tensor, phase: Tensor, size: int) -> Tensor:
    """Slices of some voxels' thickness, read back by linear interpolation: (B,) -> (B, n, n)."""
    index = torch.arange(size, device=thickness.device, dtype=torch.float32)
    width, offset = thickness.view(-1, 1, 1), (phase * thickness).view(-1, 1, 1)
    count = size + 2
    centre = torch.arange(count, device=index.device).view(1, -1, 1) * width - offset
    profile = (0.5 * width + 0.5 - (index.view(1, 1, -1) - centre).abs()).clamp(0, 1)
    profile = profile / profile.sum(-1, keepdim=True).clamp(min=1e-6)
    weight = (1 - (index.view(1, -1, 1) - centre.transpose(1, 2)).abs() / width).clamp(min=0)
    weight = weight * (profile.sum(-1) > 0.5).unsqueeze(1)
    matrix = torch.bmm(weight, profile)
    matrix = matrix / matrix.sum(-1, keepdim=True).clamp(min=1e-6)
    eye = torch.eye(size, device=index.device)
    return torch.where(width > 1.0001, matrix, eye)


def field_of_view(crop: Tensor, size: int) -> Tensor:
    """One inside the field of view, zero in what is cut from its ends: (B, 3, 2) -> (B, 1, n³)."""
    position = (torch.arange(size, device=crop.device) + 0.5) / size
    kept = (position >= crop[..., :1]) & (position <= 1 - crop[..., 1:])
    x, y, z = kept.float().unbind(1)
    return (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :])[:, None]


def acquire(image: Tensor, inside: Tensor, appearance: Appearance) -> Tensor:
    """Pass painted images (B, 1, n, n, n) through a random scanner; intensities come in [0, 1]."""
    size = image.shape[-1]
    for axis in range(3):
        image = along(image, blur_matrix(appearance.blur[:, axis], size), axis)
    bias = F.interpolate(appearance.bias, size=(size,) * 3, mode="trilinear", align_corners=True)
    image = image * torch.exp(bias) * appearance.lines[:, None, :, None, None]
    image = (image + appearance.noise).abs()
    for axis in range(3):
        thickness, phase = appearance.thickness[:, axis], appearance.phase[:, axis]
        if not thickness.is_cpu or bool((thickness > 1).any()):  # a GPU is not asked
            image = along(image, slice_matrix(thickness, phase, size), axis)
    inside = inside * field_of_view(appearance.crop, size)
    image = normalise(image * inside) ** appearance.gamma.view(-1, 1, 1, 1, 1)
    return image * inside


def normalise(image: Tensor) -> Tensor:
    """Map the lowest value to 0 and the 99th percentile (of every 27th voxel) to 1; clip."""
    thinned = image[..., ::3, ::3, ::3].flatten(1)
    low, high = thinned.amin(1), torch.quantile(thinned, 0.99, dim=1)
    shape = (-1, 1, 1, 1, 1)
    return ((image - low.view(shape)) / (high - low).clamp(min=1e-4).view(shape)).clamp(0, 1)


def _shares(origin: Source, points: Tensor, numbers: Sequence[int] | None = None) -> list[Tensor]:
    """Read what each structure has of every voxel at points (1, 3, n, n, n): (1, K, n, n, n).

    Four places in each voxel are looked at. With ``numbers`` only these structures are read,
    counted from 0.
    """
    if origin.parts is None:
        return []
    size, count = points.shape[2:], math.prod(points.shape[2:])
    place = torch.arange(count, device=points.device)
    numbers = range(origin.structures) if numbers is None else numbers
    slot = torch.zeros(origin.structures + 1, dtype=torch.long)
    slot[[number + 1 for number in numbers]] = torch.arange(1, len(numbers) + 1)
    slot = slot.to(points.device)
    shares = torch.zeros((len(numbers) + 1) * count, device=points.device)
    quarter = torch.full((count,), 0.25, device=points.device)
    ratio = origin.parts.shape[2] // origin.mask.shape[2]
    for corner in CORNERS:
        offset = torch.tensor(corner, device=points.device).view(1, 3, 1, 1, 1) / 4
        where = ratio * (points + offset) + (ratio - 1) / 2
        found = read(origin.parts, grid_of(where, origin.parts.shape[2:]), mode="nearest")
        shares.scatter_add_(0, slot[found.long().flatten()] * count + place, quarter)
    return [shares.view(1, -1, *size)[:, 1:]]


def shares_of(origin: Source) -> Tensor:
    """Return what each structure has of every voxel of a labelled scan: (1, K, X, Y, Z)."""
    (shares,) = _shares(origin, voxel_indices(origin.mask.shape[2:], origin.mask.device))
    return shares


def training_batch(
    generator: Generator,
    sources: list[Source],
    size: int,
    config: SynthesisConfig,
    numbers: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Make an image and its target from each of B sources: (B, 1, n, n, n) in [0, 1], both.

    The target is the deformed mask, linearly interpolated, within the field of view; shares of
    the structures follow it, (B, 1 + K, n, n, n), if the sources have any, or of those with the
    ``numbers`` given, counted from 0. Each batch takes a generator of its own, on whose device it
    is made; ``size`` is n.
    """
    batch, sources = len(sources), [one.to(generator.device) for one in sources]
    points = draw_points(generator, sources, size, config)
    appearance = draw_appearance(generator, batch, size, config, sources[0].count)
    host = on_host(generator, "real")
    real = [host.random() < config.real_fraction for _ in sources]
    images, insides, masks = [], [], []
    for i, origin in enumerate(sources):
        where = grid_of(points[i : i + 1], origin.mask.shape[2:])
        padding = "border" if origin.extended else "zeros"
        classes = read(origin.classes, where, padding, "nearest").round()
        inside = (classes > 0).float()
        if real[i]:
            image = look_up(read(origin.image, where, padding), appearance.remap[i : i + 1])
        else:
            image = appearance.grey[i][classes.long()]
        images.append(image * inside)
        insides.append(inside)
        shares = _shares(origin, points[i : i + 1], numbers)
        masks.append(torch.cat([read(origin.mask, where), *shares], 1))
    inside = torch.cat(insides)
    image = acquire(torch.cat(images), inside, appearance)
    return image, torch.cat(masks) * inside * field_of_view(appearance.crop, size)
