"""The BIDS query: which scans there are, and which of them are selected.

The only module that knows pybids.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from ..config import ALL_MODALITIES, ANATOMICAL, SUFFIXES, Filters, RunConfig
from ..errors import BadData, InvalidDataset, NoInput, NothingSelected, Usage
from ..machine.files import check_content, read_json, write_bytes
from . import filters

LOG = logging.getLogger("singlestrip_bids")
IGNORE = ".bidsignore"

# the suffix of each data type whose mask needs no `space-` entity
MAIN_SUFFIX: Mapping[str, str] = {"anat": "T1w", "func": "bold", "perf": "asl", "dwi": "dwi"}
DATATYPES = "|".join(MAIN_SUFFIX)
SUBJECT = "sub-([a-zA-Z0-9+]+)"
_DERIVED = ("space", "desc", "res", "label")  # entities of derivatives, not of raw scans


@dataclass(frozen=True)
class Scan:
    """One image of the dataset.

    Both paths are absolute, and symbolic links in them are kept. ``entities`` go by pybids' long
    names: subject, session, acquisition, run, suffix, datatype...
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
    def is_where_its_name_says(self) -> bool:
        """Whether subject and session of its name are those of its folder."""
        folders = self.relative.split("/")[:-2]
        return [w for w in self.name.split("_") if w.startswith(("sub-", "ses-"))] == folders

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


def selected(config: RunConfig) -> tuple[Scan, ...]:
    """List the scans that a run is to take, as `find_scans` does."""
    return find_scans(
        config.bids_dir,
        config.modalities,
        config.participant_label,
        config.session_label,
        config.filters,
        config.database,
    )


def find_scans(
    bids_dir: Path,
    modalities: Sequence[str] = ANATOMICAL,  # suffixes such as `T1w`, or `all`
    participant_label: Sequence[str] = (),  # with or without `sub-`; all if empty
    session_label: Sequence[str] = (),  # with or without `ses-`; all if empty
    conditions: Filters | None = None,  # of the filter file
    database: Path | None = None,  # folder of a pybids index to use; made if it is not there
) -> tuple[Scan, ...]:
    """List the scans of a BIDS dataset, sorted by path.

    Its derivatives and source data are never looked into.

    Raises
    ------
    NoInput, InvalidDataset
        If there is no such folder, or it is not a BIDS dataset.
    Usage
        For an unknown modality.
    NothingSelected
        If a requested subject or session is missing, or no scan has one of the suffixes and
        meets the conditions.
    """
    wanted = _suffixes(modalities)
    root = dataset_root(bids_dir)
    subjects = bare(participant_label)
    there = subjects_in(root)
    if missing := [subject for subject in subjects if subject not in there]:
        raise NothingSelected(
            f"{root} has no {listed(missing, 'sub-')}. It has: {listed(there, 'sub-')}. "
            "Correct --participant-label."
        )
    who = listed(subjects, "sub-") or "any subject"
    found, ignored = scans_of(root, subjects, database)
    if ignored:
        LOG.warning("%d images are left out by %s", ignored, root / IGNORE)
    own = _of_sessions(found, bare(session_label, "ses-"), who)
    fitting = [scan for scan in own if scan.suffix in wanted]
    if not fitting:
        suffixes = sorted({scan.suffix for scan in own})
        raise NothingSelected(
            f"{root} has no {listed(wanted)} image for {who}. "
            f"Suffixes there: {listed(suffixes) or 'none'}. Choose among them with --modalities."
        )
    scans = usable(scan for scan in fitting if filters.accepts(conditions or {}, scan.entities))
    if not scans:
        raise NothingSelected(
            f"Of {len(fitting)} images of {who}, such as {fitting[0].relative}, none is left"
            + (" by the conditions of --bids-filter-file. Correct them." if conditions else ".")
        )
    for subject in sorted(set(subjects) - {scan.subject for scan in scans}):
        LOG.warning("sub-%s has no %s image and is left out", subject, listed(wanted))
    return scans


