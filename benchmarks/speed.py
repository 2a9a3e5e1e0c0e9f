"""What masking costs: time and memory against other tools, by stage, by preset, by dataset size.

Usage: ``python -m benchmarks.speed WORK --scan T1W.nii.gz --model DIR --out OUT``, where DIR is
the ``code/singlestrip`` folder of a group run and OUT gets ``.json`` and ``.md``. ``--parts``
chooses among tools, stages, presets, training and sizes. Every run is a process of its own that is
waited for: its seconds on the clock, its seconds of processors and its peak of memory are the
operating system's. Set OMP_NUM_THREADS (and use taskset) to compare at one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers, record
from benchmarks.stand_in import stand_in
from benchmarks.stress import indexing
from singlestrip_bids import load_model
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.demo import write_dataset
from singlestrip_bids.image import nifti
from singlestrip_bids.image.grid import Conformed, restore_mask
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine import files
from singlestrip_bids.machine.runtime import SLAB, THIN_SLAB, Runtime
from singlestrip_bids.method import inference
from singlestrip_bids.method.autoencoder import shape_score
from singlestrip_bids.method.model import Model
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.report import subject as subject_report

Row = dict[str, Any]


WATCH = """
import json, os, subprocess, sys, time
began = time.monotonic()
with open(sys.argv[1], "wb") as log:
    child = subprocess.Popen(sys.argv[2:], stdout=log, stderr=log)
    _, status, usage = os.wait4(child.pid, 0)
wall, cpu = time.monotonic() - began, usage.ru_utime + usage.ru_stime
child.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([child.returncode, wall, cpu, usage.ru_maxrss / 1024]))
"""  # of a process of its own, since a child's peak is never less than that of its parent


def measure(words: Sequence[str | Path], folder: Path) -> Row:
    """Run a program; return its seconds on the clock and of processors, and its peak in MiB."""
    log = folder / "log"
    watcher = [sys.executable, "-S", "-c", WATCH, str(log), *map(str, words)]
    code, wall, cpu, peak = json.loads(subprocess.check_output(watcher))
    row: Row = {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mib": round(peak)}
    if code:
        row["error"] = f"exit code {code}: {' '.join(log.read_text()[-300:].split())}"
    return row


def dataset(root: Path, scan: Path, count: int) -> Path:
    """Make a BIDS dataset of so many subjects with the same T1w."""
    shutil.rmtree(root, ignore_errors=True)
    files.write_json(
        root / "dataset_description.json", {"Name": "copies", "BIDSVersion": "1.10.0"}
    )
    ending = "".join(scan.suffixes[-2:]) if scan.suffix == ".gz" else scan.suffix
    for number in range(count):
        path = root / f"sub-{number:05d}/anat/sub-{number:05d}_T1w{ending}"
        path.parent.mkdir(parents=True)
        path.symlink_to(scan.resolve())
    return root


def mask(work: Path, scan: Path, folder: Path, count: int, *options: str) -> Row:
    """Measure the participant level over so many copies of a scan."""
    bids, out = dataset(work / "bids", scan, count), work / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "singlestrip_bids.cli", str(bids), str(out), "participant"]
    row = measure([*words, "--device", "cpu", "--model", str(folder), *options], work)
    return {"scans": count, **row, "wall_s_per_scan": round(row["wall_s"] / count, 3)}


def tools(
    given: tuple[Path, Path, Path],
    names: Sequence[str],
    batch: int,
    label: Sequence[Path] | None = None,
) -> list[Row]:
    """Measure this app and the other tools on one scan, one straight after the other.

    ``label`` is a labelled scan and its mask, for the tools that use them.
    """
    work, scan, folder = given
    ways: list[tuple[str, ...]] = [(), ("--no-propagation",)]
    rows: list[Row] = [
        {"tool": " ".join(["singlestrip-bids", *options]), "how": how}
        | mask(work, scan, folder, count, *options)
        for options in ways
        for how, count in (("cold", 1), ("batch", batch))
    ]
    plain = work / "scan.nii"
    peers._save(nifti.load(scan), str(plain))
    many = work / "many"
    for number in range(batch):
        files.write_bytes(many / f"{number}.nii", plain.read_bytes())
    for name, tool in ((name, peers.TOOLS[name]) for name in names):
        if missing := tool.missing() or ("--label" if tool.uses_label and not label else None):
            rows.append({"tool": name, "how": "not measured", "error": missing})
            continue
        places = {"folder": str(work), "scan": str(plain), "mask": str(work / "mask.nii.gz")}
        places |= dict(zip(("label", "label_mask"), map(str, label or ()), strict=False))
        program, *rest = (word.format(**places) for word in tool.command)
        words = [peers._program(program) or program, *rest]
        name_of = f"{name} ({tool.version()})"
        rows.append({"tool": name_of, "how": "cold", "scans": 1, **measure(words, work)})
        if name == "deepbet":  # the only one that takes several scans, in folders that exist
            for made in ("b", "m"):
                (work / made).mkdir(exist_ok=True)
            row = measure([words[0], "-i", many, "-o", work / "b", "-m", work / "m"], work)
            row["wall_s_per_scan"] = round(row["wall_s"] / batch, 3)
            rows.append({"tool": name_of, "how": "batch", "scans": batch, **row})
    for row in rows:
        row |= {"scan": scan.name}
        for one in rows:
            if one["how"] == row["how"] and one["tool"] == "singlestrip-bids" and "wall_s" in row:
                row["cpu_s_over_ours"] = round(row["cpu_s"] / one["cpu_s"], 2)
                row["wall_s_over_ours"] = round(row["wall_s"] / one["wall_s"], 2)
    return rows


class Clock:
    """Seconds of the processor by stage, the least of several."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any], times: int = 3) -> Any:
        """Do something several times and note the least that it took."""
        for _ in range(times):
            began = time.process_time()
            result = work()
            took = time.process_time() - began
            self.seconds[name] = min(took, self.seconds.get(name, took))
        return result


