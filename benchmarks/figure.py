"""Draw the method with the pictures of a finished demonstration, for the README.

Usage: ``python -m benchmarks.figure DEMO OUT.png``, after ``python -m singlestrip_bids.demo
DEMO``. All heads are painted: no person was scanned.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.mosaic import pairs
from benchmarks.mosaic import volume as canonical
from singlestrip_bids import load_model
from singlestrip_bids.bids.derivatives import Derivatives, sidecar_path
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.config import PRESETS, SynthesisConfig
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image.grid import conform
from singlestrip_bids.machine.files import read_json, read_tsv
from singlestrip_bids.method import model
from singlestrip_bids.method.classes import CLASSES, Source
from singlestrip_bids.method.pseudolabels import masks_of
from singlestrip_bids.method.synthesis import training_batch
from singlestrip_bids.method.trainer import Trainer
from singlestrip_bids.report.figures import OUTLINE, SECOND

WIDTH, HEIGHT, DPI = 10.0, 6.0, 170  # inches, pixels an inch
GROUND, INK, SOFT, LINE = "#14181d", "#f0f3f6", "#aab4bf", "#6b7785"
SPAN_MM, PIXELS = 215.0, 200  # of a picture
EDGE = 1.72, 1.28  # inches, of the pictures of both rows
TOP, BOTTOM = 3.55, 1.28  # lower edges of these pictures
HEADINGS = 5.7, 3.02
Outline = tuple[NDArray, str]


class Sheet:
    """A dark sheet that is as legible on a white page as on a black one; lengths in inches."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="none")
        self.page = self.figure.add_axes((0, 0, 1, 1), frameon=False)
        self.page.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), xticks=[], yticks=[])
        box = FancyBboxPatch(
            (0.13, 0.13), WIDTH - 0.26, HEIGHT - 0.26, "round,pad=0.1", fc=GROUND, ec="none"
        )
        self.page.add_patch(box)

    def text(self, x: float, y: float, words: str, size: float = 9, colour: str = SOFT) -> None:
        """Write words, their top left corner at a place."""
        self.page.text(x, y, words, size=size, color=colour, va="top", linespacing=1.35)

    def heading(self, x: float, y: float, number: int, words: str, below: str) -> None:
        """Write the number and name of a step, and a line about it."""
        self.page.text(
            *(x, y, f"{number}  {words}"), size=10.5, color=INK, va="top", weight="bold"
        )
        self.text(x, y - 0.24, below, 8)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Point from one step to the next."""
        arrow = FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color=SOFT, lw=1.6
        )
        self.page.add_patch(arrow)

    def picture(
        self,
        place: tuple[float, float, float],
        data: NDArray,
        outlines: Sequence[Outline] = (),
        colours: str = "gray",
    ) -> None:
        """Show a slice in a square: left, bottom, edge."""
        left, bottom, edge = place
        size = (left / WIDTH, bottom / HEIGHT, edge / WIDTH, edge / HEIGHT)
        axes = self.figure.add_axes(size)
        axes.imshow(data, cmap=colours, origin="lower", vmin=0, vmax=1, interpolation="bilinear")
        for mask, colour in outlines:
            axes.contour(mask, [0.5], colors=colour, linewidths=1.3)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=LINE, linewidth=0.6)

    def network(self, left: float, bottom: float) -> None:
        """Draw a U of blocks, 1.2 wide and 1 high, with its skip connections."""
        heights = (1.0, 0.72, 0.46, 0.26, 0.46, 0.72, 1.0)
        for place, height in enumerate(heights):
            x, y = left + 0.18 * place, bottom + (1 - height) / 2
            self.page.add_patch(Rectangle((x, y), 0.11, height, fc="#2f7fb5", ec=SECOND, lw=0.8))
        for place, height in enumerate(heights[:3]):
            ends = left + 0.18 * place + 0.11, left + 0.18 * (6 - place)
            level = bottom + (1 + height) / 2 - 0.05
            self.page.plot(ends, (level, level), color=LINE, lw=0.8, ls=(0, (3, 2)))


def cut(
    data: NDArray, masks: Sequence[NDArray], sizes: Sequence[float], plane: int
) -> list[NDArray]:
    """Cut the middle slice of the first mask, a square around it; axes are closest to RAS.

    Parameters
    ----------
    data : ndarray
        (X, Y, Z).
    masks : sequence of ndarray
        Of the same shape.
    sizes : sequence of float
        Edges of a voxel in mm.
    plane : int
        Axis across the slice.

    Returns
    -------
    list of ndarray
        Of the data and of each mask, (PIXELS, PIXELS), the second axis of the slice upwards.
    """
    ends = np.argwhere(masks[0])
    middle = (ends.min(0) + ends.max(0)) / 2
    across, up = (axis for axis in range(3) if axis != plane)
    steps = (np.arange(PIXELS) - (PIXELS - 1) / 2) * SPAN_MM / PIXELS
    places = np.empty((3, PIXELS, PIXELS))
    places[plane] = round(middle[plane])
    places[across] = middle[across] + steps[None, :] / sizes[across]
    places[up] = middle[up] + steps[:, None] / sizes[up]
    volumes = (data, *(mask.astype(np.float32) for mask in masks))
    return [ndimage.map_coordinates(one, places, order=1) for one in volumes]


def final(scan: Path, mask: Path, plane: int) -> list[NDArray]:
    """Cut a slice of a scan and of its mask, on the scan's own grid."""
    image, found = canonical(scan), canonical(mask)
    brain = np.asarray(found.dataobj) > 0.5
    data = np.asarray(image.dataobj)
    data = np.clip(data / np.percentile(data[brain], 99.5), 0, 1)
    return cut(data, [brain], image.header.get_zooms()[:3], plane)


