from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from singlestrip_bids.config import AutoencoderConfig, NetworkConfig
from singlestrip_bids.image.grid import Conformed
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.expected_dice import (
    FLOOR,
    FULL,
    Calibration,
    Evidence,
    bettered,
    bettered_structure,
    line_through,
    segment,
)
from singlestrip_bids.method.networks import Autoencoder, UNet

CPU = Runtime(torch.device("cpu"), bfloat16=False)
LINE = Calibration(score=0.4, agreement=0.8, constant=0.6, better=-0.4, worse=0.5)
SHARES = st.floats(0, 1)


def masks(count: int, seed: int, spread: float = 0.3) -> tuple[list[Evidence], list[float]]:
    """Evidence of random masks, and a Dice that lies about LINE."""
    rng = np.random.default_rng(seed)
    evidence = [Evidence(*row) for row in 1 - rng.uniform(0.01, 0.4, (count, 3))]
    noise = rng.normal(0, spread, count)
    seen = np.log(1 + FLOOR - np.array([astuple(one) for one in evidence]))
    missing = (
        np.exp(seen @ (LINE.score, LINE.agreement / 2, LINE.agreement / 2) + LINE.constant + noise)
        - FLOOR
    )
    return evidence, list(1 - np.clip(missing, 0, 1))


class TestLine:
    def test_finds_the_line(self):
        found = line_through(*masks(400, seed=0, spread=0.01))
        assert found.score == pytest.approx(LINE.score, abs=0.02)
        assert found.agreement == pytest.approx(LINE.agreement, abs=0.02)
        assert found.constant == pytest.approx(LINE.constant, abs=0.05)

    def test_nine_of_ten_new_masks_lie_within(self):
        held = []
        for seed in range(20):
            found = line_through(*masks(60, seed))
            for evidence, truth in zip(*masks(100, 1000 + seed), strict=True):
                _, low, high = found.expect(evidence)
                held.append(low <= truth <= high)
        assert 0.87 < np.mean(held) < 0.95

    def test_it_is_surer_of_masks_that_are_surely_good(self):
        """Where the spread grows with what is missing, so does the interval, and holds as many."""

        def drawn(count: int, seed: int) -> tuple[list[Evidence], list[float]]:
            evidence, _ = masks(count, seed)
            line = np.log([1 + FLOOR - one.score for one in evidence])
            noise = np.random.default_rng(seed).normal(0, 1, count) * (0.05 + 0.15 * (line + 4.4))
            return evidence, list(1 - np.clip(np.exp(line + noise) - FLOOR, 0, 1))

        found = line_through(*drawn(400, seed=0))
        assert found.growth > 0.1
        seen = [[found.expect(one) for one in drawn(200, seed)[0]] for seed in range(1, 4)]
        truth = [drawn(200, seed)[1] for seed in range(1, 4)]
        good = [
            (low <= true <= high, high - low)
            for rows, dices in zip(seen, truth, strict=True)
            for (middle, low, high), true in zip(rows, dices, strict=True)
            if middle > 0.95
        ]
        assert 0.8 < np.mean([held for held, _ in good]) < 1
        flat = replace(found, growth=0.0)
        (middle, low, high), (_, lowest, highest) = (
            line.expect(Evidence(0.97, 0.97, 0.97)) for line in (found, flat)
        )
        assert lowest < low < middle < high < highest

    def test_evidence_that_says_nothing_has_no_weight(self):
        evidence, _ = masks(60, seed=3)
        truth = list(np.random.default_rng(4).uniform(0.5, 0.95, 60))
        found = line_through(evidence, truth)
        middle, low, high = found.expect(Evidence(0.8, 0.8, 0.8))
        assert low < 0.6 < middle < 0.85 < high

    def test_contrary_evidence_is_not_turned_round(self):
        evidence, truth = masks(60, seed=5, spread=0.01)
        upside_down = [replace(e, score=1 - e.score) for e in evidence]
        assert line_through(upside_down, truth).score == 0

    def test_perfect_masks(self):
        found = line_through([Evidence(1, 1, 1)] * 6, [1.0] * 6)
        assert found.expect(Evidence(1, 1, 1)) == pytest.approx((1, 1, 1))


