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

Example = tuple[Tensor, Tensor]  # an image and its target, (1, 1, n, n, n) in [0, 1], both


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
    """Soft Dice of the brain plus mean squared error of slices (B, 2, n, n), background and brain.

    Notes
    -----
    SingleStrip, section 2.3.
    """
    return soft_dice(probability[:, 1:], onehot[:, 1:]) + F.mse_loss(probability, onehot)


def images_of(
    sources: Sequence[Source], size: int, synthesis: SynthesisConfig
) -> Callable[[Generator], Example]:
    """Make random images of labelled volumes, each equally often."""

    def draw(generator: Generator) -> Example:
        chosen = on_host(generator, "source").choice(sources)
        return training_batch(generator, [chosen], size, synthesis)

    return draw


def segmentation_loss(runtime: Runtime, draw: Callable[[Generator], Example]) -> Loss:
    """Soft Dice on random images, one a generator."""

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        images, targets = zip(*map(draw, generators), strict=True)
        with runtime.autocast():
            logits = network(torch.cat(images))
        return soft_dice(logits.float().sigmoid(), torch.cat(targets))

    return loss
