"""Kill the app with SIGKILL at random moments, run it again, and look for half files.

    python -m benchmarks.kills DATASET OUT --moments 20 --seed 0

After each kill every file under a final name must be whole; in the end the same command must
complete. The table goes to standard output.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

HIDDEN = ".tmp"  # ending of a file that is not yet under its final name


def command(bids: Path, out: Path, levels: Sequence[str], *options: str) -> list[str]:
    """Return a quick run of the app as a command."""
    app = [sys.executable, "-m", "singlestrip_bids.cli"]
    return [*app, str(bids), str(out), *levels, "--sloppy", *options]


def run(words: Sequence[str], kill_after: float | None = None) -> tuple[int, float]:
    """Run a command, kill it after so many seconds if it still runs; return code and seconds."""
    began = time.monotonic()
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        code = process.wait()
    return code, time.monotonic() - began


def half_files(out: Path) -> list[str]:
    """List the files under final names that are not whole."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return [str(path) for path in files if path.suffix != HIDDEN and not _whole(path)]


def leftovers(out: Path) -> list[Path]:
    """List the hidden files of writers that were killed."""
    return sorted(out.rglob(f".*{HIDDEN}"))


def _whole(path: Path) -> bool:
    try:
        if path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
            return bool(np.asarray(nib.load(path).dataobj).size)
        if path.suffix == ".json":
            return isinstance(json.loads(path.read_text()), dict)
        if path.suffix in (".safetensors", ".checkpoint"):
            return bool(load_file(path))
        if path.suffix == ".tsv":
            with path.open() as stream:
                rows = list(csv.reader(stream, delimiter="\t"))
            return path.read_text().endswith("\n") and len({len(row) for row in rows}) == 1
        return path.stat().st_size > 0
    except Exception:
        return False


def rounds(
    bids: Path, folder: Path, level: str, moments: int, draw: random.Random
) -> Iterator[tuple[float, int, int, int]]:
    """Kill a level at random moments, then run it to its end.

    Yields
    ------
    seconds, code, half files, hidden files
        Of each run; the last one is not killed.
    """
    code, seconds = run(command(bids, folder / "straight", [level]))
    if code:
        raise SystemExit(f"{level} does not run by itself: {code}")
    out = folder / "killed"
    words = command(bids, out, [level])
    for _ in range(moments):
        if level == "participant":  # nothing is left to do for the next one otherwise
            for masks in out.glob("sub-*"):
                shutil.rmtree(masks)
        elif (out / "code/singlestrip/model.json").exists():
            shutil.rmtree(out)
        moment = draw.uniform(0, seconds)
        code, _ = run(words, moment)
        yield moment, code, len(half_files(out)), len(leftovers(out))
    code, last = run(words)
    yield last, code, len(half_files(out)), len(leftovers(out))


def main() -> int:
    """Kill each level half of the times and print one row a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="folder that is removed first")
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", nargs="+", default=["group", "participant"])
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shutil.rmtree(arguments.out, ignore_errors=True)
    print("level\tseconds\tcode\thalf_files\thidden_files")
    failures = 0
    for level in arguments.levels:
        moments = arguments.moments // len(arguments.levels)
        code = 0
        for row in rounds(arguments.dataset, arguments.out, level, moments, draw):
            seconds, code, half, hidden = row
            print(level, f"{seconds:.1f}", code, half, hidden, sep="\t", flush=True)
            failures += half
        failures += bool(code)
    return failures


if __name__ == "__main__":
    sys.exit(main())
