from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from singlestrip_bids.config import AutoencoderConfig, NetworkConfig
from singlestrip_bids.image.grid import Conformed, Grid, conform_image
from singlestrip_bids.image.masks import dice
from singlestrip_bids.image.nifti import Image
from singlestrip_bids.machine import runtime
from singlestrip_bids.machine.runtime import Runtime, as_memory_allows
from singlestrip_bids.method import inference
from singlestrip_bids.method.expected_dice import segment
from singlestrip_bids.method.inference import AUGMENTED, compare, mask_from, predict
from singlestrip_bids.method.networks import Autoencoder, UNet
from singlestrip_bids.method.synthesis import draw_remap, look_up

CPU = Runtime(torch.device("cpu"), bfloat16=False)
SHAPE = (8, 16, 12)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = UNet(NetworkConfig(features=(3, 4), normalise=True, stem=2))
    torch.nn.init.normal_(made.head.weight)
    return made


def scan(seed: int = 0) -> Conformed:
    rng = np.random.default_rng(seed)
    inside = np.zeros(SHAPE, bool)
    inside[1:, 2:-3] = True
    data = np.where(inside, rng.random(SHAPE), 0).astype(np.float32)
    return Conformed(data, np.eye(4), inside)


class TestPredict:
    def test_probability_within_the_field_of_view(self, network):
        conformed = scan()
        probability = predict(network, conformed, CPU, 4)
        assert probability.shape == SHAPE
        assert probability.dtype == np.float32
        assert not probability[~conformed.inside].any()
        within = probability[conformed.inside]
        assert within.min() > 0
        assert within.max() < 1
        assert np.ptp(within) > 0.1

    def test_one_copy_is_the_image_as_it_is(self, network):
        conformed = scan()
        with torch.no_grad():
            plain = network(torch.from_numpy(conformed.data)[None, None]).sigmoid()[0, 0].numpy()
        found = predict(network, conformed, CPU, copies=1)
        np.testing.assert_allclose(found, np.where(conformed.inside, plain, 0), atol=1e-5)

    def test_copies_are_remapped_every_second_one_mirrored_and_averaged(self, network):
        conformed = scan()
        image = torch.from_numpy(conformed.data)[None, None]
        inside = torch.from_numpy(conformed.inside)[None, None]
        tables = draw_remap(CPU.generator(0), 2, mild=1.0)
        first, second = (look_up(image, tables[i : i + 1]) * inside for i in (0, 1))
        with torch.no_grad():
            one = network(first).sigmoid()
            two = network(second.flip(2)).sigmoid().flip(2)
        expected = np.where(conformed.inside, ((one + two) / 2)[0, 0].numpy(), 0)
        found = predict(network, conformed, CPU, copies=2)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert abs(one - two).max() > 1e-4

    def test_same_each_time_and_without_gradient(self, network):
        network.train()
        one, two = predict(network, scan(), CPU, 4), predict(network, scan(), CPU, 4)
        np.testing.assert_array_equal(one, two)
        assert not network.training
        assert all(p.grad is None for p in network.parameters())

    def test_bfloat16_is_close(self, network):
        fine = predict(network, scan(), CPU, 4)
        coarse = predict(network, scan(), Runtime(CPU.device, bfloat16=True), 4)
        assert coarse.dtype == np.float32
        assert abs(fine - coarse).mean() < 0.05

    def test_image_is_left_as_it_is(self, network):
        conformed = scan()
        before = conformed.data.copy()
        predict(network, conformed, CPU, 4)
        np.testing.assert_array_equal(conformed.data, before)


def test_conform_image():
    data = np.random.default_rng(0).normal(300, 50, (20, 18, 22)).astype(np.float32)
    affine = np.diag([-1.5, 1.5, 1.5, 1.0])
    image = Image(Path("x.nii"), data, nib.Nifti1Image(data, affine))
    conformed = conform_image(image, Grid(3.0, 16, 8))
    assert conformed.data.shape == (16, 16, 16)
    assert conformed.data.min() == 0
    assert conformed.data.max() == 1
    assert not conformed.data[~conformed.inside].any()


