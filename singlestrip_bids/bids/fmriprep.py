"""The fMRIPrep view: a small derivative dataset whose masks `fmriprep --derivatives` takes.

fMRIPrep takes the one `desc-brain_mask` without a `space-` entity that it finds for a subject, or
for a session in its sessionwise mode, and applies it to its own reference: the one T1w scan with
its axes reordered to the closest of RAS. Of several T1w scans it makes a template on a grid of
its own, for which no mask can be written beforehand; and two masks end it with an error.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..config import RunConfig
from ..errors import Usage
from .derivatives import Derivatives, sidecar_path
from .scans import Scan

LOG = logging.getLogger("singlestrip_bids")

README = """\
# Brain masks for fMRIPrep, by singlestrip-bids

For `fmriprep BIDS_DIR OUTPUT_DIR participant --derivatives singlestrip=THIS_FOLDER`.
Each mask lies on the grid of its T1w scan with the axes reordered to the closest of RAS.
fMRIPrep takes exactly one mask a subject (a session with `--subject-anatomical-reference
sessionwise`): add none. The masks are predictions: look at them before you rely on them.
"""


def check(config: RunConfig) -> None:
    """Raise `Usage` if the hand-off was asked for but cannot be written."""
    folder = config.fmriprep_masks
    if folder is None:
        if config.fmriprep_sessionwise:
            raise Usage("--fmriprep-sessionwise needs --fmriprep-masks DIR. Add it.")
        return
    if not {"T1w", "all"} & set(config.modalities):
        raise Usage("--fmriprep-masks needs T1w scans. Add T1w to --modalities.")
    Derivatives(folder).check(config.bids_dir)
    view, output = folder.resolve(), config.output_dir.resolve()
    if view.is_relative_to(output) or output.is_relative_to(view):
        raise Usage(
            f"{folder} (--fmriprep-masks) and the output folder {config.output_dir} lie within "
            "each other: fMRIPrep would find the masks of both. Choose a folder beside the output."
        )


def start(config: RunConfig, scans: Sequence[Scan]) -> frozenset[Scan]:
    """Make the dataset, choose the scans whose masks go there, and remove masks in their way.

    Of all selected ``scans``, returns each T1w scan that is the only one of its subject, or of its
    session in the sessionwise mode; a warning names the others. Empty if no hand-off was asked
    for.
    """
    folder = config.fmriprep_masks
    if folder is None:
        return frozenset()
    view = Derivatives(folder)
    view.start(config.bids_dir, readme=README)
    groups: dict[Path, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.suffix == "T1w":
            groups[_group(folder, scan, config.fmriprep_sessionwise)].append(scan)
    chosen = [members[0] for members in groups.values() if len(members) == 1]
    wanted = {view.mask(scan) for scan in chosen}
    for group, members in groups.items():
        _remove_others(group, wanted)
        if len(members) > 1:
            _warn(group, members, config)
    return frozenset(chosen)


def _group(folder: Path, scan: Scan, sessionwise: bool) -> Path:
    """Return the folder in which fMRIPrep may find but one mask."""
    subject = folder / f"sub-{scan.subject}"
    return subject / f"ses-{scan.session}" if sessionwise and scan.session else subject


def _remove_others(group: Path, wanted: set[Path]) -> None:
    """Remove masks that earlier runs with another selection have left."""
    name = "anat/*_desc-brain_mask.nii.gz"
    for path in sorted({*group.glob(name), *group.glob(f"ses-*/{name}")} - wanted):
        LOG.warning("%s is removed: fMRIPrep would take it for a second mask.", path)
        path.unlink(missing_ok=True)
        sidecar_path(path).unlink(missing_ok=True)


def _warn(group: Path, scans: Sequence[Scan], config: RunConfig) -> None:
    """Say why there is no mask, and how to come to one."""
    who = "_".join(group.relative_to(config.fmriprep_masks or "").parts)
    names = ", ".join(scan.relative for scan in scans)
    sessions = {scan.session for scan in scans}
    remedy = (
        "fmriprep --subject-anatomical-reference sessionwise and --fmriprep-sessionwise here give "
        "each session its own reference and mask. "
        if len(sessions) > 1
        else ""
    )
    LOG.warning(
        "%s has %d T1w scans: %s. fMRIPrep merges them into one reference on a grid of its own, "
        "so no mask of them is handed over, and fMRIPrep makes its own. %sTo hand one over, give "
        "this program and fMRIPrep a --bids-filter-file that selects it.",
        who, len(scans), names, remedy,
    )  # fmt: skip