def _of_sessions(scans: Sequence[Scan], sessions: Sequence[str], who: str) -> Sequence[Scan]:
    """Keep the scans of some sessions, all if none is named; each of them must be there."""
    if not sessions:
        return scans
    there = sorted({scan.session for scan in scans if scan.session})
    if missing := [session for session in sessions if session not in there]:
        raise NothingSelected(
            f"There is no image of {listed(missing, 'ses-')} for {who}. Sessions there: "
            f"{listed(there, 'ses-') or 'none'}. Correct --session-label."
        )
    return [scan for scan in scans if scan.session in sessions]


def _suffixes(modalities: Sequence[str]) -> tuple[str, ...]:
    """Check the requested suffixes and expand `all`."""
    if unknown := sorted(set(modalities) - {*SUFFIXES, "all"}):
        raise Usage(
            f"Unknown modality {listed(unknown)}. Known: {', '.join(SUFFIXES)}, and all. "
            "Correct --modalities."
        )
    wanted = tuple(suffix for suffix in modalities if suffix != "all")
    return (*ALL_MODALITIES, *wanted) if "all" in modalities else wanted or ANATOMICAL


def dataset_root(bids_dir: Path) -> Path:
    """Return the absolute root of a dataset after checking that it is one."""
    root = Path(os.path.abspath(bids_dir))  # noqa: PTH100 - normalises, follows no link
    if not root.is_dir():
        raise NoInput(f"{root} is not a folder. Give the root of a BIDS dataset.")
    description = root / "dataset_description.json"
    if not description.is_file() and not description.is_symlink():
        raise InvalidDataset(
            f"{root} has no dataset_description.json, so it is not a BIDS dataset. "
            "Give the dataset's root, or add the file "
            '({"Name": "...", "BIDSVersion": "1.10.0"}).'
        )
    try:
        check_content(description)
        read_json(description)
    except BadData as error:
        raise InvalidDataset(str(error)) from error
    if not subjects_in(root):
        raise InvalidDataset(f"{root} has no sub-* folder. Give the root of a BIDS dataset.")
    return root


def subjects_in(root: Path) -> tuple[str, ...]:
    """List the subjects of a dataset, sorted."""
    with os.scandir(root) as entries:  # knows folders without asking the disk for each
        matches = (re.fullmatch(SUBJECT, entry.name) for entry in entries if entry.is_dir())
        return tuple(sorted(match[1] for match in matches if match))


def scans_of(
    root: Path, subjects: Sequence[str], database: Path | None = None
) -> tuple[tuple[Scan, ...], int]:
    """List the images of some subjects (all if empty) that have a suffix of BIDS.

    Return also how many images `.bidsignore` leaves out.
    """
    images = _indexed(root, subjects, database) if database else _images(root, subjects)
    places = [path.relative_to(root) for path in images]
    spec = _ignored(root)
    kept = [place for place in places if not spec.match_file(place.as_posix())]
    scans = (Scan(root / place, root, entities_of(place)) for place in kept)
    known = tuple(scan for scan in scans if scan.entities.get("suffix") in SUFFIXES)
    return known, len(places) - len(kept)


def _ignored(root: Path) -> GitIgnoreSpec:
    """Read the patterns of files that the BIDS validator does not look at, either."""
    path = root / IGNORE
    lines = path.read_text("utf-8-sig", "replace").splitlines() if path.is_file() else []
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise InvalidDataset(f"{path}: {error}. Correct the pattern.") from error


def _images(root: Path, subjects: Sequence[str]) -> Iterator[Path]:
    """Find the NIfTI files of some subjects where BIDS has them, without asking for their kind.

    pybids walks a dataset too, but takes minutes for 50,000 files.
    """
    for subject in subjects or subjects_in(root):
        folder = root / f"sub-{subject}"
        sessions = [name for name in _names(folder) if re.fullmatch("ses-[a-zA-Z0-9+]+", name)]
        for parent in (folder, *(folder / name for name in sessions)):
            for datatype in MAIN_SUFFIX:
                place = parent / datatype
                for name in _names(place):
                    if re.fullmatch(r"sub-.+\.nii(\.gz)?", name):
                        yield place / name


