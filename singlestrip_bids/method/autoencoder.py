"""How good is a mask? The autoencoder learns brain shapes from the one label and reconstructs.

What it cannot reconstruct is not shaped like a brain: the volumetric Dice between a mask and its
slice-wise reconstruction is the quality score (SingleStrip, section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..config import AutoencoderConfig, TrainingConfig
from ..image.masks import Mask, dice
from ..image.structures import Numbers
from ..machine.runtime import Runtime
from .losses import reconstruction_loss
from .networks import Autoencoder
from .training import Loss

ROTATION_DEG, SCALES, SHIFT = 30.0, (0.7, 1.4), 0.1  # of slices in training


def _window(mask: NDArray, size: int) -> tuple[NDArray[np.int_], int, int]:
    """Planes with any of a mask, and the first corner of its slices after padding by ``size``."""
    planes = np.flatnonzero(mask.any(axis=(0, 1)))
    # the nearest pixel to the centre, ties upwards, so that the place of the mask does not matter
    x, y = ((2 * int(i.sum()) + i.size) // (2 * i.size) for i in np.nonzero(mask)[:2])
    return planes, x + size - size // 2, y + size - size // 2


def slices(mask: Mask | Numbers, size: int) -> Tensor:
    """Cut a mask (X, Y, Z) into axial slices (S, 1, n, n), one for each plane with any of it.

    So are the numbers of structures. The mask is not empty, and on the model's grid, so that scale
    and orientation are the label's. Slices are centred on its centre of mass, and padded or
    cropped to ``size``, n.
    """
    planes, low_x, low_y = _window(mask, size)
    padded = np.pad(mask[:, :, planes], [(size, size), (size, size), (0, 0)])
    window = padded[low_x : low_x + size, low_y : low_y + size]
    return torch.from_numpy(window.transpose(2, 0, 1).astype(np.float32))[:, None]


def onehot(brain: Tensor, classes: int = 2) -> Tensor:
    """Stack background and brain, or its structures: (B, 1, n, n) -> (B, classes, n, n)."""
    if classes > 2:
        return F.one_hot(brain[:, 0].long(), classes).movedim(-1, 1).float()
    hard = (brain > 0.5).float()
    return torch.cat([1 - hard, hard], dim=1)


def augment(brain: Tensor, generator: Generator, mode: str = "bilinear") -> Tensor:
    """Rotate, scale, shift and flip slices (B, 1, n, n) at random (SingleStrip, section 2.3).

    The numbers of structures are to be read in the ``mode`` nearest.
    """
    batch, device = len(brain), brain.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator, device=device)

    angle = uniform(-1, 1) * math.radians(ROTATION_DEG)
    zoom = 1 / uniform(*SCALES)
    flips = 1 - 2 * (torch.rand((batch, 2), generator=generator, device=device) < 0.5).float()
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [
        torch.stack([cos * flips[:, 0], -sin * flips[:, 1], uniform(-2, 2) * SHIFT], dim=1),
        torch.stack([sin * flips[:, 0], cos * flips[:, 1], uniform(-2, 2) * SHIFT], dim=1),
    ]
    where = F.affine_grid(torch.stack(rows, dim=1), list(brain.shape), align_corners=False)
    return F.grid_sample(brain, where, mode=mode, align_corners=False)


def loss_over(brain: Tensor, batch_size: int, classes: int = 2) -> Loss:
    """Make the loss of random augmented batches drawn from slices (S, 1, n, n)."""
    mode = "bilinear" if classes == 2 else "nearest"

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        (generator,) = generators  # of all slices: they are normalised together
        pick = torch.randint(
            0, len(brain), (batch_size,), generator=generator, device=brain.device
        )
        target = onehot(augment(brain[pick], generator, mode), classes)
        return reconstruction_loss(network(target), target)

    return loss


def schedule(brain: Tensor, config: AutoencoderConfig) -> TrainingConfig:
    """Training settings: as many steps as the epochs take over these slices, a batch in each."""
    return TrainingConfig(
        steps=config.epochs * math.ceil(len(brain) / config.batch_size),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )


@torch.inference_mode()
def _reconstruct(network: Autoencoder, brain: Tensor, runtime: Runtime) -> NDArray:
    """Reconstruct slices (S, 1, n, n); (S, n, n), dropout and batch statistics switched off."""
    runtime.take(network)
    parts = brain.to(runtime.device).split(max(128 // network.classes, 1))
    found = [network(onehot(part, network.classes)) for part in parts]
    if network.classes == 2:
        return torch.cat([one[:, 1] > 0.5 for one in found]).cpu().numpy()
    return torch.cat([one.argmax(1).to(torch.uint8) for one in found]).cpu().numpy()


def rebuild(network: Autoencoder, mask: NDArray, runtime: Runtime) -> NDArray:
    """Reconstruct a mask (X, Y, Z) on the model's grid by slices; an empty one stays empty.

    It is a mask, or the numbers of structures, as the network has learnt.
    """
    rebuilt = np.zeros_like(mask)
    if not mask.any():
        return rebuilt
    size = network.config.slice_size
    made = _reconstruct(network, slices(mask, size), runtime).transpose(1, 2, 0)
    planes, x, y = _window(mask, size)
    padded = np.pad(rebuilt[:, :, planes], [(size, size), (size, size), (0, 0)])
    padded[x : x + size, y : y + size] = made
    rebuilt[:, :, planes] = padded[size:-size, size:-size]
    return rebuilt


def shape_score(network: Autoencoder, mask: NDArray, runtime: Runtime) -> tuple[float, NDArray]:
    """Return the Dice of a mask and its reconstruction, 0 of an empty mask; and the latter.

    Of numbers of structures, the Dice is that of all together.
    """
    rebuilt = rebuild(network, mask, runtime)
    return (dice(mask, rebuilt) if mask.any() else 0.0), rebuilt
