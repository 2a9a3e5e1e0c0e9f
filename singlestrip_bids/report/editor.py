"""A page in which a person corrects a brain mask: scan, mask and tools in one HTML file.

The page works from disk, without a server. It shows voxels in an order close to RAS, and saves the
mask in the order of the scan, under a header made here: nothing is resampled or rounded.
"""

from __future__ import annotations

import base64
import gzip
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from markupsafe import Markup
from nibabel import orientations
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from ..bids.derivatives import Derivatives
from ..bids.scans import Scan
from ..image import nifti
from ..image.brain import Brain
from ..image.masks import Mask
from ..image.nifti import Image
from ..machine import files
from .subject import correction, page_values
from .templates import folder, render

LOG = logging.getLogger("singlestrip_bids")

LABELS = Path("derivatives", "manual")  # within a dataset: where labels go
FURTHER = "The corrected mask may become a further label: name its subject with --label-subject."
WINDOW = 0.5, 99.5  # percentiles of the scan shown as black and white


def write(
    path: Path, image: Image, mask: Mask | None, save_as: str, where: str, about: str = ""
) -> None:
    """Write the page of a scan and its mask (X, Y, Z); None begins with an empty mask.

    The page saves the mask as ``save_as``, and tells the person to put it into the folder
    ``where``. ``about`` is one more sentence at its top.
    """
    start = np.zeros(image.data.shape, bool) if mask is None else mask
    title = image.path.name.split(".")[0]
    page = render(
        "label.html",
        facts={**_facts(image, start), "save_as": save_as, "where": where},
        scan=_packed(_shown(image).to_bytes()),
        mask=_packed(_voxels(nifti.to_ras(start, image.affine)[0])),
        about=about,
        placed=image.is_placed,
        licence=_part("LICENSE"),
        viewer=_part("niivue.umd.js"),
        **page_values(f"Brain mask of {title}"),
    )
    files.write_text(path, page)


def _part(name: str) -> Markup:
    """Read a file of NiiVue, which goes into the page as it is."""
    return Markup((folder() / "niivue" / name).read_text(encoding="utf-8"))


def offer(out: Derivatives, scan: Scan, brain: Brain, bids_dir: Path, doubtful: bool) -> None:
    """Write the page in which a doubtful mask is corrected, and remove that of an earlier mask.

    A failure is logged and nothing else.
    """
    path = correction(out, scan.relative)
    try:
        path.unlink(missing_ok=True)
        if doubtful:
            target = Derivatives(bids_dir / LABELS).mask(scan)
            write(path, brain.image, brain.voxels, target.name, str(target.parent), FURTHER)
    except Exception as error:  # the mask is there: a page is not worth losing it
        LOG.warning("%s: its page for corrections could not be written (%r).", scan.path, error)


def _facts(image: Image, mask: Mask) -> dict[str, Any]:
    """Collect what the page needs to know of the grid and of the file to save.

    ``axes`` has for each axis of the scan the axis shown that it becomes, and whether it is
    flipped.
    """
    content = nifti.mask_image(mask, image.nifti).to_bytes()
    upright, sizes = nifti.upright(mask, image.affine)
    order = orientations.io_orientation(image.affine)
    return {
        "header": base64.b64encode(content[: -mask.size]).decode(),
        "shape": mask.shape,
        "axes": [[int(axis), bool(way < 0)] for axis, way in order],
        "dims": upright.shape,
        "sizes": sizes.tolist(),
        "affine": image.affine.tolist(),
        "tolerance": nifti.TOLERANCE,
    }


def _shown(image: Image) -> nib.Nifti1Image:
    """Make the image that the page shows: 8 bits, axes closest to RAS, and no turn.

    Without a turn, the viewer has no reason to reorder axes by itself.
    """
    moved, placed = nifti.to_ras(image.data, image.affine)
    low, high = np.percentile(moved, WINDOW)
    span = max(high - low, np.finfo(np.float32).tiny)
    grey = np.clip((moved.astype(np.float32) - low) * (255 / span), 0, 255)
    affine = np.diag([*voxel_sizes(placed), 1.0])
    shown = nib.Nifti1Image(np.rint(grey).astype(np.uint8), affine)
    shown.header["cal_min"], shown.header["cal_max"] = 0, 255
    return shown


def _voxels(mask: NDArray) -> bytes:
    """Lay out a mask as in a file: the first axis is the fastest."""
    return np.asarray(mask, np.uint8).tobytes(order="F")


def _packed(content: bytes) -> str:
    """Compress bytes, as text."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
