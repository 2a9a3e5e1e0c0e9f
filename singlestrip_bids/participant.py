"""The participant level: each scan gets a mask and a score; a bad one stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import border, derivatives, group_report, handoff, methods, model, reports, volume
from .calibration import COVERAGE, Look, look
from .config import RunConfig
from .errors import ScanFailed, SingleStripError
from .finished import finished, outdated, stamp, write_with_sidecar
from .inputs import Scan, selected
from .masks import Mask
from .model import Model
from .pipeline import flow
from .progress import Progress
from .records import report_crash
from .runtime import Runtime, check_stop
from .volume import Conformed, Image

LOG = logging.getLogger("singlestrip_bids")

DISTANCE = (
    "Signed distance to the border of the brain mask. Outside, to the centre of the nearest voxel "
    "of the mask; inside, minus that to the nearest voxel outside."
)
BASE_GB = 0.9  # of memory, whatever the scan: the interpreter, PyTorch, the network at work


@dataclass(frozen=True)
class Brain:
    """What the model finds in an image.

    Attributes
    ----------
    mask : ndarray of bool
        (X, Y, Z) on the image's own grid.
    seen : Look
        What the network makes of it, on the model's grid.
    grid : Conformed
        The image on that grid.
    expected : tuple of float
        The Dice to be expected, and the lower and the upper end of its interval.
    """

    mask: Mask
    seen: Look
    grid: Conformed
    expected: tuple[float, float, float]


@dataclass(frozen=True)
class _Work:
    """A scan on its way: read, and after the network with its brain."""

    seconds: float
    image: Image
    conformed: Conformed
    checksums: Mapping[str, str]
    brain: Brain | None = None


def run(config: RunConfig, runtime: Runtime) -> None:
    """Write a brain mask of every selected scan.

    Of several processes each masks all scans of its share of the subjects; the first one then
    writes the pages and tells what failed.

    Raises
    ------
    ScanFailed
        Some scans have no mask; the message lists them, and all others are done.
    NoInput
        There is no model.
    """
    runtime.gather(None)  # the first process may be writing the model
    folder = config.model or derivatives.model_dir(config.output_dir)
    trained = model.load(folder, runtime)
    scans = selected(config)
    derivatives.write_dataset(config.output_dir, config.bids_dir)
    handed = handoff.start(config, scans)
    with runtime.share(list(dict.fromkeys(scan.subject for scan in scans))) as subjects:
        theirs = frozenset(subjects)
        own = [scan for scan in scans if scan.subject in theirs]
        failed, skipped, looked_at = _mask(own, trained, config, runtime, handed)
    parts = runtime.gather([failed, skipped, [scan.subject for scan in own[:looked_at]]])
    if not runtime.main:
        return
    notes = {scan: note for part, _, _ in parts for scan, note in part.items()}
    failed = {scan.relative: notes[scan.relative] for scan in scans if scan.relative in notes}
    if skipped := sum(part for _, part, _ in parts):
        LOG.info("%d scans were finished before; --overwrite makes them anew.", skipped)
    group_report.write(config.output_dir, trained.folder)
    methods.write(config.output_dir, trained.folder)
    seen = [subject for _, _, part in parts for subject in part]
    reports.subject_pages(config.output_dir, seen, trained.card, failed)
    if config.qc_threshold:
        _name_doubtful(config.output_dir, scans, config.qc_threshold)
    _complain(failed, scans)


def _mask(
    scans: Sequence[Scan],
    trained: Model,
    config: RunConfig,
    runtime: Runtime,
    handed: Collection[Scan],
) -> tuple[dict[str, str], int, int]:
    """Mask scans; return what went wrong, and how many were finished before and looked at."""
    failed: dict[str, str] = {}
    skipped = 0
    last = {scan.subject: scan for scan in scans}
    stages = _stages(trained, config, runtime, handed)
    with (
        Progress("participant", len(scans)) as progress,
        closing(flow(scans, *stages, overlap=config.overlap)) as done,
    ):
        for scan, outcome in done:
            note = scan.name
            if isinstance(outcome, Exception):
                failed[scan.relative] = report_crash(config.log_dir, scan.path, outcome)
            elif outcome is None:
                skipped += 1
            else:
                note += f" expected Dice {outcome:.3f}"
            progress.step(note)
            if scan is last[scan.subject]:
                reports.subject_page(config.output_dir, scan.subject, trained.card, failed)
            if failed and config.stop_on_first_crash:
                LOG.error("Stopped: %d of %d scans were looked at.", progress.done, len(scans))
                break
            check_stop()
    return failed, skipped, progress.done


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
        rebuild = partial(reports.rebuild, model.load(folder, runtime), runtime)
    except SingleStripError as error:
        LOG.warning("No reconstruction is drawn: %s", error)
        rebuild = None
    failed = reports.remake(config.output_dir, scans, model.read_card(folder), rebuild)
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


def _stages(
    trained: Model, config: RunConfig, runtime: Runtime, handed: Collection[Scan]
) -> tuple[
    Callable[[Scan], _Work | None],
    Callable[[Scan, _Work | None], _Work | None],
    Callable[[Scan, _Work | None], float | None],
]:
    """Make the three stages of a scan; None stands for a scan that was finished before."""

    def read(scan: Scan) -> _Work | None:
        wanted = images(scan, config, scan in handed)
        if not config.overwrite and finished(wanted, scan, trained):
            return None
        _check_memory(scan, config.mem)
        began = time.monotonic()
        image = volume.load(scan.path)
        conformed, checksums = trained.frame.conform(image), stamp(scan, trained)
        return _Work(time.monotonic() - began, image, conformed, checksums)

    def compute(scan: Scan, work: _Work | None) -> _Work | None:
        if work is None:
            return None
        began = time.monotonic()
        brain = _find(work.image, work.conformed, trained, runtime)
        return replace(work, brain=brain, seconds=work.seconds + time.monotonic() - began)

    def write(scan: Scan, work: _Work | None) -> float | None:
        return _write(scan, work, trained, config, scan in handed) if work else None

    return read, compute, write


def _write(scan: Scan, work: _Work, trained: Model, config: RunConfig, hand_over: bool) -> float:
    """Write all that is wanted of a scan, and return its expected Dice."""
    image, brain = work.image, work.brain
    assert brain is not None
    path = derivatives.mask_path(config.output_dir, scan)
    fields = {**_fields(trained, brain, image), **work.checksums}
    fields["ComputeSeconds"] = round(work.seconds, 2)
    write_with_sidecar(
        path,
        lambda: derivatives.write_mask(path, brain.mask, image.nifti),
        derivatives.sidecar(scan, fields),
    )
    rebuilt = partial(
        volume.restore_mask, brain.seen.rebuilt, brain.grid.affine, image, cleaned=False
    )
    reports.draw(config.output_dir, scan, image, brain.mask, rebuilt)
    _write_more(scan, image, brain, config, work.checksums)
    if hand_over and config.fmriprep_masks:
        handoff.write(config.fmriprep_masks, scan, brain.mask, image, fields)
    for old in outdated(config.output_dir, scan, work.checksums):
        LOG.warning("%s: of an earlier model than the mask; ask for it again, or remove it.", old)
    return brain.expected[0]


def _check_memory(scan: Scan, allowed: float | None) -> None:
    """Raise `ScanFailed` where a scan alone would need more than ``--mem``."""
    if allowed is None:
        return
    needed = volume.memory_needed(scan.path) / 1e9
    if needed > allowed - BASE_GB:
        raise ScanFailed(
            f"{scan.path}: to mask it takes about {BASE_GB + needed:.1f} GB of memory, and --mem "
            f"allows {allowed:g}; raise it."
        )


def find_brain(image: Image, trained: Model, runtime: Runtime) -> Brain:
    """Find the brain in one image.

    Raises
    ------
    BadData
        The image is already skull-stripped.
    ScanFailed
        The network found no brain.
    """
    return _find(image, trained.frame.conform(image), trained, runtime)


def _find(image: Image, conformed: Conformed, trained: Model, runtime: Runtime) -> Brain:
    seen = look(trained.network, trained.autoencoder, conformed, trained.quality, runtime)
    mask = volume.restore_mask(seen.probability, conformed.affine, image)
    if not mask.any():
        raise ScanFailed(
            f"{image.path}: the network found no brain; look at the scan, or label one like it."
        )
    return Brain(mask, seen, conformed, trained.calibration.expect(seen.evidence))


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
        probability = volume.restore(brain.seen.probability, brain.grid.affine, image)
        write_with_sidecar(
            soft,
            lambda: derivatives.write_probability(soft, probability, image.nifti),
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
            "scan and, where there are any, from unlabelled scans and corrupted copies of them "
            "under the label that registration carried over."
        ),
        "QualityScore": round(brain.seen.evidence.score, 4),
        "QualityScoreDescription": (
            "Dice overlap of the mask with its reconstruction by an autoencoder that knows the "
            "label's shape alone; 1 is best. A rank, not an estimate of accuracy."
        ),
        "MildContrastAgreement": round(brain.seen.evidence.mild, 4),
        "MildContrastAgreementDescription": (
            "Mean Dice overlap of the mask with those of copies of the image in mildly different "
            "contrasts, every second one mirrored."
        ),
        "StrongContrastAgreement": round(brain.seen.evidence.strong, 4),
        "StrongContrastAgreementDescription": (
            "Mean Dice overlap of the mask with those of copies of the image in strongly "
            "different contrasts, every second one mirrored."
        ),
        "BrainVolumeMl": float(f"{volume.millilitres(brain.mask, image.affine):.5g}"),
        "WorkingVoxelSizeMm": round(brain.grid.voxel_size, 3),
        "Model": trained.card["network"],
    }
    if brain.seen.way:
        fields["OutOfMemory"] = f"The GPU's memory was full; computed {brain.seen.way}."
    if image.averaged < image.volumes:
        fields["Averaged"] = (
            f"The mask is of the mean of the {image.averaged} volumes without diffusion "
            f"weighting, of {image.volumes}."
        )
    elif image.volumes > 1:
        fields["Averaged"] = f"The mask is of the mean over time of {image.volumes} volumes."
    return fields
