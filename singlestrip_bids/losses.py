"""Training losses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_dice(probability: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice of each item, averaged over the batch.

    Parameters
    ----------
    probability, target : Tensor
        (B, 1, ...) in [0, 1]; fractions are fine in both.

    Notes
    -----
    Milletari et al. (2016), V-Net, with squared denominators, so that a fractional target is
    best met by the same fraction.
    """
    dims = tuple(range(1, probability.ndim))
    overlap = 2 * (probability * target).sum(dims)
    total = (probability**2).sum(dims) + (target**2).sum(dims)
    return (1 - (overlap + 1e-5) / (total + 1e-5)).mean()


def reconstruction(probability: Tensor, onehot: Tensor) -> Tensor:
    """Loss of the autoencoder: soft Dice of the brain channel plus the mean squared error.

    Parameters
    ----------
    probability, onehot : Tensor
        (B, 2, n, n): background and brain (SingleStrip, section 2.3).
    """
    return soft_dice(probability[:, 1:], onehot[:, 1:]) + F.mse_loss(probability, onehot)
