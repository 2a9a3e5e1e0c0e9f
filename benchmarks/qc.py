"""Which judgements without a truth tell good masks from bad ones.

Usage: ``python -m benchmarks.qc DATASET MODEL... --out RESULTS``. Every model (a
``code/singlestrip`` folder, one for each fold) masks the scans that have a truth in
``<DATASET>-truth``, apart from its own label. Each mask is judged in several ways, the judgements
are compared with the true Dice on the model's grid, and RESULTS.json and RESULTS.md are written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.parts import prototypes_of
from benchmarks.record import facts, line, write
from singlestrip_bids import load_model
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.config import ALL_MODALITIES
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image import nifti
from singlestrip_bids.image.grid import Conformed, conform
from singlestrip_bids.image.masks import Mask, dice, millilitres
from singlestrip_bids.image.nifti import Image
from singlestrip_bids.machine import files
from singlestrip_bids.method.expected_dice import Evidence, Segmentation, line_through, segment
from singlestrip_bids.method.guard import LABEL
from singlestrip_bids.method.inference import mask_from, predict
from singlestrip_bids.method.model import Model
from singlestrip_bids.method.prototypes import Prototypes

GOOD = 0.9  # Dice
WRITTEN = "_written"  # ending of what is said of these masks
COPIES, SCALING, ROTATION = 10, 0.2, 30.0  # of TTA (SingleStrip); rotation in degrees

JUDGES = {
    "autoencoder": "reconstruction Dice of the 2D autoencoder, as published",
    "calibrated": "the same, calibrated on corrupted copies of the label",
    "mirror": "Dice of the masks of the image and of its mirror image",
    "mild": "mean Dice with the masks of two mildly remapped copies, one of them mirrored",
    "strong": "the same with strongly remapped ones",
    "expected": "expected Dice, from the autoencoder and both kinds of copies",
    "tta": "median Dice of ten turned, scaled copies with their median, as published",
    "written": "expected Dice of what is written, with label and fine network; of its own Dice",
    "features": "Dice with the mask by prototypes of the label in the features of an encoder",
    "volume": "volume against the label's, the smaller over the larger",
    "roundness": "surface of a ball of this volume over the mask's surface",
    "whole": "share of the largest component",
}


def judge(trained: Model, dataset: Path, subjects: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Mask and judge all scans of a dataset with one model.

    Parameters
    ----------
    trained : Model
        Its own label is left out.
    dataset : Path
        Scans; masks lie in ``<dataset>-truth`` under the names that the app would give them.
    subjects : sequence of str
        Only these; all if empty.

    Returns
    -------
    list of dict
        One for each scan: ``label``, ``scan``, ``dice``, ``dice_mirror`` (of the mask of the image
        and its mirror image together), ``low``, ``high`` and every judgement. Where a mask is
        written, ``dice_written`` is its Dice, ``low_written`` and ``high_written`` its interval.
    """
    label = trained.card["label"][0]["scan"]
    rows, known = [], prototypes_of(trained) if trained.labels else None
    for scan in find_scans(dataset, ALL_MODALITIES, subjects):
        path = Derivatives(dataset.with_name(f"{dataset.name}-truth")).mask(scan)
        if path.is_file() and scan.relative != label:
            rows.append(
                {"label": label, "scan": scan.relative, **_row(trained, known, scan, path)}
            )
    return rows


def calibrate(trained: Model, rows: Sequence[dict[str, Any]]) -> None:
    """Say of each mask which Dice the autoencoder's score alone would have one expect."""
    kept = trained.card["guard"]["kept"]
    copies = [c for c in files.read_tsv(trained.folder / f"{kept}_copies.tsv") if c["of"] == LABEL]
    truth = [float(copy["dice"]) for copy in copies]
    line = line_through([_score_alone(copy) for copy in copies], truth)
    for row in rows:
        row["calibrated"] = line.expect(_score_alone({"score": row["autoencoder"]}))[0]


def _score_alone(seen: Mapping[str, Any]) -> Evidence:
    return Evidence(float(seen["score"]), 0.0, 0.0)  # the same for all: it tells nothing


def swell(trained: Model, logits: float) -> None:
    """Make a model's networks draw too much, all alike, by raising their logits in place."""
    for network in (trained.network, trained.fine):
        if network and network.head.bias is not None:
            with torch.no_grad():
                network.head.bias += logits


