"""Does the fine-tuned network replace SL-1? Decided without any further label.

Both are tried on corrupted copies of the labelled scan, where the truth is known, and on a
sample of the unlabelled scans, where the Dice to be expected of each mask is read from one
calibration, the same for both, and where the propagated label is a second opinion. Bad
pseudo-labels teach a network to do worse on one of these. The
calibration is learnt here, too, from the masks of both: of the copies of the label, of the
unlabelled scans and of corrupted copies of those, under the propagated label.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..bids.scans import Scan
from ..config import SynthesisConfig
from ..image.grid import Conformed
from ..image.masks import Mask, blank, box, dice, pack, unpack
from ..image.structures import Numbers, Structure, coarsened_numbers, most, overlaps
from ..machine import files
from ..machine.progress import Progress
from ..machine.runtime import check_stop, describe, mix_seed
from . import model
from .classes import Source
from .expected_dice import Calibration, Evidence, Segmentation, line_through, segment
from .inference import mask_from
from .networks import Autoencoder
from .propagation import LABEL_FILE, coarsened, keep, propagate_labels
from .pseudolabels import masks_of, spread, viewer
from .synthesis import training_batch
from .trainer import Trained, Trainer, round_name

LOG = logging.getLogger("singlestrip_bids")

LABEL = "label"  # what copies of labelled scans are of
HARDEST = {
    "rotation_deg": 45.0,
    "scaling": 0.35,
    "warp": 0.05,
    "blur": 0.06,
    "noise": 0.3,
    "bias": 0.8,
    "gamma": 0.8,
    "crop": 0.45,
    "slice_thickness": 0.08,
}  # ranges of the worst copies; those of the mildest are fine-tuning's


@dataclass(frozen=True)
class Head:
    """A scan with a mask, from which copies are made."""

    of: str  # `LABEL`, or the path of an unlabelled scan in the dataset
    read: Callable[[], Source]  # not before its turn, since there may be many


@dataclass(frozen=True)
class Copy:
    """A corrupted copy of a head, and how its mask came out."""

    number: int  # from 1, the mildest, to the hardest
    of: str  # as of the head
    evidence: Evidence  # of the mask
    dice: float  # of the mask with the head's mask, corrupted alike
    by_structure: Sequence[tuple[Evidence, float]] = ()  # both; NaN where there is none of it


def try_copies(
    trainer: Trainer, heads: Sequence[Head], one: Trained, autoencoder: Autoencoder, what: str
) -> list[Copy]:
    """Mask corrupted copies of heads, taken in random order, and compare with their masks.

    They come from mild to hard; of no heads there are none.
    """
    found = list[Copy]()
    numbers = range(trainer.method.trials if heads else 0)
    heads = Random(trainer.method.seed).sample(heads, min(len(heads), len(numbers)))
    with Progress(f"{one.name}: copies of {what}", len(numbers)) as progress:
        for place, head in enumerate(heads):
            origin = head.read()
            for number in numbers[place :: len(heads)]:
                check_stop()
                conformed, target, structures = _corrupt(trainer, origin, number)
                seen = segment(one.network, autoencoder, conformed, trainer.runtime)
                parts = _by_structure(seen, structures)
                found.append(
                    Copy(number + 1, head.of, seen.evidence, dice(seen.mask, target), parts)
                )
                progress.step(f"Dice {found[-1].dice:.3f}")
    return sorted(found, key=lambda copy: copy.number)


def _corrupt(
    trainer: Trainer, origin: Source, number: int
) -> tuple[Conformed, Mask, Numbers | None]:
    """One corrupted copy of a head, its mask, and its structures, if the head has any."""
    ranges = severity(trainer.method.finetuning_synthesis, number / (trainer.method.trials - 1))
    generator = trainer.runtime.generator(mix_seed(trainer.method.seed, 2), number)
    image, target = training_batch(generator, [origin], trainer.method.size, ranges)
    data = image[0, 0].cpu().numpy()
    conformed = Conformed(data, np.eye(4), _hull(data != 0))
    brain, *shares = target[0].cpu().numpy()
    mask = brain > 0.5
    return conformed, mask, most(np.stack(shares), mask) if shares else None


def _by_structure(seen: Segmentation, truth: Numbers | None) -> tuple[tuple[Evidence, float], ...]:
    """Compare the structures of a scan with others, which may be in voxels half as large."""
    if truth is None or seen.numbers is None:
        return ()
    truth = coarsened_numbers(truth, seen.numbers.shape)
    overlap = overlaps(seen.numbers, truth, len(seen.by_structure)).tolist()
    return tuple(zip(seen.by_structure, overlap, strict=True))


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Smallest box around a mask: the field of view."""
    hull = np.zeros_like(mask)
    hull[box(mask)] = True
    return hull


