"""Train several arms from several labels, score them on the truth, and make a table.

Usage: ``python -m benchmarks.accuracy CONFIG DATASET WORK --out RESULTS``. It writes RESULTS.json
and RESULTS.md after every arm, and goes on where it was stopped: finished arms are not repeated,
and arms of one label share its first network. Labels and arms may be added later.

The config is JSON: ``title``; ``labels`` (subjects, one fold each), ``pool`` (unlabelled subjects
trained on), ``inductive`` (subjects only masked); ``options`` of the app for all arms; ``arms``,
their names and own options. If wanted, ``cohorts`` names sets of subjects that have columns of
their own in the table, where contrasts have them otherwise; ``best`` makes some of the arms train
on the ``k`` pool scans alone whose masks by the arm ``of`` are the best ``by`` their true ``dice``
(an oracle) or by a judgement of `benchmarks.qc`; arms in ``all_labels`` train on all labels at
once, in the first fold alone; arms in ``parts`` have further rows, of their network and of their
propagated label, each alone; ``peers`` are tools of `benchmarks.peers` to be put beside them.
``masks`` names the mask of a labelled subject that has several, and ``truth`` the folder of the
references, both within the dataset; without it they lie in the folder ``<DATASET>-truth``.
Beside the app's presets there are ``quick-new`` and the like: self-training from a new network.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import singlestrip_bids
from benchmarks import paired, parts, peers, qc, record, score
from singlestrip_bids import cli
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.label import Label, find_label
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.config import PRESETS
from singlestrip_bids.errors import SingleStripError

SHARED = ("autoencoder.safetensors", "sl1.safetensors")  # taken over if the fingerprints agree

NEW = {
    f"{name}-new": replace(method, warm_start=False, finetuning=method.training)
    for name, method in PRESETS.items()
}  # the paper's SSL-T from scratch: as long a training as that of SL-1


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
            everyone = arm in config.get("all_labels", [])  # the same in every fold
            if _done(results, label, arm) or (everyone and label != config["labels"][0]):
                continue
            print(f"== {label}: {arm}", flush=True)
            folder = _folder(work / label, arm)
            _share(work / label, folder)
            began = time.monotonic()
            pool = _best(config, arm, dataset, work / label) or config["pool"]
            labels = config["labels"] if everyone else [label]
            _train_and_mask(config, options, dataset, labels, pool, folder)
            minutes = (time.monotonic() - began) / 60
            truth = _truth(config, dataset)
            results["rows"] += _with_roles(config, _scores(folder, truth), label, arm, minutes)
            if arm in config.get("parts", []):
                for name, rows in _parts(config, dataset, folder).items():
                    results["rows"] += _with_roles(config, rows, label, f"{arm}: {name}", minutes)
            record.write(results, table(results), out)
    _add_peers(results, dataset, work, out)
    return results


def _begun(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """Read unfinished results of the same config, or start new ones."""
    path = out.with_suffix(".json")
    if path.is_file():
        results: dict[str, Any] = json.loads(path.read_text())
        if not _continues(results["config"], config):
            raise RuntimeError(f"{path}: made from another config; remove it or choose another")
        return results | {"config": config}
    tools = config.get("peers", [])
    if unknown := sorted(set(tools) - set(peers.TOOLS)):
        raise ValueError(f"no peers named {unknown}; there are {sorted(peers.TOOLS)}")
    return {**record.facts(), "config": config, "rows": [], "peers": {}}


def _continues(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Tell whether a config says the same of all that an older one says, and perhaps more."""
    same = all(old[key] == new[key] for key in ("pool", "inductive", "options"))
    ways = [(old.get(key, {}), new.get(key, {})) for key in ("arms", "best")]
    return same and all(
        after.get(arm) == way for before, after in ways for arm, way in before.items()
    )


def _done(results: dict[str, Any], label: str | None, arm: str) -> bool:
    return any(row["label"] == label and row["arm"] == arm for row in results["rows"])


def _truth(config: dict[str, Any], dataset: Path) -> Path:
    if "truth" in config:
        return dataset / config["truth"]
    return dataset.parent / f"{dataset.name}-truth"


