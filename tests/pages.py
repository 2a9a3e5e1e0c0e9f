"""An output folder with a model's tables, masks' sidecars and pictures, without any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from singlestrip_bids import derivatives, figures, group_report, reports
from singlestrip_bids.config import PRESETS

CARD = {
    "format": 1,
    "network": "round-1.safetensors",
    "self_trained": True,
    "guard": {
        "kept": "round-1",
        "reason": "round-1 (0.835) is not worse than sl1 (0.815).",
        "standings": {
            "sl1": {"copies": 0.81, "pool": 0.82},
            "round-1": {"copies": 0.83, "pool": 0.84},
        },
    },
    "calibration": {"score": 0.5, "mirror": 0.4, "constant": -0.1, "better": -0.5, "worse": 0.4},
    "label": [{"scan": "sub-01/anat/sub-01_T1w.nii.gz", "mask": "m.nii.gz"}],
    "unlabelled": [],
    "voxel_size_mm": 3.73,
    "brain_ml": 1500.0,
    "method": PRESETS["quick"].to_dict(),
    "versions": {"singlestrip-bids": "9.8.7", "python": "3.11.7", "threads": 2, "gpu": None},
    "sha256": {"round-1.safetensors": "abc"},
}


def pictures() -> figures.Mosaic:
    """Draw a ball in a block."""
    grid = np.stack(np.meshgrid(*[np.arange(48.0)] * 3, indexing="ij"))
    distance = np.linalg.norm(grid - 23.5, axis=0)
    return figures.mosaic((40 - distance).astype(np.float32), distance < 14, np.full(3, 4.0))


def make(out: Path, count: int, drawn: bool = True) -> list[str]:
    """Fill a folder with the masks of so many subjects and write all its pages.

    The n-th subject, from 0, expects a Dice of .99 - n / 2000 or so, so that the last is worst.
    """
    folder, shown = derivatives.model_dir(out), pictures()
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
            "MirrorAgreement": 0.97,
            "BrainVolumeMl": 1000.0 + 7 * n % 500,
            "ModelSHA256": "abc",
        }
        derivatives.write_json(derivatives.sidecar_path(mask), fields)
        for desc, extension, content in (
            ("scan", ".jpg", shown.scan),
            ("outline", ".svg", shown.outline.encode()),
            ("outside", ".svg", shown.outside.encode()),
            ("thumbnail", ".jpg", shown.thumbnail),
        ):
            if drawn or desc == "thumbnail":
                path = derivatives.figure_path(out, scan, desc, extension)
                derivatives.write_bytes(path, content)
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
    card = {**CARD, "unlabelled": scans}
    derivatives.write_json(folder / "model.json", card)
    derivatives.write_tsv(folder / "scores.tsv", rows)
    for name in ("sl1", "round-1", "autoencoder"):
        losses = [{"step": s + 1, "loss": 1 / (s + 1)} for s in range(100)]
        derivatives.write_tsv(folder / f"{name}_training.tsv", losses)
    for n in range(count if drawn else 0):
        reports.subject_page(out, f"{n:04}", card)
    group_report.write(out, folder)
    return scans
