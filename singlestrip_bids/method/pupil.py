"""The fine network in training: a pupil of network and propagated label together.

These err head by head, now outside of the border and now inside; what scans show of it is common
to all heads, and that is learnt.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..bids.label import Label
from ..bids.scans import Scan
from ..errors import BadData, ScanFailed
from ..image import nifti
from ..image.grid import HalvedGrid, conform, conform_image
from ..image.structures import STEPS, doubled, most, pack_numbers, unpack_numbers
from ..machine import files
from ..machine.progress import Progress
from ..machine.runtime import check_stop
from .classes import Source
from .fine import NAME, edge_of
from .inference import mask_from
from .losses import images_of, segmentation_loss
from .propagation import finer, finer_shares, hear, propagate_labels
from .pseudolabels import spread, viewer
from .trainer import Trained, Trainer

LOG = logging.getLogger("singlestrip_bids")

SHIFT = 0.05  # of the brain's centre in its images, of their edge: the brain is found already
SCANS = 50  # unlabelled ones that it learns from, at most: each takes 25 MB


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
    seen = [_labelled(trainer, *pair) for pair in zip(labels, sources, strict=True)]
    with Progress("fine: refitting mixtures", len(pupils)) as progress:
        for scan in pupils:
            check_stop()
            seen.append(_read(trainer, scan))
            progress.step(scan.name)
    network = copy.deepcopy(before.network)
    ranges = replace(method.finetuning_synthesis, shift=SHIFT)
    loss = segmentation_loss(runtime, images_of(seen, edge_of(trainer.frame.grid), ranges))
    settings = replace(method.finetuning, steps=method.fine_steps, batch_size=1)
    key = files.fingerprint(key, sorted(taught.values()))
    with runtime.first():  # one image cannot be shared out; the others read it
        alone = replace(trainer, runtime=runtime.alone())
        key = alone.train(NAME, network, loss, settings, key)
    return Trained(NAME, network, key)


def _teach(
    trainer: Trainer, sources: Sequence[Source], scan: Scan, before: Trained, key: str
) -> str:
    """Leave the soft mask of a scan on disk, in voxels half as large; return its fingerprint."""
    path, key = trainer.kept(scan, NAME), files.fingerprint(key, files.sha256(scan.path))
    if path.is_file():
        try:
            if files.load_tensors(path)[1].get("fingerprint") == key:
                return key
        except BadData:
            pass  # half a file from elsewhere: the mask is made again
    conformed = trainer.conform(scan)
    seen = viewer(trainer, before.network)(conformed)
    found, shares = replace(conformed, data=seen.brain), seen.shares
    if trainer.method.registers:
        said = propagate_labels(sources, conformed, trainer.runtime, seen.mask)
        found, shares, _ = hear(found, shares, said)
    shape = tuple(2 * n for n in conformed.data.shape)
    soft = finer(found, shape).data
    mask = mask_from(soft)
    if not mask.any():
        raise ScanFailed(
            f"{scan.path}: the network found no brain; look at the scan, or label one like it."
        )
    soft = np.where(mask, soft, np.minimum(soft, np.float32(0.5)))  # what is apart is no brain
    volumes = {"mask": np.rint(STEPS * soft).astype(np.uint8)}
    if shares is not None:
        volumes["numbers"] = most(finer_shares(shares, shape), mask)
    tensors = {name: files.bytes_tensor(pack_numbers(v)) for name, v in volumes.items()}
    files.save_tensors(path, tensors, {"fingerprint": key, "shape": shape})
    return key


def _taught(trainer: Trainer, scan: Scan) -> dict[str, NDArray[np.uint8]]:
    """Read the soft mask of a scan, in 255 steps, and the numbers of its structures, if any."""
    tensors, card = files.load_tensors(trainer.kept(scan, NAME))
    shape = card["shape"]
    return {name: unpack_numbers(t.numpy().tobytes(), shape) for name, t in tensors.items()}


def _read(trainer: Trainer, scan: Scan) -> Source:
    """Read a scan, in voxels half as large, under its soft mask."""
    found, image = _taught(trainer, scan), nifti.load(scan.path)
    fine = trainer.frame.conform_finer(image, trainer.frame.conform(image))
    mask = found["mask"].astype(np.float32) / np.float32(STEPS)
    return trainer.source(fine, mask, found.get("numbers"))


def _labelled(trainer: Trainer, label: Label, origin: Source) -> Source:
    """Read a labelled scan in voxels half as large; ``origin`` has it, and its structures."""
    image, mask = label.read()
    grid = HalvedGrid(trainer.frame.grid)
    share = conform(mask, image.affine, grid, image.fill).data
    numbers = None
    if origin.parts is not None:
        numbers = origin.parts[0, 0].to(torch.uint8).cpu().numpy()
        numbers = numbers if numbers.shape == share.shape else doubled(numbers)
    return trainer.source(conform_image(image, grid), share, numbers)
