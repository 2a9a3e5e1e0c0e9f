"""Which scans carry the label, and which mask belongs to which scan.

A mask's scan is found by its sidecar, else by its name, else by its grid.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import ALL_MODALITIES
from ..errors import BadData, NoInput, Usage
from ..image import nifti
from ..image.masks import Mask, clean
from ..image.nifti import SAME_ORDER, Geometry, Image, reordering
from ..machine.files import read_json, sha256
from .derivatives import made_here, sidecar_path
from .dseg import is_dseg
from .scans import (
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

LOG = logging.getLogger("singlestrip_bids")
DRAWN = "manual"  # derivatives drawn by hand, which come before those of programs
LABEL_PATTERN = f"derivatives/{DRAWN}/sub-XX/anat/sub-XX_desc-brain_mask.nii.gz"
KINDS = "desc-brain_mask", "dseg"  # the latter only where there is no mask


@dataclass(frozen=True)
class MaskFile:
    """A brain mask, or a segmentation, before it is known which scan it belongs to."""

    path: Path
    subject: str  # without `sub-`
    entities: Mapping[str, str]  # what its name says, by pybids' long names


def scan_of(mask: MaskFile, scans: Sequence[Scan]) -> Scan:
    """Find the scan a mask was drawn on; it is on the mask's grid.

    Scans of other subjects and sessions are not considered. Without `space-` the mask's name means
    the main contrast of its folder (T1w).

    Raises NoInput if the subject (or its session) has no scan, BadData if a file cannot be read or
    no scan is on the mask's grid, Usage if several scans fit.
    """
    own = _own_scans(mask, scans)
    named = [scan for scan in own if _agrees(mask, scan) and _same_contrast(mask, scan)]
    if _has_bids_name(mask.path):
        return _on_grid(mask.path, _linked(mask.path, own) or named or own)
    pool = _linked(mask.path, own) or [scan for scan in own if _agrees(mask, scan)] or own
    return _on_grid(mask.path, pool, preferred=named)


def _own_scans(mask: MaskFile, scans: Sequence[Scan]) -> list[Scan]:
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
    return re.search(r"_(desc-brain_mask|dseg)\.nii(\.gz)?$", path.name) is not None


def _linked(mask: Path, scans: Sequence[Scan]) -> list[Scan]:
    """Return the scans named by the mask's sidecar (SpatialReference, else Sources)."""
    sidecar = sidecar_path(mask)
    fields = read_json(sidecar) if sidecar.is_file() else {}
    for key in ("SpatialReference", "Sources"):
        value = fields.get(key)
        links = value if isinstance(value, list) else [value]
        paths = {link.rpartition(":")[2] for link in links if isinstance(link, str)}
        if found := [scan for scan in scans if scan.relative in paths]:
            return found
    return []


def _agrees(mask: MaskFile, scan: Scan) -> bool:
    """Tell whether the entities that both names have are equal (run, acquisition...)."""
    shared = (mask.entities.keys() & scan.entities.keys()) - {"subject", "suffix", "extension"}
    return all(mask.entities[key] == scan.entities[key] for key in shared)


def _same_contrast(mask: MaskFile, scan: Scan) -> bool:
    """Tell whether a mask's `space-` means a scan's suffix."""
    return mask.entities.get("space") in (scan.suffix, scan.mask_space)


def _on_grid(mask: Path, scans: Sequence[Scan], preferred: Sequence[Scan] = ()) -> Scan:
    """Return the one scan on a mask's grid, the preferred one if there are several.

    A scan whose axes alone lie otherwise fits too, if there is no other.
    """
    grid = _geometry(mask)
    if math.prod(grid[0][3:]) != 1:
        raise BadData(f"{mask} has shape {grid[0]}. Give a mask of one volume.")
    pairs, failed = _readable(scans)
    orders = [(scan, reordering(_of_volume(grid), _of_volume(other))) for scan, other in pairs]
    fitting = [(scan, order) for scan, order in orders if order is not None]
    exact = [scan for scan, order in fitting if np.array_equal(order, SAME_ORDER)]
    same = exact or [scan for scan, _ in fitting]
    if not same and failed:
        raise failed[0]
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


def _readable(scans: Sequence[Scan]) -> tuple[list[tuple[Scan, Geometry]], list[BadData]]:
    """Read the grids of scans; return also why others cannot be read."""
    pairs, failed = list[tuple[Scan, Geometry]](), list[BadData]()
    for scan in scans:
        try:
            pairs.append((scan, _geometry(scan.path)))
        except BadData as error:
            failed.append(error)
    return pairs, failed


def _geometry(path: Path) -> Geometry:
    """Read shape and affine (voxel -> mm) from a NIfTI header."""
    image = nifti.open_image(path)
    if len(image.shape) < 3:
        raise BadData(f"{path} is not a volume: shape {image.shape}. Give a 3D image.")
    return tuple(map(int, image.shape)), nifti.affine_of(image)


def _of_volume(grid: Geometry) -> Geometry:
    return grid[0][:3], grid[1]


def _describe(grid: Geometry) -> str:
    """Write a grid on one line."""
    return f"shape {grid[0]}, affine {np.round(grid[1][:3], 3).tolist()}"


