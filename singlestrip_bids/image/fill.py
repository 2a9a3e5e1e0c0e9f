"""Which voxels of an image hold no data: fill, which stands apart from all others.

Programs write fill where there was nothing to measure: planes, borders, all outside a field of
view. It is neither tissue nor air. What is found here is blended with no other voxel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .masks import Mask, box
from .resampling import Array

SAMPLE = 400_000  # voxels whose values stand for all
BELOW = 0.25  # of the range of the other voxels: fill lies this far below them
ABOVE = 1.0  # or this far above them
LEAST = 1e-4  # of the voxels: fewer disturb nothing
FEW = 8  # values tell nothing
KINDS = 4  # values of fill in one image, at most
TAIL = 4.0  # widths from the 5th to the 95th percentile; what is beyond may be no tissue
COHERENT = 0.5  # correlation of neighbours, above which bright voxels are an object
FACE = 0.5  # of a face of the field of view: fill that covers so much of it lies outside


def find_fill(data: NDArray) -> Mask | None:
    """Find the voxels of an image (X, Y, Z) that hold no data; None if all do.

    Those are: what is not finite; single values far below or above all others; single values that
    fill the corners or faces and lie amid the others; isolated voxels far above or below.
    """
    bad = ~np.isfinite(data) if data.dtype.kind == "f" else None
    fill = bad if bad is not None and bad.any() else None
    for find in (*(_one_value,) * KINDS, _outliers):
        if fill is not None and fill.all():
            break
        found = find(data, fill)
        if found is not None and found.mean() > LEAST:
            fill = found if fill is None else fill | found
    return fill


def _seen(data: NDArray, fill: Mask | None) -> NDArray:
    """Values of voxels here and there, of those that hold data."""
    step = max(data.size // SAMPLE, 1) | 1
    values = data.ravel("K")[::step]
    if fill is None:
        return values
    alike = np.empty_like(data, dtype=bool)  # in the order in which the image lies in memory
    alike[...] = fill
    return values[~alike.ravel("K")[::step]]


def _one_value(data: NDArray, fill: Mask | None) -> Mask | None:
    """Find a value that stands apart, with what interpolation made between it and the others."""
    seen = _seen(data, fill)
    if not len(seen):
        return None
    for value, at_the_edge in ((seen.min(), False), (seen.max(), False), *_edges(data, fill)):
        rest = seen[seen != value]
        if len(rest) < FEW:
            continue
        low, high, width = _range(rest)
        if not width:
            continue
        count, near = len(seen) - len(rest), ABOVE / 2 * width
        # a background of 0 is air, unless there is other air
        air = value >= 0 and np.mean(rest < low + 0.1 * width) < 0.25
        if value < low - BELOW * width and not air:
            return _with_seam(data, value, fill)
        if value > high + ABOVE * width and count > 3 * np.sum(rest > high + near):
            return _with_seam(data, value, fill)
        if at_the_edge and np.mean(rest < value - 0.1 * width) > 0.02:
            return data == value
    return None


def _range(values: NDArray) -> tuple[float, float, float]:
    """Measure where values begin and end, but for one in a thousand, and how wide most lie."""
    low, dark, bright, high = np.percentile(values, (0.1, 1, 99, 99.9)).tolist()
    return low, high, bright - dark


def _with_seam(data: NDArray, value: float, fill: Mask | None) -> Mask:
    """Find a value, and what lies beside it and was blended with it."""
    found = data == value
    beside = ndimage.binary_dilation(found, np.ones((3, 3, 3)))
    rest = _seen(data, beside if fill is None else beside | fill)
    if len(rest) < FEW:
        return found
    low, high, width = _range(rest)
    below = data < low - BELOW / 2 * width
    return found | (beside & (below if value < low else data > high + ABOVE / 2 * width))


def _edges(data: NDArray, fill: Mask | None) -> Iterator[tuple[float, bool]]:
    """Values that most corners have, or all of a face."""
    places = [data[tuple(slice(None, None, n - 1 or 1) for n in data.shape)]]
    places += [np.moveaxis(data, axis, 0)[end] for axis in range(3) for end in (0, -1)]
    for place, share in zip(places, (0.6, *(0.99,) * 6), strict=True):
        value = np.median(place)
        if np.isfinite(value) and np.mean(place == value) >= share:
            yield value, True


def _outliers(data: NDArray, fill: Mask | None) -> Mask | None:
    """Find a few per cent of voxels far above or below that have nothing to do with each other."""
    seen = _seen(data, fill)
    low, high = np.percentile(seen, (5, 95)).tolist()
    above, below = high + TAIL * (high - low), low - TAIL * (high - low)
    if high == low or (seen.max() <= above and seen.min() >= below):
        return None
    found = (data > above) | (data < below)
    if fill is not None:
        found &= ~fill
    return None if _coherent(data, found) else found


def _coherent(data: NDArray, places: Mask) -> bool:
    """Tell whether voxels are an object: most have neighbours among them, much like them."""
    pairs = list[NDArray]()
    for axis in range(3):
        ahead, behind = (np.moveaxis(a, axis, 0)[1:] for a in (data, places))
        both = behind & np.moveaxis(places, axis, 0)[:-1]
        pairs.append(np.stack([ahead[both], np.moveaxis(data, axis, 0)[:-1][both]]))
    one, other = np.concatenate(pairs, axis=1).astype(np.float64)
    if not len(one) or len(one) < places.sum():  # of three for each voxel of an object
        return False
    spread = one.std() * other.std()
    return not spread or float(np.mean((one - one.mean()) * (other - other.mean()))) > (
        COHERENT * spread
    )


def split(weight: Array, field: Mask) -> tuple[Mask, Mask]:
    """Divide what holds no data on a model's grid (X, Y, Z): what lies outside, and gaps.

    ``weight`` is the share of data in each voxel, ``field`` the box of the field of view. Fill
    that covers much of a face of that box ends the field of view; other fill is a gap in it.
    """
    place = box(field)
    parts, _ = ndimage.label(weight[place] < 0.5)
    ends = set[int]()
    for axis in range(3):
        for end in (0, -1):
            face = np.moveaxis(parts, axis, 0)[end]
            counts = np.bincount(face.ravel())
            ends |= {part for part in range(1, len(counts)) if counts[part] > FACE * face.size}
    outside, gaps = np.zeros_like(field), np.zeros_like(field)
    outside[place] = np.isin(parts, list(ends))
    gaps[place] = (parts > 0) & ~outside[place]
    return outside, gaps


def bridge(data: Array, gaps: Mask, known: Mask) -> Array:
    """Give gaps the values of the nearest voxels that are known."""
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.where(gaps, data[tuple(nearest)], data)
