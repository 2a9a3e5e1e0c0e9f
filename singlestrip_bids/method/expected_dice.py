"""Which Dice can be expected of a mask? Learnt on masks that have another to be compared with.

Three things can be seen of every mask without a truth: how well the autoencoder reconstructs it,
and how well it agrees with the masks of the image whose intensities are remapped, mildly and
strongly. A line through the first and the mean of the others (in the logarithm of what is missing
to 1) gives the expected Dice; the spread of the masks around it gives the interval, in the manner
of conformal prediction. The line is that of the network's mask. How much label and fine network
change of it tells what is missing in what is written, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..image.brain import COVERAGE
from ..image.grid import Conformed
from ..image.structures import Numbers, Shares, overlaps
from ..machine.runtime import Runtime, as_memory_allows
from .autoencoder import shape_score
from .inference import compare
from .networks import Autoencoder, UNet

FLOOR = 0.005  # what is missing to 1 is not followed below this
STAYS = 0.75  # share of what a network's mask lacks that is still missing in what is written
CHANGED = 1.2  # what is missing there, as a share of what label and fine network have changed
UNSURE = 0.25  # how far it may be from both, in the logarithm
FULL = 2 / 3  # votes of label and fine network from which all of this holds
RIGHTED = 0.75  # share of the voxels of a structure that are changed, which become right
GIVE = 0.12  # by which that share is other in nine of ten scans, at most
LEAST = 0.5  # of the mean spread: heads differ from each other however good their masks are


@dataclass(frozen=True)
class Evidence:
    """What can be seen of a mask without the truth; all between 0 and 1."""

    score: float  # reconstruction Dice of the autoencoder
    mild: float  # mean Dice with the masks of mildly remapped copies, half of them mirrored
    strong: float  # the same with those of strongly remapped ones


@dataclass(frozen=True)
class Calibration:
    """From evidence to an expected Dice: a line of ``log(1 - evidence)`` to ``log(1 - Dice)``."""

    score: float  # slope, not negative
    agreement: float  # slope, not negative
    constant: float
    better: float  # quantile of what is left below the line, an end of the interval
    worse: float  # the same above it
    centre: float = 0.0  # place on the line where both are as said
    growth: float = 0.0  # by which they are larger where the line is 1 higher, as a share

    def expect(self, evidence: Evidence) -> tuple[float, float, float]:
        """Return the expected Dice and the ends of its interval, lower end first."""
        line = float(_terms([evidence])[0] @ (self.score, self.agreement, self.constant))
        wide = max(1 + self.growth * (line - self.centre), LEAST)
        shifts = 0.0, wide * self.worse, wide * self.better
        missing = [math.exp(line + shift) - FLOOR for shift in shifts]
        middle, low, high = (float(np.clip(1 - value, 0, 1)) for value in missing)
        return middle, low, high


def _terms(evidence: Sequence[Evidence]) -> NDArray[np.float64]:
    """Rows of ``log(1 - score)``, the mean of ``log(1 - mild)`` and ``log(1 - strong)``, and 1.

    With a slope for each the line heeds mild copies alone, by which it promises too little.
    """
    missing = _missing([astuple(one) for one in evidence])
    return np.column_stack([missing[:, 0], missing[:, 1:].mean(axis=1), np.ones(len(missing))])


def _missing(value: Any) -> NDArray[np.float64]:
    return np.asarray(np.log(np.clip(1 - np.asarray(value, dtype=float), 0, 1) + FLOOR))


def line_through(evidence: Sequence[Evidence], truth: Sequence[float]) -> Calibration:
    """Fit the line and its interval to at least four masks whose Dice, ``truth``, is known.

    Notes
    -----
    Each residual is that of a line through the others, so that the interval is not too narrow
    (jackknife; Barber et al. 2021). Quantiles are those of split conformal prediction, of
    residuals as shares of how large they are at their place on the line (Lei et al. 2018): what is
    expected of good masks is surer.
    """
    terms, target = _terms(evidence), _missing(truth)
    count = len(target)
    residuals = np.empty(count)
    for i in range(count):
        others = np.arange(count) != i
        residuals[i] = target[i] - terms[i] @ _slopes(terms[others], target[others])
    slopes = _slopes(terms, target)
    line = terms @ slopes
    centre, growth = line.mean(), _growth(line, abs(residuals))
    shares = np.sort(residuals / np.maximum(1 + growth * (line - centre), LEAST))
    tail = max(math.floor((count + 1) * (1 - COVERAGE) / 2), 1)
    better, worse = shares[tail - 1], shares[count - tail]
    growth = min(growth, 1 / max(-better, 1e-6))  # better evidence never lowers an end
    return Calibration(*map(float, (*slopes, better, worse, centre, growth)))


def _growth(line: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """By what share of their mean residuals are larger where the line is 1 higher; 0 at least."""
    if np.ptp(line) < FLOOR or sizes.mean() < FLOOR:
        return 0.0
    return max(float(np.polyfit(line, sizes / sizes.mean(), 1)[0]), 0.0)


def bettered(
    expected: Sequence[float], agreement: float, votes: float
) -> tuple[float, float, float]:
    """Say what can be expected of a network's mask once label and fine network have changed it.

    ``expected`` are a Dice and the ends of its interval, ``agreement`` is the Dice of both masks,
    ``votes`` the share of all votes, 0 to 1, that label and fine network have. Some of what the
    network's mask lacks comes right; and where much is changed the voices differ, so that the scan
    is a hard one. What is missing is the geometric mean of what both tell, as far as they have
    votes.
    """
    heard = min(votes / FULL, 1.0)
    line, worse, better = ((1 - (1 - STAYS) * heard) * (1 - value) + FLOOR for value in expected)
    changed = CHANGED * (1 - agreement) + FLOOR
    missing = line ** (1 - heard / 2) * changed ** (heard / 2)
    down, up = (math.hypot(math.log(end / line), UNSURE * heard) for end in (worse, better))
    middle, low, high = (1 + FLOOR - missing * math.exp(shift) for shift in (0.0, down, -up))
    return min(max(middle, 0.0), 1.0), max(low, 0.0), min(high, 1.0)


def bettered_structure(expected: Sequence[float], agreement: float) -> tuple[float, float, float]:
    """Say the same of a structure, of which the label knows more than the network.

    Most of what is changed becomes right, up to half of what is missing. A voxel that does is one
    less that is missing, on two sides.
    """
    before, low, high = expected
    gain = min((2 * RIGHTED - 1) * (1 - agreement), (1 - before) / 2)
    middle, unsure = before + gain, 2 * GIVE * (1 - agreement)
    low = middle - math.hypot(before - low, unsure)
    high = middle + math.hypot(high - before, unsure)
    return middle, max(low, 0.0), min(high, 1.0)


def _slopes(terms: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares; slopes at least 0, the constant free (the difference of two)."""
    from scipy.optimize import nnls  # slow to import, and masking needs none

    solution, _ = nnls(np.column_stack([terms, -terms[:, -1]]), target)
    return np.append(solution[:-2], solution[-2] - solution[-1])


