"""At which voxel size a model sees heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import affine_of, axes, conformed_of, ellipsoid, seen_at

from singlestrip_bids.image.frame import Frame, working_voxel_size
from singlestrip_bids.image.grid import Grid
from singlestrip_bids.image.head import head_width


class TestWorkingVoxelSize:
    @staticmethod
    def ball(diameter: float, field: float, voxel: float) -> np.ndarray:
        n = round(field / voxel)
        place = (np.indices((n, n, n)) - (n - 1) / 2) * voxel
        return (place**2).sum(0) <= (diameter / 2) ** 2

    def test_human(self):
        head = self.ball(147, 300, 4)
        assert working_voxel_size(head, np.diag([4, 4, 4, 1]), 64) == pytest.approx(4, rel=0.03)

    @pytest.mark.parametrize("scale", [0.1, 10.0])
    def test_proportional_to_the_animal(self, scale):
        head = self.ball(147, 300, 5)
        human = working_voxel_size(head, np.diag([5, 5, 5, 1]), 64)
        other = working_voxel_size(head, np.diag([5 * scale] * 3 + [1]), 64)
        assert other == pytest.approx(scale * human, rel=1e-6)

    def test_inverse_to_the_size(self):
        head, affine = self.ball(147, 300, 5), np.diag([5, 5, 5, 1])
        coarse, fine = (working_voxel_size(head, affine, size) for size in (64, 256))
        assert coarse == pytest.approx(4 * fine, rel=0.01)

    def test_not_more_than_the_field_of_view(self):
        tight = self.ball(120, 160, 4)
        assert working_voxel_size(tight, np.diag([4, 4, 4, 1]), 64) == pytest.approx(160 / 64)

    def test_a_long_brain_fits(self):
        rod = np.zeros((20, 20, 60), bool)
        rod[8:12, 8:12, 2:58] = True
        voxel = working_voxel_size(rod, np.diag([1, 1, 3, 1]), 32)
        assert 32 * voxel == pytest.approx(1.2 * 56 * 3, rel=0.01)

    @pytest.mark.parametrize("codes", ["RAS", "SLP", "AIR"])
    def test_orientation_does_not_matter(self, codes):
        head = self.ball(100, 180, 6)
        turned = affine_of(axes(codes), (6.0,) * 3, (1.0, 2.0, 3.0))
        assert working_voxel_size(head, turned, 64) == pytest.approx(
            working_voxel_size(head, np.diag([6, 6, 6, 1]), 64)
        )


class TestFrame:
    def frame(self, brain_ml: float = 10.0) -> Frame:
        return Frame(Grid(1.0, 32, 8), brain_ml, head_width(conformed_of(ellipsoid()))[0])

    def test_the_labelled_head_keeps_its_voxel_size(self):
        assert self.frame().conform(seen_at(ellipsoid(), 1.0)).voxel_size == 1

    @pytest.mark.parametrize("zoom", [0.5, 1.8])
    def test_another_head_is_seen_at_the_size_of_the_label(self, zoom):
        seen = self.frame(brain_ml=1.0).conform(seen_at(ellipsoid(noise=0), zoom))
        assert seen.voxel_size == pytest.approx(zoom, rel=0.07)
        same = self.frame().conform(seen_at(ellipsoid(noise=0), 1.0))
        assert (seen.data > 0.2).sum() == pytest.approx((same.data > 0.2).sum(), rel=0.2)

    @pytest.mark.parametrize("voxel_size", [0.1, 1.0, 4.0])
    @pytest.mark.parametrize("zoom", [0.6, 1.0])
    def test_fitted_every_head_comes_to_the_same_width(self, voxel_size, zoom):
        frame = replace(self.frame(), fitted=True, head_width=20.0)
        seen = frame.conform(seen_at(ellipsoid(zoom), voxel_size))
        assert head_width(seen)[0] == pytest.approx(20, abs=1.5)
        assert min(seen.data.shape) >= 32

    def test_fitted_without_a_head_the_field_of_view_fills_the_grid(self):
        frame = replace(self.frame(), fitted=True)
        seen = frame.conform(seen_at(np.zeros((40, 48, 64), np.float32), 2.0))
        assert seen.voxel_size == pytest.approx(64 * 2 / 32)

    def test_a_bright_spot_makes_no_grid_too_large_for_the_memory(self):
        spot = ellipsoid(0.2, noise=0)
        assert self.frame(brain_ml=0.1).conform(seen_at(spot, 1.0)).voxel_size == 1
