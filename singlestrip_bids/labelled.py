"""Which scans carry the label, and where their masks lie."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .derivatives import made_here
from .errors import BadData, NoInput, Usage
from .inputs import (
    DATATYPES,
    SUBJECT,
    Scan,
    bare,
    dataset_root,
    entities_of,
    listed,
    scans_of,
    subjects_in,
    usable,
)
from .pairing import Mask, scan_of

LABEL_PATTERN = "derivatives/manual/sub-XX/anat/sub-XX_desc-brain_mask.nii.gz"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Label:
    """A scan and its brain mask, on the same grid."""

    scan: Scan
    mask: Path


def find_label(
    bids_dir: Path,
    scans: Sequence[Scan] = (),
    label_subjects: Sequence[str] = (),
    derivatives: Sequence[Path] = (),
    label_mask: Path | None = None,
) -> tuple[Label, ...]:
    """Find the labelled scans: their masks and the scans these masks were drawn on.

    A mask is only used if it was asked for or if no other choice exists: named subjects
    have exactly one each; with none named, exactly one subject has one.

    Parameters
    ----------
    bids_dir
        Root of the dataset.
    scans
        The selected scans. A labelled scan outside the selection is found all the same.
    label_subjects
        Labelled subjects, with or without `sub-`.
    derivatives
        Datasets to look into; if empty, those in `bids_dir/derivatives` not made by this tool.
    label_mask
        The mask itself, under any name.

    Raises
    ------
    NoInput
        If a mask, its folder or its subject is not there.
    Usage
        If several masks or scans are possible, or the arguments contradict each other.
    BadData
        If a mask cannot be read or is on another grid than its scan.
    """
    root = dataset_root(bids_dir)
    subjects = bare(label_subjects)
    _require_subjects(root, subjects)
    given = (_given_mask(label_mask, subjects),) if label_mask else ()
    masks = given or _chosen_masks(root, subjects, derivatives)
    _require_subjects(root, [mask.subject for mask in masks])
    raw = usable(scans_of(root, [mask.subject for mask in masks]))
    labels = tuple(Label(scan_of(mask, raw), mask.path) for mask in masks)
    for label in labels:
        if scans and label.scan not in scans:
            _log.info("%s is used for its label though not selected", label.scan.relative)
    return labels


def _require_subjects(root: Path, labelled: Sequence[str]) -> None:
    """Raise if a labelled subject is not in the dataset."""
    there = subjects_in(root)
    if missing := [subject for subject in labelled if subject not in there]:
        raise NoInput(
            f"{root} has no {listed(missing, 'sub-')}, which is to give the label. "
            f"It has: {listed(there, 'sub-')}. Correct --label-subject or the mask's name."
        )


def _given_mask(path: Path, subjects: Sequence[str]) -> Mask:
    """Take the mask the user gave; its subject is in its name or was named."""
    if not path.is_file():
        raise NoInput(f"{path} (--label-mask) is not there. Correct the path.")
    if len(subjects) > 1:
        raise Usage(
            f"--label-mask {path} is one mask, but {listed(subjects, 'sub-')} are named. "
            "Name one subject with --label-subject."
        )
    in_name = re.search(rf"(?:^|_){SUBJECT}(?=[_.])", path.name)
    if in_name and subjects and in_name[1] != subjects[0]:
        raise Usage(
            f"{path} is of sub-{in_name[1]} by its name, but --label-subject says "
            f"sub-{subjects[0]}. Correct one of them."
        )
    subject = in_name[1] if in_name else next(iter(subjects), None)
    if subject is None:
        raise Usage(f"{path} names no subject. Say whose mask it is with --label-subject.")
    path = Path(os.path.abspath(path))  # noqa: PTH100 - normalises, follows no link
    return Mask(path, subject, entities_of(Path(path.name)))


def _chosen_masks(
    root: Path, subjects: Sequence[str], derivatives: Sequence[Path]
) -> tuple[Mask, ...]:
    """Choose the mask of each named subject, or of the only subject that has one."""
    folders = _mask_folders(root, derivatives)
    masks = [mask for folder in folders for mask in _masks_in(folder)]
    there = sorted({mask.subject for mask in masks})
    looked = listed(folders) or root / "derivatives"
    if not masks:
        raise NoInput(
            f"No brain mask in {looked}. Put the label at {root / LABEL_PATTERN}, "
            "name its dataset with --derivatives, or the file with --label-mask."
        )
    if missing := [subject for subject in subjects if subject not in there]:
        raise NoInput(
            f"No brain mask of {listed(missing, 'sub-')} in {looked}. Masks there: "
            f"{listed(there, 'sub-')}. Choose among them with --label-subject, put the mask at "
            f"{root / LABEL_PATTERN.replace('XX', missing[0])}, or give it with --label-mask FILE."
        )
    if not subjects and len(there) > 1:
        raise Usage(
            f"{looked} holds brain masks of {len(there)} subjects: {listed(there, 'sub-')}. "
            "Say which is the label with --label-subject."
        )
    return tuple(_only_mask(masks, subject) for subject in subjects or there)


def _only_mask(masks: Sequence[Mask], subject: str) -> Mask:
    """Return the one mask of a subject."""
    own = [mask for mask in masks if mask.subject == subject]
    if len(own) > 1:
        raise Usage(
            f"sub-{subject} has {len(own)} brain masks: {listed(mask.path for mask in own)}. "
            "Say which is the label with --label-mask FILE."
        )
    return own[0]


def _mask_folders(root: Path, derivatives: Sequence[Path]) -> tuple[Path, ...]:
    """List the derivative datasets that labels may come from."""
    if derivatives:
        for folder in derivatives:
            if not folder.is_dir():
                raise NoInput(f"{folder} (--derivatives) is not a folder. Correct the path.")
        return tuple(Path(os.path.abspath(folder)) for folder in derivatives)  # noqa: PTH100
    parent = root / "derivatives"
    if not parent.is_dir():
        return ()
    children = sorted(child for child in parent.iterdir() if child.is_dir())
    datasets = [child for child in children if not child.name.startswith((".", "sub-"))]
    folders = [parent, *datasets] if subjects_in(parent) else datasets
    return tuple(folder for folder in folders if _may_label(folder))


def _may_label(folder: Path) -> bool:
    """Tell whether masks may be labels: not those this program predicted."""
    try:
        return not made_here(folder)
    except BadData as error:
        _log.warning("%s No label is taken from its folder.", error)
        return False


def _masks_in(folder: Path) -> Iterator[Mask]:
    """Find the brain masks of a derivative dataset, sorted by path."""
    name = "sub-*_desc-brain_mask.nii*"
    kept = re.compile(rf"{SUBJECT}/(ses-[^/]+/)?({DATATYPES})/[^/]+\.nii(\.gz)?")
    for path in sorted([*folder.glob(f"sub-*/*/{name}"), *folder.glob(f"sub-*/ses-*/*/{name}")]):
        relative = path.relative_to(folder)
        if match := kept.fullmatch(relative.as_posix()):
            yield Mask(path, match[1], entities_of(relative))