def _row(trained: Model, known: Prototypes | None, scan: Scan, path: Path) -> dict[str, Any]:
    image = nifti.load(scan.path)
    conformed = trained.frame.conform(image)
    grid = replace(trained.frame.grid, voxel_size=conformed.voxel_size)
    target = conform(nifti.load_mask(path, image), image.affine, grid, image.fill).data > 0.5
    seen = segment(trained.network, trained.autoencoder, conformed, trained.runtime)
    expected, low, high = trained.calibration.expect(seen.evidence)
    mirror, joint = _in_mirror(trained, conformed)
    share = millilitres(seen.mask, conformed.affine) / trained.frame.brain_ml
    like = {}
    if known:  # a model that keeps its label
        like["features"] = dice(seen.mask, known.view(conformed, trained.runtime).mask)
    return {
        "dice": dice(seen.mask, target),
        "dice_mirror": dice(joint, target),
        "low": low,
        "high": high,
        "mirror": mirror,
        "autoencoder": seen.evidence.score,
        "mild": seen.evidence.mild,
        "strong": seen.evidence.strong,
        "expected": expected,
        "tta": _tta(trained, conformed),
        **like,
        "volume": min(share, 1 / share) if share else 0.0,
        "roundness": _roundness(seen.mask),
        "whole": _whole(seen),
        **_written(trained, image, conformed, path),
    }


def _written(trained: Model, image: Image, conformed: Conformed, path: Path) -> dict[str, float]:
    """Judge the mask that the app writes, on the scan's own grid; nothing if it writes none."""
    try:
        brain = trained.find(image, conformed)
    except SingleStripError:  # refused, or no brain
        return {}
    low, high = brain.interval
    return {
        "written": brain.expected_dice,
        f"dice{WRITTEN}": dice(brain.voxels, nifti.load_mask(path, image)),
        f"low{WRITTEN}": low,
        f"high{WRITTEN}": high,
    }


def _in_mirror(trained: Model, conformed: Conformed) -> tuple[float, Mask]:
    """Dice of the masks of an image and of its mirror image, and the mask of both together."""
    turned = replace(conformed, data=conformed.data[::-1].copy(), inside=conformed.inside[::-1])
    seen = predict(trained.network, conformed, trained.runtime)
    other = predict(trained.network, turned, trained.runtime)[::-1]
    masks = mask_from(seen), mask_from(other)
    agreement = dice(*masks) if all(mask.any() for mask in masks) else 0.0
    return agreement, mask_from(np.float32(0.5) * (seen + other))


@torch.inference_mode()
def _tta(trained: Model, conformed: Conformed) -> float:
    """Turn and scale copies at random, mask them, turn the masks back, compare with the median."""
    machine = trained.runtime
    generator = machine.generator(0)
    image = torch.from_numpy(conformed.data).to(machine.device)[None, None]
    masks = []
    for _ in range(COPIES):
        draw = torch.rand(4, generator=generator, device=machine.device) * 2 - 1
        turn = _rotation(draw[:3].cpu().numpy() * np.radians(ROTATION)).to(machine.device)
        copy = (_turned(image, turn) * (1 + SCALING * draw[3])).clamp(0, 1)
        probability = _turned(trained.network(copy).float().sigmoid(), turn.T)
        masks.append(probability[0, 0].cpu().numpy() * conformed.inside > 0.5)
    median = np.median(masks, axis=0) > 0.5
    return float(np.median([dice(median, mask) for mask in masks])) if median.any() else 0.0


def _rotation(angles: NDArray[np.float64]) -> Tensor:
    return torch.as_tensor(Rotation.from_euler("xyz", angles).as_matrix(), dtype=torch.float32)


def _turned(volume_: Tensor, turn: Tensor) -> Tensor:
    theta = torch.cat([turn, turn.new_zeros(3, 1)], dim=1)[None]
    where = F.affine_grid(theta, list(volume_.shape), align_corners=False)
    return F.grid_sample(volume_, where, align_corners=False)


def _roundness(mask: Mask) -> float:
    """Sphericity (Wadell 1935), the surface counted in voxel faces."""
    padded = np.pad(mask, 1)
    faces = sum(int(np.diff(padded, axis=axis).sum()) for axis in range(3))
    return float(np.pi ** (1 / 3) * (6 * mask.sum()) ** (2 / 3) / faces) if faces else 0.0