def examples(
    sources: Sequence[Source], trainer: Trainer, ranges: SynthesisConfig, count: int
) -> list[list[NDArray]]:
    """Make training images as the app does, and cut a slice of each and of its target."""
    found = []
    for number in range(count):
        chosen = [sources[number % len(sources)]]
        generator = trainer.runtime.generator(7, number)
        image, target = training_batch(generator, chosen, trainer.method.size, ranges)
        brain = target[0, 0].numpy() > 0.5
        sizes = [trainer.frame.grid.voxel_size] * 3
        found.append(cut(image[0, 0].numpy(), [brain], sizes, (0, 2, 1)[number % 3]))
    return found


def start(out: Path) -> Trainer:
    """Find what a demonstration has left."""
    trained = load_model(Derivatives(out).model_dir, device="cpu")
    grid, network = trained.frame.grid, trained.network.config
    method = replace(PRESETS["quick"], size=grid.size, network=network)
    work = trained.folder / "work"
    return Trainer(trained.folder, work, method, trained.frame, trained.runtime)


def label_source(trainer: Trainer, scan: Scan, mask: Path) -> Source:
    """Fit the classes of the labelled scan, as the group level does."""
    image = nib.load(mask)
    placed = conform(np.asarray(image.dataobj), image.affine, trainer.frame.grid)
    return trainer.source(trainer.conform(scan), placed.data)


def draw_first_row(sheet: Sheet, trainer: Trainer, label: Source, scan: Path, mask: Path) -> None:
    """From the label to the first network."""
    edge, small = EDGE[0], 0.81
    sheet.heading(0.4, HEADINGS[0], 1, "One label", "a reader's mask of one scan")
    data, brain = final(scan, mask, 0)
    sheet.picture((0.4, TOP, edge), data, [(brain, OUTLINE)])
    sheet.arrow((2.2, TOP + edge / 2), (2.52, TOP + edge / 2))
    sheet.heading(2.6, HEADINGS[0], 2, "Class map", "intensity mixtures, in and out")
    classes = label.classes[0, 0].numpy() / (CLASSES - 1)
    inside = label.mask[0, 0].numpy() > 0.5
    sizes = [trainer.frame.grid.voxel_size] * 3
    sheet.picture((2.6, TOP, edge), cut(classes, [inside], sizes, 0)[0], (), "viridis")
    sheet.arrow((4.4, TOP + edge / 2), (4.72, TOP + edge / 2))
    sheet.heading(4.8, HEADINGS[0], 3, "Synthetic images", "random shape, contrast and artefacts")
    made = examples([label], trainer, trainer.method.synthesis, 6)
    for number, (data, target) in enumerate(made):
        row, column = divmod(number, 3)
        place = (4.8 + column * 0.91, TOP + (1 - row) * 0.91, small)
        sheet.picture(place, data, [(target, OUTLINE)])
    sheet.arrow((7.6, TOP + edge / 2), (7.92, TOP + edge / 2))
    sheet.heading(8.1, HEADINGS[0], 4, "First network", "a 3D U-Net (SL-1)")
    sheet.network(8.12, TOP + 0.42)


