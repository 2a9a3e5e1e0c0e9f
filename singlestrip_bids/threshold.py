"""Where masks are cut: on the labelled scan itself no wider than the label, or about so.

A mask is cut where the probability is one half. Self-training swells masks a little, everywhere;
on the labelled scan it is known by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .inference import LOOKS, predict
from .masks import clean
from .networks import UNet
from .runtime import as_memory_allows
from .stage import Stage
from .synthesis import Source
from .volume import Conformed

LIMITS = 0.5, 0.8  # of the threshold; below one half, masks would grow
BISECTIONS = 7  # to 0.002


def settle(stage: Stage, network: UNet, sources: Sequence[Source]) -> float:
    """Shift a network's logits where the labelled scans' masks are larger than the labels.

    Parameters
    ----------
    network : UNet
        Its last biases are changed in place.
    sources : sequence of Source
        The labelled scans.

    Returns
    -------
    float
        The probability at which the masks are as large as the labels, in [0.5, 0.8]; one half now.
    """
    probabilities = [_probability(stage, network, source) for source in sources]
    wanted = sum(int((source.mask > 0.5).sum()) for source in sources)

    def too_large(threshold: float) -> bool:
        return sum(int(clean(p > threshold).sum()) for p in probabilities) > wanted

    found, *_ = stage.runtime.gather(_least(too_large))  # the first process decides for all
    with torch.no_grad():
        bias = network.head.bias
        assert bias is not None
        bias -= torch.tensor(found).logit().item()
    return float(found)


def _least(too_large: Callable[[float], bool]) -> float:
    """Bisect to the least threshold at which masks are not too large."""
    low, high = LIMITS
    if not too_large(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_large(middle) else (low, middle)
    return high


def _probability(stage: Stage, network: UNet, source: Source) -> NDArray[np.float32]:
    data, classes = (volume[0, 0].cpu().numpy() for volume in (source.image, source.classes))
    conformed = Conformed(data, np.eye(4), classes > 0)
    return as_memory_allows(
        lambda machine: predict(network, conformed, machine, LOOKS), stage.runtime.rungs()
    )
