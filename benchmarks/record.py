"""What a benchmark notes of itself, and how its scores stand in a Markdown table."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from singlestrip_bids.machine import files
from singlestrip_bids.machine.runtime import describe


def facts() -> dict[str, Any]:
    """Return the date, the commit, the hardware and the versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    machine = versions["gpu"] or f"{platform.machine()}, {versions['threads']} threads, no GPU"
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "hardware": machine,
        "versions": versions,
    }


def write(results: dict[str, Any], table: str, out: Path) -> None:
    """Write ``<out>.json`` and ``<out>.md``."""
    files.write_json(out.with_suffix(".json"), results)
    files.write_text(out.with_suffix(".md"), table)


def line(cells: Iterable[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def cell(rows: Iterable[dict[str, Any]]) -> str:
    """Return mean Dice, its spread between labels if there are several, and mean HD95 in mm."""
    folds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        folds.setdefault(row["label"], []).append(row)
    if not folds:
        return "-"
    # a mask that is missing counts as a Dice of 0
    dice = [statistics.mean(row["dice"] or 0.0 for row in fold) for fold in folds.values()]
    distances = [float(row["hd95_mm"]) for fold in folds.values() for row in fold if row["dice"]]
    finite = [value for value in distances if math.isfinite(value)]
    spread = f" ± {statistics.stdev(dice):.3f}" if len(dice) > 1 else ""
    far = f"{statistics.mean(finite):.1f}" if finite else "-"
    return f"{statistics.mean(dice):.3f}{spread} / {far}"