def stages(work: Path, scan: Path, folder: Path) -> list[Row]:
    """Measure each stage of masking one scan, and what the network could reach."""
    trained, clock = load_model(folder, device="cpu"), Clock()
    machine = trained.runtime
    image = clock("read", lambda: nifti.load(scan))
    placed = clock("conform", lambda: trained.frame.conform(image))
    seen = clock(
        "network, four times", lambda: inference.compare(trained.network, placed, machine)
    ).view.brain
    found = clock("clean on the model's grid", lambda: inference.mask_from(seen))
    _, rebuilt = clock("autoencoder", lambda: shape_score(trained.autoencoder, found, machine))
    native = clock("to the scan's grid, clean", lambda: restore_mask(seen, placed.affine, image))
    clock(
        "compress and write",
        lambda: nifti.save(work / "m.nii.gz", nifti.mask_image(native, image.nifti)),
    )
    where = find_scans(dataset(work / "bids", scan, 1), ["T1w"])[0]
    back = partial(restore_mask, rebuilt, placed.affine, image, cleaned=False)
    out = Derivatives(work)
    clock("pictures", lambda: subject_report.draw(out, where, image, native, back))
    rows = [{"stage": name, "cpu_s": round(value, 3)} for name, value in clock.seconds.items()]
    operations = flops(trained.network, placed.data.shape)
    rate, bandwidth = rates()
    floor = 4 * operations / rate + image.data.nbytes / bandwidth
    rows.append(
        {
            "stage": "floor of the network",
            "cpu_s": round(floor, 3),
            "gflop": round(4 * operations / 1e9, 2),
            "gflop_per_s_of_a_convolution": round(rate / 1e9, 1),
            "gb_per_s_of_a_copy": round(bandwidth / 1e9, 1),
            "achieved": round(floor / clock.seconds["network, four times"], 2),
        }
    )
    return rows + precision(trained, placed, image)


def precision(trained: Model, placed: Conformed, image: nifti.Image) -> list[Row]:
    """Compare masks with those of whole layers in float32: slabs, and bfloat16 (slow or not)."""
    plain = Runtime(torch.device("cpu"), bfloat16=False)
    ways = {
        "whole layers": plain,
        "slabs": replace(plain, slab=SLAB),
        "thin slabs": replace(plain, slab=THIN_SLAB),
        "bfloat16": replace(plain, slab=SLAB, bfloat16=True),
    }
    masks = {}
    for name, machine in ways.items():
        seen = inference.predict(trained.network, placed, machine, inference.AUGMENTED)
        masks[name] = restore_mask(seen, placed.affine, image)
    return [
        {"stage": f"mask by {name}", "dice": round(dice(mask, masks["whole layers"]), 5)}
        for name, mask in masks.items()
    ]


