"""Pseudo-labels of the unlabelled scans: guess, score, keep on disk, select the best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bids.scans import Scan
from ..config import WITH_PROTOTYPES
from ..errors import BadData
from ..image.grid import Conformed
from ..image.head import refuse_stripped
from ..image.masks import Mask, dice, millilitres, pack, unpack
from ..image.structures import Numbers, coarsened_numbers, most, pack_numbers, unpack_numbers
from ..machine import files
from ..machine.progress import Progress
from ..machine.runtime import as_memory_allows, check_stop
from .autoencoder import shape_score
from .classes import Source
from .inference import View, mask_from, view
from .networks import Autoencoder, UNet
from .orientation import Doubt, doubt
from .propagation import coarsened, join_shares, propagate_labels, weight_of
from .prototypes import learn
from .refinement import Correct, Viewer
from .trainer import Trainer

T = TypeVar("T")
UPRIGHT = 0.9  # agreement of network and registration above which no orientation is in doubt
PROTOTYPES = np.float32(0.25)  # of the votes, where all speak
APART = 0.05  # nor is it, where the agreement is not so far below that of most scans


def spread(items: Sequence[T], count: int) -> list[T]:
    """Take at most so many items, at even distances, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


@dataclass(frozen=True)
class Candidate:
    """An unlabelled scan in one round, under its pseudo-label."""

    scan: str  # path within the dataset
    score: float  # reconstruction Dice of the autoencoder; 0 where there is no mask
    agreement: float | None  # Dice of the network's mask and the registration's, if both are made
    volume_ml: float
    kept: bool = False  # whether the mask trains the next network
    note: str = ""  # what went wrong, if anything did

    @property
    def contrast(self) -> str:
        """BIDS suffix of the scan."""
        return self.scan.rsplit("_", 1)[-1].split(".", 1)[0]

    @property
    def rank(self) -> float:
        """Score, or its mean with the agreement: what decides the order."""
        return self.score if self.agreement is None else (self.score + self.agreement) / 2


def top_k(
    candidates: Sequence[Candidate], k: int, always: Collection[str] = ()
) -> list[Candidate]:
    """Mark k as kept, contrast by contrast, in the order given.

    The best of every contrast (BIDS suffix) comes first, then the others in proportion to its
    number, so that none is left out because its masks are harder to make. An empty mask is never
    kept. Scans named in ``always`` are kept besides. Of equal ones the first in the alphabet is
    kept. SingleStrip, section 2.4, for each contrast.
    """
    usable = sorted((c for c in candidates if c.volume_ml > 0), key=lambda c: (-c.rank, c.scan))
    place: dict[str, float] = {}
    for contrast in {c.contrast for c in usable}:
        group = [c.scan for c in usable if c.contrast == contrast]
        place |= {scan: i / len(group) for i, scan in enumerate(group)}
    kept = {c.scan for c in sorted(usable, key=lambda c: place[c.scan])[:k]}
    kept |= {c.scan for c in usable if c.scan in always}
    return [replace(c, kept=c.scan in kept) for c in candidates]


@dataclass(frozen=True)
class Guess:
    """A pseudo-label (X, Y, Z) on the model's grid, and what came with it by registration."""

    mask: Mask
    propagated: Mask | None = None  # the labelled mask as registration propagates it
    agreement: float | None = None  # Dice of that and the network's mask, if both were made
    numbers: Numbers | None = None  # structures in the mask, in voxels as large or half as large
    opinion: Numbers | None = None  # structures in the propagated mask, likewise
    coarse: bool = False  # so that it does not tell whether there is a skull


Guesser = Callable[[Conformed], Guess]
Drawer = Callable[[Scan, Conformed, Guess], None]
Look = Callable[[Conformed, Mask], Doubt | None]


def viewer(trainer: Trainer, network: UNet) -> Viewer:
    """Make the function that shows a scan, and copies of it, to the network."""
    return lambda conformed: as_memory_allows(
        lambda machine: view(network, conformed, machine, trainer.method.copies),
        trainer.runtime.rungs(),
    )


