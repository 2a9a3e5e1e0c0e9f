"""Pictures of masks over their scans, small and quick to draw.

A mosaic is a JPEG of slices and, drawn over it, SVG outlines of the mask: sharp at any size, and a
page can switch them on and off.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..image.masks import Mask, box
from ..image.structures import Numbers

OUTLINE = "#ffb000"  # orange, told apart from grey by all eyes
SECOND = "#56b4e9"  # sky blue, told apart from orange by all eyes
DIFFERENCE = "#cc79a7"  # reddish purple, where two masks differ
COLUMNS = 7  # slices of each plane
SPAN_MM, MARGIN_MM = 200.0, 20.0  # what is shown: at least this much, and this much around a mask
TILE = 256  # pixels, the longest edge of a slice
COARSEST_MM = 1.5  # of a pixel: coarser voxels are interpolated
QUALITY = 82  # of the JPEG
SHEET_COLUMNS, SHEET_MM = 5, 1.5  # of a sheet: slices of each plane, a pixel
_BORDER = (  # dark around the colour, so that it shows on bright tissue, too
    '<g fill="none"><g stroke="#000" stroke-width="3.2"><path id="border" d="{}"/></g>'
    f'<use href="#border" stroke="{OUTLINE}" stroke-width="1.7"/></g>'
)
_REBUILT = (  # the even-odd rule fills what belongs to one of both masks alone
    f'<path d="{{}}{{}}" fill="{DIFFERENCE}" fill-opacity=".55" fill-rule="evenodd"/>'
    f'<path d="{{}}" fill="none" stroke="{SECOND}" stroke-width="1.7"/>'
)
THUMBNAIL = 88  # pixels, the height of a thumbnail


@dataclass(frozen=True)
class Mosaic:
    """Slices of a scan in three planes, and its mask over them in SVG of the same size."""

    scan: bytes  # JPEG; rows are axial, coronal and sagittal
    outline: str  # SVG of the border of the mask
    outside: str  # SVG, black wherever the mask is not
    rebuilt: str | None  # SVG of the border of the rebuilt mask, and where both differ
    parts: bytes | None  # PNG of the structures in their colours, clear elsewhere
    thumbnail: bytes  # JPEG of the middle slices with the outline


@dataclass(frozen=True)
class _Tile:
    """One slice, and for each mask its outlines."""

    grey: NDArray[np.uint8]  # (rows, columns)
    masks: list[list[NDArray[np.float64]]]  # an outline is (N, 2), x and y in pixels


def mosaic(
    data: NDArray,
    mask: Mask,
    sizes: NDArray,
    rebuilt: Mask | None = None,
    numbers: Numbers | None = None,
    colours: Sequence[str] = (),
) -> Mosaic:
    """Draw a mask over its scan (X, Y, Z), and a second, rebuilt one to compare it with.

    Axes are closest to RAS, the mask is not empty, and ``sizes`` are a voxel's edges in mm (3,).
    The ``numbers`` are those of structures, which have ``colours``.
    """
    extent = _extent(mask)
    window = [_window(*ends, n, s) for ends, n, s in zip(extent, mask.shape, sizes, strict=True)]
    longest = max((w.stop - w.start) * s for w, s in zip(window, sizes, strict=True))
    pixel = min(max(float(min(sizes)), longest / TILE), COARSEST_MM)
    zoom = np.asarray(sizes) / pixel
    shown = data[tuple(window)]
    inner = mask[tuple(window)]
    masks = [inner] if rebuilt is None else [inner, rebuilt[tuple(window)]]
    thin = tuple(slice(None, None, 2) for _ in range(3))
    low = np.percentile(shown[thin], 1)
    high = np.percentile(shown[inner], 99.5)  # of the brain: fat may be far brighter
    grey_scale = low, max(high - low, np.finfo(np.float32).tiny)
    rows, painted = [], []
    for plane, (first, last) in reversed(list(enumerate(extent))):
        places = np.linspace(first, last, COLUMNS + 2)[1:-1] - window[plane].start
        places = places.round().astype(int)
        rows.append([_tile(shown, masks, plane, at, zoom, grey_scale) for at in places])
        if numbers is not None:
            cut = numbers[tuple(window)]
            painted.append([_numbered(cut, plane, at, zoom) for at in places])
    canvas, placed = _lay_out(rows)
    d, *second = (_path(lines) for lines in placed)
    height, width = canvas.shape
    middle = [[row[COLUMNS // 2] for row in rows]]
    return Mosaic(
        _jpeg(Image.fromarray(canvas)),
        _svg(width, height, _BORDER.format(d)),
        _svg(width, height, f'<path d="M0 0H{width}V{height}H0Z{d}" fill-rule="evenodd"/>'),
        _svg(width, height, _REBUILT.format(d, *second * 2)) if second else None,
        _coloured(_lay_out(painted)[0], colours) if painted else None,
        _jpeg(_thumbnail(middle)),
    )


def gallery(volumes: Sequence[tuple[NDArray, Mask]], colours: str = "gray") -> NDArray[np.uint8]:
    """Show volumes on the model's grid side by side, voxel by voxel, with their masks' outlines.

    A volume is its values in [0, 1] and a mask, both (X, Y, Z). Each is a column of the picture
    (rows, columns, 3): its middle axial, coronal and sagittal slices. ``colours`` name a colour
    map of matplotlib.
    """
    rows = []
    for plane in (2, 1, 0):
        middles = [sum(_extent(mask)[plane]) // 2 if mask.any() else 0 for _, mask in volumes]
        rows.append(
            [
                _tile(data, [mask], plane, at, np.full(3, 4.0), (0.0, 1.0))
                for (data, mask), at in zip(volumes, middles, strict=True)
            ]
        )
    from matplotlib import colormaps  # slow to import, and masks are drawn without

    canvas, (lines,) = _lay_out(rows)
    table = (colormaps[colours](np.arange(256))[:, :3] * 255).astype(np.uint8)
    picture = Image.fromarray(table[canvas])
    _draw(picture, lines, 2)
    return np.asarray(picture)


def sheet(data: NDArray, masks: Sequence[Mask], size: float) -> bytes:
    """Show a scan (X, Y, Z) in [0, 1] on the model's grid, in three planes, as JPEG.

    The outlines of one or two masks are orange and blue; any may be empty. ``size`` is the edge of
    a voxel in mm.
    """
    anything = np.logical_or.reduce(masks)
    extent = _extent(anything if anything.any() else np.ones_like(anything))
    sizes, zoom = (size,) * 3, np.full(3, size / SHEET_MM)
    window = [_window(*ends, n, s) for ends, n, s in zip(extent, data.shape, sizes, strict=True)]
    shown, inner = data[tuple(window)], [mask[tuple(window)] for mask in masks]
    rows = []
    for plane, (first, last) in reversed(list(enumerate(extent))):
        places = np.linspace(first, last, SHEET_COLUMNS + 2)[1:-1] - window[plane].start
        rows.append([_tile(shown, inner, plane, round(at), zoom, (0.0, 1.0)) for at in places])
    canvas, placed = _lay_out(rows)
    picture = Image.fromarray(canvas).convert("RGB")
    for lines, colour in reversed(list(zip(placed, (OUTLINE, SECOND), strict=False))):
        _draw(picture, lines, 2, colour)
    return _jpeg(picture)


def _extent(mask: Mask) -> list[tuple[int, int]]:
    """First and last plane of the mask along each axis."""
    return [(int(edge.start), int(edge.stop) - 1) for edge in box(mask)]


def _window(first: int, last: int, count: int, size: float) -> slice:
    """Voxels along one axis that are shown, within the field of view."""
    half = max((last - first + 1) * size / 2 + MARGIN_MM, SPAN_MM / 2) / size
    centre = (first + last + 1) / 2
    return slice(max(int(centre - half), 0), min(int(np.ceil(centre + half)), count))


def _tile(
    data: NDArray,
    masks: Sequence[Mask],
    plane: int,
    at: int,
    zoom: NDArray,
    scale: tuple[float, float],
) -> _Tile:
    """Cut one slice; the second of its axes points up."""
    across, up = np.delete(zoom, plane)
    where: tuple[slice | int, ...] = (*[slice(None)] * plane, at)  # np.take would copy it all
    cut = data[where].T[::-1]
    grey = np.clip((cut - scale[0]) / scale[1] * 255, 0, 255).astype(np.uint8)
    width, height = max(round(grey.shape[1] * across), 1), max(round(grey.shape[0] * up), 1)
    picture = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    factor = width / grey.shape[1], height / grey.shape[0]
    outlines = []
    for mask in masks:
        padded = np.pad(mask[where].T[::-1], 1).astype(np.float32)
        lines = contour_generator(z=padded).lines(0.5)
        outlines.append([(np.asarray(line) - 0.5) * factor for line in lines])
    return _Tile(np.asarray(picture), outlines)


def _numbered(numbers: Numbers, plane: int, at: int, zoom: NDArray) -> _Tile:
    """Cut one slice of numbers, as large as that of the scan."""
    across, up = np.delete(zoom, plane)
    cut = np.take(numbers, at, plane).T[::-1]
    size = max(round(cut.shape[1] * across), 1), max(round(cut.shape[0] * up), 1)
    picture = Image.fromarray(np.ascontiguousarray(cut)).resize(size, Image.Resampling.NEAREST)
    return _Tile(np.asarray(picture), [])


def _coloured(numbers: NDArray[np.uint8], colours: Sequence[str]) -> bytes:
    """Write numbers (rows, columns) as a PNG in their colours, 0 clear."""
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(bytes.fromhex("".join(["000000", *(c.removeprefix("#") for c in colours)])))
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=0, optimize=True)
    return stream.getvalue()


def _lay_out(
    rows: Sequence[Sequence[_Tile]],
) -> tuple[NDArray[np.uint8], list[list[NDArray[np.float64]]]]:
    """Put tiles in rows, centred, and the outlines of each mask with them."""
    width = max(sum(tile.grey.shape[1] for tile in row) for row in rows)
    heights = [max(tile.grey.shape[0] for tile in row) for row in rows]
    canvas = np.zeros((sum(heights), width), np.uint8)
    placed: list[list[NDArray[np.float64]]] = [[] for _ in rows[0][0].masks]
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = (width - sum(tile.grey.shape[1] for tile in row)) // 2
        for tile in row:
            down, across = tile.grey.shape
            canvas[top : top + down, left : left + across] = tile.grey
            for lines, own in zip(placed, tile.masks, strict=True):
                lines += [line + np.array([left, top]) for line in own]
            left += across
        top += height
    return canvas, placed


def _path(lines: Sequence[NDArray[np.float64]]) -> str:
    """Write closed outlines as the data of one SVG path, to a tenth of a pixel."""
    parts = []
    for line in lines:
        steps = np.rint(line[:-1] * 10).astype(int)
        moves = np.diff(steps, axis=0)
        start = "M{:g} {:g}l".format(*(steps[0] / 10))
        parts.append(start + " ".join(f"{x / 10:g} {y / 10:g}" for x, y in moves.tolist()) + "z")
    return "".join(parts)


def _svg(width: int, height: int, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{content}</svg>\n'
    )


def _thumbnail(rows: Sequence[Sequence[_Tile]]) -> Image.Image:
    """Draw tiles with their outlines, and make them small."""
    canvas, placed = _lay_out(rows)
    picture = Image.fromarray(canvas).convert("RGB")
    _draw(picture, placed[0], 3)
    width = round(picture.width * THUMBNAIL / picture.height)
    return picture.resize((width, THUMBNAIL), Image.Resampling.LANCZOS)


def _draw(
    picture: Image.Image, lines: Sequence[NDArray[np.float64]], width: int, colour: str = OUTLINE
) -> None:
    pen = ImageDraw.Draw(picture)
    for line in lines:
        pen.line([tuple(point) for point in line.tolist()], fill=colour, width=width)


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()
