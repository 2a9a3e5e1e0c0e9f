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

from ..bids.scans import Scan
from ..config import PHANTOM, MethodConfig, TrainingConfig
from ..errors import BadData, CannotCreate, IOFailed, ScanFailed, Usage
from ..image import nifti
from ..image.frame import Frame
from ..image.grid import Conformed
from ..image.masks import clean
from ..image.structures import (
    Numbers,
    Structure,
    coarsened_numbers,
)
from ..machine import files
from ..machine.runlog import report_crash
from ..machine.runtime import OUT_OF_MEMORY, Runtime, as_memory_allows, mix_seed
from . import model
from .autoencoder import loss_over, schedule, slices
from .classes import Source, class_map, source
from .encoders import Encoder
from .inference import AUGMENTED, predict
from .losses import Averaged, images_of, ramped_loss, segmentation_loss
from .networks import Autoencoder, Network, UNet
from .pose import turn
from .training import Loss, fit, learning_rate, load_weights

LOG = logging.getLogger("singlestrip_bids")


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
    encoder: Encoder | None = None  # that describes scans, if the method needs it
    log_dir: Path | None = None  # for crash files
    stop_on_first_crash: bool = False

    def conform(self, scan: Scan) -> Conformed:
        """Read a scan and bring it to the model's grid."""
        return self.frame.conform(nifti.load(scan.path))

    def kept(self, scan: Scan, folder: str) -> Path:
        """Where what is made of a scan lies on disk, in a folder of `work`."""
        return self.work / folder / f"{files.fingerprint(scan.relative)[:16]}.safetensors"

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
        """Fit the mixtures under a mask. There may be many: they do not lie on the device.

        ``numbers`` are those of structures in the mask, in voxels as large or half as large.
        """
        data, count = conformed.data, len(self.structures)
        coarse = None if numbers is None else coarsened_numbers(numbers, data.shape)
        seed, inside = self.method.seed, conformed.inside
        classes = class_map(data, mask > 0.5, inside, seed, parts=coarse, structures=count)
        arrays = (classes, data, np.asarray(mask, dtype=np.float32))
        made = source(*map(torch.from_numpy, arrays))
        if numbers is None:
            return made
        parts = torch.from_numpy(numbers).float()[None, None]
        return replace(made, parts=parts, structures=count)

    def train(
        self,
        name: str,
        network: Network,
        loss: Loss,
        settings: TrainingConfig,
        key: str,
        sources: Sequence[Source] = (),
        learner: Averaged | None = None,
    ) -> str:
        """Train a network in place, or read it if it is finished; return its fingerprint.

        Where the masks of a U-Net are cut is settled by the labelled ``sources``, and kept beside
        the weights. A ``learner`` is trained in its network's stead, which it holds. Of several
        processes the first one writes.
        """
        path = self.folder / f"{name}.safetensors"
        how = ["settle"] if sources else []
        key = files.fingerprint(name, asdict(settings), self.method.seed, key, *how)
        if self._finished(path, network, key):
            LOG.info("%s: finished before, taken from %s.", name, path)
            return key
        if self.runtime.main:
            model.retract(self.folder)
        module = (learner or network).to(self.runtime.device)
        checkpoint = self.work / f"{name}.checkpoint"
        seed = mix_seed(self.method.seed, int(key[:12], 16))
        history = fit(module, loss, settings, self.runtime, checkpoint, key, seed, name)
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


def train_autoencoder(trainer: Trainer, sources: Sequence[Source]) -> Autoencoder:
    """Train the autoencoder on slices of the labels alone (SingleStrip, section 2.3)."""
    method, runtime = trainer.method, trainer.runtime
    torch.manual_seed(mix_seed(method.seed, 1))
    network = Autoencoder(method.quality, len(trainer.structures))
    shapes = [_shape(source) for source in sources]
    brain = torch.cat([slices(shape, method.quality.slice_size) for shape in shapes])
    settings = schedule(brain, method.quality)
    if method.any_orientation:
        turned = [other for shape in shapes for other in turn(shape)]
        brain = torch.cat([slices(shape, method.quality.slice_size) for shape in turned])
    loss = loss_over(brain.to(runtime.device), method.quality.batch_size, network.classes)
    with runtime.first():  # its batches cannot be shared out; the others read it
        alone = replace(trainer, runtime=runtime.alone())
        key = files.fingerprint(trainer.key, asdict(method.quality))
        alone.train("autoencoder", network, loss, settings, key)
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
    method, runtime = trainer.method, trainer.runtime
    network = copy.deepcopy(before.network) if method.warm_start else _new_network(trainer)
    key = key if method.warm_start else files.fingerprint(key, "new")
    learner, how = None, (method.size, method.finetuning_synthesis)
    if method.consistency:
        learner = Averaged(network, method.finetuning.steps)
        labelled, others = images_of(sources, *how), images_of(pseudo, *how)
        loss = ramped_loss(runtime, labelled, others, method.consistency)
        key = files.fingerprint(key, "ramped", method.consistency)
    else:
        loss = segmentation_loss(runtime, images_of([*sources, *pseudo], *how))
    key = trainer.train(name, network, loss, method.finetuning, key, sources, learner)
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
            raise Usage(
                "--init phantom goes with the network of --preset quick; for another give "
                "--init random."
            ) from error
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
