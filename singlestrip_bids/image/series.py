"""The voxels of an image file as one 3D volume; of a series, the mean of what shows the head."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import BadData

LOG = logging.getLogger("singlestrip_bids")

DAMAGED = OSError, EOFError, ValueError, OverflowError, zlib.error  # what such files raise
UNWEIGHTED = 50.0  # s/mm2; b-values up to this count as 0, as scanners round them


def _check_length(path: Path, nifti: nib.Nifti1Image) -> None:
    """Raise if the voxels are not all there, before room is made for them.

    A compressed file is read to its end, where its checksum is, which nibabel never reaches.
    """
    if nifti.get_filename() is None:
        return  # it was never on a disk
    needed = nifti.dataobj.offset + math.prod(nifti.shape) * nifti.get_data_dtype().itemsize
    length = _unpacked(path) if path.suffix == ".gz" else path.stat().st_size
    if length < needed:
        raise EOFError(f"{length} bytes instead of {needed}")


def _unpacked(path: Path) -> int:
    """Count the bytes of a compressed file; whatever else follows it is named."""
    length, unpacker = 0, zlib.decompressobj(31)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 14):
            while chunk:
                if unpacker.eof and chunk[:2] != b"\x1f\x8b":
                    if chunk.strip(b"\0"):
                        LOG.warning("%s: bytes after its end are left out.", path)
                    return length
                unpacker = zlib.decompressobj(31) if unpacker.eof else unpacker
                length += len(unpacker.decompress(chunk))
                chunk = unpacker.unused_data
    if not unpacker.eof:
        raise EOFError("the compressed data end too early")
    return length


def read_voxels(path: Path, nifti: nib.Nifti1Image) -> tuple[NDArray, int, int]:
    """Return the voxels, how many volumes there are, and of how many these are the mean."""
    dtype = nifti.get_data_dtype()
    if dtype.fields or dtype.kind == "c":
        raise BadData(f"{path}: {dtype} voxels (complex or RGB); give a magnitude image.")
    shape = nifti.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise BadData(f"{path}: {len(shape)} dimensions {shape}; give a 3D or 4D image.")
    if min(shape) < 1:
        raise BadData(f"{path}: no voxels, shape {shape}; restore the file.")
    try:
        _check_length(path, nifti)
        if len(shape) == 3:
            stored = nifti.dataobj
            small = dtype.kind in "iu" and dtype.itemsize < 4  # a half or a quarter of the memory
            kept = small and (stored.slope, stored.inter) == (1, 0)
            return np.asarray(stored, None if kept else np.float32).reshape(shape), 1, 1
        data, averaged = _mean(path, nifti, shape)
    except DAMAGED as error:
        raise BadData(f"{path}: damaged or truncated ({error}); restore the file.") from error
    return data, shape[3], averaged


def _mean(path: Path, nifti: nib.Nifti1Image, shape: tuple[int, ...]) -> tuple[NDArray, int]:
    """Average a series that is read once, in its own data type, voxel by voxel over finite values.

    Of a diffusion series with b-values, only volumes without diffusion weighting. Returns (X, Y,
    Z) float32, and the number of volumes that were averaged.
    """
    chosen = _unweighted(path, shape[3])
    series = np.asanyarray(nifti.dataobj.get_unscaled()).reshape(shape)
    total, count = np.zeros(shape[:3], dtype=np.float64), np.zeros(shape[:3], dtype=np.int32)
    for volume in chosen:
        values = series[..., volume].astype(np.float64)
        finite = np.isfinite(values)
        np.add(total, values, out=total, where=finite)
        count += finite
    with np.errstate(invalid="ignore"):  # never finite: no number
        mean = total / count
    scaled = mean * nifti.dataobj.slope + nifti.dataobj.inter
    return scaled.astype(np.float32), len(chosen)


def _unweighted(path: Path, count: int) -> list[int]:
    """List the volumes without diffusion weighting; all if there are no b-values, or none is low.

    Raises BadData if the `.bval` file is not one finite number a volume.
    """
    everything = list(range(count))
    table = _b_values(path)
    if table is None:
        if _words(path)[-1] == "dwi":
            LOG.warning("%s: no .bval holds for it; the mean of all its volumes is taken.", path)
        return everything
    try:
        values = [float(word) for word in table.read_text(encoding="utf-8-sig").split()]
    except (OSError, ValueError) as error:
        raise BadData(f"{table}: not a table of b-values ({error}); restore the file.") from error
    if len(values) != count or not all(map(math.isfinite, values)):
        raise BadData(
            f"{table}: {len(values)} b-values for {count} volumes of {path.name}, or not all of "
            "them finite; correct the file."
        )
    return [volume for volume in everything if values[volume] <= UNWEIGHTED] or everything


def _b_values(path: Path) -> Path | None:
    """Find the `.bval` of a scan: beside it or, inherited, in the nearest folder above it.

    Its name has the scan's suffix, and no entity that the scan's has not.
    """
    words = _words(path)
    subject = next((i for i, up in enumerate(path.parents) if up.name.startswith("sub-")), -1)
    for folder in path.parents[: subject + 2]:  # as far as that of the dataset
        tables = [table for table in folder.glob(f"*{words[-1]}.bval") if _applies(table, words)]
        if tables:
            return max(tables, key=lambda table: len(_words(table)))
    return None


def _applies(table: Path, words: Sequence[str]) -> bool:
    own = _words(table)
    return own[-1] == words[-1] and set(own) <= set(words)


def _words(path: Path) -> list[str]:
    """Split the name of a file into its entities and its suffix."""
    return path.name.split(".")[0].split("_")
