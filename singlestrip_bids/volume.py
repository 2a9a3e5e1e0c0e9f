"""Images on disk to the model's grid and back; the only module that knows affines.

The model sees every head on an isotropic grid whose axes are the image's own, reordered to the
closest of RAS: no rotation, so that back and forth costs one linear interpolation. The grid holds
the whole field of view, always: it is padded, never cropped.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from . import resampling, voxels
from .annex import check_content
from .axes import SAME_ORDER, reordering, to_ras
from .errors import BadData
from .masks import Mask, box, clean

LOG = logging.getLogger("singlestrip_bids")
Array = NDArray[np.float32]

PERCENTILES = (0.5, 99.0)  # the intensities that become 0 and 1


@dataclass(frozen=True)
class Image:
    """One 3D volume: ``data`` (X, Y, Z) finite, float32 or short integers; its NIfTI header.

    Of a series of ``volumes`` it is the mean of as many as ``averaged`` says.
    """

    path: Path
    data: NDArray
    nifti: nib.Nifti1Image
    volumes: int = 1
    averaged: int = 1

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to mm (4, 4)."""
        return np.asarray(self.nifti.affine, dtype=np.float64)

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Edges of the voxels in mm (3,)."""
        return np.asarray(voxel_sizes(self.affine))


@dataclass(frozen=True)
class Conformed:
    """A volume on the model's grid.

    Attributes
    ----------
    data : ndarray
        (X, Y, Z) float32.
    affine : ndarray
        Voxel indices of this grid to mm (4, 4).
    inside : ndarray of bool
        (X, Y, Z), whether the voxel lies in the image's field of view.
    """

    data: Array
    affine: NDArray[np.float64]
    inside: Mask

    @property
    def voxel_size(self) -> float:
        """Edge of the voxels in mm."""
        return float(voxel_sizes(self.affine)[0])


def _open(path: Path) -> nib.Nifti1Image:
    check_content(path)
    try:
        nifti = nib.load(path)
    except (ImageFileError, HeaderDataError, *voxels.DAMAGED) as error:
        raise BadData(
            f"{path}: not a readable NIfTI image ({error}); restore the file."
        ) from error
    if not isinstance(nifti, nib.Nifti1Image):
        raise BadData(f"{path}: {type(nifti).__name__} is not NIfTI; convert it.")
    return nifti


def _compare_forms(path: Path, nifti: nib.Nifti1Image) -> None:
    """Warn if qform and sform place the corners of an image differently; the sform counts."""
    try:
        forms = [form() for form in (nifti.get_sform, nifti.get_qform)]
    except (HeaderDataError, ValueError):
        return  # a qform that says nothing
    if 0 in (nifti.header["sform_code"], nifti.header["qform_code"]):
        return
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(nifti.shape[:3]) - 1)
    with np.errstate(all="ignore"):
        apart = np.linalg.norm(apply_affine(forms[0] - forms[1], corners), axis=1).max()
    if apart > min(voxel_sizes(nifti.affine)) / 2:
        LOG.warning(
            "%s: its sform and qform are up to %.3g mm apart; the sform is used, and the mask "
            "keeps both.", path, apart,
        )  # fmt: skip


def memory_needed(path: Path) -> int:
    """Estimate the bytes that reading and masking an image takes, from its header alone."""
    nifti = _open(path)
    stored = math.prod(nifti.shape) * nifti.get_data_dtype().itemsize
    return stored + 12 * math.prod(nifti.shape[:3])  # float32, and twice as much in passing


def load(path: Path) -> Image:
    """Read an image; of a series the mean over time, as `voxels` has it.

    Raises
    ------
    BadData
        Not NIfTI, damaged, complex, RGB, 5D, without a usable affine, or without contrast.
    """
    nifti = _open(path)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", over="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        data, *counts = voxels.read(path, nifti)
    finite = np.isfinite(data)
    if not finite.all():
        share = 100 * (1 - finite.mean())
        if share > 50:
            raise BadData(f"{path}: {share:.0f} % of the voxels are not finite; restore the scan.")
        LOG.warning("%s: %.3g %% of the voxels are not finite; taken as the minimum.", path, share)
        data = np.where(finite, data, data[finite].min())
    if data.min() == data.max():
        raise BadData(f"{path}: every voxel is {data.flat[0]:g}; an image without a head.")
    if ((data == data.min()) | (data == data.max())).all():
        raise BadData(f"{path}: a mask, it seems: only two values; give the scan itself.")
    if (largest := np.abs(data).max()) > 1e30:  # sums of such values overflow
        data = data / largest
    affine = np.asarray(nifti.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadData(f"{path}: its affine cannot be inverted; mend sform or qform.")
    _compare_forms(path, nifti)
    return Image(path, data, nifti, *counts)


def extract(image: Image, mask: Mask) -> NDArray:
    """Read the voxels of ``image`` again, all its volumes, and set those outside the mask to 0.

    Returns
    -------
    ndarray
        (X, Y, Z) or (X, Y, Z, T), in the type of the file, or float32 if the file scales it.
    """
    stored = np.asanyarray(image.nifti.dataobj)
    data = stored.astype(np.float32) if stored.dtype == np.float64 else stored
    data = data.reshape(*mask.shape, *([image.volumes] if image.volumes > 1 else []))
    return np.where(mask.reshape(*mask.shape, *[1] * (data.ndim - 3)), data, data.dtype.type(0))


def to_canonical(mask: Mask, image: Image) -> nib.Nifti1Image:
    """Put a mask of ``image`` on the image's grid with axes closest to RAS; none is resampled."""
    header = image.nifti.header.copy()
    header.set_data_dtype(np.uint8)
    native = type(image.nifti)(mask.astype(np.uint8), image.nifti.affine, header)
    return nib.as_closest_canonical(native)


