"""The linear operators along one axis of :mod:`singlestrip_bids.synthesis`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from singlestrip_bids.synthesis import along, blur_matrix, field_of_view, slice_matrix

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestOperators:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_along(self, axis):
        shape = (4, 5, 6)
        volume = torch.rand((3, 1, *shape), generator=seeded(0))
        n = shape[axis]
        matrix = torch.rand((3, n, n), generator=seeded(1))
        equation = ("bij,bcjyz->bciyz", "bij,bcxjz->bcxiz", "bij,bcxyj->bcxyi")[axis]
        torch.testing.assert_close(
            along(volume, matrix, axis), torch.einsum(equation, matrix, volume)
        )

    @PROPERTY
    @given(fwhm=st.floats(0, 12), size=st.integers(1, 40))
    def test_blur_rows_sum_to_one(self, fwhm, size):
        matrix = blur_matrix(torch.tensor([fwhm, 0.0]), size)
        torch.testing.assert_close(matrix.sum(-1), torch.ones((2, size)))
        assert matrix.min() >= 0
        torch.testing.assert_close(matrix[1], torch.eye(size))

    @pytest.mark.parametrize("fwhm", [1.5, 3.0, 5.0])
    def test_blur_is_gaussian(self, fwhm):
        size = 64
        signal = np.random.default_rng(0).random(size).astype(np.float32)
        sigma = fwhm / 2.3548200450309493
        expected = ndimage.gaussian_filter1d(signal, sigma, truncate=6)
        found = blur_matrix(torch.tensor([fwhm]), size)[0].numpy() @ signal
        np.testing.assert_allclose(found[14:-14], expected[14:-14], atol=1e-4)

    def test_width_at_half_maximum(self):
        profile = blur_matrix(torch.tensor([8.0]), 65)[0, 32]
        assert float(profile[36] / profile[32]) == pytest.approx(0.5, abs=1e-4)

    @PROPERTY
    @given(
        thickness=st.floats(1, 20),
        phase=st.floats(0, 1, exclude_max=True),
        size=st.integers(4, 33),
    )
    def test_slices_keep_constants(self, thickness, phase, size):
        matrix = slice_matrix(torch.tensor([thickness]), torch.tensor([phase]), size)[0]
        torch.testing.assert_close(matrix.sum(-1), torch.ones(size), atol=1e-4, rtol=0)
        assert matrix.min() >= 0

    def test_slices_of_one_voxel_are_the_identity(self):
        matrix = slice_matrix(torch.ones(2), torch.tensor([0.0, 0.7]), 9)
        assert torch.equal(matrix, torch.eye(9).expand(2, 9, 9))

    @pytest.mark.parametrize("phase", [0.0, 0.3, 0.8])
    def test_slices_keep_position_and_average_noise(self, phase):
        size = 48
        noise = torch.randn((size, 200), generator=seeded(0))
        before = 1.0
        for thickness in (2.0, 4.0, 8.0):
            matrix = slice_matrix(torch.tensor([thickness]), torch.tensor([phase]), size)[0]
            after = float((matrix @ noise).var())
            assert after < before
            assert after == pytest.approx(float((matrix**2).sum() / size), rel=0.1)
            before = after
            position = matrix @ torch.arange(size, dtype=torch.float32)
            interior = slice(12, -12)
            drift = (position - torch.arange(size))[interior].abs().max()
            assert drift < 0.51

    def test_each_of_a_batch_has_its_own_thickness(self):
        matrix = slice_matrix(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 0.0]), 16)
        assert torch.equal(matrix[0], torch.eye(16))
        assert not torch.allclose(matrix[1], torch.eye(16))

    @pytest.mark.parametrize("end", [0, 1])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_field_of_view(self, axis, end):
        crop = torch.zeros((2, 3, 2))
        crop[1, axis, end] = 0.25
        view = field_of_view(crop, 16)
        assert view.shape == (2, 1, 16, 16, 16)
        assert view[0].all()
        kept = view[1, 0].movedim(axis, 0).flatten(1)
        assert (kept == kept[:, :1]).all()
        expected = torch.ones(16)
        expected[slice(0, 4) if end == 0 else slice(12, 16)] = 0
        assert torch.equal(kept[:, 0], expected)

    def test_field_of_view_of_several_cuts_is_their_intersection(self):
        crop = torch.zeros((1, 3, 2))
        crop[0, 0, 0] = crop[0, 2, 1] = 0.5
        assert field_of_view(crop, 8).sum() == 4 * 8 * 4
