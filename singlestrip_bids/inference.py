"""From an image on the model's grid to a mask."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import volume
from .metrics import dice
from .networks import UNet
from .runtime import Runtime
from .synthesis import draw_remap, look_up
from .volume import Conformed, Image


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
    network.eval()
    image = torch.from_numpy(conformed.data).to(runtime.device)[None, None]
    inside = torch.from_numpy(conformed.inside).to(runtime.device)[None, None]
    tables = draw_remap(runtime.generator(0), copies, mild=1.0)
    total = torch.zeros_like(image)
    for copy in range(copies):
        painted = look_up(image, tables[copy : copy + 1]) * inside if copies > 1 else image
        total += _probability(network, painted, runtime, mirrored=copy % 2 == 1)
    return np.where(conformed.inside, (total[0, 0] / copies).cpu().numpy(), np.float32(0))


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
    network.eval()
    image = torch.from_numpy(conformed.data).to(runtime.device)[None, None]
    looks = [
        np.where(
            conformed.inside,
            _probability(network, image, runtime, mirrored)[0, 0].cpu().numpy(),
            np.float32(0),
        )
        for mirrored in (False, True)
    ]
    masks = [mask_from(probability) for probability in looks]
    agreement = dice(*masks) if all(mask.any() for mask in masks) else 0.0
    return np.float32(0.5) * (looks[0] + looks[1]), agreement


def _probability(network: UNet, image: Tensor, runtime: Runtime, mirrored: bool) -> Tensor:
    """Brain probability of an image (1, 1, X, Y, Z), seen as it is or in the mirror."""
    axes = (2,) if mirrored else ()
    with runtime.autocast():
        logits = network(image.flip(axes))
    return logits.float().sigmoid().flip(axes)


def conform_image(image: Image, voxel_size: float, size: int, multiple: int) -> Conformed:
    """Bring an image to the model's grid and its intensities to [0, 1]."""
    placed = volume.conform(image.data, image.affine, voxel_size, size, multiple)
    return volume.scale_intensity(placed)


def mask_from(probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Threshold at one half, keep the largest component, fill its holes."""
    return volume.clean(probability > 0.5)
