"""Several structures from one segmentation: the app and ANTs beside the truth, by structure.

Usage: ``python -m benchmarks.structures APP DATASET LABEL TRUTH OUT``. APP is the output folder of
``singlestrip-bids DATASET APP group participant``, LABEL the segmentation that it learnt from,
TRUTH a derivative dataset of others. Where a scan has none, that of the person's T1w image is
moved to it by a rigid registration; how well the moved mask agrees with the reference mask in
DATASET, if there is one, is in the results. It writes OUT.json and OUT.md; what was propagated
goes to the folder OUT and is not made again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import one_shot, paired, record
from benchmarks.zero_label import REFERENCES
from singlestrip_bids.bids.derivatives import Derivatives, sidecar_path
from singlestrip_bids.bids.dseg import structures_in
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.image import nifti
from singlestrip_bids.image.masks import clean, dice
from singlestrip_bids.machine import files

MM = 2.0  # voxels at which ANTs registers


def run(app: Path, dataset: Path, label: Path, truth: Path, out: Path) -> dict[str, Any]:
    """Score all scans of the subjects that have a truth, but the labelled one."""
    scans = find_scans(dataset, ["all"], [])
    subject = label.name.split("_")[0].removeprefix("sub-")
    (labelled,) = (s for s in scans if s.subject == subject and s.suffix == "T1w")
    table = structures_in({label: nifti.load_dseg(label, nifti.load(labelled.path))})
    names = {one.index: one.name for one in table}
    results: dict[str, Any] = {**record.facts(), "structures": names, "rows": [], "moved": {}}
    for scan in scans:
        if scan.subject == subject:
            continue
        image, own = nifti.load(scan.path), Derivatives(truth).dseg(scan)
        if own.is_file():
            real = nifti.load_dseg(own, image)
        else:
            (anatomy,) = (s for s in scans if s.subject == scan.subject and s.suffix == "T1w")
            real = _moved(
                anatomy.path, Derivatives(truth).dseg(anatomy), scan, out / "truth",
                {"transform": "Rigid"},
            )  # fmt: skip
            results["moved"][scan.name] = _agreement(real, scan, dataset)
        made = {
            "app": nifti.load_dseg(Derivatives(app).dseg(scan), image),
            "ants": _moved(labelled.path, label, scan, out / "ants", {}),
        }
        fields = files.read_json(sidecar_path(Derivatives(app).dseg(scan)))["Structures"]
        for index, name in names.items():
            if not (real == index).any():
                continue
            overlap = {tool: dice(found == index, real == index) for tool, found in made.items()}
            row = {"scan": scan.name, "contrast": scan.suffix, "structure": name, **overlap}
            row |= {"expected": fields[name].get("ExpectedDice")}
            row |= {"interval": fields[name].get("ExpectedDiceInterval")}
            results["rows"].append(row)
        print(scan.name, _means(results["rows"], scan.name), flush=True)
    return results


def _moved(
    source: Path, segmentation: Path, scan: Scan, folder: Path, how: Mapping[str, str]
) -> np.ndarray:
    path = Derivatives(folder).dseg(scan)
    if not path.is_file():
        found = one_shot.propagate(source, segmentation, scan.path, MM, "genericLabel", **how)
        image = nifti.load(scan.path)
        nifti.save(path, nifti.dseg_image(np.rint(found).astype(np.int64), image.nifti))
    return np.asarray(nib.load(path).dataobj).astype(np.int64)


def _agreement(moved: np.ndarray, scan: Scan, dataset: Path) -> float | None:
    """Compare the mask of a truth that was moved with the reference mask there."""
    reference = Derivatives(dataset / REFERENCES).mask(scan)
    if not reference.is_file():
        return None
    return dice(clean(moved > 0), nifti.load_mask(reference, nifti.load(scan.path)))


def _means(rows: Sequence[Mapping[str, Any]], scan: str) -> str:
    own = [row for row in rows if row["scan"] == scan]
    tools = ("app", "ants")
    return " ".join(f"{t} {statistics.mean(row[t] for row in own):.3f}" for t in tools)


def table(results: Mapping[str, Any]) -> str:
    """Make a Markdown table: mean Dice of app and ANTs by contrast and structure."""
    rows = results["rows"]
    contrasts = sorted({row["contrast"] for row in rows}, reverse=True)
    lines = [record.line(["structure", *(f"{c}, app / ANTs" for c in contrasts)])]
    lines.append(record.line(["---"] * (1 + len(contrasts))))
    for name in [*results["structures"].values(), None]:
        cells = []
        for contrast in contrasts:
            own = [r for r in rows if r["contrast"] == contrast and name in (r["structure"], None)]
            means = [statistics.mean(row[tool] for row in own) for tool in ("app", "ants")]
            cells.append(f"{means[0]:.3f} / {means[1]:.3f}")
        lines.append(record.line([name or "mean", *cells]))
    lines += ["", *(_summary(rows, contrast) for contrast in contrasts)]
    lines.append(f"\n{results['date']}, commit {results['commit']}, {results['hardware']}.")
    return "\n".join(lines) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]], contrast: str) -> str:
    """Compare app and ANTs scan by scan, and what was expected with what came out."""
    own = [row for row in rows if row["contrast"] == contrast]
    gap = paired.difference(*([{**row, "dice": row[t]} for row in own] for t in ("app", "ants")))
    known = [row for row in own if row["expected"] is not None]
    held = sum(row["interval"][0] <= row["app"] <= row["interval"][1] for row in known)
    return (
        f"{contrast}, {gap.scans if gap else 1} scans: app less ANTs {gap}; {held} of "
        f"{len(known)} within the expected interval."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Score structures of the app and of ANTs.")
    for name in ("app", "dataset", "label", "truth", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args(argv)
    results = run(given.app, given.dataset, given.label, given.truth, given.out)
    record.write(results, table(results), given.out)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
