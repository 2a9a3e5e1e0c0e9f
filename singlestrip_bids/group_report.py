"""The page of the group: what was learnt and from what, and all masks, worst first."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Generator

from . import __version__, derivatives, model
from .calibration import Calibration, Evidence
from .config import SynthesisConfig
from .figures import gallery, sheet
from .inputs import Scan
from .labels import CLASSES
from .ranking import Guess
from .reports import LOW_DICE, Row, page_values, read_rows
from .synthesis import Source, training_batch
from .templates import render
from .trials import LABEL
from .volume import Conformed, Mask

LOG = logging.getLogger("singlestrip_bids")

EXAMPLES = 6  # training images that are shown
PICTURES = {
    "label": ".png",
    "synthetic": ".jpg",
    "curves": ".svg",
    "guard": ".svg",
    "calibration": ".svg",
    "ranks": ".svg",
}


def draw_sources(
    output_dir: Path,
    sources: Sequence[Source],
    size: int,
    config: SynthesisConfig,
    generator: Callable[[int], Generator],
) -> None:
    """Draw the first labelled scan, its classes, and random training images; log a failure.

    Parameters
    ----------
    output_dir : Path
        Derivative dataset.
    sources : sequence of Source
        The labelled scans.
    size : int
        Edge of the training images in voxels.
    config : SynthesisConfig
        Ranges of the first training.
    generator : callable
        Makes that of each image, on the device of the sources.
    """
    try:
        origin = sources[0]
        image, classes, mask = (
            tensor[0, 0].cpu().numpy() for tensor in (origin.image, origin.classes, origin.mask)
        )
        brain = mask > 0.5
        shown = [gallery([(image, brain)]), gallery([(classes / (CLASSES - 1), brain)], "cividis")]
        _write(output_dir, "label", encode(np.concatenate(shown, axis=1)))
        examples = []
        for number in range(EXAMPLES):
            chosen = [sources[number % len(sources)]]
            made, target = training_batch(generator(number), chosen, size, config)
            examples.append((made[0, 0].cpu().numpy(), target[0, 0].cpu().numpy() > 0.5))
        _write(output_dir, "synthetic", encode(gallery(examples), "JPEG"))
    except Exception as error:  # no training is lost by a picture
        LOG.warning("The labelled scan could not be drawn (%r).", error)


def draw_pseudo(
    output_dir: Path, number: int, scan: Scan, conformed: Conformed, guess: Guess
) -> None:
    """Draw a pseudo-mask of a round, and the registered label beneath it; log a failure."""
    masks = [guess.mask] if guess.carried is None else [guess.mask, guess.carried]
    _draw_sheet(output_dir, scan, f"pseudo{number}", conformed, masks)


def draw_networks(
    output_dir: Path, scan: Scan, conformed: Conformed, masks: tuple[Mask, Mask]
) -> None:
    """Draw the masks of the first and the last network over a scan; log a failure."""
    _draw_sheet(output_dir, scan, "networks", conformed, masks[::-1])


def _draw_sheet(
    output_dir: Path, scan: Scan, desc: str, conformed: Conformed, masks: Sequence[Mask]
) -> None:
    try:
        size = float(np.linalg.norm(conformed.affine[:3, 0]))
        path = derivatives.figure_path(output_dir, scan.relative, desc, ".jpg")
        derivatives.write_bytes(path, sheet(conformed.data, masks, size))
    except Exception as error:  # as above
        LOG.warning("%s: could not be drawn (%r).", scan.path, error)


def write(output_dir: Path, folder: Path) -> None:
    """Write ``group.html`` from the model's tables and all masks on disk; log a failure.

    Parameters
    ----------
    output_dir : Path
        Derivative dataset.
    folder : Path
        Of the model; it may lie elsewhere.
    """
    try:
        card = model.read_card(folder)
        curves = _curves(folder, card) if card else {}
        scores = _scores(output_dir, folder, card) if card else []
        charts = _charts(folder, card, curves) if card else {}
        if scores:
            charts["ranks"] = (scores,)
        drawn = {name: _chart(output_dir, name, *given) for name, given in charts.items()}
        masks = [row for row in read_rows(output_dir, card=card) if row.fields]
        page = render(
            "group.html",
            card=card,
            trainings=list(curves),
            scores=scores,
            scatter=_inline(drawn["ranks"]) if scores else "",
            apart=_apart(output_dir, card) if card else [],
            masks=sorted(masks, key=_worst_first),
            summary=_summary(masks),
            pictures=_pictures(output_dir, {"label", "synthetic", *charts}),
            **page_values("Group"),
        )
        derivatives.write_text(derivatives.report_path(output_dir, "group"), page)
    except Exception as error:  # as above
        LOG.warning("The group's page could not be written (%r).", error)


def _worst_first(row: Row) -> tuple[float, str]:
    return (-1.0 if row.expected is None else row.expected), row.scan


def _summary(masks: Sequence[Row]) -> dict[str, Any]:
    """Figures for the head of the page."""
    expected = [row.expected for row in masks if row.expected is not None]
    return {
        "median": median(expected) if expected else None,
        "low": sum(value < LOW_DICE for value in expected),
        "remarks": sum(bool(row.remarks) for row in masks),
    }


def _pictures(output_dir: Path, wanted: set[str]) -> dict[str, str]:
    """Addresses of what is there and belongs to this model."""
    paths = {name: _path(output_dir, name) for name in PICTURES if name in wanted}
    return {n: p.relative_to(output_dir).as_posix() for n, p in paths.items() if p.is_file()}


def _path(output_dir: Path, name: str) -> Path:
    return derivatives.figure_path(output_dir, "group_model", name, PICTURES[name])


def _write(output_dir: Path, name: str, content: bytes) -> None:
    derivatives.write_bytes(_path(output_dir, name), content)


def _chart(output_dir: Path, name: str, *given: object) -> bytes:
    """Draw a chart of `plots`, unless the same lies there already."""
    path = _path(output_dir, name)
    mark = f"<!-- {model.fingerprint(__version__, name, given)} -->\n".encode()
    if path.is_file() and (there := path.read_bytes()).endswith(mark):
        return there
    from . import plots  # slow to import, and most jobs draw no chart

    made: bytes = getattr(plots, name)(*given) + mark
    derivatives.write_bytes(path, made)
    return made


def _inline(svg: bytes) -> Markup:
    """Make a chart part of the page, so that a script can reach its points."""
    text = re.sub(r' xmlns(:xlink)?="[^"]+"', "", svg.decode())
    return Markup(text[text.index("<svg") :])  # no word of a dataset is in it


def _curves(folder: Path, card: Mapping[str, Any]) -> dict[str, list[float]]:
    """Losses of each training that belongs to the model."""
    names = ["sl1", *(f"round-{n + 1}" for n in range(card["method"]["rounds"])), "autoencoder"]
    tables = {name: model.read_table(folder, f"{name}_training") for name in names}
    if not card["unlabelled"]:
        tables = {name: rows for name, rows in tables.items() if not name.startswith("round")}
    return {name: [float(row["loss"]) for row in rows] for name, rows in tables.items() if rows}


def _charts(
    folder: Path, card: Mapping[str, Any], curves: Mapping[str, Sequence[float]]
) -> dict[str, tuple[Any, ...]]:
    """Say what each chart shows, of those that the model's tables allow."""
    charts: dict[str, tuple[Any, ...]] = {"curves": (curves,)} if curves else {}
    names = list(card.get("guard", {}).get("standings", {}))
    copies = {name: model.read_table(folder, f"{name}_copies") for name in names}
    sample = {name: model.read_table(folder, f"{name}_sample") for name in names}
    if len(names) == 2 and all(copies.values()) and all(sample.values()):
        dices = [[float(row["dice"]) for row in _copies_of(copies[n])["the label"]] for n in names]
        hopes = [[float(row["expected"]) for row in sample[name]] for name in names]
        charts["guard"] = names, dices, hopes
    kept = card.get("guard", {}).get("kept")
    if rows := copies.get(kept):
        line = Calibration(**card["calibration"])
        found = {
            what: [(*line.expect(_evidence(row)), float(row["dice"])) for row in some]
            for what, some in _copies_of(rows).items()
        }
        second = [row for row in sample[kept] if row["opinion"] != "n/a"]
        opinions = [(line.expect(_evidence(row))[0], float(row["opinion"])) for row in second]
        charts["calibration"] = found, opinions
    return charts


