"""How wide a head is, what is noise around it, and whether its skull is there."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import ELLIPSOID, RADII, conformed_of, ellipsoid, image_of
from scipy import ndimage

from singlestrip_bids.errors import BadData
from singlestrip_bids.image.grid import Grid, conform_image
from singlestrip_bids.image.head import find_noise, head_width, refuse_stripped, relative_size
from singlestrip_bids.image.nifti import from_memory

GRID = Grid(2.0, 32, 8)


class TestHeadWidth:
    @pytest.mark.parametrize("noise", [0.0, 0.02, 0.08])
    def test_is_that_of_the_head(self, noise):
        width, cut = head_width(conformed_of(ellipsoid(noise=noise)))
        assert width == pytest.approx(2 * np.sqrt(RADII[0] * RADII[1]), abs=2)
        assert not cut

    def test_does_not_depend_on_height(self):
        data = ellipsoid()
        low = data.copy()
        low[..., : ELLIPSOID[2] // 2] = 0
        assert head_width(conformed_of(low))[0] == head_width(conformed_of(data))[0]

    def test_tells_when_the_field_of_view_ends_in_the_head(self):
        inside = np.zeros(ELLIPSOID, bool)
        inside[14:] = True
        assert head_width(conformed_of(ellipsoid(), inside))[1]
        assert head_width(conformed_of(ellipsoid(shift=12)))[1]

    def test_of_nothing(self):
        assert head_width(conformed_of(np.zeros(ELLIPSOID, np.float32))) == (0.0, True)

    def test_of_a_fine_grid(self):
        fine = ellipsoid().repeat(3, 0).repeat(3, 1).repeat(3, 2)
        width, _ = head_width(conformed_of(fine))
        assert width == pytest.approx(3 * head_width(conformed_of(ellipsoid()))[0], abs=4)


class TestRelativeSize:
    @pytest.mark.parametrize("zoom", [0.8, 1.0, 1.2])
    def test_like_heads_are_left_alone(self, zoom):
        assert (
            relative_size(conformed_of(ellipsoid(zoom)), head_width(conformed_of(ellipsoid()))[0])
            == 1
        )

    @pytest.mark.parametrize("zoom", [0.5, 0.65])
    def test_smaller(self, zoom):
        ratio = relative_size(
            conformed_of(ellipsoid(zoom)), head_width(conformed_of(ellipsoid()))[0]
        )
        assert ratio == pytest.approx(zoom, abs=0.07)

    @pytest.mark.parametrize("zoom", [0.5, 0.65])
    def test_larger(self, zoom):
        ratio = relative_size(
            conformed_of(ellipsoid()), head_width(conformed_of(ellipsoid(zoom)))[0]
        )
        assert ratio == pytest.approx(1 / zoom, rel=0.12)

    def test_a_slab_is_no_small_head(self):
        inside = np.zeros(ELLIPSOID, bool)
        inside[18:30] = True
        assert (
            relative_size(
                conformed_of(ellipsoid(), inside), head_width(conformed_of(ellipsoid()))[0]
            )
            == 1
        )

    def test_a_head_that_touches_the_end_is_not_cut(self):
        inside = ellipsoid(noise=0) > 0
        assert not head_width(conformed_of(ellipsoid(), inside))[1]


class TestNoise:
    @staticmethod
    def uniform(smooth: float = 0.0) -> np.ndarray:
        """A head in air that is as bright as itself, as of MP2RAGE."""
        data = ellipsoid(noise=0.02)
        air = ndimage.gaussian_filter(np.random.default_rng(1).random(data.shape), smooth)
        return np.where(ellipsoid(noise=0) > 0, data, air).astype(np.float32)

    def test_is_not_the_head(self):
        image = image_of(self.uniform())
        placed = conform_image(image, GRID)
        noise = find_noise(image, placed, GRID)
        plain = conform_image(image_of(ellipsoid()), GRID)
        width, cut = head_width(placed, noise)
        assert width == pytest.approx(head_width(plain)[0], rel=0.1)
        assert not cut
        assert head_width(placed)[0] > 1.2 * width
        assert relative_size(placed, width, noise) == 1

    def test_in_a_wide_field_of_view(self):
        air = np.random.default_rng(2).random(np.array(ELLIPSOID) * 2).astype(np.float32)
        air[24:-24, 28:-28, 26:-26] = self.uniform()
        image = image_of(air)
        placed = conform_image(image, GRID)
        narrow = head_width(conform_image(image_of(ellipsoid()), GRID))[0]
        assert relative_size(placed, narrow) > 1
        assert relative_size(placed, narrow, find_noise(image, placed, GRID)) == 1

    @pytest.mark.parametrize("points", [128, 20])
    def test_beside_fill_it_lies_on_the_same_grid(self, monkeypatch, points):
        monkeypatch.setattr("singlestrip_bids.image.head.NOISE_POINTS", points)
        data = self.uniform()
        data[:, :, :7] = data[:3] = -20
        image = from_memory(nib.Nifti1Image(data, np.eye(4)))
        assert image.fill is not None
        placed = conform_image(image, GRID)
        noise = find_noise(image, placed, GRID)
        assert noise.shape == placed.data.shape
        assert noise.any()
        if points == 128:  # 20 are too few for so small a head
            assert relative_size(placed, np.sqrt(RADII[0] * RADII[1]), noise) == 1

    @pytest.mark.parametrize("noise", [0.0, 0.02, 0.08])
    def test_dark_air_is_not_looked_at(self, noise):
        image = image_of(ellipsoid(noise=noise))
        assert find_noise(image, conform_image(image, GRID), GRID) is None

    def test_tissue_that_fills_the_field_of_view_is_none(self):
        image = image_of(ellipsoid()[12:-12, 14:-14, 13:-13])
        noise = find_noise(image, conform_image(image, GRID), GRID)
        assert noise is not None
        assert noise.mean() < 0.1


class TestStripped:
    """Of shells: brain 0.9 within a skull of 0.1 within a scalp of 0.6, in air."""

    @staticmethod
    def shells(stripped: bool) -> tuple[np.ndarray, np.ndarray]:
        place = np.indices(ELLIPSOID).T - (np.array(ELLIPSOID) - 1) / 2
        radius = np.sqrt(((place / np.array(RADII)) ** 2).sum(-1)).T
        head = np.select([radius < 0.75, radius < 0.87, radius < 1], [0.9, 0.1, 0.6], 0)
        data = np.where(radius < 0.8, 0.9, 0) if stripped else head
        return data.astype(np.float32), radius < 0.75

    @pytest.mark.parametrize("zoom", [1.0, 0.8])
    @pytest.mark.parametrize("part", [slice(None), slice(16, 26), slice(24, 44)])
    def test_head_slab_and_small_head_keep_their_skull(self, part, zoom):
        data, mask = self.shells(stripped=False)
        refuse_stripped(Path("x.nii"), conformed_of(data[:, :, part]), mask[:, :, part])

    def test_brain_alone_is_refused(self):
        data, mask = self.shells(stripped=True)
        with pytest.raises(BadData, match=r"x\.nii: already skull-stripped"):
            refuse_stripped(Path("x.nii"), conformed_of(data), mask)

    def test_its_own_mask_as_a_label(self):
        data, _ = self.shells(stripped=True)
        with pytest.raises(BadData, match="give the scan with its skull"):
            refuse_stripped(Path("x.nii"), conformed_of(data), data > 0)

    def test_fill_around_the_brain_is_background(self):
        data, mask = self.shells(stripped=True)
        with pytest.raises(BadData, match="already skull-stripped"):
            refuse_stripped(Path("x.nii"), conformed_of(data, data > 0), mask)

    def test_a_field_of_view_within_the_brain_is_no_proof(self):
        data, mask = self.shells(stripped=False)
        part = (slice(16, -16), slice(18, -18), slice(18, -18))
        refuse_stripped(Path("x.nii"), conformed_of(data[part]), mask[part])

    def test_an_empty_mask_proves_nothing(self):
        data, mask = self.shells(stripped=True)
        refuse_stripped(Path("x.nii"), conformed_of(data), mask & False)
