"""A training that ends in time: how many steps a budget has room for, on the machine at hand.

Each kind of work is tried for a moment and timed. The rest of the time goes to the steps of the
trainings, in the preset's proportion. The plan is kept: a run that goes on keeps to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ..bids.scans import Scan
from ..config import MethodConfig, TrainingConfig, scaled
from ..image.grid import Conformed
from ..image.masks import dice
from ..machine import files
from .autoencoder import loss_over, schedule, slices
from .classes import Source
from .expected_dice import segment
from .fine import edge_of
from .guard import SAMPLE
from .losses import Averaged, images_of, ramped_loss, segmentation_loss
from .networks import Autoencoder, UNet
from .propagation import propagate_labels
from .pseudolabels import viewer
from .pupil import SCANS
from .synthesis import training_batch
from .trainer import Trainer
from .training import Loss, fit

LOG = logging.getLogger("singlestrip_bids")

PLAN = "plan.json"
MARGIN = 0.85  # share of the budget that is planned for: rates vary, and pages are written, too
LEAST, MOST = 0.1, 10.0  # of a preset's steps
LEAN = {"epochs": 100, "trials": 20}  # where there is no time for more
WARM, TIMED = 3, 8  # steps


@dataclass(frozen=True)
class Rates:
    """Seconds that each kind of work takes here."""

    step: float  # of a network's training
    epoch: float  # of the autoencoder's
    guess: float  # of a scan's mask by the network
    opinion: float  # of the propagated label
    copy: float  # a corrupted copy, masked and judged
    fine: float  # a step of the fine network's training, of one image

    def total(self, method: MethodConfig, scans: int) -> float:
        """Seconds of a whole group run with so many unlabelled scans."""
        rounds, sample = (method.rounds if scans else 0), min(scans, SAMPLE)
        registered = scans if method.registers else sample
        pupils = min(scans, SCANS) if rounds and method.fine_steps else 0
        networks = 2 if rounds and method.warm_start else 1
        steps = method.training.steps + rounds * method.finetuning.steps
        looks = rounds + (max(rounds - 1, 0) if method.refinement != "none" else 0)
        judged = networks * (method.trials * (2 if scans else 1) + sample)
        return (
            steps * self.step
            + method.quality.epochs * self.epoch
            + looks * scans * self.guess
            + registered * self.opinion
            + judged * self.copy
            + pupils * (self.guess + self.opinion * method.registers)
            + (method.fine_steps * self.fine if pupils else 0)
        )


def fitted(method: MethodConfig, rates: Rates, scans: int, seconds: float) -> MethodConfig:
    """Change the steps of a method, so that a group run takes so many seconds.

    Where even a tenth of its steps takes longer, fewer epochs and copies are tried, then no fine
    network; where ten times its steps take less, the rest of the time is left.
    """
    lean = replace(
        method,
        quality=replace(method.quality, epochs=min(method.quality.epochs, LEAN["epochs"])),
        trials=min(method.trials, LEAN["trials"]),
    )
    for one in (method, lean, replace(lean, fine_steps=0)):
        fixed = rates.total(_stepped(one, 0.0), scans)
        share = (seconds * MARGIN - fixed) / (rates.total(one, scans) - fixed)
        if share >= LEAST:
            return _stepped(one, min(share, MOST))
    return _stepped(one, LEAST)


def _stepped(method: MethodConfig, share: float) -> MethodConfig:
    """Change the steps of the networks' trainings alone."""

    def changed(settings: TrainingConfig) -> TrainingConfig:
        return replace(settings, steps=scaled(settings.steps, share))

    return replace(
        method,
        training=changed(method.training),
        finetuning=changed(method.finetuning),
        fine_steps=scaled(method.fine_steps, share),
    )


