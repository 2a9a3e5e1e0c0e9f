"""A painted human-like head around the MNI152 brain, on a grid in template space.

The brain is nilearn's template. All around it is analytic: shells at given distances from the
brain (fluid, dura, skull with marrow, scalp), ellipsoids and tubes for the face and neck.
Coordinates are MNI mm, axes right, anterior, superior. The pictures are meant to be hard in the
way real heads are (muscle as bright as cortex, marrow, orbital fat), not to be anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn import datasets
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

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


@dataclass(frozen=True)
class Anatomy:
    """What differs between two heads before they are posed and scanned.

    Attributes
    ----------
    csf_mm, skull_mm, fat_mm : float
        Mean thickness of the layers around the brain; the skin adds 2 mm.
    face : float
        Scale of the face's depth and height.
    neck : float
        Scale of the neck's radius.
    atrophy : float
        Exponent on the tissue probabilities; above 1 widens the sulci.
    tissues : dict of str to float
        Mean intensity of each tissue.
    """

    csf_mm: float
    skull_mm: float
    fat_mm: float
    face: float
    neck: float
    atrophy: float
    tissues: dict[str, float]


@dataclass(frozen=True)
class Brain:
    """The template on the painting grid.

    Attributes
    ----------
    axes : tuple of ndarray
        Coordinates in mm along X, Y, Z, shaped to broadcast.
    affine : ndarray
        Voxel index to template mm, shape (4, 4).
    mask, gm, wm : ndarray
        Brain mask and tissue probabilities, shape (X, Y, Z).
    distance : ndarray
        Signed distance in mm to the brain's closed hull, negative inside.
    """

    axes: tuple[Array, Array, Array]
    affine: NDArray[np.float64]
    mask: Array
    gm: Array
    wm: Array
    distance: Array


def draw_anatomy(contrast: str, rng: np.random.Generator) -> Anatomy:
    """Draw a head.

    Parameters
    ----------
    contrast : {"T1w", "T2w"}
        Row of `TISSUES`.
    rng : numpy.random.Generator
        Source of every draw.

    Returns
    -------
    Anatomy
        Layer thicknesses, proportions, and tissue means jittered by up to 8 %.
    """
    means = {name: mean * rng.uniform(0.92, 1.08) for name, mean in TISSUES[contrast].items()}
    return Anatomy(
        csf_mm=rng.uniform(1.2, 2.8),
        skull_mm=rng.uniform(4.5, 8.0),
        fat_mm=rng.uniform(2.0, 6.0),
        face=rng.uniform(0.95, 1.1),
        neck=rng.uniform(0.85, 1.1),
        atrophy=rng.uniform(0.85, 1.3),
        tissues=means | {"air": BACKGROUND},
    )


@lru_cache(maxsize=2)
def load_brain(step_mm: float) -> Brain:
    """Resample the template and its hull distance to the painting grid.

    Parameters
    ----------
    step_mm : float
        Voxel edge of the grid.

    Returns
    -------
    Brain
        Cached: treat its arrays as read-only.
    """
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
    return Brain(axes, affine, distance=distance, **on_grid)


def paint_head(brain: Brain, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    """Paint a head, outside in: each tissue covers what was there.

    Parameters
    ----------
    brain : Brain
        The template on the painting grid.
    anatomy : Anatomy
        The head to paint.
    rng : numpy.random.Generator
        Source of the texture and of the layers' local thickness.

    Returns
    -------
    ndarray
        Intensities, shape (X, Y, Z); white matter and fat near 1.
    """
    spread = 1 + 0.8 * waves(brain.axes, 3, (60.0, 160.0), rng)
    skull = anatomy.csf_mm + anatomy.skull_mm * spread
    outer = _head_distance(brain, anatomy, skull + anatomy.fat_mm + 2)
    texture = _texture(brain, rng)
    canvas = _Canvas(brain.axes, anatomy.tissues, outer)
    _paint_soft_tissue(canvas, texture, anatomy)
    _paint_neck(canvas)
    _paint_face(canvas, anatomy.face)
    _paint_skull(canvas, brain.distance, skull, texture, anatomy)
    _paint_cord(canvas)
    _paint_brain(canvas, brain, anatomy)
    return canvas.image * (1 + 0.04 * texture)


def waves(
    axes: Sequence[Array], count: int, period_mm: tuple[float, float], rng: np.random.Generator
) -> Array:
    """Return a smooth random field between -1 and 1.

    Parameters
    ----------
    axes : sequence of ndarray
        Three coordinate arrays in mm that broadcast to the field's shape.
    count : int
        Number of products of three cosines to add up.
    period_mm : tuple of float
        Shortest and longest wave.
    rng : numpy.random.Generator
        Source of periods and phases.

    Returns
    -------
    ndarray
        The field.
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
    """An image in the making.

    Parameters
    ----------
    axes : tuple of ndarray
        Coordinates in mm along X, Y, Z, shaped to broadcast.
    tissues : dict of str to float
        Intensity of each tissue.
    outer : ndarray
        Signed distance in mm to the skin, whose 2 mm nothing covers.
    """

    def __init__(
        self, axes: tuple[Array, Array, Array], tissues: dict[str, float], outer: Array
    ) -> None:
        self.axes, self.tissues, self.outer = axes, tissues, outer
        self.soft_mm = float(axes[0].ravel()[1] - axes[0].ravel()[0])
        inside = np.clip(0.5 - outer / self.soft_mm, 0, 1)
        self.image = tissues["air"] + inside * np.float32(tissues["skin"] - tissues["air"])

    def fill(self, tissue: str, distance: Array, opacity: float = 1.0) -> None:
        """Cover where `distance` (mm) is negative, over an edge of one voxel."""
        self._cover((slice(None),) * 3, tissue, distance, opacity)

    def blob(self, tissue: str, centre: Sequence[float], radii: Sequence[float]) -> None:
        """Cover an ellipsoid, and its mirror image on the left if it is off the midline."""
        for side in (1.0, -1.0) if centre[0] else (1.0,):
            middle = (side * centre[0], *centre[1:])
            box = tuple(
                slice(*np.searchsorted(axis.ravel(), [c - r - 3, c + r + 3]))
                for axis, c, r in zip(self.axes, middle, radii, strict=True)
            )
            x, y, z = self.axes
            near = (x[box[0]], y[:, box[1]], z[:, :, box[2]])
            self._cover(box, tissue, _ellipsoid(near, middle, radii))

    def _cover(
        self, box: tuple[slice, ...], tissue: str, distance: Array, opacity: float = 1.0
    ) -> None:
        """Blend a tissue into a box of the image in place."""
        inside = np.maximum(distance, self.outer[box] + 2)
        share = np.clip(0.5 - inside / self.soft_mm, 0, 1) * np.float32(opacity)
        self.image[box] += share * (np.float32(self.tissues[tissue]) - self.image[box])


