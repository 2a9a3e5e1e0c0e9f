"""The participant level: each scan gets a mask and a score; a bad one stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import derivatives, group_report, handoff, inference, methods, model, reports, volume
from .calibration import COVERAGE, Evidence, look
from .config import RunConfig
from .errors import ScanFailed, log_failure
from .inputs import Scan, find_scans
from .model import Model
from .runtime import Progress, Runtime, check_stop
from .volume import Array, Image, Mask

LOG = logging.getLogger("singlestrip_bids")


@dataclass(frozen=True)
class Brain:
    """What the model finds in an image.

    Attributes
    ----------
    mask, probability : ndarray
        (X, Y, Z) on the image's own grid.
    evidence : Evidence
        What can be seen of the mask.
    expected : tuple of float
        The Dice to be expected, and the lower and the upper end of its interval.
    """

    mask: Mask
    probability: Array
    evidence: Evidence
    expected: tuple[float, float, float]


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
    handed = handoff.start(config, scans)
    failed: dict[str, str] = {}
    last = {scan.subject: scan for scan in scans}
    with Progress("participant", len(scans)) as progress:
        for scan in scans:
            check_stop()
            note = scan.name
            try:
                expected = process(scan, trained, config, runtime, scan in handed)
                note += f" expected Dice {expected:.3f}"
            except Exception as error:  # one bad scan never stops the others
                failed[scan.relative] = log_failure(scan.path, error)
            progress.step(note)
            if scan is last[scan.subject]:
                reports.subject_page(config.output_dir, scan.subject, trained.card, failed)
    group_report.write(config.output_dir, trained.folder)
    methods.write(config.output_dir, trained.folder)
    _complain(failed, scans)


def remake(config: RunConfig, runtime: Runtime) -> None:
    """Draw the masks on disk again and write the pages; no mask is made.

    Raises
    ------
    ScanFailed
        Some selected scans have no mask that can be read; the pages of the others are there.
    """
    scans = find_scans(config.bids_dir, config.modalities, config.participant_label)
    folder = config.model or derivatives.model_dir(config.output_dir)
    failed = reports.remake(config.output_dir, scans, model.read_card(folder))
    group_report.write(config.output_dir, folder)
    _complain(failed, scans)


def _complain(failed: Mapping[str, str], scans: Sequence[Scan]) -> None:
    """Raise `ScanFailed` if scans failed, and name them."""
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(scans)} scans have no mask:\n"
            + "\n".join(f"  {message}" for message in failed.values())
        )


def process(
    scan: Scan, trained: Model, config: RunConfig, runtime: Runtime, hand_over: bool = False
) -> float:
    """Mask one scan, write all that is wanted of it, and return its expected Dice.

    Raises
    ------
    BadData
        The scan cannot be read, or is already skull-stripped.
    ScanFailed
        The network found no brain.
    """
    began = time.monotonic()
    image = volume.load(scan.path)
    brain = find_brain(image, trained, runtime)
    path = derivatives.mask_path(config.output_dir, scan)
    derivatives.write_mask(path, brain.mask, image.nifti)
    millilitres = volume.millilitres(brain.mask, image.affine)
    fields = _fields(trained, brain, millilitres, image.volumes)
    fields["ComputeSeconds"] = round(time.monotonic() - began, 2)
    derivatives.write_json(derivatives.sidecar_path(path), derivatives.sidecar(scan, fields))
    reports.draw(config.output_dir, scan, image, brain.mask)
    _write_more(scan, image, brain, config)
    if hand_over and config.fmriprep_masks:
        handoff.write(config.fmriprep_masks, scan, brain.mask, image, fields)
    return brain.expected[0]


def find_brain(image: Image, trained: Model, runtime: Runtime) -> Brain:
    """Find the brain in one image.

    Raises
    ------
    BadData
        The image is already skull-stripped.
    ScanFailed
        The network found no brain.
    """
    volume.refuse_stripped(image, trained.brain_ml)
    multiple = trained.network.config.multiple
    conformed = inference.conform_image(image, trained.voxel_size, trained.size, multiple)
    seen = look(trained.network, trained.autoencoder, conformed, trained.quality, runtime)
    probability = volume.restore(seen.probability, conformed.affine, image)
    mask = volume.clean(probability > 0.5)
    if not mask.any():
        raise ScanFailed(
            f"{image.path}: the network found no brain; look at the scan, or label one like it."
        )
    return Brain(mask, probability, seen.evidence, trained.calibration.expect(seen.evidence))


def _write_more(scan: Scan, image: Image, brain: Brain, config: RunConfig) -> None:
    """Write what was asked for beside the mask."""
    output_dir, source = config.output_dir, derivatives.provenance(scan)
    if "brain" in config.output and scan.datatype == "anat":  # elsewhere BIDS has no name for it
        path = derivatives.brain_path(output_dir, scan)
        derivatives.write_brain(path, volume.extract(image, brain.mask), image.nifti)
        about = "The scan, zero outside its brain mask. Intensities are not corrected."
        fields = {**source, "Description": about, "SkullStripped": True}
        derivatives.write_json(derivatives.sidecar_path(path), fields)
    if "probseg" in config.output:
        path = derivatives.probability_path(output_dir, scan)
        derivatives.write_probability(path, brain.probability, image.nifti)
        about = "Output of the network, 0 to 1, in steps of 1/255. Not calibrated."
        derivatives.write_json(derivatives.sidecar_path(path), {**source, "Description": about})
    if config.border_mm is not None:
        path = derivatives.mask_path(output_dir, scan, config.border_mm)
        mask = volume.move_border(brain.mask, image.affine, config.border_mm)
        if not mask.any():
            LOG.warning("%s: nothing is left of the brain at this --border-mm.", scan.path)
        derivatives.write_mask(path, mask, image.nifti)
        verb = "grown" if config.border_mm > 0 else "shrunk"
        about = f"The brain mask, {verb} by {abs(config.border_mm):g} mm within its grid."
        fields = derivatives.sidecar(scan, {"Description": about, "BorderMm": config.border_mm})
        derivatives.write_json(derivatives.sidecar_path(path), fields)


def _fields(trained: Model, brain: Brain, millilitres: float, volumes: int) -> dict[str, Any]:
    expected, *interval = brain.expected
    fields: dict[str, Any] = {
        "Description": "Brain mask by a network trained from one labelled scan (SingleStrip).",
        "Manual": False,
        "ExpectedDice": round(expected, 4),
        "ExpectedDiceInterval": [round(end, 4) for end in interval],
        "ExpectedDiceDescription": (
            f"Dice overlap with a reader's mask that the evidence lets expect, and its "
            f"{COVERAGE:.0%} interval, both learnt on corrupted copies of the labelled scan."
        ),
        "QualityScore": round(brain.evidence.score, 4),
        "QualityScoreDescription": (
            "Dice overlap of the mask with its reconstruction by an autoencoder that knows the "
            "label's shape alone; 1 is best. A rank, not an estimate of accuracy."
        ),
        "MirrorAgreement": round(brain.evidence.mirror, 4),
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
