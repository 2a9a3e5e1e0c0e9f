"""Faults of geometry and intensity whose right answer is known: the mask of the scan without.

Each takes a scan with its mask and a random generator, and gives a file that other software
reads, with the mask carried along.
"""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image.masks import dice
from singlestrip_bids.method.model import Model

WITHIN = 0.02  # of Dice, of a mask that counts as the same


@dataclass(frozen=True)
class Case:
    """A scan with a fault: as stored, and the mask that is right."""

    voxels: NDArray
    affine: NDArray
    mask: NDArray  # (X, Y, Z) bool, the unmodified scan's, carried along
    finish: Callable[[nib.Nifti1Image], bytes] = lambda image: image.to_bytes()
    kind: type = nib.Nifti1Image


Fault = Callable[[Case, np.random.Generator], Case]


def turned(case: Case, rng: np.random.Generator) -> Case:
    """Reorder and flip the axes, as the affine then says."""
    order = np.column_stack([rng.permutation(3), rng.choice([1, -1], 3)])
    voxels, mask = (orientations.apply_orientation(a, order) for a in (case.voxels, case.mask))
    affine = case.affine @ orientations.inv_ornt_aff(order, case.voxels.shape)
    return Case(np.ascontiguousarray(voxels), affine, mask)


def padded(case: Case, rng: np.random.Generator) -> Case:
    """Pad the matrix with one value."""
    width = [tuple(pair) for pair in rng.integers(0, 40, (3, 2)).tolist()]
    value = rng.choice([np.nan, -32768, -1024, case.voxels.min()])
    voxels = np.pad(case.voxels, width, constant_values=value)
    affine = case.affine @ from_matvec(np.eye(3), [-low for low, _ in width])
    return Case(voxels, affine, np.pad(case.mask, width))


def moved(case: Case, rng: np.random.Generator) -> Case:
    """Place it elsewhere, up to 10 m away."""
    affine = from_matvec(np.eye(3), rng.uniform(-1e4, 1e4, 3)) @ case.affine
    return replace(case, affine=affine)


def in_other_units(case: Case, rng: np.random.Generator) -> Case:
    """Count in metres or micrometres, as xyzt_units says."""
    unit, factor = [("meter", 0.001), ("micron", 1000.0)][rng.integers(2)]

    def finish(image: nib.Nifti1Image) -> bytes:
        image.header.set_xyzt_units(unit)
        return bytes(image.to_bytes())

    affine = np.diag([factor] * 3 + [1]) @ case.affine
    return replace(case, affine=affine, finish=finish)


def one_form(case: Case, rng: np.random.Generator) -> Case:
    """Write the affine into the qform alone; the sform is empty, with or without a code."""
    code = int(rng.integers(3))

    def finish(image: nib.Nifti1Image) -> bytes:
        whole = image.to_bytes()
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(whole))
        header.set_qform(case.affine, 1)
        header["sform_code"] = code
        header["srow_x"] = header["srow_y"] = header["srow_z"] = 0
        return bytes(header.binaryblock + whole[len(header.binaryblock) :])

    return replace(case, finish=finish)


def other_type(case: Case, rng: np.random.Generator) -> Case:
    """Store it as NIfTI-2, in either byte order, in scaled integers."""
    kind = [nib.Nifti1Image, nib.Nifti2Image][rng.integers(2)]
    low, high = np.nanmin(case.voxels), np.nanmax(case.voxels)
    top = int(rng.choice([4000, 30000]))
    steps = np.round((case.voxels - low) / (high - low) * top).astype(np.int16)
    slope = float(rng.choice([1, 0.001, 1e6]))

    def finish(image: nib.Nifti1Image) -> bytes:
        header = type(image.header)(endianness="><"[rng.integers(2)])
        header.set_data_dtype(np.int16)
        stored = type(image)(steps, image.affine, header)
        stored.header.set_slope_inter(slope, float(rng.choice([0, -1000])))
        return bytes(stored.to_bytes())

    return replace(case, voxels=steps, kind=kind, finish=finish)