def _paint_soft_tissue(canvas: _Canvas, texture: Array, anatomy: Anatomy) -> None:
    """Paint skin, the fat below it, and muscle with strands of fat in the depth."""
    depth = -canvas.outer
    canvas.fill("fat", 2 - depth)
    canvas.fill("muscle", 2 + anatomy.fat_mm - depth)
    canvas.fill("fat", np.maximum(8 - depth, 2 * (1.1 - texture)), 0.8)
    canvas.blob("muscle", (68, 22, -22), (11, 26, 34))  # temporalis
    canvas.blob("muscle", (56, 28, -80), (9, 18, 26))  # masseter


def _paint_neck(canvas: _Canvas) -> None:
    """Paint the airway and the vertebrae."""
    canvas.blob("air", (0, 6, -84), (9, 6, 22))
    canvas.blob("mucosa", (0, 8, -112), (14, 9, 8))
    canvas.blob("air", (0, 8, -165), (9, 9, 45))
    for level in np.arange(-84.0, -190.0, -19.0).tolist():
        canvas.blob("bone", (0, -27, level), (15, 11, 9))
        canvas.blob("marrow", (0, -27, level), (13, 9, 7))
        canvas.blob("disc", (0, -27, level - 9.5), (13, 9, 3))
        canvas.blob("bone", (18, -36, level), (9, 8, 6))
        canvas.blob("bone", (0, -66, level), (5, 13, 6))
        canvas.blob("marrow", (0, -68, level), (3, 10, 4))


def _paint_face(canvas: _Canvas, face: float) -> None:
    """Paint jaws, nose, sinuses and orbits."""
    canvas.blob("bone", (0, 62, -66), (42, 22 * face, 20))
    canvas.blob("marrow", (0, 66, -78), (30, 14 * face, 6))
    x, y, z = canvas.axes
    arch = np.hypot(x / 44, (y - 32) / (40 * face)) - 1
    jaw = np.hypot(40 * arch, (z + 108) * 0.7) + np.maximum(25 - y, 0) * 0.5
    canvas.fill("bone", jaw - 8)
    canvas.fill("marrow", jaw - 5)
    canvas.blob("muscle", (0, 46, -92), (27, 30, 17))  # tongue
    canvas.blob("mucosa", (9, 52, -54), (10, 34, 19))
    canvas.blob("air", (7, 54, -54), (4.5, 36, 17))
    canvas.blob("mucosa", (9, 48, -58), (3, 24, 4))
    canvas.blob("air", (32, 52, -68), (13, 15, 14))
    canvas.blob("air", (8, 18, -40), (7, 10, 8))
    canvas.blob("bone", (33, 44, -38), (20, 25, 19))
    canvas.blob("fat", (33, 46, -38), (18, 25, 17))
    for along in np.linspace(0, 1, 8):
        canvas.blob("muscle", (33 - 22 * along, 44 - 28 * along, -38 + 5 * along), (2.4, 4, 2.4))
    canvas.blob("muscle", (33, 57, -38), (13.2, 13.2, 13.2))
    canvas.blob("vitreous", (33, 57, -38), (12, 12, 12))
    canvas.blob("lens", (33, 66, -38), (4.5, 2.5, 4.5))


