"""What a GPU does with the presets: training by batch, masking by batch, a full memory.

Usage: ``python -m benchmarks.gpu --out OUT``, where OUT gets ``.json`` and ``.md``, after every
part anew. Volumes are random: for accuracy train on scans. ``--device cpu`` shows that it works.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import pace, record
from benchmarks.speed import table
from singlestrip_bids.config import PRESETS
from singlestrip_bids.machine.runtime import OUT_OF_MEMORY, Runtime, start
from singlestrip_bids.method.losses import images_of, segmentation_loss
from singlestrip_bids.method.slabs import forward_in_slabs

Row = dict[str, Any]

FULL = 0.02  # of the GPU's memory, in which a network is to find its way


def peak(machine: Runtime, work: Callable[[], Row]) -> Row:
    """Do something and add the GPU's peak of memory in GiB; a full memory is a result too."""
    gpu = machine.device.type == "cuda"
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(machine.device)
    try:
        row = work()
    except OUT_OF_MEMORY:
        row = {"error": "out of memory"}
    if gpu:
        row["peak_gib"] = round(torch.cuda.max_memory_allocated(machine.device) / 2**30, 2)
    return row


def training(machine: Runtime, preset: str, batch: int, steps: int) -> Row:
    """Time steps of training, the synthesis apart, and the app's own loop."""
    apart = pace.split(preset, max(steps // 4, 2), machine, batch)
    return {**apart, **pace.whole(preset, steps, machine, batch)}


@torch.inference_mode()
def masking(machine: Runtime, preset: str, batch: int, compiled: bool, repeats: int = 5) -> Row:
    """Time images through the network, the copy to the device included: the least of several."""
    network, _, method = pace.task(preset, machine)
    network.eval()

    def forward(image: torch.Tensor) -> torch.Tensor:
        if machine.slab is not None:
            return next(forward_in_slabs(network, image, machine.slab))
        logits: torch.Tensor = network(image)
        return logits

    run = torch.compile(forward) if compiled else forward
    images = torch.rand(batch, 1, *[method.size] * 3)
    seconds = {}
    for name, given in {"": images, "pinned_": _pinned(images, machine)}.items():
        took = []
        for _ in range(repeats + 1):  # the first one warms up
            began = time.monotonic()
            with machine.autocast():
                run(given.to(machine.device, non_blocking=True)).float().cpu()
            took.append(time.monotonic() - began)
        seconds[f"{name}s_per_image"] = round(min(took[1:]) / batch, 5)
    return {"compiled": compiled, **seconds}


def _pinned(images: torch.Tensor, machine: Runtime) -> torch.Tensor:
    return images.pin_memory() if machine.device.type == "cuda" else images


def waits(machine: Runtime, preset: str) -> Row:
    """Count how often the host waits for a GPU in a step before the loss is looked at."""
    network, origins, method = pace.task(preset, machine)
    loss = segmentation_loss(machine, images_of(origins, method.size, method.synthesis))
    generators = [machine.generator(n) for n in range(method.training.batch_size)]
    gpu = machine.device.type == "cuda"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            loss(network, generators).backward()
        finally:
            if gpu:
                torch.cuda.set_sync_debug_mode("default")
    return {
        "waits_in_a_step": len(caught),
        "where": "; ".join(str(w.message) for w in caught)[:300],
    }


def full_memory(machine: Runtime, preset: str) -> Row:
    """Train a few steps in a small part of a GPU's memory; return what the app says of it."""
    said: list[str] = []
    gpu, log = machine.device.type == "cuda", logging.getLogger("singlestrip_bids")

    def note(entry: logging.LogRecord) -> bool:
        if entry.levelno >= logging.WARNING:
            said.append(entry.getMessage())
        return True

    log.addFilter(note)
    if gpu:
        torch.cuda.set_per_process_memory_fraction(FULL, machine.device)
    try:
        row = peak(machine, partial(pace.whole, preset, 3, machine, 2))
    finally:
        log.removeFilter(note)
        if gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, machine.device)
    return {"share_of_memory": FULL, **row, "said": " | ".join(said)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="masking by torch.compile, too")
    args = parser.parse_args(argv)
    machine = start(args.device)
    results: dict[str, Any] = {**record.facts(), "command": " ".join(argv or sys.argv[1:])}
    ways = [False, True] if args.compile else [False]
    parts: dict[str, Callable[[str], list[tuple[Row, Callable[[], Row]]]]] = {
        "training": lambda preset: [
            ({"batch": n}, partial(training, machine, preset, n, args.steps)) for n in args.batches
        ],
        "masking": lambda preset: [
            ({"batch": n}, partial(masking, machine, preset, n, compiled))
            for compiled in ways
            for n in args.batches
        ],
        "waits": lambda preset: [({}, partial(waits, machine, preset))],
        "full memory": lambda preset: [({}, partial(full_memory, machine, preset))],
    }
    for name, works in parts.items():
        results[name] = []
        for preset in args.presets:
            for settings, work in works(preset):
                results[name].append({"preset": preset, **settings, **peak(machine, work)})
                print(name, results[name][-1], flush=True)
        done = [part for part in parts if part in results]
        text = "".join(f"## {part}\n\n{table(results[part])}\n" for part in done)
        about = f"{results['date']}, commit {results['commit']}, {results['hardware']}.\n"
        record.write(results, text + about, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
