"""The participant level: each scan gets a mask and a score; a bad one stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import border, derivatives, group_report, handoff, methods, model, reports, volume
from .calibration import COVERAGE, Evidence, look
from .config import RunConfig
from .errors import ScanFailed, SingleStripError
from .finished import finished, stamp, write_with_sidecar
from .inputs import Scan, selected
from .model import Model
from .records import report_crash
from .runtime import Progress, Runtime, check_stop
from .volume import Array, Image, Mask

LOG = logging.getLogger("singlestrip_bids")

DISTANCE = (
    "Signed distance to the border of the brain mask. Outside, to the centre of the nearest voxel "
    "of the mask; inside, minus that to the nearest voxel outside."
)


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
    voxel_size : float
        Of the grid on which it was found, in mm.
    """

    mask: Mask
    probability: Array
    evidence: Evidence
    expected: tuple[float, float, float]
    voxel_size: float


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
    scans = selected(config)
    derivatives.write_dataset(config.output_dir, config.bids_dir)
    handed = handoff.start(config, scans)
    failed: dict[str, str] = {}
    skipped = 0
    last = {scan.subject: scan for scan in scans}
    with Progress("participant", len(scans)) as progress:
        for scan in scans:
            check_stop()
            note = scan.name
            try:
                wanted = images(scan, config, scan in handed)
                if not config.overwrite and finished(wanted, scan, trained):
                    skipped += 1
                else:
                    expected = process(scan, trained, config, runtime, scan in handed)
                    note += f" expected Dice {expected:.3f}"
            except Exception as error:  # one bad scan never stops the others
                failed[scan.relative] = report_crash(config.log_dir, scan.path, error)
            progress.step(note)
            if scan is last[scan.subject]:
                reports.subject_page(config.output_dir, scan.subject, trained.card, failed)
            if failed and config.stop_on_first_crash:
                LOG.error("Stopped: %d of %d scans were looked at.", progress.done, len(scans))
                break
    if skipped:
        LOG.info("%d scans were finished before; --overwrite makes them anew.", skipped)
    group_report.write(config.output_dir, trained.folder)
    methods.write(config.output_dir, trained.folder)
    done = [scan.subject for scan in scans[: progress.done]]
    reports.subject_pages(config.output_dir, done, trained.card, failed)
    if config.qc_threshold:
        _name_doubtful(config.output_dir, scans, config.qc_threshold)
    _complain(failed, scans)


def _name_doubtful(output_dir: Path, scans: Sequence[Scan], threshold: float) -> None:
    """Warn of the masks, made now or before, whose expected Dice is below a threshold."""
    selection = {scan.relative for scan in scans}
    rows = [row for row in reports.read_rows(output_dir) if row.scan in selection]
    dice = {row.scan: row.fields.get("ExpectedDice", 1.0) for row in rows}
    if low := sorted(scan for scan in dice if dice[scan] < threshold):
        LOG.warning(
            "%d of %d masks have an expected Dice below --qc-threshold %g; look at them:\n%s",
            len(low), len(dice), threshold, "\n".join(f"  {dice[s]:.3f} {s}" for s in low),
        )  # fmt: skip


def remake(config: RunConfig, runtime: Runtime) -> None:
    """Draw the masks on disk again and write the pages; no mask is made.

    Raises
    ------
    ScanFailed
        Some selected scans have no mask that can be read; the pages of the others are there.
    """
    scans = selected(config)
    folder = config.model or derivatives.model_dir(config.output_dir)
    try:
        shapes = reports.Shapes(model.load(folder, runtime), runtime)
    except SingleStripError as error:
        LOG.warning("No reconstruction is drawn: %s", error)
        shapes = None
    failed = reports.remake(config.output_dir, scans, model.read_card(folder), shapes)
    group_report.write(config.output_dir, folder)
    _complain(failed, scans)


def _complain(failed: Mapping[str, str], scans: Sequence[Scan]) -> None:
    """Raise `ScanFailed` if scans failed, and name them."""
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(scans)} scans have no mask:\n"
            + "\n".join(f"  {message}" for message in failed.values())
        )


def images(scan: Scan, config: RunConfig, hand_over: bool) -> list[Path]:
    """List all images that are wanted of a scan."""
    output_dir = config.output_dir
    paths = [derivatives.mask_path(output_dir, scan)]
    if _wants_brain(scan, config):
        paths.append(derivatives.brain_path(output_dir, scan))
    if "probseg" in config.output:
        paths.append(derivatives.probability_path(output_dir, scan))
    if "distance" in config.output:
        paths.append(derivatives.distance_path(output_dir, scan))
    if config.border_mm is not None:
        paths.append(derivatives.mask_path(output_dir, scan, config.border_mm))
    if hand_over and config.fmriprep_masks:
        paths.append(derivatives.mask_path(config.fmriprep_masks, scan))
    return paths