@dataclass(frozen=True)
class Label:
    """A scan and its brain mask, or a segmentation of its brain, on the same grid."""

    scan: Scan
    mask: Path

    def read(self) -> tuple[Image, Mask]:
        """Read both; raises BadData if one cannot be used.

        The mask of a segmentation is all of its structures, its holes filled.
        """
        image = nifti.load(self.scan.path)
        if self.is_dseg:
            return image, clean(nifti.load_dseg(self.mask, image) > 0)
        return image, nifti.load_mask(self.mask, image)

    @property
    def is_dseg(self) -> bool:
        """Whether it tells structures apart."""
        return is_dseg(self.mask)

    @property
    def checksums(self) -> dict[str, str]:
        """Names and checksums of both files."""
        return {
            "scan": self.scan.relative,
            "scan_sha256": sha256(self.scan.path),
            "mask": self.mask.name,
            "mask_sha256": sha256(self.mask),
        }


def find_label(
    bids_dir: Path,
    scans: Sequence[Scan] = (),  # the selected ones; others may be labelled all the same
    label_subjects: Sequence[str] = (),  # with or without `sub-`
    derivatives: Sequence[Path] = (),  # to look into; if empty, bids_dir/derivatives/*
    label_mask: Path | None = None,  # the mask itself, under any name
) -> tuple[Label, ...]:
    """Find the labelled scans: their masks and the scans these masks were drawn on.

    A mask is only used if it was asked for or if no other choice exists: named subjects have
    exactly one each; with none named, exactly one subject has one.

    Raises NoInput if a mask, its folder or its subject is not there, Usage if several masks or
    scans are possible or the arguments contradict each other, BadData if a mask cannot be read or
    is on another grid than its scan.
    """
    root = dataset_root(bids_dir)
    subjects = bare(label_subjects)
    _require_subjects(root, subjects)
    given = (_given_mask(label_mask, subjects),) if label_mask else ()
    masks = given or _chosen_masks(root, subjects, derivatives)
    _require_subjects(root, [mask.subject for mask in masks])
    known = {*ALL_MODALITIES, *(scan.suffix for scan in scans)}
    there, _ = scans_of(root, [mask.subject for mask in masks])
    raw = usable(scan for scan in there if scan.suffix in known)
    labels = tuple(Label(scan_of(mask, raw), mask.path) for mask in masks)
    for label in labels:
        if scans and label.scan not in scans:
            LOG.info("%s is used for its label though not selected", label.scan.relative)
    return labels


def _require_subjects(root: Path, labelled: Sequence[str]) -> None:
    """Raise if a labelled subject is not in the dataset."""
    there = subjects_in(root)
    if missing := [subject for subject in labelled if subject not in there]:
        raise NoInput(
            f"{root} has no {listed(missing, 'sub-')}, which is to give the label. "
            f"It has: {listed(there, 'sub-')}. Correct --label-subject or the mask's name."
        )


def _given_mask(path: Path, subjects: Sequence[str]) -> MaskFile:
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
    return MaskFile(path, subject, entities_of(Path(path.name)))


def _chosen_masks(
    root: Path, subjects: Sequence[str], derivatives: Sequence[Path]
) -> tuple[MaskFile, ...]:
    """Choose the mask of each named subject, or of the only subject that has one."""
    folders = _mask_folders(root, derivatives)
    masks = _masks_in(folders)
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


def _only_mask(masks: Sequence[MaskFile], subject: str) -> MaskFile:
    """Return the one mask of a subject."""
    own = [mask for mask in masks if mask.subject == subject]
    if len(own) > 1:
        raise Usage(
            f"sub-{subject} has {len(own)} brain masks: {listed(mask.path for mask in own)}. "
            "Say which is the label with --label-mask FILE."
        )
    return own[0]


def _mask_folders(root: Path, derivatives: Sequence[Path]) -> tuple[Path, ...]:
    """List the derivative datasets that labels may come from; ``manual`` alone, if it has any."""
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
    folders = [folder for folder in folders if _may_label(folder)]
    drawn = [folder for folder in folders if folder.name == DRAWN and _masks_in([folder])]
    return tuple(drawn or folders)


def _may_label(folder: Path) -> bool:
    """Tell whether masks may be labels: not those this program predicted."""
    try:
        return not made_here(folder)
    except BadData as error:
        LOG.warning("%s No label is taken from its folder.", error)
        return False


def _masks_in(folders: Sequence[Path]) -> list[MaskFile]:
    """Find the brain masks of derivative datasets or, if there are none, the segmentations.

    Many programs write segmentations beside their masks.
    """
    for kind in KINDS:
        if found := [mask for folder in folders for mask in _of_kind(folder, kind)]:
            return found
    return []


def _of_kind(folder: Path, kind: str) -> Iterator[MaskFile]:
    """Find the brain masks or segmentations of a derivative dataset, sorted by path."""
    name = f"sub-*_{kind}.nii*"
    kept = re.compile(rf"{SUBJECT}/(ses-[^/]+/)?({DATATYPES})/[^/]+\.nii(\.gz)?")
    for path in sorted([*folder.glob(f"sub-*/*/{name}"), *folder.glob(f"sub-*/ses-*/*/{name}")]):
        relative = path.relative_to(folder)
        if match := kept.fullmatch(relative.as_posix()):
            yield MaskFile(path, match[1], entities_of(relative))
