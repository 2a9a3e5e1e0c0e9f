"""From an image on the model's grid to a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..image.grid import Conformed
from ..image.masks import Mask, clean, dice
from ..image.structures import STEPS, Numbers, Shares, most, overlaps
from ..machine.runtime import Runtime, mix_seed
from .networks import UNet, unfold
from .slabs import forward_in_slabs
from .synthesis import draw_remap, look_up

PAIR = 2  # images in a batch
AUGMENTED = 2  # copies of a scan whose mean is its mask (test-time augmentation)


@dataclass(frozen=True)
class View:
    """What the network makes of an image."""

    brain: NDArray[np.float32]  # (X, Y, Z), probability
    shares: Shares | None = None  # (K, X, Y, Z) of its structures, if it tells any

    @property
    def mask(self) -> Mask:
        """The brain."""
        return mask_from(self.brain)

    def numbers(self, mask: Mask) -> Numbers | None:
        """Tell the structures within a mask."""
        return None if self.shares is None else most(self.shares, mask)


@dataclass(frozen=True)
class Comparison:
    """An image's mask, and how far it is that of the image in other contrasts, too."""

    view: View
    mask: Mask
    mild: float  # mean Dice of the mask with those of mildly remapped copies
    strong: float  # the same with those of strongly remapped ones
    by_structure: NDArray[np.float64] | None = None  # (2, K), both by structure


def predict(
    network: UNet, conformed: Conformed, runtime: Runtime, copies: int = 1
) -> NDArray[np.float32]:
    """Brain probability (X, Y, Z) on the model's grid, as of `view`."""
    return view(network, conformed, runtime, copies).brain


@torch.inference_mode()
def view(network: UNet, conformed: Conformed, runtime: Runtime, copies: int = 1) -> View:
    """Brain and structures on the model's grid: the mean over copies of the image.

    Test-time augmentation: every copy passes a mild random intensity remap, the same ones for all
    images and at every call, and every second one is mirrored. One copy is the image as it is.
    """
    if copies == 1:
        images = [torch.from_numpy(conformed.data).to(runtime.device)[None, None]]
    else:
        images = _remapped(conformed, runtime, copies, mild=1.0)
    return _mean(list(_views(network, images, conformed, runtime)))


@torch.inference_mode()
def compare(network: UNet, conformed: Conformed, runtime: Runtime) -> Comparison:
    """Mask an image, and its copies in other contrasts.

    Two copies are remapped mildly, whose mean is the mask, and two by the same tables to their
    full extent.
    """
    copies = _remapped(conformed, runtime, AUGMENTED, mild=1.0)
    views = list(_views(network, copies, conformed, runtime))
    mean = View(np.mean([one.brain for one in views], axis=0), _mean(views).shares)
    mask = mean.mask
    numbers = mean.numbers(mask)
    mild, parts = _agreement(mask, numbers, views)
    copies = _remapped(conformed, runtime, AUGMENTED, mild=0.0)
    strong, others = _agreement(mask, numbers, _views(network, copies, conformed, runtime))
    both = None if numbers is None else np.stack([parts, others])
    return Comparison(mean, mask, mild, strong, both)


def _mean(views: Sequence[View]) -> View:
    total, count = np.zeros_like(views[0].brain), len(views)
    for one in views:
        total += one.brain
    shares = [one.shares for one in views if one.shares is not None]
    if not shares:
        return View(total / np.float32(count))
    mean = np.empty_like(shares[0])
    for number, structure in enumerate(zip(*shares, strict=True)):  # one by one: it takes memory
        mean[number] = (np.sum(structure, axis=0, dtype=np.uint16) + count // 2) // count
    return View(total / np.float32(count), mean)


def _agreement(
    mask: Mask, numbers: Numbers | None, views: Iterable[View]
) -> tuple[float, NDArray[np.float64]]:
    """Mean Dice of a mask with those of some views, 0 for one that is empty; by structure, too."""
    found, parts = list[float](), list[NDArray[np.float64]]()
    for one in views:
        other = one.mask
        found.append(dice(mask, other) if mask.any() and other.any() else 0.0)
        if numbers is not None and one.shares is not None:
            overlap = overlaps(most(one.shares, other), numbers, len(one.shares))
            parts.append(np.nan_to_num(overlap))
    return float(np.mean(found)), np.mean(parts, axis=0) if parts else np.empty(0)


def _remapped(conformed: Conformed, runtime: Runtime, copies: int, mild: float) -> list[Tensor]:
    """Make copies (1, 1, X, Y, Z) in other contrasts, the same ones for all images and devices."""
    image, inside = (
        torch.from_numpy(array).to(runtime.device)[None, None]
        for array in (conformed.data, conformed.inside)
    )
    tables = draw_remap(torch.Generator().manual_seed(mix_seed(0)), copies, mild)
    return [look_up(image, table.to(image)) * inside for table in tables.split(1)]


def _views(
    network: UNet, images: list[Tensor], conformed: Conformed, runtime: Runtime
) -> Iterator[View]:
    """View images (1, 1, X, Y, Z), one by one; every second is mirrored, if left is as right.

    As many as the memory allows go through the network at a time: small ones gain most by it.
    """
    runtime.take(network)
    bytes_of_one = 4 * images[0].numel() * network.config.features[0] // network.config.stem**3
    pair = 1 if network.parts else PAIR  # structures take much memory
    room = pair if runtime.slab is None else min(max(runtime.slab // bytes_of_one, 1), pair)
    for first in range(0, len(images), room):
        numbers = range(first, min(first + room, len(images)))
        mirrored = [number % 2 == 1 and not network.parts for number in numbers]
        batch = torch.cat([_turn(images[first + i], flip) for i, flip in enumerate(mirrored)])
        with runtime.autocast():
            heads = _heads(network, batch, runtime.slab)
            brains = _probabilities(next(heads), mirrored, conformed)
            parts = [_in_steps(_probabilities(head, mirrored, conformed)) for head in heads]
        for number, brain in enumerate(brains):
            yield View(brain, np.stack([one[number] for one in parts]) if parts else None)


def _heads(network: UNet, batch: Tensor, slab: int | None) -> Iterator[Tensor]:
    """Logits of the brain, then of each structure, one by one: all at once take much memory."""
    if slab is not None:
        yield from forward_in_slabs(network, batch, slab)
    elif not network.parts:
        yield network(batch)
    else:
        x = network.trunk(batch)
        for head in network.heads:
            yield unfold(head(x), network.config.stem)


def _probabilities(
    logits: Tensor, mirrored: Sequence[bool], conformed: Conformed
) -> list[NDArray[np.float32]]:
    """Turn logits (B, 1, X, Y, Z) to probabilities, each (X, Y, Z), turned back where mirrored."""
    both = zip(logits.float().sigmoid(), mirrored, strict=True)
    seen = [_turn(one[None], flip)[0, 0].cpu().numpy() for one, flip in both]
    return [np.where(conformed.inside, one, np.float32(0)) for one in seen]


def _in_steps(probabilities: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    return [np.rint(STEPS * one).astype(np.uint8) for one in probabilities]


def _turn(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(2) if mirrored else image


def mask_from(probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Threshold at one half, keep the largest component, fill its holes."""
    return clean(probability > 0.5)
