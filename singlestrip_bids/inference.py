"""From an image on the model's grid to a mask."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from . import volume
from .networks import UNet
from .runtime import Runtime
from .volume import Conformed, Image


@torch.inference_mode()
def predict(network: UNet, conformed: Conformed, runtime: Runtime) -> NDArray[np.float32]:
    """Brain probability on the model's grid, the mean over the image and its mirror image.

    Parameters
    ----------
    network : UNet
        On the device of ``runtime``.
    conformed : Conformed
        (X, Y, Z) intensities in [0, 1].

    Returns
    -------
    ndarray
        (X, Y, Z) in [0, 1]; zero outside the field of view.
    """
    network.eval()
    image = torch.from_numpy(conformed.data).to(runtime.device)[None, None]
    total = torch.zeros_like(image)
    with runtime.autocast():
        for dims in ((), (2,)):
            total += network(image.flip(dims)).float().sigmoid().flip(dims)
    return np.where(conformed.inside, (total[0, 0] / 2).cpu().numpy(), np.float32(0))


def conform_image(image: Image, voxel_size: float, size: int, multiple: int) -> Conformed:
    """Bring an image to the model's grid and its intensities to [0, 1]."""
    placed = volume.conform(image.data, image.affine, voxel_size, size, multiple)
    return volume.scale_intensity(placed)


def mask_from(probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Threshold at one half, keep the largest component, fill its holes."""
    return volume.clean(probability > 0.5)
