"""What people said of masks: the file that the group's page exports."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadData, NoInput

LOG = logging.getLogger("singlestrip_bids")
WORDS = ("accept", "reject", "n/a", "")


@dataclass(frozen=True)
class Ratings:
    """Scans, by their paths in the dataset, whose masks were accepted or rejected by eye."""

    accepted: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()

    def of(self, scans: Iterable[str]) -> Ratings:
        """Return the ratings of these scans alone; warn if there are others."""
        here = frozenset(scans)
        if others := (self.accepted | self.rejected) - here:
            LOG.warning(
                "--ratings: %d of its scans are not among the unlabelled ones that are selected, "
                "such as %s; they are left aside.",
                len(others), min(others),
            )  # fmt: skip
        return Ratings(self.accepted & here, self.rejected & here)

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data for the card."""
        return {"accepted": sorted(self.accepted), "rejected": sorted(self.rejected)}


def read(path: Path | None) -> Ratings:
    """Read ratings as TSV, or as JSON by the file's name; none without a file.

    Raises NoInput if there is no such file, BadData if it has no columns ``scan`` and ``rating``,
    or another rating than accept or reject.
    """
    if path is None:
        return Ratings()
    if not path.is_file():
        raise NoInput(f"{path} (--ratings) is not there. Correct the path.")
    found: dict[str, set[str]] = {word: set() for word in WORDS}
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in json.loads(text) if path.suffix == ".json" else table:
            found[row["rating"]].add(row["scan"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadData(
            f"{path}: not ratings as the group's page exports them ({error!r}); give a table of "
            "scan and rating, which is accept or reject."
        ) from error
    if both := found["accept"] & found["reject"]:
        raise BadData(f"{path}: {min(both)} is both accepted and rejected; decide on one.")
    return Ratings(frozenset(found["accept"]), frozenset(found["reject"]))
