"""The label itself as a second voice: registration propagates it, and it joins the network's.

A model keeps the labelled scans on its grid for that, unless it is asked not to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..image.grid import Conformed
from ..image.masks import dice
from ..machine.files import save_tensors
from ..machine.runtime import Runtime, as_memory_allows
from .classes import Source, source
from .inference import mask_from
from .registration import EXPLAINED, propagate

LABEL_FILE = "label.safetensors"
AGREED = 0.9  # Dice of both masks; below, registration or network failed
UNHEARD = 0.3  # squared local correlation up to which the propagated label has no weight


def propagate_labels(
    sources: Sequence[Source], conformed: Conformed, runtime: Runtime
) -> tuple[NDArray[np.float32], float]:
    """Propagate the labelled masks to a scan and average them: (X, Y, Z) in [0, 1].

    Returns also how well the labelled scans explain it, in [0, 1] (see `propagate`), on average.
    """

    def on(machine: Runtime) -> tuple[Tensor, float]:
        image = torch.from_numpy(conformed.data).to(machine.device)[None, None]
        masks, explained = zip(
            *(propagate(origin.to(machine.device), image) for origin in sources), strict=True
        )
        return torch.stack(masks).mean(0).cpu(), sum(explained) / len(explained)

    propagated, explained = as_memory_allows(on, runtime.rungs())
    return np.where(conformed.inside, propagated.numpy(), np.float32(0)), explained


def join(
    probability: NDArray[np.float32], propagated: NDArray[np.float32], explained: float
) -> tuple[NDArray[np.float32], float]:
    """Join the network's probability and the propagated label (X, Y, Z), both in [0, 1].

    Returns also the weight of the propagated label: up to one half, the better the labelled scan
    explains this one; 0 where their masks do not agree, because one of the two has failed.
    """
    agreement = dice(mask_from(probability), mask_from(propagated))
    low, high = UNHEARD, EXPLAINED
    weight = float(np.clip((explained - low) / (high - low), 0, 1)) / 2
    weight = weight if agreement >= AGREED else 0.0
    return np.float32(1 - weight) * probability + np.float32(weight) * propagated, weight


def keep(folder: Path, sources: Sequence[Source]) -> None:
    """Write the labelled scans and their masks, as they are on the model's grid."""
    tensors = {}
    for number, one in enumerate(sources):
        tensors[f"image_{number}"] = one.image[0, 0].half()
        tensors[f"mask_{number}"] = one.mask[0, 0].half()
    save_tensors(folder / LABEL_FILE, tensors, {})


def kept(tensors: Mapping[str, Tensor]) -> tuple[Source, ...]:
    """Make sources of what `keep` wrote; raises `LookupError` for other tensors."""
    count = len(tensors) // 2
    pairs = [(tensors[f"image_{n}"], tensors[f"mask_{n}"]) for n in range(count)]
    return tuple(
        source(torch.zeros_like(image, dtype=torch.float32), image.float(), mask.float())
        for image, mask in pairs
    )
