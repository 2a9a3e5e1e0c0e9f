"""Which of many: scores of one round become the next training set; samples of long lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Take at most so many items, at even distances, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


@dataclass(frozen=True)
class Candidate:
    """An unlabelled scan in one round, under the mask the network gave it.

    Attributes
    ----------
    scan : str
        Path within the dataset.
    score : float
        Reconstruction Dice of the autoencoder; 0 where there is no mask.
    agreement : float or None
        Dice of the network's mask and the registration's, where both were made.
    volume_ml : float
        Volume of the mask.
    kept : bool
        Whether the mask trains the next network.
    note : str
        What went wrong, if anything did.
    """

    scan: str
    score: float
    agreement: float | None
    volume_ml: float
    kept: bool = False
    note: str = ""

    @property
    def contrast(self) -> str:
        """BIDS suffix of the scan."""
        return self.scan.rsplit("_", 1)[-1].split(".", 1)[0]

    @property
    def rank(self) -> float:
        """Score, or its mean with the agreement: what decides the order."""
        return self.score if self.agreement is None else (self.score + self.agreement) / 2


def top_k(
    candidates: Sequence[Candidate], k: int, always: Collection[str] = ()
) -> list[Candidate]:
    """Mark k as kept, contrast by contrast, in the order given.

    The best of every contrast (BIDS suffix) comes first, then the others in proportion to its
    number, so that none is left out because its masks are harder to make. An empty mask is never
    kept. Scans named in ``always`` are kept besides.

    Notes
    -----
    SingleStrip, section 2.4, for each contrast. Of equal ones the first in the alphabet is kept.
    """
    usable = sorted((c for c in candidates if c.volume_ml > 0), key=lambda c: (-c.rank, c.scan))
    place: dict[str, float] = {}
    for contrast in {c.contrast for c in usable}:
        group = [c.scan for c in usable if c.contrast == contrast]
        place |= {scan: i / len(group) for i, scan in enumerate(group)}
    kept = {c.scan for c in sorted(usable, key=lambda c: place[c.scan])[:k]}
    kept |= {c.scan for c in usable if c.scan in always}
    return [replace(c, kept=c.scan in kept) for c in candidates]
