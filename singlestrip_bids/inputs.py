"""The BIDS query: which scans there are, and which of them carries the label.

The only module that knows pybids.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .config import ALL_MODALITIES, ANATOMICAL
from .derivatives import made_here, read_json
from .errors import BadData, InvalidDataset, NoInput, NothingSelected, Usage
from .pairing import Mask, scan_of

MAIN_SUFFIX: Mapping[str, str] = {"anat": "T1w", "func": "bold", "perf": "asl", "dwi": "dwi"}
"""The suffix of each data type whose mask needs no `space-` entity."""

LABEL_PATTERN = "derivatives/manual/sub-XX/anat/sub-XX_desc-brain_mask.nii.gz"

_log = logging.getLogger(__name__)
_DATATYPES = "|".join(MAIN_SUFFIX)
_SUBJECT = "sub-([a-zA-Z0-9+]+)"
_DERIVED = ("space", "desc", "res", "label")  # entities of derivatives, not of raw scans


@dataclass(frozen=True)
class Scan:
    """One image of the dataset.

    Attributes
    ----------
    path
        Absolute; symbolic links are kept.
    bids_dir
        Root of the dataset, absolute.
    entities
        By pybids' long names: subject, session, acquisition, run, suffix, datatype...
    """

    path: Path
    bids_dir: Path
    entities: Mapping[str, str] = field(compare=False, repr=False)

    @property
    def relative(self) -> str:
        """Path within the dataset, such as `sub-01/anat/sub-01_T1w.nii.gz`."""
        return self.path.relative_to(self.bids_dir).as_posix()

    @property
    def name(self) -> str:
        """File name without extension, such as `sub-20_ses-2_FLAIR`."""
        return re.sub(r"\.nii(\.gz)?$", "", self.path.name)

    @property
    def subject(self) -> str:
        """Subject label without `sub-`."""
        return self.entities["subject"]

    @property
    def session(self) -> str | None:
        """Session label without `ses-`, if there are sessions."""
        return self.entities.get("session")

    @property
    def suffix(self) -> str:
        """Contrast, such as `T1w`."""
        return self.entities["suffix"]

    @property
    def datatype(self) -> str:
        """Folder of the scan: anat, func, perf or dwi."""
        return self.entities["datatype"]

    @property
    def mask_space(self) -> str | None:
        """The `space-` value in the name of this scan's mask; None where it needs none."""
        return None if self.suffix == MAIN_SUFFIX[self.datatype] else self.suffix


@dataclass(frozen=True)
class Label:
    """A scan and its brain mask, on the same grid."""

    scan: Scan
    mask: Path


def find_scans(
    bids_dir: Path,
    modalities: Sequence[str] = ANATOMICAL,
    participant_label: Sequence[str] = (),
) -> tuple[Scan, ...]:
    """List the scans of a BIDS dataset, sorted by path.

    Parameters
    ----------
    bids_dir
        Root of the dataset. Its derivatives and source data are never looked into.
    modalities
        Suffixes such as `T1w`, or `all`.
    participant_label
        Subjects, with or without `sub-`; all if empty.

    Raises
    ------
    NoInput, InvalidDataset
        If there is no such folder, or it is not a BIDS dataset.
    Usage
        For an unknown modality.
    NothingSelected
        If a requested subject is missing or no scan has one of the suffixes.
    """
    wanted = _suffixes(modalities)
    root = _dataset_root(bids_dir)
    subjects = _bare(participant_label)
    there = _subjects(root)
    if missing := [subject for subject in subjects if subject not in there]:
        raise NothingSelected(
            f"{root} has no {_list(missing, 'sub-')}. It has: {_list(there, 'sub-')}. "
            "Correct --participant-label."
        )
    found = _index(root, subjects)
    scans = _usable(scan for scan in found if scan.suffix in wanted)
    if not scans:
        suffixes = sorted({scan.suffix for scan in found})
        raise NothingSelected(
            f"{root} has no {_list(wanted)} image for {_list(subjects, 'sub-') or 'any subject'}. "
            f"Suffixes there: {_list(suffixes) or 'none'}. Choose among them with --modalities."
        )
    for subject in sorted(set(subjects) - {scan.subject for scan in scans}):
        _log.warning("sub-%s has no %s image and is left out", subject, _list(wanted))
    return scans


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
    root = _dataset_root(bids_dir)
    subjects = _bare(label_subjects)
    _require_subjects(root, subjects)
    given = (_given_mask(label_mask, subjects),) if label_mask else ()
    masks = given or _chosen_masks(root, subjects, derivatives)
    _require_subjects(root, [mask.subject for mask in masks])
    raw = _usable(_index(root, [mask.subject for mask in masks]))
    labels = tuple(Label(scan_of(mask, raw), mask.path) for mask in masks)
    for label in labels:
        if scans and label.scan not in scans:
            _log.info("%s is used for its label though not selected", label.scan.relative)
    return labels


