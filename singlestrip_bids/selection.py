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
    volume_ml : float
        Volume of the mask.
    kept : bool
        Whether the mask trains the next network.
    note : str
        What went wrong, if anything did.
    """

    scan: str
    score: float
    volume_ml: float
    kept: bool = False
    note: str = ""


def top_k(candidates: Sequence[Candidate], k: int) -> list[Candidate]:
    """Mark the k best scores as kept, in the order given; a mask that is empty never is.

    Notes
    -----
    SingleStrip, section 2.4. Of equal scores the first in the alphabet is kept.
    """
    ranked = sorted((c for c in candidates if c.volume_ml > 0), key=lambda c: (-c.score, c.scan))
    kept = {c.scan for c in ranked[:k]}
    return [replace(c, kept=c.scan in kept) for c in candidates]
