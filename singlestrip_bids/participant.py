"""The participant level: each scan gets a mask and a score; a bad one stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from .bids import fmriprep, outputs
from .bids.derivatives import Derivatives
from .bids.outputs import Masked, Request
from .bids.scans import Scan, selected
from .config import RunConfig
from .errors import ScanFailed, SingleStripError
from .image import nifti
from .image.grid import Conformed
from .image.nifti import Image
from .machine.progress import Progress, flow
from .machine.runlog import report_crash
from .machine.runtime import Runtime, check_stop
from .method import model
from .method.model import Model
from .report import editor, methods
from .report import group as group_page
from .report import subject as page

LOG = logging.getLogger("singlestrip_bids")


def run(config: RunConfig, runtime: Runtime) -> None:
    """Write a brain mask of every selected scan.

    Raises
    ------
    ScanFailed
        Some scans have no mask; the message lists them, and all others are done.
    NoInput
        There is no model.
    """
    out = Derivatives(config.output_dir)
    trained = model.load(config.model or out.model_dir, runtime, config.propagation)
    scans = selected(config)
    out.start(config.bids_dir)
    structures = tuple(one for one, _ in trained.structures)
    request = Request(config, fmriprep.start(config, scans), structures)
    failed, subjects = mask_all(scans, trained, request)
    group_page.write(out, trained.folder)
    methods.write(out, trained.folder)
    page.write_all(out, subjects, trained.card, failed)
    page.write_volumes(out)
    if config.qc_threshold:
        _name_doubtful(out, scans, config.qc_threshold)
    _complain(failed, scans)


def mask_all(
    scans: Sequence[Scan], trained: Model, request: Request
) -> tuple[dict[str, str], list[str]]:
    """Mask scans: while one is computed, the next is read and the last one written.

    Return what went wrong, by the path of the scan in its dataset, and the subjects looked at.
    """
    config, steps = request.config, _Steps(trained, request)
    failed, skipped = dict[str, str](), 0
    last = {scan.subject: scan for scan in scans}
    with (
        Progress("participant", len(scans)) as progress,
        closing(
            flow(scans, steps.read, steps.compute, steps.write, overlap=config.overlap)
        ) as done,
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
                page.write(request.out, scan.subject, trained.card, failed)
            if failed and config.stop_on_first_crash:
                LOG.error("Stopped: %d of %d scans were looked at.", progress.done, len(scans))
                break
            check_stop()
    if skipped:
        LOG.info("%d scans were finished before; --overwrite makes them anew.", skipped)
    return failed, [scan.subject for scan in scans[: progress.done]]


@dataclass(frozen=True)
class _Read:
    """A scan that was read, on its own grid and on the model's."""

    image: Image
    conformed: Conformed
    stamp: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class _Steps:
    """The three steps of a scan; None stands for a scan that was finished before."""

    trained: Model
    request: Request

    def read(self, scan: Scan) -> _Read | None:
        stamp = self.trained.stamp
        if not self.request.config.overwrite and outputs.finished(scan, self.request, stamp):
            return None
        began, image = time.monotonic(), nifti.load(scan.path)
        conformed, made_of = self.trained.frame.conform(image), stamp(scan.path)
        return _Read(image, conformed, made_of, time.monotonic() - began)

    def compute(self, scan: Scan, read: _Read | None) -> Masked | None:
        if read is None:
            return None
        began = time.monotonic()
        brain = self.trained.find(read.image, read.conformed)
        seconds = read.seconds + time.monotonic() - began
        network, draft = self.trained.card["network"], self.trained.draft
        return Masked(scan, brain, read.stamp, network, seconds, draft)

    def write(self, scan: Scan, done: Masked | None) -> float | None:
        if done is None:
            return None
        outputs.write(done, self.request)
        brain = done.brain
        page.draw(
            self.request.out, scan, brain.image, brain.voxels, brain.reconstruction, brain.parts
        )
        doubtful = brain.expected_dice < page.LOW_DICE
        editor.offer(self.request.out, scan, brain, self.request.config.bids_dir, doubtful)
        for old in outputs.outdated(done, self.request):
            LOG.warning(
                "%s: of an earlier model or scan than the mask; ask for it again, or remove it.",
                old,
            )
        return brain.expected_dice


def remake(config: RunConfig, runtime: Runtime) -> None:
    """Draw the masks on disk again, and write the pages and the methods text; no mask is made.

    Raises
    ------
    ScanFailed
        Some selected scans have no mask that can be read; the pages of the others are there.
    """
    out, scans = Derivatives(config.output_dir), selected(config)
    folder = config.model or out.model_dir
    trained: Model | None = None
    card: dict[str, Any] | None = None
    try:
        card = model.read_card(folder)
        trained = model.load(folder, runtime)
    except SingleStripError as error:
        LOG.warning("No reconstruction is drawn: %s", error)
    failed = page.remake(out, scans, card, trained)
    page.write_volumes(out)
    group_page.write(out, folder)
    methods.write(out, folder)
    _complain(failed, scans)


def _name_doubtful(out: Derivatives, scans: Sequence[Scan], threshold: float) -> None:
    """Warn of the masks, made now or before, whose expected Dice is below a threshold."""
    selection = {scan.relative for scan in scans}
    rows = [row for row in page.read_rows(out) if row.scan in selection]
    dice = {row.scan: row.fields.get("ExpectedDice", 1.0) for row in rows}
    if low := sorted(scan for scan in dice if dice[scan] < threshold):
        LOG.warning(
            "%d of %d masks have an expected Dice below --qc-threshold %g; look at them:\n%s",
            len(low), len(dice), threshold, "\n".join(f"  {dice[s]:.3f} {s}" for s in low),
        )  # fmt: skip


def _complain(failed: Mapping[str, str], scans: Sequence[Scan]) -> None:
    """Raise `ScanFailed` if scans failed, and name them."""
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(scans)} scans have no mask:\n"
            + "\n".join(f"  {message}" for message in failed.values())
        )