def keep_to(
    trainer: Trainer, sources: Sequence[Source], pool: Sequence[Scan], seconds: float
) -> Trainer:
    """Plan a training for a budget of time, or take up the plan of an earlier run.

    A plan holds for the same labels, settings and budget, whatever scans have come since.
    """
    path, method = trainer.folder / PLAN, trainer.method
    key = files.fingerprint(trainer.key, method.to_dict(), seconds)
    if path.is_file():
        card = files.read_json(path)
        if card.get("fingerprint") == key:
            LOG.info("The plan of the earlier run is kept: %s.", path)
            return replace(trainer, method=_planned(method, card["plan"]))
    rates = Rates(**trainer.runtime.gather(asdict(_rates(trainer, sources)))[0])
    plan = fitted(method, rates, len(pool), seconds)
    needed = rates.total(plan, len(pool))
    LOG.info(
        "Plan: %d + %d + %d steps, %d epochs, %d copies; about %.0f minutes.",
        plan.training.steps, plan.finetuning.steps, plan.fine_steps, plan.quality.epochs,
        plan.trials, max(needed / 60, 1),
    )  # fmt: skip
    if needed > seconds:
        LOG.warning("--time is too short for this preset and %d scans.", len(pool))
    elif needed < seconds * MARGIN / 2:
        LOG.info("More time would hardly help this preset; a finer one may use it.")
    counts = {
        "steps": [plan.training.steps, plan.finetuning.steps, plan.fine_steps],
        "epochs": plan.quality.epochs,
        "trials": plan.trials,
    }
    if trainer.runtime.main:
        card = {"fingerprint": key, "seconds": seconds, "plan": counts, "rates": asdict(rates)}
        files.write_json(path, card)
    return replace(trainer, method=_planned(method, counts))


def _planned(method: MethodConfig, counts: dict[str, Any]) -> MethodConfig:
    first, later, fine = counts["steps"]
    return replace(
        method,
        training=replace(method.training, steps=first),
        finetuning=replace(method.finetuning, steps=later),
        fine_steps=fine,
        quality=replace(method.quality, epochs=counts["epochs"]),
        trials=counts["trials"],
    )


def _rates(trainer: Trainer, sources: Sequence[Source]) -> Rates:
    """Try each kind of work for a moment."""
    method, runtime, origin = trainer.method, trainer.runtime, sources[0]
    network = UNet(method.network, len(trainer.structures)).to(runtime.device)
    draw = images_of(sources, method.size, method.synthesis)
    if method.consistency:  # the dearer steps of later rounds stand for all
        averaged = Averaged(network, WARM + TIMED)
        loss = ramped_loss(runtime, draw, draw, method.consistency)
        step = _step(trainer, averaged, loss, method.training, "network")
    else:
        loss = segmentation_loss(runtime, draw)
        step = _step(trainer, network, loss, method.training, "network")
    larger = segmentation_loss(
        runtime, images_of(sources, edge_of(trainer.frame.grid), method.synthesis)
    )
    alone, one = replace(trainer, runtime=runtime.alone()), replace(method.training, batch_size=1)
    fine = _step(alone, network, larger, one, "fine network") if method.fine_steps else 0.0
    autoencoder = Autoencoder(method.quality, len(trainer.structures)).to(runtime.device)
    mask = (origin.mask[0, 0] > 0.5).cpu().numpy()
    brain = slices(mask, method.quality.slice_size).to(runtime.device)
    shapes = loss_over(brain, method.quality.batch_size, autoencoder.classes)
    settings = schedule(brain, method.quality)
    each = _step(alone, autoencoder, shapes, settings, "autoencoder")
    data, classes = (volume[0, 0].cpu().numpy() for volume in (origin.image, origin.classes))
    scan = Conformed(data, np.eye(4), classes > 0)

    def copy() -> None:
        training_batch(runtime.generator(0), [origin], method.size, method.synthesis)
        dice(segment(network, autoencoder, scan, runtime).mask, mask)

    return Rates(
        step,
        each * settings.steps / method.quality.epochs,
        _seconds(lambda: viewer(trainer, network)(scan)),
        _seconds(lambda: propagate_labels(sources, scan, runtime)),
        _seconds(copy),
        fine,
    )


def _step(
    trainer: Trainer, network: nn.Module, loss: Loss, settings: TrainingConfig, name: str
) -> float:
    """Seconds of a training step, once the first ones are done."""
    place = trainer.work / "pace"

    def some(steps: int) -> None:
        few, label = replace(settings, steps=steps), f"pace of the {name}"
        if trainer.runtime.main:
            place.unlink(missing_ok=True)  # another network's, or of a run that was stopped
        trainer.runtime.gather(None)
        fit(network, loss, few, trainer.runtime, place, label, 0, label)

    some(WARM)
    seconds = _seconds(lambda: some(TIMED)) / TIMED
    place.unlink(missing_ok=True)
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