@dataclass(frozen=True)
class Segmentation:
    """What the networks make of a scan, on the model's grid (X, Y, Z)."""

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]  # the same, cut at one half and cleaned
    evidence: Evidence  # of the mask
    rebuilt: NDArray[np.bool_]  # the mask as the autoencoder reconstructs it
    way: str = ""  # how it was computed where the GPU's memory was full
    shares: Shares | None = None  # of structures, if the network tells any
    numbers: Numbers | None = None  # structures in the mask, by the shares
    by_structure: tuple[Evidence, ...] = ()


def segment(
    network: UNet, autoencoder: Autoencoder, conformed: Conformed, runtime: Runtime
) -> Segmentation:
    """Mask a scan and gather the evidence; a full GPU is no reason to fail."""

    def on(machine: Runtime) -> Segmentation:
        seen = compare(network, conformed, machine)
        brain, numbers = seen.view, seen.view.numbers(seen.mask)
        judged = seen.mask if numbers is None else numbers
        score, rebuilt = shape_score(autoencoder, judged, machine)
        way = "" if machine == runtime else machine.way
        evidence, parts = Evidence(score, seen.mild, seen.strong), tuple[Evidence, ...]()
        if numbers is not None and seen.by_structure is not None:
            scores = np.nan_to_num(overlaps(rebuilt, numbers, len(seen.by_structure.T)))
            parts = tuple(map(Evidence, scores, *seen.by_structure))
        shown = (brain.brain, seen.mask, evidence, rebuilt > 0, way)
        return Segmentation(*shown, brain.shares, numbers, parts)

    return as_memory_allows(on, runtime.rungs())
