"""How long it takes to find the scans of a large dataset of empty files.

    python -m benchmarks.stress.indexing WORK --subjects 5000

Each measurement is a process of its own, its start and imports among its seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CONTRASTS = ("anat/{}_T1w", "anat/{}_T2w", "anat/{}_FLAIR", "func/{}_task-rest_bold", "dwi/{}_dwi")
QUERY = (
    "import sys; from pathlib import Path; from singlestrip_bids.bids.scans import find_scans; \
root, database, *who = sys.argv[1:]; \
print(len(find_scans(Path(root), ['all'], who, database=Path(database) if database else None)))"
)


def write_dataset(root: Path, subjects: int) -> None:
    """Write ten empty files a subject: five images, each with its sidecar."""
    root.mkdir(parents=True)
    description = {"Name": "empty", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    for number in range(subjects):
        subject = f"sub-{number:05d}"
        for contrast in CONTRASTS:
            stem = root / subject / contrast.format(subject)
            stem.parent.mkdir(parents=True, exist_ok=True)
            for ending in (".nii.gz", ".json"):
                stem.with_name(stem.name + ending).touch()


def measure(root: Path, who: Sequence[str], database: str = "") -> tuple[int, float, float]:
    """Return the number of scans found, and wall and CPU seconds."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-c", QUERY, str(root), database, *who]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(said), wall, cpu


def main() -> None:
    """Print a table: subjects, what is asked for, scans found, wall and CPU seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--subjects", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--database", action="store_true", help="measure a pybids index too")
    arguments = parser.parse_args()
    print("| subjects | asked for | scans | wall s | CPU s |\n|---|---|---|---|---|")
    for subjects in arguments.subjects:
        root = arguments.work / f"empty-{subjects}"
        if not root.exists():
            write_dataset(root, subjects)
        rows = [("one participant", ["00042"], ""), ("all", [], "")]
        if arguments.database:
            index = str(arguments.work / f"index-{subjects}")
            rows += [("all, making an index", [], index), ("all, by the index", [], index)]
        for asked, who, database in rows:
            scans, wall, cpu = measure(root, who, database)
            print(f"| {subjects} | {asked} | {scans} | {wall:.1f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
