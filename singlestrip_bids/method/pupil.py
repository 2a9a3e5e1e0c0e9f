"""The fine network in training: a pupil of network and propagated label together.

These err head by head, now outside of the border and now inside; what scans show of it is common
to all heads, and that is learnt.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..bids.label import Label
from ..bids.scans import Scan
from ..errors import BadData
from ..image import nifti
from ..image.grid import HalvedGrid, conform, conform_image
from ..machine import files
from ..machine.progress import Progress
from ..machine.runtime import check_stop
from .classes import Source
from .fine import NAME, edge_of
from .losses import images_of, segmentation_loss
from .networks import UNet
from .propagation import finer, join, propagate_labels
from .pseudolabels import spread, viewer
from .trainer import Trained, Trainer

LOG = logging.getLogger("singlestrip_bids")

SHIFT = 0.05  # of the brain's centre in its images, of their edge: the brain is found already
SCANS = 50  # unlabelled ones that it learns from, at most: each takes 25 MB
STEPS = 255  # of a soft mask on disk


def learn(
    trainer: Trainer,
    labels: Sequence[Label],
    sources: Sequence[Source],
    scans: Sequence[Scan],
    before: Trained,
) -> Trained:
    """Train on the labels, and on scans under the soft masks of network and propagated label.

    It starts from the network ``before``, whose voxels are twice as large. Of very many ``scans``
    some are taken, from all over them.
    """
    method, runtime = trainer.method, trainer.runtime
    key = files.fingerprint(before.key, method.copies, method.registers)
    chosen, taught = spread(scans, SCANS), dict[str, str]()
    with runtime.share(chosen) as own, Progress("fine: soft masks", len(own)) as progress:
        for scan in own:
            check_stop()
            try:
                taught[scan.relative] = _teach(trainer, sources, scan, before, key)
            except Exception as error:  # one bad scan never stops the others
                LOG.warning("%s", trainer.note(scan, error))
            progress.step(scan.name)
    taught = {scan: made for part in runtime.gather(taught) for scan, made in part.items()}
    pupils = [scan for scan in chosen if scan.relative in taught]
    seen = [_labelled(trainer, label) for label in labels]
    with Progress("fine: refitting mixtures", len(pupils)) as progress:
        for scan in pupils:
            check_stop()
            seen.append(_read(trainer, scan))
            progress.step(scan.name)
    network = UNet(method.network)
    weights = before.network.state_dict()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    ranges = replace(method.finetuning_synthesis, shift=SHIFT)
    loss = segmentation_loss(runtime, images_of(seen, edge_of(trainer.frame.grid), ranges))
    settings = replace(method.finetuning, steps=method.fine_steps, batch_size=runtime.world)
    key = files.fingerprint(key, sorted(taught.values()))
    key = trainer.train(NAME, network, loss, settings, key)
    return Trained(NAME, network, key)


def _teach(
    trainer: Trainer, sources: Sequence[Source], scan: Scan, before: Trained, key: str
) -> str:
    """Leave the soft mask of a scan on disk, in voxels half as large; return its fingerprint."""
    path, key = _place(trainer, scan), files.fingerprint(key, files.sha256(scan.path))
    if path.is_file():
        try:
            if files.load_tensors(path)[1].get("fingerprint") == key:
                return key
        except BadData:
            pass  # half a file from elsewhere: the mask is made again
    conformed = trainer.conform(scan)
    found = replace(conformed, data=viewer(trainer, before.network)(conformed).brain)
    if trainer.method.registers:
        found, _ = join(found, propagate_labels(sources, conformed, trainer.runtime))
    soft = finer(found, tuple(2 * n for n in conformed.data.shape)).data
    packed = zlib.compress(np.rint(STEPS * soft).astype(np.uint8).tobytes(), level=1)
    tensor = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    files.save_tensors(path, {"mask": tensor}, {"fingerprint": key, "shape": soft.shape})
    return key


def _soft_mask(trainer: Trainer, scan: Scan) -> NDArray[np.float32]:
    tensors, card = files.load_tensors(_place(trainer, scan))
    flat = np.frombuffer(zlib.decompress(tensors["mask"].numpy().tobytes()), dtype=np.uint8)
    return flat.reshape(card["shape"]).astype(np.float32) / np.float32(STEPS)


def _place(trainer: Trainer, scan: Scan) -> Path:
    return trainer.work / NAME / f"{files.fingerprint(scan.relative)[:16]}.safetensors"


def _read(trainer: Trainer, scan: Scan) -> Source:
    """Read a scan, in voxels half as large, under its soft mask."""
    image = nifti.load(scan.path)
    return trainer.source(trainer.frame.conform_finer(image), _soft_mask(trainer, scan))


def _labelled(trainer: Trainer, label: Label) -> Source:
    """Read a labelled scan in voxels half as large."""
    image, mask = label.read()
    grid = HalvedGrid(trainer.frame.grid)
    share = conform(mask, image.affine, grid, image.fill).data
    return trainer.source(conform_image(image, grid), share)
