"""Differences between two ways to mask the same scans, with what chance leaves open."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

DRAWS = 10_000


class Difference(NamedTuple):
    """Mean difference in Dice over scans, and its 95 % interval."""

    mean: float
    low: float
    high: float
    scans: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def difference(
    one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]
) -> Difference | None:
    """Compare rows of `benchmarks.score`, scan by scan: the first less the second.

    Several rows of a scan (one a label) are averaged first; a mask that is missing has a Dice of
    0. Scans that only one of them has do not count; None if there are fewer than two others.

    Notes
    -----
    Percentile bootstrap over scans (Efron & Tibshirani 1993), always the same draws.
    """
    first, second = _by_scan(one), _by_scan(other)
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return None
    gaps = np.array([first[scan] - second[scan] for scan in shared])
    found = stats.bootstrap(
        (gaps,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Difference(float(gaps.mean()), float(found.low), float(found.high), len(shared))


def _by_scan(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["scan"], []).append(row["dice"] or 0.0)
    return {scan: statistics.mean(dice) for scan, dice in values.items()}
