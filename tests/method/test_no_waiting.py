"""No step of a training waits for the device: shown with meta tensors, which have no values."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from singlestrip_bids.config import PRESETS, AutoencoderConfig, TrainingConfig, sloppy
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method import training
from singlestrip_bids.method.autoencoder import loss_over
from singlestrip_bids.method.classes import Source
from singlestrip_bids.method.losses import images_of, segmentation_loss
from singlestrip_bids.method.networks import Autoencoder, UNet

METHOD = sloppy(PRESETS["quick"])
ELSEWHERE = torch.device("meta")


class Elsewhere(torch.Generator):
    """A generator that says it is on the device; meta tensors do not ask it for numbers."""

    @property
    def device(self):
        return ELSEWHERE


class Crossings(TorchDispatchMode):
    """Refuses operations that take tensors from one side to the other."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = [t.device.type for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        made = [t.device.type for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if devices and made and set(made) != set(devices):
            raise AssertionError(f"{function} takes {devices} to {made}")
        return result


@pytest.fixture
def no_numbers_sent(monkeypatch):
    """Refuse to make a tensor of given numbers on the device, which is no operation on tensors."""
    make = torch.tensor

    def checked(data, *, device=None, **options):
        if device == ELSEWHERE:
            raise AssertionError(f"{data} is sent to the device")
        return make(data, device=device, **options)

    monkeypatch.setattr(torch, "tensor", checked)
    monkeypatch.setattr(torch, "as_tensor", checked)


def segmentation():
    volume = torch.rand(1, 1, 40, 40, 40, device=ELSEWHERE)
    origin = Source(volume, volume, volume, torch.rand(3, device=ELSEWHERE))
    machine = SimpleNamespace(autocast=nullcontext)  # there is none for meta tensors
    loss = segmentation_loss(machine, images_of([origin] * 3, METHOD.size, METHOD.synthesis))
    return UNet(METHOD.network).to(ELSEWHERE), loss, 2


def autoencoder():
    brain = torch.rand(20, 1, 64, 64, device=ELSEWHERE)
    return (
        Autoencoder(AutoencoderConfig(latent=4, slice_size=64)).to(ELSEWHERE),
        loss_over(brain, 8),
        1,
    )


@pytest.mark.parametrize("make", [segmentation, autoencoder])
@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_a_step_takes_nothing_to_or_from_the_device(no_numbers_sent, make, optimiser):
    network, loss, images = make()
    stepper = training.make_optimiser(network.parameters(), TrainingConfig(1, optimiser=optimiser))
    machine = Runtime(ELSEWHERE, bfloat16=False)
    with Crossings():
        for step in range(2):
            value = loss(network, [Elsewhere().manual_seed(10 * step + n) for n in range(images)])
            stepper.zero_grad(set_to_none=True)
            value.backward()
            state = machine.average(network, value, 1.0)
            stepper.step()
    assert state.device == ELSEWHERE
    assert state.shape == (2,)


@pytest.mark.parametrize(
    "look",
    [
        lambda tensor: tensor.tolist(),
        float,
        bool,
        lambda tensor: tensor.cpu(),
        lambda _: torch.rand(()).to(ELSEWHERE),
        lambda _: torch.tensor([0.0, 0.99], device=ELSEWHERE),
        lambda tensor: (tensor > 0.5).nonzero(),
    ],
)
def test_a_look_would_be_noticed(no_numbers_sent, look):
    tensor = torch.rand((), device=ELSEWHERE)
    with Crossings(), pytest.raises((AssertionError, RuntimeError)):
        look(tensor)
