"""Training losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..config import SynthesisConfig
from ..machine.runtime import Runtime
from .classes import Source
from .synthesis import on_host, training_batch
from .training import Loss

Example = tuple[Tensor, Tensor]  # an image and its target, (1, 1 or more, n, n, n) in [0, 1]


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


def images_of(
    sources: Sequence[Source], size: int, synthesis: SynthesisConfig
) -> Callable[[Generator], Example]:
    """Make random images of labelled volumes, each equally often."""

    def draw(generator: Generator) -> Example:
        chosen = on_host(generator, "source").choice(sources)
        return training_batch(generator, [chosen], size, synthesis)

    return draw


def brain_and_structures(probability: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of the brain (B, 1 + K, ...), plus that of its K structures on average."""
    loss = soft_dice(probability[:, :1], target[:, :1])
    if target.shape[1] > 1:
        loss = loss + soft_dice(probability[:, 1:].flatten(0, 1), target[:, 1:].flatten(0, 1))
    return loss


def segmentation_loss(runtime: Runtime, draw: Callable[[Generator], Example]) -> Loss:
    """Soft Dice on random images, one a generator."""

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        images, targets = zip(*map(draw, generators), strict=True)
        with runtime.autocast():
            logits = network(torch.cat(images))
        return brain_and_structures(logits.float().sigmoid(), torch.cat(targets))

    return loss