def load_mask(path: Path, image: Image) -> Mask:
    """Read the brain mask of ``image``, anything above one half, on the image's own grid.

    If its axes alone lie otherwise, they are reordered; no voxel is resampled.

    Raises
    ------
    BadData
        Another grid than the image's, empty, or filling the volume.
    """
    nifti = _open(path)
    with np.errstate(invalid="ignore"):
        data, *_ = voxels.read(path, nifti)
    order = reordering((data.shape, nifti.affine), (image.data.shape, image.affine))
    if order is None:
        raise BadData(
            f"{path}: a mask on another grid {data.shape} than its scan {image.path} "
            f"{image.data.shape}; resample the mask to the scan."
        )
    if not np.array_equal(order, SAME_ORDER):
        LOG.info("%s: its axes are reordered to those of its scan.", path)
    data = orientations.apply_orientation(data, order)
    mask = data > 0.5
    if not mask.any():
        raise BadData(f"{path}: an empty mask; label the brain in {image.path.name} first.")
    if mask.mean() > 0.95:
        raise BadData(f"{path}: the mask fills the volume; label the brain alone.")
    return mask


def support(data: Array) -> Mask:
    """Voxels that differ from the constant background, if there is one (the first corner)."""
    corners = data[:: data.shape[0] - 1 or 1, :: data.shape[1] - 1 or 1, :: data.shape[2] - 1 or 1]
    background = np.median(corners)
    if np.mean(corners == background) < 0.6:
        return np.ones(data.shape, dtype=bool)
    return data != background


def millilitres(mask: Mask, affine: NDArray) -> float:
    """Volume of a mask (X, Y, Z) on the grid of ``affine``."""
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def refuse_stripped(image: Image, brain_ml: float) -> None:
    """Raise BadData if all that is not background is hardly more than a brain.

    Without a constant background nothing was stripped: the field of view may be as small.

    Parameters
    ----------
    image : Image
        To be masked.
    brain_ml : float
        Volume of the labelled brain. A head fills at least 1.5 times its brain's volume, also
        where the field of view is tight; 1.1 times leaves room for smaller heads.
    """
    head = support(image.data)
    filled = millilitres(head, image.affine)
    if filled < 1.1 * brain_ml and not head.all():
        raise BadData(
            f"{image.path}: already skull-stripped, it seems: only {filled:.0f} ml are not "
            f"background, and the labelled brain has {brain_ml:.0f} ml; give the scan with its "
            "skull."
        )


