"""Which Dice can be expected of a mask? Learnt on masks that have another to be compared with.

Three things can be seen of every mask without a truth: how well the autoencoder reconstructs it,
and how well it agrees with the masks of the image whose intensities are remapped, mildly and
strongly. A line through the first and the mean of the others (in the logarithm of what is missing
to 1) gives the expected Dice; the spread of the masks around it gives the interval, in the manner
of conformal prediction.
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

    def expect(self, evidence: Evidence) -> tuple[float, float, float]:
        """Return the expected Dice and the ends of its interval, lower end first."""
        line = float(_terms([evidence])[0] @ (self.score, self.agreement, self.constant))
        missing = [math.exp(line + shift) - FLOOR for shift in (0.0, self.worse, self.better)]
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
    (jackknife; Barber et al. 2021). Quantiles are those of split conformal prediction.
    """
    terms, target = _terms(evidence), _missing(truth)
    count = len(target)
    residuals = np.empty(count)
    for i in range(count):
        others = np.arange(count) != i
        residuals[i] = target[i] - terms[i] @ _slopes(terms[others], target[others])
    residuals.sort()
    tail = max(math.floor((count + 1) * (1 - COVERAGE) / 2), 1)
    better, worse = residuals[tail - 1], residuals[count - tail]
    return Calibration(*map(float, (*_slopes(terms, target), better, worse)))


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