def guesser(
    trainer: Trainer,
    network: UNet,
    sources: Sequence[Source],
    way: str,
    correct: Correct | None = None,
) -> Guesser:
    """Make the function that guesses a scan's mask in one of the `PSEUDO_LABELS`' ways.

    The consensus weighs network and registration scan by scan, as at masking: see `weight_of`.
    Where ``all`` speak, prototypes of the labels have `PROTOTYPES` of the votes. The network's own
    guess may be corrected.
    """
    see, encoder = viewer(trainer, network), trainer.encoder
    if way == "network":
        if correct:
            return lambda scan: replace(_guess(correct(scan, see(scan))), coarse=True)
        return lambda scan: _guess(see(scan))
    known: Viewer | None = None
    if encoder and way in WITH_PROTOTYPES:
        prototypes, coarse = learn(encoder.network, sources, trainer.runtime), encoder.deepest
        known = like = partial(prototypes.view, runtime=trainer.runtime)
        if way == "prototypes":
            return lambda scan: replace(_guess(like(scan)), coarse=coarse)

    def guess(conformed: Conformed) -> Guess:
        first = see(conformed)
        said = propagate_labels(sources, conformed, trainer.runtime, first.mask)
        second = coarsened(said.mask, conformed)
        propagated = mask_from(second)
        opinion = None if said.shares is None else most(said.shares, propagated)
        if way == "registration":
            return Guess(propagated, propagated, numbers=opinion, opinion=opinion)
        weight = np.float32(weight_of(said.explained))
        joined = (1 - weight) * first.brain + weight * second
        if known:
            joined = (1 - PROTOTYPES) * joined + PROTOTYPES * known(conformed).brain
        consensus = mask_from(joined)
        agreement, numbers = dice(first.mask, propagated), None
        if first.shares is not None and said.shares is not None:
            shares = join_shares(first.shares, said.shares, said.explained)
            numbers = most(shares, consensus)
        return Guess(consensus, propagated, agreement, numbers, opinion)

    return guess


def _guess(seen: View) -> Guess:
    mask = seen.mask
    return Guess(mask, numbers=seen.numbers(mask))


def looker(trainer: Trainer, network: UNet) -> Look:
    """Make the function that looks at a scan from all sides."""
    return lambda conformed, mask: doubt(network, conformed, mask, None, trainer.runtime)