def _wants_brain(scan: Scan, config: RunConfig) -> bool:
    return "brain" in config.output and scan.datatype == "anat"  # elsewhere BIDS has no name


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
    checksums = stamp(scan, trained)
    fields = {**_fields(trained, brain, image), **checksums}
    fields["ComputeSeconds"] = round(time.monotonic() - began, 2)
    write_with_sidecar(
        path,
        lambda: derivatives.write_mask(path, brain.mask, image.nifti),
        derivatives.sidecar(scan, fields),
    )
    shapes = reports.Shapes(trained, runtime)
    reports.draw(config.output_dir, scan, image, brain.mask, shapes, brain.voxel_size)
    _write_more(scan, image, brain, config, checksums)
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
    conformed = trained.frame.conform(image)
    seen = look(trained.network, trained.autoencoder, conformed, trained.quality, runtime)
    probability = volume.restore(seen.probability, conformed.affine, image)
    mask = volume.clean(probability > 0.5)
    if not mask.any():
        raise ScanFailed(
            f"{image.path}: the network found no brain; look at the scan, or label one like it."
        )
    expected = trained.calibration.expect(seen.evidence)
    return Brain(mask, probability, seen.evidence, expected, conformed.voxel_size)


def _write_more(
    scan: Scan, image: Image, brain: Brain, config: RunConfig, checksums: Mapping[str, str]
) -> None:
    """Write what was asked for beside the mask."""
    output_dir, source = config.output_dir, {**derivatives.provenance(scan), **checksums}
    if _wants_brain(scan, config):
        whole = derivatives.brain_path(output_dir, scan)
        about = "The scan, zero outside its brain mask. Intensities are not corrected."
        write_with_sidecar(
            whole,
            lambda: derivatives.write_brain(whole, volume.extract(image, brain.mask), image.nifti),
            {**source, "Description": about, "SkullStripped": True},
        )
    if "probseg" in config.output:
        soft = derivatives.probability_path(output_dir, scan)
        about = "Output of the network, 0 to 1, in steps of 1/255. Not calibrated."
        write_with_sidecar(
            soft,
            lambda: derivatives.write_probability(soft, brain.probability, image.nifti),
            {**source, "Description": about},
        )
    if "distance" in config.output:
        far = derivatives.distance_path(output_dir, scan)
        distance = border.signed_distance(brain.mask, image.sizes)
        write_with_sidecar(
            far,
            lambda: derivatives.write_distance(far, distance, image.nifti),
            {**source, "Description": DISTANCE, "Units": "mm"},
        )
    if config.border_mm is not None:
        path = derivatives.mask_path(output_dir, scan, config.border_mm)
        mask = border.move(brain.mask, image.sizes, config.border_mm)
        if not mask.any():
            LOG.warning("%s: nothing is left of the brain at this --border-mm.", scan.path)
        verb = "grown" if config.border_mm > 0 else "shrunk"
        about = f"The brain mask, {verb} by {abs(config.border_mm):g} mm within its grid."
        fields = {"Description": about, "BorderMm": config.border_mm, **checksums}
        write_with_sidecar(
            path,
            lambda: derivatives.write_mask(path, mask, image.nifti),
            derivatives.sidecar(scan, fields),
        )


def _fields(trained: Model, brain: Brain, image: Image) -> dict[str, Any]:
    expected, *interval = brain.expected
    fields: dict[str, Any] = {
        "Description": "Brain mask by a network trained from one labelled scan (SingleStrip).",
        "Manual": False,
        "ExpectedDice": round(expected, 4),
        "ExpectedDiceInterval": [round(end, 4) for end in interval],
        "ExpectedDiceDescription": (
            f"Dice overlap with a reader's mask that can be expected, and its {COVERAGE:.0%} "
            "interval: estimated without a second label, from corrupted copies of the labelled "
            "scan and, where it was registered, from its mask on unlabelled scans."
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
        "BrainVolumeMl": round(volume.millilitres(brain.mask, image.affine), 1),
        "WorkingVoxelSizeMm": round(brain.voxel_size, 3),
        "Model": trained.card["network"],
    }
    if image.averaged < image.volumes:
        fields["Averaged"] = (
            f"The mask is of the mean of the {image.averaged} volumes without diffusion "
            f"weighting, of {image.volumes}."
        )
    elif image.volumes > 1:
        fields["Averaged"] = f"The mask is of the mean over time of {image.volumes} volumes."
    return fields
