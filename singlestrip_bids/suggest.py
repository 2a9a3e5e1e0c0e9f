"""Which scan is worth labelling? The one that explains all others fairly well.

A label pays where its head is like the others: registration propagates it with fewer errors, and
what the network learns from it holds for them. So some scans are aligned with each other, and the
one is proposed that explains best what it explains worst. No label is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .bids.derivatives import Derivatives
from .bids.scans import Scan, selected
from .config import RunConfig
from .errors import BadData, NothingSelected, ScanFailed
from .image import nifti
from .image.grid import Grid, conform_image
from .image.head import head_of
from .image.nifti import Image
from .machine import files
from .machine.progress import Progress
from .machine.runlog import report_crash
from .machine.runtime import Runtime, check_stop
from .method.classes import Source, source
from .method.pseudolabels import spread
from .method.registration import likeness

LOG = logging.getLogger("singlestrip_bids")

CANDIDATES, TARGETS = 16, 6  # scans compared, and scans with which each is compared
SIZE, MULTIPLE = 64, 8  # of the grid, in voxels
SHOWN = 3
TABLE = "suggestion.tsv"


def run(config: RunConfig, runtime: Runtime) -> None:
    """Compare scans, log the best ones and write ``code/singlestrip/suggestion.tsv``.

    Raises
    ------
    NothingSelected
        There are fewer than two scans that can be read.
    ScanFailed
        Some scans cannot be read; the others were compared.
    """
    best, failed = compare(selected(config), config, runtime)
    for place, (name, value) in enumerate(list(best.items())[:SHOWN], 1):
        LOG.info("Label this one: %d. %s (likeness %+.3f).", place, name, value)
    path = Derivatives(config.output_dir).model_dir / TABLE
    LOG.info("All %d compared: %s. Look at the scan before you label it.", len(best), path)
    complain(failed, len(best))


def compare(
    scans: Sequence[Scan], config: RunConfig, runtime: Runtime
) -> tuple[dict[str, float], dict[str, str]]:
    """Compare scans from all over a selection and write the table.

    Return the likeness of each, by its path in the dataset, the best first; and what went wrong.
    Raises `NothingSelected` as `run`.
    """
    failed: dict[str, str] = {}
    heads = _read(spread(scans, CANDIDATES), config, runtime, failed)
    if len(heads) < 2:
        why = "".join(f"\n  {line}" for line in failed.values())
        raise NothingSelected(
            f"{config.bids_dir}: {len(heads)} scans can be compared; at least two are needed.{why}"
        )
    values = worth(_likenesses(heads))
    best = {name: values[name] for name in sorted(values, key=lambda name: -values[name])}
    out = Derivatives(config.output_dir)
    out.start(config.bids_dir)
    rows = [{"scan": name, "likeness": f"{value:+.4f}"} for name, value in best.items()]
    files.write_tsv(out.model_dir / TABLE, rows)
    return best, failed


def complain(failed: Mapping[str, str], compared: int) -> None:
    """Raise `ScanFailed` if scans could not be compared, and name them."""
    if failed:
        lines = "\n".join(f"  {line}" for line in failed.values())
        total = compared + len(failed)
        raise ScanFailed(f"{len(failed)} of {total} scans were not compared:\n{lines}")


def _read(
    scans: Sequence[Scan], config: RunConfig, runtime: Runtime, failed: dict[str, str]
) -> dict[str, Source]:
    """Bring all scans to one voxel size, the median of what fits each one's field of view."""
    edges: dict[Scan, float] = {}
    heads: dict[str, Source] = {}

    def measure(scan: Scan) -> None:
        image = nifti.load(scan.path)
        edges[scan] = float(np.max(image.data.shape * image.sizes))

    def bring(scan: Scan) -> None:
        size = float(np.median(list(edges.values()))) / SIZE
        heads[scan.relative] = _head(nifti.load(scan.path), size, runtime)

    for step, those in ((measure, scans), (bring, edges)):
        for scan in those:
            check_stop()
            try:
                step(scan)
            except Exception as error:  # one bad scan never stops the others
                failed[scan.relative] = report_crash(config.log_dir, scan.path, error)
    return heads


def _head(image: Image, voxel_size: float, runtime: Runtime) -> Source:
    """Take a scan as a source whose mask is its head."""
    data = conform_image(image, Grid(voxel_size, SIZE, MULTIPLE)).data
    mask = head_of(data)
    if not mask.any():
        raise BadData(f"{image.path}: no head is found in it; look at the scan, or leave it out.")
    arrays = np.zeros_like(data), data, mask.astype(np.float32)
    return source(*(torch.from_numpy(array).to(runtime.device) for array in arrays))


def _likenesses(heads: Mapping[str, Source]) -> dict[str, dict[str, float]]:
    """Tell how well each head explains some others: by target, then by candidate.

    All of the target's head counts, so that a field of view that leaves out the neck is no merit.
    """
    targets = spread(list(heads), TARGETS)
    pairs = [(target, name) for target in targets for name in heads if name != target]
    found: dict[str, dict[str, float]] = {target: {} for target in targets}
    with Progress("comparing heads", len(pairs)) as progress:
        for target, name in pairs:
            check_stop()
            found[target][name] = likeness(heads[target], heads[name].image)
            progress.step(f"{name}: {found[target][name]:.3f}")
    return found


def worth(likenesses: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Least likeness of each candidate, against the median candidate of the same target.

    Some targets are harder to explain than others, whoever explains them. The least counts, not
    the mean: what a label lacks, such as a neck, spoils the masks of all scans that have it.
    """
    above: dict[str, list[float]] = {}
    for of_target in likenesses.values():
        middle = float(np.median(list(of_target.values())))
        for name, value in of_target.items():
            above.setdefault(name, []).append(value - middle)
    return {name: min(values) for name, values in above.items()}
