"""Kill the app with SIGKILL at random moments, run it again, and look for half files.

    python -m benchmarks.stress.kills DATASET OUT --moments 20 --seed 0 [OPTIONS OF THE APP]

After each kill every file under a final name must be whole. Then the same command must complete,
and come to the networks and masks of a run that was never killed, byte by byte. The table goes to
standard output. Processes are forked from one that has imported the app, so that the moments lie
in its work and not in its imports.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

from singlestrip_bids import cli
from singlestrip_bids.options import LEVELS

HIDDEN = ".tmp"  # ending of a file that is not yet under its final name


def command(bids: Path, out: Path, words: Sequence[str]) -> list[str]:
    """Return the words of a quick run of the app."""
    return [str(bids), str(out), *words, "--sloppy"]


def start(words: Sequence[str]) -> BaseProcess:
    """Start the app in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"singlestrip_bids.{name}" for name in ("cli", *LEVELS)])
    process = context.Process(target=_app, args=(list(words),))
    process.start()
    return process


def _app(words: list[str]) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process ends
    sys.exit(cli.main(words))


def run(words: Sequence[str], kill_after: float | None = None) -> tuple[int | None, float]:
    """Run the app, kill it after so many seconds if it still runs; return code and seconds."""
    began = time.monotonic()
    process = start(words)
    process.join(kill_after)
    process.kill()
    process.join()
    return process.exitcode, time.monotonic() - began


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


def results(out: Path) -> dict[str, bytes]:
    """Read the networks and masks of a run."""
    paths = [path for end in ("*.safetensors", "*.nii.gz") for path in out.rglob(end)]
    kept = [path.relative_to(out) for path in paths if "work" not in path.parts]
    return {str(path): (out / path).read_bytes() for path in kept}


def rounds(
    bids: Path, folder: Path, words: Sequence[str], moments: int, draw: random.Random
) -> Iterator[tuple[float, int, int, int | None, bool]]:
    """Kill a level at random moments, each time from the start, and run it to its end.

    Parameters
    ----------
    bids, folder
        The dataset, and where to write.
    words
        The level and its options.
    moments, draw
        How many, and what draws them.

    Yields
    ------
    seconds, half files, hidden files, code, same
        Of each kill: when, and what it left; how the restart ended, and whether its results are
        those of a run that was never killed.
    """
    code, seconds = run(command(bids, folder / "straight", words))
    if code:
        raise SystemExit(f"{words} does not run by itself: {code}")
    expected = results(folder / "straight")
    out = folder / "killed"
    again = command(bids, out, words)
    while moments:
        shutil.rmtree(out, ignore_errors=True)
        moment = draw.uniform(0, seconds)
        if run(again, moment)[0] == 0:
            continue  # it was faster this time
        left = len(half_files(out)), len(leftovers(out))
        code, _ = run(again)
        yield moment, *left, code, results(out) == expected and not half_files(out)
        moments -= 1


def main() -> int:
    """Kill each level and print one row a kill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="folder that is removed first")
    parser.add_argument("--moments", type=int, default=20, help="of each level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--model", type=Path, help="for participant (default: that of group)")
    a, options = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shutil.rmtree(a.out, ignore_errors=True)
    print("level\tseconds\thalf_files\thidden_files\tcode_of_restart\tsame_results")
    failures = 0
    for level in a.levels:
        words, draw = [level, *options], random.Random(f"{level} {a.seed}")
        if level == "participant":
            words += ["--model", str(a.model or a.out / "group/straight/code/singlestrip")]
        for row in rounds(a.dataset, a.out / level, words, a.moments, draw):
            seconds, half, hidden, code, same = row
            print(level, f"{seconds:.1f}", half, hidden, code, same, sep="\t", flush=True)
            failures += bool(half or code or not same)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
