"""Does the fine-tuned network replace SL-1? Decided without any further label.

Both are tried on corrupted copies of the labelled scan, where the truth is known, and on a
sample of the unlabelled scans, where the Dice to be expected of each mask is read from its
calibration. Bad pseudo-masks teach a network to do worse on either. The calibration is learnt
here, too: on the copies of the label, on the unlabelled scans and on corrupted copies of those,
under the label that registration carried over to them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from . import derivatives
from .calibration import Calibration, Evidence, line_through, look
from .inference import mask_from
from .inputs import Scan
from .masks import Mask, blank, pack, unpack
from .metrics import dice
from .networks import UNet
from .progress import Progress
from .ranking import masks_of, register
from .runtime import check_stop
from .selection import spread
from .stage import Stage
from .synthesis import Source
from .trials import LABEL, Copy, Head, try_copies

LOG = logging.getLogger("singlestrip_bids")

SAMPLE = 24  # unlabelled scans looked at
PLAUSIBLE = 1 / 3, 3.0  # volumes, as multiples of the labelled brain's
TOLERANCE = 0.01  # by which the later network may seem worse in either way
APART = 4  # unlabelled scans on which both networks are shown


@dataclass(frozen=True)
class Standing:
    """How one network does without further labels.

    Attributes
    ----------
    copies : float
        Mean Dice on the corrupted copies of the labelled scans.
    pool : float or None
        Mean expected Dice of the sample of unlabelled scans; a mask of implausible volume counts
        as 0. None without any.
    """

    copies: float
    pool: float | None

    def harms(self, before: Standing) -> list[str]:
        """Name what is clearly worse than it was with another network."""
        ways = {
            "copies of the label": (before.copies, self.copies),
            "unlabelled scans": (before.pool or 0.0, self.pool or 0.0),
        }
        return [
            f"{what} ({self_:.3f} against {other:.3f})"
            for what, (other, self_) in ways.items()
            if self_ < other - TOLERANCE
        ]


@dataclass(frozen=True)
class Apart:
    """Masks of one unlabelled scan, by the first and by the last network, and their Dice."""

    scan: Scan
    masks: tuple[Mask, Mask]
    dice: float


@dataclass(frozen=True)
class Verdict:
    """The network that is used, its calibration, why, and where both networks differ most."""

    name: str
    calibration: Calibration
    standings: Mapping[str, Standing]
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


def choose(
    stage: Stage,
    pool: Sequence[Scan],
    sources: Sequence[Source],
    networks: Mapping[str, UNet],
    autoencoder: nn.Module,
) -> Verdict:
    """Choose between the first and the last network.

    Parameters
    ----------
    pool : sequence of Scan
        Unlabelled scans that can be read.
    networks : mapping of str to UNet
        One, or the first and the last, in this order.
    """
    drawn = sample_of(pool)
    opinions, failed = _second_opinions(stage, drawn, sources, ranked=len(networks) > 1)
    sample = [scan for scan in drawn if scan.relative not in failed]
    calibrations, standings, masks = {}, dict[str, Standing](), list[list[_Seen]]()
    labelled = [Head(LABEL, partial(_at_hand, source)) for source in sources]
    others = [
        Head(scan.relative, partial(_carried, stage, scan, mask))
        for scan, mask in zip(sample, opinions, strict=True)
        if not blank(mask)
    ]
    for name, network in networks.items():
        own, foreign = (
            try_copies(stage, heads, network, autoencoder, f"{name}: copies of {what}")
            for heads, what in ((labelled, "the label"), (others, "unlabelled scans"))
        )
        _write_copies(stage, name, own + foreign)
        seen = _seen(stage, sample, opinions, network, autoencoder, name)
        calibrations[name] = calibration = _calibrate(own + foreign, seen)
        expected = [calibration.expect(one.evidence)[0] * one.plausible for one in seen]
        copies = float(np.mean([one.dice for one in own]))
        standings[name] = Standing(copies, float(np.mean(expected)) if expected else None)
        masks.append(seen)
        _write_sample(stage, name, sample, seen, expected)
    first, last = next(iter(standings)), next(reversed(standings))
    kept = first if standings[last].harms(standings[first]) else last
    apart = _most_apart(sample, *masks) if sample and len(networks) > 1 else []
    verdict = Verdict(kept, calibrations[kept], standings, apart, len(sample), failed)
    level = logging.INFO if kept == last else logging.WARNING
    LOG.log(level, "Guard: %s is kept. %s", kept, verdict.reason)
    return verdict


@dataclass(frozen=True)
class _Seen:
    """What is seen of one unlabelled scan's mask.

    ``opinion`` is its Dice with the labelled mask carried over by registration, None if that is
    empty.
    """

    evidence: Evidence
    plausible: bool
    opinion: float | None
    packed: bytes
    shape: tuple[int, ...]

    @property
    def mask(self) -> Mask:
        """The mask, which is packed because there may be many."""
        return unpack(self.packed, self.shape)


def _second_opinions(
    stage: Stage, sample: Sequence[Scan], sources: Sequence[Source], ranked: bool
) -> tuple[list[bytes], dict[str, str]]:
    """Carry the label's mask over to each scan, unless that was done to rank it.

    Returns
    -------
    tuple
        Packed masks, and which scans have none, and why.
    """
    packed, failed = [], {}
    with Progress("second opinions", len(sample)) as progress:
        for scan in sample:
            check_stop()
            carried = masks_of(stage, scan, "round-1").get("carried") if ranked else None
            try:
                if carried is None:
                    carried = mask_from(register(stage, stage.conform(scan), sources))
                packed.append(pack(carried))
            except Exception as error:  # one bad scan never stops the others
                failed[scan.relative] = stage.note(scan, error)
            progress.step(scan.name)
    return packed, failed


def _seen(
    stage: Stage,
    sample: Sequence[Scan],
    opinions: Sequence[bytes],
    network: UNet,
    autoencoder: nn.Module,
    name: str,
) -> list[_Seen]:
    """Mask each scan of the sample."""
    found = []
    with Progress(f"guard: {name}", len(sample)) as progress:
        for scan, carried in zip(sample, opinions, strict=True):
            check_stop()
            conformed = stage.conform(scan)
            seen = look(network, autoencoder, conformed, stage.method.quality, stage.runtime)
            share = seen.mask.sum() * stage.frame.voxel_size**3 / 1000 / stage.frame.brain_ml
            plausible = bool(PLAUSIBLE[0] < share < PLAUSIBLE[1])
            second = unpack(carried, seen.mask.shape)
            opinion = dice(seen.mask, second) if second.any() else None
            packed = pack(seen.mask)
            found.append(_Seen(seen.evidence, plausible, opinion, packed, seen.mask.shape))
            progress.step(scan.name)
    return found


def _write_sample(
    stage: Stage,
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
    derivatives.write_tsv(stage.folder / f"{name}_sample.tsv", rows)


def _most_apart(
    sample: Sequence[Scan], first: Sequence[_Seen], last: Sequence[_Seen]
) -> list[Apart]:
    """Find the scans on which two networks differ most, the most different first."""
    overlaps = [dice(a.mask, b.mask) for a, b in zip(first, last, strict=True)]
    places = np.argsort(overlaps, kind="stable")[:APART].tolist()
    return [Apart(sample[i], (first[i].mask, last[i].mask), overlaps[i]) for i in places]


def _at_hand(source: Source) -> Source:
    return source


def _carried(stage: Stage, scan: Scan, packed: bytes) -> Source:
    """Read an unlabelled scan; its mask is the label that registration carried over."""
    conformed = stage.conform(scan)
    return stage.source(conformed, unpack(packed, conformed.data.shape))


def _calibrate(copies: Sequence[Copy], sample: Sequence[_Seen]) -> Calibration:
    """Fit the line to all masks with something to compare them with."""
    known = [(one.evidence, one.dice) for one in copies]
    known += [(one.evidence, one.opinion) for one in sample if one.opinion is not None]
    evidence, truth = zip(*known, strict=True)
    return line_through(evidence, truth)


def _write_copies(stage: Stage, name: str, copies: Sequence[Copy]) -> None:
    """Keep what was seen of every copy, for pages and for people."""
    rows = [
        {"copy": one.number, "of": one.of, **asdict(one.evidence), "dice": one.dice}
        for one in copies
    ]
    derivatives.write_tsv(stage.folder / f"{name}_copies.tsv", rows)
