"""An output folder with a model's tables, masks' sidecars and pictures, without any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from singlestrip_bids.bids.derivatives import Derivatives, sidecar_path
from singlestrip_bids.config import PRESETS
from singlestrip_bids.machine import files
from singlestrip_bids.report import figures
from singlestrip_bids.report import group as group_report
from singlestrip_bids.report import subject as subject_report

CARD = {
    "format": 2,
    "network": "round-1.safetensors",
    "self_trained": True,
    "guard": {
        "kept": "round-1",
        "reason": "round-1 is not worse than sl1, on copies of the label and on unlabelled scans.",
        "standings": {
            "sl1": {"copies": 0.81, "pool": 0.82},
            "round-1": {"copies": 0.83, "pool": 0.84},
        },
        "sample": 8,
        "failed": [],
    },
    "calibration": {
        "score": 0.5,
        "agreement": 0.4,
        "constant": -0.1,
        "better": -0.5,
        "worse": 0.4,
    },
    "label": [{"scan": "sub-01/anat/sub-01_T1w.nii.gz", "mask": "m.nii.gz"}],
    "unlabelled": [],
    "voxel_size_mm": 3.73,
    "brain_ml": 1500.0,
    "method": PRESETS["quick"].to_dict(),
    "versions": {"singlestrip-bids": "9.8.7", "python": "3.11.7", "threads": 2, "gpu": None},
    "sha256": {"round-1.safetensors": "abc"},
}


GRID = np.stack(np.meshgrid(*[np.arange(48.0)] * 3, indexing="ij"))
DISTANCE = np.linalg.norm(GRID - 23.5, axis=0)
BALL = (40 - DISTANCE).astype(np.float32)


def pictures() -> figures.Mosaic:
    """Draw a ball in a block, and a smaller one over it."""
    return figures.mosaic(BALL, DISTANCE < 14, np.full(3, 4.0), DISTANCE < 12)


def sheet() -> bytes:
    """Draw two balls in a block."""
    return figures.sheet(BALL / BALL.max(), [DISTANCE < 14, DISTANCE < 12], 4.0)


def make(out: Path, count: int, drawn: bool = True) -> list[str]:
    """Fill a folder with the masks of so many subjects and write all its pages.

    The n-th subject, from 0, expects a Dice of .99 - n / 2000 or so, so that the last is worst.
    """
    house, shown, both = Derivatives(out), pictures(), sheet()
    folder = house.model_dir
    scans = [f"sub-{n:04}/anat/sub-{n:04}_T1w.nii.gz" for n in range(count)]
    rows = []
    for n, scan in enumerate(scans):
        expected = round(0.99 - 0.49 * n / count, 4)
        mask = out / scan.replace("_T1w", "_desc-brain_mask")
        fields = {
            "SpatialReference": f"bids:raw:{scan}",
            "ExpectedDice": expected,
            "ExpectedDiceInterval": [expected - 0.05, expected + 0.005],
            "QualityScore": expected,
            "MildContrastAgreement": 0.97,
            "StrongContrastAgreement": 0.91,
            "BrainVolumeMl": 1000.0 + 7 * n % 500,
            "ModelSHA256": "abc",
        }
        files.write_json(sidecar_path(mask), fields)
        for desc, extension in subject_report.PICTURES.items():
            content = getattr(shown, desc)
            if content is not None and (drawn or desc == "thumbnail"):
                path = house.figure(scan, desc, extension)
                files.write_bytes(path, content if extension == ".jpg" else content.encode())
        for desc in ("pseudo1", "networks") if drawn else ():
            files.write_bytes(house.figure(scan, desc, ".jpg"), both)
        rows.append(
            {
                "round": 1,
                "scan": scan,
                "score": expected,
                "agreement": None if n == 1 else 0.9 + 0.05 * np.sin(n),
                "volume_ml": fields["BrainVolumeMl"],
                "kept": n < count // 2,
                "note": "could <not> be read" if n == 2 else "",
            }
        )
    apart = [{"scan": scan, "dice": 0.8} for scan in scans[:3]]
    card = {**CARD, "unlabelled": scans, "guard": {**CARD["guard"], "apart": apart}}
    files.write_json(folder / "model.json", card)
    files.write_tsv(folder / "scores.tsv", rows)
    for name in ("sl1", "round-1", "autoencoder"):
        losses = [{"step": s + 1, "loss": 1 / (s + 1)} for s in range(100)]
        files.write_tsv(folder / f"{name}_training.tsv", losses)
    rng = np.random.default_rng(0)
    for gain, name in enumerate(CARD["guard"]["standings"]):
        dices = rng.uniform(0.6, 0.9, 30) + 0.05 * gain
        copies = [
            {"copy": n + 1, "of": of, "score": d, "mild": d + 0.02, "strong": d - 0.1, "dice": d}
            for of in ("label", scans[0])
            for n, d in enumerate(dices)
        ]
        sample = [
            {"scan": s, "score": d, "mild": d, "strong": d, "opinion": d - 0.02, "expected": d}
            for s, d in zip(scans, dices, strict=False)
        ]
        files.write_tsv(folder / f"{name}_copies.tsv", copies)
        files.write_tsv(folder / f"{name}_sample.tsv", sample)
    if drawn:
        subject_report.write_all(house, [f"{n:04}" for n in range(count)], card)
    group_report.write(house, folder)
    return scans
