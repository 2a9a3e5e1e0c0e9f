"""Which scan a brain mask was drawn on: by its sidecar, else by its name, else by its grid."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from .annex import check_content
from .axes import SAME_ORDER, Grid, reordering
from .derivatives import read_json
from .errors import BadData, NoInput, Usage

if TYPE_CHECKING:
    from .inputs import Scan


@dataclass(frozen=True)
class Mask:
    """A brain mask before it is known which scan it belongs to.

    Attributes
    ----------
    path
        The image.
    subject
        Subject label without `sub-`.
    entities
        What its name says, by pybids' long names.
    """

    path: Path
    subject: str
    entities: Mapping[str, str]


def scan_of(mask: Mask, scans: Sequence[Scan]) -> Scan:
    """Find the scan a mask was drawn on; it is on the mask's grid.

    Parameters
    ----------
    mask
        The mask. Without `space-` its name means the main contrast of its folder (T1w).
    scans
        Scans to choose from; those of other subjects and sessions are not considered.

    Raises
    ------
    NoInput
        If the subject (or its session) has no scan.
    BadData
        If a file cannot be read, or no scan is on the mask's grid.
    Usage
        If several scans fit.
    """
    own = _own_scans(mask, scans)
    named = [scan for scan in own if _agrees(mask, scan) and _same_contrast(mask, scan)]
    if _has_bids_name(mask.path):
        return _on_grid(mask.path, _linked(mask.path, own) or named or own)
    pool = _linked(mask.path, own) or [scan for scan in own if _agrees(mask, scan)] or own
    return _on_grid(mask.path, pool, preferred=named)


def _own_scans(mask: Mask, scans: Sequence[Scan]) -> list[Scan]:
    """Return the scans of a mask's subject and, if it has one, session."""
    session = mask.entities.get("session")
    own = [scan for scan in scans if scan.subject == mask.subject]
    own = [scan for scan in own if session in (None, scan.session)]
    if not own:
        whose = f"sub-{mask.subject}" + (f" ses-{session}" if session else "")
        raise NoInput(f"{mask.path} belongs to no scan: {whose} has none. Correct its name.")
    return own


def _has_bids_name(path: Path) -> bool:
    """Tell whether a missing `space-` means something, as it does in BIDS names only."""
    return re.search(r"_desc-brain_mask\.nii(\.gz)?$", path.name) is not None


def _linked(mask: Path, scans: Sequence[Scan]) -> list[Scan]:
    """Return the scans named by the mask's sidecar (SpatialReference, else Sources)."""
    sidecar = mask.with_name(re.sub(r"\.nii(\.gz)?$", "", mask.name) + ".json")
    fields = read_json(sidecar) if sidecar.is_file() else {}
    for key in ("SpatialReference", "Sources"):
        value = fields.get(key)
        links = value if isinstance(value, list) else [value]
        paths = {link.rpartition(":")[2] for link in links if isinstance(link, str)}
        if found := [scan for scan in scans if scan.relative in paths]:
            return found
    return []


def _agrees(mask: Mask, scan: Scan) -> bool:
    """Tell whether the entities that both names have are equal (run, acquisition...)."""
    shared = (mask.entities.keys() & scan.entities.keys()) - {"subject", "suffix", "extension"}
    return all(mask.entities[key] == scan.entities[key] for key in shared)


def _same_contrast(mask: Mask, scan: Scan) -> bool:
    """Tell whether a mask's `space-` means a scan's suffix."""
    return mask.entities.get("space") in (scan.suffix, scan.mask_space)


def _on_grid(mask: Path, scans: Sequence[Scan], preferred: Sequence[Scan] = ()) -> Scan:
    """Return the one scan on a mask's grid, the preferred one if there are several.

    A scan whose axes alone lie otherwise fits too, if there is no other.
    """
    grid = _grid(mask)
    if math.prod(grid[0][3:]) != 1:
        raise BadData(f"{mask} has shape {grid[0]}. Give a mask of one volume.")
    grids = [_grid(scan.path) for scan in scans]
    pairs = list(zip(scans, grids, strict=True))
    orders = [(scan, reordering(_of_volume(grid), _of_volume(other))) for scan, other in pairs]
    fitting = [(scan, order) for scan, order in orders if order is not None]
    exact = [scan for scan, order in fitting if np.array_equal(order, SAME_ORDER)]
    same = exact or [scan for scan, _ in fitting]
    if not same:
        others = "; ".join(f"{scan.path}: {_describe(other)}" for scan, other in pairs)
        raise BadData(
            f"{mask} is on another grid ({_describe(grid)}) than its scan ({others}). "
            "Resample the mask to the scan's grid with nearest-neighbour interpolation."
        )
    if len(same) > 1:
        same = [scan for scan in same if scan in preferred] or same
    if len(same) > 1:
        raise Usage(
            f"{mask} fits several scans: {', '.join(scan.relative for scan in same)}. Name its "
            'scan in the JSON beside the mask: {"SpatialReference": "bids:raw:sub-XX/..."}.'
        )
    return same[0]


def _grid(path: Path) -> Grid:
    """Read shape and affine (voxel -> mm) from a NIfTI header."""
    check_content(path)
    try:
        image = nib.load(path)
        shape, affine = tuple(map(int, image.shape)), np.asarray(image.affine, float)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise BadData(f"{path} cannot be read: {error}. Restore the file.") from error
    if len(shape) < 3:
        raise BadData(f"{path} is not a volume: shape {shape}. Give a 3D image.")
    return shape, affine


def _of_volume(grid: Grid) -> Grid:
    return grid[0][:3], grid[1]


def _describe(grid: Grid) -> str:
    """Write a grid on one line."""
    return f"shape {grid[0]}, affine {np.round(grid[1][:3], 3).tolist()}"
