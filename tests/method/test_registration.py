from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from singlestrip_bids.method import registration
from singlestrip_bids.method.classes import Source, source
from singlestrip_bids.method.registration import (
    NEAR,
    centre_of_mass,
    cut_box,
    displacement,
    mutual_information,
    place,
    propagate,
    similarity,
    unplace,
    vote_of,
)
from singlestrip_bids.method.synthesis import halve, sample, voxel_indices

CPU = torch.device("cpu")
SIZE = 40


def texture(seed: int, size: int = SIZE) -> Tensor:
    """Smooth random values in [0, 1]: (1, 1, n, n, n)."""
    coarse = torch.rand((1, 1, 9, 9, 9), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(
        coarse, size=(size,) * 3, mode="trilinear", align_corners=True
    )


def ellipsoid(radii: tuple[float, float, float], size: int = SIZE) -> Tensor:
    scaled = (voxel_indices((size,) * 3, CPU) - (size - 1) / 2) / torch.tensor(radii).view(
        3, 1, 1, 1
    )
    return (scaled.square().sum(1, keepdim=True) < 1).float()


@pytest.fixture(scope="module")
def origin() -> Source:
    """A textured brain in a dark skull in a bright scalp."""
    brain, skull, head = (ellipsoid(r) for r in ((9, 12, 8), (10.5, 13.5, 9.5), (13, 16, 12)))
    image = 0.9 * (head - skull) + (0.3 + 0.5 * texture(1)) * brain
    return source(torch.ones(SIZE, SIZE, SIZE), image[0, 0], brain[0, 0])


def overlap(a: Tensor, b: Tensor) -> float:
    a, b = a > 0.5, b > 0.5
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def moved(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Turn, scale, shift and bend a volume onto another grid."""
    pose = torch.zeros(1, 3, 4)
    pose[0, :, :3] = torch.tensor([[-0.1, 0.15, 0.0], [-0.15, 0.08, 0.1], [0.0, -0.1, 0.05]])
    pose[0, :, 3] = torch.tensor([3.0, -4.0, 2.0])
    points = voxel_indices(shape, CPU)
    bent = points + 1.2 * torch.sin(points.flip(1) / 6)
    return sample(volume, place(bent, pose, torch.full((3,), SIZE / 2)))


def carry(origin: Source, image: Tensor, inside: Tensor | None = None) -> tuple[Tensor, float]:
    """Propagate to a scan all of which is seen, unless ``inside`` says what is."""
    seen = torch.ones_like(image) if inside is None else inside
    made = propagate(origin, image, seen)
    return made.mask, made.explained


class TestPropagate:
    @pytest.mark.parametrize("shape", [(40, 40, 40), (48, 40, 36)])
    def test_finds_a_moved_and_bent_brain_in_another_contrast(self, origin, shape):
        image = moved(origin.image, shape)
        inverted = (0.1 + 0.8 * (1 - image)) * (image > 0.05)
        truth = moved(origin.mask, shape)[0, 0]
        both = (slice(None, 40), slice(None, 40), slice(None, 36))
        assert overlap(truth[both], origin.mask[0, 0][both]) < 0.8
        for other in (image, inverted):
            propagated, _ = carry(origin, other)
            assert propagated.shape == shape
            assert propagated.min() >= 0 and propagated.max() <= 1 + 1e-5
            assert overlap(propagated, truth) > 0.92

    def test_onto_itself(self, origin):
        assert overlap(carry(origin, origin.image)[0], origin.mask[0, 0]) > 0.98

    def test_a_fine_mask_is_read_in_voxels_half_as_large(self, origin):
        image = moved(origin.image, (48, 40, 36))
        fine = replace(origin, fine=halve(origin.mask))
        propagated, explained = carry(fine, image)
        assert propagated.shape == (96, 80, 72)
        whole, same = carry(origin, image)
        assert explained == same
        averaged = torch.nn.functional.avg_pool3d(propagated[None], 2)[0]
        assert (averaged - whole).abs().mean() < 4e-3
        assert overlap(averaged, whole) > 0.99

    def test_a_free_registration_counts_as_far_as_the_scans_explain_each_other(
        self, origin, monkeypatch
    ):
        image = moved(origin.image, (40, 40, 40))
        found, explained = {}, 0.0
        for low in (0.0, 1.0):  # heard fully, and not at all
            monkeypatch.setattr(registration, "HEARD", (low, low + 0.01))
            found[low], explained = carry(origin, image)
        assert 0.01 < explained < 1
        assert not torch.equal(found[0.0], found[1.0])

    def test_what_is_not_seen_does_not_count(self, origin):
        image, truth = moved(origin.image, (40, 40, 40)), moved(origin.mask, (40, 40, 40))[0, 0]
        inside = torch.ones_like(image)
        inside[..., :15] = 0  # the field of view ends in the brain
        assert truth[..., :15].sum() > 0.2 * truth.sum()
        found, explained = carry(origin, image * inside, inside)
        _, all_of_it = carry(origin, image)
        assert overlap(found[..., 15:], truth[..., 15:]) > 0.92
        _, less = carry(origin, image * inside)
        assert less + 0.05 < explained < all_of_it + 0.05

    def test_a_scan_of_which_almost_nothing_is_seen(self, origin):
        inside = torch.zeros_like(origin.image)
        inside[..., :3] = 1
        found, explained = carry(origin, origin.image * inside, inside)
        assert found.isfinite().all() and 0 <= explained < 1

    @pytest.mark.parametrize(("explained", "vote"), [(0, 0), (0.3, 0), (0.35, 0.25), (0.9, 1)])
    def test_votes(self, explained, vote):
        assert vote_of(explained) == pytest.approx(vote)

    def test_same_at_every_call(self, origin):
        image = moved(origin.image, (40, 40, 40))
        assert torch.equal(carry(origin, image)[0], carry(origin, image)[0])

    def test_fine_grids_are_thinned(self, origin, monkeypatch):
        monkeypatch.setattr(registration, "POINTS", 20)
        assert cut_box(origin, NEAR).step == 2
        image = moved(origin.image, (40, 40, 40))
        truth = moved(origin.mask, (40, 40, 40))[0, 0]
        assert overlap(carry(origin, image)[0], truth) > 0.93


class TestBox:
    def test_holds_the_brain_and_a_margin(self, origin):
        box = cut_box(origin, NEAR)
        assert box.image.shape == box.weight.shape
        found = origin.mask[0, 0].nonzero()
        assert (box.start < found.amin(0)).all()
        assert (box.start + torch.tensor(box.image.shape[2:]) > found.amax(0) + 1).all()
        assert origin.mask.sum() < box.weight.sum() < box.weight.numel()

    def test_values_at_the_points_are_those_of_the_source(self, origin):
        box = cut_box(origin, NEAR)
        for apart in (1, 2, 3):
            read = sample(origin.image, box.points(apart))
            torch.testing.assert_close(read, box.at(box.image, apart), atol=1e-4, rtol=0)


class TestSimilarities:
    @pytest.mark.parametrize("measure", [similarity, mutual_information])
    def test_order(self, measure):
        a, weight = texture(2), torch.ones(1, 1, SIZE, SIZE, SIZE)
        same, inverted = measure(a, a, weight), measure(a, 1 - a, weight)
        near = measure(a, a.roll(2, dims=2), weight)
        foreign = measure(a, texture(3), weight)
        torch.testing.assert_close(inverted, same)
        assert same > near > foreign
        assert foreign >= 0 and same <= 1

    def test_local_correlation_of_equals_is_one(self):
        a = texture(2)
        assert similarity(a, 0.2 + 0.5 * a, torch.ones_like(a)).item() > 0.95

    @pytest.mark.parametrize("measure", [similarity, mutual_information])
    def test_only_what_is_weighted_counts(self, measure):
        a, weight = texture(2), torch.zeros(1, 1, SIZE, SIZE, SIZE)
        weight[..., :15] = 1
        spoilt = a.clone()
        spoilt[..., 25:] = 0.5
        torch.testing.assert_close(measure(a, spoilt, weight), measure(a, a, weight))

    def test_batches_are_apart(self):
        a, weight = texture(2), torch.ones(1, 1, SIZE, SIZE, SIZE)
        both = mutual_information(a.expand(2, -1, -1, -1, -1), torch.cat([a, texture(3)]), weight)
        torch.testing.assert_close(both[0], mutual_information(a, a, weight)[0])
        torch.testing.assert_close(both[1], mutual_information(a, texture(3), weight)[0])


def test_centre_of_mass():
    image = torch.zeros(1, 1, 6, 7, 8)
    image[0, 0, 2, 3, 4] = image[0, 0, 4, 3, 4] = 0.5
    torch.testing.assert_close(centre_of_mass(image), torch.tensor([3.0, 3.0, 4.0]))


def test_unplace_undoes_place():
    pose = 0.2 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    points, centre = voxel_indices((5, 6, 7), CPU), torch.tensor([2.0, 3.0, 4.0])
    there = place(points, pose, centre)
    assert there.shape == (2, 3, 5, 6, 7)
    assert (there - points).abs().max() > 0.3
    back = unplace(there, pose, centre)
    torch.testing.assert_close(back, points.expand_as(back), atol=1e-4, rtol=0)


def test_flow_of_the_opposite_velocity_leads_back(origin):
    box = cut_box(origin, NEAR)
    knots = 0.2 * torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    points = box.points(1)
    there = points + displacement(box, knots, points)
    assert (there - points).abs().max() > 0.5
    back = there + displacement(box, -knots, there)
    assert (back - points).abs()[..., 4:-4, 4:-4, 4:-4].max() < 0.25
    assert not displacement(box, torch.zeros_like(knots), points).any()