def _suffixes(modalities: Sequence[str]) -> tuple[str, ...]:
    """Check the requested suffixes and expand `all`."""
    if unknown := sorted(set(modalities) - {*ALL_MODALITIES, "all"}):
        raise Usage(
            f"Unknown modality {_list(unknown)}. Known: {_list(ALL_MODALITIES)}, and all. "
            "Correct --modalities."
        )
    return ALL_MODALITIES if "all" in modalities else tuple(modalities or ANATOMICAL)


def _dataset_root(bids_dir: Path) -> Path:
    """Return the absolute root of a dataset after checking that it is one."""
    root = Path(os.path.abspath(bids_dir))  # noqa: PTH100 - normalises, follows no link
    if not root.is_dir():
        raise NoInput(f"{root} is not a folder. Give the root of a BIDS dataset.")
    description = root / "dataset_description.json"
    if not description.is_file():
        raise InvalidDataset(
            f"{root} has no dataset_description.json, so it is not a BIDS dataset. "
            "Give the dataset's root, or add the file "
            '({"Name": "...", "BIDSVersion": "1.10.0"}).'
        )
    try:
        read_json(description)
    except BadData as error:
        raise InvalidDataset(str(error)) from error
    if not _subjects(root):
        raise InvalidDataset(f"{root} has no sub-* folder. Give the root of a BIDS dataset.")
    return root


def _subjects(root: Path) -> tuple[str, ...]:
    """List the subjects of a dataset, sorted."""
    matches = (re.fullmatch(_SUBJECT, entry.name) for entry in root.iterdir() if entry.is_dir())
    return tuple(sorted(match[1] for match in matches if match))


def _index(root: Path, subjects: Sequence[str]) -> tuple[Scan, ...]:
    """Index the NIfTI images of some subjects (all if empty), in memory, without metadata."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer  # slow to import

    who = f"sub-(?:{'|'.join(map(re.escape, subjects))})" if subjects else _SUBJECT
    kept = rf"{who}(/ses-[a-zA-Z0-9+]+)?(/({_DATATYPES})(/sub-[^/]+\.nii(\.gz)?)?)?"
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[re.compile(rf"^/(?!{kept}$)")]
    )
    # The configuration is named because a dataset_description that says "derivative" changes it.
    layout = BIDSLayout(root, validate=False, config=["bids"], indexer=indexer)
    paths = [Path(path) for path in layout.get(return_type="filename")]
    scans = [Scan(path, root, _entities(path.relative_to(root))) for path in paths]
    return tuple(scan for scan in scans if scan.entities.get("suffix") in ALL_MODALITIES)


def _entities(relative: Path) -> dict[str, str]:
    """Parse a path within its dataset; pybids itself would also match folders above it."""
    from bids.layout import parse_file_entities

    found = parse_file_entities(f"/{relative.as_posix()}", entities=_patterns())
    return {key: str(value) for key, value in found.items()}


@cache
def _patterns() -> list[Any]:
    """Load pybids' entity patterns once: loading them for every file takes seconds."""
    from bids.layout.models import Config

    names = ("bids", "derivatives")
    return [entity for name in names for entity in Config.load(name).entities.values()]


def _usable(scans: Iterable[Scan]) -> tuple[Scan, ...]:
    """Leave out images without a magnitude, processed ones and copies, saying so; sort."""
    kept: dict[tuple[Path, str], Scan] = {}
    for scan in sorted(scans, key=lambda scan: not scan.path.name.endswith(".gz")):
        if scan.entities.get("part") in ("phase", "imag"):
            _log.warning("%s is left out: not a magnitude image", scan.relative)
        elif any(key in scan.entities for key in _DERIVED):
            _log.warning("%s is left out: its name is not that of a raw scan", scan.relative)
        elif (scan.path.parent, scan.name) in kept:
            _log.warning("%s is left out: there is a .nii.gz of this name", scan.relative)
        else:
            kept[scan.path.parent, scan.name] = scan
    return tuple(sorted(kept.values(), key=lambda scan: scan.path))