def _copies_of(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Tell copies of the label from those of unlabelled scans; the latter may be missing."""
    label = [row for row in rows if row.get("of", LABEL) == LABEL]
    others = [row for row in rows if row not in label]
    return {"the label": label} | ({"unlabelled scans": others} if others else {})


def _evidence(row: Mapping[str, str]) -> Evidence:
    return Evidence(*(float(row[field.name]) for field in fields(Evidence)))


def _apart(output_dir: Path, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the scans on which the first and the last network differ most, with pictures."""
    found = []
    for one in card.get("guard", {}).get("apart", []):
        if picture := _address(output_dir, one["scan"], "networks"):
            found.append({**one, "picture": picture, "name": _name(one["scan"])})
    return found


def _name(scan: str) -> str:
    return Path(scan).name.split(".")[0]


def _address(output_dir: Path, scan: str, desc: str) -> str:
    """Address of a sheet, empty if there is none."""
    path = derivatives.figure_path(output_dir, scan, desc, ".jpg")
    return path.relative_to(output_dir).as_posix() if path.is_file() else ""


def _scores(output_dir: Path, folder: Path, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the pseudo-masks that the model saw, the best first."""
    pool, rounds = set(card["unlabelled"]), card["method"]["rounds"]
    rows = []
    for row in model.read_table(folder, "scores"):
        if row["scan"] not in pool or int(row["round"]) > rounds:
            continue
        numbers = {
            name: None if row[name] == "n/a" else float(row[name])
            for name in ("score", "agreement", "volume_ml")
        }
        seen = [n for n in (numbers["score"], numbers["agreement"]) if n is not None]
        kept, note = row["kept"] == "True", "" if row["note"] == "n/a" else row["note"]
        subject, name = row["scan"].split("/")[0], _name(row["scan"])
        there = derivatives.report_path(output_dir, subject).is_file()
        rows.append(
            {
                **row,
                **numbers,
                "rank": float(np.mean(seen)),
                "kept": kept,
                "note": note,
                "name": name,
                "group": "" if note else f"points-{row['round']}-{'kept' if kept else 'not'}",
                "picture": _address(output_dir, row["scan"], f"pseudo{row['round']}"),
                "link": f"{subject}.html#{name}" if there else "",
            }
        )
    return sorted(rows, key=lambda row: -row["rank"])


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Compress pixels (rows, columns, 3)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=90)
    return stream.getvalue()