def rank(
    trainer: Trainer,
    pool: Sequence[Scan],
    guess: Guesser,
    autoencoder: Autoencoder,
    name: str,
    key: str,
    always: Collection[str] = (),
    draw: Drawer | None = None,
    look: Look | None = None,
) -> list[Candidate]:
    """Guess and score a mask of every unlabelled scan; a bad scan gets a note and no mask.

    Return them in the order of the pool, the best and those named in ``always`` marked as kept. Of
    several processes each ranks its share of the scans; all return the same list.

    Every mask is kept on disk as it is made, in a folder of the round's ``name``, so that a
    ranking that was stopped goes on: if ``key`` is the same, the fingerprint of all that decides
    masks and scores apart from the scans. Those made now are shown to ``draw``.
    """
    found: list[Candidate] = []
    runtime = trainer.runtime
    with runtime.share(pool) as own, Progress(f"{name}: ranking", len(own)) as progress:
        for scan in own:
            check_stop()
            try:
                found.append(_candidate(trainer, scan, guess, autoencoder, name, key, draw))
            except Exception as error:  # one bad scan never stops the others
                note = trainer.note(scan, error)
                found.append(Candidate(scan.relative, 0.0, None, 0.0, note=note))
            progress.step(f"{scan.name} {found[-1].rank:.3f}")
    candidates = [Candidate(**row) for row in runtime.collect([asdict(one) for one in found])]
    if look:
        candidates = _upright(trainer, pool, candidates, look, name, always)
    return top_k(candidates, trainer.method.top_k or max(10, len(pool) // 2), always)


def _upright(
    trainer: Trainer,
    pool: Sequence[Scan],
    candidates: Sequence[Candidate],
    look: Look,
    name: str,
    always: Collection[str],
) -> list[Candidate]:
    """Leave out scans whose axes point elsewhere, among those of far less agreement than most."""
    agreements = [c.agreement for c in candidates if c.agreement is not None]
    limit = min(UPRIGHT, float(np.median(agreements)) - APART) if agreements else 0.0
    suspects = {c.scan for c in candidates if c.agreement is not None and c.agreement < limit}
    scans = [scan for scan in pool if scan.relative in suspects - set(always)]
    notes = dict[str, str]()
    with trainer.runtime.share(scans) as own, Progress(f"{name}: poses", len(own)) as progress:
        for scan in own:
            check_stop()
            try:
                turned = look(trainer.conform(scan), masks_of(trainer, scan, name)["mask"])
                if turned:
                    raise BadData(f"{scan.path}: {turned.words}")
            except Exception as error:  # one bad scan never stops the others
                notes[scan.relative] = trainer.note(scan, error)
            progress.step(scan.name)
    found = {c.scan: c for c in candidates}
    for part in trainer.runtime.gather(notes):
        for scan, note in part.items():
            found[scan] = Candidate(scan, 0.0, None, 0.0, note=note)
    return list(found.values())


def _candidate(
    trainer: Trainer,
    scan: Scan,
    guess: Guesser,
    autoencoder: Autoencoder,
    name: str,
    key: str,
    draw: Drawer | None,
) -> Candidate:
    """Guess and score the mask of one scan, unless that lies on disk already."""
    path, key = trainer.kept(scan, name), files.fingerprint(key, files.sha256(scan.path))
    if path.is_file():
        try:
            _, card = files.load_tensors(path)
            if card.get("fingerprint") == key:
                return Candidate(**card["candidate"])
        except BadData:
            pass  # half a file from elsewhere: the mask is made again
    conformed = trainer.conform(scan)
    made = guess(conformed)
    if not made.coarse:
        refuse_stripped(scan.path, conformed, made.mask)
    if draw:
        draw(scan, conformed, made)
    judged: Mask | Numbers = made.mask
    if made.numbers is not None:
        judged = coarsened_numbers(made.numbers, made.mask.shape)
    score, _ = as_memory_allows(
        lambda machine: shape_score(autoencoder, judged, machine), trainer.runtime.rungs()
    )
    volume_ml = millilitres(made.mask, conformed.affine)
    candidate = Candidate(scan.relative, score, made.agreement, volume_ml)
    masks = {"mask": made.mask}
    if made.propagated is not None:
        masks["propagated"] = made.propagated
    card = {"fingerprint": key, "candidate": asdict(candidate), "shape": made.mask.shape}
    tensors = {name: files.bytes_tensor(pack(mask)) for name, mask in masks.items()}
    for name, numbers in (("numbers", made.numbers), ("opinion", made.opinion)):
        if numbers is not None:
            tensors[name] = files.bytes_tensor(pack_numbers(numbers))
            card["fine"] = numbers.shape
    files.save_tensors(path, tensors, card)
    return candidate


def masks_of(trainer: Trainer, scan: Scan, name: str) -> dict[str, NDArray]:
    """Read what :func:`rank` left on disk: ``mask`` and, if any, ``propagated``.

    Of structures also ``numbers`` in the former and ``opinion`` in the latter.
    """
    tensors, card = files.load_tensors(trainer.kept(scan, name))
    found: dict[str, NDArray] = {}
    for key, tensor in tensors.items():
        packed = tensor.numpy().tobytes()
        if key in ("numbers", "opinion"):
            found[key] = unpack_numbers(packed, card["fine"])
        else:
            found[key] = unpack(packed, tuple(card["shape"]))
    return found


def pseudo_label(trainer: Trainer, kept: Sequence[Scan], name: str) -> list[Source]:
    """Refit the mixtures of the kept scans under the masks that :func:`rank` left on disk."""
    sources = []
    with Progress("refitting mixtures", len(kept)) as progress:
        for scan in kept:
            check_stop()
            conformed = trainer.conform(scan)
            found = masks_of(trainer, scan, name)
            sources.append(trainer.source(conformed, found["mask"], found.get("numbers")))
            progress.step(scan.name)
    return sources
