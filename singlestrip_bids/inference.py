"""From an image on the model's grid to a mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import volume
from .masks import clean
from .metrics import dice
from .networks import UNet
from .runtime import Runtime
from .synthesis import draw_remap, look_up
from .volume import Conformed, Image

PAIR = 2  # images in a batch


@torch.inference_mode()
def predict(
    network: UNet, conformed: Conformed, runtime: Runtime, copies: int = 1
) -> NDArray[np.float32]:
    """Brain probability on the model's grid: the mean over copies of the image.

    Every copy is repainted by a mild random look-up table, and every second one is mirrored.

    Parameters
    ----------
    network : UNet
        On the device of ``runtime``.
    conformed : Conformed
        (X, Y, Z) intensities in [0, 1].
    copies : int
        How many; of one copy the image is taken as it is.

    Returns
    -------
    ndarray
        (X, Y, Z) in [0, 1]; zero outside the field of view. The same at every call.
    """
    image = torch.from_numpy(conformed.data).to(runtime.device)[None, None]
    inside = torch.from_numpy(conformed.inside).to(runtime.device)[None, None]
    tables = draw_remap(runtime.generator(0), copies, mild=1.0)
    looks = [image]
    if copies > 1:
        looks = [look_up(image, table) * inside for table in tables.split(1)]
    total = torch.zeros_like(image[0])
    for probability in _probabilities(network, looks, runtime):
        total += probability
    return np.where(conformed.inside, (total[0] / copies).cpu().numpy(), np.float32(0))


@torch.inference_mode()
def look_twice(
    network: UNet, conformed: Conformed, runtime: Runtime
) -> tuple[NDArray[np.float32], float]:
    """Brain probability, the mean of the image's and its mirror image's, and their agreement.

    Returns
    -------
    tuple
        (X, Y, Z) in [0, 1], zero outside the field of view; and the Dice of the two masks,
        0 where one is empty.
    """
    image = torch.from_numpy(conformed.data).to(runtime.device)[None, None]
    looks = [
        np.where(conformed.inside, probability[0].cpu().numpy(), np.float32(0))
        for probability in _probabilities(network, [image, image], runtime)
    ]
    masks = [mask_from(probability) for probability in looks]
    agreement = dice(*masks) if all(mask.any() for mask in masks) else 0.0
    return np.float32(0.5) * (looks[0] + looks[1]), agreement


def _probabilities(network: UNet, images: list[Tensor], runtime: Runtime) -> Iterator[Tensor]:
    """Brain probability of images (1, 1, X, Y, Z), each (1, X, Y, Z); every second is mirrored.

    As many as the memory allows go through the network at a time: small ones gain most by it.
    """
    runtime.take(network)
    bytes_of_one = 4 * images[0].numel() * network.config.features[0] // network.config.stem**3
    room = PAIR if runtime.slab is None else min(max(runtime.slab // bytes_of_one, 1), PAIR)
    for first in range(0, len(images), room):
        mirrored = [number % 2 == 1 for number in range(first, min(first + room, len(images)))]
        batch = torch.cat([_turn(images[first + i], flip) for i, flip in enumerate(mirrored)])
        with runtime.autocast():
            logits = network(batch, runtime.slab)
        for one, flip in zip(logits.float().sigmoid(), mirrored, strict=True):
            yield _turn(one[None], flip)[0]


def _turn(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(2) if mirrored else image


def conform_image(image: Image, voxel_size: float, size: int, multiple: int) -> Conformed:
    """Bring an image to the model's grid and its intensities to [0, 1]."""
    placed = volume.conform(image.data, image.affine, voxel_size, size, multiple)
    return volume.scale_intensity(placed)


def mask_from(probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Threshold at one half, keep the largest component, fill its holes."""
    return clean(probability > 0.5)
