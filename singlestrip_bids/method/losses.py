"""Training losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..config import SynthesisConfig
from ..machine.runtime import Runtime
from .classes import Source
from .networks import UNet
from .synthesis import on_host, training_batch
from .training import Loss

Example = tuple[Tensor, Tensor]  # an image and its target, (1, 1 or more, n, n, n) in [0, 1]
Examples = Callable[[Generator, Sequence[int]], Example]  # of the structures with these numbers
MOST = 24  # structures that a training step looks at: all of 150 at once take memory and time


def soft_dice(probability: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice of each item (B, 1, ...) in [0, 1], averaged over the batch.

    Notes
    -----
    Milletari et al. (2016), V-Net, with squared denominators, so that a fractional target is
    best met by the same fraction.
    """
    dims = tuple(range(1, probability.ndim))
    overlap = 2 * (probability * target).sum(dims)
    total = (probability**2).sum(dims) + (target**2).sum(dims)
    return (1 - (overlap + 1e-5) / (total + 1e-5)).mean()


def reconstruction_loss(probability: Tensor, onehot: Tensor) -> Tensor:
    """Soft Dice of the classes but the first, plus mean squared error, of slices (B, C, n, n).

    Structures are compared over all slices of the batch, since many slices lack one.

    Notes
    -----
    SingleStrip, section 2.3.
    """
    shapes = [volume[:, 1:] for volume in (probability, onehot)]
    if onehot.shape[1] > 2:
        shapes = [volume.transpose(0, 1) for volume in shapes]
    return soft_dice(*shapes) + F.mse_loss(probability, onehot)


def images_of(sources: Sequence[Source], size: int, synthesis: SynthesisConfig) -> Examples:
    """Make random images of labelled volumes, each equally often."""

    def draw(generator: Generator, numbers: Sequence[int]) -> Example:
        chosen = on_host(generator, "source").choice(sources)
        return training_batch(generator, [chosen], size, synthesis, numbers)

    return draw


def looked_at(network: nn.Module) -> Sequence[int]:
    """Choose the structures of a training step, counted from 0: the same ones in all processes.

    They are drawn from the seed of the global generator, which is the step's.
    """
    assert isinstance(network, UNet)
    every = range(len(network.parts))
    if len(every) <= MOST:
        return every
    return sorted(Random(f"structures {torch.initial_seed()}").sample(every, MOST))


def brain_and_structures(probability: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of the brain (B, 1 + K, ...), plus that of its K structures on average."""
    loss = soft_dice(probability[:, :1], target[:, :1])
    if target.shape[1] > 1:
        loss = loss + soft_dice(probability[:, 1:].flatten(0, 1), target[:, 1:].flatten(0, 1))
    return loss


def segmentation_loss(runtime: Runtime, draw: Examples) -> Loss:
    """Soft Dice on random images, one a generator."""

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        numbers = looked_at(network)
        images, targets = zip(*(draw(one, numbers) for one in generators), strict=True)
        with runtime.autocast():
            logits = network(torch.cat(images), numbers)
        return brain_and_structures(logits.float().sigmoid(), torch.cat(targets))

    return loss


RAMP = 0.3  # share of the steps after which pseudo-labels count as much as labels
DECAY = 0.99  # of the moving average


class Averaged(nn.Module):
    """A network in training, the moving average of its weights, and how far it has come.

    All three are its state, so that a training which is taken up again goes on as it would have.
    The average follows the network closely at first (Tarvainen & Valpola 2017, mean teacher).
    """

    def __init__(self, network: UNet, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("step", torch.zeros(()))
        self.step: Tensor

    @property
    def ramp(self) -> Tensor:
        """How much counts what is not certain: from 0 to 1."""
        return (self.step / (RAMP * self.steps)).clamp(max=1)

    @property
    def recompute(self) -> bool:
        """As of the network."""
        return self.network.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self.network.recompute = value

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the average follow."""
        self.step += 1
        rest = torch.maximum(1 / (self.step + 1), torch.full_like(self.step, 1 - DECAY))
        for mean, own in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(own, rest)


def ramped_loss(
    runtime: Runtime,
    labelled: Examples,
    pseudo: Examples,
    consistency: float,
) -> Loss:
    """Cross-entropy and soft Dice of an `Averaged` network, half on labels, half on pseudo-labels.

    The latter count from nothing to all as training goes on; so does the agreement with the
    moving average, times ``consistency``.

    Notes
    -----
    SemiSAM-O1 (arXiv:2604.24109), its loss in rounds from scratch.
    """

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        assert isinstance(network, Averaged)
        certain = [on_host(one, "labelled").random() < 0.5 for one in generators]
        pairs = zip(certain, generators, strict=True)
        numbers = looked_at(network.network)
        drawn = [(labelled if sure else pseudo)(one, numbers) for sure, one in pairs]
        images, targets = (torch.cat(each) for each in zip(*drawn, strict=True))
        with runtime.autocast():
            logits = network.network(images, numbers).float()
            with torch.no_grad():
                average = network.average(images, numbers).float().sigmoid()
        probability, ramp = logits.sigmoid(), network.ramp
        total = consistency * ramp * F.mse_loss(probability, average)
        for number, sure in enumerate(certain):
            one = slice(number, number + 1)
            overlap = brain_and_structures(probability[one], targets[one])
            entropy = F.binary_cross_entropy_with_logits(logits[one], targets[one])
            own = (overlap + entropy) / (2 * len(certain))
            total = total + (own if sure else ramp * own)
        return total

    return loss
