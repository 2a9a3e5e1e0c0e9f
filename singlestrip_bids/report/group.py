"""The page of the group: what was learnt and from what, and all masks, worst first."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from .. import __version__
from ..bids.derivatives import Derivatives
from ..bids.scans import Scan
from ..image.grid import Conformed
from ..image.masks import Mask
from ..machine import files
from ..machine.runtime import mix_seed
from ..method import model
from ..method.classes import Source
from ..method.expected_dice import Calibration, Evidence
from ..method.guard import LABEL, Verdict
from ..method.pseudolabels import Guess
from ..method.synthesis import training_batch
from ..method.trainer import Trainer, round_name
from .figures import gallery, sheet
from .subject import LOW_DICE, Row, page_values, read_rows
from .templates import render

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


def draw_sources(out: Derivatives, sources: Sequence[Source], trainer: Trainer) -> None:
    """Draw the first labelled scan, its classes, and random training images; log a failure."""
    method, seed = trainer.method, mix_seed(trainer.method.seed, 3)
    try:
        origin = sources[0]
        image, classes, mask = (
            tensor[0, 0].cpu().numpy() for tensor in (origin.image, origin.classes, origin.mask)
        )
        brain = mask > 0.5
        shown = [
            gallery([(image, brain)]),
            gallery([(classes / (origin.count - 1), brain)], "cividis"),
        ]
        _write(out, "label", encode(np.concatenate(shown, axis=1)))
        examples = []
        for number in range(EXAMPLES):
            chosen = [sources[number % len(sources)]]
            generator = trainer.runtime.generator(seed, number)
            made, target = training_batch(generator, chosen, method.size, method.synthesis)
            examples.append((made[0, 0].cpu().numpy(), target[0, 0].cpu().numpy() > 0.5))
        _write(out, "synthetic", encode(gallery(examples), "JPEG"))
    except Exception as error:  # no training is lost by a picture
        LOG.warning("The labelled scan could not be drawn (%r).", error)


def draw_pseudo(
    out: Derivatives, number: int, scan: Scan, conformed: Conformed, guess: Guess
) -> None:
    """Draw a pseudo-label of a round, and the propagated label beneath it; log a failure."""
    masks = [guess.mask] if guess.propagated is None else [guess.mask, guess.propagated]
    _draw_sheet(out, scan, f"pseudo{number}", conformed, masks)


def draw_networks(out: Derivatives, trainer: Trainer, verdict: Verdict) -> None:
    """Draw scans on which the first and the last network differ most; log a failure."""
    for one in verdict.apart:
        conformed = trainer.conform(one.scan)
        _draw_sheet(out, one.scan, "networks", conformed, one.masks[::-1])


def _draw_sheet(
    out: Derivatives, scan: Scan, desc: str, conformed: Conformed, masks: Sequence[Mask]
) -> None:
    try:
        path = out.figure(scan.relative, desc, ".jpg")
        files.write_bytes(path, sheet(conformed.data, masks, conformed.voxel_size))
    except Exception as error:  # as above
        LOG.warning("%s: could not be drawn (%r).", scan.path, error)


def write(out: Derivatives, folder: Path) -> None:
    """Write ``group.html`` from all masks and the tables in the model's folder; log a failure."""
    try:
        card = model.read_card(folder)
        scores = _scores(out, folder, card) if card else []
        curves = _curves(folder, card, scores) if card else {}
        shown = _charts(folder, card, curves) if card else {}
        if scores:
            shown["ranks"] = (scores,)
        drawn = {name: _chart(out, name, *given) for name, given in shown.items()}
        masks = [row for row in read_rows(out, card=card) if row.fields]
        page = render(
            "group.html",
            card=card,
            trainings=list(curves),
            scores=scores,
            scatter=_inline(drawn["ranks"]) if scores else "",
            apart=_apart(out, folder, card) if card else [],
            masks=sorted(masks, key=_worst_first),
            summary=_summary(masks),
            structures=_structures(masks),
            pictures=_pictures(out, folder, shown),
            **page_values("Group"),
        )
        files.write_text(out.page("group"), page)
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


