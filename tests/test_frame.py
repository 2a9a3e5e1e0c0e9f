from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from singlestrip_bids.errors import BadData
from singlestrip_bids.frame import Frame, head_width, relative_size
from singlestrip_bids.volume import Conformed, Image

SHAPE = (48, 56, 52)
RADII = (15, 19, 17)


def head(zoom: float = 1.0, shift: int = 0, noise: float = 0.02) -> np.ndarray:
    """An ellipsoid with a brighter one in it, in noise."""
    place = np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2 - [shift, 0, 0]
    radius = np.sqrt(((place / (np.array(RADII) * zoom)) ** 2).sum(-1)).T
    data = np.where(radius < 0.7, 0.9, np.where(radius < 1, 0.5, 0.0))
    rng = np.random.default_rng(0)
    return np.abs(data + rng.normal(0, noise, SHAPE)).clip(0, 1).astype(np.float32)


def conformed(data: np.ndarray, inside: np.ndarray | None = None) -> Conformed:
    inside = np.ones(data.shape, bool) if inside is None else inside
    return Conformed(np.where(inside, data, np.float32(0)), np.eye(4), inside)


def image(data: np.ndarray, voxel_size: float) -> Image:
    affine = np.diag([voxel_size] * 3 + [1.0])
    return Image(Path("scan.nii"), data, nib.Nifti1Image(data, affine))


class TestWidth:
    @pytest.mark.parametrize("noise", [0.0, 0.02, 0.08])
    def test_is_that_of_the_head(self, noise):
        width, cut = head_width(conformed(head(noise=noise)))
        assert width == pytest.approx(2 * np.sqrt(RADII[0] * RADII[1]), abs=2)
        assert not cut

    def test_does_not_depend_on_height(self):
        data = head()
        low = data.copy()
        low[..., : SHAPE[2] // 2] = 0
        assert head_width(conformed(low))[0] == head_width(conformed(data))[0]

    def test_tells_when_the_field_of_view_ends_in_the_head(self):
        inside = np.zeros(SHAPE, bool)
        inside[14:] = True
        assert head_width(conformed(head(), inside))[1]
        assert head_width(conformed(head(shift=12)))[1]

    def test_of_nothing(self):
        assert head_width(conformed(np.zeros(SHAPE, np.float32))) == (0.0, True)

    def test_of_a_fine_grid(self):
        fine = head().repeat(3, 0).repeat(3, 1).repeat(3, 2)
        width, _ = head_width(conformed(fine))
        assert width == pytest.approx(3 * head_width(conformed(head()))[0], abs=4)


class TestRelativeSize:
    @pytest.mark.parametrize("zoom", [0.8, 1.0, 1.2])
    def test_like_heads_are_left_alone(self, zoom):
        assert relative_size(conformed(head(zoom)), head_width(conformed(head()))[0]) == 1

    @pytest.mark.parametrize("zoom", [0.5, 0.65])
    def test_smaller(self, zoom):
        ratio = relative_size(conformed(head(zoom)), head_width(conformed(head()))[0])
        assert ratio == pytest.approx(zoom, abs=0.07)

    @pytest.mark.parametrize("zoom", [0.5, 0.65])
    def test_larger(self, zoom):
        ratio = relative_size(conformed(head()), head_width(conformed(head(zoom)))[0])
        assert ratio == pytest.approx(1 / zoom, rel=0.12)

    def test_a_slab_is_no_small_head(self):
        inside = np.zeros(SHAPE, bool)
        inside[18:30] = True
        assert relative_size(conformed(head(), inside), head_width(conformed(head()))[0]) == 1


class TestFrame:
    def frame(self, brain_ml: float = 10.0) -> Frame:
        return Frame(1.0, 32, 8, brain_ml, head_width(conformed(head()))[0])

    def test_the_labelled_head_keeps_its_voxel_size(self):
        assert self.frame().conform(image(head(), 1.0)).voxel_size == 1

    @pytest.mark.parametrize("zoom", [0.5, 1.8])
    def test_another_head_is_seen_at_the_size_of_the_label(self, zoom):
        seen = self.frame(brain_ml=1.0).conform(image(head(noise=0), zoom))
        assert seen.voxel_size == pytest.approx(zoom, rel=0.07)
        same = self.frame().conform(image(head(noise=0), 1.0))
        assert (seen.data > 0.2).sum() == pytest.approx((same.data > 0.2).sum(), rel=0.2)

    def test_a_small_head_is_not_taken_for_a_stripped_one(self):
        data = head()
        brain_ml = (data > 0.7).sum() / 1000
        assert self.frame(brain_ml).conform(image(data, 0.5)).voxel_size < 0.6

    def test_a_stripped_one_is_refused(self):
        data = np.where(head(noise=0) > 0.7, head(noise=0), np.float32(0))
        with pytest.raises(BadData, match="already skull-stripped"):
            self.frame((data > 0).sum() / 1000).conform(image(data, 1.0))

    def test_a_field_of_view_smaller_than_the_brain_is_none(self):
        slab = head()[10:-10, 10:-10, 20:32]
        assert self.frame(brain_ml=slab.size / 1000).conform(image(slab, 1.0)).data.any()

    def test_a_bright_spot_makes_no_grid_too_large_for_the_memory(self):
        spot = head(0.2, noise=0)
        assert self.frame(brain_ml=0.1).conform(image(spot, 1.0)).voxel_size == 1
