"""An array of participant jobs, one subject each, all at once into one output folder.

    python -m benchmarks.stress.jobs DATASET MODEL WORK --jobs 50

The scans of DATASET are linked in turn under as many subjects as there are jobs; MODEL is the
code/singlestrip folder of a group run. What the jobs leave is compared with what one process
leaves that masks all subjects.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from itertools import cycle
from pathlib import Path

from benchmarks.stress import kills


def write_dataset(root: Path, source: Path, subjects: int) -> list[str]:
    """Link scans under new subjects; return the subjects."""
    root.mkdir(parents=True)
    description = {"Name": "array", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    names = [f"{number:03d}" for number in range(subjects)]
    scans = cycle(sorted(source.glob("sub-*/anat/*.nii.gz")))
    for name, scan in zip(names, scans, strict=False):
        link = root / f"sub-{name}/anat/sub-{name}_{scan.name.rsplit('_', 1)[1]}"
        link.parent.mkdir(parents=True)
        link.symlink_to(scan.resolve())
    return names


def compare(source: Path, model: Path, work: Path, jobs: int) -> dict[str, int | float]:
    """Run the array, then one process, and count what is not as it should be."""
    bids, out = work / "array", work / "out"
    subjects = write_dataset(bids, source, jobs)
    words = ["participant", "--model", str(model)]
    began = time.monotonic()
    started = [
        kills.start(kills.command(bids, out, [*words, "--participant-label", s])) for s in subjects
    ]
    for job in started:
        job.join()
    seconds = time.monotonic() - began
    kills.run(kills.command(bids, work / "one", words))
    ours, expected = kills.results(out), kills.results(work / "one")
    return {
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "jobs that failed": sum(job.exitcode != 0 for job in started),
        "masks": len(ours),
        "masks missing or not as by one process": sum(
            ours.get(name) != mask for name, mask in expected.items()
        ),
        "sidecars": len(list(out.rglob("*_mask.json"))),
        "pages": len(list(out.glob("sub-*.html"))),
        "records of runs": sum(path.is_dir() for path in (out / "logs").iterdir()),
        "half files": len(kills.half_files(out)),
        "hidden files": len(kills.leftovers(out)),
    }


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="folder that is removed first")
    parser.add_argument("--jobs", type=int, default=50)
    a = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    shutil.rmtree(a.work, ignore_errors=True)
    for what, count in compare(a.dataset, a.model, a.work, a.jobs).items():
        print(what, count, sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
