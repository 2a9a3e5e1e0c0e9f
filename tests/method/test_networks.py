from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.config import PRESETS, AutoencoderConfig, NetworkConfig
from singlestrip_bids.method.networks import Autoencoder, InstanceNorm, UNet, fold, unfold

TINY = (
    NetworkConfig(features=(2, 3), normalise=True, stem=2),
    NetworkConfig(features=(2, 3, 4)),
    NetworkConfig(features=(3, 3), normalise=True, stem=4),
)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


class TestFold:
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(
        stem=st.integers(1, 3), shape=st.tuples(*[st.integers(1, 4)] * 3), batch=st.integers(1, 3)
    )
    def test_unfold_is_the_inverse(self, stem, shape, batch):
        volume = torch.rand((batch, 1, *(stem * n for n in shape)))
        blocks = fold(volume, stem)
        assert blocks.shape == (batch, stem**3, *shape)
        assert torch.equal(unfold(blocks, stem), volume)

    def test_a_block_becomes_the_channels_of_its_place(self):
        volume = torch.arange(4 * 6 * 8.0).view(1, 1, 4, 6, 8)
        blocks = fold(volume, 2)
        for place in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
            corner = tuple(slice(2 * p, 2 * p + 2) for p in place)
            assert torch.equal(blocks[(0, slice(None), *place)], volume[0, 0][corner].flatten())


def test_instance_norm_is_that_of_pytorch():
    torch.manual_seed(0)
    norm = InstanceNorm(3, affine=True)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (5 + 3 * torch.rand(2, 3, 4, 5, 6)).contiguous(memory_format=torch.channels_last_3d)
    expected = torch.nn.InstanceNorm3d.forward(norm, x)
    torch.testing.assert_close(norm(x), expected, atol=1e-3, rtol=1e-3)  # one pass: less exact


class TestUNet:
    def test_default_is_synthstrip(self):
        assert parameters(UNet(NetworkConfig())) == 2_566_561

    @pytest.mark.parametrize("config", TINY)
    @pytest.mark.parametrize("times", [(2, 3, 4), (4, 2, 2)])
    def test_logits_have_the_shape_of_the_image(self, config, times):
        image = torch.rand((2, 1, *(t * config.multiple for t in times)))
        network = UNet(config)
        assert network(image).shape == image.shape
        torch.nn.init.zeros_(network.head.weight)
        torch.nn.init.constant_(network.head.bias, -3)
        assert torch.equal(network(image), torch.full_like(image, -3))  # linear to the end

    @pytest.mark.parametrize("config", TINY)
    def test_gradient_reaches_every_parameter(self, config):
        torch.manual_seed(0)
        network = UNet(config)
        edge = 2 * config.multiple
        network(torch.rand((1, 1, edge, edge, edge))).square().sum().backward()
        still = [
            name
            for name, p in network.named_parameters()
            if p.grad is None or not p.grad.abs().sum() > 0
        ]
        assert not still

    @pytest.mark.parametrize("preset", PRESETS)
    def test_presets_can_be_built(self, preset):
        config = PRESETS[preset].network
        network = UNet(config)
        assert len(network.encoder) == len(config.features)
        assert len(network.decoder) == len(config.features) - 1
        norms = [m for m in network.modules() if isinstance(m, torch.nn.InstanceNorm3d)]
        assert bool(norms) == config.normalise

    def test_skips_carry_single_voxels(self):
        """A change of one voxel shows in the logits at that voxel, above all."""
        torch.manual_seed(0)
        network = UNet(NetworkConfig(features=(4, 4, 4)))
        image = torch.zeros((1, 1, 16, 16, 16))
        changed = image.clone()
        changed[0, 0, 9, 6, 4] = 1
        with torch.no_grad():
            effect = (network(changed) - network(image)).abs()[0, 0]
        near = effect[6:13, 3:10, 1:8].mean()
        assert near > 2 * effect.mean()

    def test_batch_items_do_not_mix(self):
        network = UNet(TINY[0]).eval()
        images = torch.rand((2, 1, 8, 8, 8))
        with torch.no_grad():
            together = network(images)
            alone = torch.cat([network(images[:1]), network(images[1:])])
        torch.testing.assert_close(together, alone)


def of(latent: int, edge: int) -> Autoencoder:
    return Autoencoder(AutoencoderConfig(latent=latent, slice_size=edge))


class TestAutoencoder:
    @pytest.mark.parametrize("edge", [64, 128, 256])
    def test_shapes(self, edge):
        network = of(100, edge).eval()
        slices = torch.rand((1, 2, edge, edge))
        with torch.no_grad():
            assert network.encoder(slices).shape == (1, 100, 4, 4)
            made = network(slices)
        assert made.shape == slices.shape
        torch.testing.assert_close(made.sum(1), torch.ones((1, edge, edge)))
        assert made.min() >= 0

    def test_layers_of_the_paper(self):
        convolutions = [
            m for m in Autoencoder(AutoencoderConfig()).encoder if isinstance(m, torch.nn.Conv2d)
        ]
        kernels = [m.kernel_size[0] for m in convolutions]
        widths = [m.out_channels for m in convolutions]
        assert kernels == [4, 4, 4, 3, 4, 3, 4, 3, 3, 4]
        assert widths == [32, 32, 32, 32, 64, 64, 128, 64, 32, 100]
        assert [m.stride[0] for m in convolutions] == [2 if k == 4 else 1 for k in kernels]

    @pytest.mark.parametrize(("edge", "left_out"), [(128, 1), (64, 2)])
    def test_smaller_slices_enter_later(self, edge, left_out):
        def layers(network):
            found = [m for m in network.encoder if isinstance(m, torch.nn.Conv2d)]
            return [(m.kernel_size, m.stride, m.out_channels) for m in found]

        assert layers(of(9, edge)) == layers(of(9, 256))[left_out:]

    @pytest.mark.parametrize("edge", [64, 128, 256])
    def test_decoder_mirrors_the_encoder(self, edge):
        network = of(7, edge)
        down = [m for m in network.encoder if isinstance(m, torch.nn.Conv2d)]
        up = [m for m in network.decoder if isinstance(m, torch.nn.ConvTranspose2d)]
        assert [(m.kernel_size, m.stride, m.in_channels, m.out_channels) for m in up] == [
            (m.kernel_size, m.stride, m.out_channels, m.in_channels) for m in reversed(down)
        ]
        assert not isinstance(network.encoder[-1], torch.nn.Dropout)
        assert isinstance(network.decoder[-1], torch.nn.ConvTranspose2d)

    def test_gradient_reaches_every_parameter(self):
        torch.manual_seed(0)
        network = of(8, 64)
        slices = torch.rand((4, 2, 64, 64))
        (network(slices) - slices).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
