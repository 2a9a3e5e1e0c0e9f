"""Pseudo-masks of the unlabelled scans: guess, score, keep on disk, select."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import checkpoints, model, quality, volume
from .errors import BadData, log_failure
from .inference import mask_from, predict
from .inputs import Scan
from .metrics import dice
from .networks import UNet
from .registration import carry_over
from .runtime import OUT_OF_MEMORY, Progress, check_stop
from .selection import Candidate, top_k
from .stage import Stage
from .synthesis import Source
from .volume import Conformed, Mask

Guess = Callable[[Conformed], tuple[Mask, float | None]]


def guesser(stage: Stage, network: UNet, sources: Sequence[Source], way: str) -> Guess:
    """Make the function that guesses a scan's mask by the network, by registration or by both.

    The consensus is the mean of both, cut at one half; it comes with the Dice of the two masks.
    """

    def by_network(conformed: Conformed) -> NDArray[np.float32]:
        return predict(network, conformed, stage.runtime, stage.method.copies)

    def by_registration(conformed: Conformed) -> NDArray[np.float32]:
        image = torch.from_numpy(conformed.data).to(stage.runtime.device)[None, None]
        carried = torch.stack([carry_over(origin, image) for origin in sources]).mean(0)
        return np.where(conformed.inside, carried.cpu().numpy(), np.float32(0))

    def by_both(conformed: Conformed) -> tuple[Mask, float | None]:
        first, second = by_network(conformed), by_registration(conformed)
        agreement = dice(mask_from(first), mask_from(second))
        return mask_from(np.float32(0.5) * (first + second)), agreement

    if way == "consensus":
        return by_both
    single = by_network if way == "network" else by_registration
    return lambda conformed: (mask_from(single(conformed)), None)


def rank(
    stage: Stage,
    pool: Sequence[Scan],
    guess: Guess,
    autoencoder: nn.Module,
    name: str,
    key: str,
    always: Collection[str] = (),
) -> list[Candidate]:
    """Guess and score a mask of every unlabelled scan; a bad scan gets a note and no mask.

    Every mask is kept on disk as it is made, so that a ranking that was stopped goes on.

    Parameters
    ----------
    name : str
        Of the round; also that of the folder of its masks.
    key : str
        Fingerprint of all that decides the masks and scores, apart from the scans.
    always : collection of str
        Scans whose masks are kept whatever their rank.

    Returns
    -------
    list of Candidate
        In the order of the pool, the best marked as kept.
    """
    candidates = []
    with Progress(f"{name}: ranking", len(pool)) as progress:
        for scan in pool:
            check_stop()
            try:
                candidates.append(_candidate(stage, scan, guess, autoencoder, name, key))
            except OUT_OF_MEMORY:
                raise
            except Exception as error:  # one bad scan never stops the others
                note = log_failure(scan.path, error)
                candidates.append(Candidate(scan.relative, 0.0, None, 0.0, note=note))
            progress.step(f"{scan.name} {candidates[-1].rank:.3f}")
    return top_k(candidates, stage.method.top_k or max(10, len(pool) // 2), always)


def _candidate(
    stage: Stage, scan: Scan, guess: Guess, autoencoder: nn.Module, name: str, key: str
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
    mask, agreement = guess(conformed)
    score = quality.score(autoencoder, mask, stage.method.quality, stage.runtime)
    millilitres = volume.millilitres(mask, conformed.affine)
    candidate = Candidate(scan.relative, score, agreement, millilitres)
    packed = torch.frombuffer(bytearray(volume.pack(mask)), dtype=torch.uint8)
    checkpoints.save(path, {"mask": packed}, {"fingerprint": key, "candidate": asdict(candidate)})
    return candidate


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
            tensors, _ = checkpoints.load(_place(stage, scan, name))
            packed = tensors["mask"].numpy().tobytes()
            sources.append(stage.source(conformed, volume.unpack(packed, conformed.data.shape)))
            progress.step(scan.name)
    return sources