def _structures(masks: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Gather what is known of each structure in all masks, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for row in masks:
        for name, one in row.structures.items():
            own = found.setdefault(name, {"colour": one["Colour"], "ml": [], "expected": []})
            own["ml"].append(one["VolumeMl"])
            own["expected"] += [one["ExpectedDice"]] if "ExpectedDice" in one else []
    for own in found.values():
        volumes, expected = own.pop("ml"), own.pop("expected")
        own |= {"median": median(volumes), "least": min(volumes), "most": max(volumes)}
        own["expected"] = median(expected) if expected else None
    return found


def _pictures(out: Derivatives, folder: Path, charts: Collection[str]) -> dict[str, str]:
    """Addresses of what is there and belongs to this model."""
    found = {name: out.address(_path(out, name)) for name in charts}
    if _trained_here(out, folder):
        found |= {name: out.address(_path(out, name)) for name in ("label", "synthetic")}
    return {name: address for name, address in found.items() if address}


def _trained_here(out: Derivatives, folder: Path) -> bool:
    """Tell whether the pictures of a training that lie here are those of the model."""
    return folder.resolve() == out.model_dir.resolve()


def _path(out: Derivatives, name: str) -> Path:
    return out.figure("group_model", name, PICTURES[name])


def _write(out: Derivatives, name: str, content: bytes) -> None:
    files.write_bytes(_path(out, name), content)


def _chart(out: Derivatives, name: str, *given: object) -> bytes:
    """Draw a chart, unless the same lies there already."""
    path = _path(out, name)
    mark = f"<!-- {files.fingerprint(__version__, name, given)} -->\n".encode()
    if path.is_file() and (there := path.read_bytes()).endswith(mark):
        return there
    from . import charts  # slow to import, and most jobs draw no chart

    made: bytes = getattr(charts, name)(*given) + mark
    files.write_bytes(path, made)
    return made


def _inline(svg: bytes) -> Markup:
    """Make a chart part of the page, so that a script can reach its points."""
    text = re.sub(r' xmlns(:xlink)?="[^"]+"', "", svg.decode())
    return Markup(text[text.index("<svg") :])  # no word of a dataset is in it


def _curves(
    folder: Path, card: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Losses of each training that belongs to the model; a round without ``scores`` is none."""
    rounds = sorted({int(row["round"]) for row in scores if row["kept"]})
    names = ["sl1", *map(round_name, rounds)]
    names += [*(["fine"] if card.get("fine") else []), "autoencoder"]
    tables = {name: files.read_tsv(folder / f"{name}_training.tsv") for name in names}
    return {name: [float(row["loss"]) for row in rows] for name, rows in tables.items() if rows}


def _charts(
    folder: Path, card: Mapping[str, Any], curves: Mapping[str, Sequence[float]]
) -> dict[str, tuple[Any, ...]]:
    """Say what each chart shows, of those that the model's tables allow."""
    shown: dict[str, tuple[Any, ...]] = {"curves": (curves,)} if curves else {}
    names = list(card.get("guard", {}).get("standings", {}))
    copies = {name: files.read_tsv(folder / f"{name}_copies.tsv") for name in names}
    sample = {name: files.read_tsv(folder / f"{name}_sample.tsv") for name in names}
    if len(names) == 2 and all(copies.values()) and all(sample.values()):
        dices = [[float(row["dice"]) for row in _copies_of(copies[n])["the label"]] for n in names]
        hopes = [[float(row["expected"]) for row in sample[name]] for name in names]
        shown["guard"] = names, dices, hopes
    kept = card.get("guard", {}).get("kept")
    if rows := copies.get(kept):
        line = Calibration(**card["calibration"])
        found = {
            what: [(*line.expect(_evidence(row)), float(row["dice"])) for row in some]
            for what, some in _copies_of(rows).items()
        }
        second = [row for row in sample[kept] if row["opinion"] != "n/a"]
        opinions = [(line.expect(_evidence(row))[0], float(row["opinion"])) for row in second]
        shown["calibration"] = found, opinions
    return shown


def _copies_of(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Tell copies of the label from those of unlabelled scans; the latter may be missing."""
    label = [row for row in rows if row.get("of", LABEL) == LABEL]
    others = [row for row in rows if row not in label]
    return {"the label": label} | ({"unlabelled scans": others} if others else {})


def _evidence(row: Mapping[str, str]) -> Evidence:
    return Evidence(*(float(row[field.name]) for field in fields(Evidence)))


def _apart(out: Derivatives, folder: Path, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the scans on which the first and the last network differ most, with pictures."""
    found = list[dict[str, Any]]()
    if not _trained_here(out, folder):
        return found
    for one in card.get("guard", {}).get("apart", []):
        if picture := out.address(out.figure(one["scan"], "networks", ".jpg")):
            found.append({**one, "picture": picture, "name": _name(one["scan"])})
    return found


def _name(scan: str) -> str:
    return Path(scan).name.split(".")[0]


def _scores(out: Derivatives, folder: Path, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the pseudo-labels that the model saw, the best first."""
    pool, rounds = set(card["unlabelled"]), card["method"]["rounds"]
    rows, here = [], _trained_here(out, folder)
    for row in files.read_tsv(folder / "scores.tsv"):
        if row["scan"] not in pool or int(row["round"]) > rounds:
            continue
        numbers = {
            name: None if row[name] == "n/a" else float(row[name])
            for name in ("score", "agreement", "volume_ml")
        }
        seen = [n for n in (numbers["score"], numbers["agreement"]) if n is not None]
        kept, note = row["kept"] == "True", "" if row["note"] == "n/a" else row["note"]
        subject, name = row["scan"].split("/")[0], _name(row["scan"])
        picture = out.figure(row["scan"], f"pseudo{row['round']}", ".jpg")
        there = out.page(subject).is_file()
        rows.append(
            {
                **row,
                **numbers,
                "rank": float(np.mean(seen)),
                "kept": kept,
                "note": note,
                "name": name,
                "group": "" if note else f"points-{row['round']}-{'kept' if kept else 'not'}",
                "picture": out.address(picture) if here else "",
                "link": f"{subject}.html#{name}" if there else "",
            }
        )
    return sorted(rows, key=lambda row: -row["rank"])


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Compress pixels (rows, columns, 3)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=90)
    return stream.getvalue()
