"""Other autoencoders than the published one, trained on the same one mask, for `benchmarks.qc`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Generator, Tensor, nn

from singlestrip_bids import quality
from singlestrip_bids.config import QualityConfig, TrainingConfig
from singlestrip_bids.losses import reconstruction
from singlestrip_bids.metrics import dice
from singlestrip_bids.networks import Autoencoder
from singlestrip_bids.quality import ROTATION_DEG, SCALES, SHIFT
from singlestrip_bids.runtime import Runtime
from singlestrip_bids.training import Loss, fit
from singlestrip_bids.volume import Mask

Judge = Callable[[Mask], float]

EDGE, LATENT, BATCH, STEPS = 64, 32, 4, 400  # of the 3D autoencoder
WIDTHS = (16, 32, 64)


def three_planes(brain: Mask, config: QualityConfig, machine: Runtime) -> Judge:
    """Train one 2D autoencoder on axial, coronal and sagittal slices; judge by their mean Dice.

    Parameters
    ----------
    brain : ndarray of bool
        (X, Y, Z), the labelled mask on the model's grid.
    """
    torch.manual_seed(0)
    network = Autoencoder(config.latent, config.slice_size).to(machine.device)
    cuts = torch.cat([quality.slices(turned, config.slice_size) for turned in _turns(brain)])
    loss = quality.loss_over(cuts.to(machine.device), config.batch_size)
    # as many steps as one plane has: the question is what to look at, not how long
    steps = quality.schedule(quality.slices(brain, config.slice_size), config)
    _train(network, loss, steps, machine, "three planes")

    def judge(mask: Mask) -> float:
        if not mask.any():
            return 0.0
        return float(
            np.mean([quality.score(network, turned, config, machine) for turned in _turns(mask)])
        )

    return judge


def _turns(mask: Mask) -> list[Mask]:
    return [mask, mask.transpose(0, 2, 1), mask.transpose(1, 2, 0)]


class Volumetric(nn.Sequential):
    """3D convolutional autoencoder of one-hot masks (B, 2, n, n, n); bottleneck (n / 16)³."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip((2, *WIDTHS), (*WIDTHS, LATENT), strict=True):
            layers += [nn.Conv3d(inputs, outputs, 4, 2, 1), *_regularised(outputs)]
        for inputs, outputs in zip((LATENT, *WIDTHS[::-1]), (*WIDTHS[::-1], 2), strict=True):
            layers += [nn.ConvTranspose3d(inputs, outputs, 4, 2, 1)]
            layers += _regularised(outputs) if outputs != 2 else [nn.Softmax(dim=1)]
        super().__init__(*layers)


def _regularised(width: int) -> list[nn.Module]:
    return [nn.BatchNorm3d(width), nn.LeakyReLU(0.2)]


def volumetric(brain: Mask, config: QualityConfig, machine: Runtime) -> Judge:
    """Train a 3D autoencoder on turned, scaled, shifted and flipped copies of one mask."""
    torch.manual_seed(0)
    network = Volumetric().to(machine.device)
    whole = _cube(brain, machine)

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        generator = generators[0]
        copies = torch.cat([_moved(whole, generator) for _ in range(BATCH)])
        target = quality.onehot(copies)
        return reconstruction(network(target), target)

    settings = TrainingConfig(STEPS, BATCH, learning_rate=config.learning_rate, cosine=True)
    _train(network, loss, settings, machine, "3D")

    @torch.inference_mode()
    def judge(mask: Mask) -> float:
        if not mask.any():
            return 0.0
        cube = _cube(mask, machine)
        again = network(quality.onehot(cube))[:, 1:] > 0.5
        return dice(again.cpu().numpy(), (cube > 0.5).cpu().numpy())

    return judge


def _cube(mask: Mask, machine: Runtime) -> Tensor:
    """Bring the mask's centre to the middle of a cube (1, 1, n, n, n) of the 2D slices' scale."""
    centre = np.rint(ndimage.center_of_mass(mask)).astype(int)
    padded = np.pad(mask, EDGE)
    window = tuple(slice(c + EDGE // 2, c + EDGE // 2 + EDGE) for c in centre)
    cube: NDArray[np.float32] = padded[window].astype(np.float32)
    return torch.from_numpy(cube).to(machine.device)[None, None]


def _moved(cube: Tensor, generator: Generator) -> Tensor:
    draw = (torch.rand(10, generator=generator, device=cube.device) * 2 - 1).cpu().numpy()
    turn = Rotation.from_euler("xyz", draw[:3] * math.radians(ROTATION_DEG)).as_matrix()
    low, high = SCALES
    zoom = low + (high - low) * (draw[3] + 1) / 2
    matrix = turn @ np.diag(np.sign(draw[4:7])) / zoom
    theta = np.column_stack([matrix, 2 * SHIFT * draw[7:]])
    where = F.affine_grid(
        torch.as_tensor(theta, dtype=torch.float32, device=cube.device)[None],
        list(cube.shape),
        align_corners=False,
    )
    return F.grid_sample(cube, where, align_corners=False)


def _train(
    network: nn.Module, loss: Loss, settings: TrainingConfig, machine: Runtime, name: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fit(network, loss, settings, machine, Path(folder) / "checkpoint", name, 0, name)
