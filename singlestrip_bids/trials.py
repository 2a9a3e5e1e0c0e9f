"""How a network does on corrupted copies of heads whose masks are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .calibration import Evidence, look
from .config import SynthesisConfig
from .masks import box
from .metrics import dice
from .networks import UNet
from .progress import Progress
from .runtime import check_stop, mix_seed
from .stage import Stage
from .synthesis import Source, training_batch
from .volume import Conformed

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
    """A scan with a mask, from which copies are made.

    Attributes
    ----------
    of : str
        `LABEL`, or the path of an unlabelled scan in the dataset.
    read : callable
        Reads it; not before its turn, since there may be many.
    """

    of: str
    read: Callable[[], Source]


@dataclass(frozen=True)
class Copy:
    """A corrupted copy of a head, and how its mask came out.

    Attributes
    ----------
    number : int
        From 1, the mildest, to the hardest.
    of : str
        The head.
    evidence : Evidence
        What is seen of the mask.
    dice : float
        Its Dice with the head's mask, corrupted alike.
    """

    number: int
    of: str
    evidence: Evidence
    dice: float


def try_copies(
    stage: Stage, heads: Sequence[Head], network: UNet, autoencoder: nn.Module, title: str
) -> list[Copy]:
    """Mask corrupted copies of heads, in turn and in random order, and compare with their masks.

    Returns
    -------
    list of Copy
        From mild to hard; none of no heads.
    """
    found = list[Copy]()
    numbers = range(stage.method.trials if heads else 0)
    heads = Random(stage.method.seed).sample(heads, min(len(heads), len(numbers)))
    with Progress(title, len(numbers)) as progress:
        for place, head in enumerate(heads):
            origin = head.read()
            for number in numbers[place :: len(heads)]:
                check_stop()
                conformed, target = _copy(stage, origin, number)
                seen = look(network, autoencoder, conformed, stage.method.quality, stage.runtime)
                found.append(Copy(number + 1, head.of, seen.evidence, dice(seen.mask, target)))
                progress.step(f"Dice {found[-1].dice:.3f}")
    return sorted(found, key=lambda copy: copy.number)


def _copy(stage: Stage, origin: Source, number: int) -> tuple[Conformed, NDArray[np.bool_]]:
    """One corrupted copy of a head, and its mask."""
    ranges = severity(stage.method.finetuning_synthesis, number / (stage.method.trials - 1))
    generator = stage.runtime.generator(mix_seed(stage.method.seed, 2), number)
    image, target = training_batch(generator, [origin], stage.method.size, ranges)
    data = image[0, 0].cpu().numpy()
    conformed = Conformed(data, np.eye(4), _hull(data != 0))
    return conformed, target[0, 0].cpu().numpy() > 0.5


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Smallest box around a mask: the field of view."""
    hull = np.zeros_like(mask)
    hull[box(mask)] = True
    return hull


def severity(mildest: SynthesisConfig, share: float) -> SynthesisConfig:
    """Ranges of the copies of a share (0 to 1) of the way from the mildest to the hardest."""
    way = {
        name: getattr(mildest, name) + share * (hardest - getattr(mildest, name))
        for name, hardest in HARDEST.items()
    }
    return replace(mildest, **way)
