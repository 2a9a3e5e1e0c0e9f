"""Train the model that ships with the app: a network that has seen phantoms alone.

Usage: ``python -m benchmarks.phantom_model WORK [--steps 2500] [--seed 0]``. It goes on where it
was stopped. The finished model, its weights in half precision, lies in WORK/model; copy it to
``singlestrip_bids/phantom``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from singlestrip_bids.config import PRESETS, MethodConfig, SynthesisConfig, TrainingConfig
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import Grid
from singlestrip_bids.machine import files
from singlestrip_bids.machine.runtime import Runtime, describe, mix_seed, start, start_logging
from singlestrip_bids.method import model
from singlestrip_bids.method.classes import Source
from singlestrip_bids.method.expected_dice import Calibration, line_through
from singlestrip_bids.method.guard import Copy, Head, try_copies
from singlestrip_bids.method.losses import Example, images_of, segmentation_loss
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.phantoms import WIDTH, draw_phantom
from singlestrip_bids.method.trainer import Trained, Trainer, train_autoencoder

NAME = "phantom"
SEEN, SHAPES, JUDGED = 1500, 40, 120  # phantoms of network, autoencoder and calibration
LEARNT, SHAPED, HELD_OUT = range(3)  # streams of phantoms that have none in common


def settings(steps: int, seed: int) -> MethodConfig:
    """Return what the model is trained with: quick's network, at a head's width, for longer."""
    quick = PRESETS["quick"]
    training = TrainingConfig(steps, 2, learning_rate=0.02, cosine=True, optimiser="muon")
    synthesis = SynthesisConfig(dark_air_probability=0.85)
    return replace(
        quick,
        preset=NAME,
        training=training,
        finetuning=training,
        synthesis=synthesis,
        quality=replace(quick.quality, epochs=20),
        trials=JUDGED,
        rounds=0,
        init="random",
        seed=seed,
    )


def train(
    work: Path,
    method: MethodConfig,
    runtime: Runtime,
    draw: Callable[[torch.Generator], Example] | None = None,
    width: float = WIDTH,
) -> Path:
    """Train both networks, calibrate them on phantoms held out, and write the card.

    Examples are images of the app's phantoms, or what ``draw`` gives, whose heads take a share
    ``width`` of the grid.
    """
    folder, size = work / "model", method.size
    frame = Frame(Grid(1.0, size, method.network.multiple), 1.0, width * size, fitted=True)
    key = files.fingerprint(NAME, method.to_dict(), width)
    trainer = Trainer(folder, work / "unfinished", method, frame, runtime, key)
    shapes = [_phantom(trainer, SHAPED, number) for number in range(SHAPES)]
    autoencoder = train_autoencoder(trainer, shapes)
    torch.manual_seed(mix_seed(method.seed, 0))
    network = UNet(method.network)

    seen = [] if draw else [_phantom(trainer, LEARNT, number) for number in range(SEEN)]
    ours = images_of(seen, size, method.synthesis)

    def examples(generator: torch.Generator, numbers: Sequence[int]) -> Example:
        return draw(generator) if draw else ours(generator, numbers)

    loss = segmentation_loss(runtime, examples)
    key = trainer.train(NAME, network, loss, method.training, key)
    heads = [Head(str(n), partial(_phantom, trainer, HELD_OUT, n)) for n in range(JUDGED)]
    one = Trained(NAME, network, key)
    copies = try_copies(trainer, heads, one, autoencoder, "phantoms held out")
    _halve(folder)
    line = line_through([c.evidence for c in copies], [c.dice for c in copies])
    _write_card(trainer, line, copies)
    return folder


def _phantom(trainer: Trainer, stream: int, number: int) -> Source:
    seed = mix_seed(trainer.method.seed, 10 + stream)
    return draw_phantom(trainer.runtime.generator(seed, number), trainer.method.size)


def _halve(folder: Path) -> None:
    """Keep the weights of both networks in half precision."""
    for name in ("autoencoder", NAME):
        path = folder / f"{name}.safetensors"
        tensors, facts = files.load_tensors(path)
        halved = {k: t.half() if t.is_floating_point() else t for k, t in tensors.items()}
        files.save_tensors(path, halved, facts)


def _write_card(trainer: Trainer, line: Calibration, copies: Sequence[Copy]) -> None:
    frame, mean = trainer.frame, float(np.mean([copy.dice for copy in copies]))
    standing = {"copies": mean, "pool": mean}
    guard = {"kept": NAME, "reason": "There is no other network.", "apart": [], "failed": []}
    card = {
        "network": f"{NAME}.safetensors",
        "phantoms": True,
        "self_trained": False,
        "guard": {**guard, "standings": {NAME: standing}, "sample": 0},
        "threshold": 0.5,
        "calibration": asdict(line),
        "label": [],
        "unlabelled": [],
        "ratings": {},
        "voxel_size_mm": frame.grid.voxel_size,
        "brain_ml": frame.brain_ml,
        "head_width": frame.head_width,
        "continued": False,
        "label_kept": False,
        "method": trainer.method.to_dict(),
        "command": "python -m benchmarks.phantom_model WORK --steps "
        f"{trainer.method.training.steps} --seed {trainer.method.seed}",
        "versions": describe(trainer.runtime.device),
        "fingerprint": "",
    }
    model.write_card(trainer.folder, card)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and print where the model lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    start_logging(0)
    method = settings(given.steps, given.seed)
    print(train(given.work, method, start("auto")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
