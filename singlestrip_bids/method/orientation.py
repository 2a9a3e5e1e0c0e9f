"""Do the axes of a scan point where its header says? Seen from the brain, not from the header.

A network that knows heads upright makes steadier masks of them than of heads that lie otherwise:
in other contrasts and in the mirror they stay the same. If they are much steadier with the head
turned, the header is in doubt. Left and right cannot be told.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..image.grid import Conformed
from ..image.masks import Mask, dice
from ..machine.runtime import Runtime, as_memory_allows
from .expected_dice import FLOOR, Evidence
from .inference import compare
from .networks import UNet

STEADIER = 1.25  # times less missing to full agreement, by which another orientation looks better
NAMES = (("left", "right"), ("back", "front"), ("bottom", "top"))  # ends of the axes, RAS


@dataclass(frozen=True)
class Turn:
    """A rotation by right angles: axes are permuted, then some of them flipped."""

    order: tuple[int, ...]
    flips: tuple[int, ...]

    def apply(self, volume: NDArray) -> NDArray:
        """Turn a volume (X, Y, Z)."""
        return np.ascontiguousarray(np.flip(volume.transpose(self.order), self.flips))

    def undo(self, volume: NDArray) -> NDArray:
        """Turn it back."""
        back = np.argsort(self.order)
        return np.ascontiguousarray(np.flip(volume, self.flips).transpose(back))

    @property
    def words(self) -> str:
        """Say which ends of the axes by the header would be left, back and bottom."""
        ends = (NAMES[a][i in self.flips] for i, a in enumerate(self.order))
        said = [
            f"{old} is {new[0]}" for old, new in zip(ends, NAMES, strict=True) if old != new[0]
        ]
        return (
            "the header may name the axes wrongly: this looks more like a head if what it calls "
            f"{', '.join(said)}; look at the scan in a viewer."
        )


def _turns() -> list[Turn]:
    """All 23 rotations by right angles but that by none."""
    found = []
    for order in itertools.permutations(range(3)):
        odd = sum(order[i] > order[j] for i, j in itertools.combinations(range(3), 2)) % 2
        for count in range(4):
            for flips in itertools.combinations(range(3), count):
                if count % 2 == odd:  # no mirror image
                    found.append(Turn(order, flips))
    return found[1:]


@dataclass(frozen=True)
class Doubt:
    """Another orientation in which a scan looks better."""

    agreement: float  # Dice of its mask, turned back, with that in the header's orientation
    words: str  # what the header's directions would be


def doubt(
    network: UNet, conformed: Conformed, mask: Mask, evidence: Evidence | None, runtime: Runtime
) -> Doubt | None:
    """Look at a scan in all 24 orientations; None if the header's is about as good as any.

    ``mask`` is that of the scan as it is; ``evidence``, if known, what was seen of it.
    """

    def look(turn: Turn | None, machine: Runtime) -> tuple[float, Mask]:
        arrays = conformed.data, conformed.inside
        data, inside = map(turn.apply, arrays) if turn else arrays
        turned = Conformed(data, conformed.affine, inside)
        seen = compare(network, turned, machine)
        return unsteadiness(seen.mild, seen.strong), seen.mask

    def on(machine: Runtime) -> Doubt | None:
        own = unsteadiness(evidence.mild, evidence.strong) if evidence else look(None, machine)[0]
        least, better = own / STEADIER, None
        for turn in _turns():
            seen, other = look(turn, machine)
            if seen < least:
                least, better = seen, Doubt(dice(turn.undo(other), mask), turn.words)
        return better

    return as_memory_allows(on, runtime.rungs())


def unsteadiness(mild: float, strong: float) -> float:
    """Tell how much is missing to full agreement with mildly and strongly changed copies."""
    return math.sqrt((1 - mild + FLOOR) * (1 - strong + FLOOR))
