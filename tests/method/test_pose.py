from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from singlestrip_bids.bids.label import find_label
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import conform, conform_image
from singlestrip_bids.image.masks import dice
from singlestrip_bids.method.classes import Source, source
from singlestrip_bids.method.pose import ORIENTATIONS, ROTATIONS, find_start, rotations, turn
from singlestrip_bids.method.registration import Start, propagate
from singlestrip_bids.method.synthesis import sample, voxel_indices

CPU = torch.device("cpu")
SIZE, FIELD = 64, 80


@pytest.fixture(scope="module")
def origin(heads) -> Source:
    """A generated head and its brain."""
    image, mask = find_label(heads)[0].read()
    grid = Frame.around([(image, mask)], SIZE, 16, None).grid
    head, brain = conform_image(image, grid), conform(mask, image.affine, grid)
    tensors = (torch.from_numpy(array) for array in (head.data, brain.data))
    return source(torch.ones(head.data.shape), *tensors)


def elsewhere(
    volume: Tensor, turn: Rotation, centre: Tensor, there: tuple[float, float, float]
) -> Tensor:
    """Turn a volume around its brain, and put that somewhere in a larger field of view."""
    matrix = torch.from_numpy(turn.as_matrix()).float()[None]
    start = Start(matrix, centre, torch.tensor([there]))
    return sample(volume, start.undo(voxel_indices((FIELD,) * 3, CPU)))


class TestRotations:
    def test_they_are_rotations(self):
        found = rotations(ROTATIONS)
        assert torch.allclose(found @ found.mT, torch.eye(3).expand_as(found), atol=1e-5)
        assert torch.allclose(torch.linalg.det(found), torch.ones(ROTATIONS), atol=1e-5)

    def test_one_is_close_to_any(self):
        found = Rotation.from_matrix(rotations(ROTATIONS).numpy())
        asked = Rotation.random(200, random_state=0)
        degrees = [np.degrees((found * one.inv()).magnitude().min()) for one in asked]
        assert max(degrees) < 30
        assert np.median(degrees) < 20


class TestStart:
    def test_undo_is_the_way_back(self):
        turn = Rotation.random(random_state=3).as_matrix()
        start = Start(
            torch.from_numpy(turn).float()[None], torch.tensor([1.0, 2, 3]), torch.ones(1, 3)
        )
        points = voxel_indices((3, 4, 5), CPU)
        assert torch.allclose(start.undo(start.apply(points)), points, atol=1e-4)

    def test_a_stretch_is_left_out(self):
        start = Start(torch.eye(3)[None], torch.zeros(3), torch.zeros(1, 3))
        pose = torch.zeros(1, 3, 4)
        pose[0, :, :3] = 0.2 * torch.eye(3)
        pose[0, :, 3] = 1.0
        moved = start.moved(pose)
        assert torch.allclose(moved.rotation[0], torch.eye(3), atol=1e-5)
        assert torch.allclose(moved.there, torch.ones(1, 3))


def test_a_head_is_found_however_it_lies(origin):
    """In another contrast, off centre, around a brain that is seen two voxels away from it."""
    turned = Rotation.random(random_state=0)
    there = tuple(np.random.default_rng(0).uniform(30, 50, 3).tolist())
    head, brain = (elsewhere(v, turned, origin.centre, there) for v in (origin.image, origin.mask))
    image = (1 - head) * (head > 0.05)
    seen, brain = brain[0, 0].roll(2, 1) > 0.5, brain[0, 0] > 0.5
    start = find_start(origin, torch.cat([image, torch.ones_like(image)], 1), seen)
    away = Rotation.from_matrix(start.rotation[0].numpy()) * turned.inv()
    assert np.degrees(away.magnitude()) < 10
    ways = [propagate(origin, image, torch.ones_like(image), way).mask for way in (start, None)]
    found, upright = (dice((mask > 0.5).numpy(), brain.numpy()) for mask in ways)
    assert found > 0.92
    assert upright < found - 0.1


def test_shapes_are_turned_many_ways_and_stay_as_large(origin):
    shape = (origin.mask[0, 0] > 0.5).numpy()
    found = turn(shape)
    assert len(found) == ORIENTATIONS
    for one in found:
        assert one.dtype == shape.dtype
        assert one.sum() == pytest.approx(shape.sum(), rel=0.03)
    heights = [int(one.any(axis=(0, 1)).sum()) for one in found]
    assert max(heights) > 1.1 * min(heights)
