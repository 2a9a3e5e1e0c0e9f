"""Masks as arrays alone: their box, their largest part, their bits."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


def box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask; empty if the mask is."""
    planes = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(p[0], p[-1] + 1) if len(p) else slice(0) for p in planes)


def clean(mask: Mask) -> Mask:
    """Keep the largest connected component and fill its holes; an empty mask stays empty."""
    place = box(mask)
    parts, count = ndimage.label(mask[place])
    cleaned = np.zeros_like(mask)
    if count:
        largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        around = ndimage.label(np.pad(~largest, 1, constant_values=True))[0]
        cleaned[place] = (around != around[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return cleaned


def pack(mask: Mask) -> bytes:
    """Compress a mask to a few kilobytes."""
    return zlib.compress(np.packbits(mask).tobytes(), level=1)


def unpack(packed: bytes, shape: tuple[int, ...]) -> Mask:
    """Undo :func:`pack`."""
    bits = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def blank(packed: bytes) -> bool:
    """Tell whether a packed mask is empty."""
    return not any(zlib.decompress(packed))
