"""The whole way on painted heads: dataset, draft of a label, group, participant, comparison.

``python -m singlestrip_bids.demo OUT``; what is finished in OUT is not repeated.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from .. import cli
from ..bids.derivatives import Derivatives, sidecar_path
from ..bids.scans import find_scans
from ..config import method_for
from ..draft import PAGE, draft_path
from ..errors import SingleStripError
from ..image import nifti
from ..image.grid import Grid, conform, conform_image
from ..image.masks import dice
from ..machine import files
from ..report.figures import sheet
from .dataset import write_dataset

GRID = Grid(voxel_size=1.5, size=8, multiple=1)  # of the picture; it grows with the field of view
CAPTION = 16  # pixels above each scan
LABEL = "label"


@dataclass(frozen=True)
class Compared:
    """A scan: its name, its contrast or `LABEL`, the Dice of its mask, and a picture (JPEG)."""

    name: str
    kind: str
    dice: float
    expected: float
    picture: bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m singlestrip_bids.demo",
        description="Paint heads, draft and correct one label, mask all, compare with the truth.",
    )
    parser.add_argument("folder", type=Path, metavar="OUT", help="gets dataset, masks and picture")
    parser.add_argument("--subjects", type=int, default=10, metavar="N", help="heads, 2 or more")
    about = "settings of the method, as of the app (default: steps=100)"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=about)
    args = parser.parse_args(argv)
    settings = ["steps=100", *args.set]
    bids_dir, out, picture = (args.folder / name for name in ("bids", "singlestrip", "masks.jpg"))
    call = [str(bids_dir), str(out), "group"]
    training = [*call, "participant", "--preset", "quick", "--set", *settings]
    try:
        method_for("quick", settings)
        _paint(bids_dir, max(args.subjects, 2))
        if not (bids_dir / "derivatives").exists():
            if code := _run([*call, "--draft-label", "--label-subject", "01"]):
                return code
            _correct(bids_dir, out)
        if code := _run(training):
            return code
        rows = compare(bids_dir, out)
        files.write_bytes(picture, draw(rows))
    except SingleStripError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\n{table(rows)}\n\nReport: {out / 'group.html'}")
    print(f"Picture: {picture} (orange: mask, blue: truth)")
    return 0


def _run(call: Sequence[str]) -> int:
    """Say a command and run it; return its exit code."""
    print(f"singlestrip-bids {' '.join(call)}", flush=True)
    return cli.main(call)


def _correct(bids_dir: Path, out: Path) -> None:
    """Put the truth where a person puts the corrected draft, and say how good the draft was."""
    label = bids_dir.with_name("bids-label")
    (truth,) = label.rglob("*_mask.nii.gz")
    (scan,) = (bids_dir / "sub-01").rglob("*.nii.gz")
    image, draft = nifti.load(scan), draft_path(Derivatives(out), truth.name)
    masks = [nifti.load_mask(path, image) for path in (draft, truth)]
    print(f"The draft has a Dice of {dice(*masks):.3f} with the truth, which takes its place now.")
    print(f"To correct a draft yourself: {out / PAGE}", flush=True)
    copy = shutil.copytree(label, bids_dir.with_name(".label"), dirs_exist_ok=True)
    copy.rename(bids_dir / "derivatives")  # whole or not at all


def _paint(bids_dir: Path, subjects: int) -> None:
    """Make the dataset without its label, whole or not at all, unless it is there."""
    making = bids_dir.with_name(".unfinished")
    if not bids_dir.exists():
        print(f"Painting {subjects} heads in {bids_dir} ...", flush=True)
        shutil.rmtree(making, ignore_errors=True)
        write_dataset(making / "bids", subjects)
        (making / "bids/derivatives").rename(making / "bids-label")
        for name in ("bids-label", "bids-truth", "bids"):
            (making / name).rename(bids_dir.with_name(name))
        making.rmdir()


def compare(bids_dir: Path, out: Path) -> list[Compared]:
    """Compare each mask with the truth, that of the labelled scan with its label."""
    rows = []
    for scan in find_scans(bids_dir):
        path = Derivatives(out).mask(scan)
        known = bids_dir / "derivatives", bids_dir.with_name("bids-truth")
        (truth,) = (found for folder in known for found in folder.rglob(path.name))
        kind = LABEL if truth.is_relative_to(bids_dir) else scan.suffix
        image = nifti.load(scan.path)
        masks = [nifti.load_mask(one, image) for one in (path, truth)]
        shown = [conform(mask, image.affine, GRID).data > 0.5 for mask in masks]
        picture = sheet(conform_image(image, GRID).data, shown, GRID.voxel_size)
        expected = files.read_json(sidecar_path(path))["ExpectedDice"]
        rows.append(Compared(scan.name, kind, dice(*masks), expected, picture))
    return rows


def table(rows: Sequence[Compared]) -> str:
    """Write a line for each scan without a label, and their means by contrast."""
    rows = [row for row in rows if row.kind != LABEL]
    groups = {row.name: [row] for row in rows}
    for kind in sorted({row.kind for row in rows}):
        groups[f"mean of {kind}"] = [row for row in rows if row.kind == kind]
    lines = [f"{'scan':<12} {'Dice':>5} {'expected':>9}"]
    for name, group in {**groups, "mean of all": rows}.items():
        found = statistics.mean(row.dice for row in group)
        expected = statistics.mean(row.expected for row in group)
        lines.append(f"{name:<12} {found:5.3f} {expected:9.3f}")
    return "\n".join(lines)


def draw(rows: Sequence[Compared]) -> bytes:
    """Put the pictures of all scans on one, two beside each other: a JPEG."""
    pictures = [Image.open(io.BytesIO(row.picture)) for row in rows]
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures) + CAPTION
    whole = Image.new("RGB", (2 * width, (len(rows) + 1) // 2 * height))
    pen = ImageDraw.Draw(whole)
    for place, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        left, top = place % 2 * width, place // 2 * height
        whole.paste(picture, (left, top + CAPTION))
        name = f"{row.name}, the label" if row.kind == LABEL else row.name
        pen.text((left + 4, top + 2), f"{name}: Dice {row.dice:.3f}", fill="white")
    stream = io.BytesIO()
    whole.save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