def _paint_skull(
    canvas: _Canvas, distance: Array, skull: Array, texture: Array, anatomy: Anatomy
) -> None:
    """Paint bone, marrow and frontal sinus, then dura, sagittal sinus and fluid."""
    thick = skull - anatomy.csf_mm
    canvas.fill("bone", distance - skull)
    middle = anatomy.csf_mm + 0.55 * thick
    canvas.fill("marrow", np.abs(distance - middle) - (0.22 + 0.06 * texture) * thick, 0.9)
    canvas.blob("air", (9, 79, -4), (9, 4, 9))
    canvas.fill("bone", np.maximum(distance - anatomy.csf_mm - 1.5, anatomy.csf_mm - distance))
    canvas.fill("dura", distance - anatomy.csf_mm - 0.8)
    x, _, z = canvas.axes
    sinus = np.hypot(x, distance - anatomy.csf_mm - 1) - 3.5
    canvas.fill("dura", np.maximum(sinus, -10 - z))
    canvas.fill("csf", distance - anatomy.csf_mm)


def _paint_cord(canvas: _Canvas) -> None:
    """Paint the spinal canal through the skull base, and the cord below the brain stem."""
    x, y, z = canvas.axes
    radius = np.hypot(x, y + 46 - 0.04 * (z + 72))
    below = z + 64
    canvas.fill("bone", np.maximum(radius - 13, below))
    canvas.fill("csf", np.maximum(radius - 9, below - 6))
    canvas.fill("cord", np.maximum(radius - 5.5, below - 4))


def _paint_brain(canvas: _Canvas, brain: Brain, anatomy: Anatomy) -> None:
    """Paint the template's tissue mixture where its mask is."""
    gm, wm = np.maximum(brain.gm, 0) ** anatomy.atrophy, np.maximum(brain.wm, 0)
    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total, wm / total
    means = anatomy.tissues
    mixture = gm * means["gm"] + wm * means["wm"] + (1 - gm - wm) * means["csf"]
    canvas.image += brain.mask * (mixture.astype(np.float32) - canvas.image)


def _head_distance(brain: Brain, anatomy: Anatomy, layers: Array) -> Array:
    """Return the signed distance in mm to the skin: vault, face, nose, neck and ears as one."""
    axes, face = brain.axes, anatomy.face
    x, y, z = axes
    front = _ellipsoid(axes, (0, 28, -62), (66, 58 * face, 74 * face))
    nose = _ellipsoid(axes, (0, 86 * face, -58), (13, 20 * face, 18))
    chin = _ellipsoid(axes, (0, 62 * face, -112), (28, 20 * face, 18))
    temple = _ellipsoid((np.abs(x), y, z), (64, 22, -22), (14, 34, 42))
    wide = anatomy.neck * (56 + 0.9 * np.maximum(-155 - z, 0))
    neck = (np.hypot(x / wide, (y + 32 + 0.1 * z + 10) / (60 * anatomy.neck)) - 1) * 55
    ear = _ellipsoid((np.abs(x), y, z), (81, -24, -38), (7, 15, 28))
    outer = _smooth_union(brain.distance - layers, front, 14)
    outer = _smooth_union(outer, np.maximum(neck, z + 50), 16)
    for part, blend_mm in ((temple, 10), (chin, 10), (nose, 8), (ear, 5)):
        outer = _smooth_union(outer, part, blend_mm)
    return outer


def _hull_distance(mask: NDArray[np.bool_], voxel_mm: float) -> Array:
    """Return the signed distance to the mask closed by a ball of 10 mm, so without its sulci."""
    near = ndimage.distance_transform_edt(~mask, sampling=voxel_mm) < 10
    hull = ndimage.distance_transform_edt(near, sampling=voxel_mm) > 10
    outside = ndimage.distance_transform_edt(~hull, sampling=voxel_mm)
    inside = ndimage.distance_transform_edt(hull, sampling=voxel_mm)
    return ndimage.gaussian_filter((outside - inside).astype(np.float32), 1.0)


def _texture(brain: Brain, rng: np.random.Generator) -> Array:
    """Return noise of unit variance, correlated over a few mm."""
    step = float(brain.affine[0, 0])
    noise = rng.standard_normal(brain.mask.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, 2.5 / step)
    return smooth / smooth.std()


def _ellipsoid(axes: Sequence[Array], centre: Sequence[float], radii: Sequence[float]) -> Array:
    """Return about the signed distance in mm to an ellipsoid, exact on its surface."""
    offsets = [axis - np.float32(c) for axis, c in zip(axes, centre, strict=True)]
    once = sum((o / np.float32(r)) ** 2 for o, r in zip(offsets, radii, strict=True))
    twice = sum((o / np.float32(r * r)) ** 2 for o, r in zip(offsets, radii, strict=True))
    level = np.sqrt(once)
    return level * (level - 1) / np.sqrt(np.maximum(twice, 1e-8))


def _smooth_union(a: Array, b: Array, blend_mm: float) -> Array:
    """Return the distance to two shapes joined with a fillet."""
    return np.minimum(a, b) - np.maximum(blend_mm - np.abs(a - b), 0) ** 2 / (4 * blend_mm)
