"""Draw brain masks over their scans, one row of slices a scan, to look at them.

Usage: ``python -m benchmarks.mosaic BIDS_DIR DERIVATIVES OUT.png [--references DIR]``. Predictions
are red, references (of the same file name) are green. Scans that are not defaced show faces: keep
such pictures to yourself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.score import SUFFIX
from singlestrip_bids.machine.files import read_json

FRACTIONS = (0.3, 0.5, 0.7)


def pairs(bids_dir: Path, derivatives: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield the name, the scan and the mask of every prediction, found through its sidecar."""
    for mask in sorted(derivatives.rglob(f"sub-*{SUFFIX}")):
        sidecar = read_json(mask.with_name(mask.name.replace(".nii.gz", ".json")))
        relative = sidecar["SpatialReference"].split(":", 2)[2]
        yield Path(relative).name.removesuffix(".nii.gz"), bids_dir / relative, mask


def volume(path: Path) -> nib.Nifti1Image:
    """Read an image, of 4D the mean over time, in the closest canonical orientation."""
    image = nib.load(path)
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    if data.ndim > 3:
        data = data.reshape(*data.shape[:3], -1).mean(-1)
    return nib.as_closest_canonical(nib.Nifti1Image(data, image.affine))


def show(
    axis: Axes, scan: nib.Nifti1Image, masks: Sequence[np.ndarray], plane: int, at: float
) -> None:
    """Draw one slice with the outlines of the masks."""
    found = np.argwhere(masks[0])
    low, high = (
        (found.min(0), found.max(0)) if len(found) else (np.zeros(3), np.array(scan.shape) - 1)
    )
    index = round(low[plane] + at * (high[plane] - low[plane]))
    sizes = np.delete(np.array(scan.header.get_zooms()[:3]), plane)
    data = np.take(scan.dataobj, index, axis=plane).T
    top = np.percentile(np.asarray(scan.dataobj), 99.5)
    axis.imshow(data, cmap="gray", origin="lower", aspect=sizes[1] / sizes[0], vmin=0, vmax=top)
    for mask, colour in zip(masks, ("red", "lime"), strict=False):
        outline = np.take(mask, index, axis=plane).T
        if outline.any() and not outline.all():
            axis.contour(outline, [0.5], colors=colour, linewidths=0.7)
    axis.axis("off")


def draw(bids_dir: Path, derivatives: Path, out: Path, references: Path | None = None) -> None:
    """Write the picture: sagittal, coronal and axial slices at three depths of each mask."""
    mpl.use("Agg")
    rows = list(pairs(bids_dir, derivatives))
    figure, axes = plt.subplots(len(rows), 9, figsize=(13.5, 1.6 * len(rows)), squeeze=False)
    for line, (name, scan, mask) in zip(axes, rows, strict=True):
        image = volume(scan)
        masks = [np.asarray(volume(mask).dataobj) > 0.5]
        known = list(references.rglob(mask.name)) if references else []
        masks += [np.asarray(volume(path).dataobj) > 0.5 for path in known[:1]]
        for column, axis in enumerate(line):
            show(axis, image, masks, column // 3, FRACTIONS[column % 3])
        line[0].set_title(name, fontsize=7, loc="left")
    figure.tight_layout(pad=0.2)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description="Draw brain masks over their scans.")
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--references", type=Path, help="folder with reference masks")
    args = parser.parse_args(argv)
    draw(args.bids_dir, args.derivatives, args.out, args.references)
    return 0


if __name__ == "__main__":
    sys.exit(main())
