"""Structures in the method: painted, targeted, propagated, joined, judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from singlestrip_bids.config import AutoencoderConfig, NetworkConfig, SynthesisConfig
from singlestrip_bids.image.grid import Conformed
from singlestrip_bids.image.structures import MOST as LIMIT
from singlestrip_bids.image.structures import doubled, most, overlaps
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method import inference
from singlestrip_bids.method.autoencoder import loss_over, onehot, rebuild, shape_score, slices
from singlestrip_bids.method.classes import CLASSES, OUTSIDE, class_map, inside_each, source
from singlestrip_bids.method.expected_dice import segment
from singlestrip_bids.method.inference import compare, view
from singlestrip_bids.method.losses import (
    MOST,
    brain_and_structures,
    images_of,
    looked_at,
    reconstruction_loss,
    segmentation_loss,
    soft_dice,
)
from singlestrip_bids.method.networks import Autoencoder, UNet
from singlestrip_bids.method.propagation import Opinion, join_shares, propagate_labels
from singlestrip_bids.method.registration import HEARD
from singlestrip_bids.method.slabs import forward_in_slabs
from singlestrip_bids.method.synthesis import training_batch

CPU = Runtime(torch.device("cpu"), bfloat16=False)
SIZE, K = 32, 2
CONFIG = NetworkConfig(features=(4, 8), normalise=True, stem=2)


def ball(radius: float = 9.0, shift: float = 0.0) -> np.ndarray:
    x, y, z = np.indices((SIZE,) * 3) - (SIZE - 1) / 2
    return (x - shift) ** 2 + y**2 + z**2 < radius**2


def numbers(radius: float = 9.0, shift: float = 0.0) -> np.ndarray:
    """A ball whose left half is 1 and whose right half is 2."""
    right = np.indices((SIZE,) * 3)[0] - (SIZE - 1) / 2 >= shift
    return np.where(ball(radius, shift), 1 + right, 0).astype(np.uint8)


def head(fine: bool = False, shift: float = 0.0):
    """A ball of two greys in a larger one."""
    parts = numbers(shift=shift)
    texture = np.random.default_rng(1).random((SIZE,) * 3).astype(np.float32) * 0.1
    image = (0.3 * ball(13, shift) + 0.2 * parts).astype(np.float32) + texture
    inside = np.ones((SIZE,) * 3, bool)
    classes = class_map(image, ball(shift=shift), inside, 0, parts=parts, structures=K)
    one = source(*(torch.from_numpy(a) for a in (classes, image, ball(shift=shift).astype("f4"))))
    shown = doubled(parts) if fine else parts
    return replace(one, parts=torch.from_numpy(shown).float()[None, None], structures=K)


def conformed(image: Tensor) -> Conformed:
    return Conformed(image[0, 0].numpy(), np.eye(4), np.ones((SIZE,) * 3, bool))


class TestClasses:
    def test_each_structure_has_its_own(self):
        one = head()
        classes, each = one.classes[0, 0].numpy(), inside_each(K)
        parts = (classes - 1 - OUTSIDE) // each
        inner = numbers() > 0
        np.testing.assert_array_equal(parts[inner], numbers()[inner])
        assert classes[~inner].max() <= OUTSIDE and classes.max() < one.count

    @pytest.mark.parametrize("count", [2, 4, 30, 80, 150, LIMIT])
    def test_never_more_than_fit_a_byte(self, count):
        assert inside_each(count) >= 1
        assert 1 + OUTSIDE + (count + 1) * inside_each(count) <= 256

    def test_a_mask_has_as_many_as_ever(self):
        assert source(*[torch.ones(4, 4, 4)] * 3).count == CLASSES


class TestTargets:
    @pytest.mark.parametrize("fine", [False, True])
    def test_shares_add_up_to_the_brain(self, fine):
        still = SynthesisConfig(crop_probability=0)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            image, target = training_batch(generator, [head(fine)], SIZE, still)
            assert image.shape == (1, 1, SIZE, SIZE, SIZE)
            assert target.shape == (1, 1 + K, SIZE, SIZE, SIZE)
            brain, shares = target[0, 0], target[0, 1:].sum(0)
            assert (brain - shares).abs().mean() < 0.02
            assert target.min() >= 0 and target.max() <= 1 + 1e-6
            torch.testing.assert_close(target[:, 1:] * 4, (target[:, 1:] * 4).round())  # quarters

    def test_left_stays_left(self):
        turned = SynthesisConfig(crop_probability=0, rotation_deg=20)
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            _, target = training_batch(generator, [head()], SIZE, turned)
            one, two = (target[0, n].nonzero()[:, 0].float().mean() for n in (1, 2))
            assert one < two - 2

    def test_image_and_brain_are_those_without_structures(self):
        made = [
            training_batch(torch.Generator().manual_seed(3), [s], SIZE, SynthesisConfig())
            for s in (replace(head(), parts=None), head())
        ]
        assert made[0][1].shape[1] == 1
        assert torch.equal(made[0][0], made[1][0])
        assert torch.equal(made[0][1], made[1][1][:, :1])


def test_the_loss_counts_brain_and_structures():
    target = torch.stack([torch.from_numpy(numbers() == n).float() for n in (1, 2)])
    target = torch.cat([target.sum(0, keepdim=True), target])[None]
    assert float(brain_and_structures(target, target)) == pytest.approx(0, abs=1e-4)
    wrong = target.clone()
    wrong[:, 1] = 0
    assert float(brain_and_structures(wrong, target)) == pytest.approx(0.5, abs=1e-3)
    alone = brain_and_structures(wrong[:, :1], target[:, :1])
    assert float(alone) == float(soft_dice(wrong[:, :1], target[:, :1]))


class TestNetwork:
    def test_has_an_output_for_each(self):
        network = UNet(CONFIG, K).eval()
        image = torch.rand(2, 1, SIZE, SIZE, SIZE)
        with torch.inference_mode():
            whole = network(image)
            assert whole.shape == (2, 1 + K, SIZE, SIZE, SIZE)
            parts = list(forward_in_slabs(network, image, 3000))
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0.01)

    def test_is_the_same_without(self):
        torch.manual_seed(0)
        one = UNet(CONFIG)
        torch.manual_seed(0)
        other = UNet(CONFIG, K)
        image = torch.rand(1, 1, SIZE, SIZE, SIZE)
        with torch.inference_mode():
            torch.testing.assert_close(other(image)[:, :1], one(image), atol=1e-4, rtol=1e-3)

    def test_views_are_those_of_the_outputs(self):
        torch.manual_seed(1)
        network, scan = UNet(CONFIG, K).eval(), conformed(head().image)
        seen = view(network, scan, CPU)
        with torch.inference_mode():
            whole = network(head().image).sigmoid()[0].numpy()
        np.testing.assert_allclose(seen.brain, whole[0], atol=1e-5)
        np.testing.assert_allclose(seen.shares / 255, whole[1:], atol=0.01)
        found = compare(network, scan, CPU)
        assert found.by_structure.shape == (2, K)
        assert ((found.by_structure >= 0) & (found.by_structure <= 1)).all()
        evidence = segment(network, Autoencoder(AE, K), scan, CPU)
        assert len(evidence.by_structure) == K
        np.testing.assert_array_equal(evidence.numbers > 0, evidence.mask & (evidence.numbers > 0))


@pytest.mark.parametrize("count", [0, K])
def test_the_second_view_is_mirrored_where_left_is_as_right(count, monkeypatch):
    seen = list[bool]()

    def spied(image: Tensor, mirrored: bool) -> Tensor:
        seen.append(mirrored)
        return turn(image, mirrored)

    turn = inference._turn
    monkeypatch.setattr(inference, "_turn", spied)
    view(UNet(CONFIG, count).eval(), conformed(head().image), CPU, copies=2)
    assert any(seen) == (count == 0)


AE = AutoencoderConfig(latent=4, slice_size=64, epochs=1)


class TestAutoencoder:
    def test_learns_one_hot_slices(self):
        cut = slices(numbers(), 64)
        assert set(cut.unique().tolist()) == {0, 1, 2}
        hot = onehot(cut, 1 + K)
        assert hot.shape == (len(cut), 3, 64, 64) and torch.equal(hot.argmax(1), cut[:, 0].long())
        loss = loss_over(cut, 4, 1 + K)(Autoencoder(AE, K), [torch.Generator().manual_seed(0)])
        assert torch.isfinite(loss)

    def test_a_slice_may_lack_a_structure(self):
        hot = onehot(slices(numbers(), 64), 1 + K)
        hot[:4, 1] = 0
        guess = (hot * 0.9 + 0.05).clamp(0, 1)
        guess[:4, 1] = 1e-3  # a trace where there is none costs next to nothing
        assert float(reconstruction_loss(guess, hot)) < 0.2

    def test_scores_all_structures_together(self):
        class Echo(torch.nn.Module):
            config, classes = AE, 1 + K

            def forward(self, x):
                return x

        score, rebuilt = shape_score(Echo(), numbers(), CPU)
        assert score == 1
        np.testing.assert_array_equal(rebuilt, numbers())
        assert not rebuild(Echo(), numbers() * 0, CPU).any()


class TestPropagation:
    @pytest.mark.parametrize("fine", [False, True])
    def test_structures_come_along(self, fine):
        origin, target = head(fine), head(shift=2.0)
        said = propagate_labels([origin], conformed(target.image), CPU)
        size = 2 * SIZE if fine else SIZE
        assert said.shares.shape == (K, size, size, size) and said.shares.dtype == np.uint8
        found = most(said.shares, said.mask.data > 0.5)
        truth = doubled(numbers(shift=2.0)) if fine else numbers(shift=2.0)
        assert overlaps(found, truth, K).min() > 0.9

    def test_several_labels_are_averaged(self):
        one, two = head(), head(shift=1.0)
        both = propagate_labels([one, two], conformed(one.image), CPU)
        each = [propagate_labels([o], conformed(one.image), CPU) for o in (one, two)]
        mean = np.mean([e.shares for e in each], axis=0)
        assert abs(both.shares - mean).max() <= 1

    def test_a_mask_has_none(self):
        origin = replace(head(), parts=None, structures=0)
        assert propagate_labels([origin], conformed(origin.image), CPU).shares is None

    def test_joined_by_weight_and_as_fine_as_the_label(self):
        network = np.stack([(numbers() == n) * np.uint8(200) for n in (1, 2)])
        label = np.stack([(numbers() == n) * np.uint8(100) for n in (1, 2)])
        low, high = HEARD
        joined = join_shares(network, label, low + 0.25 * (high - low))
        assert set(np.unique(joined)) == {0, 175}
        finer = join_shares(network, np.stack([doubled(one) for one in label]), 1.0)
        assert finer.shape == (K, *[2 * SIZE] * 3) and finer.max() == 100
        np.testing.assert_array_equal(join_shares(network, label, 0.0), network)
        assert Opinion(conformed(head().image), 0.5).shares is None


class TestManyStructures:
    """A training step looks at some of many structures, the same ones in all processes."""

    MANY = MOST + 6

    def head(self):
        columns = 1 + np.indices((SIZE,) * 3)[0] % self.MANY
        parts = np.where(ball(), columns, 0).astype(np.float32)
        return replace(head(), parts=torch.from_numpy(parts)[None, None], structures=self.MANY)

    def test_few_are_all_looked_at(self):
        assert list(looked_at(UNet(CONFIG, MOST))) == list(range(MOST))
        assert list(looked_at(UNet(CONFIG))) == []

    def test_of_many_others_at_each_step(self):
        network, seen = UNet(CONFIG, self.MANY), []
        for seed in (1, 1, 2, 3, 4, 5):
            torch.manual_seed(seed)
            torch.rand(seed)  # what else a process draws changes nothing
            seen.append(tuple(looked_at(network)))
        assert all(len(set(one)) == MOST for one in seen)
        assert seen[0] == seen[1] and len(set(seen)) == 5
        assert set().union(*seen) == set(range(self.MANY))

    def test_targets_are_theirs(self):
        def made(wanted):
            generator = torch.Generator().manual_seed(3)
            return training_batch(generator, [self.head()], SIZE, SynthesisConfig(), wanted)

        wanted = [2, 7, self.MANY - 1]
        every, some = made(None), made(wanted)
        assert torch.equal(every[0], some[0])
        assert torch.equal(every[1][:, [0, *(1 + n for n in wanted)]], some[1])

    def test_the_network_tells_them_alone(self):
        network, image = UNet(CONFIG, self.MANY), torch.rand(1, 1, SIZE, SIZE, SIZE)
        wanted = [1, 3, self.MANY - 1]
        with torch.inference_mode():
            every, some = network(image), network(image, wanted)
        torch.testing.assert_close(every[:, [0, *(1 + n for n in wanted)]], some)

    def test_the_others_do_not_move(self):
        network = UNet(CONFIG, self.MANY)
        loss = segmentation_loss(CPU, images_of([self.head()], SIZE, SynthesisConfig()))
        torch.manual_seed(0)
        chosen = set(looked_at(network))
        loss(network, [torch.Generator().manual_seed(1)]).backward()
        moved = {n for n, part in enumerate(network.parts) if part.weight.grad is not None}
        assert moved == chosen
