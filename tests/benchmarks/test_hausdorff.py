"""The distance that benchmarks.score reports."""

import numpy as np
import pytest

from benchmarks.score import hausdorff95


def _box(shape, lower, upper):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = True
    return mask


def _brute_hd95(a, b, voxel_size):
    def surface(mask):
        padded = np.pad(mask, 1)
        points = []
        for point in np.argwhere(padded):
            around = [tuple(point + step) for step in np.vstack([np.eye(3, dtype=int)] * 2)]
            around[3:] = [tuple(point - step) for step in np.eye(3, dtype=int)]
            if not all(padded[neighbour] for neighbour in around):
                points.append(point * voxel_size)
        return np.array(points)

    one, two = surface(a), surface(b)
    gaps = np.linalg.norm(one[:, None] - two[None], axis=-1)
    return max(np.percentile(gaps.min(axis=1), 95), np.percentile(gaps.min(axis=0), 95))


def test_empty_masks():
    empty, full = np.zeros((4, 4, 4)), np.ones((4, 4, 4))
    assert hausdorff95(empty, empty, (1, 1, 1)) == 0.0
    assert hausdorff95(empty, full, (1, 1, 1)) == float("inf")
    assert hausdorff95(full, empty, (1, 1, 1)) == float("inf")


def test_bad_input_is_refused():
    a, b = np.ones((3, 3, 3)), np.ones((3, 3, 4))
    with pytest.raises(ValueError, match="different shapes"):
        hausdorff95(a, b, (1, 1, 1))
    for size in ((1, 1), (1, 0, 1), (1, float("nan"), 1)):
        with pytest.raises(ValueError, match="voxel_size"):
            hausdorff95(a, a, size)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hd95_of_a_shifted_plate_is_the_shift_in_mm(axis):
    shape, sizes = (12, 12, 12), (1.0, 2.0, 4.0)
    a = np.zeros(shape, bool)
    a[tuple(3 if k == axis else slice(None) for k in range(3))] = True
    assert hausdorff95(a, np.roll(a, 2, axis), sizes) == pytest.approx(2 * sizes[axis])


def test_hd95_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 1.5, 3.0])
    for _ in range(5):
        a, b = rng.random((2, 9, 8, 7)) > 0.6
        assert hausdorff95(a, b, sizes) == pytest.approx(_brute_hd95(a, b, sizes))


def test_hd95_counts_the_volume_border_as_surface_and_ignores_empty_space():
    a, b = _box((8, 8, 8), (0, 0, 0), (5, 8, 8)), _box((8, 8, 8), (0, 0, 0), (3, 8, 8))
    sizes = (1.0, 1.0, 1.0)
    assert hausdorff95(a, b, sizes) == pytest.approx(_brute_hd95(a, b, np.ones(3)))
    c, d = _box((9, 9, 9), (2, 2, 2), (5, 6, 7)), _box((9, 9, 9), (3, 2, 2), (6, 7, 7))
    wide = hausdorff95(np.pad(c, 10), np.pad(d, 10), sizes)
    assert wide == hausdorff95(c, d, sizes) == hausdorff95(d, c, sizes)


def test_the_direction_that_is_worse_counts():
    a = _box((30, 30, 30), (5, 5, 5), (25, 25, 25))
    b = a.copy()
    b[10:20, 10:20, 25:30] = True  # a knob: far from a's surface, whose own voxels are near
    sizes = (1.0, 1.0, 1.0)
    assert hausdorff95(a, b, sizes) == pytest.approx(_brute_hd95(a, b, np.ones(3)))
    assert hausdorff95(a, b, sizes) == hausdorff95(b, a, sizes)
