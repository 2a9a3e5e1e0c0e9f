from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.config import NetworkConfig, SynthesisConfig, TrainingConfig
from singlestrip_bids.errors import TemporaryFailure
from singlestrip_bids.machine.runtime import Runtime, stopping_on_sigterm
from singlestrip_bids.method.classes import Source, source
from singlestrip_bids.method.losses import (
    Averaged,
    images_of,
    ramped_loss,
    reconstruction_loss,
    soft_dice,
)
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.training import fit

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


class TestRamped:
    """The loss of SemiSAM-O1's rounds."""

    SIZE, STEPS = 16, 30
    CPU = Runtime(torch.device("cpu"), bfloat16=False)
    SYNTHESIS = SynthesisConfig()

    def learner(self) -> Averaged:
        torch.manual_seed(0)
        return Averaged(UNet(NetworkConfig((2, 4), normalise=True)), self.STEPS)

    def sources(self) -> list[Source]:
        near = torch.stack(torch.meshgrid(*[torch.arange(self.SIZE) - 7.5] * 3, indexing="ij"))
        mask = (near.norm(dim=0) < 5).float()
        return [source(1 + mask, 0.3 + 0.5 * mask, mask)]

    def loss(self, sources: list[Source], pseudo: list[Source], consistency: float = 0.0):
        how = self.SIZE, self.SYNTHESIS
        return ramped_loss(
            self.CPU, images_of(sources, *how), images_of(pseudo, *how), consistency
        )

    def values(self, learner, loss) -> list[float]:
        seeds = range(12)
        return [loss(learner, [self.CPU.generator(seed)]).item() for seed in seeds]

    def test_pseudo_labels_count_from_nothing_to_all(self):
        learner, sources = self.learner(), self.sources()
        loss = self.loss(sources, sources)
        first = self.values(learner, loss)
        assert 3 <= first.count(0.0) <= 9  # the images of pseudo-labels
        learner.step.fill_(0.15 * self.STEPS)
        half = self.values(learner, loss)
        learner.step.fill_(self.STEPS)
        whole = self.values(learner, loss)
        for before, middle, after in zip(first, half, whole, strict=True):
            assert after > 0
            assert before in (0.0, after)
            assert middle == pytest.approx(after if before else after / 2)

    def test_agreement_with_the_average_counts_as_they_do(self):
        learner, sources = self.learner(), self.sources()
        with torch.no_grad():
            for one in learner.average.parameters():
                one.add_(0.1)
        plain, heavy = self.loss(sources, sources), self.loss(sources, sources, 2.0)
        assert self.values(learner, plain) == self.values(learner, heavy)
        learner.step.fill_(self.STEPS)
        pairs = zip(self.values(learner, plain), self.values(learner, heavy), strict=True)
        assert all(more > less for less, more in pairs)

    def test_the_average_follows_and_takes_no_gradient(self):
        learner = self.learner()
        (own, *_), (mean, *_) = learner.network.parameters(), learner.average.parameters()
        assert not mean.requires_grad
        with torch.no_grad():
            own.fill_(1.0)
            mean.zero_()
        learner.after_step()
        assert mean.unique().tolist() == pytest.approx([0.5])
        learner.step.fill_(1000)
        learner.after_step()
        assert mean.unique().tolist() == pytest.approx([0.505])

    def test_a_stopped_training_ends_with_the_same_weights(self, tmp_path):
        """The average and the ramp go on, too."""
        settings, sources = TrainingConfig(self.STEPS, learning_rate=0.01), self.sources()
        loss = self.loss(sources, sources, 0.5)
        how = settings, self.CPU

        def run(learner, loss, name):
            fit(learner, loss, *how, tmp_path / name, "a", 7, "test")
            return [*learner.network.parameters(), *learner.average.parameters(), learner.step]

        calls = iter(range(1000))

        def terminated(network, generators):
            if next(calls) == 11:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(network, generators)

        whole = run(self.learner(), loss, "whole")
        with stopping_on_sigterm(), pytest.raises(TemporaryFailure):
            run(self.learner(), terminated, "stopped")
        for one, other in zip(whole, run(self.learner(), loss, "stopped"), strict=True):
            assert torch.equal(one, other)
