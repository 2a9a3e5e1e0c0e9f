"""Pseudo-masks of the unlabelled scans: guess, score, keep on disk, select."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import checkpoints, model, quality, volume
from .errors import BadData
from .inference import mask_from, predict
from .inputs import Scan
from .masks import Mask, pack, unpack
from .metrics import dice
from .networks import UNet
from .progress import Progress
from .registration import carry_over
from .runtime import Runtime, as_memory_allows, check_stop
from .selection import Candidate, top_k
from .stage import Stage
from .synthesis import Source
from .volume import Conformed


@dataclass(frozen=True)
class Guess:
    """A pseudo-mask, and what came with it where the labelled scan was registered.

    Attributes
    ----------
    mask : ndarray of bool
        (X, Y, Z) on the model's grid.
    carried : ndarray of bool or None
        The labelled mask as registration carries it over.
    agreement : float or None
        Dice of that and the network's mask, where both were made.
    """

    mask: Mask
    carried: Mask | None = None
    agreement: float | None = None


Guesser = Callable[[Conformed], Guess]
Drawer = Callable[[Scan, Conformed, Guess], None]


def register(stage: Stage, conformed: Conformed, sources: Sequence[Source]) -> NDArray[np.float32]:
    """Carry the labelled masks over to a scan and average them: (X, Y, Z) in [0, 1]."""

    def on(machine: Runtime) -> Tensor:
        image = torch.from_numpy(conformed.data).to(machine.device)[None, None]
        carried = [carry_over(origin.to(machine.device), image) for origin in sources]
        return torch.stack(carried).mean(0).cpu()

    carried = as_memory_allows(on, stage.runtime.rungs()).numpy()
    return np.where(conformed.inside, carried, np.float32(0))


def guesser(stage: Stage, network: UNet, sources: Sequence[Source], way: str) -> Guesser:
    """Make the function that guesses a scan's mask by the network, by registration or by both.

    The consensus is the mean of both, cut at one half.
    """

    def by_network(conformed: Conformed) -> NDArray[np.float32]:
        return as_memory_allows(
            lambda machine: predict(network, conformed, machine, stage.method.copies),
            stage.runtime.rungs(),
        )

    def guess(conformed: Conformed) -> Guess:
        if way == "network":
            return Guess(mask_from(by_network(conformed)))
        second = register(stage, conformed, sources)
        carried = mask_from(second)
        if way == "registration":
            return Guess(carried, carried)
        first = by_network(conformed)
        consensus = mask_from(np.float32(0.5) * (first + second))
        return Guess(consensus, carried, dice(mask_from(first), carried))

    return guess


def rank(
    stage: Stage,
    pool: Sequence[Scan],
    guess: Guesser,
    autoencoder: nn.Module,
    name: str,
    key: str,
    always: Collection[str] = (),
    draw: Drawer | None = None,
) -> list[Candidate]:
    """Guess and score a mask of every unlabelled scan; a bad scan gets a note and no mask.

    Every mask is kept on disk as it is made, so that a ranking that was stopped goes on. Of
    several processes each ranks its share of the scans; all return the same list.

    Parameters
    ----------
    name : str
        Of the round; also that of the folder of its masks.
    key : str
        Fingerprint of all that decides the masks and scores, apart from the scans.
    always : collection of str
        Scans whose masks are kept whatever their rank.
    draw : callable, optional
        Shows every mask as it is made; those on disk were shown before.

    Returns
    -------
    list of Candidate
        In the order of the pool, the best marked as kept.
    """
    found: list[Candidate] = []
    runtime = stage.runtime
    with runtime.share(pool) as own, Progress(f"{name}: ranking", len(own)) as progress:
        for scan in own:
            check_stop()
            try:
                found.append(_candidate(stage, scan, guess, autoencoder, name, key, draw))
            except Exception as error:  # one bad scan never stops the others
                note = stage.note(scan, error)
                found.append(Candidate(scan.relative, 0.0, None, 0.0, note=note))
            progress.step(f"{scan.name} {found[-1].rank:.3f}")
    candidates = [Candidate(**row) for row in runtime.collect([asdict(one) for one in found])]
    return top_k(candidates, stage.method.top_k or max(10, len(pool) // 2), always)


def _candidate(
    stage: Stage,
    scan: Scan,
    guess: Guesser,
    autoencoder: nn.Module,
    name: str,
    key: str,
    draw: Drawer | None,
) -> Candidate:
    path, key = _place(stage, scan, name), model.fingerprint(key, model.sha256(scan.path))
    if path.is_file():
        try:
            _, card = checkpoints.load(path)
            if card.get("fingerprint") == key:
                return Candidate(**card["candidate"])
        except BadData:
            pass  # half a file from elsewhere: the mask is made again
    conformed = stage.conform(scan)
    made = guess(conformed)
    if draw:
        draw(scan, conformed, made)
    judged = autoencoder, made.mask, stage.method.quality
    score = as_memory_allows(lambda m: quality.score(*judged, m), stage.runtime.rungs())
    millilitres = volume.millilitres(made.mask, conformed.affine)
    candidate = Candidate(scan.relative, score, made.agreement, millilitres)
    masks = {"mask": made.mask} | ({} if made.carried is None else {"carried": made.carried})
    card = {"fingerprint": key, "candidate": asdict(candidate), "shape": made.mask.shape}
    checkpoints.save(path, {name: _packed(mask) for name, mask in masks.items()}, card)
    return candidate


def _packed(mask: Mask) -> Tensor:
    return torch.frombuffer(bytearray(pack(mask)), dtype=torch.uint8)


def masks_of(stage: Stage, scan: Scan, name: str) -> dict[str, Mask]:
    """Read the masks that :func:`rank` left on disk: ``mask``, and ``carried`` if there is one."""
    tensors, card = checkpoints.load(_place(stage, scan, name))
    shape = tuple(card["shape"])
    return {key: unpack(t.numpy().tobytes(), shape) for key, t in tensors.items()}


def _place(stage: Stage, scan: Scan, name: str) -> Path:
    """Where the mask of a scan lies between ranking and training."""
    return stage.work / name / f"{model.fingerprint(scan.relative)[:16]}.safetensors"


def pseudo_label(stage: Stage, kept: Sequence[Scan], name: str) -> list[Source]:
    """Refit the mixtures of the kept scans under the masks that :func:`rank` left on disk."""
    sources = []
    with Progress("refitting mixtures", len(kept)) as progress:
        for scan in kept:
            check_stop()
            conformed = stage.conform(scan)
            sources.append(stage.source(conformed, masks_of(stage, scan, name)["mask"]))
            progress.step(scan.name)
    return sources
