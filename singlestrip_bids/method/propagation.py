"""The label itself speaks, too: registration propagates it, and it joins the network's mask.

It does so in voxels half as large as the model's, where these are not fine enough for its border.
A model keeps the labelled scans for that, unless it is asked not to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..image.grid import Conformed, halved
from ..image.masks import Mask, dice
from ..image.structures import Shares, doubled
from ..machine.files import save_tensors
from ..machine.runtime import Runtime, as_memory_allows
from .classes import Source, source
from .inference import mask_from
from .pose import find_start
from .registration import propagate, vote_of
from .synthesis import halve

LABEL_FILE = "label.safetensors"
KEPT = ("image", "mask", "fine", "parts")  # of a source
AGREED = 0.9  # Dice of both masks; below, registration or network failed


@dataclass(frozen=True)
class Opinion:
    """What the labelled scans say of another, by registration."""

    mask: Conformed  # the mean of their masks, in [0, 1], as fine as these are
    explained: float  # how well they explain it, in [0, 1] (see `propagate`), on average
    shares: Shares | None = None  # of structures: the mean of theirs, as fine as these are


def propagate_labels(
    sources: Sequence[Source], conformed: Conformed, runtime: Runtime, seen: Mask | None = None
) -> Opinion:
    """Propagate the labelled masks to a scan, and the structures, if they have any.

    Where its head may lie as it likes, it is sought around the brain that is ``seen``, if any is.
    """
    seen = seen if seen is not None and seen.any() else conformed.inside

    def on(machine: Runtime) -> tuple[Tensor, float, Tensor | None]:
        image, inside = (
            torch.from_numpy(array).to(machine.device, torch.float32)[None, None]
            for array in (conformed.data, conformed.inside)
        )
        found = []
        for origin in (one.to(machine.device) for one in sources):
            start = None
            if origin.turned:
                where = torch.from_numpy(seen).to(machine.device)
                start = find_start(origin, torch.cat([image, inside], 1), where)
            found.append(propagate(origin, image, inside, start))
        masks = torch.stack([one.mask for one in found])
        explained = sum(one.explained for one in found) / len(found)
        shares = [one.shares.cpu() for one in found if one.shares is not None]
        return masks.mean(0).cpu(), explained, _mean(shares) if shares else None

    propagated, explained, shares = as_memory_allows(on, runtime.rungs())
    affine, inside = conformed.affine, conformed.inside
    if propagated.shape != inside.shape:
        affine, inside = halved(affine), doubled(inside)
    mask = Conformed(np.where(inside, propagated.numpy(), np.float32(0)), affine, inside)
    return Opinion(mask, explained, None if shares is None else shares.numpy())


def _mean(shares: Sequence[Tensor]) -> Tensor:
    """Average shares structure by structure, so that little memory is taken."""
    if len(shares) == 1:
        return shares[0]
    means = [torch.stack(one).float().mean(0).round() for one in zip(*shares, strict=True)]
    return torch.stack([mean.to(torch.uint8) for mean in means])


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


def finer(found: Conformed, shape: tuple[int, ...]) -> Conformed:
    """Interpolate a probability in voxels half as large, unless it has that shape already."""
    if found.data.shape == shape:
        return found
    data = halve(torch.from_numpy(found.data)[None, None])[0, 0].numpy()
    return Conformed(data, halved(found.affine), doubled(found.inside))


def join(found: Conformed, said: Opinion) -> tuple[Conformed, float]:
    """Join the network's probability and the propagated label, both in [0, 1].

    What comes back is as fine as the label. Returns also the label's weight (see `weight_of`). It
    is 0, and the probability as it was, where the masks of network and label do not agree, because
    one of the two has failed.
    """
    probability, weight = found.data, weight_of(said.explained)
    agreement = dice(mask_from(probability), mask_from(coarsened(said.mask, found)))
    if not weight or agreement < AGREED:
        return found, 0.0
    probability = finer(found, said.mask.data.shape).data
    joined = np.float32(1 - weight) * probability + np.float32(weight) * said.mask.data
    return replace(said.mask, data=joined), weight


def join_shares(network: Shares, label: Shares, explained: float) -> Shares:
    """Join what network and propagated label say of structures; it is as fine as the label.

    The label counts from nothing to all, by how well the labelled scans explain the other one:
    its structures are finer than the network's voxels.
    """
    joined, weight = np.empty_like(label), vote_of(explained)
    for number, share in enumerate(network):
        values = torch.from_numpy(share)[None, None].float()
        values = values if share.shape == label.shape[1:] else halve(values)
        mean = (1 - weight) * values[0, 0].numpy() + weight * label[number]
        joined[number] = np.rint(mean)
    return joined


def hear(
    found: Conformed, shares: Shares | None, said: Opinion
) -> tuple[Conformed, Shares | None, float]:
    """Join brain and structures, as `join` and `join_shares`; these where the brains agree."""
    joined, weight = join(found, said)
    if shares is not None and said.shares is not None and weight:
        shares = join_shares(shares, said.shares, said.explained)
    return joined, shares, weight


def finer_shares(shares: Shares, shape: tuple[int, ...]) -> Shares:
    """Interpolate shares in voxels half as large, unless they have that shape already."""
    if shares.shape[1:] == shape:
        return shares
    fine = np.empty((len(shares), *shape), shares.dtype)
    for number, share in enumerate(shares):  # one by one: it takes memory
        fine[number] = np.rint(halve(torch.from_numpy(share)[None, None].float())[0, 0].numpy())
    return fine


def keep(folder: Path, sources: Sequence[Source]) -> None:
    """Write the labelled scans and their masks, as they are on the model's grid."""
    tensors = {}
    for number, one in enumerate(sources):
        for name in KEPT:
            volume = getattr(one, name)
            if volume is not None:
                tensors[f"{name}_{number}"] = volume[0, 0].half().contiguous()
    save_tensors(folder / LABEL_FILE, tensors, {})


def kept(
    tensors: Mapping[str, Tensor], structures: int = 0, turned: bool = False
) -> tuple[Source, ...]:
    """Make sources of what `keep` wrote; raises `LookupError` for other tensors."""
    numbers = range(sum(name.startswith("image") for name in tensors))
    found = (
        _source({name: tensors.get(f"{name}_{i}") for name in KEPT}, structures) for i in numbers
    )
    return tuple(replace(one, turned=turned) for one in found)


def _source(tensors: Mapping[str, Tensor | None], structures: int) -> Source:
    image, mask, *more = (t if t is None else t.float() for t in map(tensors.get, KEPT))
    if image is None or mask is None or (tensors["parts"] is None) != (structures == 0):
        raise KeyError("a labelled scan without its image, its mask or its structures")
    found = source(torch.zeros_like(image), image, mask)
    fine, parts = (t if t is None else t[None, None] for t in more)
    return replace(found, fine=fine, parts=parts, structures=structures)
