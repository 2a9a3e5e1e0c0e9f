"""Scores of one round become the next training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


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
    def rank(self) -> float:
        """What decides the order: the score, or its mean with the agreement."""
        return self.score if self.agreement is None else (self.score + self.agreement) / 2


def top_k(candidates: Sequence[Candidate], k: int) -> list[Candidate]:
    """Mark the k best as kept, in the order given; a mask that is empty never is.

    Notes
    -----
    SingleStrip, section 2.4. Of equal ones the first in the alphabet is kept.
    """
    ranked = sorted((c for c in candidates if c.volume_ml > 0), key=lambda c: (-c.rank, c.scan))
    kept = {c.scan for c in ranked[:k]}
    return [replace(c, kept=c.scan in kept) for c in candidates]