def _indexed(root: Path, subjects: Sequence[str], database: Path) -> Iterator[Path]:
    """Find the same files by a pybids index on disk, which is made first if there is none."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer  # slow to import

    index = database / "layout_index.sqlite"
    if not index.is_file():
        if database.resolve().is_relative_to(root.resolve()):
            raise Usage(f"{database} (--bids-database-dir) is in {root}. Choose a folder outside.")
        kept = rf"{SUBJECT}(/ses-[a-zA-Z0-9+]+)?(/({DATATYPES})(/sub-[^/]+\.nii(\.gz)?)?)?"
        ignored = [re.compile(rf"^/(?!{kept}$)")]
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignored)
        with tempfile.TemporaryDirectory() as folder:  # other jobs see a whole index or none
            BIDSLayout(root, validate=False, database_path=folder, indexer=indexer)
            write_bytes(index, (Path(folder) / index.name).read_bytes())
    try:
        layout = BIDSLayout(root, validate=False, database_path=database)
        paths = [Path(path) for path in layout.get(return_type="filename")]
    except Exception as error:  # pybids and its database say it in many ways
        raise BadData(
            f"{index} is no index of pybids: {error!r}. Remove it; it is made anew."
        ) from error
    if Path(layout.root).resolve() != root.resolve():
        raise Usage(
            f"{index} is an index of {layout.root}, not of {root}. "
            "Choose another --bids-database-dir."
        )
    whose = "|".join(map(re.escape, subjects)) or "[a-zA-Z0-9+]+"
    kept = rf"sub-({whose})(/ses-[a-zA-Z0-9+]+)?/({DATATYPES})/sub-[^/]+\.nii(\.gz)?"
    for path in paths:
        relative = path.relative_to(layout.root)
        if re.fullmatch(kept, relative.as_posix()):
            yield root / relative


def _names(folder: Path) -> list[str]:
    """List a folder; nothing if it is not there, is a file, or must not be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - the names alone
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        LOG.warning("%s is left out: no permission to read this folder", folder)
        return []


def entities_of(relative: Path) -> dict[str, str]:
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


def usable(scans: Iterable[Scan]) -> tuple[Scan, ...]:
    """Leave out images without a magnitude, processed ones and copies, saying so; sort."""
    kept: dict[tuple[Path, str], Scan] = {}
    for scan in sorted(scans, key=lambda scan: not scan.path.name.endswith(".gz")):
        if scan.entities.get("part") in ("phase", "imag"):
            LOG.warning("%s is left out: not a magnitude image", scan.relative)
        elif not scan.is_where_its_name_says:
            LOG.warning("%s is left out: its name is of another folder", scan.relative)
        elif any(key in scan.entities for key in _DERIVED):
            LOG.warning("%s is left out: its name is not that of a raw scan", scan.relative)
        elif (scan.path.parent, scan.name) in kept:
            LOG.warning("%s is left out: there is a .nii.gz of this name", scan.relative)
        else:
            kept[scan.path.parent, scan.name] = scan
    return tuple(sorted(kept.values(), key=lambda scan: scan.path))


def bare(labels: Sequence[str], prefix: str = "sub-") -> tuple[str, ...]:
    """Strip a prefix and repetitions from labels."""
    return tuple(dict.fromkeys(label.removeprefix(prefix) for label in labels))


def listed(items: Iterable[object], prefix: str = "") -> str:
    """Join items for a message, at most 30 of them."""
    texts = [f"{prefix}{item}" for item in items]
    return ", ".join(texts[:30]) + (f" and {len(texts) - 30} more" if len(texts) > 30 else "")
