"""No label yet? Choose a scan, draft its mask, and write a page in which a person corrects it."""

from __future__ import annotations

import logging
from pathlib import Path

from . import suggest
from .bids.derivatives import Derivatives
from .bids.scans import Scan, bare, selected
from .config import PHANTOM, RunConfig
from .errors import NothingSelected, ScanFailed
from .image import nifti
from .image.masks import Mask
from .image.nifti import Image
from .machine.runtime import Runtime
from .method import model
from .report import editor

LOG = logging.getLogger("singlestrip_bids")

PAGE = "label.html"


def run(config: RunConfig, runtime: Runtime) -> None:
    """Write ``label.html``, with the scan that is worth labelling and a draft of its mask.

    Raises
    ------
    NothingSelected
        There is no scan, or none of ``--label-subject``.
    BadData
        The scan cannot be read, or it is skull-stripped.
    ScanFailed
        Some scans could not be compared; the page is there.
    """
    best, failed, out = dict[str, float](), dict[str, str](), Derivatives(config.output_dir)
    scans = _candidates(config)
    scan = scans[0]
    if len(scans) > 1:
        best, failed = suggest.compare(scans, config, runtime)
        scan = next(s for s in scans if s.relative == next(iter(best)))
    out.start(config.bids_dir)
    image = nifti.load(scan.path)
    target = Derivatives(config.bids_dir / editor.LABELS).mask(scan)
    page = config.output_dir / PAGE
    mask = _draft(image, runtime)
    path = draft_path(out, target.name)
    path.unlink(missing_ok=True)  # that of an earlier call
    if mask is not None:  # for those who correct it in another program
        nifti.save(path, nifti.mask_image(mask, image.nifti))
    editor.write(page, image, mask, target.name, str(target.parent))
    LOG.info("Open %s in a browser and correct the draft of %s.", page, scan.relative)
    LOG.info("Save the mask as %s; then run the group level without --draft-label.", target)
    suggest.complain(failed, len(best))


def _candidates(config: RunConfig) -> list[Scan]:
    """List the scans among which one is drafted: all, or those of ``--label-subject``."""
    scans, wanted = selected(config), bare(config.label_subject)
    found = [scan for scan in scans if scan.subject in wanted or not wanted]
    if not found:
        raise NothingSelected(
            f"{config.bids_dir}: no scan of sub-{' or sub-'.join(wanted)} is selected. "
            "Correct --label-subject."
        )
    return found


def draft_path(out: Derivatives, name: str) -> Path:
    """Return where the draft of a mask goes."""
    return out.model_dir / "draft" / name


def _draft(image: Image, runtime: Runtime) -> Mask | None:
    """Draft the mask of a scan by the model of phantoms; None if that finds no brain."""
    trained = model.load(PHANTOM, runtime)
    try:
        return trained.find(image, trained.frame.conform(image)).voxels
    except ScanFailed:
        LOG.warning("%s: no brain was found to start from; the page begins empty.", image.path)
        return None
