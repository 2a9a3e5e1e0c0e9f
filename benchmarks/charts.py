"""Draw the figures of the docs from the results that the benchmarks left.

Usage: ``python -m benchmarks.charts [benchmarks/results] [docs/figures]``. Colours are those of
Okabe & Ito, which colour-blind people can tell apart; every set has a marker of its own, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
SKY, AMBER, BLACK = "#56B4E9", "#E69F00", "#000000"
UNDERCUT = "sub-21"  # of the real heads: its references leave out part of the brain
STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (GREY, "v"), (SKY, "P"),
          (AMBER, "X"), (BLACK, "*"))  # fmt: skip


def read(results: Path, name: str) -> dict[str, Any]:
    """Read the newest results of a name, such as ``heads-peers``."""
    newest = sorted(results.glob(f"????-??-??-{name}.json"))[-1]
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


def ageing(results: Path) -> Figure:
    """Draw the heads of one convention, a point for each scan."""
    rows = read(results, "ageing-fine")["rows"]
    rows += [row for row in read(results, "ageing")["rows"] if not row["arm"].startswith("SSL")]
    sets = {
        "SSL": "singlestrip-bids quick, one label",
        "SSL: network": "its network",
        "SSL: label": "its propagated label",
        "ants-2mm": "ANTs 2 mm, the same label",
        "deepbet": "deepbet, 568 labels",
        "hd-bet": "HD-BET",
    }
    groups = ("T1w", "FLAIR")
    figure, axes = _figure(8, 3.2)
    for place, (arm, label) in enumerate(sets.items()):
        _strip(axes, [[r["dice"] for r in rows if (r["arm"], r["contrast"]) == (arm, group)]
                      for group in groups], place, len(sets), label)  # fmt: skip
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel("Dice with the reference; the bar is the mean")
    _legend(axes)
    return figure


def heads(results: Path) -> Figure:
    """Draw the real heads, by contrast, those with undercutting references apart."""
    ours = read(results, "heads")["rows"]
    others = read(results, "heads-peers")["rows"]
    scored = {row["scan"] for row in others}
    arms = {"SSL": "singlestrip-bids quick, one label"}
    tools = {
        "ants-2mm": "ANTs 2 mm, the same label",
        "deepbet": "deepbet, 568 labels",
        "niimath": "niimath, no label",
    }
    sets: dict[str, Rows] = {
        label: [row for row in ours if row["arm"] == arm and row["scan"] in scored]
        for arm, label in arms.items()
    }
    sets |= {label: [r for r in others if r["tool"] == tool] for tool, label in tools.items()}
    groups = ("T1w", "T2w", "FLAIR", UNDERCUT)
    figure, axes = _figure(8, 3.4)
    for place, (label, rows) in enumerate(sets.items()):
        _strip(axes, [[r["dice"] for r in rows if _group(r) == g] for g in groups],
               place, len(sets), label)  # fmt: skip
    axes.set_yticks(range(len(groups)), [*groups[:-1], f"{UNDERCUT}, all"])
    axes.invert_yaxis()
    axes.set_xlabel("Dice with the reference; the bar is the mean")
    _legend(axes)
    return figure


def _group(row: dict[str, Any]) -> str:
    return UNDERCUT if row["scan"].startswith(UNDERCUT) else row["contrast"]


def cohorts(results: Path) -> Figure:
    """Draw the paper's arms on the rendered cohorts, a point for each scan."""
    found = read(results, "rendered-paper")
    arms = [arm for arm in found["config"]["arms"] if any(r["arm"] == arm for r in found["rows"])]
    groups = sorted({row["cohort"] for row in found["rows"]})
    figure, axes = _figure(8, 4.4)
    for place, arm in enumerate(arms):
        rows = [row for row in found["rows"] if row["arm"] == arm]
        _strip(axes, [[r["dice"] or 0.0 for r in rows if r["cohort"] == g] for g in groups],
               place, len(arms), arm)  # fmt: skip
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel("Dice of the network's mask; the bar is the mean")
    _legend(axes)
    return figure


