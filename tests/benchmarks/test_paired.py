"""Differences between two ways to mask the same scans."""

import numpy as np
import pytest

from benchmarks.paired import difference


def rows(*dice, scans="abcdefgh"):
    return [{"scan": scan, "dice": value} for scan, value in zip(scans, dice, strict=False)]


def test_a_difference_of_all_scans_alike_has_no_spread():
    found = difference(rows(0.9, 0.8, 0.7), rows(0.8, 0.7, 0.6))
    assert found == pytest.approx((0.1, 0.1, 0.1, 3))
    assert str(found) == "+0.1000 (+0.1000 to +0.1000)"


def test_the_interval_is_that_of_the_mean():
    gaps = np.random.default_rng(1).normal(0.01, 0.02, 200)
    scans = [str(i) for i in range(len(gaps))]
    found = difference(rows(*(0.9 + gaps), scans=scans), rows(*[0.9] * 200, scans=scans))
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    assert found.mean == pytest.approx(gaps.mean())
    assert found.low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.1 * error)


def test_pairs_by_scan_whatever_the_order_and_the_labels():
    one = [*rows(0.9, 0.8), {"scan": "a", "dice": 0.7}, {"scan": "only here", "dice": 0.0}]
    other = list(reversed(rows(0.5, 0.5)))
    assert difference(one, other).mean == pytest.approx(0.3)  # a: .8, the mean of two labels


def test_a_missing_mask_counts_as_zero_and_too_few_scans_are_none():
    assert difference(rows(0.9, None), rows(0.9, 0.9)).mean == pytest.approx(-0.45)
    assert difference(rows(0.9), rows(0.8)) is None
    assert difference(rows(0.9, 0.8), []) is None
