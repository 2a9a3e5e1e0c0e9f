"""Masks without any label: the model of phantoms beside tools that were trained on labels.

Usage: ``python -m benchmarks.zero_label OUT DATASET [DATASET ...] [--models phantom NAME=DIR]
[--tools deepbet hd-bet niimath]``. Every scan with a mask in ``derivatives/reference-masks`` of
its dataset is masked and scored. It writes OUT.json and OUT.md, the masks go to the folder OUT;
finished masks are not made again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, record
from benchmarks.peers import TOOLS, Tool
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.scans import Scan, find_scans

REFERENCES = Path("derivatives", "reference-masks")
ANIMALS = ("sub-chimpanzee", "sub-dog", "sub-macaque")


def model_tool(folder: str) -> Tool:
    """Make a tool of a folder with a model, or of the one that ships."""
    call = ("python", "-m", "benchmarks.with_model", folder, "{scan}", "{mask}")
    return Tool("singlestrip-bids", call)


def kind(row: Mapping[str, Any]) -> str:
    """Say to which group of the table a scan belongs."""
    subject = row["scan"].split("_")[0]
    if subject in ANIMALS:
        return "animals"
    if subject == "sub-glioma":
        return "glioma"
    return str(row["contrast"])


def scans_of(dataset: Path) -> list[tuple[Scan, Path]]:
    """Find the scans that have a reference, and these."""
    references = Derivatives(dataset / REFERENCES)
    pairs = [(scan, references.mask(scan)) for scan in find_scans(dataset, ["all"], [])]
    return [(scan, mask) for scan, mask in pairs if mask.is_file()]


def run(tools: Mapping[str, Tool], datasets: Sequence[Path], out: Path) -> dict[str, Any]:
    """Mask and score all scans with a reference, tool by tool."""
    results: dict[str, Any] = {**record.facts(), "tools": {}, "rows": []}
    for dataset in datasets:
        scans = [scan for scan, _ in scans_of(dataset)]
        found = peers.run(tools, scans, None, dataset / REFERENCES, out / dataset.name)
        results["tools"] |= found["tools"]
        results["rows"] += [{**row, "dataset": dataset.name} for row in found["rows"]]
    return results


def table(results: Mapping[str, Any]) -> str:
    """Make a Markdown table: a line a tool; mean and least Dice of each group of scans."""
    rows = [row for row in results["rows"] if not row["error"] or row["error"] != "missing"]
    groups = list(dict.fromkeys(sorted(map(kind, rows), reverse=True)))
    counts = {g: len({(r["dataset"], r["scan"]) for r in rows if kind(r) == g}) for g in groups}
    head = ["tool", *(f"{group} ({counts[group]})" for group in groups)]
    lines = [record.line(head), record.line(["---"] * len(head))]
    for name in results["tools"]:
        cells = []
        for group in groups:
            dice = [r["dice"] for r in rows if r["tool"] == name and kind(r) == group]
            cells.append(f"{statistics.mean(dice):.3f}, {min(dice):.3f}" if dice else "-")
        lines.append(record.line([name, *cells]))
    about = f"{results['date']}, commit {results['commit']}, {results['hardware']}."
    lines += ["", f"Mean and least Dice; in brackets the number of scans. {about}"]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Compare tools that need no label of the user.")
    parser.add_argument("out", type=Path)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--models", nargs="*", default=["phantom"], metavar="NAME=DIR")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=["deepbet", "hd-bet"])
    given = parser.parse_args(argv)
    named = [word.partition("=") for word in given.models]
    tools = {name: model_tool(folder or name) for name, _, folder in named}
    tools |= {name: TOOLS[name] for name in given.tools}
    results = run(tools, given.datasets, given.out)
    record.write(results, table(results), given.out)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
