"""Pages that people look at: one for each subject, made from what lies in the output folder.

A page knows nothing but the sidecars and pictures on disk, so it is complete whichever job wrote
them. Whatever goes wrong here is logged and named on the page; masks are never lost by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..bids.derivatives import TOOL, Derivatives, sidecar_path
from ..bids.scans import Scan
from ..errors import SingleStripError
from ..image import nifti
from ..image.brain import Parts
from ..image.grid import conform, restore_mask
from ..image.masks import Mask
from ..image.nifti import Image
from ..image.structures import Numbers, Structure, conform_numbers, numbered
from ..machine import files
from ..machine.runtime import check_stop
from ..method.autoencoder import rebuild
from ..method.model import Model
from .figures import mosaic
from .templates import render

LOG = logging.getLogger("singlestrip_bids")

LOW_DICE, LOW_END, LOW_AGREEMENT = 0.90, 0.80, 0.95  # below these a person is asked to look
VOLUMES = 0.6, 1.6  # multiples of the labelled brain's outside which one is asked, too
PICTURES = {
    "scan": ".jpg",
    "outline": ".svg",
    "outside": ".svg",
    "rebuilt": ".svg",
    "parts": ".png",
    "thumbnail": ".jpg",
}  # of a mask
BARS = 32  # of the histogram of volumes
NUMBERS = (
    "ExpectedDice", "ExpectedDiceInterval", "QualityScore", "MildContrastAgreement",
    "StrongContrastAgreement", "PropagatedWeight", "FineWeight", "NetworkAgreement",
    "BrainVolumeMl", "ComputeSeconds",
)  # fmt: skip

SENTENCES = (
    "Draft",
    "OrientationDoubt",
    "Averaged",
    "OutOfMemory",
)  # fields that are remarks as they are


@dataclass(frozen=True)
class Row:
    """One mask, or a scan that has none, as pages tell of it."""

    scan: str  # path in its dataset
    fields: Mapping[str, Any]  # of the sidecar; empty if there is no mask
    pictures: Mapping[str, str]  # from a key of `PICTURES` to an address in the output folder
    remarks: tuple[str, ...]  # what a person should know before using the mask
    structures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by their names

    @property
    def name(self) -> str:
        """File name without extension; also the anchor on the page of the subject."""
        return Path(self.scan).name.split(".")[0]

    @property
    def subject(self) -> str:
        """Subject with ``sub-``; also the name of its page."""
        return self.scan.split("/")[0]

    @property
    def expected(self) -> float | None:
        """Expected Dice; None where it is not known."""
        return self.fields.get("ExpectedDice")

    @property
    def interval(self) -> Sequence[float] | None:
        """Ends of its interval."""
        return self.fields.get("ExpectedDiceInterval")

    @property
    def millilitres(self) -> float | None:
        """Volume of the mask."""
        return self.fields.get("BrainVolumeMl")


def draw(
    out: Derivatives,
    scan: Scan,
    image: Image,
    mask: Mask,
    reconstruct: Callable[[], Mask] | None = None,
    parts: Parts | None = None,
) -> None:
    """Write the pictures of a mask; a failure is logged and nothing else.

    ``reconstruct`` makes the mask as the autoencoder rebuilds it, on the grid of the image;
    without it that picture stays as it is. ``parts`` are the structures in the mask.
    """
    try:
        rebuilt = reconstruct() if reconstruct else None
        upright, sizes = nifti.upright(image.data, image.affine)
        second = None if rebuilt is None else nifti.upright(rebuilt, image.affine)[0]
        numbers = None if parts is None else nifti.upright(parts.numbers, image.affine)[0]
        colours = [] if parts is None else [one.colour for one in parts.structures]
        brain = nifti.upright(mask, image.affine)[0]
        pictures = mosaic(upright, brain, sizes, second, numbers, colours)
        for desc, path in _places(out, scan.relative).items():
            content = getattr(pictures, desc)
            if content is not None:
                content = content.encode() if isinstance(content, str) else content
                files.write_bytes(path, content)
            elif reconstruct or desc != "rebuilt":
                path.unlink(missing_ok=True)  # that of an earlier mask
    except Exception as error:  # the mask is there: a picture is not worth losing it
        LOG.warning("%s: its mask could not be drawn (%r).", scan.path, error)


def write(
    out: Derivatives,
    subject: str,
    card: Mapping[str, Any] | None = None,
    failures: Mapping[str, str] | None = None,
    volumes: Sequence[float] = (),
) -> None:
    """Write the page of a subject (without ``sub-``) from what is on disk; a failure is logged.

    ``failures`` tell what went wrong, by the path of the scan in its dataset; those of other
    subjects are left out. ``volumes`` are of all masks on disk in ml, if known, to compare with.
    """
    name = f"sub-{subject}"
    own = {scan: why for scan, why in (failures or {}).items() if scan.startswith(f"{name}/")}
    try:
        rows = read_rows(out, subject, card, own)
        label = card["brain_ml"] if card and not card.get("phantoms") else None
        crowds = {row.name: crowd(row.millilitres, volumes, label) for row in rows}
        page = render("subject.html", rows=rows, card=card, crowds=crowds, **page_values(name))
        files.write_text(out.page(name), page)
    except Exception as error:  # as above
        LOG.warning("%s: its page could not be written (%r).", name, error)


def write_all(
    out: Derivatives,
    subjects: Sequence[str],
    card: Mapping[str, Any] | None = None,
    failures: Mapping[str, str] | None = None,
) -> None:
    """Write the pages of subjects beside the volumes of all masks that are there by now."""
    found = [row.millilitres for row in read_rows(out)]
    volumes = [millilitres for millilitres in found if millilitres is not None]
    for subject in dict.fromkeys(subjects):
        write(out, subject, card, failures, volumes)


def crowd(
    own: float | None, volumes: Sequence[float], label: float | None
) -> dict[str, Any] | None:
    """Place a volume among those of all masks and of the label in ml; None if it is alone.

    For a histogram: ``bars``, heights between 0 and 1; ``own`` and ``label``, places between 0 and
    1; ``low`` and ``high``, the ends of the axis; ``median``; ``smaller``, how many are smaller,
    and ``others``, how many others there are.
    """
    if own is None or len(volumes) < 2:
        return None
    shown = [*volumes, own] if label is None else [*volumes, own, label]
    low, high = float(min(shown)), float(max(shown))
    low, high = low - 0.05 * (high - low) - 1, high + 0.05 * (high - low) + 1
    counts, _ = np.histogram(volumes, BARS, (low, high))
    return {
        "bars": (counts / counts.max()).tolist(),
        "own": (own - low) / (high - low),
        "label": None if label is None else (label - low) / (high - low),
        "low": low,
        "high": high,
        "median": float(np.median(volumes)),
        "smaller": sum(other < own for other in volumes),
        "others": len(volumes) - 1,
    }


def remake(
    out: Derivatives,
    scans: Sequence[Scan],
    card: Mapping[str, Any] | None = None,
    trained: Model | None = None,
) -> dict[str, str]:
    """Draw all masks on disk again and write the pages of their subjects.

    The model, if given, reconstructs its own masks. Return a message for each scan without a mask
    that can be read, by its path in the dataset.
    """
    failures: dict[str, str] = {}
    for scan in scans:
        check_stop()
        try:
            image = nifti.load(scan.path)
            path = out.mask(scan)
            mask = nifti.load_mask(path, image)
            fields = files.read_json(sidecar_path(path))
            parts = _read_parts(out, scan, image, fields)
        except SingleStripError as error:
            failures[scan.relative] = str(error)
            LOG.warning("%s", error)
            continue
        size, again = fields.get("WorkingVoxelSizeMm"), None
        if trained and size and card and _is_own(fields, card):
            shape = mask if parts is None else parts.numbers
            again = partial(_reconstruct, trained, image, shape, size)
        draw(out, scan, image, mask, again, parts)
    write_all(out, [scan.subject for scan in scans], card, failures)
    return failures


def _read_parts(
    out: Derivatives, scan: Scan, image: Image, fields: Mapping[str, Any]
) -> Parts | None:
    """Read the structures in a mask on disk, which has these ``fields``, if there are any."""
    known = _structures(out, sidecar_path(out.mask(scan)), fields)
    if not known:
        return None
    structures = tuple(Structure(s["Index"], name, s["Colour"]) for name, s in known.items())
    numbers = numbered(nifti.load_dseg(out.dseg(scan), image), structures)
    return Parts(structures, numbers, (), numbers[:0], image.affine)


def _reconstruct(trained: Model, image: Image, shape: Mask | Numbers, voxel_size: float) -> Mask:
    """Reconstruct what is on disk on a grid of this voxel size in mm, and bring back the mask."""
    grid = replace(trained.frame.grid, voxel_size=voxel_size)
    placed = conform(shape > 0, image.affine, grid)
    seen: Mask | Numbers = placed.data > 0.5
    if trained.structures:
        seen = conform_numbers(shape.astype(np.uint8), image.affine, grid)
    rebuilt = rebuild(trained.autoencoder, seen, trained.runtime) > 0
    return restore_mask(rebuilt, placed.affine, image, cleaned=False)


def _check_numbers(fields: Mapping[str, Any]) -> None:
    """Raise `TypeError` where something that pages count with is no number."""
    for name in NUMBERS:
        value = fields.get(name, 0)
        parts = value if name == "ExpectedDiceInterval" and value else [value]
        if not all(isinstance(part, int | float) for part in parts):
            raise TypeError(f"{name} is {value!r}")


def read_rows(
    out: Derivatives,
    subject: str = "*",
    card: Mapping[str, Any] | None = None,
    failures: Mapping[str, str] | None = None,
) -> list[Row]:
    """Read the masks on disk, of one subject or of all; scans that failed follow."""
    failures = dict(failures or {})
    rows = []
    for path in out.mask_sidecars(subject):
        try:
            fields = files.read_json(path)
            scan = str(fields["SpatialReference"]).split(":", 2)[2]
            _check_numbers(fields)
        except (SingleStripError, LookupError, TypeError) as error:
            LOG.warning("%s: left out of the pages (%s).", path, error)
            continue
        said = remarks(fields, card)
        if why := failures.pop(scan, None):
            said = (f"The last run failed here, and this mask is an earlier one: {why}", *said)
        pictures = _pictures(out, scan)
        if "scan" not in pictures:
            said = (*said, "There is no picture of this mask: try --reports-only, or see the log.")
        structures = _structures(out, path, fields)
        rows.append(Row(scan, fields, pictures, said, structures))
    rows += [Row(scan, {}, {}, (f"No mask. {why}",)) for scan, why in failures.items()]
    return sorted(rows, key=lambda row: row.scan)


def _structures(
    out: Derivatives, path: Path, fields: Mapping[str, Any]
) -> Mapping[str, Mapping[str, Any]]:
    """Read what is known of the structures in a mask, by their names; nothing of another model."""
    sidecar = out.dseg_sidecar(path)
    if not sidecar.is_file():
        return {}
    try:
        found = files.read_json(sidecar)
        if found.get("ModelSHA256") != fields.get("ModelSHA256"):
            return {}
        known: dict[str, Any] = found["Structures"]
        for one in known.values():
            float(one["VolumeMl"]), int(one["Index"]), str(one["Colour"])
    except (SingleStripError, LookupError, TypeError, ValueError, AttributeError) as error:
        LOG.warning("%s: left out of the pages (%s).", sidecar, error)
        return {}
    return known


def write_volumes(out: Derivatives) -> None:
    """Write the table of all structures' volumes from what is on disk; a failure is logged."""
    try:
        rows = [
            {"scan": row.scan, "brain_ml": row.millilitres}
            | {name: one["VolumeMl"] for name, one in row.structures.items()}
            for row in read_rows(out)
            if row.structures
        ]
        if rows:
            files.write_tsv(out.volumes, rows)
        else:
            out.volumes.unlink(missing_ok=True)  # of an earlier model
    except Exception as error:  # as above
        LOG.warning("The table of volumes could not be written (%r).", error)