def scaled(case: Case, rng: np.random.Generator) -> Case:
    """Scale intensities, raise or lower them."""
    factor, offset = 10 ** rng.uniform(-6, 6), rng.choice([0, 1000, -500])
    return replace(case, voxels=((case.voxels + offset) * factor).astype(np.float32))


def _filled(case: Case, where: NDArray, rng: np.random.Generator) -> Case:
    value = rng.choice([np.nan, np.inf, -32768, -1024, 32760, 65535]) * np.ones(where.shape)
    if rng.integers(4) == 0:
        value = rng.uniform(20, 200, where.shape) * np.percentile(case.voxels, 99)
    return replace(case, voxels=np.where(where, value, case.voxels).astype(np.float32))


def planes(case: Case, rng: np.random.Generator) -> Case:
    """Fill a few planes at an end, outside the brain."""
    axis, end = int(rng.integers(3)), rng.integers(2)
    where = np.zeros(case.mask.shape, bool)
    free = np.flatnonzero(case.mask.any(axis=tuple({0, 1, 2} - {axis})))
    room = free[0] if end == 0 else case.mask.shape[axis] - 1 - free[-1]
    count = int(min(rng.integers(1, 9), max(room - 1, 0)))
    ends = slice(0, count) if end == 0 else slice(case.mask.shape[axis] - count, None)
    np.moveaxis(where, axis, 0)[ends] = True
    value = rng.choice([-32768, -1024, 32760, np.nan])
    return replace(case, voxels=np.where(where, value, case.voxels).astype(np.float32))


def block(case: Case, rng: np.random.Generator) -> Case:
    """Fill a column or a block, anywhere."""
    shape = np.array(case.mask.shape)
    size = np.maximum((shape * rng.uniform(0.04, 0.12, 3)).astype(int), 1)
    if rng.integers(2):
        size[rng.integers(3)] = shape.max()
    start = (rng.random(3) * np.maximum(shape - size, 1)).astype(int)
    where = np.zeros(case.mask.shape, bool)
    where[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return _filled(case, where, rng)


def salt(case: Case, rng: np.random.Generator) -> Case:
    """Fill single voxels, up to 3 %."""
    return _filled(case, rng.random(case.mask.shape) < rng.uniform(0.0005, 0.03), rng)


def cylinder(case: Case, rng: np.random.Generator) -> Case:
    """Fill all outside a cylinder, as some scanners do."""
    x, y = ((np.arange(n) - (n - 1) / 2) / (n / 2) for n in case.mask.shape[:2])
    where = (x[:, None] ** 2 + y[None] ** 2 > 1)[..., None] & ~case.mask
    value = rng.choice([-32768, -2000, np.nan])
    return replace(case, voxels=np.where(where, value, case.voxels).astype(np.float32))


FAULTS: tuple[Fault, ...] = (
    *(turned, padded, moved, in_other_units, one_form, other_type, scaled),
    *(planes, block, salt, cylinder),
)


def try_known(
    model: Model, scans: Sequence[Path], work: Path, count: int, seed: int
) -> Iterator[tuple[str, str, float | None]]:
    """Mask scans with faults; yield the fault, what was done, and the Dice (None if refused)."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "case.nii.gz"
    for scan in scans:
        image = nib.as_closest_canonical(nib.load(scan))
        voxels = np.asarray(image.dataobj, np.float32)
        whole = Case(voxels, image.affine, model.mask(image).voxels)
        for number in range(scans.index(scan), count, len(scans)):
            fault = FAULTS[random.Random(f"known {seed} {number}").randrange(len(FAULTS))]
            case = fault(whole, np.random.default_rng([seed, number]))
            stored = case.kind(case.voxels, case.affine)
            path.write_bytes(gzip.compress(case.finish(stored), 1))
            what = f"{number} {fault.__name__} of {scan.name}"
            try:
                yield fault.__name__, what, dice(model.mask(path).voxels, case.mask)
            except SingleStripError as error:
                yield fault.__name__, f"{what}: {error}", None
