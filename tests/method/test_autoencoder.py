from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.config import AutoencoderConfig
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.autoencoder import (
    augment,
    loss_over,
    onehot,
    rebuild,
    schedule,
    shape_score,
    slices,
)
from singlestrip_bids.method.networks import Autoencoder
from singlestrip_bids.method.training import fit

CPU = Runtime(torch.device("cpu"), bfloat16=False)
GRID = (56, 56, 32)
CONFIG = AutoencoderConfig(slice_size=64, latent=16, epochs=30)


def ellipsoid(axes=(17, 21, 13), centre=(27, 28, 15)) -> np.ndarray:
    place = np.indices(GRID).T - np.array(centre)
    return (((place / np.array(axes)) ** 2).sum(-1) <= 1).T


def box(lower: tuple[int, ...], edges: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((24, 24, 8), bool)
    mask[tuple(slice(a, a + n) for a, n in zip(lower, edges, strict=True))] = True
    return mask


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An autoencoder that has seen nothing but one ellipsoid."""
    torch.manual_seed(0)
    network = Autoencoder(CONFIG)
    brain = slices(ellipsoid(), CONFIG.slice_size)
    fit(
        network,
        loss_over(brain, CONFIG.batch_size),
        schedule(brain, CONFIG),
        CPU,
        tmp_path_factory.mktemp("quality") / "c",
        "",
        0,
        "test",
    )
    return network


class TestSlices:
    def test_one_for_each_plane_of_the_mask(self):
        mask = ellipsoid()
        cut = slices(mask, 64)
        planes = mask.any(axis=(0, 1))
        assert cut.shape == (planes.sum(), 1, 64, 64)
        np.testing.assert_array_equal(cut.sum((1, 2, 3)), mask.sum((0, 1))[planes])

    def test_axes_keep_their_order(self):
        mask = box((4, 5, 2), (10, 6, 3))
        mask[4:6, 5:7, 2] = False  # one corner, so that neither flip nor turn is the same
        cut = slices(mask, 16)
        found = np.argwhere(cut[0, 0].numpy() > 0)
        expected = np.argwhere(mask[:, :, 2])
        shift = found[0] - expected[0]
        np.testing.assert_array_equal(found, expected + shift)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        edges=st.tuples(*[st.integers(1, 5)] * 3),
        lower=st.tuples(st.integers(0, 18), st.integers(0, 18), st.integers(0, 2)),
        shift=st.tuples(*[st.integers(-1, 1)] * 3),
    )
    def test_place_does_not_matter(self, edges, lower, shift):
        other = tuple(max(a + s, 0) for a, s in zip(lower, shift, strict=True))
        one, two = slices(box(lower, edges), 16), slices(box(other, edges), 16)
        assert torch.equal(one, two)

    @pytest.mark.parametrize("size", [16, 64])
    def test_centred(self, size):
        where = np.argwhere(slices(box((0, 17, 0), (5, 7, 8)), size).sum((0, 1)).numpy() > 0)
        np.testing.assert_allclose(where.mean(0), (size - 1) / 2, atol=1)

    def test_larger_masks_are_cropped_around_the_centre(self):
        cut = slices(box((2, 2, 0), (20, 4, 8)), 8)
        assert cut.shape == (8, 1, 8, 8)
        assert (cut.sum((2, 3)) == 8 * 4).all()

    def test_gap_between_parts(self):
        mask = box((4, 4, 1), (5, 5, 2)) | box((4, 4, 6), (5, 5, 1))
        assert len(slices(mask, 16)) == 3


class TestAugment:
    def test_seed_decides(self):
        brain = slices(ellipsoid(), 64)[::6]
        one, same, other = (
            augment(brain, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert one.shape == brain.shape

    def test_areas_are_within_the_range_of_scales(self):
        disc = (torch.cartesian_prod(*[torch.arange(64.0)] * 2) - 31.5).norm(dim=1) < 12
        brain = disc.view(1, 1, 64, 64).float().repeat(200, 1, 1, 1)
        made = augment(brain, torch.Generator().manual_seed(0))
        ratio = (made.sum((1, 2, 3)) / disc.sum()).sqrt()
        assert 0.68 < ratio.min() < 0.75
        assert 1.35 < ratio.max() < 1.42

    def test_turns_both_ways_and_moves(self):
        bar = torch.zeros((1, 1, 64, 64))
        bar[..., 12:52, 29:35] = 1
        made = augment(bar.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))[:, 0]
        x, y = torch.meshgrid(*[torch.arange(64.0)] * 2, indexing="ij")
        mass = made.sum((1, 2))
        dx, dy = ((made * axis).sum((1, 2)) / mass for axis in (x, y))
        far = torch.stack([dx, dy]) - 31.5
        assert far.abs().max() < 0.1 * 64 * 1.4 * 2**0.5 + 1  # the shift comes before the turn
        assert far.abs().max() > 4
        x, y = x - dx.view(-1, 1, 1), y - dy.view(-1, 1, 1)
        inertia = [(made * value).sum((1, 2)) for value in (x * x, y * y, x * y)]
        tilt = torch.rad2deg(0.5 * torch.atan2(2 * inertia[2], inertia[0] - inertia[1]))
        assert tilt.abs().max() < 31
        assert tilt.min() < -20
        assert tilt.max() > 20

    def test_onehot(self):
        both = onehot(torch.tensor([0.0, 0.4, 0.6, 1.0]).view(1, 1, 2, 2))
        assert both[0, 1].flatten().tolist() == [0, 0, 1, 1]
        assert torch.equal(both.sum(1), torch.ones((1, 2, 2)))


@pytest.mark.parametrize(("count", "steps"), [(1, 10), (8, 10), (9, 20), (100, 130)])
def test_schedule_counts_steps(count, steps):
    config = AutoencoderConfig(epochs=10, batch_size=8, learning_rate=0.5, weight_decay=0.25)
    settings_ = schedule(torch.zeros((count, 1, 64, 64)), config)
    assert settings_.steps == steps
    assert (settings_.learning_rate, settings_.weight_decay) == (0.5, 0.25)
    assert not settings_.cosine


class Echo(torch.nn.Module):
    """Gives back the slices, less the upper half if so asked."""

    config, classes = CONFIG, 2

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        self.half = half

    def forward(self, both):
        made = both.clone()
        if self.half:
            made[:, 1, : made.shape[2] // 2] = 0
        return made


def score(network, mask: np.ndarray) -> float:
    return shape_score(network, mask, CPU)[0]


class TestScore:
    def test_empty_mask(self):
        assert score(Echo(), np.zeros(GRID, bool)) == 0

    def test_dice_of_the_volume(self):
        mask = ellipsoid()
        assert score(Echo(), mask) == 1
        assert score(Echo(half=True), mask) == pytest.approx(2 / 3, abs=0.03)

    def test_more_slices_than_fit_at_once(self):
        mask = np.zeros((20, 20, 150), bool)
        mask[5:15, 5:15] = True
        assert score(Echo(), mask) == 1

    def test_dropout_is_off(self, trained):
        trained.train()
        first = score(trained, ellipsoid())
        trained.train()
        assert score(trained, ellipsoid()) == first
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        score(trained, ellipsoid((10, 10, 10)))
        assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())

    @pytest.mark.parametrize("shift", [(1, 0, 0), (0, 1, 1), (-2, 3, 2), (9, -6, 0)])
    def test_place_does_not_matter(self, trained, shift):
        moved = np.roll(ellipsoid(), shift, axis=(0, 1, 2))
        assert score(trained, moved) == score(trained, ellipsoid())

    def test_damaged_masks_score_lower(self, trained):
        whole = ellipsoid()
        best = score(trained, whole)
        x, y, _ = np.indices(GRID)
        spikes = whole | ((x + 2 * y) % 8 < 4) & ellipsoid((27, 27, 13))
        holes = whole & ~((abs(x - 27) < 6) & (abs(y - 28) < 10))
        torn = whole & ((x // 4 + y // 4) % 2 == 0)
        stray = whole | (x < 8)
        assert best > 0.75
        for damaged in (spikes, holes, torn, stray):
            assert score(trained, damaged) < best - 0.02


class TestRebuild:
    def test_the_score_is_its_overlap_with_the_mask(self, trained):
        for mask in (ellipsoid(), ellipsoid(axes=(10, 26, 7), centre=(12, 30, 16))):
            rebuilt = rebuild(trained, mask, CPU)
            assert rebuilt.shape == mask.shape
            assert dice(rebuilt, mask) == shape_score(trained, mask, CPU)[0]
            np.testing.assert_array_equal(rebuilt, shape_score(trained, mask, CPU)[1])

    def test_lies_where_the_mask_lies(self, trained):
        mask = ellipsoid()
        rebuilt = rebuild(trained, mask, CPU)
        centres = [np.argwhere(one).mean(0) for one in (rebuilt, mask)]
        assert centres[0] == pytest.approx(centres[1], abs=1)

    def test_nothing_stays_nothing(self, trained):
        assert not rebuild(trained, np.zeros(GRID, bool), CPU).any()
