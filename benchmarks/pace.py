"""How fast this machine trains, on random volumes: a part of benchmarks.speed.

``python -m benchmarks.pace split PRESET STEPS`` times synthesis and network apart;
``torchrun -m benchmarks.pace whole PRESET STEPS`` times the app's own loop, by all processes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from singlestrip_bids import processes
from singlestrip_bids.config import PRESETS, MethodConfig
from singlestrip_bids.group import segmentation_loss
from singlestrip_bids.losses import soft_dice
from singlestrip_bids.networks import UNet
from singlestrip_bids.runtime import start
from singlestrip_bids.synthesis import Source, source, training_batch
from singlestrip_bids.training import fit

Row = dict[str, Any]


def _task(preset: str) -> tuple[UNet, list[Source], MethodConfig]:
    """Make a network of a preset and something to learn from."""
    method = PRESETS[preset]
    torch.manual_seed(0)
    image, brain = torch.rand(2, method.size, method.size, method.size)
    origin = source((17 * image).to(torch.uint8), image, (brain > 0.5).float())
    return UNet(method.network), [origin], method


def split(preset: str, steps: int) -> Row:
    """Time steps in this process, the synthesis apart: the least of so many."""
    machine = start("cpu")
    network, origins, method = _task(preset)
    seconds: dict[str, list[float]] = {"synthesis": [], "network": []}
    for number in range(steps):
        began = time.process_time()
        drawn = [
            training_batch(machine.generator(number, n), origins, method.size, method.synthesis)
            for n in range(method.training.batch_size)
        ]
        image, target = (torch.cat(part) for part in zip(*drawn, strict=True))
        between = time.process_time()
        soft_dice(network(image).sigmoid(), target).backward()
        seconds["synthesis"].append(between - began)
        seconds["network"].append(time.process_time() - between)
    least = {name: min(values) for name, values in seconds.items()}
    total = sum(least.values())
    share = least["synthesis"] / total
    return {"cpu_s_per_step": round(total, 3), "synthesis_share": round(share, 3)}


def whole(preset: str, steps: int) -> Row:
    """Time the app's own loop on one thread a process; the first process returns the result."""
    machine = start("cpu", threads=1)
    network, origins, method = _task(preset)
    loss = segmentation_loss(machine, origins, method.size, method.synthesis)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, steps):  # the first one warms up
            settings = replace(method.training, steps=count)
            began = time.monotonic()
            fit(network, loss, settings, machine, Path(folder) / "c", "", 0, preset)
            seconds = time.monotonic() - began
    processes.leave()
    return {"steps_per_s": round(steps / seconds, 2)} if machine.main else {}


if __name__ == "__main__":
    way, preset, steps = sys.argv[1:]
    if row := {"split": split, "whole": whole}[way](preset, int(steps)):
        print(json.dumps(row))