def severity(mildest: SynthesisConfig, share: float) -> SynthesisConfig:
    """Ranges of the copies of a share (0 to 1) of the way from the mildest to the hardest."""
    way = {
        name: getattr(mildest, name) + share * max(hardest - getattr(mildest, name), 0)
        for name, hardest in HARDEST.items()
    }
    return replace(mildest, **way)


SAMPLE = 24  # unlabelled scans looked at
PLAUSIBLE = 1 / 3, 3.0  # volumes, as multiples of the labelled brain's
TOLERANCE = 0.01  # by which the later network may seem worse in any way
APART = 4  # unlabelled scans on which both networks are shown


@dataclass(frozen=True)
class Standing:
    """How one network does without further labels."""

    copies: float  # mean Dice on the corrupted copies of the labelled scans
    pool: float | None  # mean expected Dice of the sample, 0 for a mask of implausible volume
    opinion: float | None = None  # mean Dice of its masks with the propagated label

    def harms(self, before: Standing) -> list[str]:
        """Name what is clearly worse than it was with another network.

        On the copies it may be worse by as much as it is better on the propagated label.
        """
        gain = (self.opinion or 0.0) - (before.opinion or 0.0)
        ways = {
            "copies of the label": (before.copies, self.copies, max(TOLERANCE, gain)),
            "unlabelled scans": (before.pool or 0.0, self.pool or 0.0, TOLERANCE),
            "the propagated label": (before.opinion or 0.0, self.opinion or 0.0, TOLERANCE),
        }
        return [
            f"{what} ({self_:.3f} against {other:.3f})"
            for what, (other, self_, tolerance) in ways.items()
            if self_ < other - tolerance
        ]


@dataclass(frozen=True)
class Apart:
    """Masks of one unlabelled scan, by the first and by the last network, and their Dice."""

    scan: Scan
    masks: tuple[Mask, Mask]
    dice: float


