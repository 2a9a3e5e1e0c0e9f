"""The U-Net in little memory: the same numbers, slab by slab."""

from __future__ import annotations

import pytest
import torch

from singlestrip_bids.config import NetworkConfig
from singlestrip_bids.method.networks import InstanceNorm, UNet
from singlestrip_bids.method.slabs import forward_in_slabs, normalise_in_place

CONFIGS = (
    NetworkConfig(features=(2, 3), normalise=True, stem=2),
    NetworkConfig(features=(2, 3, 4)),
    NetworkConfig(features=(3, 3), normalise=True, stem=4),
    NetworkConfig(features=(8, 4), stem=2),
)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("slab", [1, 3000, 10_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slabs_give_the_same_numbers_and_leave_the_image(config, slab, dtype):
    torch.manual_seed(0)
    network = UNet(config).eval()
    image = torch.rand((2, 1, *(t * config.multiple for t in (5, 3, 2))))
    before = image.clone()
    with torch.inference_mode(), torch.autocast("cpu", dtype, dtype == torch.bfloat16):
        whole, (parts,) = network(image), forward_in_slabs(network, image, slab)
    fine = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(parts, whole, atol=fine, rtol=0.01, check_dtype=True)
    assert torch.equal(image, before)


@pytest.mark.parametrize("slab", [1, 100, 1_000_000])
def test_normalising_in_place_is_that_of_pytorch(slab):
    torch.manual_seed(0)
    norm = InstanceNorm(3, affine=True)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (5 + 3 * torch.rand(2, 3, 4, 5, 6)).contiguous(memory_format=torch.channels_last_3d)
    expected = torch.nn.InstanceNorm3d.forward(norm, x)
    with torch.no_grad():
        normalise_in_place(norm, x, slab)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
