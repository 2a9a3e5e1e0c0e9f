from __future__ import annotations

import pytest
import torch
from torch import Tensor

from singlestrip_bids.method import registration
from singlestrip_bids.method.classes import Source, source
from singlestrip_bids.method.registration import (
    centre_of_mass,
    cut_box,
    displacement,
    mutual_information,
    place,
    propagate,
    similarity,
    unplace,
)
from singlestrip_bids.method.synthesis import sample, voxel_indices

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


class TestPropagate:
    @pytest.mark.parametrize("shape", [(40, 40, 40), (48, 40, 36)])
    def test_finds_a_moved_and_bent_brain_in_another_contrast(self, origin, shape):
        image = moved(origin.image, shape)
        inverted = (0.1 + 0.8 * (1 - image)) * (image > 0.05)
        truth = moved(origin.mask, shape)[0, 0]
        both = (slice(None, 40), slice(None, 40), slice(None, 36))
        assert overlap(truth[both], origin.mask[0, 0][both]) < 0.8
        for other in (image, inverted):
            propagated, _ = propagate(origin, other)
            assert propagated.shape == shape
            assert propagated.min() >= 0 and propagated.max() <= 1 + 1e-5
            assert overlap(propagated, truth) > 0.92

    def test_onto_itself(self, origin):
        assert overlap(propagate(origin, origin.image)[0], origin.mask[0, 0]) > 0.98

    def test_same_at_every_call(self, origin):
        image = moved(origin.image, (40, 40, 40))
        assert torch.equal(propagate(origin, image)[0], propagate(origin, image)[0])

    def test_fine_grids_are_thinned(self, origin, monkeypatch):
        monkeypatch.setattr(registration, "POINTS", 20)
        assert cut_box(origin).step == 2
        image = moved(origin.image, (40, 40, 40))
        truth = moved(origin.mask, (40, 40, 40))[0, 0]
        assert overlap(propagate(origin, image)[0], truth) > 0.93


class TestBox:
    def test_holds_the_brain_and_a_margin(self, origin):
        box = cut_box(origin)
        assert box.image.shape == box.weight.shape
        found = origin.mask[0, 0].nonzero()
        assert (box.start < found.amin(0)).all()
        assert (box.start + torch.tensor(box.image.shape[2:]) > found.amax(0) + 1).all()
        assert origin.mask.sum() < box.weight.sum() < box.weight.numel()

    def test_values_at_the_points_are_those_of_the_source(self, origin):
        box = cut_box(origin)
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
    box = cut_box(origin)
    knots = 0.2 * torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    points = box.points(1)
    there = points + displacement(box, knots, points)
    assert (there - points).abs().max() > 0.5
    back = there + displacement(box, -knots, there)
    assert (back - points).abs()[..., 4:-4, 4:-4, 4:-4].max() < 0.25
    assert not displacement(box, torch.zeros_like(knots), points).any()
