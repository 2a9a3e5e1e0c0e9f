"""One model's trainings: the folder, the grid, the settings; each is done once.

A mask is cut where the probability is one half. Self-training swells masks a little, everywhere;
on the labelled scan it is known by how much, and each trained network is put right by that.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from ..bids.derivatives import Derivatives
from ..bids.dseg import structures_in
from ..bids.label import Label
from ..bids.scans import Scan
from ..config import PHANTOM, MethodConfig, RunConfig, TrainingConfig
from ..errors import BadData, CannotCreate, IOFailed, ScanFailed, Usage
from ..image import nifti
from ..image.frame import Frame
from ..image.grid import Conformed, Grid, HalvedGrid, conform, conform_image
from ..image.head import refuse_stripped
from ..image.masks import clean
from ..image.nifti import Image
from ..image.structures import (
    Numbers,
    Structure,
    coarsened_numbers,
    conform_numbers,
    numbered,
)
from ..machine import files
from ..machine.runlog import report_crash
from ..machine.runtime import OUT_OF_MEMORY, Runtime, as_memory_allows, mix_seed
from . import model
from .autoencoder import loss_over, schedule, slices
from .classes import Source, class_map, source
from .inference import AUGMENTED, predict
from .losses import images_of, segmentation_loss
from .networks import Autoencoder, Network, UNet
from .training import Loss, fit, learning_rate, load_weights

LOG = logging.getLogger("singlestrip_bids")

HALVED = 128  # voxels along an edge of the largest grid on which labels have a fine mask, too
FINE = 64  # the same, of the largest on which structures are told apart in voxels half as large


@dataclass(frozen=True)
class Trained:
    """A network, its name, and the fingerprint of all that made it."""

    name: str
    network: UNet
    key: str


@dataclass(frozen=True)
class Trainer:
    """Where and how the networks of one model are trained."""

    folder: Path  # of the finished networks
    work: Path  # of what an unfinished training needs to go on
    method: MethodConfig
    frame: Frame  # how scans are brought to the networks' grid
    runtime: Runtime
    key: str = ""  # fingerprint of the labels and of all settings that decide SL-1
    structures: tuple[Structure, ...] = ()  # that the labels tell apart, if any
    log_dir: Path | None = None  # for crash files
    stop_on_first_crash: bool = False

    def conform(self, scan: Scan) -> Conformed:
        """Read a scan and bring it to the model's grid."""
        return self.frame.conform(nifti.load(scan.path))

    def note(self, scan: Scan, error: Exception) -> str:
        """Leave a crash file of a scan that failed; return what to say of it.

        What was not the scan's fault is raised; so is `ScanFailed` if a first crash stops the run.
        """
        if isinstance(error, (OUT_OF_MEMORY, CannotCreate, IOFailed)):
            raise error
        note = report_crash(self.log_dir, scan.path, error)
        if self.stop_on_first_crash:
            raise ScanFailed(f"Stopped at the first scan that failed: {note}") from error
        return note

    def source(
        self, conformed: Conformed, mask: NDArray, numbers: Numbers | None = None
    ) -> Source:
        """Fit the mixtures under a mask and move the volume to the device.

        ``numbers`` are those of structures in the mask, in voxels as large or half as large.
        """
        data, count = conformed.data, len(self.structures)
        parts = None if numbers is None else coarsened_numbers(numbers, data.shape)
        seed, inside = self.method.seed, conformed.inside
        classes = class_map(data, mask > 0.5, inside, seed, parts=parts, structures=count)
        arrays = (classes, data, np.asarray(mask, dtype=np.float32))
        made = source(*(torch.from_numpy(array).to(self.runtime.device) for array in arrays))
        if numbers is None:
            return made
        fine = torch.from_numpy(numbers).to(self.runtime.device, torch.float32)[None, None]
        return replace(made, parts=fine, structures=count)

    def train(
        self,
        name: str,
        network: Network,
        loss: Loss,
        settings: TrainingConfig,
        key: str,
        sources: Sequence[Source] = (),
    ) -> str:
        """Train a network in place, or read it if it is finished; return its fingerprint.

        Where the masks of a U-Net are cut is settled by the labelled ``sources``, and kept beside
        the weights. Of several processes the first one writes.
        """
        path = self.folder / f"{name}.safetensors"
        how = ["settle"] if sources else []
        key = files.fingerprint(name, asdict(settings), self.method.seed, key, *how)
        if self._finished(path, network, key):
            LOG.info("%s: finished before, taken from %s.", name, path)
            return key
        if self.runtime.main:
            model.retract(self.folder)
        network.to(self.runtime.device)
        checkpoint = self.work / f"{name}.checkpoint"
        seed = mix_seed(self.method.seed, int(key[:12], 16))
        history = fit(network, loss, settings, self.runtime, checkpoint, key, seed, name)
        facts: dict[str, Any] = {}
        if sources:
            facts["threshold"] = settle(self, network, sources)
        if not self.runtime.main:
            return key
        self._write_losses(name, history, settings)
        facts |= {"fingerprint": key, "preset": self.method.preset}
        files.save_tensors(path, network.state_dict(), facts)
        checkpoint.unlink(missing_ok=True)
        return key

    def _write_losses(self, name: str, history: Sequence[float], settings: TrainingConfig) -> None:
        rows = [
            {"step": n + 1, "loss": loss, "learning_rate": f"{learning_rate(n, settings):.3g}"}
            for n, loss in enumerate(history)
        ]
        files.write_tsv(self.folder / f"{name}_training.tsv", rows)

    def _finished(self, path: Path, network: Network, key: str) -> bool:
        """Read a network that was trained before under the same fingerprint."""
        if not path.is_file():
            return False
        try:
            tensors, card = files.load_tensors(path)
            if card.get("fingerprint") != key:
                return False
            load_weights(path, network, tensors)
        except BadData as error:
            LOG.warning("%s It is trained again now.", error)
            return False
        network.to(self.runtime.device)
        return True


