"""Pseudo-labels that the network is unsure of are corrected by those of similar heads.

Every unlabelled scan is masked by the network once, and described by a frozen encoder. Then either
the *regions* that it is unsure of are corrected, voxel by voxel, by the most similar voxels that
are sure, of all scans; or whole *volumes*, those of which it is most unsure, by a vote of the most
similar scans, which are not registered. Both are readings of SemiSAM-O1 (arXiv:2604.24109): the
first is that of its abstract, the second that of its code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..bids.scans import Scan
from ..errors import BadData
from ..image.grid import Conformed
from ..image.structures import (
    STEPS,
    Numbers,
    Shares,
    coarsened_numbers,
    pack_numbers,
    unpack_numbers,
)
from ..machine import files
from ..machine.progress import Progress
from ..machine.runtime import Runtime, as_memory_allows, check_stop, mix_seed
from .classes import Source
from .encoders import Encoder
from .inference import View
from .synthesis import sample
from .trainer import Trainer

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors

Viewer = Callable[[Conformed], View]
Correct = Callable[[Conformed, View], View]

NEIGHBOURS = 5  # that vote
SURE = 0.9  # probability of brain, or of none, from which a voxel is
MOST = 50_000  # voxels that can be a neighbour, of all scans together, whatever their number
AROUND = 4  # voxels around a mask from which those outside are drawn
UNSURE = 0.1  # share of the scans whose masks are put to a vote


@dataclass(frozen=True)
class Look:
    """What one scan can tell others: some voxels of it, and the whole."""

    vectors: Tensor  # (N, C) float16, features of voxels that are sure
    classes: Tensor  # (N,) uint8, what they are: 0 is no brain
    whole: Tensor  # (C,) mean feature, of unit length
    entropy: float  # of its voxels, in the mean
    numbers: bytes  # compressed, what every voxel is
    shape: tuple[int, ...]

    def every(self) -> Numbers:
        """Return what every voxel is, (X, Y, Z)."""
        return unpack_numbers(self.numbers, self.shape)


def corrector(
    trainer: Trainer,
    pool: Sequence[Scan],
    sources: Sequence[Source],
    view: Viewer,
    name: str,
    key: str,
) -> Correct:
    """Look at all scans and return the function that corrects a view of one of them.

    ``view`` is the network's. What was seen is kept on disk, in a folder of the round's ``name``,
    as masks are by `rank`; of several processes each looks at its share.
    """
    assert trainer.encoder is not None
    key = files.fingerprint(key, trainer.encoder.key)
    quota = max(MOST // (len(pool) + len(sources)), NEIGHBOURS)
    paths = [trainer.kept(scan, f"{name}-looks") for scan in pool]
    pairs = list(zip(pool, paths, strict=True))
    with trainer.runtime.share(pairs) as own, Progress(f"{name}: features", len(own)) as progress:
        for scan, path in own:
            check_stop()
            _look_at(trainer, trainer.encoder, scan, path, view, quota, key)
            progress.step(scan.name)
    trainer.runtime.gather(None)  # all looks are on disk
    looks = [_label(one, trainer.encoder, quota, trainer.runtime) for one in sources]
    looks += [look for path in paths if (look := _read(path)) is not None]
    count = len(trainer.structures)
    if trainer.method.refinement == "volumes":
        return Volumes.among(looks, trainer.encoder, trainer.runtime, count)
    return Regions.among(looks, trainer.encoder, trainer.runtime, count)


def _look_at(
    trainer: Trainer,
    encoder: Encoder,
    scan: Scan,
    path: Path,
    view: Viewer,
    quota: int,
    key: str,
) -> None:
    """Look at one scan, unless that was done before; a bad one is left to the ranking."""
    key = files.fingerprint(key, files.sha256(scan.path))
    if path.is_file():
        try:
            if files.load_tensors(path)[1].get("fingerprint") == key:
                return
        except BadData:
            pass  # it is made again
    try:
        conformed = trainer.conform(scan)
        seen = view(conformed)
        look = _look(conformed, seen, encoder, quota, trainer.runtime)
    except Exception as error:  # one bad scan never stops the others
        trainer.note(scan, error)
        path.unlink(missing_ok=True)
        return
    card = {"fingerprint": key, "entropy": look.entropy, "shape": look.shape}
    tensors = {"vectors": look.vectors, "classes": look.classes, "whole": look.whole}
    files.save_tensors(path, {**tensors, "numbers": files.bytes_tensor(look.numbers)}, card)


def _read(path: Path) -> Look | None:
    if not path.is_file():
        return None
    tensors, card = files.load_tensors(path)
    return Look(
        tensors["vectors"],
        tensors["classes"],
        tensors["whole"],
        float(card["entropy"]),
        tensors["numbers"].numpy().tobytes(),
        tuple(card["shape"]),
    )


def _look(
    conformed: Conformed, seen: View, encoder: Encoder, quota: int, runtime: Runtime
) -> Look:
    """Take what others can learn from a scan and its view."""
    mask = seen.mask
    found = seen.numbers(mask)
    numbers = mask.astype(np.uint8) if found is None else coarsened_numbers(found, mask.shape)
    features = _features(conformed, encoder, runtime)
    near = ndimage.binary_dilation(mask, iterations=AROUND) & conformed.inside
    sure = np.where(mask, seen.brain > SURE, near & (seen.brain < 1 - SURE))
    vectors, classes = _samples(features, numbers, sure, quota)
    p = seen.brain[conformed.inside].clip(1e-6, 1 - 1e-6)
    entropy = float(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())
    packed = pack_numbers(numbers)
    return Look(vectors, classes, _whole(features), entropy, packed, numbers.shape)


def _label(origin: Source, encoder: Encoder, quota: int, runtime: Runtime) -> Look:
    """Take the same from a labelled scan, of which all is sure."""
    data, classes, brain = (
        volume[0, 0].cpu().numpy() for volume in (origin.image, origin.classes, origin.mask)
    )
    conformed = Conformed(data, np.eye(4), classes > 0)
    seen = View(brain)
    if origin.parts is not None:
        numbers = origin.parts[0, 0].to(torch.uint8).cpu().numpy()
        shares = [STEPS * (numbers == n).astype(np.uint8) for n in range(1, origin.structures + 1)]
        seen = View(brain, np.stack(shares))
    return replace(_look(conformed, seen, encoder, quota, runtime), entropy=0.0)


@torch.inference_mode()
def _features(conformed: Conformed, encoder: Encoder, runtime: Runtime) -> Tensor:
    """Describe a scan, (1, C, x, y, z) on the host."""

    def on(machine: Runtime) -> Tensor:
        image = torch.from_numpy(conformed.data).to(machine.device)[None, None]
        found: Tensor = machine.take(encoder.network)(image)
        return found.cpu()

    return as_memory_allows(on, runtime.rungs())


def _whole(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.mean(dim=(2, 3, 4)), dim=1)[0]


def _at(features: Tensor, voxels: NDArray[np.int64], shape: Sequence[int]) -> Tensor:
    """Read features at voxels (N, 3) of a grid of some shape: (N, C), of unit length."""
    ratio = torch.tensor(features.shape[2:]) / torch.tensor(shape)
    points = (torch.from_numpy(voxels) + 0.5) * ratio - 0.5
    grid = points.T[None, :, :, None, None].float()
    read = sample(features, grid, "border")[0, :, :, 0, 0].T
    return torch.nn.functional.normalize(read, dim=1)


def _samples(
    features: Tensor, numbers: Numbers, sure: NDArray[np.bool_], quota: int
) -> tuple[Tensor, Tensor]:
    """Draw voxels that are sure, as many of each class, and their features."""
    kinds = np.unique(numbers[sure])
    drawn = list[NDArray[np.int64]]()
    random = np.random.default_rng(mix_seed(quota))
    for kind in kinds:
        voxels = np.argwhere(sure & (numbers == kind))
        count = min(len(voxels), max(quota // len(kinds), 1))
        drawn.append(voxels[random.choice(len(voxels), count, replace=False)])
    voxels = np.concatenate(drawn) if drawn else np.empty((0, 3), np.int64)
    classes = torch.from_numpy(numbers[tuple(voxels.T)])
    return _at(features, voxels, numbers.shape).half(), classes


@dataclass(frozen=True)
class Regions:
    """Corrects the voxels of which the network is unsure."""

    encoder: Encoder
    runtime: Runtime
    index: NearestNeighbors
    classes: NDArray[np.uint8]
    structures: int

    @classmethod
    def among(
        cls, looks: Sequence[Look], encoder: Encoder, runtime: Runtime, structures: int
    ) -> Regions:
        """Make the index of all voxels that are sure."""
        from sklearn.neighbors import NearestNeighbors  # slow to import, and masking needs none

        vectors = torch.cat([look.vectors for look in looks]).float().numpy()
        classes = torch.cat([look.classes for look in looks]).numpy()
        index = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(vectors)
        return cls(encoder, runtime, index, classes, structures)

    def __call__(self, conformed: Conformed, seen: View) -> View:
        """Return the view with other probabilities where it is unsure."""
        unsure = (seen.brain > 1 - SURE) & (seen.brain < SURE)
        if not unsure.any():
            return seen
        features = _features(conformed, self.encoder, self.runtime)
        wanted = _at(features, np.argwhere(unsure), seen.brain.shape).numpy()
        distance, nearest = self.index.kneighbors(wanted)
        votes = _votes(self.classes[nearest], 1 - distance**2 / 2, self.structures)
        brain = seen.brain.copy()
        brain[unsure] = votes[1:].sum(0)
        return View(brain, _put(seen.shares, unsure, votes[1:]))


@dataclass(frozen=True)
class Volumes:
    """Puts the masks of which the network is most unsure to a vote."""

    encoder: Encoder
    runtime: Runtime
    limit: float  # entropy from which a mask is unsure
    sure: Sequence[Look]
    structures: int

    @classmethod
    def among(
        cls, looks: Sequence[Look], encoder: Encoder, runtime: Runtime, structures: int
    ) -> Volumes:
        """Find which are sure."""
        limit = sorted(look.entropy for look in looks)[-max(round(UNSURE * len(looks)), 1)]
        sure = [look for look in looks if look.entropy < limit] or list(looks)
        return cls(encoder, runtime, limit, sure, structures)

    def __call__(self, conformed: Conformed, seen: View) -> View:
        """Return the view, or the vote of the most similar scans."""
        look = _look(conformed, seen, self.encoder, NEIGHBOURS, self.runtime)
        if look.entropy < self.limit:
            return seen
        like = torch.stack([one.whole for one in self.sure]) @ look.whole
        weights, nearest = like.topk(min(NEIGHBOURS, len(self.sure)))
        shape = conformed.data.shape
        voters = np.stack([_centred(self.sure[n].every(), shape) for n in nearest], axis=-1)
        votes = _votes(voters, weights.numpy(), self.structures)
        brain = np.where(conformed.inside, votes[1:].sum(0), 0).astype(np.float32)
        if seen.shares is None:
            return View(brain)
        return View(brain, np.rint(STEPS * votes[1:]).astype(np.uint8))


def _centred(numbers: Numbers, shape: Sequence[int]) -> Numbers:
    """Crop or pad numbers to a shape, about their middle: wide fields of view have more voxels."""
    lack = [max(n - own, 0) for n, own in zip(shape, numbers.shape, strict=True)]
    padded = np.pad(numbers, [(n // 2, n - n // 2) for n in lack])
    first = [(own - n) // 2 for n, own in zip(shape, padded.shape, strict=True)]
    return padded[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]


def _votes(classes: NDArray, weights: NDArray, structures: int) -> NDArray[np.float32]:
    """Share of each class, (1 + classes, ...), in votes (..., K) of weights like cosines."""
    weights = np.broadcast_to(np.maximum(weights, 0), classes.shape) + 1e-6
    total = weights.sum(-1)
    kinds = range(1 + max(structures, 1))
    votes = [np.where(classes == kind, weights, 0).sum(-1) / total for kind in kinds]
    return np.stack(votes).astype(np.float32)


def _put(shares: Shares | None, voxels: NDArray[np.bool_], votes: NDArray) -> Shares | None:
    """Give voxels of the brain's grid other shares, which may be in voxels half as large."""
    if shares is None:
        return None
    changed, steps = shares.copy(), np.rint(STEPS * votes).astype(np.uint8)
    ratio = shares.shape[1] // voxels.shape[0]
    for offset in itertools.product(range(ratio), repeat=3):
        x, y, z = (slice(start, None, ratio) for start in offset)
        changed[:, x, y, z][:, voxels] = steps
    return changed
