"""From the labels to what is learnt from: the grid is settled, the classes are fitted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from ..bids.derivatives import Derivatives
from ..bids.dseg import structures_in
from ..bids.label import Label
from ..config import RunConfig
from ..image import nifti
from ..image.frame import Frame
from ..image.grid import Grid, HalvedGrid, conform, conform_image
from ..image.head import refuse_stripped
from ..image.masks import Mask
from ..image.nifti import Image
from ..image.structures import Numbers, Structure, conform_numbers, numbered
from ..machine import files
from ..machine.runtime import Runtime
from . import encoders
from .classes import Source
from .trainer import Trainer

LOG = logging.getLogger("singlestrip_bids")

HALVED = 128  # voxels along an edge of the largest grid on which labels have a fine mask, too
FINE = 64  # the same, of the largest on which structures are told apart in voxels half as large


def begin(
    config: RunConfig, labels: Sequence[Label], runtime: Runtime
) -> tuple[Trainer, list[Source]]:
    """Read the labels, settle the grid, and fit the intensity classes of the labelled scans.

    Raises
    ------
    BadData
        A label cannot be learnt from, or an encoder cannot be used.
    """
    method = config.method
    pairs = [label.read() for label in labels]
    frame = Frame.around(pairs, method.size, method.network.multiple, method.voxel_size)
    frame = replace(frame, turned=method.any_orientation)
    grid = frame.grid
    LOG.info("Working grid: %d voxels of %g mm along each axis.", grid.size, grid.voxel_size)
    settings = {name: method.to_dict()[name] for name in ("size", "network", "synthesis", "seed")}
    settings |= {"voxel_size": grid.voxel_size, "version": __version__}
    settings |= {"any_orientation": True} if method.any_orientation else {}
    key = files.fingerprint([label.checksums for label in labels], settings)
    folder = Derivatives(config.output_dir).model_dir
    work = folder / "work"
    if config.work_dir:  # which other trainings may share
        work = config.work_dir / files.fingerprint(key, str(config.output_dir))[:16]
    how = config.log_dir, config.stop_on_first_crash
    structures, numbers = _structures(labels, pairs, grid)
    encoder = encoders.chosen(method, config.encoder, runtime)
    trainer = Trainer(folder, work, method, frame, runtime, key, structures, encoder, *how)
    masks = [conform(mask, image.affine, grid, image.fill).data for image, mask in pairs]
    images = [conform_image(image, grid) for image, _ in pairs]
    for label, image, mask in zip(labels, images, masks, strict=True):
        refuse_stripped(label.scan.path, image, mask > 0.5)
    heads = zip(images, masks, numbers, strict=True)
    sources = [replace(trainer.source(*head), turned=method.any_orientation) for head in heads]
    if grid.size <= HALVED:
        halved = HalvedGrid(grid)
        fine = (conform(mask, image.affine, halved, image.fill).data for image, mask in pairs)
        both = zip(sources, map(torch.from_numpy, fine), strict=True)
        sources = [replace(one, fine=mask[None, None]) for one, mask in both]
    return trainer, [one.to(runtime.device) for one in sources]


def _structures(
    labels: Sequence[Label], pairs: Sequence[tuple[Image, Mask]], grid: Grid
) -> tuple[tuple[Structure, ...], list[Numbers | None]]:
    """Read what the labels tell apart, and number it on the grid, in voxels of 2 mm or so.

    A label that is a mask, or holds one structure, tells nothing apart. What lies outside of the
    masks, in a piece of its own, is left out.
    """
    nothing: list[Numbers | None] = [None] * len(labels)
    if not all(label.is_dseg for label in labels):
        return (), nothing
    images = [image for image, _ in pairs]
    found = [
        np.where(mask, nifti.load_dseg(label.mask, image), 0)
        for label, (image, mask) in zip(labels, pairs, strict=True)
    ]
    named = structures_in({label.mask: one for label, one in zip(labels, found, strict=True)})
    structures = tuple(one for one in named if _is_seen(one, labels, found, images, grid))
    if len(structures) < 2:
        return (), nothing
    fine = grid if grid.size > FINE else HalvedGrid(grid)
    LOG.info("%d structures: %s.", len(structures), ", ".join(s.name for s in structures[:9]))
    return structures, [
        conform_numbers(numbered(one, structures), image.affine, fine, image.fill)
        for image, one in zip(images, found, strict=True)
    ]


def _is_seen(
    one: Structure,
    labels: Sequence[Label],
    segmentations: Sequence[NDArray[np.int64]],
    images: Sequence[Image],
    grid: Grid,
) -> bool:
    """Tell whether a structure has at least one voxel of the grid in a label; warn if not."""
    sizes = [
        float(np.prod(image.sizes)) * int((found == one.index).sum())
        for image, found in zip(images, segmentations, strict=True)
    ]
    if max(sizes) >= grid.voxel_size**3:
        return True
    LOG.warning(
        "%s: %s (index %d) has %.3g mm3, less than one voxel of the working grid; it is left out, "
        "and what lies there goes to its neighbours.",
        labels[0].mask, one.name, one.index, max(sizes),
    )  # fmt: skip
    return False
