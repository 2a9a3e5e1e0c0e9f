"""Look-up tables of segmentations: which index is which structure.

A table lies beside its image, or further up under a name that is part of the image's (BIDS'
inheritance): ``sub-01_dseg.tsv``, ``desc-aseg_dseg.tsv``, ``dseg.tsv``.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadData, Usage
from ..image.structures import MOST, Structure, colour_of
from ..machine.files import write_tsv

LOG = logging.getLogger("singlestrip_bids")


def is_dseg(path: Path) -> bool:
    """Tell from its name whether an image is a segmentation, not a mask."""
    return re.search(r"(^|_)dseg\.nii(\.gz)?$", path.name) is not None


def table_of(image: Path) -> Path | None:
    """Find the table of a segmentation, the nearest one; None if it has none."""
    parts = set(re.sub(r"\.nii(\.gz)?$", "", image.name).split("_"))
    for folder in image.parents:
        found = [p for p in folder.glob("*dseg.tsv") if set(p.stem.split("_")) <= parts]
        if found:
            return max(found, key=lambda path: len(path.stem.split("_")))
        if (folder / "dataset_description.json").is_file():
            break
    return None


def read_table(path: Path) -> dict[int, Structure]:
    """Read a look-up table: by index, its names and colours.

    Raises
    ------
    BadData
        It cannot be read, or a line has no index or no name, or those of another line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, ValueError, csv.Error) as error:
        raise BadData(f"{path}: not a table ({error}). Write it as BIDS has it.") from error
    found: dict[int, Structure] = {}
    for row in rows:
        index, name = row.get("index") or "", row.get("name") or ""
        if not (index.strip().isdecimal() and name.strip()):
            raise BadData(
                f"{path}: a line without an index or a name: {dict(row)}. A look-up table has the "
                "columns index and name, with tabs between."
            )
        number = int(index)
        if number in found:
            raise BadData(f"{path}: index {number} twice. Give each structure one of its own.")
        if name.strip() in [one.name for one in found.values()]:
            raise BadData(f"{path}: two structures named {name.strip()}. Give each its own name.")
        colour = (row.get("color") or "").strip().lower()
        known = re.fullmatch(r"#[0-9a-f]{6}", colour) is not None
        found[number] = Structure(number, name.strip(), colour if known else colour_of(number))
    found.pop(0, None)  # background
    return found


def write_table(path: Path, structures: Iterable[Structure]) -> None:
    """Write a look-up table as BIDS has it."""
    rows = [{"index": s.index, "name": s.name, "color": s.colour} for s in structures]
    write_tsv(path, rows)


def structures_in(segmentations: Mapping[Path, NDArray[np.int64]]) -> list[Structure]:
    """Name the structures of segmentations, by their files: all that occur in any, by index.

    Raises
    ------
    BadData
        A table has no line for an index, or there are more structures than can be told apart.
    Usage
        Two segmentations call an index differently.
    """
    found: dict[int, Structure] = {}
    for path, indices in segmentations.items():
        table = table_of(path)
        known = read_table(table) if table else {}
        there = [int(index) for index in np.unique(indices) if index]
        missing = [index for index in there if index not in known]
        if table and missing:
            raise BadData(
                f"{path}: holds index {', '.join(map(str, missing[:9]))}, for which {table} has "
                "no line. Add it, or correct the image."
            )
        if not table:
            LOG.warning("%s: no look-up table (.tsv) beside it; structures have no names.", path)
        for index in there:
            one = known.get(index) or Structure(index, f"structure-{index}", colour_of(index))
            if found.setdefault(index, one).name != one.name:
                raise Usage(
                    f"{path}: index {index} is {one.name}, in another label "
                    f"{found[index].name}. Labels of several scans have one table."
                )
        if len(found) > MOST:
            raise BadData(f"{path}: {len(found)} structures; {MOST} at most. Merge some.")
    return [found[index] for index in sorted(found)]