class TestExpect:
    @given(SHARES, SHARES, SHARES)
    def test_is_a_dice_within_its_interval(self, score, mild, strong):
        middle, low, high = LINE.expect(Evidence(score, mild, strong))
        assert 0 <= low <= middle <= high <= 1

    @given(st.tuples(SHARES, SHARES, SHARES), st.tuples(SHARES, SHARES, SHARES))
    def test_better_evidence_never_lowers_it(self, seen, better):
        one = LINE.expect(Evidence(*seen))
        other = LINE.expect(Evidence(*map(max, seen, better)))
        assert all(b >= a for a, b in zip(one, other, strict=True))


class TestBettered:
    def test_some_of_what_is_missing_comes_right(self):
        middle, low, high = bettered((0.96, 0.92, 0.98), 0.975, FULL)
        assert middle == pytest.approx(0.97, abs=1e-6)
        assert low < 0.94 and high > 0.984

    def test_where_more_changed_less_is_expected(self):
        known = 0.95, 0.9, 0.97
        found = [bettered(known, agreement, 0.9)[0] for agreement in (0.99, 0.97, 0.9)]
        assert found == sorted(found, reverse=True)
        assert found[0] > 0.95 > found[2]

    def test_who_has_few_votes_tells_little(self):
        known = 0.9, 0.8, 0.95
        assert bettered(known, 1.0, 0.0) == pytest.approx(known)
        few, many = (bettered(known, 1.0, votes)[0] for votes in (0.01, FULL))
        assert 0.9 < few < 0.91 and many > 0.95

    def test_what_is_all_new_is_hardly_known(self):
        middle, low, high = bettered((0.0, 0.0, 0.0), 0.0, 1.0)
        assert low == 0 < middle < 0.2 < high

    @given(SHARES, SHARES, SHARES, SHARES)
    def test_is_a_dice_within_its_interval(self, expected, wide, agreement, votes):
        ends = expected * (1 - wide), expected + wide * (1 - expected)
        middle, low, high = bettered((expected, *ends), agreement, votes)
        assert 0 <= low <= middle <= high <= 1


class TestBetteredStructure:
    def test_half_of_what_changed_is_gained(self):
        middle, low, high = bettered_structure((0.9, 0.85, 0.92), 0.98)
        assert middle == pytest.approx(0.91)
        assert low == pytest.approx(0.86, abs=1e-3) and low < 0.86
        assert high == pytest.approx(0.93, abs=1e-3) and high > 0.93

    def test_nothing_changed(self):
        known = 0.95, 0.9, 0.97
        assert bettered_structure(known, 1.0) == pytest.approx(known)

    @given(SHARES, SHARES)
    def test_half_stays_missing(self, expected, agreement):
        middle, low, high = bettered_structure((expected, 0.0, 1.0), agreement)
        assert 0 <= low <= middle <= high <= 1
        assert expected - 1e-9 <= middle <= (1 + expected) / 2 + 1e-9


class TestSegment:
    def scan(self) -> Conformed:
        data = np.random.default_rng(0).random((16, 16, 16), dtype=np.float32)
        return Conformed(data, np.eye(4), np.ones_like(data, dtype=bool))

    def networks(self, bias: float):
        torch.manual_seed(0)
        network = UNet(NetworkConfig(features=(3, 4), normalise=True, stem=2))
        torch.nn.init.constant_(network.head.bias, bias)
        return network, Autoencoder(AutoencoderConfig(latent=16, slice_size=64))

    def test_no_brain_is_no_evidence(self):
        seen = segment(*self.networks(-50), self.scan(), CPU)
        assert not seen.mask.any()
        assert seen.evidence == Evidence(0.0, 0.0, 0.0)

    def test_everything_is_brain(self):
        seen = segment(*self.networks(50), self.scan(), CPU)
        assert seen.mask.all()
        assert seen.probability.min() > 0.9
        assert seen.evidence.mild == seen.evidence.strong == 1
