"""Give the app malformed images and JSON files, and see that it says so as it should.

    python -m benchmarks.stress.fuzz MODEL WORK --images 720 --labels 1000 --files 300 --seed 0
    python -m benchmarks.stress.fuzz MODEL WORK --known 300 --scans SCAN.nii.gz ...

MODEL is the code/singlestrip folder of a group run. Each case follows from the seed and its
number alone. Images are masked by the participant level, files are read by it. Labels are found
and read by the functions with which the group level begins; it is not trained. A case is a fault
if the app shows a traceback, ends with a code that is not in its table, meets an error that
nobody foresaw, or leaves a hidden file or a half one. Counts and faults go to standard output.

With --known, scans with faults of geometry and intensity whose right mask is known (`known`) are
masked instead; the share of masks within .02 of Dice is told, fault by fault, and the others are
named.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.stress import known
from benchmarks.stress.kills import half_files, leftovers
from singlestrip_bids import cli, load_model
from singlestrip_bids.bids.label import find_label
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image.nifti import load, load_mask

CODES = {0, 1, 16, 17, 18, 64, 65, 66, 73, 74, 75}
UNFORESEEN = re.compile(r"(\.nii|\.gz|report it): \w+\(")  # a raw exception
BATCH = 50  # malformed images a run of the app
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1e308, "", "..", "/etc/passwd", "../../x", "\x00", "é" * 300),
    *([], {}, [[]], [{}], {"a": {"b": []}}, [None], "sub-01", float("nan")),
)


def head(shape: tuple[int, ...] = (16, 17, 18)) -> bytes:
    """Return a small image of a ball, uncompressed."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    data = (100 * (radius < 0.5) + 60 * (radius < 0.8)).astype(np.int16)
    return bytes(nib.Nifti1Image(data, np.diag([13.0, 13.0, 13.0, 1.0])).to_bytes())


def malformed_image(draw: random.Random) -> tuple[str, bytes]:
    """Return the ending and the bytes of a damaged image."""
    data = bytearray(head())
    for _ in range(draw.choice((1, 1, 2, 8))):
        kind = draw.randrange(6)
        if kind == 0:  # any byte of the header, or of the flag of its extensions
            data[draw.randrange(min(352, len(data)))] = draw.randrange(256)
        elif kind == 1:  # dimensions
            place, value = 40 + 2 * draw.randrange(8), draw.choice((-1, 0, 1, 32767))
            struct.pack_into("<h", data, place, value)
        elif kind == 2:  # data type, bits a voxel
            struct.pack_into("<h", data, draw.choice((70, 72)), draw.choice((0, 1, 32, 128, 1536)))
        elif kind == 3:  # voxel sizes, offset, scaling, rotations, affine
            place = draw.choice((*range(76, 124, 4), *range(256, 328, 4)))
            number = draw.choice((float("nan"), float("inf"), -1.0, 0.0, 1e38, 1e-38))
            struct.pack_into("<f", data, place, number)
        elif kind == 4:  # an end that comes too early, or too late
            cut = draw.randrange(len(data))
            data = data[:cut] if draw.random() < 0.7 else data + bytes(cut)
            data = data if len(data) >= 348 else data + bytes(348)
        else:  # voxels
            data[draw.randrange(352, len(data)) if len(data) > 352 else 0] ^= 255
    if draw.random() < 0.5:
        return ".nii", bytes(data)
    packed = bytearray(gzip.compress(bytes(data), 1))
    if draw.random() < 0.3:
        packed[draw.randrange(len(packed))] ^= 1 << draw.randrange(8)
    return ".nii.gz", bytes(packed)


def malformed_json(draw: random.Random, good: Any) -> bytes:
    """Return a JSON file with one value replaced or removed, or with damaged bytes."""
    content = json.loads(json.dumps(good))
    if draw.random() < 0.7:
        place, key = draw.choice(list(_places(content)))
        if draw.random() < 0.2:
            del place[key]
        else:
            place[key] = draw.choice(ODD)
        return json.dumps(content).encode()
    data = bytearray(json.dumps(content).encode())
    for _ in range(draw.choice((1, 3))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.3 else data)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """List every value in a JSON document as its container and its key."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def run(*words: object) -> tuple[int, str]:
    """Run the app in this process; return its code and what it said."""
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            code = cli.main([str(word) for word in words])
        except Exception as error:
            return -1, f"Traceback: {error!r}"
    return code, said.getvalue()


def faults(code: int, said: str, out: Path) -> list[str]:
    """Say what is wrong with how a run ended."""
    found = [] if code in CODES else [f"code {code}: {said[-300:]}"]
    found += ["shows a traceback"] if "Traceback" in said else []
    found += [line for line in said.splitlines() if UNFORESEEN.search(line)]
    found += [f"left {path}" for path in leftovers(out)]
    return found + [f"half file {path}" for path in half_files(out)]


def dataset(root: Path, images: dict[str, tuple[str, bytes]]) -> None:
    """Write a dataset with one image a subject."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    description = {"Name": "fuzz", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    for subject, (ending, data) in images.items():
        path = root / f"sub-{subject}/anat/sub-{subject}_T1w{ending}"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)


