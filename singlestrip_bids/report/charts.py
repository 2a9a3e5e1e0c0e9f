"""Charts of a model for its page, as SVG without a background: losses, ranks, guard, calibration.

Text stays text, so a chart has the page's font; a dark page inverts the lightness of its colours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito's, for all eyes
GREY = "#57606a"
ABREAST = 3  # curves of trainings: as many as a page is wide
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "singlestrip-bids",  # equal charts are equal files
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the space text may take
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"  # that of the pages


def curves(trainings: Mapping[str, Sequence[float]]) -> bytes:
    """Draw the losses of each training, smoothed over a fiftieth of their steps."""
    wide = min(len(trainings), ABREAST)
    high = math.ceil(len(trainings) / ABREAST)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * wide, 2.4 * high))
        for number, (name, values) in enumerate(trainings.items(), 1):
            panel = figure.add_subplot(high, wide, number)
            width = max(len(values) // 50, 1)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            panel.plot(np.arange(len(smooth)) + (width + 1) / 2, smooth, color=BLUE)
            panel.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
        return _svg(figure)


def ranks(scores: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw rank scores against volumes: filled if kept, a shape for each round.

    Points are in the order of their rows within a group; its id is the ``group`` of the rows.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 3.4))
        panel = figure.subplots()
        for at, number in enumerate(sorted({row["round"] for row in scores})):
            for kept in (True, False):
                group = f"points-{number}-{'kept' if kept else 'not'}"
                rows = [row for row in scores if row["group"] == group]
                colour = BLUE if kept else VERMILION
                points = panel.scatter(
                    [row["volume_ml"] for row in rows],
                    [row["rank"] for row in rows],
                    s=45,
                    marker="osD^v"[at % 5],
                    facecolors=colour if kept else "none",
                    edgecolors=colour,
                    label=f"round {number}, {'kept' if kept else 'not kept'} ({len(rows)})",
                )
                points.set_gid(group)
        panel.set(xlabel="volume of the pseudo-label (ml)", ylabel="rank score")
        panel.margins(0.08)
        figure.legend(loc="outside right upper")
        return _svg(figure)


def guard(
    names: Sequence[str], copies: Sequence[Sequence[float]], sample: Sequence[Sequence[float]]
) -> bytes:
    """Draw the Dice of two networks against each other: a point above the line is a gain.

    ``copies`` holds for both the Dice of the copies of the labelled scan, ``sample`` the Dice
    that is expected of unlabelled scans.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.1))
        panels = figure.subplots(1, 2)
        kinds = ("Copies of the label", "Dice"), ("Unlabelled scans", "expected Dice")
        for panel, (title, dice), pair in zip(panels, kinds, (copies, sample), strict=True):
            _diagonal(panel, [*pair[0], *pair[1]])
            panel.plot(*pair, "o", color=BLUE, markersize=5, alpha=0.6, markeredgewidth=0)
            panel.plot(np.mean(pair[0]), np.mean(pair[1]), "P", color=VERMILION, markersize=10)
            panel.set(title=title, xlabel=f"{dice}, {names[0]}", ylabel=f"{dice}, {names[1]}")
        return _svg(figure)


def calibration(
    copies: Mapping[str, Sequence[tuple[float, float, float, float]]],
    opinions: Sequence[tuple[float, float]],
) -> bytes:
    """Draw the expected Dice against what is known.

    ``copies`` holds for each corrupted copy, by what it is a copy of, the expected Dice, the ends
    of its interval and the Dice; ``opinions`` for unlabelled scans the expected Dice, and the Dice
    with the propagated label.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.2))
        panel = figure.subplots()
        line = np.array(sorted(one for kind in copies.values() for one in kind))
        second = np.array(opinions, dtype=float).reshape(-1, 2)
        _diagonal(panel, [*line[:, 0], *line[:, 3], *second.ravel()])
        panel.fill_between(*line.T[:3], color=BLUE, alpha=0.13, linewidth=0, label="90 % interval")
        for (what, kind), colour in zip(copies.items(), (GREEN, BLUE), strict=False):
            middles, _, _, truth = zip(*kind, strict=True)
            panel.plot(middles, truth, "o", color=colour, markersize=4, label=f"copies of {what}")
        if len(second):
            look: Any = {"color": VERMILION, "markersize": 6, "markerfacecolor": "none"}
            panel.plot(*second.T, "D", **look, label="unlabelled scans")
        panel.set(xlabel="expected Dice", ylabel="Dice")
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2, handletextpad=0.4)
        return _svg(figure)


def _diagonal(panel: Axes, values: Sequence[float]) -> None:
    """Draw where both axes are equal, over the range of the values."""
    low, high = max(min(values) - 0.03, 0), min(max(values) + 0.03, 1)
    panel.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    panel.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _svg(figure: Figure) -> bytes:
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    return stream.getvalue().replace("'DejaVu Sans', sans-serif", FONT).encode()
