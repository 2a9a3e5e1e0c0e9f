"""From an image on the model's grid to a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..image.grid import Conformed
from ..image.masks import Mask, clean, dice
from ..machine.runtime import Runtime, mix_seed
from .networks import UNet
from .slabs import forward_in_slabs
from .synthesis import draw_remap, look_up

PAIR = 2  # images in a batch
AUGMENTED = 2  # copies of a scan whose mean is its mask (test-time augmentation)


@torch.inference_mode()
def predict(
    network: UNet, conformed: Conformed, runtime: Runtime, copies: int = 1
) -> NDArray[np.float32]:
    """Brain probability (X, Y, Z) on the model's grid: the mean over copies of the image.

    Test-time augmentation: every copy passes a mild random intensity remap, the same ones for all
    images and at every call, and every second one is mirrored. One copy is the image as it is.
    """
    if copies == 1:
        views = [torch.from_numpy(conformed.data).to(runtime.device)[None, None]]
    else:
        views = _remapped(conformed, runtime, copies, mild=1.0)
    total = np.zeros_like(conformed.data)
    for probability in _probabilities(network, views, conformed, runtime):
        total += probability
    return total / np.float32(copies)


@torch.inference_mode()
def predict_and_compare(
    network: UNet, conformed: Conformed, runtime: Runtime
) -> tuple[NDArray[np.float32], float, float]:
    """Brain probability, and how far its mask is that of the image in other contrasts, too.

    Two copies are remapped mildly, and two by the same tables to their full extent. The first
    number is the mean Dice of the mask with those of the mild copies, the second with the others.
    """
    copies = _remapped(conformed, runtime, AUGMENTED, mild=1.0)
    views = list(_probabilities(network, copies, conformed, runtime))
    probability = np.mean(views, axis=0)
    mask = mask_from(probability)
    mild = _agreement(mask, views)
    copies = _remapped(conformed, runtime, AUGMENTED, mild=0.0)
    return probability, mild, _agreement(mask, _probabilities(network, copies, conformed, runtime))


def _agreement(mask: Mask, views: Iterable[NDArray[np.float32]]) -> float:
    """Mean Dice of a mask with those of some probabilities, 0 for one that is empty."""
    others = map(mask_from, views)
    return float(np.mean([dice(mask, m) if mask.any() and m.any() else 0.0 for m in others]))


def _remapped(conformed: Conformed, runtime: Runtime, copies: int, mild: float) -> list[Tensor]:
    """Make copies (1, 1, X, Y, Z) in other contrasts, the same ones for all images and devices."""
    image, inside = (
        torch.from_numpy(array).to(runtime.device)[None, None]
        for array in (conformed.data, conformed.inside)
    )
    tables = draw_remap(torch.Generator().manual_seed(mix_seed(0)), copies, mild)
    return [look_up(image, table.to(image)) * inside for table in tables.split(1)]


def _probabilities(
    network: UNet, images: list[Tensor], conformed: Conformed, runtime: Runtime
) -> Iterator[NDArray[np.float32]]:
    """Brain probability of images (1, 1, X, Y, Z), each (X, Y, Z); every second is mirrored.

    As many as the memory allows go through the network at a time: small ones gain most by it.
    """
    runtime.take(network)
    bytes_of_one = 4 * images[0].numel() * network.config.features[0] // network.config.stem**3
    room = PAIR if runtime.slab is None else min(max(runtime.slab // bytes_of_one, 1), PAIR)
    for first in range(0, len(images), room):
        mirrored = [number % 2 == 1 for number in range(first, min(first + room, len(images)))]
        batch = torch.cat([_turn(images[first + i], flip) for i, flip in enumerate(mirrored)])
        with runtime.autocast():
            logits = _logits(network, batch, runtime.slab)
        for one, flip in zip(logits.float().sigmoid(), mirrored, strict=True):
            seen = _turn(one[None], flip)[0, 0].cpu().numpy()
            yield np.where(conformed.inside, seen, np.float32(0))


def _logits(network: UNet, batch: Tensor, slab: int | None) -> Tensor:
    return network(batch) if slab is None else forward_in_slabs(network, batch, slab)


def _turn(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(2) if mirrored else image


def mask_from(probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Threshold at one half, keep the largest component, fill its holes."""
    return clean(probability > 0.5)
