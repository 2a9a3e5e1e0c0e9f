"""The page of the group: what was learnt and from what, and all masks, worst first."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Generator

from . import derivatives, model
from .config import SynthesisConfig
from .figures import gallery
from .labels import CLASSES
from .reports import Row, page_values, read_rows
from .synthesis import Source, training_batch
from .templates import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = logging.getLogger("singlestrip_bids")

EXAMPLES = 6  # training images that are shown
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, for all eyes
PICTURES = {"label": ".png", "synthetic": ".jpg", "curves": ".svg", "scatter": ".svg"}


def draw_sources(
    output_dir: Path,
    sources: Sequence[Source],
    size: int,
    config: SynthesisConfig,
    generator: Generator,
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
    generator : Generator
        On the device of the sources.
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
            made, target = training_batch(generator, chosen, size, config)
            examples.append((made[0, 0].cpu().numpy(), target[0, 0].cpu().numpy() > 0.5))
        _write(output_dir, "synthetic", encode(gallery(examples), "JPEG"))
    except Exception as error:  # no training is lost by a picture
        LOG.warning("The labelled scan could not be drawn (%r).", error)


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
        if curves and _is_older(output_dir, "curves", folder):
            _write(output_dir, "curves", _draw_curves(curves))
        if scores and _is_older(output_dir, "scatter", folder):
            _write(output_dir, "scatter", _draw_scatter(scores))
        masks = [row for row in read_rows(output_dir, card=card) if row.fields]
        page = render(
            "group.html",
            card=card,
            trainings=list(curves),
            scores=scores,
            masks=sorted(masks, key=_worst_first),
            pictures=_pictures(output_dir, bool(curves), bool(scores)),
            **page_values("Group"),
        )
        derivatives.write_text(derivatives.report_path(output_dir, "group"), page)
    except Exception as error:  # as above
        LOG.warning("The group's page could not be written (%r).", error)


def _worst_first(row: Row) -> tuple[float, str]:
    return (-1.0 if row.expected is None else row.expected), row.scan


def _pictures(output_dir: Path, curves: bool, scatter: bool) -> dict[str, str]:
    """Addresses of what is there and belongs to this model."""
    wanted = {"label": True, "synthetic": True, "curves": curves, "scatter": scatter}
    paths = {name: _path(output_dir, name) for name, wanted in wanted.items() if wanted}
    return {n: p.relative_to(output_dir).as_posix() for n, p in paths.items() if p.is_file()}


def _is_older(output_dir: Path, name: str, folder: Path) -> bool:
    """Tell whether a picture is not there, or older than the model it is drawn from."""
    path, card = _path(output_dir, name), folder / model.CARD
    return not path.is_file() or path.stat().st_mtime_ns <= card.stat().st_mtime_ns


def _path(output_dir: Path, name: str) -> Path:
    return derivatives.figure_path(output_dir, "group_model", name, PICTURES[name])


def _write(output_dir: Path, name: str, content: bytes) -> None:
    derivatives.write_bytes(_path(output_dir, name), content)


def _curves(folder: Path, card: Mapping[str, Any]) -> dict[str, list[float]]:
    """Losses of each training that belongs to the model."""
    names = ["sl1", *(f"round-{n + 1}" for n in range(card["method"]["rounds"])), "autoencoder"]
    tables = {name: model.read_table(folder, f"{name}_training") for name in names}
    if not card["unlabelled"]:
        tables = {name: rows for name, rows in tables.items() if not name.startswith("round")}
    return {name: [float(row["loss"]) for row in rows] for name, rows in tables.items() if rows}


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
        subject, name = row["scan"].split("/")[0], Path(row["scan"]).name.split(".")[0]
        there = derivatives.report_path(output_dir, subject).is_file()
        rows.append(
            {
                **row,
                **numbers,
                "rank": float(np.mean(seen)),
                "kept": row["kept"] == "True",
                "note": "" if row["note"] == "n/a" else row["note"],
                "name": name,
                "link": f"{subject}.html#{name}" if there else "",
            }
        )
    return sorted(rows, key=lambda row: -row["rank"])


def _draw_curves(curves: Mapping[str, Sequence[float]]) -> bytes:
    """Draw losses, each smoothed over a fiftieth of its steps."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(3.6 * len(curves), 2.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, losses) in zip(panels, curves.items(), strict=True):
        width = max(len(losses) // 50, 1)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        panel.plot(np.arange(len(smooth)) + (width + 1) / 2, smooth, color=COLOURS[0])
        panel.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _draw_scatter(scores: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw scores against volumes; filled if kept, a shape for each round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    for place, number in enumerate(sorted({row["round"] for row in scores})):
        for kept in (True, False):
            rows = [
                r for r in scores if r["round"] == number and r["kept"] == kept and not r["note"]
            ]
            colour = COLOURS[0 if kept else 1]
            panel.scatter(
                [row["volume_ml"] for row in rows],
                [row["rank"] for row in rows],
                marker="osD^v"[place % 5],
                facecolors=colour if kept else "none",
                edgecolors=colour,
                label=f"round {number}, {'kept' if kept else 'not kept'} ({len(rows)})",
            )
    panel.set(xlabel="volume of the pseudo-mask (ml)", ylabel="rank score")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Compress pixels (rows, columns, 3)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=90)
    return stream.getvalue()
