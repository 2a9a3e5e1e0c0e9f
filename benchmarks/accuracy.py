"""Train several arms from several labels, score them on the truth, and make a table.

Usage: ``python -m benchmarks.accuracy CONFIG DATASET WORK --out RESULTS``. It writes RESULTS.json
and RESULTS.md after every arm, and goes on where it was stopped: finished arms are not repeated,
and arms of one label share its first network. The config is JSON: ``title``; ``labels`` (subjects,
one fold each), ``pool`` (unlabelled subjects trained on), ``inductive`` (subjects only masked);
``options`` of the app for all arms; ``arms``, their names and own options. The truth lies in the
folder named ``<DATASET>-truth``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import score
from singlestrip_bids import cli, derivatives
from singlestrip_bids.runtime import describe

SHARED = ("autoencoder.safetensors", "sl1.safetensors")  # taken over if the fingerprints agree


def run(config: dict[str, Any], dataset: Path, work: Path, out: Path) -> dict[str, Any]:
    """Run all arms of all folds that are not in the results yet.

    Parameters
    ----------
    config : dict
        As in the head of this module.
    dataset : Path
        BIDS dataset with a mask of every labelled subject in its derivatives.
    work : Path
        For models and masks, a folder for each label and arm.
    out : Path
        Results without their ending.

    Returns
    -------
    dict
        The results, as written to ``<out>.json``.

    Raises
    ------
    RuntimeError
        An arm failed.
    """
    results = _begun(config, out)
    for label in config["labels"]:
        for arm, options in config["arms"].items():
            if any(row["label"] == label and row["arm"] == arm for row in results["rows"]):
                continue
            print(f"== {label}: {arm}", flush=True)
            folder = work / label / "".join(c if c.isalnum() else "-" for c in arm)
            _share(work / label, folder)
            began = time.monotonic()
            _train_and_mask(config, options, dataset, label, folder)
            minutes = (time.monotonic() - began) / 60
            results["rows"] += _score(config, dataset, folder, label, arm, minutes)
            _write(results, out)
    return results


def _begun(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """Read unfinished results of the same config, or start new ones."""
    path = out.with_suffix(".json")
    if path.is_file():
        results: dict[str, Any] = json.loads(path.read_text())
        if results["config"] != config:
            raise RuntimeError(f"{path}: made from another config; remove it or choose another")
        return results
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = describe()
    machine = versions["gpu"] or f"{platform.machine()}, {versions['threads']} threads, no GPU"
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "hardware": machine,
        "versions": versions,
        "config": config,
        "rows": [],
    }


def _share(fold: Path, folder: Path) -> None:
    """Take the first networks over from another arm; the app uses them if they are the same."""
    target = derivatives.model_dir(folder)
    for other in sorted(fold.glob("*")):
        source = derivatives.model_dir(other)
        if other != folder and all((source / name).is_file() for name in SHARED):
            target.mkdir(parents=True, exist_ok=True)
            for name in SHARED:
                if not (target / name).exists():
                    shutil.copy(source / name, target / name)
            return


def _train_and_mask(
    config: dict[str, Any], options: Sequence[str], dataset: Path, label: str, folder: Path
) -> None:
    call, common = [str(dataset), str(folder)], [*config["options"], *options]
    chosen = ["--participant-label", label, *config["pool"]]
    code = cli.main([*call, "group", *chosen, "--label-subject", label, *common])
    if code in (0, 1):  # 1: some scans failed; their rows will say so
        code = cli.main([*call, "participant", *chosen, *config["inductive"], *common])
    if code not in (0, 1):
        raise RuntimeError(f"{folder}: the app ended with {code}")


def _score(
    config: dict[str, Any], dataset: Path, folder: Path, label: str, arm: str, minutes: float
) -> list[dict[str, Any]]:
    """Score the pool (transductive) and the other scans (inductive)."""
    rows = []
    for row in score.score(folder, dataset.parent / f"{dataset.name}-truth"):
        subject = row.scan.split("_")[0].removeprefix("sub-")
        for role in ("pool", "inductive"):
            if subject in config[role]:
                plain = score.jsonable(row)
                rows.append(
                    {"label": label, "arm": arm, "role": role, **plain, "minutes": minutes}
                )
    return rows


def _write(results: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    derivatives.write_json(out.with_suffix(".json"), results)
    out.with_suffix(".md").write_text(table(results))


def table(results: dict[str, Any]) -> str:
    """Make a Markdown table: mean Dice and HD95 over folds, with the spread between folds."""
    config, rows = results["config"], results["rows"]
    groups = sorted({(row["role"], row["contrast"]) for row in rows}, reverse=True)
    head = ["arm", *(f"{contrast}, {role}" for role, contrast in groups), "minutes a fold"]
    lines = [f"# {config['title']}", "", _line(head), _line(["---"] * len(head))]
    for arm in config["arms"]:
        of_arm = [row for row in rows if row["arm"] == arm]
        if not of_arm:
            continue
        cells = [
            _cell([row for row in of_arm if (row["role"], row["contrast"]) == group])
            for group in groups
        ]
        minutes = {row["label"]: row["minutes"] for row in of_arm}
        lines.append(_line([arm, *cells, f"{statistics.mean(minutes.values()):.1f}"]))
    folds = len({row["label"] for row in rows})
    lines += [
        "",
        f"Mean Dice ± standard deviation over {folds} folds (another label each) / mean HD95, mm.",
        f"{results['date']}, commit {results['commit']}, {results['hardware']}. "
        "Minutes of an arm are without the first networks where those were shared.",
    ]
    return "\n".join(lines) + "\n"


def _cell(rows: Iterable[dict[str, Any]]) -> str:
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


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run an experiment from the command line; return 1 if an arm failed."""
    parser = argparse.ArgumentParser(description="Train and score arms over several labels.")
    parser.add_argument("config", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="results, without an ending")
    args = parser.parse_args(argv)
    try:
        results = run(json.loads(args.config.read_text()), args.dataset, args.work, args.out)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
