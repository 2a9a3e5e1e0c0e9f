"""What each change to PUMBA's recipe gives: networks trained alike, on phantoms of several kinds.

Usage: ``python -m benchmarks.phantom_recipes WORK OUT DATASET [DATASET ...] [--steps 1500]``.
Every scan with a mask in ``derivatives/reference-masks`` of its dataset is masked and scored. It
writes OUT.json and OUT.md; finished recipes are not tried again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import singlestrip_bids
from benchmarks import phantom_model, published_phantoms, record, zero_label
from singlestrip_bids.config import MethodConfig
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image.masks import dice
from singlestrip_bids.image.nifti import load, load_mask
from singlestrip_bids.machine import files
from singlestrip_bids.machine.runtime import start, start_logging
from singlestrip_bids.method import phantoms
from singlestrip_bids.method.losses import Example

QUICK = {"SEEN": 1500, "SHAPES": 8, "JUDGED": 8}  # masks alone are scored here


@dataclass(frozen=True)
class Recipe:
    """What is drawn: the app's phantoms, some parts of them otherwise, or examples of its own."""

    changes: Mapping[str, Any] = field(default_factory=dict)  # in `method.phantoms`
    draw: Callable[[MethodConfig], Callable[..., Example]] | None = None
    width: float = phantoms.WIDTH


def _bare_head(draw, grid, brain, edges, half, human):  # type: ignore[no-untyped-def]
    x, y, _ = edges
    cover = (half - (x * y).sqrt()).clamp(min=0.03 * half)
    return brain - cover * (1 + 0.3 * draw.field(3)).clamp(0.3, 2) * draw.between(0.7, 1.2)


def _no_organs(draw, classes, grid, edges, head):  # type: ignore[no-untyped-def]
    return classes


def _published(border: int) -> Recipe:
    return Recipe(
        draw=lambda method: partial(published_phantoms.example, method.size, border=border),
        width=published_phantoms.HEAD,
    )


RECIPES: dict[str, Recipe] = {
    "published": _published(3),
    "border within": _published(1),
    "and our images": Recipe(
        draw=lambda method: partial(published_phantoms.imaged, method.size, method.synthesis),
        width=published_phantoms.HEAD,
    ),
    "our heads, no face, neck, eyes": Recipe(
        {"_head": _bare_head, "_organs": _no_organs, "DARK": 0}
    ),
    "our heads, gap dark": Recipe({"DARK": 1}),
    "our heads, human alone": Recipe({"HUMAN": 1, "DARK": 0}),
    "our heads": Recipe({"DARK": 0}),
    "our heads, gap dark in half": Recipe(),
    "the same, four of five human": Recipe({"HUMAN": 0.8}),
}


def run(work: Path, datasets: Sequence[Path], steps: int, out: Path) -> dict[str, Any]:
    """Train and score all recipes."""
    path = out.with_suffix(".json")
    results: dict[str, Any] = {**record.facts(), "steps": steps, "tools": {}, "rows": []}
    if path.is_file():
        results |= files.read_json(path)
    method = phantom_model.settings(steps, 0)
    method = replace(method, quality=replace(method.quality, epochs=2), trials=QUICK["JUDGED"])
    for name, recipe in RECIPES.items():
        if name in results["tools"]:
            continue
        draw = recipe.draw and recipe.draw(method)
        folder = work / name.replace(" ", "-").replace(",", "")
        with patch.dict(vars(phantoms), recipe.changes), patch.dict(vars(phantom_model), QUICK):
            model = phantom_model.train(folder, method, start("cpu"), draw, recipe.width)
        results["tools"][name] = {}
        results["rows"] += [{"tool": name, **row} for row in _scores(model, datasets)]
        record.write(results, zero_label.table(results), out)
    return results


def _scores(folder: Path, datasets: Sequence[Path]) -> list[dict[str, Any]]:
    model = singlestrip_bids.load_model(folder, "cpu")
    rows = []
    for dataset in datasets:
        for scan, reference in zero_label.scans_of(dataset):
            row = {"scan": scan.name, "dataset": dataset.name, "contrast": scan.suffix}
            try:
                brain = model.mask(scan.path)
                truth = load_mask(reference, load(scan.path))
                rows.append({**row, "dice": dice(brain.voxels, truth), "error": None})
            except SingleStripError as error:
                said = str(error).replace(f"{dataset.parent}/", "")
                rows.append({**row, "dice": 0.0, "error": said})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Compare recipes of phantoms.")
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args(argv)
    start_logging(0)
    print(zero_label.table(run(given.work, given.datasets, given.steps, given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