def test_mask_is_the_largest_part_above_one_half_without_holes():
    probability = np.zeros((12, 12, 12), np.float32)
    probability[2:8, 2:8, 2:8] = 0.51
    expected = probability > 0
    probability[4, 4, 4] = 0.2
    probability[10, 10, 10] = 0.99
    probability[2, 2, 9:11] = 0.5
    mask = mask_from(probability)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)
    assert not mask_from(np.full((4, 4, 4), 0.5, np.float32)).any()


class TestPredictAndCompare:
    def remapped(self, conformed: Conformed, mild: float) -> list[Conformed]:
        """Copies in other contrasts, the second one mirrored."""
        tables = draw_remap(CPU.generator(0), AUGMENTED, mild)
        image = torch.from_numpy(conformed.data)[None, None]
        copies = []
        for turn, table in zip((1, -1), tables.split(1), strict=True):
            data = np.where(conformed.inside, look_up(image, table)[0, 0].numpy(), 0)[::turn]
            copies.append(replace(conformed, data=data.copy(), inside=conformed.inside[::turn]))
        return copies

    def agreement(self, network, mask: np.ndarray, copies: list[Conformed]) -> float:
        seen = [predict(network, copy, CPU) for copy in copies]
        masks = [mask_from(seen[0]), mask_from(seen[1])[::-1]]
        return float(np.mean([dice(mask, other) for other in masks]))

    def test_mean_of_the_mild_copies_and_how_it_agrees_with_all(self, network):
        conformed = scan()
        seen = compare(network, conformed, CPU)
        probability, mild, strong = seen.view.brain, seen.mild, seen.strong
        np.testing.assert_allclose(
            probability, predict(network, conformed, CPU, AUGMENTED), rtol=0, atol=1e-5
        )
        mask = mask_from(probability)
        for found, share in ((mild, 1.0), (strong, 0.0)):
            expected = self.agreement(network, mask, self.remapped(conformed, share))
            assert found == pytest.approx(expected, abs=0.02)
        assert 0 < strong < mild < 1

    def test_no_agreement_without_a_mask(self, network):
        torch.nn.init.constant_(network.head.bias, -100)
        seen = compare(network, scan(), CPU)
        assert (seen.mild, seen.strong) == (0, 0)


class TestFullMemory:
    """The error of PyTorch, raised where the network computes, as a full GPU does."""

    @pytest.fixture
    def full(self, network, monkeypatch):
        """Make the network fail so many times; return the room it was given each time."""
        whole, slabs, rooms = UNet.forward, inference.forward_in_slabs, []

        def fill(times):
            def enter(slab):
                rooms.append(slab)
                if len(rooms) <= times:
                    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

            def run(self, image):
                enter(None)
                return whole(self, image)

            def run_in_slabs(network, image, slab):
                enter(slab)
                return slabs(network, image, slab)

            monkeypatch.setattr(UNet, "forward", run)
            monkeypatch.setattr(inference, "forward_in_slabs", run_in_slabs)
            return rooms

        return fill

    @pytest.mark.parametrize("times", [0, 1])
    def test_walks_down_to_the_same_mask(self, network, full, caplog, times, monkeypatch):
        monkeypatch.setattr(runtime.LOG, "propagate", True)
        autoencoder = Autoencoder(AutoencoderConfig(slice_size=64))
        before = segment(network, autoencoder, scan(), CPU)
        rooms = full(times)
        after = segment(network, autoencoder, scan(), CPU)
        np.testing.assert_allclose(after.probability, before.probability, atol=1e-5)
        assert after.evidence.mild == pytest.approx(before.evidence.mild, abs=0.02)
        assert rooms == [[None] * 2, [None] + [runtime.THIN_SLAB] * 2][times]
        assert bool(after.way) == bool(times)
        said = {record.getMessage() for record in caplog.records}
        assert len(said) == times
        assert all("OUT OF MEMORY" in message for message in said)

    def test_has_an_end(self, network, full):
        rooms = full(99)
        with pytest.raises(torch.OutOfMemoryError):
            as_memory_allows(lambda machine: predict(network, scan(), machine), CPU.rungs())
        assert len(rooms) == 2

    def test_last_comes_the_processor(self):
        rungs = Runtime(torch.device("cuda", 1), bfloat16=True).rungs()
        assert [rung.device.type for rung in rungs] == ["cuda", "cuda", "cpu"]
        assert [rung.slab for rung in rungs] == [None, runtime.THIN_SLAB, runtime.THIN_SLAB]
        assert [rung.bfloat16 for rung in rungs] == [True, True, False]
