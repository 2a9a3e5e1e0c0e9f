from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.method.losses import reconstruction_loss, soft_dice

SHAPE = (2, 1, 6, 5, 4)


def random(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class TestSoftDice:
    def test_binary(self):
        target = (random(0) > 0.5).float()
        assert float(soft_dice(target, target)) == pytest.approx(0, abs=1e-6)
        assert float(soft_dice(1 - target, target)) == pytest.approx(1, abs=1e-6)

    def test_is_one_minus_dice_of_binary_masks(self):
        one, two = torch.zeros((2, 1, 1, 4, 4, 4))
        one[..., :2], two[..., 1:3] = 1, 1
        assert float(soft_dice(one, two)) == pytest.approx(0.5, abs=1e-6)

    def test_empty_target(self):
        nothing = torch.zeros(SHAPE)
        assert float(soft_dice(nothing, nothing)) == pytest.approx(0, abs=1e-6)
        assert float(soft_dice(random(0), nothing)) == pytest.approx(1, abs=1e-3)

    def test_mean_over_the_batch(self):
        target = (random(0) > 0.5).float()
        half_right = torch.cat([target[:1], 1 - target[1:]])
        assert float(soft_dice(half_right, target)) == pytest.approx(0.5, abs=1e-6)

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 999), step=st.floats(1e-3, 0.5))
    def test_least_at_a_fractional_target(self, seed, step):
        target = random(seed)
        assert float(soft_dice(target, target)) == pytest.approx(0, abs=1e-6)
        other = (target + step * (random(seed + 1) - 0.5)).clamp(0, 1)
        assert soft_dice(other, target) >= soft_dice(target, target)

    def test_stationary_at_a_fractional_target_alone(self):
        target = random(0)
        guess = target.clone().requires_grad_()
        soft_dice(guess, target).backward()
        assert guess.grad.abs().max() < 1e-6
        guess = (target > 0.5).float().requires_grad_()
        soft_dice(guess, target).backward()
        assert guess.grad.abs().max() > 1e-3

    def test_symmetric_and_bounded(self):
        one, two = random(0), random(1)
        assert soft_dice(one, two) == soft_dice(two, one)
        assert 0 < float(soft_dice(one, two)) < 1


class TestReconstruction:
    def test_zero_of_itself(self):
        brain = (random(0, (3, 1, 8, 8)) > 0.5).float()
        both = torch.cat([1 - brain, brain], dim=1)
        assert float(reconstruction_loss(both, both)) == pytest.approx(0, abs=1e-6)
        assert float(reconstruction_loss(1 - both, both)) == pytest.approx(2, abs=1e-6)

    def test_dice_of_the_brain_plus_squared_error_of_both(self):
        brain, guess = random(0, (3, 1, 8, 8)), random(1, (3, 1, 8, 8))
        both, guesses = torch.cat([1 - brain, brain], 1), torch.cat([1 - guess, guess], 1)
        expected = soft_dice(guess, brain) + F.mse_loss(guess, brain)
        torch.testing.assert_close(reconstruction_loss(guesses, both), expected)
