"""Score predicted brain masks against reference masks.

Usage: ``python -m benchmarks.score DERIVATIVES REFERENCES [--json FILE]``. The layout is read from
file names alone, so both folders may be any BIDS derivative, or a folder of them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from numpy.typing import ArrayLike
from scipy import ndimage

from singlestrip_bids.image.masks import Mask, box, dice

SUFFIX = "_desc-brain_mask.nii.gz"
MISSING = "missing"


@dataclass(frozen=True)
class Row:
    """The score of one scan.

    Attributes
    ----------
    scan : str
        Name of the reference without its ending.
    contrast : str
        The ``space-`` entity; ``T1w`` without one.
    dice : float or None
        Dice coefficient; None without a comparable prediction.
    hd95_mm : float or None
        HD95 in mm, as of `hausdorff95`; infinite if one mask is empty.
    expected, low, high : float or None
        ``ExpectedDice`` and the ends of its interval in the prediction's sidecar, if it has them.
    quality, seconds : float or None
        ``QualityScore`` and ``ComputeSeconds``, likewise.
    error : str or None
        Why there is no score.
    """

    scan: str
    contrast: str
    dice: float | None = None
    hd95_mm: float | None = None
    expected: float | None = None
    low: float | None = None
    high: float | None = None
    quality: float | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def held(self) -> bool | None:
        """Whether the Dice lies within the expected interval, if there are both."""
        if self.dice is None or self.low is None or self.high is None:
            return None
        return self.low <= self.dice <= self.high


def score(derivatives: Path, references: Path) -> list[Row]:
    """Compare every reference mask with its prediction.

    A prediction is the file at the same path below `derivatives`; failing that, the only file of
    the same name there.

    Parameters
    ----------
    derivatives : Path
        Folder with the predicted masks.
    references : Path
        Folder with the reference masks.

    Returns
    -------
    list of Row
        One for each reference, in order of their paths.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or `references` holds no brain mask.
    """
    for folder in (derivatives, references):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
    paths = sorted(references.rglob(f"*{SUFFIX}"))
    if not paths:
        raise FileNotFoundError(f"{references} holds no file named *{SUFFIX}")
    return [_row(path, derivatives, references) for path in paths]


def hausdorff95(a: ArrayLike, b: ArrayLike, voxel_size: Sequence[float]) -> float:
    """Return HD95 in mm: the larger of both directed 95th percentiles of surface distances.

    The surface of a mask is its voxels with at least one of the six face neighbours outside the
    mask or outside the volume. A directed percentile (linear interpolation) is that over the
    surface voxels of one mask, each with its distance to the closest surface voxel of the other.

    Parameters
    ----------
    a, b : array_like
        Three-dimensional masks of the same shape; nonzero is inside.
    voxel_size : sequence of float
        Edge lengths of a voxel in mm, one an axis.

    Returns
    -------
    float
        Distance in mm: 0 if both masks are empty, infinity if one is.

    Raises
    ------
    ValueError
        If the shapes differ, or `voxel_size` does not hold one positive length an axis.

    References
    ----------
    Huttenlocher, D. P. et al. (1993). Comparing images using the Hausdorff distance. IEEE TPAMI
    15(9), 850-863. The ranked (here: 95 %) form of its Section III.

    Examples
    --------
    >>> line, shifted = np.zeros((2, 5, 5, 5))
    >>> line[:, 1, 1] = shifted[:, 3, 1] = 1
    >>> hausdorff95(line, shifted, (1, 1.5, 1))
    3.0
    """
    first, second = np.asarray(a) != 0, np.asarray(b) != 0
    if first.shape != second.shape:
        raise ValueError(f"masks have different shapes, {first.shape} and {second.shape}")
    spacing = [float(size) for size in voxel_size]
    if len(spacing) != first.ndim or not all(0 < size < np.inf for size in spacing):
        raise ValueError(
            f"voxel_size {spacing} is not one positive length for each of {first.ndim} axes"
        )
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else float("inf")
    place = box(first | second)
    one, two = _surface(first[place]), _surface(second[place])
    to_two = ndimage.distance_transform_edt(~two, sampling=spacing)[one]
    to_one = ndimage.distance_transform_edt(~one, sampling=spacing)[two]
    return float(max(np.percentile(distances, 95) for distances in (to_two, to_one)))


def _surface(mask: Mask) -> Mask:
    """Return the mask voxels with a face neighbour outside the mask or the array."""
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def table(rows: Sequence[Row]) -> str:
    """Return the scores as text: one line a scan, then the means.

    Parameters
    ----------
    rows : sequence of Row
        As returned by `score`.

    Returns
    -------
    str
        Lines of fixed-width columns, without a final line break.
    """
    width = max([len("mean overall (n = 99)"), *(len(row.scan) for row in rows)])
    lines = [f"{'scan':<{width}}  {'Dice':>6}  {'HD95 mm':>7}  {'expected':>8}  {'seconds':>7}"]
    lines += [
        f"{row.scan:<{width}}  {row.error}"
        if row.error
        else _line(row.scan, width, row.dice, row.hd95_mm, row.expected, row.seconds)
        for row in rows
    ]
    lines.append("-" * len(lines[0]))
    groups = {name: [row for row in rows if row.contrast == name] for name in _contrasts(rows)}
    for name, group in {**groups, "overall": rows}.items():
        done = [row for row in group if row.error is None]
        keys = ("dice", "hd95_mm", "expected", "seconds")
        means = [_mean([getattr(row, key) for row in done]) for key in keys]
        lines.append(_line(f"mean {name} (n = {len(done)})", width, *means))
    if held := [row.held for row in rows if row.held is not None]:
        lines.append(f"Dice within its expected interval: {sum(held)} of {len(held)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Command line without the program's name.

    Returns
    -------
    int
        0 if every reference was scored, else 1.
    """
    parser = argparse.ArgumentParser(description="Score brain masks against references.")
    parser.add_argument("derivatives", type=Path, help="folder with the predicted masks")
    parser.add_argument("references", type=Path, help="folder with the reference masks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    args = parser.parse_args(argv)
    try:
        rows = score(args.derivatives, args.references)
    except FileNotFoundError as error:
        print(f"score: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps([jsonable(row) for row in rows], indent=2) + "\n")
    return int(any(row.error for row in rows))


def _row(reference: Path, derivatives: Path, references: Path) -> Row:
    """Score one reference; whatever hinders that becomes the row's error."""
    scan = reference.name.removesuffix(SUFFIX)
    space = re.search(r"_space-([A-Za-z0-9]+)", scan)
    contrast = space.group(1) if space else "T1w"
    try:
        path = _prediction(reference.relative_to(references), derivatives, references)
        truth, affine = _load(reference)
        found, found_affine = _load(path)
        _check_grids(truth, affine, found, found_affine)
        said = _sidecar(path)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        return Row(scan, contrast, error=str(error))
    low, high = said.get("ExpectedDiceInterval", (None, None))
    return Row(
        scan,
        contrast,
        dice(found, truth),
        hausdorff95(found, truth, voxel_sizes(affine)),
        said.get("ExpectedDice"),
        low,
        high,
        said.get("QualityScore"),
        said.get("ComputeSeconds"),
    )


def _prediction(relative: Path, derivatives: Path, references: Path) -> Path:
    """Return the prediction for a reference, or raise ValueError saying why there is none."""
    if (derivatives / relative).is_file():
        return derivatives / relative
    inside = references.resolve()  # a reference below `derivatives` is no prediction
    found = derivatives.rglob(relative.name)
    named = [path for path in found if not path.resolve().is_relative_to(inside)]
    if not named:
        raise ValueError(MISSING)
    if len(named) > 1:
        raise ValueError(f"{len(named)} predictions of this name, none at {relative}")
    return named[0]


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask as booleans (X, Y, Z), and its affine."""
    image = nib.load(path)
    data = np.nan_to_num(np.asanyarray(image.dataobj))
    if data.ndim > 3 and set(data.shape[3:]) == {1}:
        data = data.reshape(data.shape[:3])
    if data.ndim != 3:
        raise ValueError(f"{path} has shape {data.shape}, not that of a volume")
    return data > 0.5, image.affine


def _check_grids(
    truth: np.ndarray, affine: np.ndarray, found: np.ndarray, found_affine: np.ndarray
) -> None:
    """Raise ValueError unless both masks lie on one grid."""
    if truth.shape != found.shape:
        raise ValueError(f"grids differ: shape {found.shape}, reference {truth.shape}")
    # A tenth of a voxel at the far corner is beyond what float32 headers lose.
    corners = np.array([[0, 0, 0, 1], [*truth.shape, 1]]).T
    gap = float(np.abs((affine - found_affine) @ corners).max())
    if gap > 0.1 * float(voxel_sizes(affine).min()):
        raise ValueError(f"grids differ: affines disagree by {gap:.2f} mm")


def _sidecar(mask: Path) -> dict[str, Any]:
    """Return a mask's sidecar, empty if it has none."""
    path = mask.with_name(mask.name.removesuffix(".nii.gz") + ".json")
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _contrasts(rows: Sequence[Row]) -> list[str]:
    """Return the contrasts in order."""
    return sorted({row.contrast for row in rows})


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values there are, None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _line(name: str, width: int, *values: float | None) -> str:
    """Return one line of the table."""
    cells = zip(values, ("6.4f", "7.2f", "8.4f", "7.1f"), (6, 7, 8, 7), strict=True)
    text = [
        f"{'-':>{size}}" if value is None else f"{value:{form}}" for value, form, size in cells
    ]
    return "  ".join([f"{name:<{width}}", *text])


def jsonable(row: Row) -> dict[str, Any]:
    """Return a row as JSON can hold it: an infinite distance becomes the text ``inf``."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(row).items()
    }


if __name__ == "__main__":
    sys.exit(main())
