"""The group level: one label and many unlabelled scans become a model.

label -> SL-1 -> autoencoder -> [guess, score, select, refit, fine-tune] x rounds -> card
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from . import __version__, checkpoints, derivatives, labels, model, quality, volume
from .config import MethodConfig, RunConfig, SynthesisConfig, TrainingConfig
from .errors import BadData, ScanFailed, log_failure
from .inference import conform_image, mask_from, predict
from .inputs import Label, Scan, find_label, find_scans
from .losses import soft_dice
from .metrics import dice
from .networks import Autoencoder, UNet
from .registration import carry_over
from .runtime import OUT_OF_MEMORY, Progress, Runtime, check_stop, describe, mix_seed
from .selection import Candidate, top_k
from .synthesis import Source, source, training_batch
from .training import Loss, fit, learning_rate
from .volume import Conformed, Mask

LOG = logging.getLogger("singlestrip_bids")

Guess = Callable[[Conformed], tuple[Mask, float | None]]


@dataclass(frozen=True)
class Stage:
    """Where and how the stages of one model are trained."""

    folder: Path
    work: Path
    method: MethodConfig
    voxel_size: float
    brain_ml: float
    runtime: Runtime

    def conform(self, scan: Scan) -> Conformed:
        """Read a scan and bring it to the model's grid."""
        image = volume.load(scan.path)
        volume.refuse_stripped(image, self.brain_ml)
        multiple = self.method.network.multiple
        return conform_image(image, self.voxel_size, self.method.size, multiple)

    def train(
        self, name: str, network: nn.Module, loss: Loss, settings: TrainingConfig, key: str
    ) -> str:
        """Train a network in place, or read it if it is finished; return its fingerprint."""
        path = self.folder / f"{name}.safetensors"
        key = model.fingerprint(name, asdict(settings), self.method.seed, key)
        if self._finished(path, network, key):
            LOG.info("%s: finished before, taken from %s.", name, path)
            return key
        model.retract(self.folder)
        network.to(self.runtime.device)
        checkpoint = self.work / f"{name}.checkpoint"
        seed = mix_seed(self.method.seed, int(key[:12], 16))
        history = fit(network, loss, settings, self.runtime, checkpoint, key, seed, name)
        rows = [
            {
                "step": step + 1,
                "loss": value,
                "learning_rate": f"{learning_rate(step, settings):.3g}",
            }
            for step, value in enumerate(history)
        ]
        derivatives.write_tsv(self.folder / f"{name}_training.tsv", rows)
        checkpoints.save(path, network.state_dict(), {"fingerprint": key})
        checkpoint.unlink(missing_ok=True)
        return key

    def _finished(self, path: Path, network: nn.Module, key: str) -> bool:
        """Read a network that was trained before under the same fingerprint."""
        if not path.is_file():
            return False
        try:
            tensors, card = checkpoints.load(path)
            if card.get("fingerprint") != key:
                return False
            checkpoints.restore(path, network, tensors)
        except BadData as error:
            LOG.warning("%s It is trained again now.", error)
            return False
        network.to(self.runtime.device)
        return True


def run(config: RunConfig, runtime: Runtime) -> None:
    """Train a model from one label and write it under ``output_dir/code/singlestrip``.

    Raises
    ------
    ScanFailed
        Some unlabelled scans could not be used; the model was made without them.
    SingleStripError
        The label or the selection does not allow a model.
    """
    scans = find_scans(config.bids_dir, config.modalities, config.participant_label)
    labelled = find_label(
        config.bids_dir, scans, config.label_subject, config.derivatives, config.label_mask
    )
    taken = {label.scan.path for label in labelled}
    pool = [scan for scan in scans if scan.path not in taken]
    for label in labelled:
        LOG.info("Label: %s for %s.", label.mask, label.scan.relative)
    stage, sources = _start(config, labelled, runtime)
    derivatives.write_dataset(config.output_dir, config.bids_dir)
    inputs = [_checksums(label) for label in labelled]
    key = model.fingerprint(inputs, _identity(stage))
    autoencoder = _train_autoencoder(stage, sources, key)
    network, key = _first_network(stage, sources, key)
    name, table = _self_train(stage, pool, sources, network, autoencoder, key)
    card = {
        "network": f"{name}.safetensors",
        "self_trained": name != "sl1",
        "label": inputs,
        "unlabelled": [scan.relative for scan in pool],
        "voxel_size_mm": stage.voxel_size,
        "brain_ml": stage.brain_ml,
        "method": stage.method.to_dict(),
        "versions": describe(),
    }
    model.write_card(stage.folder, card)
    LOG.info("Model: %s (%s).", stage.folder, name)
    failed = {row["scan"]: row["note"] for row in table if row["note"]}
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(pool)} unlabelled scans could not be used; the model was made "
            "without them:\n" + "\n".join(f"  {note}" for note in failed.values())
        )