def draw_second_row(
    sheet: Sheet, trainer: Trainer, ranked: Sequence[tuple[Scan, dict[str, str]]]
) -> list[Source]:
    """Pseudo-labels and their ranking; return sources of those that are shown."""
    sheet.heading(
        0.4, HEADINGS[1], 5, "Pseudo-labels, ranked", "two guesses of every unlabelled scan"
    )
    kept, edge = [], EDGE[1]
    for place, (scan, row) in enumerate(ranked):
        conformed, masks = trainer.conform(scan), masks_of(trainer, scan, "round-1")
        sizes = [trainer.frame.grid.voxel_size] * 3
        drawn = cut(conformed.data, [masks["mask"], masks["propagated"]], sizes, (2, 0, 1)[place])
        left = 0.4 + place * (edge + 0.06)
        outlines = [(drawn[2], SECOND), (drawn[1], OUTLINE)]
        sheet.picture((left, BOTTOM, edge), drawn[0], outlines)
        shape, agreement = (f"{float(row[key]):.3f}"[1:] for key in ("score", "agreement"))
        sheet.text(left, BOTTOM - 0.06, f"shape {shape}\nagreement {agreement}", 8)
        kept.append(trainer.source(conformed, masks["mask"]))
    for line, words in enumerate(
        (
            "Blue: the label, propagated. Orange: its consensus with SL-1's mask.",
            "Shape: overlap with the mask as an autoencoder rebuilds it.",
        )
    ):
        sheet.text(0.4, BOTTOM - 0.5 - 0.18 * line, words, 7.5)
    return kept


def draw_end(
    sheet: Sheet, trainer: Trainer, kept: list[Source], best: Sequence[tuple[Path, Path]]
) -> None:
    """Fine-tuning and the final masks."""
    edge, middle = EDGE[1], BOTTOM + EDGE[1] / 2
    sheet.arrow((4.42, middle), (4.72, middle))
    sheet.heading(4.8, HEADINGS[1], 6, "Fine-tuned", "on the best, intensities remapped")
    made = examples(kept, trainer, trainer.method.finetuning_synthesis, 3)
    for number, (data, target) in enumerate(made):
        sheet.picture((4.8, BOTTOM + 0.44 * (2 - number), 0.4), data, [(target, OUTLINE)])
    sheet.network(5.32, middle - 0.5)
    sheet.text(4.8, BOTTOM - 0.06, "Used unless a guard finds\nit worse than SL-1.", 8)
    sheet.arrow((6.62, middle), (6.9, middle))
    sheet.heading(6.98, HEADINGS[1], 7, "Masks", "each with the Dice to be expected")
    for place, (scan, mask) in enumerate(best):
        fields = read_json(sidecar_path(mask))
        data, brain = final(scan, mask, (0, 2)[place])
        left = 6.98 + place * (edge + 0.06)
        sheet.picture((left, BOTTOM, edge), data, [(brain, OUTLINE)])
        expected = f"{fields['ExpectedDice']:.3f}"[1:]
        low, high = (f"{end:.3f}"[1:] for end in fields["ExpectedDiceInterval"])
        sheet.text(left, BOTTOM - 0.06, expected, 10.5, INK)
        sheet.text(left, BOTTOM - 0.27, f"90 %: {low} to {high}", 8)


def draw(bids_dir: Path, masks: Path, out: Path) -> None:
    """Write the figure of a dataset and its masks."""
    trainer = start(masks)
    scans = {scan.relative: scan for scan in find_scans(bids_dir, ("T1w", "T2w"), ())}
    card = read_json(trainer.folder / model.CARD)
    origin = scans[card["label"][0]["scan"]]
    truth = next(bids_dir.rglob(card["label"][0]["mask"]))
    target = label_source(trainer, origin, truth)
    rows = sorted(read_tsv(trainer.folder / "scores.tsv"), key=_rank, reverse=True)
    shown = [rows[0], rows[len(rows) // 2], rows[-1]]
    sheet = Sheet()
    draw_first_row(sheet, trainer, target, origin.path, truth)
    level = (HEADINGS[1] + TOP) / 2
    sheet.page.plot((8.7, 8.7, 1.0), (TOP + 0.3, level, level), color=SOFT, lw=1.6)
    sheet.arrow((1.0, level), (1.0, HEADINGS[1]))
    kept = draw_second_row(sheet, trainer, [(scans[row["scan"]], row) for row in shown])
    last = {name.rsplit("_")[-1]: (scan, mask) for name, scan, mask in pairs(bids_dir, masks)}
    draw_end(sheet, trainer, kept, [last["T1w"], last["T2w"]])
    stream = io.BytesIO()
    sheet.figure.savefig(stream, dpi=DPI)
    picture = Image.open(stream).quantize(
        256, Image.Quantize.FASTOCTREE
    )  # few colours: a small file
    picture.save(out, optimize=True)


def _rank(row: dict[str, str]) -> float:
    return float(row["score"]) + float(row["agreement"])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description="Draw the method from a demonstration.")
    parser.add_argument("demo", type=Path, help="folder of python -m singlestrip_bids.demo")
    parser.add_argument("out", type=Path, help="PNG to write")
    args = parser.parse_args(argv)
    try:
        draw(args.demo / "bids", args.demo / "singlestrip", args.out)
    except SingleStripError as error:
        print(f"figure: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