def _require_subjects(root: Path, labelled: Sequence[str]) -> None:
    """Raise if a labelled subject is not in the dataset."""
    there = _subjects(root)
    if missing := [subject for subject in labelled if subject not in there]:
        raise NoInput(
            f"{root} has no {_list(missing, 'sub-')}, which is to give the label. "
            f"It has: {_list(there, 'sub-')}. Correct --label-subject or the mask's name."
        )


def _given_mask(path: Path, subjects: Sequence[str]) -> Mask:
    """Take the mask the user gave; its subject is in its name or was named."""
    if not path.is_file():
        raise NoInput(f"{path} (--label-mask) is not there. Correct the path.")
    if len(subjects) > 1:
        raise Usage(
            f"--label-mask {path} is one mask, but {_list(subjects, 'sub-')} are named. "
            "Name one subject with --label-subject."
        )
    in_name = re.search(rf"(?:^|_){_SUBJECT}(?=[_.])", path.name)
    if in_name and subjects and in_name[1] != subjects[0]:
        raise Usage(
            f"{path} is of sub-{in_name[1]} by its name, but --label-subject says "
            f"sub-{subjects[0]}. Correct one of them."
        )
    subject = in_name[1] if in_name else next(iter(subjects), None)
    if subject is None:
        raise Usage(f"{path} names no subject. Say whose mask it is with --label-subject.")
    path = Path(os.path.abspath(path))  # noqa: PTH100 - normalises, follows no link
    return Mask(path, subject, _entities(Path(path.name)))


def _chosen_masks(
    root: Path, subjects: Sequence[str], derivatives: Sequence[Path]
) -> tuple[Mask, ...]:
    """Choose the mask of each named subject, or of the only subject that has one."""
    folders = _mask_folders(root, derivatives)
    masks = [mask for folder in folders for mask in _masks_in(folder)]
    there = sorted({mask.subject for mask in masks})
    looked = _list(folders) or root / "derivatives"
    if not masks:
        raise NoInput(
            f"No brain mask in {looked}. Put the label at {root / LABEL_PATTERN}, "
            "name its dataset with --derivatives, or the file with --label-mask."
        )
    if missing := [subject for subject in subjects if subject not in there]:
        raise NoInput(
            f"No brain mask of {_list(missing, 'sub-')} in {looked}. Masks there: "
            f"{_list(there, 'sub-')}. Choose among them with --label-subject, put the mask at "
            f"{root / LABEL_PATTERN.replace('XX', missing[0])}, or give it with --label-mask FILE."
        )
    if not subjects and len(there) > 1:
        raise Usage(
            f"{looked} holds brain masks of {len(there)} subjects: {_list(there, 'sub-')}. "
            "Say which is the label with --label-subject."
        )
    return tuple(_only_mask(masks, subject) for subject in subjects or there)


def _only_mask(masks: Sequence[Mask], subject: str) -> Mask:
    """Return the one mask of a subject."""
    own = [mask for mask in masks if mask.subject == subject]
    if len(own) > 1:
        raise Usage(
            f"sub-{subject} has {len(own)} brain masks: {_list(mask.path for mask in own)}. "
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
    folders = [parent, *datasets] if _subjects(parent) else datasets
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
    kept = re.compile(rf"{_SUBJECT}/(ses-[^/]+/)?({_DATATYPES})/[^/]+\.nii(\.gz)?")
    for path in sorted([*folder.glob(f"sub-*/*/{name}"), *folder.glob(f"sub-*/ses-*/*/{name}")]):
        relative = path.relative_to(folder)
        if match := kept.fullmatch(relative.as_posix()):
            yield Mask(path, match[1], _entities(relative))


def _bare(labels: Sequence[str]) -> tuple[str, ...]:
    """Strip `sub-` and repetitions from subject labels."""
    return tuple(dict.fromkeys(label.removeprefix("sub-") for label in labels))


def _list(items: Iterable[object], prefix: str = "") -> str:
    """Join items for a message, at most 30 of them."""
    texts = [f"{prefix}{item}" for item in items]
    return ", ".join(texts[:30]) + (f" and {len(texts) - 30} more" if len(texts) > 30 else "")