def fuzz_images(model: Path, work: Path, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Mask malformed images, many in one run."""
    bids, out = work / "bids", work / "out"
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        draws = {f"{n:05d}": random.Random(f"image {seed} {n}") for n in numbers}
        dataset(bids, {name: malformed_image(draw) for name, draw in draws.items()})
        shutil.rmtree(out, ignore_errors=True)
        code, said = run(bids, out, "participant", "--model", model, "--device", "cpu")
        masks = len(list(out.rglob("*_mask.nii.gz")))
        crashes = len(list(out.rglob("crash-*.txt")))
        wrong = faults(code, said, out)
        if masks + crashes != len(draws):
            wrong.append(f"{masks} masks and {crashes} crash files of {len(draws)} images")
        yield from [("image masked", [])] * masks
        yield from [("image refused", [])] * crashes
        yield "run over images", [f"images {first} to {numbers[-1]}: {text}" for text in wrong]


def fuzz_labels(work: Path, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Find and read a label that is malformed, or whose sidecar is."""
    bids = work / "labelled"
    stem = bids / "derivatives/manual/sub-01/anat/sub-01_desc-brain_mask"
    link = "bids:raw:sub-01/anat/sub-01_T1w.nii"
    good = {"Type": "Brain", "SpatialReference": link, "Sources": [link]}
    for number in range(count):
        draw = random.Random(f"label {seed} {number}")
        dataset(bids, {"01": (".nii", head())})
        stem.parent.mkdir(parents=True)
        what = draw.choice(("mask", "its sidecar"))
        ending, content = malformed_image(draw) if what == "mask" else (".nii", head())
        stem.with_name(stem.name + ending).write_bytes(content)
        if what == "its sidecar":
            stem.with_name(stem.name + ".json").write_bytes(malformed_json(draw, good))
        end, wrong = "taken", []
        try:
            for label in find_label(bids, find_scans(bids)):
                load_mask(label.mask, load(label.scan.path))
        except SingleStripError as error:
            end = f"refused, code {error.exit_code}"
            wrong = [] if str(bids) in str(error) else [f"names no file: {error}"]
        except Exception as error:
            wrong = [repr(error)]
        yield f"label, {what}: {end}", [f"label {number}: {text}" for text in wrong]


def fuzz_files(model: Path, work: Path, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Run the app with a malformed description, filter, record, card, or sidecar of its own."""
    bids, out, case = work / "bids", work / "out", work / "case.json"
    copy = Path(shutil.copytree(model, work / "model", dirs_exist_ok=True))
    for table in copy.glob("*.tsv"):  # nobody needs the group's page drawn for every case
        table.unlink()
    shutil.rmtree(work / "done", ignore_errors=True)
    dataset(bids, {"01": (".nii", head())})
    run(bids, work / "done", "participant", "--model", copy)
    sidecar = Path("sub-01/anat/sub-01_desc-brain_mask.json")
    options = vars(cli.parse([str(bids), str(out), "participant"])) | {"set": ["steps=3"]}
    goods: dict[str, tuple[Any, Path, list[object]]] = {
        "filter": (
            {"t1w": {"run": [1, "02"], "acquisition": None, "session": "*"}},
            case,
            ["--bids-filter-file", case],
        ),
        "record": (
            {"options": cli.options_of(argparse.Namespace(**options))},
            case,
            ["--config-file", case],
        ),
        "card": (json.loads((copy / "model.json").read_text()), copy / "model.json", []),
        "description": (
            {"Name": "x", "BIDSVersion": "1"},
            bids / "dataset_description.json",
            [],
        ),
    }
    if (work / "done" / sidecar).is_file():  # a model may see no brain in a ball
        goods["sidecar"] = (json.loads((work / "done" / sidecar).read_text()), out / sidecar, [])
    for number in range(count):
        draw = random.Random(f"file {seed} {number}")
        kind = draw.choice(list(goods))
        good, place, words = goods[kind]
        dataset(bids, {"01": (".nii", head())})
        shutil.rmtree(out, ignore_errors=True)
        if kind == "sidecar":
            shutil.copytree(work / "done", out)
        whole = place.read_bytes() if kind == "card" else b""
        place.write_bytes(malformed_json(draw, good))
        code, said = run(bids, out, "participant", "--model", copy, *words, "--device", "cpu")
        if whole:
            place.write_bytes(whole)
        wrong = faults(code, said, out)
        yield f"{kind}, code {code}", [f"file {number} ({kind}): {text}" for text in wrong]


def report_known(model: Path, work: Path, scans: list[Path], count: int, seed: int) -> int:
    """Print the share of masks that are right in spite of a fault; 1 if a scan was refused."""
    found: dict[str, list[float]] = {}
    cases = known.try_known(load_model(model), scans, work, count, seed)
    for fault, what, same in cases:
        found.setdefault(fault, []).append(0.0 if same is None else same)
        if same is None or same < 1 - known.WITHIN:
            print(f"APART {what}" + ("" if same is None else f": Dice {same:.3f}"), flush=True)
    everything = [one for each in found.values() for one in each]
    print("fault\tcases\twithin\tleast")
    for fault, each in [*sorted(found.items()), ("all", everything)]:
        within = np.mean(np.array(each) >= 1 - known.WITHIN)
        print(f"{fault}\t{len(each)}\t{within:.3f}\t{min(each):.3f}")
    return int(0.0 in everything)


def main() -> int:
    """Print how often each kind of case came, and every fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=720)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--known", type=int, default=0)
    parser.add_argument("--scans", type=Path, nargs="+", default=[])
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.known:
        return report_known(a.model, a.work, a.scans, a.known, a.seed)
    counts: Counter[str] = Counter()
    try:
        for kind, wrong in chain(
            fuzz_labels(a.work, a.labels, a.seed),
            fuzz_files(a.model, a.work, a.files, a.seed),
            fuzz_images(a.model, a.work, a.images, a.seed),
        ):
            counts[kind] += 1
            counts["faults"] += len(wrong)
            for text in wrong:
                print(f"FAULT {text}", flush=True)
    finally:  # also when it is interrupted
        for kind, count in sorted(counts.items()):
            print(f"{kind}\t{count}")
    return min(counts["faults"], 1)


if __name__ == "__main__":
    sys.exit(main())