def judgements(results: Path) -> Figure:
    """Draw what judges say of masks against the true Dice."""
    sets = {
        "SL-1": read(results, "judgements-sl1-contrasts")["rows"],
        "self-trained": read(results, "judgements-consensus-contrasts")["rows"],
    }
    names = {
        "autoencoder": "autoencoder's score",
        "strong": "agreement in strong contrasts",
        "expected": "expected Dice",
    }
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3, sharey=True), names.items(), strict=True):
        _plain(axes)
        for (colour, marker), (label, rows) in zip(STYLES[1::-1], sets.items(), strict=True):
            said, truth = [row[name] for row in rows], [row["dice"] for row in rows]
            axes.plot(said, truth, marker, color=colour, markersize=3.5, alpha=0.6, label=label)
        axes.plot([0.6, 1], [0.6, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel=title, xlim=(0.65, 1), ylim=(0.65, 1))
    figure.axes[0].set_ylabel("true Dice")
    _legend(figure.axes[0], "upper left")
    return figure


def budget(results: Path) -> Figure:
    """Draw what more minutes buy, beside tools that train nothing."""
    names = ("ageing-ten-minutes", "ageing-fine", "ageing-thirty-minutes")
    runs = [[r for r in read(results, name)["rows"] if r["arm"] == "SSL"] for name in names]
    tools = {"ants-2mm": ("ANTs", "--"), "deepbet": ("deepbet", ":")}
    others = read(results, "ageing")["rows"]
    figure, axes = _figure(6.4, 2.8)
    for (colour, marker), contrast in zip(STYLES, ("T1w", "FLAIR"), strict=False):
        means = [_mean(rows, contrast) for rows in runs]
        minutes = [rows[0]["minutes"] for rows in runs]
        axes.plot(minutes, means, marker=marker, color=colour, label=contrast)
        for tool, (name, dashes) in tools.items():
            level = _mean([row for row in others if row["arm"] == tool], contrast)
            label = f"{contrast}, {name}"
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=0.9, label=label)
    axes.set(xlabel="minutes, training and masking 24 scans", ylabel="mean Dice", xlim=(0, None))
    _legend(axes)
    return figure


def _mean(rows: Rows, contrast: str) -> float:
    return statistics.mean(row["dice"] for row in rows if row["contrast"] == contrast)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _strip(
    axes: Axes, groups: Iterable[Sequence[float]], place: int, count: int, label: str
) -> None:
    """Draw points of one set in every row, and a bar at their mean."""
    colour, marker = STYLES[place]
    for row, values in enumerate(groups):
        height = row + 0.72 * ((place + 0.5) / count - 0.5)
        axes.plot(values, [height] * len(values), marker, color=colour, markersize=4.5,
                  alpha=0.55, markeredgewidth=0)  # fmt: skip
        if values:
            axes.plot([statistics.mean(values)] * 2, [height - 0.06, height + 0.06], "-",
                      color=colour, linewidth=3)  # fmt: skip
    axes.plot([], [], marker, color=colour, label=label)


def _legend(axes: Axes, place: str | None = None) -> None:
    """Name every set once, beside the axes unless a place is given."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    where: dict[str, Any] = (
        {"loc": place} if place else {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    )
    axes.legend(once.values(), once.keys(), frameon=False, fontsize=9, **where)


FIGURES: dict[str, Callable[[Path], Figure]] = {
    "ageing": ageing,
    "budget": budget,
    "heads": heads,
    "cohorts": cohorts,
    "judgements": judgements,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all figures whose results are there."""
    parser = argparse.ArgumentParser(description="Draw the figures of the docs.")
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/figures"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "singlestrip-bids", "svg.fonttype": "none"})
    for name, draw in FIGURES.items():
        try:
            figure = draw(args.results)
        except IndexError:
            print(f"{name}: no results in {args.results}")
            continue
        figure.savefig(args.out / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        print(args.out / f"{name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
