"""How fast this machine trains, on random volumes: a part of benchmarks.speed.

``python -m benchmarks.pace split PRESET STEPS`` times synthesis and network apart;
``torchrun -m benchmarks.pace whole PRESET STEPS`` times the app's own loop, by all processes, one
thread each.
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

from singlestrip_bids.config import PRESETS, MethodConfig
from singlestrip_bids.machine import processes
from singlestrip_bids.machine.runtime import Runtime, start
from singlestrip_bids.method.classes import Source, source
from singlestrip_bids.method.losses import images_of, segmentation_loss, soft_dice
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.synthesis import training_batch
from singlestrip_bids.method.training import fit

Row = dict[str, Any]


def task(preset: str, machine: Runtime) -> tuple[UNet, list[Source], MethodConfig]:
    """Make a network of a preset and something to learn from, on the device."""
    method = PRESETS[preset]
    torch.manual_seed(0)
    image, brain = torch.rand(2, method.size, method.size, method.size)
    arrays = (17 * image).to(torch.uint8), image, (brain > 0.5).float()
    origin = source(*(array.to(machine.device) for array in arrays))
    return UNet(method.network).to(machine.device), [origin], method


def now(machine: Runtime) -> float:
    """Return seconds of the processor; of a GPU, on the clock once all its work is done."""
    if machine.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(machine.device)
    return time.monotonic()


def split(preset: str, steps: int, machine: Runtime, batch: int | None = None) -> Row:
    """Time steps in this process, the synthesis apart: the least of so many."""
    network, origins, method = task(preset, machine)
    seconds: dict[str, list[float]] = {"synthesis": [], "network": []}
    for number in range(steps):
        began = now(machine)
        drawn = [
            training_batch(machine.generator(number, n), origins, method.size, method.synthesis)
            for n in range(batch or method.training.batch_size)
        ]
        image, target = (torch.cat(part) for part in zip(*drawn, strict=True))
        between = now(machine)
        with machine.autocast():
            logits = network(image)
        soft_dice(logits.float().sigmoid(), target).backward()
        seconds["synthesis"].append(between - began)
        seconds["network"].append(now(machine) - between)
    least = {name: min(values) for name, values in seconds.items()}
    total = sum(least.values())
    share = least["synthesis"] / total
    return {"s_per_step": round(total, 3), "synthesis_share": round(share, 3)}


def whole(preset: str, steps: int, machine: Runtime, batch: int | None = None) -> Row:
    """Time the app's own loop; of several processes the first one returns the result."""
    network, origins, method = task(preset, machine)
    loss = segmentation_loss(machine, images_of(origins, method.size, method.synthesis))
    training = replace(method.training, batch_size=batch or method.training.batch_size)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, steps):  # the first one warms up
            settings = replace(training, steps=count)
            began = time.monotonic()
            fit(network, loss, settings, machine, Path(folder) / "c", "", 0, preset)
            seconds = time.monotonic() - began
    return {"steps_per_s": round(steps / seconds, 2)} if machine.main else {}


if __name__ == "__main__":
    way, name, count = sys.argv[1:]
    here = start("cpu", threads=1 if way == "whole" else None)
    if row := {"split": split, "whole": whole}[way](name, int(count), here):
        print(json.dumps(row))
    processes.leave()
