"""A label that spreads by features, without any training of its own.

A frozen network describes every voxel of a scan. Each class has a prototype, the mean description
of its voxels in the labelled scans, and a voxel of another scan is of the class whose prototype it
is most like. The idea is SemiSAM-O1's (arXiv:2604.24109, round 0). There features are those of the
deepest layer, whose voxels are blocks of 16³; here they are those of all levels of the decoder,
joined, which have seen the whole head, too, and are far finer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..image.grid import Conformed
from ..image.structures import STEPS
from ..machine.runtime import Runtime, as_memory_allows
from .classes import Source
from .inference import View
from .synthesis import shares_of

SHARPNESS = 10.0  # of the softmax over likenesses, which are cosines


@dataclass(frozen=True)
class Prototypes:
    """What the classes look like to an encoder."""

    encoder: nn.Module
    means: Tensor  # (1 + C, features), of unit length: what is no brain, then each class

    def view(self, conformed: Conformed, runtime: Runtime) -> View:
        """Tell the classes apart in another scan."""

        def on(machine: Runtime) -> Tensor:
            image = torch.from_numpy(conformed.data).to(machine.device)[None, None]
            seen = machine.take(self.encoder)(image)
            like = torch.einsum("kc,bcxyz->bkxyz", self.means.to(seen), seen)
            full = F.interpolate(like, size=image.shape[2:], mode="trilinear", align_corners=False)
            return (SHARPNESS * full).softmax(1)[0].cpu()

        with torch.inference_mode():
            found = as_memory_allows(on, runtime.rungs()).numpy()
        brain = np.where(conformed.inside, 1 - found[0], np.float32(0))
        if len(found) == 2:
            return View(brain)
        return View(brain, np.rint(STEPS * found[1:]).astype(np.uint8))


@torch.inference_mode()
def learn(encoder: nn.Module, sources: Sequence[Source], runtime: Runtime) -> Prototypes:
    """Average what an encoder says of each class in the labelled scans.

    There is one class, the brain, or one for each structure.
    """
    runtime.take(encoder)
    sums: list[Tensor] = []
    for origin in sources:
        seen = encoder(origin.image)[0]
        inside = (origin.classes > 0).float()
        brain = origin.mask if origin.parts is None else shares_of(origin)
        every = torch.cat([inside * (1 - origin.mask), brain * inside], 1)
        weight = F.interpolate(every, size=seen.shape[1:], mode="area")[0]
        sums.append(weight.flatten(1) @ seen.flatten(1).T)
    return Prototypes(encoder, F.normalize(torch.stack(sums).sum(0), dim=1))