@dataclass(frozen=True)
class Verdict:
    """The network that is used, why, the calibration, and where both networks differ most."""

    name: str
    calibration: Calibration
    standings: Mapping[str, Standing]
    by_structure: Sequence[Calibration | None] = ()  # None where too little is known
    apart: Sequence[Apart] = ()
    sample: int = 0  # unlabelled scans that were looked at
    failed: Mapping[str, str] = field(default_factory=dict)  # scans that cannot be read, and why

    @property
    def reason(self) -> str:
        """One sentence for people."""
        if len(self.standings) == 1:
            return "There is no other network."
        (first, before), (last, after) = self.standings.items()
        if harms := after.harms(before):
            return f"{last} is worse than {first} on {' and on '.join(harms)}."
        if after.copies < before.copies - TOLERANCE:
            return (
                f"{last} is worse than {first} on copies of the label ({after.copies:.3f} against "
                f"{before.copies:.3f}), but better by more on the propagated label."
            )
        return f"{last} is not worse than {first}, on copies of the label and on unlabelled scans."

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the card."""
        standings = {name: asdict(standing) for name, standing in self.standings.items()}
        apart = [{"scan": one.scan.relative, "dice": one.dice} for one in self.apart]
        return {
            "kept": self.name,
            "reason": self.reason,
            "standings": standings,
            "apart": apart,
            "sample": self.sample,
            "failed": list(self.failed),
        }


def sample_of(pool: Sequence[Scan]) -> list[Scan]:
    """Take the unlabelled scans that are looked at, from all over the pool."""
    return spread(pool, SAMPLE)


def complete(
    trainer: Trainer,
    pool: Sequence[Scan],
    sources: Sequence[Source],
    candidates: Sequence[Trained],
    autoencoder: Autoencoder,
    fine: Trained | None,
    facts: dict[str, Any],
) -> Verdict | None:
    """Choose the network and write the card; None if that was done before, from the same.

    ``pool`` are the unlabelled scans that can be read, ``candidates`` the first and the last
    network, or one; ``fine`` is a pupil of the last, and goes if that is refused; ``facts`` say
    what the model is learnt from.
    """
    folder, structures = trainer.folder, [asdict(one) for one in trainer.structures]
    names = ["autoencoder", *(one.name for one in candidates), *([fine.name] if fine else [])]
    made = [folder / f"{name}.safetensors" for name in names]
    made += [scan.path for scan in sample_of(pool)]
    key = files.fingerprint(facts, __version__, structures, [_checksum(path) for path in made])
    if model.made_of(folder) == key:
        model.confirm(folder)
        LOG.info("Model: %s, finished before.", folder)
        return None
    verdict = choose(trainer, pool, sources, candidates, autoencoder)
    network = f"{verdict.name}.safetensors"
    if trainer.structures:
        facts = {**facts, "structures": _described(trainer.structures, verdict.by_structure)}
    card = {
        "network": network,
        "fine": f"{fine.name}.safetensors"
        if fine and verdict.name == candidates[-1].name
        else None,
        "self_trained": verdict.name != "sl1",
        "guard": verdict.to_dict(),
        "threshold": files.load_tensors(folder / network)[1].get("threshold"),
        "calibration": asdict(verdict.calibration),
        **facts,
        "versions": describe(trainer.runtime.device),
        "fingerprint": "" if verdict.failed else key,  # what failed is tried again
    }
    (folder / LABEL_FILE).unlink(missing_ok=True)  # that of an earlier card
    if facts.get("label_kept"):
        keep(folder, sources)
    model.write_card(folder, card)
    LOG.info("Model: %s (%s).", folder, verdict.name)
    return verdict


def _described(
    structures: Sequence[Structure], lines: Sequence[Calibration | None]
) -> list[dict[str, Any]]:
    """Return structures as plain data, with their calibrations."""
    pairs = zip(structures, lines, strict=True)
    return [{**asdict(one), "calibration": line and asdict(line)} for one, line in pairs]


def _checksum(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError:  # what cannot be read fails where it is used
        return ""


def choose(
    trainer: Trainer,
    pool: Sequence[Scan],
    sources: Sequence[Source],
    candidates: Sequence[Trained],
    autoencoder: Autoencoder,
) -> Verdict:
    """Choose between the first and the last network; parameters as of `complete`."""
    drawn, several = sample_of(pool), len(candidates) > 1
    opinions, failed = _second_opinions(trainer, drawn, sources, candidates)
    sample = [scan for scan in drawn if scan.relative not in failed]
    others = [
        Head(scan.relative, partial(_under_label, trainer, scan, said))
        for scan, said in zip(sample, opinions, strict=True)
        if not blank(said.packed)
    ]
    labelled = [Head(LABEL, partial(replace, source)) for source in sources]
    trials = list[_Trial]()
    for one in candidates:
        copies, more = (
            try_copies(trainer, heads, one, autoencoder, what)
            for heads, what in ((labelled, "the label"), (others, "unlabelled scans"))
        )
        _write_copies(trainer, one.name, copies + more)
        seen = _seen(trainer, sample, opinions, one, autoencoder)
        trials.append(_Trial(one.name, copies, more, seen))
    line = line_through(*zip(*(pair for trial in trials for pair in trial.known), strict=True))
    standings = {trial.name: trial.standing(line) for trial in trials}
    for trial in trials:
        _write_sample(trainer, trial.name, sample, trial.seen, trial.expected(line))
    first, last = trials[0], trials[-1]
    kept = first if standings[last.name].harms(standings[first.name]) else last
    apart = _most_apart(sample, first.seen, last.seen) if sample and several else []
    lines = [_line(number, trials) for number in range(len(trainer.structures))]
    verdict = Verdict(kept.name, line, standings, lines, apart, len(sample), failed)
    level = logging.INFO if kept is last else logging.WARNING
    LOG.log(level, "Guard: %s is kept. %s", kept.name, verdict.reason)
    return verdict


ENOUGH = 12  # masks of a structure, to learn what can be expected of it


def _line(number: int, trials: Sequence[_Trial]) -> Calibration | None:
    """Calibrate one structure on all masks that have something to compare it with."""
    found = (parts[number] for one in trials for parts in one.by_structure)
    known = [(evidence, dice) for evidence, dice in found if not math.isnan(dice)]
    return line_through(*zip(*known, strict=True)) if len(known) >= ENOUGH else None


@dataclass(frozen=True)
class _Second:
    """The label as it is propagated to an unlabelled scan."""

    packed: bytes  # its mask on the model's grid
    numbers: Numbers | None = None  # its structures, in voxels as large or half as large


@dataclass(frozen=True)
class _Seen:
    """What is seen of one unlabelled scan's mask."""

    evidence: Evidence
    plausible: bool  # in volume
    opinion: float | None  # Dice with the propagated label, unless that is empty
    packed: bytes
    shape: tuple[int, ...]
    by_structure: Sequence[tuple[Evidence, float]] = ()  # with the propagated ones

    @property
    def mask(self) -> Mask:
        """The mask, which is packed because there may be many."""
        return unpack(self.packed, self.shape)


