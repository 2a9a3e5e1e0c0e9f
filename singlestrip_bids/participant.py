"""The participant level: each scan gets a mask and a score; a bad one stops no other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import derivatives, inference, model, volume
from .calibration import COVERAGE, Evidence, look
from .config import RunConfig
from .errors import ScanFailed, log_failure
from .inputs import Scan, find_scans
from .model import Model
from .runtime import Progress, Runtime, check_stop


def run(config: RunConfig, runtime: Runtime) -> None:
    """Write a brain mask of every selected scan.

    Raises
    ------
    ScanFailed
        Some scans have no mask; the message lists them, and all others are done.
    NoInput
        There is no model.
    """
    folder = config.model or derivatives.model_dir(config.output_dir)
    trained = model.load(folder, runtime)
    scans = find_scans(config.bids_dir, config.modalities, config.participant_label)
    derivatives.write_dataset(config.output_dir, config.bids_dir)
    failed: dict[str, str] = {}
    with Progress("participant", len(scans)) as progress:
        for scan in scans:
            check_stop()
            note = scan.name
            try:
                expected = process(scan, trained, config.output_dir, runtime)
                note += f" expected Dice {expected:.3f}"
            except Exception as error:  # one bad scan never stops the others
                failed[scan.relative] = log_failure(scan.path, error)
            progress.step(note)
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(scans)} scans have no mask:\n"
            + "\n".join(f"  {message}" for message in failed.values())
        )


def process(scan: Scan, trained: Model, output_dir: Path, runtime: Runtime) -> float:
    """Mask one scan, write mask and sidecar, and return its expected Dice.

    Raises
    ------
    BadData
        The scan cannot be read, or is already skull-stripped.
    ScanFailed
        The network found no brain.
    """
    began = time.monotonic()
    image = volume.load(scan.path)
    volume.refuse_stripped(image, trained.brain_ml)
    multiple = trained.network.config.multiple
    conformed = inference.conform_image(image, trained.voxel_size, trained.size, multiple)
    seen = look(trained.network, trained.autoencoder, conformed, trained.quality, runtime)
    mask = volume.clean(volume.restore(seen.probability, conformed.affine, image) > 0.5)
    if not mask.any():
        raise ScanFailed(
            f"{scan.path}: the network found no brain; look at the scan, or label one like it."
        )
    path = derivatives.mask_path(output_dir, scan)
    derivatives.write_mask(path, mask, image.nifti)
    millilitres = volume.millilitres(mask, image.affine)
    fields = _fields(trained, seen.evidence, millilitres, image.volumes)
    fields["ComputeSeconds"] = round(time.monotonic() - began, 2)
    derivatives.write_json(derivatives.sidecar_path(path), derivatives.sidecar(scan, fields))
    return float(fields["ExpectedDice"])


def _fields(
    trained: Model, evidence: Evidence, millilitres: float, volumes: int
) -> dict[str, Any]:
    expected, *interval = trained.calibration.expect(evidence)
    fields: dict[str, Any] = {
        "Description": "Brain mask by a network trained from one labelled scan (SingleStrip).",
        "Manual": False,
        "ExpectedDice": round(expected, 4),
        "ExpectedDiceInterval": [round(end, 4) for end in interval],
        "ExpectedDiceDescription": (
            f"Dice overlap with a reader's mask that the evidence lets expect, and its "
            f"{COVERAGE:.0%} interval, both learnt on corrupted copies of the labelled scan."
        ),
        "QualityScore": round(evidence.score, 4),
        "QualityScoreDescription": (
            "Dice overlap of the mask with its reconstruction by an autoencoder that knows the "
            "label's shape alone; 1 is best. A rank, not an estimate of accuracy."
        ),
        "MirrorAgreement": round(evidence.mirror, 4),
        "MirrorAgreementDescription": (
            "Dice overlap of the masks of the image and of its mirror image."
        ),
        "BrainVolumeMl": round(millilitres, 1),
        "WorkingVoxelSizeMm": trained.voxel_size,
        "Model": trained.card["network"],
        "ModelSHA256": trained.card["sha256"][trained.card["network"]],
    }
    if volumes > 1:
        fields["Averaged"] = f"The mask is of the mean over time of {volumes} volumes."
    return fields
