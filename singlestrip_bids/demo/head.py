"""A painted human-like head around the MNI152 brain, on a grid in template space.

The brain is nilearn's template. All around it is analytic: shells at distances from the brain
(fluid, dura, skull with marrow, scalp), ellipsoids and tubes for the face and neck. Coordinates
are MNI mm, axes right, anterior, superior. The pictures are meant to be hard in the way real heads
are (muscle as bright as cortex, marrow, orbital fat), not to be anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn import datasets
from numpy.typing import NDArray
from scipy import ndimage

from ..image.resampling import Array

LOWER_MM, UPPER_MM = (-105.0, -140.0, -190.0), (105.0, 122.0, 112.0)
BACKGROUND = 0.01
TISSUES = {
    "T1w": {
        "air": BACKGROUND, "csf": 0.2, "gm": 0.55, "wm": 0.8, "dura": 0.45, "bone": 0.08,
        "marrow": 0.6, "fat": 1.0, "muscle": 0.5, "skin": 0.55, "vitreous": 0.17, "lens": 0.45,
        "cord": 0.72, "disc": 0.4, "mucosa": 0.5,
    },
    "T2w": {
        "air": BACKGROUND, "csf": 1.0, "gm": 0.6, "wm": 0.42, "dura": 0.25, "bone": 0.06,
        "marrow": 0.42, "fat": 0.68, "muscle": 0.3, "skin": 0.4, "vitreous": 1.05, "lens": 0.2,
        "cord": 0.45, "disc": 0.5, "mucosa": 0.85,
    },
}  # fmt: skip
RANGES = {
    "csf_mm": (1.2, 2.8), "skull_mm": (4.5, 8.0), "fat_mm": (2.0, 6.0), "face": (0.95, 1.1),
    "neck": (0.85, 1.1), "atrophy": (0.85, 1.3),
}  # fmt: skip
"""Of what differs between heads: layers, scales, and an exponent that widens the sulci."""

Blob = tuple[str, tuple[float, float, float], tuple[float, float, float]]
"""An ellipsoid: tissue, centre, radii. Off the midline it has a mirror image on the left."""
TEMPLES_AND_AIRWAY: tuple[Blob, ...] = (
    ("muscle", (68, 22, -22), (11, 26, 34)), ("muscle", (56, 28, -80), (9, 18, 26)),
    ("air", (0, 6, -84), (9, 6, 22)), ("mucosa", (0, 8, -112), (14, 9, 8)),
    ("air", (0, 8, -165), (9, 9, 45)),
)  # fmt: skip
VERTEBRA: tuple[Blob, ...] = (
    ("bone", (0, -27, 0), (15, 11, 9)), ("marrow", (0, -27, 0), (13, 9, 7)),
    ("disc", (0, -27, -9.5), (13, 9, 3)), ("bone", (18, -36, 0), (9, 8, 6)),
    ("bone", (0, -66, 0), (5, 13, 6)), ("marrow", (0, -68, 0), (3, 10, 4)),
)  # fmt: skip
TONGUE_NOSE_SINUSES: tuple[Blob, ...] = (
    ("muscle", (0, 46, -92), (27, 30, 17)), ("mucosa", (9, 52, -54), (10, 34, 19)),
    ("air", (7, 54, -54), (4.5, 36, 17)), ("mucosa", (9, 48, -58), (3, 24, 4)),
    ("air", (32, 52, -68), (13, 15, 14)), ("air", (8, 18, -40), (7, 10, 8)),
)  # fmt: skip
ORBIT: tuple[Blob, ...] = (
    ("bone", (33, 44, -38), (20, 25, 19)), ("fat", (33, 46, -38), (18, 25, 17)),
    *(
        ("muscle", (33 - 22 * along, 44 - 28 * along, -38 + 5 * along), (2.4, 4, 2.4))
        for along in np.linspace(0, 1, 8).tolist()
    ),
    ("muscle", (33, 57, -38), (13.2, 13.2, 13.2)), ("vitreous", (33, 57, -38), (12, 12, 12)),
    ("lens", (33, 66, -38), (4.5, 2.5, 4.5)),
)  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """A head: a number from each of the `RANGES`, and the mean of each tissue."""

    csf_mm: float
    skull_mm: float
    fat_mm: float
    face: float
    neck: float
    atrophy: float
    tissues: dict[str, float]


@dataclass(frozen=True)
class Template:
    """The brain on the painting grid; arrays are (X, Y, Z).

    ``axes`` are coordinates in mm that broadcast, ``affine`` goes from voxel index to template mm,
    ``distance`` is that in mm to the brain's closed hull, negative inside.
    """

    axes: tuple[Array, Array, Array]
    affine: NDArray[np.float64]
    mask: Array
    gm: Array
    wm: Array
    distance: Array


def draw_anatomy(contrast: str, rng: np.random.Generator) -> Anatomy:
    """Draw a head; tissue means are those of a row of `TISSUES`, jittered by up to 8 %."""
    means = {name: mean * rng.uniform(0.92, 1.08) for name, mean in TISSUES[contrast].items()}
    drawn = {name: rng.uniform(*ends) for name, ends in RANGES.items()}
    return Anatomy(**drawn, tissues=means | {"air": BACKGROUND})


@lru_cache(maxsize=2)
def load_template(step_mm: float) -> Template:
    """Resample the brain to a grid of such voxels; it is cached: do not change its arrays."""
    image = datasets.load_mni152_brain_mask(resolution=2)
    mask = image.get_fdata() > 0.5
    maps = {
        "mask": mask.astype(np.float32),
        "gm": datasets.load_mni152_gm_template(resolution=2).get_fdata(dtype=np.float32),
        "wm": datasets.load_mni152_wm_template(resolution=2).get_fdata(dtype=np.float32),
    }
    lines = [np.arange(a, b, step_mm) for a, b in zip(LOWER_MM, UPPER_MM, strict=True)]
    affine = np.diag([step_mm] * 3 + [1.0])
    affine[:3, 3] = LOWER_MM
    to_voxel = np.linalg.inv(image.affine) @ affine
    scale, shift = np.diag(to_voxel)[:3], to_voxel[:3, 3]
    shape = tuple(len(line) for line in lines)
    on_grid = {
        name: ndimage.affine_transform(data, scale, shift, shape, order=1, mode="constant")
        for name, data in maps.items()
    }
    pad = 20
    hull = _hull_distance(np.pad(mask, pad), voxel_mm=2.0)
    distance = ndimage.affine_transform(hull, scale, shift + pad, shape, order=1, mode="nearest")
    x, y, z = (line.astype(np.float32) for line in lines)
    axes = (x[:, None, None], y[None, :, None], z[None, None, :])
    return Template(axes, affine, distance=distance, **on_grid)


def _hull_distance(mask: NDArray[np.bool_], voxel_mm: float) -> Array:
    """Signed distance to the mask closed by a ball of 10 mm, so without its sulci."""
    near = ndimage.distance_transform_edt(~mask, sampling=voxel_mm) < 10
    hull = ndimage.distance_transform_edt(near, sampling=voxel_mm) > 10
    outside = ndimage.distance_transform_edt(~hull, sampling=voxel_mm)
    inside = ndimage.distance_transform_edt(hull, sampling=voxel_mm)
    return ndimage.gaussian_filter((outside - inside).astype(np.float32), 1.0)


def paint_head(template: Template, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    """Paint a head (X, Y, Z), outside in: each tissue covers what was there."""
    spread = 1 + 0.8 * waves(template.axes, 3, (60.0, 160.0), rng)
    skull = anatomy.csf_mm + anatomy.skull_mm * spread
    outer = _head_distance(template, anatomy, skull + anatomy.fat_mm + 2)
    noise = rng.standard_normal(template.mask.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, 2.5 / float(template.affine[0, 0]))
    texture = smooth / smooth.std()
    canvas = _Canvas(template.axes, anatomy.tissues, outer)
    _paint_outside(canvas, texture, anatomy)
    _paint_inside(canvas, template, skull, texture, anatomy)
    return canvas.image * (1 + 0.04 * texture)


def waves(
    axes: Sequence[Array], count: int, period_mm: tuple[float, float], rng: np.random.Generator
) -> Array:
    """Draw a smooth random field between -1 and 1: the mean of products of three cosines.

    ``axes`` are three coordinate arrays in mm that broadcast to the shape of the field.
    """
    field = np.zeros(np.broadcast_shapes(*(axis.shape for axis in axes)), np.float32)
    for _ in range(count):
        periods, phases = rng.uniform(*period_mm, 3), rng.uniform(0, 2 * np.pi, 3)
        x, y, z = (
            np.cos(2 * np.pi * axis / period + phase).astype(np.float32)
            for axis, period, phase in zip(axes, periods, phases, strict=True)
        )
        field += (x * y) * z
    return field / np.float32(count)


class _Canvas:
    """An image in the making; nothing covers the 2 mm of skin below ``outer``."""

    def __init__(
        self, axes: tuple[Array, Array, Array], tissues: dict[str, float], outer: Array
    ) -> None:
        self.axes, self.tissues, self.outer = axes, tissues, outer
        self.soft_mm = float(axes[0].ravel()[1] - axes[0].ravel()[0])
        inside = np.clip(0.5 - outer / self.soft_mm, 0, 1)
        self.image = tissues["air"] + inside * np.float32(tissues["skin"] - tissues["air"])

    def fill(self, tissue: str, distance: Array, opacity: float = 1.0) -> None:
        """Cover where a distance in mm is negative, over an edge of one voxel."""
        self._cover((slice(None),) * 3, tissue, distance, opacity)

    def add(self, blobs: Sequence[Blob], up: float = 0.0) -> None:
        """Cover ellipsoids, one after the other, so many mm further up."""
        x, y, z = self.axes
        for tissue, (right, front, above), radii in blobs:
            for side in (1.0, -1.0) if right else (1.0,):
                middle = side * right, front, above + up
                box = tuple(
                    slice(*np.searchsorted(axis.ravel(), [c - r - 3, c + r + 3]))
                    for axis, c, r in zip(self.axes, middle, radii, strict=True)
                )
                near = x[box[0]], y[:, box[1]], z[:, :, box[2]]
                self._cover(box, tissue, _ellipsoid(near, middle, radii))

    def _cover(
        self, box: tuple[slice, ...], tissue: str, distance: Array, opacity: float = 1.0
    ) -> None:
        inside = np.maximum(distance, self.outer[box] + 2)
        share = np.clip(0.5 - inside / self.soft_mm, 0, 1) * np.float32(opacity)
        self.image[box] += share * (np.float32(self.tissues[tissue]) - self.image[box])


def _paint_outside(canvas: _Canvas, texture: Array, anatomy: Anatomy) -> None:
    (x, y, z), face, depth = canvas.axes, anatomy.face, -canvas.outer
    canvas.fill("fat", 2 - depth)
    canvas.fill("muscle", 2 + anatomy.fat_mm - depth)
    canvas.fill("fat", np.maximum(8 - depth, 2 * (1.1 - texture)), 0.8)  # strands in the muscle
    canvas.add(TEMPLES_AND_AIRWAY)
    for level in np.arange(-84.0, -190.0, -19.0).tolist():
        canvas.add(VERTEBRA, up=level)
    canvas.add([("bone", (0, 62, -66), (42, 22 * face, 20))])
    canvas.add([("marrow", (0, 66, -78), (30, 14 * face, 6))])
    arch = np.hypot(x / 44, (y - 32) / (40 * face)) - 1
    jaw = np.hypot(40 * arch, (z + 108) * 0.7) + np.maximum(25 - y, 0) * 0.5
    canvas.fill("bone", jaw - 8)
    canvas.fill("marrow", jaw - 5)
    canvas.add([*TONGUE_NOSE_SINUSES, *ORBIT])


def _paint_inside(
    canvas: _Canvas, template: Template, skull: Array, texture: Array, anatomy: Anatomy
) -> None:
    (x, y, z), distance, csf_mm = canvas.axes, template.distance, anatomy.csf_mm
    thick = skull - csf_mm
    canvas.fill("bone", distance - skull)
    middle = csf_mm + 0.55 * thick
    canvas.fill("marrow", np.abs(distance - middle) - (0.22 + 0.06 * texture) * thick, 0.9)
    canvas.add([("air", (9, 79, -4), (9, 4, 9))])  # frontal sinus
    canvas.fill("bone", np.maximum(distance - csf_mm - 1.5, csf_mm - distance))
    canvas.fill("dura", distance - csf_mm - 0.8)
    sinus = np.hypot(x, distance - csf_mm - 1) - 3.5
    canvas.fill("dura", np.maximum(sinus, -10 - z))
    canvas.fill("csf", distance - csf_mm)
    radius, below = np.hypot(x, y + 46 - 0.04 * (z + 72)), z + 64  # of the spinal canal
    canvas.fill("bone", np.maximum(radius - 13, below))
    canvas.fill("csf", np.maximum(radius - 9, below - 6))
    canvas.fill("cord", np.maximum(radius - 5.5, below - 4))
    gm, wm = np.maximum(template.gm, 0) ** anatomy.atrophy, np.maximum(template.wm, 0)
    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total, wm / total
    means = anatomy.tissues
    mixture = gm * means["gm"] + wm * means["wm"] + (1 - gm - wm) * means["csf"]
    canvas.image += template.mask * (mixture.astype(np.float32) - canvas.image)


def _head_distance(template: Template, anatomy: Anatomy, layers: Array) -> Array:
    """Signed distance in mm to the skin: vault, face, nose, neck and ears as one."""
    axes, face = template.axes, anatomy.face
    x, y, z = axes
    front = _ellipsoid(axes, (0, 28, -62), (66, 58 * face, 74 * face))
    nose = _ellipsoid(axes, (0, 86 * face, -58), (13, 20 * face, 18))
    chin = _ellipsoid(axes, (0, 62 * face, -112), (28, 20 * face, 18))
    temple = _ellipsoid((np.abs(x), y, z), (64, 22, -22), (14, 34, 42))
    wide = anatomy.neck * (56 + 0.9 * np.maximum(-155 - z, 0))
    neck = (np.hypot(x / wide, (y + 32 + 0.1 * z + 10) / (60 * anatomy.neck)) - 1) * 55
    ear = _ellipsoid((np.abs(x), y, z), (81, -24, -38), (7, 15, 28))
    outer = _smooth_union(template.distance - layers, front, 14)
    outer = _smooth_union(outer, np.maximum(neck, z + 50), 16)
    for part, blend_mm in ((temple, 10), (chin, 10), (nose, 8), (ear, 5)):
        outer = _smooth_union(outer, part, blend_mm)
    return outer


def _ellipsoid(axes: Sequence[Array], centre: Sequence[float], radii: Sequence[float]) -> Array:
    """About the signed distance in mm to an ellipsoid, exact on its surface."""
    offsets = [axis - np.float32(c) for axis, c in zip(axes, centre, strict=True)]
    once = sum((o / np.float32(r)) ** 2 for o, r in zip(offsets, radii, strict=True))
    twice = sum((o / np.float32(r * r)) ** 2 for o, r in zip(offsets, radii, strict=True))
    level = np.sqrt(once)
    return level * (level - 1) / np.sqrt(np.maximum(twice, 1e-8))


def _smooth_union(a: Array, b: Array, blend_mm: float) -> Array:
    """Distance to two shapes joined with a fillet."""
    return np.minimum(a, b) - np.maximum(blend_mm - np.abs(a - b), 0) ** 2 / (4 * blend_mm)
