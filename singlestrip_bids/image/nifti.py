"""What an image file says: its voxels, as one volume, and where its axes point."""

from __future__ import annotations

import logging
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import BadData
from ..machine.files import check_content, first_bytes, write_bytes
from .fill import find_fill
from .masks import Mask
from .series import DAMAGED, read_voxels

LOG = logging.getLogger("singlestrip_bids")
IN_MEMORY = Path("image in memory")
UNPLACED = "its qform_code and sform_code are 0: left and right cannot be known."

_GEOMETRY = (
    *("dim_info", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c"),
    *("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
Geometry = tuple[tuple[int, ...], NDArray]  # shape (X, Y, Z), affine of voxel indices to mm (4, 4)
SAME_ORDER = np.array([[0, 1], [1, 1], [2, 1]])
TOLERANCE = 0.05  # of a voxel: programs round affines, or take the other form of a header


def to_ras(data: NDArray, affine: NDArray) -> tuple[NDArray, NDArray]:
    """Reorder and flip axes to the closest of RAS."""
    ornt = orientations.io_orientation(affine)
    if np.isnan(ornt).any():
        raise BadData(f"affine {affine.tolist()}: its axes have no clear directions; mend it.")
    moved = orientations.apply_orientation(data, ornt)
    return moved, affine @ orientations.inv_ornt_aff(ornt, data.shape)


@np.errstate(all="ignore")  # broken affines
def reordering(one: Geometry, other: Geometry) -> NDArray | None:
    """Find how to reorder and flip the axes of a grid so that it is another.

    Returns an orientation (3, 2) as of `nibabel.orientations`, or None where the grids are not the
    same.
    """
    if min(one[0]) < 1 or not np.isfinite([one[1], other[1]]).all():
        return None
    if _coincide(one, other):
        return SAME_ORDER
    ours, others = (orientations.io_orientation(affine) for _, affine in (one, other))
    if np.isnan([ours, others]).any():
        return None
    order = orientations.ornt_transform(ours, others)
    moved = orientations.apply_orientation(np.broadcast_to(np.False_, one[0]), order).shape
    placed = one[1] @ orientations.inv_ornt_aff(order, one[0])
    return order if _coincide((moved, placed), other) else None


def _coincide(one: Geometry, other: Geometry) -> bool:
    """Tell whether all corner voxels of two grids lie at the same places."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(one[0]) - 1)
    apart = np.abs(apply_affine(one[1] - other[1], corners)).max()
    edge = min(voxel_sizes(affine).min() for _, affine in (one, other))
    return one[0] == other[0] and bool(apart <= TOLERANCE * edge)


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
    fill: Mask | None = None  # (X, Y, Z) voxels that hold no data; None if all do

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to mm (4, 4)."""
        return affine_of(self.nifti)

    @property
    def is_placed(self) -> bool:
        """Whether the header says where left and right are: one of its codes is not 0."""
        return any(self.nifti.header[name] for name in ("qform_code", "sform_code"))

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Edges of the voxels in mm (3,)."""
        return np.asarray(voxel_sizes(self.affine))


def open_image(path: Path) -> nib.Nifti1Image:
    """Read a header, as other programs do; BadData where it cannot be."""
    check_content(path)
    try:
        nifti = _bare(path) or _mended(path)
    except (ImageFileError, HeaderDataError, *DAMAGED) as error:
        raise BadData(
            f"{path}: not a readable NIfTI image ({error}); restore the file."
        ) from error
    if not isinstance(nifti, nib.Nifti1Image):
        raise BadData(f"{path}: {type(nifti).__name__} is not NIfTI; convert it.")
    return nifti


def _bare(path: Path) -> nib.Nifti1Image | None:
    """Read an uncompressed file that bears the name of a compressed one."""
    begin = first_bytes(path)
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if path.suffix == ".gz" and kind.header_class.may_contain_header(begin):
            LOG.warning("%s: not compressed, in spite of its name; read as it is.", path)
            return kind.from_bytes(path.read_bytes())
    return None


@np.errstate(all="ignore")  # broken affines
def _mended(path: Path) -> nib.Nifti1Image:
    """Forgive a rotation its roundings, and an sform of zeros beside a qform its code."""
    kind: Any = nib.Nifti1Image if nib.Nifti1Image.path_maybe_image(path)[0] else nib.Nifti2Image
    try:
        nifti = nib.load(path)
    except ValueError as error:
        if "w2 should be positive" not in str(error):
            raise
        header = type("Header", (kind.header_class,), {"quaternion_threshold": 1e-4})
        rounded: Any = type("Image", (kind,), {"header_class": header})
        nifti = rounded.from_filename(path)
        nifti.set_qform(nifti.affine, int(nifti.header["qform_code"]))
        LOG.warning("%s: its qform is no rotation by a rounding; taken as the nearest.", path)
    else:
        good = not isinstance(nifti, kind) or np.linalg.det(nifti.affine[:3, :3])
        if good or 0 in (nifti.header["sform_code"], nifti.header["qform_code"]):
            return nifti
        nifti.header["sform_code"] = 0
        LOG.warning("%s: its sform has no volume; the qform is used.", path)
    made = kind(nifti.dataobj, nifti.header.get_best_affine(), nifti.header)
    made.file_map = nifti.file_map
    return made


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


def affine_of(nifti: nib.Nifti1Image) -> NDArray[np.float64]:
    """Voxel indices to mm (4, 4), whatever unit of length the header counts in."""
    unit = {1: 1000.0, 3: 0.001}.get(int(nifti.header["xyzt_units"]) & 7, 1.0)  # m, um
    affine = np.array(nifti.affine, dtype=np.float64)
    affine[:3] *= unit
    return affine


def _check_size(path: Path, nifti: nib.Nifti1Image) -> None:
    """Refuse a header that asks for a grid that no head needs, before room is made for it."""
    sizes = voxel_sizes(affine_of(nifti))
    field = sizes[: len(nifti.shape)] * nifti.shape[:3]
    if sizes.all() and (min(sizes) < 0.005 or max(sizes) > 50 or max(field) > 2000):
        raise BadData(
            f"{path}: voxels of {np.round(sizes, 4).tolist()} mm and a field of view of "
            f"{np.round(field, 1).tolist()} mm by its header; mend its affine or xyzt_units."
        )


def load(path: Path) -> Image:
    """Read an image; of a series the mean over time, as `series` has it.

    Raises
    ------
    BadData
        Not NIfTI, damaged, complex, RGB, 5D, without a usable affine, or without contrast.
    """
    return check(path, open_image(path))


def from_memory(nifti: nib.Nifti1Image) -> Image:
    """Take a nibabel image as if it were read from a file; raises as `load` does."""
    if not isinstance(nifti, nib.Nifti1Image):
        raise BadData(f"{type(nifti).__name__} is not a NIfTI image of nibabel; convert it.")
    return check(IN_MEMORY, type(nifti).from_bytes(nifti.to_bytes()))


def check(path: Path, nifti: nib.Nifti1Image) -> Image:
    """Read the voxels of an open image, and refuse what is no scan; ``path`` names it."""
    _check_size(path, nifti)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", over="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        data, volumes, averaged = read_voxels(path, nifti)
    finite = data[np.isfinite(data)] if data.dtype.kind == "f" else data
    if not finite.size:
        raise BadData(f"{path}: no voxel is finite; restore the scan.")
    if finite.min() == finite.max():
        raise BadData(f"{path}: every voxel is {finite.flat[0]:g}; an image without a head.")
    if ((finite == finite.min()) | (finite == finite.max())).all():
        raise BadData(f"{path}: a mask, it seems: only two values; give the scan itself.")
    if (largest := np.abs(finite).max()) > 1e30:  # sums of such values overflow
        data = data / largest
    data, fill = _without_fill(path, data)
    affine = affine_of(nifti)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadData(f"{path}: its affine cannot be inverted; mend sform or qform.")
    _compare_forms(path, nifti)
    image = Image(path, data, nifti, volumes, averaged, fill)
    if not image.is_placed:
        LOG.warning("%s: %s", path, UNPLACED)
    return image


def _without_fill(path: Path, data: NDArray) -> tuple[NDArray, Mask | None]:
    """Find what holds no data, and set it to the least value of the rest."""
    fill = find_fill(data)
    if fill is None:
        return data, None
    LOG.warning("%s: %.3g %% of the voxels hold no data; left out.", path, 100 * fill.mean())
    return np.where(fill, data[~fill].min(), data), fill


def extract(image: Image, mask: Mask) -> NDArray:
    """Read the voxels of ``image`` again, all its volumes, and set those outside the mask to 0.

    Returns (X, Y, Z) or (X, Y, Z, T), in the type of the file, or float32 if the file scales it.
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

    If its axes alone lie otherwise, they are reordered; no voxel is resampled. Raises BadData if
    it has another grid than the image, is empty, or fills the volume.
    """
    mask = _aligned(path, image) > 0.5
    if not mask.any():
        raise BadData(f"{path}: an empty mask; label the brain in {image.path.name} first.")
    if mask.mean() > 0.95:
        raise BadData(f"{path}: the mask fills the volume; label the brain alone.")
    return mask


def load_dseg(path: Path, image: Image) -> NDArray[np.int64]:
    """Read a segmentation of ``image``, an index in every voxel, on the image's own grid.

    Raises BadData as `load_mask` does, or if it holds anything but whole numbers from 0.
    """
    data = _aligned(path, image)
    odd = data[~(np.isfinite(data) & (data == np.rint(data)) & (data >= 0) & (data < 2**24))]
    if odd.size:
        raise BadData(
            f"{path}: holds {odd.flat[0]:g}; a segmentation has whole numbers, 0 where there is "
            "no structure. Save the indices, not probabilities."
        )
    if not data.any():
        raise BadData(f"{path}: an empty segmentation; label {image.path.name} first.")
    if (data > 0).mean() > 0.95:
        raise BadData(f"{path}: the segmentation fills the volume; label the brain alone.")
    return data.astype(np.int64)


def _aligned(path: Path, image: Image) -> NDArray:
    """Read what was drawn on an image, its axes in the order of the image's."""
    nifti = open_image(path)
    with np.errstate(invalid="ignore"):
        data, *_ = read_voxels(path, nifti)
    order = reordering((data.shape, affine_of(nifti)), (image.data.shape, image.affine))
    if order is None:
        raise BadData(
            f"{path}: a mask on another grid {data.shape} than its scan {image.path} "
            f"{image.data.shape}; resample the mask to the scan."
        )
    if not np.array_equal(order, SAME_ORDER):
        LOG.info("%s: its axes are reordered to those of its scan.", path)
    return orientations.apply_orientation(data, order)


def upright(data: NDArray, affine: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
    """Reorder the axes of (X, Y, Z) to the closest of RAS; also return the voxel sizes in mm."""
    moved, placed = to_ras(data, affine)
    return moved, voxel_sizes(placed)


def mask_image(mask: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Make a brain mask (X, Y, Z), uint8, on the grid of its scan, 3D or 4D.

    The geometry fields of the header are copied bit by bit, so that the affine stays the same
    whichever of qform, sform, both or none is set.
    """
    image = _on_grid(np.asarray(mask, bool).astype(np.uint8), reference)
    image.header["cal_max"] = 1
    return image


def probability_image(probability: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Make an image of probabilities (X, Y, Z) in [0, 1], in steps of 1/255, on a scan's grid.

    What is above one half stays above it, and all else stays at or below it.
    """
    steps = np.ceil(np.asarray(probability, np.float32) * 255 - 0.5)
    image = _on_grid(steps.astype(np.uint8), reference)
    image.header.set_slope_inter(1 / 255, 0)
    image.header["cal_max"] = 1
    return image


def dseg_image(indices: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Make a segmentation (X, Y, Z) of the smallest type that holds it, on a scan's grid."""
    kind = next(t for t in (np.uint8, np.int16, np.int32) if indices.max() <= np.iinfo(t).max)
    return _on_grid(indices.astype(kind), reference)


def distance_image(distance: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Make an image of distances in mm (X, Y, Z), float32, on a scan's grid."""
    return _on_grid(np.asarray(distance, np.float32), reference)


def brain_image(data: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Make a scan without its skull, 3D or 4D, with the scan's own header.

    Header extensions are left out: they may name the person.
    """
    header = reference.header.copy()
    header.extensions.clear()
    header.set_data_dtype(data.dtype)
    return type(reference)(data, header.get_best_affine(), header)


def _on_grid(voxels: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Give voxels (X, Y, Z) the geometry of a scan, field by field, and nothing else of it."""
    if voxels.shape != reference.shape[:3]:
        raise ValueError(f"{voxels.shape} voxels are not on the grid {reference.shape}")
    image = type(reference)(voxels, None)
    for name in _GEOMETRY:
        image.header[name] = reference.header[name]
    image.header["pixdim"][:4] = reference.header["pixdim"][:4]  # qfac and the voxel size
    return type(reference)(voxels, image.header.get_best_affine(), image.header)


def save(path: Path, image: nib.Nifti1Image) -> None:
    """Write a `.nii.gz` without its name or the time in it: equal images give equal bytes."""
    voxels = np.asanyarray(image.dataobj)
    long_runs = voxels.dtype == np.uint8 and voxels.max() <= 1  # a mask: half the time
    strategy = zlib.Z_RLE if long_runs else zlib.Z_DEFAULT_STRATEGY
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS, strategy=strategy)
    write_bytes(path, packer.compress(image.to_bytes()) + packer.flush())