def _scores(folder: Path, truth: Path) -> list[dict[str, Any]]:
    return [score.jsonable(row) for row in score.score(folder, truth)]


def _parts(config: dict[str, Any], dataset: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Mask and score with the network and with the propagated label of an arm."""
    model = singlestrip_bids.load_model(Derivatives(folder).model_dir)
    everybody = [*config["pool"], *config["inductive"]]
    out = folder.with_name(f"{folder.name}-parts")
    parts.mask_apart(model, find_scans(dataset, ["all"], everybody), out)
    return {name: _scores(out / name, _truth(config, dataset)) for name in parts.PARTS}


def _share(fold: Path, folder: Path) -> None:
    """Take the first networks over from another arm; the app uses them if they are the same."""
    target = Derivatives(folder).model_dir
    for other in sorted(fold.glob("*")):
        source = Derivatives(other).model_dir
        if other != folder and all((source / name).is_file() for name in SHARED):
            target.mkdir(parents=True, exist_ok=True)
            for name in SHARED:
                if not (target / name).exists():
                    shutil.copy(source / name, target / name)
            return


def _folder(fold: Path, arm: str) -> Path:
    return fold / "".join(c if c.isalnum() else "-" for c in arm)


def _best(config: dict[str, Any], arm: str, dataset: Path, fold: Path) -> list[str]:
    """Choose the pool scans that an arm is to train on, if it names a way; subjects."""
    way = config.get("best", {}).get(arm)
    if way is None:
        return []
    trained = singlestrip_bids.load_model(Derivatives(_folder(fold, way["of"])).model_dir)
    rows = qc.judge(trained, dataset, config["pool"])
    rows.sort(key=lambda row: -row[way["by"]])
    return [row["scan"].split("/")[0].removeprefix("sub-") for row in rows[: way["k"]]]


def _train_and_mask(
    config: dict[str, Any],
    options: Sequence[str],
    dataset: Path,
    labels: Sequence[str],
    pool: Sequence[str],
    folder: Path,
) -> None:
    call, common = [str(dataset), str(folder)], [*config["options"], *options]
    chosen = ["--participant-label", *labels, *pool]
    everybody = ["--participant-label", *labels, *config["pool"], *config["inductive"]]
    with patch.dict(PRESETS, NEW):
        code = cli.main([*call, "group", *chosen, *_named(config, dataset, labels), *common])
        if code in (0, 1):  # 1: some scans failed; their rows will say so
            code = cli.main([*call, "participant", *everybody, *common])
    if code not in (0, 1):
        raise RuntimeError(f"{folder}: the app ended with {code}")


def _named(config: dict[str, Any], dataset: Path, labels: Sequence[str]) -> list[str]:
    """Name the labels to the app: one by its mask, if the config has that."""
    masks = config.get("masks", {})
    if len(labels) == 1 and labels[0] in masks:
        return ["--label-mask", str(dataset / masks[labels[0]])]
    return ["--label-subject", *labels]


def _add_peers(results: dict[str, Any], dataset: Path, work: Path, out: Path) -> None:
    """Mask and score with other tools: once for each label, or once where they use none."""
    config = results["config"]
    for name in config.get("peers", []):
        tool = peers.TOOLS[name]
        if missing := tool.missing():
            print(f"== {name}: not installed: {missing}", flush=True)
        results["peers"][name] = {"missing": missing} if missing else {"version": tool.version()}
        for label in config["labels"] if tool.uses_label else [None]:
            if missing or _done(results, label, name):
                continue
            print(f"== {label or 'any label'}: {name}", flush=True)
            scans = find_scans(dataset, ["all"], [*config["pool"], *config["inductive"]])
            known = _label(config, dataset, label) if label else None
            folder = work / (label or "no-label") / f"peer-{name}"
            rows = peers.mask_and_score(name, tool, scans, known, _truth(config, dataset), folder)
            minutes = sum(row["seconds"] or 0.0 for row in rows) / 60
            results["rows"] += _with_roles(config, rows, label, name, minutes)
        record.write(results, table(results), out)


def _label(config: dict[str, Any], dataset: Path, subject: str) -> Label:
    if subject in config.get("masks", {}):
        return find_label(dataset, label_mask=dataset / config["masks"][subject])[0]
    return find_label(dataset, label_subjects=[subject])[0]


def _with_roles(
    config: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    label: str | None,
    arm: str,
    minutes: float,
) -> list[dict[str, Any]]:
    """Say of each score its cohort, and if it is in the pool (transductive) or not (inductive)."""
    found = []
    for row in rows:
        subject = row["scan"].split("_")[0].removeprefix("sub-")
        sets = config.get("cohorts", {}).items()
        cohort = next((name for name, members in sets if subject in members), row["contrast"])
        where = {"label": label, "arm": arm, "cohort": cohort}
        found += [
            {**where, "role": role, **row, "minutes": minutes}
            for role in ("pool", "inductive")
            if subject in config[role]
        ]
    return found


def table(results: dict[str, Any]) -> str:
    """Make a Markdown table: mean Dice and HD95 over folds, with the spread between folds."""
    config, rows = results["config"], results["rows"]
    groups = sorted({(row["role"] != "pool", row["role"], row["cohort"]) for row in rows})
    head = ["arm", *(f"{cohort}, {role}" for _, role, cohort in groups), "minutes a fold"]
    lines = [f"# {config['title']}", "", record.line(head), record.line(["---"] * len(head))]
    for arm in _everything(config):
        of_arm = [row for row in rows if row["arm"] == arm]
        if not of_arm:
            continue
        cells = [
            record.cell(row for row in of_arm if (row["role"], row["cohort"]) == group[1:])
            for group in groups
        ]
        minutes = {row["label"]: row["minutes"] for row in of_arm}
        lines.append(record.line([arm, *cells, f"{statistics.mean(minutes.values()):.1f}"]))
    folds = len({row["label"] for row in rows} - {None})
    lines += [
        "",
        f"Mean Dice ± standard deviation over {folds} folds (another label each) / mean HD95, mm.",
        f"{results['date']}, commit {results['commit']}, {results['hardware']}. "
        "Minutes of an arm are without the first networks where those were shared.",
        *_about_peers(results.get("peers", {})),
        *_paired(config, rows),
    ]
    return "\n".join(lines) + "\n"


def _everything(config: dict[str, Any]) -> list[str]:
    """Name the arms with their parts, and the peers."""
    names = list[str]()
    for arm in config["arms"]:
        names.append(arm)
        if arm in config.get("parts", []):
            names += [f"{arm}: {name}" for name in parts.PARTS]
    return [*names, *config.get("peers", [])]


def _paired(config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Compare the first arm with all others, scan by scan, in a table."""
    cohorts = sorted({row["cohort"] for row in rows})
    first, *others = _everything(config)
    lines = list[str]()
    for other in others:
        cells = []
        for cohort in cohorts:
            one, two = (
                [row for row in rows if (row["arm"], row["cohort"]) == (arm, cohort)]
                for arm in (first, other)
            )
            cells.append(str(paired.difference(one, two) or "-"))
        if set(cells) != {"-"}:
            lines.append(record.line([other, *cells]))
    if not lines:
        return []
    head = [
        f"{first}, less",
        *(f"{cohort} (95 % of a bootstrap over scans)" for cohort in cohorts),
    ]
    return ["", record.line(head), record.line(["---"] * len(head)), *lines]


def _about_peers(tools: dict[str, dict[str, str]]) -> list[str]:
    """Name the versions of the other tools, and those that are not installed."""
    named = [f"{name} ({tool['version']})" for name, tool in tools.items() if "version" in tool]
    absent = [f"{name} ({tool['missing']})" for name, tool in tools.items() if "missing" in tool]
    return [
        *([f"Other tools: {', '.join(named)}; without ± they use no label."] if named else []),
        *([f"Not installed: {', '.join(absent)}."] if absent else []),
    ]


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
    except (OSError, ValueError, RuntimeError, SingleStripError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