def _whole(seen: Segmentation) -> float:
    parts, count = ndimage.label(seen.probability > 0.5)
    return float(np.bincount(parts.ravel())[1:].max() / (parts > 0).sum()) if count else 0.0


def compare(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """Compare one judgement with the true Dice over the masks of one fold.

    Returns
    -------
    dict
        ``pearson``, ``spearman``, mean absolute error ``mae``, ``top_half`` (share of the better
        half among the half that is judged better) and ``auroc`` for a Dice of less than 0.9;
        None where all masks are alike.
    """
    rows = [row for row in rows if name in row]
    key = f"dice{WRITTEN}" if name == "written" else "dice"
    truth, said = (np.array([row[one] for row in rows]) for one in (key, name))
    alike = np.ptp(said) == 0 or np.ptp(truth) == 0
    bad, half = truth < GOOD, len(truth) // 2
    best = set(np.argsort(-truth, kind="stable")[:half])
    chosen = set(np.argsort(-said, kind="stable")[:half])
    return {
        "pearson": None if alike else float(stats.pearsonr(said, truth).statistic),
        "spearman": None if alike else float(stats.spearmanr(said, truth).statistic),
        "mae": float(np.abs(said - truth).mean()),
        "top_half": len(best & chosen) / half if half else None,
        "auroc": float(roc_auc_score(bad, -said)) if 0 < bad.sum() < len(bad) else None,
    }


def table(results: Mapping[str, Any]) -> str:
    """Make a Markdown table: the mean over folds of every comparison."""
    rows = results["rows"]
    folds = [[r for r in rows if r["label"] == label] for label in _labels(rows)]
    names = ("pearson", "spearman", "mae", "top_half", "auroc")
    head = ["judgement", "Pearson", "Spearman", "MAE", "top half", "AUROC of Dice < .9"]
    lines = [line(head), line(["---"] * len(head))]
    for judge_name in (name for name in JUDGES if name in rows[0]):
        each = [compare(fold, judge_name) for fold in folds]
        means = [_mean([one[name] for one in each]) for name in names]
        cells = ["-" if mean is None else f"{mean:.3f}" for mean in means]
        lines.append(line([judge_name, *cells]))
    lines += ["", f"Means over {len(folds)} labels. Masks:", ""]
    lines += [_intervals(rows, *which) for which in (("of the network", ""), ("written", WRITTEN))]
    lines += [
        "",
        *(f"- {name}: {text}" for name, text in JUDGES.items() if name in rows[0]),
        "",
        f"{results['date']}, commit {results['commit']}, {results['hardware']}.",
    ]
    return "\n".join(lines) + "\n"


def _intervals(rows: Sequence[Mapping[str, Any]], what: str, ending: str) -> str:
    """Say how good masks are, and how many lie within their intervals."""
    keys = [f"{key}{ending}" for key in ("dice", "low", "high")]
    found = np.array([[row[key] for key in keys] for row in rows if keys[0] in row])
    if not found.size:
        return f"- {what}: none"
    truth, low, high = found.T
    held = (low <= truth) & (truth <= high)
    return (
        f"- {what}: {len(truth)}, Dice {truth.min():.3f} to {truth.max():.3f}, "
        f"{(truth < GOOD).sum()} of them below {GOOD}; {held.mean():.0%} lie within their "
        f"interval, whose median width is {np.median(high - low):.3f}"
    )


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["label"] for row in rows})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def main(argv: Sequence[str] | None = None) -> int:
    """Judge from the command line."""
    parser = argparse.ArgumentParser(description="Compare judgements of masks with the truth.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--out", type=Path, required=True, help="results, without an ending")
    parser.add_argument("--subjects", nargs="+", default=[], help="of DATASET, only these")
    parser.add_argument("--swell", type=float, default=0.0, help="added to the networks' logits")
    args = parser.parse_args(argv)
    results = {**facts(), "rows": list[dict[str, Any]]()}
    for folder in args.models:
        trained = load_model(folder)
        swell(trained, args.swell)
        rows = judge(trained, args.dataset, args.subjects)
        calibrate(trained, rows)
        results["rows"] += rows
        write(results, table(results), args.out)
        print(f"{folder}: {len(results['rows'])} masks so far", flush=True)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