def flops(network: UNet, shape: tuple[int, ...]) -> int:
    """Count the operations of a network on one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *shape))
    return int(counter.get_total_flops())


def rates() -> tuple[float, float]:
    """Measure a convolution as networks have them, and a copy.

    Returns
    -------
    tuple of float
        Operations and bytes for each second of a processor.
    """
    clock = Clock()
    x = torch.rand(2, 32, 48, 48, 48).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.rand(32, 32, 3, 3, 3)
    with torch.inference_mode():
        clock("conv", lambda: torch.conv3d(x, weight, padding=1), 5)
        wide = torch.rand(1 << 26)
        clock("copy", wide.clone, 5)
    operations = 2 * 27 * 32 * 32 * x[:, 0].numel()
    return operations / clock.seconds["conv"], 2 * 4 * wide.numel() / clock.seconds["copy"]


def presets(work: Path, scan: Path, folder: Path) -> list[Row]:
    """Measure masking with a model of each size: the time and peak of one scan and of three."""
    rows = []
    for preset in ("quick", "standard"):
        made = stand_in(work / f"model-{preset}", folder, preset, scan)
        for count, option in ((1, ""), (3, ""), (1, "--low-mem")):
            row = mask(work, scan, made, count, *option.split())
            rows.append({"preset": preset, "options": option, **row})
    return rows


def training(work: Path, scan: Path, folder: Path) -> list[Row]:
    """Measure steps of training by preset, and how they scale from one process to two."""
    rows = []
    for preset, steps in (("quick", 5), ("standard", 1)):
        words = [sys.executable, "-m", "benchmarks.pace", "split", preset, str(steps)]
        row = measure(words, work)
        rows.append({"preset": preset, "steps": steps, **_said(work), "peak_mib": row["peak_mib"]})
    return [*rows, *scaling(work, "quick", 20)]


def scaling(work: Path, preset: str, steps: int) -> list[Row]:
    """Measure whole steps by one process and by two (gloo), one thread each."""
    rows = []
    for count in (1, 2):
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc-per-node", str(count), "-m", "benchmarks.pace"]
        row = measure([*words, "whole", preset, str(steps)], work)
        said = {} if "error" in row else _said(work)
        rows.append({"preset": preset, "processes": count, "steps": steps, **row, **said})
    return rows


def _said(work: Path) -> Row:
    """Read the line of results among what a program has printed."""
    lines = (work / "log").read_text().splitlines()
    found: Row = json.loads(next(line for line in lines if line.startswith("{")))
    return found


def heads_of(work: Path, count: int) -> Path:
    """Make a dataset of so many tiny generated scans."""
    tiny = work / "tiny"
    if not tiny.exists():
        write_dataset(tiny, 2, spacing_scale=2.5)
    scan = sorted(tiny.glob("sub-*/anat/*_T1w.nii.gz"))[0]
    (known,) = (tiny / "derivatives").rglob("*_mask.nii.gz")
    bids = dataset(work / f"bids-{count}", scan, count)
    label = bids / "derivatives/manual/sub-00000/anat/sub-00000_desc-brain_mask.nii.gz"
    label.parent.mkdir(parents=True)
    label.symlink_to(known)
    return bids


def sizes(work: Path, folder: Path, counts: Sequence[int]) -> list[Row]:
    """Measure datasets of tiny scans: both levels, masking again, the pages, the index.

    The group level hardly trains, and asks the network alone for pseudo-labels.
    """
    rows = []
    for count in counts:
        bids, out = heads_of(work, count), work / f"out-{count}"
        shutil.rmtree(out, ignore_errors=True)
        app = [sys.executable, "-m", "singlestrip_bids.cli", str(bids), str(out)]
        mask = [*app, "participant", "--device", "cpu", "--model", str(folder)]
        works = {
            "participant": mask,
            "participant again, all finished": mask,
            "pages of participant": [*mask, "--reports-only"],
            "group": [*app, "group", "--sloppy", "--pseudo-labels", "network"],
            "page of group": [*app, "group", "--sloppy", "--reports-only"],
        }
        for name, words in works.items():
            rows.append({"scans": count, "what": name, **measure(words, work)})
        found, wall, cpu = indexing.measure(bids, [])
        row = {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}
        rows.append({"scans": found, "what": "find the scans", **row})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a Markdown table of rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [record.line(names), record.line(["---"] * len(names))]
    lines += [record.line([str(row.get(name, "")) for name in names]) for row in rows]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line."""
    parts: dict[str, Callable[[Path, Path, Path], list[Row]]]
    parts = {"stages": stages, "presets": presets, "training": training}
    names = ["tools", *parts, "sizes"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for what is made in passing")
    parser.add_argument("--scan", type=Path, help="a real T1w")
    parser.add_argument("--model", type=Path, help="code/singlestrip folder of a group run")
    parser.add_argument("--out", type=Path, default=Path("speed"))
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--tools", nargs="+", choices=peers.TOOLS, default=list(peers.TOOLS))
    about = "a labelled scan and its mask, for the tools that use them"
    parser.add_argument("--label", nargs=2, type=Path, metavar=("SCAN", "MASK"), help=about)
    parser.add_argument("--batch", type=int, default=10, help="scans in a batch")
    parser.add_argument("--counts", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--note", default="", help="a sentence for the results")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    parts["tools"] = lambda *given: tools(given, args.tools, args.batch, args.label)
    parts["sizes"] = lambda work, _, folder: sizes(work, folder, args.counts)
    words = list(sys.argv[1:] if argv is None else argv)
    command = " ".join(Path(word).name if "/" in word else word for word in words)
    results: dict[str, Any] = {**record.facts(), "command": command, "note": args.note}
    text = ""
    for name in args.parts:
        results[name] = parts[name](args.work.absolute(), args.scan, args.model.absolute())
        text += f"## {name}\n\n{table(results[name])}\n"
        about = f"{results['date']}, commit {results['commit']}, {results['hardware']}."
        record.write(results, f"{text}{about} {args.note}\n", args.out)
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