def begin(
    config: RunConfig, labels: Sequence[Label], runtime: Runtime
) -> tuple[Trainer, list[Source]]:
    """Read the labels, settle the grid, and fit the intensity classes of the labelled scans.

    Raises
    ------
    BadData
        A label cannot be learnt from.
    """
    method = config.method
    pairs = [label.read() for label in labels]
    frame = Frame.around(pairs, method.size, method.network.multiple, method.voxel_size)
    grid = frame.grid
    LOG.info("Working grid: %d voxels of %g mm along each axis.", grid.size, grid.voxel_size)
    settings = {name: method.to_dict()[name] for name in ("size", "network", "synthesis", "seed")}
    settings |= {"voxel_size": grid.voxel_size, "version": __version__}
    key = files.fingerprint([label.checksums for label in labels], settings)
    folder = Derivatives(config.output_dir).model_dir
    work = folder / "work"
    if config.work_dir:  # which other trainings may share
        work = config.work_dir / files.fingerprint(key, str(config.output_dir))[:16]
    how = config.log_dir, config.stop_on_first_crash
    structures, numbers = _structures(labels, [image for image, _ in pairs], grid)
    trainer = Trainer(folder, work, method, frame, runtime, key, structures, *how)
    masks = [conform(mask, image.affine, grid, image.fill).data for image, mask in pairs]
    images = [conform_image(image, grid) for image, _ in pairs]
    for label, image, mask in zip(labels, images, masks, strict=True):
        refuse_stripped(label.scan.path, image, mask > 0.5)
    heads = zip(images, masks, numbers, strict=True)
    sources = [trainer.source(*head) for head in heads]
    if grid.size > HALVED:
        return trainer, sources
    fine = [conform(mask, image.affine, HalvedGrid(grid), image.fill) for image, mask in pairs]
    move = (torch.from_numpy(one.data).to(runtime.device)[None, None] for one in fine)
    return trainer, [replace(one, fine=mask) for one, mask in zip(sources, move, strict=True)]