def _self_train(
    stage: Stage,
    pool: Sequence[Scan],
    sources: list[Source],
    network: UNet,
    autoencoder: nn.Module,
    key: str,
) -> tuple[str, list[dict[str, Any]]]:
    """Fine-tune in place, round by round; return the name of the last network and the scores."""
    name, table = "sl1", list[dict[str, Any]]()
    if not pool:
        LOG.warning(
            "NO UNLABELLED SCAN: the model is the network trained on the label alone (SL-1); "
            "add scans to the dataset or widen --modalities to self-train."
        )
        return name, table
    for number in range(1, stage.method.rounds + 1):
        way = stage.method.pseudo_labels if number == 1 else "network"
        guess = _guesser(stage, network, sources, way)
        ranked, masks = _rank(stage, pool, guess, autoencoder, number)
        table += [{"round": number, **asdict(candidate)} for candidate in ranked]
        derivatives.write_tsv(stage.folder / "scores.tsv", table)
        kept = [scan for scan, c in zip(pool, ranked, strict=True) if c.kept]
        if not kept:
            LOG.warning("NO USABLE PSEUDO-MASK in round %d: the model stays %s.", number, name)
            break
        name = f"round-{number}"
        settings, synthesis = stage.method.finetuning, stage.method.finetuning_synthesis
        checksums = [model.sha256(scan.path) for scan in kept]
        key = model.fingerprint(key, checksums, asdict(synthesis), stage.method.copies, way)
        pseudo = _pseudo_label(stage, kept, masks)
        loss = _segmentation_loss(stage, sources + pseudo, settings, synthesis)
        key = stage.train(name, network, loss, settings, key)
    return name, table


def _checksums(label: Label) -> dict[str, str]:
    return {
        "scan": label.scan.relative,
        "scan_sha256": model.sha256(label.scan.path),
        "mask": label.mask.name,
        "mask_sha256": model.sha256(label.mask),
    }


def _start(
    config: RunConfig, labelled: Sequence[Label], runtime: Runtime
) -> tuple[Stage, list[Source]]:
    """Read the labels, settle the voxel size and make their sources."""
    method = config.method
    pairs = []
    for label in labelled:
        image = volume.load(label.scan.path)
        mask = volume.load_mask(label.mask, image)
        if dice(volume.support(image.data), mask) > 0.9:
            raise BadData(
                f"{label.scan.path}: already skull-stripped (nothing but its brain is there); "
                "label a scan that still has its skull."
            )
        pairs.append((image, mask))
    voxel_size = method.voxel_size or float(
        np.median([volume.working_voxel_size(m, i.affine, method.size) for i, m in pairs])
    )
    LOG.info("Working grid: %d voxels of %g mm along each axis.", method.size, voxel_size)
    folder = derivatives.model_dir(config.output_dir)
    brain_ml = float(np.median([volume.millilitres(m, i.affine) for i, m in pairs]))
    work = config.work_dir or folder / "work"
    stage = Stage(folder, work, method, voxel_size, brain_ml, runtime)
    sources = []
    for image, mask in pairs:
        multiple = method.network.multiple
        conformed = conform_image(image, voxel_size, method.size, multiple)
        target = volume.conform(mask, image.affine, voxel_size, method.size, multiple)
        sources.append(_source(stage, conformed, target.data))
    return stage, sources


def _source(stage: Stage, conformed: Conformed, mask: NDArray) -> Source:
    """Fit the mixtures under a mask and move the volume to the device."""
    classes = labels.class_map(conformed.data, mask > 0.5, conformed.inside, stage.method.seed)
    device = stage.runtime.device
    arrays = (classes, conformed.data, np.asarray(mask, dtype=np.float32))
    return source(*(torch.from_numpy(array).to(device) for array in arrays))


def _identity(stage: Stage) -> dict[str, Any]:
    """All settings that decide SL-1."""
    method = stage.method.to_dict()
    names = ("size", "network", "synthesis", "seed")
    device = stage.runtime.device.type
    settings = {name: method[name] for name in names}
    return settings | {
        "voxel_size": stage.voxel_size,
        "device": device,
        "version": __version__,
    }


