"""The group level: one label and many unlabelled scans become a model.

label -> autoencoder -> SL-1 -> [rank, select, refit, fine-tune] x rounds -> guard -> card

Several processes train and rank together; all else that has one result is made by the first.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from . import (
    __version__,
    checkpoints,
    derivatives,
    group_report,
    methods,
    model,
    quality,
    ratings,
    threshold,
    volume,
)
from .config import RunConfig, SynthesisConfig
from .continuation import continued
from .errors import BadData, ScanFailed
from .frame import Frame, head_width
from .guard import Verdict, choose, sample_of
from .inference import conform_image
from .inputs import Scan, selected
from .labelled import Label, find_label
from .losses import soft_dice
from .metrics import dice
from .networks import Autoencoder, UNet
from .ranking import guesser, pseudo_label, rank
from .runtime import Runtime, describe, mix_seed
from .stage import Stage
from .synthesis import Source, on_host, training_batch
from .training import Loss

LOG = logging.getLogger("singlestrip_bids")


def run(config: RunConfig, runtime: Runtime) -> None:
    """Train a model from one label and write it under ``output_dir/code/singlestrip``.

    Raises
    ------
    ScanFailed
        Some unlabelled scans could not be used; the model was made without them.
    SingleStripError
        The label or the selection does not allow a model.
    """
    scans = selected(config)
    labelled = find_label(
        config.bids_dir, scans, config.label_subject, config.derivatives, config.label_mask
    )
    taken = {label.scan.path for label in labelled}
    rated = ratings.read(config.ratings)
    pool = [s for s in scans if s.path not in taken and s.relative not in rated.rejected]
    for label in labelled:
        LOG.info("Label: %s for %s.", label.mask, label.scan.relative)
    stage, sources = _start(config, labelled, runtime)
    heads = _continued(sources, stage.method.size)
    if runtime.main:
        _show(config, heads, runtime)
    inputs = [_checksums(label) for label in labelled]
    key = model.fingerprint(inputs, _identity(stage))
    if config.work_dir:  # which other trainings may share
        own = model.fingerprint(key, str(config.output_dir))[:16]
        stage = replace(stage, work=config.work_dir / own)
    autoencoder = _train_autoencoder(stage, sources, key)
    first, key = _first_network(stage, sources, heads, key)
    networks, table = _self_train(config, stage, pool, sources, first, autoencoder, key, rated)
    if not runtime.main:
        return
    failed = {row["scan"]: row["note"] for row in table if row["note"]}
    usable = [scan for scan in pool if scan.relative not in failed]
    known = {
        "label": inputs,
        "unlabelled": [scan.relative for scan in pool],
        "ratings": rated.to_dict(),
        "voxel_size_mm": stage.frame.voxel_size,
        "brain_ml": stage.frame.brain_ml,
        "head_width": stage.frame.head_width,
        "continued": len(heads) > len(sources),
        "method": stage.method.to_dict(),
    }
    files = [stage.folder / f"{name}.safetensors" for name in ("autoencoder", *networks)]
    files += [scan.path for scan in sample_of(usable)]
    key = model.fingerprint(known, __version__, [_checksum(path) for path in files])
    if model.made_of(stage.folder) == key:
        model.confirm(stage.folder)
        LOG.info("Model: %s, finished before.", stage.folder)
    else:
        verdict = choose(stage, usable, sources, networks, autoencoder)
        failed |= verdict.failed
        _finish(config, stage, verdict, known, key)
    group_report.write(config.output_dir, stage.folder)
    methods.write(config.output_dir, stage.folder)
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(pool)} unlabelled scans could not be used; the model was made "
            "without them:\n" + "\n".join(f"  {note}" for note in failed.values())
        )


def _finish(
    config: RunConfig, stage: Stage, verdict: Verdict, known: dict[str, Any], key: str
) -> None:
    """Write the card: the model is complete."""
    for one in verdict.apart:
        group_report.draw_networks(config.output_dir, one.scan, stage.conform(one.scan), one.masks)
    network = f"{verdict.name}.safetensors"
    card = {
        "network": network,
        "self_trained": verdict.name != "sl1",
        "guard": verdict.to_dict(),
        "threshold": checkpoints.load(stage.folder / network)[1].get("threshold"),
        "calibration": asdict(verdict.calibration),
        **known,
        "versions": describe(stage.runtime.device),
        "fingerprint": "" if verdict.failed else key,  # what failed is tried again
    }
    model.write_card(stage.folder, card)
    LOG.info("Model: %s (%s).", stage.folder, verdict.name)


def _show(config: RunConfig, sources: Sequence[Source], runtime: Runtime) -> None:
    """Make the output dataset, and draw there what is learnt from."""
    derivatives.write_dataset(config.output_dir, config.bids_dir)
    method = config.method
    draw = partial(runtime.generator, mix_seed(method.seed, 3))
    group_report.draw_sources(config.output_dir, sources, method.size, method.synthesis, draw)


def remake(config: RunConfig, runtime: Runtime) -> None:
    """Write the page of the group from what is on disk; nothing is trained."""
    group_report.write(config.output_dir, derivatives.model_dir(config.output_dir))


def _self_train(
    config: RunConfig,
    stage: Stage,
    pool: Sequence[Scan],
    sources: list[Source],
    first: UNet,
    autoencoder: nn.Module,
    key: str,
    rated: ratings.Ratings,
) -> tuple[dict[str, UNet], list[dict[str, Any]]]:
    """Fine-tune round by round; return the first and the last network by name, and the scores.

    What was trained from a new network is a method of its own: SL-1 is no candidate then.
    """
    networks, table = {"sl1": first}, list[dict[str, Any]]()
    if not pool:
        LOG.warning(
            "NO UNLABELLED SCAN: the model is the network trained on the label alone (SL-1); "
            "add scans to the dataset or widen --modalities to self-train."
        )
        return networks, table
    name, network = "sl1", copy.deepcopy(first)
    for number in range(1, stage.method.rounds + 1):
        way = stage.method.pseudo_labels if number == 1 else "network"
        settings, synthesis = stage.method.finetuning, stage.method.finetuning_synthesis
        guess, earlier, name = guesser(stage, network, sources, way), name, f"round-{number}"
        key = model.fingerprint(key, stage.method.copies, way)
        judged = model.fingerprint(key, asdict(stage.method.quality))
        draw = partial(group_report.draw_pseudo, config.output_dir, number)
        ranked = rank(stage, pool, guess, autoencoder, name, judged, rated.accepted, draw)
        table += [{"round": number, **asdict(candidate)} for candidate in ranked]
        if stage.runtime.main:
            derivatives.write_tsv(stage.folder / "scores.tsv", table)
        kept = [scan for scan, c in zip(pool, ranked, strict=True) if c.kept]
        if not kept:
            LOG.warning("NO USABLE PSEUDO-MASK in round %d: the model stays %s.", number, earlier)
            break
        key = model.fingerprint(key, [model.sha256(scan.path) for scan in kept], asdict(synthesis))
        pseudo = pseudo_label(stage, kept, name)
        loss = segmentation_loss(stage.runtime, sources + pseudo, stage.method.size, synthesis)
        if not stage.method.warm_start:
            network, key = _new_network(stage), model.fingerprint(key, "new")
        key = stage.train(name, network, loss, settings, key, _settling(stage, sources))
        networks = {"sl1": first, name: network} if stage.method.warm_start else {name: network}
    return networks, table


def _checksum(path: Path) -> str:
    try:
        return model.sha256(path)
    except OSError:  # what cannot be read fails where it is used
        return ""


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
    grid = voxel_size, method.size, method.network.multiple
    conformed = [conform_image(image, *grid) for image, _ in pairs]
    brain_ml = float(np.median([volume.millilitres(mask, i.affine) for i, mask in pairs]))
    widths = [head_width(c)[0] for c in conformed]
    for label, width in zip(labelled, widths, strict=True):
        if not width:
            raise BadData(f"{label.scan.path}: no head is found in it; label another scan.")
    frame = Frame(*grid, brain_ml, float(np.median(widths)))
    folder = derivatives.model_dir(config.output_dir)
    how = (config.log_dir, config.stop_on_first_crash)
    stage = Stage(folder, folder / "work", method, frame, runtime, *how)
    targets = [volume.conform(mask, image.affine, *grid).data for image, mask in pairs]
    sources = [stage.source(c, target) for c, target in zip(conformed, targets, strict=True)]
    return stage, sources


def _identity(stage: Stage) -> dict[str, Any]:
    """All settings that decide SL-1."""
    method = stage.method.to_dict()
    names = ("size", "network", "synthesis", "seed")
    settings = {name: method[name] for name in names}
    return settings | {"voxel_size": stage.frame.voxel_size, "version": __version__}


def segmentation_loss(
    runtime: Runtime, sources: Sequence[Source], size: int, synthesis: SynthesisConfig
) -> Loss:
    """Soft Dice on random images, one a generator; every mask is drawn equally often."""

    def draw(generator: Generator) -> tuple[Tensor, Tensor]:
        chosen = on_host(generator, "source").choice(sources)
        return training_batch(generator, [chosen], size, synthesis)

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        images, targets = zip(*map(draw, generators), strict=True)
        with runtime.autocast():
            logits = network(torch.cat(images))
        return soft_dice(logits.float().sigmoid(), torch.cat(targets))

    return loss


def _continued(sources: list[Source], size: int) -> list[Source]:
    """Add those heads again, without an end, that end close to the brain."""
    endless = [head for origin in sources if (head := continued(origin, size)) is not None]
    if endless:
        LOG.info(
            "The labelled head ends close to its brain: images of the first training show it "
            "continued beyond."
        )
    return sources + endless


def _new_network(stage: Stage) -> UNet:
    torch.manual_seed(mix_seed(stage.method.seed, 0))
    return UNet(stage.method.network)


def _first_network(
    stage: Stage, sources: list[Source], heads: list[Source], key: str
) -> tuple[UNet, str]:
    """SL-1: trained on the label alone."""
    network, method = _new_network(stage), stage.method
    loss = segmentation_loss(stage.runtime, heads, method.size, method.synthesis)
    settle = _settling(stage, sources)
    if len(heads) > len(sources):
        key = model.fingerprint(key, "continued")
    return network, stage.train("sl1", network, loss, stage.method.training, key, settle)


def _settling(stage: Stage, sources: Sequence[Source]) -> Callable[[UNet], dict[str, float]]:
    """Make the function that settles where a trained network's masks are cut."""

    def settle(network: UNet) -> dict[str, float]:
        found = threshold.settle(stage, network, sources)
        if found > 0.5:
            LOG.info("The label's mask was too large: masks are cut at %.2f, one half now.", found)
        return {"threshold": round(found, 3)}

    return settle


def _train_autoencoder(stage: Stage, sources: list[Source], key: str) -> nn.Module:
    settings = stage.method.quality
    torch.manual_seed(mix_seed(stage.method.seed, 1))
    network = Autoencoder(settings.latent, settings.slice_size)
    masks = [(s.mask[0, 0] > 0.5).cpu().numpy() for s in sources]
    brain = torch.cat([quality.slices(mask, settings.slice_size) for mask in masks])
    loss = quality.loss_over(brain.to(stage.runtime.device), settings.batch_size)
    with stage.runtime.first():  # its batches cannot be shared out; the others read it
        alone = replace(stage, runtime=stage.runtime.alone())
        alone.train("autoencoder", network, loss, quality.schedule(brain, settings), key)
    return network