@dataclass(frozen=True)
class _Trial:
    """What one network made of copies, of the label and of unlabelled scans, and of the sample."""

    name: str
    copies: Sequence[Copy]
    others: Sequence[Copy]
    seen: Sequence[_Seen]

    @property
    def known(self) -> list[tuple[Evidence, float]]:
        """Masks that have something to compare them with, and the Dice."""
        pairs = [(one.evidence, one.dice) for one in (*self.copies, *self.others)]
        return pairs + [(s.evidence, s.opinion) for s in self.seen if s.opinion is not None]

    @property
    def by_structure(self) -> list[Sequence[tuple[Evidence, float]]]:
        """The same of each structure, mask by mask."""
        found = [copy.by_structure for copy in (*self.copies, *self.others)]
        return [parts for parts in (*found, *(one.by_structure for one in self.seen)) if parts]

    def expected(self, line: Calibration) -> list[float]:
        """Dice to be expected of each scan of the sample; 0 for an implausible volume."""
        return [line.expect(one.evidence)[0] * one.plausible for one in self.seen]

    def standing(self, line: Calibration) -> Standing:
        """Sum up."""
        on_copies = float(np.mean([copy.dice for copy in self.copies]))
        opinions = [one.opinion for one in self.seen if one.opinion is not None]
        return Standing(
            on_copies,
            float(np.mean(self.expected(line))) if self.seen else None,
            float(np.mean(opinions)) if opinions else None,
        )


def _second_opinions(
    trainer: Trainer,
    sample: Sequence[Scan],
    sources: Sequence[Source],
    candidates: Sequence[Trained],
) -> tuple[list[_Second], dict[str, str]]:
    """Propagate the label to each scan, unless that was done to rank it.

    Return also which scans have none, and why.
    """
    opinions, failed, ranked = [], {}, len(candidates) > 1
    look = viewer(trainer, candidates[-1].network)
    with Progress("second opinions", len(sample)) as progress:
        for scan in sample:
            check_stop()
            found = masks_of(trainer, scan, round_name(1)) if ranked else {}
            propagated, numbers = found.get("propagated"), found.get("opinion")
            try:
                if propagated is None:
                    conformed = trainer.conform(scan)
                    seen = look(conformed).mask if trainer.frame.turned else None
                    made = propagate_labels(sources, conformed, trainer.runtime, seen)
                    propagated = mask_from(coarsened(made.mask, conformed))
                    numbers = None if made.shares is None else most(made.shares, propagated)
                opinions.append(_Second(pack(propagated), numbers))
            except Exception as error:  # one bad scan never stops the others
                failed[scan.relative] = trainer.note(scan, error)
            progress.step(scan.name)
    return opinions, failed


def _seen(
    trainer: Trainer,
    sample: Sequence[Scan],
    opinions: Sequence[_Second],
    one: Trained,
    autoencoder: Autoencoder,
) -> list[_Seen]:
    """Mask each scan of the sample."""
    found = []
    with Progress(f"guard: {one.name}", len(sample)) as progress:
        for scan, said in zip(sample, opinions, strict=True):
            check_stop()
            conformed, frame = trainer.conform(scan), trainer.frame
            seen = segment(one.network, autoencoder, conformed, trainer.runtime)
            share = seen.mask.sum() * frame.grid.voxel_size**3 / 1000 / frame.brain_ml
            plausible = bool(PLAUSIBLE[0] < share < PLAUSIBLE[1])
            second = unpack(said.packed, seen.mask.shape)
            opinion = dice(seen.mask, second) if second.any() else None
            packed, parts = pack(seen.mask), _by_structure(seen, said.numbers)
            shape = seen.mask.shape
            found.append(_Seen(seen.evidence, plausible, opinion, packed, shape, parts))
            progress.step(scan.name)
    return found


def _write_sample(
    trainer: Trainer,
    name: str,
    sample: Sequence[Scan],
    seen: Sequence[_Seen],
    expected: Sequence[float],
) -> None:
    """Keep what was seen of each unlabelled scan, for pages and for people."""
    rows = [
        {"scan": scan.relative, **asdict(one.evidence), "opinion": one.opinion, "expected": value}
        for scan, one, value in zip(sample, seen, expected, strict=True)
    ]
    files.write_tsv(trainer.folder / f"{name}_sample.tsv", rows)


def _most_apart(
    sample: Sequence[Scan], first: Sequence[_Seen], last: Sequence[_Seen]
) -> list[Apart]:
    """Find the scans on which two networks differ most, the most different first."""
    overlaps = [dice(a.mask, b.mask) for a, b in zip(first, last, strict=True)]
    places = np.argsort(overlaps, kind="stable")[:APART].tolist()
    return [Apart(sample[i], (first[i].mask, last[i].mask), overlaps[i]) for i in places]


def _under_label(trainer: Trainer, scan: Scan, said: _Second) -> Source:
    """Read an unlabelled scan; its mask is the propagated label."""
    conformed = trainer.conform(scan)
    return trainer.source(conformed, unpack(said.packed, conformed.data.shape), said.numbers)


def _write_copies(trainer: Trainer, name: str, copies: Sequence[Copy]) -> None:
    """Keep what was seen of every copy, for pages and for people."""
    rows = [
        {"copy": one.number, "of": one.of, **asdict(one.evidence), "dice": one.dice}
        for one in copies
    ]
    files.write_tsv(trainer.folder / f"{name}_copies.tsv", rows)