def remarks(fields: Mapping[str, Any], card: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Say in plain words what the fields of a sidecar mean for its use."""
    said = []
    expected, interval = fields.get("ExpectedDice"), fields.get("ExpectedDiceInterval")
    if expected is not None and expected < LOW_DICE:
        said.append(f"The expected Dice is low ({expected:.2f}): check this mask before using it.")
    elif interval and interval[0] < LOW_END:
        said.append(f"The expected Dice is uncertain: it may be as low as {interval[0]:.2f}.")
    agreement = fields.get("MildContrastAgreement")
    if agreement is not None and agreement < LOW_AGREEMENT:
        said.append("The mask is another in a slightly different contrast, or in the mirror.")
    said += _about_model(fields, card) if card else []
    said += [str(fields[name]) for name in SENTENCES if fields.get(name)]
    return tuple(said)


def _about_model(fields: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """Compare a mask with the label and with the model on disk."""
    said = []
    share = fields.get("BrainVolumeMl", card["brain_ml"]) / card["brain_ml"]
    if not (card.get("phantoms") or VOLUMES[0] < share < VOLUMES[1]):
        said.append(f"The volume is {share:.1f} times that of the labelled brain.")
    if not _is_own(fields, card):
        said.append(
            "Another model than that of this folder made this mask: run participant again."
        )
    return said


def _is_own(fields: Mapping[str, Any], card: Mapping[str, Any]) -> bool:
    """Tell whether the model of a card made a mask."""
    return bool(fields.get("ModelSHA256") == card["sha256"].get(card["network"]))


def _places(out: Derivatives, scan: str) -> dict[str, Path]:
    """Where the pictures of a mask go."""
    return {d: out.figure(scan, d, e) for d, e in PICTURES.items()}


def correction(out: Derivatives, scan: str) -> Path:
    """Return where the page goes in which the mask of a scan is corrected."""
    return out.figure(scan, "edit", ".html")


def _pictures(out: Derivatives, scan: str) -> dict[str, str]:
    places = {**_places(out, scan), "edit": correction(out, scan)}
    found = {desc: out.address(path) for desc, path in places.items()}
    return {desc: address for desc, address in found.items() if address}


def page_values(title: str) -> dict[str, str]:
    """Values that every page needs."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"title": title, "tool": TOOL, "version": __version__, "made": made}