def upright(data: NDArray, affine: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
    """Reorder the axes of (X, Y, Z) to the closest of RAS; also return the voxel sizes in mm."""
    moved, placed = to_ras(data, affine)
    return moved, voxel_sizes(placed)


def grid(
    shape: tuple[int, ...], affine: NDArray, voxel_size: float, size: int, multiple: int
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Place the model's grid over a canonical image: centred, covering its whole field of view.

    Returns
    -------
    tuple
        The shape, at least ``size`` and a multiple of ``multiple`` along each axis, and the
        affine (4, 4).
    """
    sizes = voxel_sizes(affine)
    extent = np.array(shape) * sizes
    counts = np.maximum(np.ceil(extent / voxel_size - 1e-3).astype(int), size)
    counts = -(-counts // multiple) * multiple
    placed = np.eye(4)
    placed[:3, :3] = affine[:3, :3] / sizes * voxel_size
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    placed[:3, 3] = centre - placed[:3, :3] @ ((counts - 1) / 2)
    return tuple(int(n) for n in counts), placed


def _positions(matrix: NDArray, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Where the planes of a grid lie along each axis of a parallel one, in its voxels."""
    return [matrix[axis, axis] * np.arange(n) + matrix[axis, 3] for axis, n in enumerate(shape)]


def conform(
    data: NDArray, affine: NDArray, voxel_size: float, size: int, multiple: int
) -> Conformed:
    """Bring a volume to the model's grid, intensities as they are, zero outside the field of view.

    Parameters
    ----------
    data : ndarray
        (X, Y, Z).
    affine : ndarray
        Voxel indices to mm (4, 4).
    voxel_size : float
        Edge of the model's voxels in mm.
    size, multiple : int
        Least size of the grid and what its size is a multiple of, in voxels.
    """
    data, affine = to_ras(np.asarray(data), np.asarray(affine))
    shape, placed = grid(data.shape, affine, voxel_size, size, multiple)
    matrix = np.linalg.inv(affine) @ placed
    positions = _positions(matrix, shape)
    inside = np.ones(shape, dtype=bool)
    for axis, (index, n) in enumerate(zip(positions, data.shape, strict=True)):
        reach = max(n, matrix[axis, axis]) / 2 + 1e-6  # at least one voxel of a single slice
        within = abs(index - (n - 1) / 2) < reach
        inside &= within.reshape([-1 if a == axis else 1 for a in range(3)])
    # whole blocks of voxels are averaged, the largest that fit into a voxel of the model
    blocks = np.maximum(np.floor(voxel_size / voxel_sizes(affine) + 1e-3).astype(int), 1)
    lines = map(resampling.weights, data.shape, positions, blocks.tolist())
    sampled = resampling.sample(data, list(lines))
    return Conformed(np.where(inside, sampled, np.float32(0)), placed, inside)


def scale_intensity(volume: Conformed) -> Conformed:
    """Map the 0.5th to the 99th percentile of the field of view to [0, 1] and clip."""
    low, high = np.percentile(volume.data[volume.inside], PERCENTILES)
    if high <= low:
        high = low + max(float(np.ptp(volume.data[volume.inside])), 1e-6)
    scaled = np.clip((volume.data - low) / (high - low), 0, 1).astype(np.float32)
    return Conformed(np.where(volume.inside, scaled, np.float32(0)), volume.affine, volume.inside)


def restore(data: NDArray, affine: NDArray, image: Image) -> Array:
    """Sample a volume on the model's grid (``affine``) linearly on the grid of ``image``."""
    lines = _lines_back(data.shape, affine, image)
    return _from_ras(resampling.sample(data, lines), image)


def restore_mask(
    probability: NDArray, affine: NDArray, image: Image, cleaned: bool = True
) -> Mask:
    """Interpolate a probability on the model's grid and cut it at one half.

    Only the box in which the mask can lie is sampled.

    Parameters
    ----------
    probability : ndarray
        (X, Y, Z), or a mask.
    affine : ndarray
        Its voxel indices to mm (4, 4).
    cleaned : bool
        Whether to keep the largest component alone and to fill its holes.

    Returns
    -------
    ndarray of bool
        On the grid of ``image``.
    """
    lines = _lines_back(probability.shape, affine, image)
    found = np.zeros([len(line) for line in lines], dtype=bool)
    source = box(probability > 0.5)
    rows = [np.flatnonzero(line[:, s].any(axis=1)) for line, s in zip(lines, source, strict=True)]
    if all(len(row) for row in rows):
        target = tuple(slice(row[0], row[-1] + 1) for row in rows)
        within = [line[part] for line, part in zip(lines, target, strict=True)]
        cut = resampling.sample(probability, within) > 0.5
        found[target] = clean(cut) if cleaned else cut
    return np.asfortranarray(_from_ras(found, image))  # as NIfTI has it


def _lines_back(shape: tuple[int, ...], affine: NDArray, image: Image) -> list[Array]:
    """Weights from the model's grid to that of ``image``, whose axes are turned to RAS."""
    turned, source = to_ras(image.data, image.affine)
    positions = _positions(np.linalg.inv(affine) @ source, turned.shape)
    return [resampling.weights(n, index) for n, index in zip(shape, positions, strict=True)]


def _from_ras(data: NDArray, image: Image) -> NDArray:
    """Put back the axes that were turned to the closest of RAS."""
    ornt = orientations.io_orientation(image.affine)
    back = orientations.ornt_transform(SAME_ORDER, ornt)
    return orientations.apply_orientation(data, back)


def working_voxel_size(mask: Mask, affine: NDArray, size: int) -> float:
    """Voxel size in mm with which a grid of ``size``³ holds a whole head around this brain.

    The edge of the grid is 1.75 diameters of the sphere of the brain's volume (an adult human's
    is 147 mm, so 256 mm), not more than the field of view, not less than 1.2 times the brain.
    """
    sizes = voxel_sizes(affine)
    diameter = float((6000 / np.pi * millilitres(mask, affine)) ** (1 / 3))
    brain = max((edge.stop - edge.start) * s for edge, s in zip(box(mask), sizes, strict=True))
    field = max(n * s for n, s in zip(mask.shape, sizes, strict=True))
    edge = max(min(1.75 * diameter, field), 1.2 * brain)
    return float(f"{edge / size:.3g}")