def _structures(
    labels: Sequence[Label], images: Sequence[Image], grid: Grid
) -> tuple[tuple[Structure, ...], list[Numbers | None]]:
    """Read what the labels tell apart, and number it on the grid, in voxels of 2 mm or so.

    A label that is a mask, or holds one structure, tells nothing apart.
    """
    nothing: list[Numbers | None] = [None] * len(labels)
    if not all(label.is_dseg for label in labels):
        return (), nothing
    found = [
        nifti.load_dseg(label.mask, image) for label, image in zip(labels, images, strict=True)
    ]
    named = structures_in({label.mask: one for label, one in zip(labels, found, strict=True)})
    structures = tuple(one for one in named if _is_seen(one, labels, found, images, grid))
    if len(structures) < 2:
        return (), nothing
    fine = grid if grid.size > FINE else HalvedGrid(grid)
    LOG.info("%d structures: %s.", len(structures), ", ".join(s.name for s in structures[:9]))
    pairs = zip(images, found, strict=True)
    return structures, [
        conform_numbers(numbered(one, structures), image.affine, fine, image.fill)
        for image, one in pairs
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


def train_autoencoder(trainer: Trainer, sources: Sequence[Source]) -> Autoencoder:
    """Train the autoencoder on slices of the labels alone (SingleStrip, section 2.3)."""
    method, runtime = trainer.method, trainer.runtime
    torch.manual_seed(mix_seed(method.seed, 1))
    network = Autoencoder(method.quality, len(trainer.structures))
    brain = torch.cat([slices(_shape(source), method.quality.slice_size) for source in sources])
    loss = loss_over(brain.to(runtime.device), method.quality.batch_size, network.classes)
    with runtime.first():  # its batches cannot be shared out; the others read it
        alone = replace(trainer, runtime=runtime.alone())
        settings = schedule(brain, method.quality)
        alone.train("autoencoder", network, loss, settings, trainer.key)
    return network


def _shape(origin: Source) -> NDArray:
    """Return what the autoencoder learns: a mask (X, Y, Z), or the numbers of its structures."""
    mask = (origin.mask[0, 0] > 0.5).cpu().numpy()
    if origin.parts is None:
        return np.asarray(mask)
    numbers = origin.parts[0, 0].to(torch.uint8).cpu().numpy()
    return coarsened_numbers(numbers, mask.shape)


def train_first(trainer: Trainer, sources: Sequence[Source], heads: Sequence[Source]) -> Trained:
    """Train SL-1 on the labels alone (SingleStrip, section 2.2).

    ``heads`` are the labelled ``sources``, and those whose field of view was extended.
    """
    network, method = _new_network(trainer), trainer.method
    draw = images_of(heads, method.size, method.synthesis)
    loss = segmentation_loss(trainer.runtime, draw)
    special = ["continued"] if len(heads) > len(sources) else []
    special += [method.init] if method.init != "random" else []
    key = files.fingerprint(trainer.key, *special) if special else trainer.key
    key = trainer.train("sl1", network, loss, method.training, key, sources)
    return Trained("sl1", network, key)


def round_name(number: int) -> str:
    """Name the network of a round of self-training; SL-1 is ``sl1``."""
    return f"round-{number}"


def fine_tune(
    trainer: Trainer,
    before: Trained,
    name: str,
    key: str,
    sources: Sequence[Source],
    pseudo: Sequence[Source],
) -> Trained:
    """Train on labels and pseudo-labels, from the network before (SingleStrip, section 2.4).

    ``key`` is the fingerprint of the pseudo-labels.
    """
    method = trainer.method
    draw = images_of([*sources, *pseudo], method.size, method.finetuning_synthesis)
    loss = segmentation_loss(trainer.runtime, draw)
    network = copy.deepcopy(before.network) if method.warm_start else _new_network(trainer)
    key = key if method.warm_start else files.fingerprint(key, "new")
    key = trainer.train(name, network, loss, method.finetuning, key, sources)
    return Trained(name, network, key)


def _new_network(trainer: Trainer) -> UNet:
    torch.manual_seed(mix_seed(trainer.method.seed, 0))
    network = UNet(trainer.method.network, len(trainer.structures))
    if trainer.method.init == PHANTOM.name:
        path = PHANTOM / f"{PHANTOM.name}.safetensors"
        parts = {k: t for k, t in network.state_dict().items() if k.startswith("parts.")}
        try:
            load_weights(path, network, {**files.load_tensors(path)[0], **parts})
        except BadData as error:
            raise Usage("--init phantom goes with the network of --preset quick.") from error
    return network


LIMITS = 0.5, 0.8  # of the threshold; below one half, masks would grow
BISECTIONS = 7  # to 0.002


def settle(trainer: Trainer, network: Network, sources: Sequence[Source]) -> float:
    """Shift a network's logits where the labelled scans' masks are larger than the labels.

    Return the probability at which they are as large, in [0.5, 0.8]; it is one half from now on.
    The last biases of the network are changed in place.
    """
    assert isinstance(network, UNet)
    probabilities = [_probability(trainer, network, source) for source in sources]
    wanted = sum(int((source.mask > 0.5).sum()) for source in sources)

    def too_large(threshold: float) -> bool:
        return sum(int(clean(p > threshold).sum()) for p in probabilities) > wanted

    found, *_ = trainer.runtime.gather(_least(too_large))  # the first process decides for all
    if found > LIMITS[0]:
        LOG.info("The label's mask was too large: masks are cut at %.2f, one half now.", found)
    with torch.no_grad():
        bias = network.head.bias
        assert bias is not None
        bias -= torch.tensor(found).logit().item()
    return round(float(found), 3)


def _least(too_large: Callable[[float], bool]) -> float:
    """Bisect to the least threshold at which masks are not too large."""
    low, high = LIMITS
    if not too_large(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_large(middle) else (low, middle)
    return high


def _probability(trainer: Trainer, network: UNet, source: Source) -> NDArray[np.float32]:
    data, classes = (volume[0, 0].cpu().numpy() for volume in (source.image, source.classes))
    conformed = Conformed(data, np.eye(4), classes > 0)
    return as_memory_allows(
        lambda machine: predict(network, conformed, machine, AUGMENTED), trainer.runtime.rungs()
    )
