from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from singlestrip_bids.config import SynthesisConfig
from singlestrip_bids.method.classes import CLASSES, source
from singlestrip_bids.method.synthesis import (
    acquire,
    along,
    blur_matrix,
    draw_affine,
    draw_appearance,
    draw_points,
    draw_remap,
    draw_warp,
    field_of_view,
    integrate,
    look_up,
    normalise,
    sample,
    slice_matrix,
    training_batch,
    voxel_indices,
)

CPU = torch.device("cpu")
SIZE = 16
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
NOTHING = SynthesisConfig(**{f.name: 0.0 for f in fields(SynthesisConfig)})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(shape=(20, 18, 22), lower=(4, 5, 7), upper=(11, 12, 14)):
    """A box brain of odd edges; classes, image and mask each tell where a voxel lies."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = True
    image = torch.rand(shape, generator=seeded(7))
    classes = torch.where(mask, 7 + (image * 9.99).int(), 1 + (image * 5.99).int())
    return source(classes, image, mask)


def smooth_field(size: int, steepest: float, seed: int) -> torch.Tensor:
    """A sum of random slow waves that vanish at the border; its largest slope is given."""
    axis = torch.linspace(0, torch.pi, size)
    waves = torch.stack([torch.sin(number * axis) for number in (1, 2, 3)])
    weights = torch.randn((3, 3, 3, 3), generator=seeded(seed))
    field = torch.einsum("cijk,ix,jy,kz->cxyz", weights, waves, waves, waves)[None]
    return field * steepest / max(float(field.diff(dim=d).abs().max()) for d in (2, 3, 4))


def least_jacobian(where: torch.Tensor) -> float:
    """Smallest determinant of the differences between neighbours: below 0 where it folds."""
    columns = [where.diff(dim=d) for d in (2, 3, 4)]
    n = where.shape[-1] - 1
    matrix = torch.stack([c[0, :, :n, :n, :n] for c in columns]).permute(2, 3, 4, 0, 1)
    return float(torch.linalg.det(matrix).min())


class TestTrainingBatch:
    def test_seed_decides(self):
        sources = [head(), head(lower=(3, 3, 3))]
        one, same, other = (
            training_batch(seeded(seed), sources, SIZE, SynthesisConfig()) for seed in (1, 1, 2)
        )
        assert torch.equal(one[0], same[0])
        assert torch.equal(one[1], same[1])
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])

    def test_global_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        training_batch(seeded(0), [head()], SIZE, SynthesisConfig())
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("seed", range(12))
    def test_ranges_and_shapes(self, seed):
        images, targets = training_batch(seeded(seed), [head()] * 2, SIZE, SynthesisConfig())
        for batch in (images, targets):
            assert batch.shape == (2, 1, SIZE, SIZE, SIZE)
            assert batch.dtype == torch.float32
            assert torch.isfinite(batch).all()
            assert batch.min() >= 0
            assert batch.max() <= 1 + 1e-6  # rounding of the interpolation
        assert images.amax(dim=(1, 2, 3, 4)).min() > 0
        assert targets.amax(dim=(1, 2, 3, 4)).min() > 0.5

    def test_images_of_a_batch_differ(self):
        images, _ = training_batch(seeded(0), [head()] * 2, SIZE, SynthesisConfig())
        assert not torch.equal(images[0], images[1])

    @pytest.mark.parametrize("lower", [(4, 5, 7), (3, 9, 2)])
    @pytest.mark.parametrize("real", [0.0, 1.0])
    def test_nothing_drawn_is_the_source_around_its_centre(self, real, lower):
        upper = tuple(a + 7 for a in lower)
        origin = head(lower=lower, upper=upper)
        size = 9
        window = tuple(slice(a - 1, b + 1) for a, b in zip(lower, upper, strict=True))
        mask, classes, image = (
            volume[0, 0][window] for volume in (origin.mask, origin.classes, origin.image)
        )
        flips = set()
        for seed in range(8):
            settings = replace(NOTHING, real_fraction=real)
            made, target = training_batch(seeded(seed), [origin], size, settings)
            torch.testing.assert_close(target[0, 0], mask, atol=1e-4, rtol=0)
            drawn = draw_affine(draw_generator_at_affine(seed), 1, settings)
            flips.add(float(drawn[0, 0, 0]))
            turned = made[0, 0].flip(0) if drawn[0, 0, 0] < 0 else made[0, 0]
            key = (image * 1023).round() if real else classes
            order = key.flatten().argsort()
            values, keys = turned.flatten()[order], key.flatten()[order]
            for level in keys.unique():
                spread = values[keys == level]
                assert spread.max() - spread.min() < (0.05 if real else 1e-4)
        assert flips == {-1.0, 1.0}

    def test_only_class_maps(self):
        origin = head()
        blind = replace(origin, image=torch.full_like(origin.image, torch.nan))
        config = replace(SynthesisConfig(), real_fraction=0.0)
        for seed in range(4):
            one, two = (
                training_batch(seeded(seed), [s], SIZE, config)[0] for s in (origin, blind)
            )
            assert torch.isfinite(two).all()
            assert torch.equal(one, two)

    def test_only_real_images(self):
        origin = head()
        other = replace(origin, classes=torch.where(origin.classes > 0, 17 - origin.classes, 0.0))
        config = replace(SynthesisConfig(), real_fraction=1.0)
        for seed in range(4):
            one, two = (
                training_batch(seeded(seed), [s], SIZE, config)[0] for s in (origin, other)
            )
            assert torch.equal(one, two)

    def test_share_of_real_images(self):
        origin = head()
        flat = replace(origin, image=torch.full_like(origin.image, 0.5))
        config = replace(NOTHING, real_fraction=0.25)
        images, _ = training_batch(seeded(0), [flat] * 400, 4, config)
        share = (images.flatten(1).amax(1) == 0).float().mean()  # without contrast: the real ones
        assert abs(share - 0.25) < 0.07  # more than three standard deviations

    @pytest.mark.parametrize("real", [0.0, 1.0])
    def test_zero_outside_the_field_of_view(self, real):
        origin = head(lower=(0, 5, 7))
        cut = origin.classes.clone()
        cut[:, :, 8:] = 0
        origin = replace(origin, classes=cut, centre=torch.tensor([8.0, 8.0, 10.0]))
        config = replace(NOTHING, real_fraction=real, noise=0.5, bias=1.0, gamma=0.5)
        for seed in range(4):
            image, target = training_batch(seeded(seed), [origin], SIZE, config)
            seen = image[0, 0].amax(dim=(1, 2)) > 0
            empty = ~seen
            assert 7 <= int(empty.sum()) <= 9
            assert not target[0, 0][empty].any()
            assert target[0, 0][seen].any()

    def test_cropping_cuts_image_and_target_alike(self):
        origin = head(lower=(0, 0, 0), upper=(20, 18, 22))
        config = replace(NOTHING, crop=0.5, crop_probability=1.0, noise=0.3)
        for seed in range(6):
            image, target = training_batch(seeded(seed), [origin], 12, config)
            appearance = crop_of(seed, config, 12)
            view = field_of_view(appearance, 12).bool()
            assert not view.all() or float(appearance.max()) < 0.5 / 12
            assert not image[~view].any()
            assert torch.equal(target > 0.5, view)


def draw_generator_at_affine(seed: int) -> torch.Generator:
    """The generator as it is when the affine is drawn: after the shift."""
    generator = seeded(seed)
    torch.rand((1, 3), generator=generator)
    return generator


def crop_of(seed: int, config: SynthesisConfig, size: int) -> torch.Tensor:
    """The crop that a batch of one draws from this seed."""
    generator = seeded(seed)
    draw_points(generator, [head()], size, config)
    return draw_appearance(generator, 1, size, config).crop


class TestGeometry:
    def test_affine_of_nothing_is_the_identity_or_its_mirror(self):
        matrices = draw_affine(seeded(0), 64, NOTHING)
        mirrored = matrices[:, 0, 0] < 0
        assert 0 < mirrored.sum() < 64
        matrices[mirrored, 0, 0] *= -1
        torch.testing.assert_close(matrices, torch.eye(3).expand(64, 3, 3))

    def test_rotations_are_orthogonal_and_within_range(self):
        matrices = draw_affine(seeded(0), 64, replace(NOTHING, rotation_deg=25.0))
        torch.testing.assert_close(
            matrices @ matrices.mT, torch.eye(3).expand(64, 3, 3), atol=1e-5, rtol=0
        )
        about_x = draw_affine(seeded(0), 500, replace(NOTHING, rotation_deg=10.0))
        trace = about_x.abs().diagonal(dim1=1, dim2=2)
        assert trace.min() >= np.cos(np.radians(10)) ** 2 - np.sin(np.radians(10)) ** 3 - 1e-5
        assert trace.min() < 0.999

    def test_scaling_is_within_range_and_on_both_sides(self):
        volumes = torch.linalg.det(draw_affine(seeded(0), 500, replace(NOTHING, scaling=0.25)))
        edges = volumes.abs() ** (1 / 3)
        assert np.exp(-0.25) - 1e-5 <= edges.min() < 0.85
        assert 1.18 < edges.max() <= np.exp(0.25) + 1e-5

    def test_shear_keeps_volume(self):
        matrices = draw_affine(seeded(0), 50, replace(NOTHING, shear=0.3))
        torch.testing.assert_close(torch.linalg.det(matrices).abs(), torch.ones(50))
        assert (matrices - matrices.mT).abs().max() > 0.1

    @pytest.mark.parametrize("seed", range(3))
    def test_integrated_field_does_not_fold(self, seed):
        identity, velocity = voxel_indices((24,) * 3, CPU), smooth_field(24, 1.4, seed)
        assert least_jacobian(identity + velocity) < 0
        assert least_jacobian(identity + integrate(velocity)) > 0

    @pytest.mark.parametrize("seed", range(4))
    def test_strongest_warp_does_not_fold(self, seed):
        warp = draw_warp(seeded(seed), 1, 32, replace(NOTHING, warp=SynthesisConfig().warp))
        assert least_jacobian(voxel_indices((32,) * 3, CPU) + warp) > 0

    @pytest.mark.parametrize("seed", range(3))
    def test_opposite_velocity_is_the_inverse(self, seed):
        identity, velocity = voxel_indices((24,) * 3, CPU), smooth_field(24, 0.8, seed)

        def there_and_back(there, back):
            return float((back + sample(there, identity + back, "border")).abs().max())

        left = there_and_back(integrate(velocity), integrate(-velocity))
        assert left < 0.1 * velocity.abs().max()
        assert left < 0.5 * there_and_back(velocity, -velocity)

    def test_integral_of_a_constant_is_the_constant(self):
        velocity = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, 8, 8, 8)
        torch.testing.assert_close(integrate(velocity), velocity)

    @pytest.mark.parametrize("size", [8, 13, 24])
    def test_warp(self, size):
        assert not draw_warp(seeded(0), 2, size, NOTHING).any()
        warps = draw_warp(seeded(0), 2, size, replace(NOTHING, warp=0.05))
        assert warps.shape == (2, 3, size, size, size)
        assert warps.abs().amax(dim=(1, 2, 3, 4)).min() > 0.01
        assert not torch.equal(warps[0], warps[1])

    def test_sample_reads_where_it_is_told(self):
        volume = torch.rand((1, 1, 5, 7, 6), generator=seeded(0))
        points = torch.tensor([[0, 0, 0], [4, 6, 5], [1, 2, 3], [3, 0, 5]], dtype=torch.float32)
        found = sample(volume, points.T.reshape(1, 3, 4, 1, 1)).flatten()
        expected = torch.stack([volume[(0, 0, *p.long())] for p in points])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        between = torch.tensor([1.25, 2.0, 3.0]).view(1, 3, 1, 1, 1)
        assert float(sample(volume, between)) == pytest.approx(
            float(0.75 * volume[0, 0, 1, 2, 3] + 0.25 * volume[0, 0, 2, 2, 3]), abs=1e-5
        )
        outside = torch.tensor([-3.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
        assert float(sample(volume, outside)) == 0
        assert float(sample(volume, outside, "border")) == pytest.approx(
            float(volume[0, 0, 0, 2, 3]), abs=1e-5
        )

    @pytest.mark.parametrize("padding", ["zeros", "border"])
    @pytest.mark.parametrize("mode", ["nearest", "bilinear"])
    def test_volumes_alone_are_read_as_in_a_batch(self, padding, mode):
        volumes = torch.rand(2, 3, 5, 6, 7, generator=seeded(0))
        points = 8 * torch.rand(2, 3, 9, 4, 6, generator=seeded(1)) - 1
        both = sample(volumes, points, padding, mode)
        alone = [sample(volumes[i : i + 1], points[i : i + 1], padding, mode) for i in range(2)]
        assert torch.equal(both, torch.cat(alone))

    def test_points_of_nothing_are_centred_on_the_brain(self):
        one, two = head(), head(lower=(2, 2, 2), upper=(5, 5, 5))
        points = draw_points(seeded(0), [one, two], 9, NOTHING)
        torch.testing.assert_close(
            points[..., 4, 4, 4], torch.stack([one.centre, two.centre]), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(two.centre, torch.tensor([3.0, 3.0, 3.0]))


class TestIntensity:
    @PROPERTY
    @given(seed=st.integers(0, 999), knots=st.integers(2, 20))
    def test_identity_table(self, seed, knots):
        image = torch.rand((2, 1, 4, 5, 3), generator=seeded(seed))
        image[0, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.5])
        table = torch.linspace(0, 1, knots).expand(2, knots)
        torch.testing.assert_close(look_up(image, table), image)

    def test_tables_are_linear_between_knots_and_each_image_has_its_own(self):
        image = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).expand(2, 1, 5)
        tables = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
        expected = torch.tensor([[1.0, 0.5, 0.0, 0.25, 0.5], [0.0, 0.5, 1.0, 0.5, 0.0]])
        torch.testing.assert_close(look_up(image, tables)[:, 0], expected)

    def test_remap_is_a_table_of_zero_to_one(self):
        tables = draw_remap(seeded(0), 300)
        assert tables.min() >= 0
        assert tables.max() <= 1
        dark = (tables[:, 0] == 0).float().mean()
        assert abs(dark - 0.7) < 0.09
        falling = (tables[:, -1] < tables[:, 3]).float().mean()
        assert 0.05 < falling < 0.6  # contrasts are inverted at times, not always

    def test_mild_remaps_stay_close_to_the_identity(self):
        identity = torch.linspace(0, 1, 12)
        mild = abs(draw_remap(seeded(0), 300, mild=1.0) - identity).amax(1)
        assert mild.max() <= 0.2
        assert (abs(draw_remap(seeded(0), 300) - identity).amax(1) > 0.2).float().mean() > 0.5

    def test_normalise(self):
        image = torch.randn((3, 1, 15, 15, 15), generator=seeded(0)) * 5 + 40
        scaled = normalise(image)
        thinned = scaled[..., ::3, ::3, ::3].flatten(1)
        assert (thinned.amin(1) == 0).all()
        assert torch.equal((thinned == 1).sum(1), torch.full((3,), 2))  # 1 % of 125, rounded up
        torch.testing.assert_close(normalise(3 * image - 7), scaled, atol=1e-4, rtol=0)
        assert torch.isfinite(normalise(torch.full((1, 1, 6, 6, 6), 5.0))).all()

    def test_appearance_of_nothing_changes_nothing(self):
        drawn = draw_appearance(seeded(0), 5, SIZE, NOTHING)
        for name, neutral in (
            ("blur", 0), ("bias", 0), ("noise", 0), ("thickness", 1), ("gamma", 1),
            ("lines", 1), ("crop", 0),
        ):  # fmt: skip
            value = getattr(drawn, name)
            assert torch.equal(value, torch.full_like(value, neutral)), name

    def test_ranges_of_the_appearance(self):
        config = SynthesisConfig()
        drawn = draw_appearance(seeded(0), 300, 32, config)
        assert drawn.grey.shape == (300, CLASSES)
        assert not drawn.grey[:, 0].any()
        assert drawn.grey.min() >= 0
        assert drawn.grey.max() <= 1
        assert abs((drawn.grey[:, 1] < 0.05).float().mean() - 0.525) < 0.1
        assert abs(float(drawn.gamma.log().mean())) < 0.05
        assert drawn.gamma.log().abs().max() <= config.gamma + 1e-5
        assert drawn.crop.max() <= config.crop
        cut = drawn.crop.flatten(1)
        assert (abs((cut > 0).float().mean(0) - config.crop_probability) < 0.09).all()
        assert set((cut > 0).nonzero()[:, 1].tolist()) == set(range(6))
        assert ((drawn.thickness > 1).sum(1) <= 1).all()
        assert drawn.thickness.max() <= max(config.slice_thickness * 32, 1)
        assert drawn.blur.max() <= config.blur * 32
        assert not torch.equal(drawn.noise[0], drawn.noise[1])


@pytest.mark.parametrize("quantity", ["blur", "thickness"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_acquisition_smooths_along_its_axis_alone(axis, quantity):
    neutral = draw_appearance(seeded(0), 1, SIZE, NOTHING)
    amount = getattr(neutral, quantity).clone()
    amount[0, axis] = 4
    smooth = replace(neutral, **{quantity: amount})
    inside = torch.ones((1, 1, SIZE, SIZE, SIZE))
    for varying in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + varying] = SIZE
        planes = torch.rand(SIZE, generator=seeded(1)).view(shape).expand_as(inside)
        same = torch.allclose(
            acquire(planes, inside, smooth), acquire(planes, inside, neutral), atol=1e-4
        )
        assert same == (varying != axis)


class TestOperators:
    """The linear operators along one axis."""

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