def _segmentation_loss(
    stage: Stage, sources: list[Source], settings: TrainingConfig, synthesis: SynthesisConfig
) -> Loss:
    """Soft Dice on random images; every mask is drawn equally often."""
    size = stage.method.size

    def loss(network: nn.Module, generator: Generator) -> Tensor:
        device = generator.device
        shape = (settings.batch_size,)
        pick = torch.randint(0, len(sources), shape, generator=generator, device=device)
        chosen = [sources[i] for i in pick.tolist()]
        image, target = training_batch(generator, chosen, size, synthesis)
        with stage.runtime.autocast():
            logits = network(image)
        return soft_dice(logits.float().sigmoid(), target)

    return loss


def _first_network(stage: Stage, sources: list[Source], key: str) -> tuple[UNet, str]:
    """SL-1: trained on the label alone."""
    torch.manual_seed(mix_seed(stage.method.seed, 0))
    network = UNet(stage.method.network)
    method = stage.method
    loss = _segmentation_loss(stage, sources, method.training, method.synthesis)
    return network, stage.train("sl1", network, loss, stage.method.training, key)


def _train_autoencoder(stage: Stage, sources: list[Source], key: str) -> nn.Module:
    settings = stage.method.quality
    torch.manual_seed(mix_seed(stage.method.seed, 1))
    network = Autoencoder(settings.latent, settings.slice_size)
    masks = [(s.mask[0, 0] > 0.5).cpu().numpy() for s in sources]
    brain = torch.cat([quality.slices(mask, settings.slice_size) for mask in masks])
    loss = quality.loss_over(brain.to(stage.runtime.device), settings.batch_size)
    stage.train("autoencoder", network, loss, quality.schedule(brain, settings), key)
    return network


def _guesser(stage: Stage, network: UNet, sources: Sequence[Source], way: str) -> Guess:
    """Make the function that guesses a scan's mask by the network, by registration or by both.

    The consensus is the mean of both, cut at one half; it comes with the Dice of the two masks.
    """

    def by_network(conformed: Conformed) -> NDArray[np.float32]:
        return predict(network, conformed, stage.runtime, stage.method.copies)

    def by_registration(conformed: Conformed) -> NDArray[np.float32]:
        image = torch.from_numpy(conformed.data).to(stage.runtime.device)[None, None]
        carried = torch.stack([carry_over(origin, image) for origin in sources]).mean(0)
        return np.where(conformed.inside, carried.cpu().numpy(), np.float32(0))

    def by_both(conformed: Conformed) -> tuple[Mask, float | None]:
        first, second = by_network(conformed), by_registration(conformed)
        agreement = dice(mask_from(first), mask_from(second))
        return mask_from(np.float32(0.5) * (first + second)), agreement

    if way == "consensus":
        return by_both
    single = by_network if way == "network" else by_registration
    return lambda conformed: (mask_from(single(conformed)), None)


def _rank(
    stage: Stage, pool: Sequence[Scan], guess: Guess, autoencoder: nn.Module, number: int
) -> tuple[list[Candidate], dict[str, bytes]]:
    """Guess and score a mask of every unlabelled scan; a bad scan gets a note and no mask.

    Returns
    -------
    tuple
        The candidates in the order of the pool, the best marked as kept, and the packed masks.
    """
    candidates, masks = [], {}
    with Progress(f"round {number}: ranking", len(pool)) as progress:
        for scan in pool:
            check_stop()
            try:
                conformed = stage.conform(scan)
                mask, agreement = guess(conformed)
                score = quality.score(autoencoder, mask, stage.method.quality, stage.runtime)
                millilitres = volume.millilitres(mask, conformed.affine)
                candidates.append(Candidate(scan.relative, score, agreement, millilitres))
                masks[scan.relative] = volume.pack(mask)
            except OUT_OF_MEMORY:
                raise
            except Exception as error:  # one bad scan never stops the others
                note = log_failure(scan.path, error)
                candidates.append(Candidate(scan.relative, 0.0, None, 0.0, note=note))
            progress.step(f"{scan.name} {candidates[-1].rank:.3f}")
    k = stage.method.top_k or max(10, len(pool) // 2)
    return top_k(candidates, k), masks


def _pseudo_label(stage: Stage, kept: Sequence[Scan], masks: dict[str, bytes]) -> list[Source]:
    """Refit the mixtures of the kept scans under their pseudo-masks."""
    sources = []
    with Progress("refitting mixtures", len(kept)) as progress:
        for scan in kept:
            check_stop()
            conformed = stage.conform(scan)
            mask = volume.unpack(masks[scan.relative], conformed.data.shape)
            sources.append(_source(stage, conformed, mask))
            progress.step(scan.name)
    return sources
