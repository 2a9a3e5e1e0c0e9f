"""The label itself speaks, too: registration propagates it, and it joins the network's mask.

It does so in voxels half as large as the model's, where these are not fine enough for its border.
A model keeps the labelled scans for that, unless it is asked not to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..image.grid import Conformed, halved
from ..image.masks import Mask, dice
from ..machine.files import save_tensors
from ..machine.runtime import Runtime, as_memory_allows
from .classes import Source, source
from .inference import mask_from
from .registration import halve, propagate, vote_of

LABEL_FILE = "label.safetensors"
AGREED = 0.9  # Dice of both masks; below, registration or network failed


def propagate_labels(
    sources: Sequence[Source], conformed: Conformed, runtime: Runtime
) -> tuple[Conformed, float]:
    """Propagate the labelled masks to a scan and average them: in [0, 1], as fine as they are.

    Returns also how well the labelled scans explain it, in [0, 1] (see `propagate`), on average.
    """

    def on(machine: Runtime) -> tuple[Tensor, float]:
        image, inside = (
            torch.from_numpy(array).to(machine.device, torch.float32)[None, None]
            for array in (conformed.data, conformed.inside)
        )
        found = [propagate(origin.to(machine.device), image, inside) for origin in sources]
        masks, explained = zip(*found, strict=True)
        return torch.stack(masks).mean(0).cpu(), sum(explained) / len(explained)

    propagated, explained = as_memory_allows(on, runtime.rungs())
    affine, inside = conformed.affine, conformed.inside
    if propagated.shape != inside.shape:
        affine, inside = halved(affine), doubled(inside)
    return Conformed(
        np.where(inside, propagated.numpy(), np.float32(0)), affine, inside
    ), explained


def doubled(mask: Mask) -> Mask:
    """Repeat every voxel of a mask (X, Y, Z) along each axis: (2X, 2Y, 2Z)."""
    return mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def coarsened(propagated: Conformed, scan: Conformed) -> NDArray[np.float32]:
    """Average a propagated mask over the voxels of a scan, if it is finer: (X, Y, Z)."""
    if propagated.data.shape == scan.data.shape:
        return propagated.data
    return torch.nn.functional.avg_pool3d(torch.from_numpy(propagated.data)[None], 2)[0].numpy()


def weight_of(explained: float) -> float:
    """Say how much the propagated label counts beside the network, 0 to 2/3.

    Network, stiff and free registration are three voices, equal where the labelled scan explains
    the other one best; where it does not, the network speaks alone.
    """
    vote = vote_of(explained)
    return 1 - 1 / (1 + vote * (1 + vote))


def join(found: Conformed, propagated: Conformed, explained: float) -> tuple[Conformed, float]:
    """Join the network's probability and the propagated label, both in [0, 1].

    What comes back is as fine as the label. Returns also the label's weight (see `weight_of`). It
    is 0, and the probability as it was, where the masks of network and label do not agree, because
    one of the two has failed.
    """
    probability, weight = found.data, weight_of(explained)
    agreement = dice(mask_from(probability), mask_from(coarsened(propagated, found)))
    if not weight or agreement < AGREED:
        return found, 0.0
    if propagated.data.shape != probability.shape:
        probability = halve(torch.from_numpy(probability)[None, None])[0, 0].numpy()
    joined = np.float32(1 - weight) * probability + np.float32(weight) * propagated.data
    return replace(propagated, data=joined), weight


def keep(folder: Path, sources: Sequence[Source]) -> None:
    """Write the labelled scans and their masks, as they are on the model's grid."""
    tensors = {}
    for number, one in enumerate(sources):
        for name, volume in (("image", one.image), ("mask", one.mask), ("fine", one.fine)):
            if volume is not None:
                tensors[f"{name}_{number}"] = volume[0, 0].half().contiguous()
    save_tensors(folder / LABEL_FILE, tensors, {})


def kept(tensors: Mapping[str, Tensor]) -> tuple[Source, ...]:
    """Make sources of what `keep` wrote; raises `LookupError` for other tensors."""
    numbers = range(sum(name.startswith("image") for name in tensors))
    return tuple(
        _source(*(tensors.get(f"{n}_{i}") for n in ("image", "mask", "fine"))) for i in numbers
    )


def _source(image: Tensor | None, mask: Tensor | None, fine: Tensor | None) -> Source:
    if image is None or mask is None:
        raise KeyError("a labelled scan without its image or its mask")
    found = source(torch.zeros_like(image, dtype=torch.float32), image.float(), mask.float())
    return found if fine is None else replace(found, fine=fine.float()[None, None])
