"""A raw BIDS dataset of painted heads: posed, scanned in several ways, and written.

One scan is labelled, as the app needs it; the masks of the others go to a separate tree.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..image.resampling import Array
from ..machine import files
from .head import BACKGROUND, Template, draw_anatomy, load_template, paint_head, waves

Matrix = NDArray[np.float64]
ABOUT = """Synthetic heads around warped copies of the MNI152 template, with exact brain masks.
No person was scanned. Written by singlestrip_bids.demo.
"""
CENTRE_MM = np.array([0.0, -18.0, 5.0])  # of the template's brain


@dataclass(frozen=True)
class Protocol:
    """How a head is scanned.

    ``voxel_mm`` is along X, Y, Z of the scanner, whatever ``axes`` says; ``margin_mm`` is the
    field of view beyond the brain: sides, front, back, top, bottom.
    """

    contrast: str
    axes: str
    voxel_mm: tuple[float, float, float]
    margin_mm: tuple[float, float, float, float, float]
    oblique_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dtype: str = "int16"


PROTOCOLS = (
    Protocol("T1w", "RAS", (1.6, 1.6, 1.6), (25, 40, 25, 25, 45)),
    Protocol("T1w", "LAS", (1.5, 1.5, 1.5), (22, 36, 30, 20, 30)),
    Protocol("T2w", "LAS", (1.0, 1.0, 4.0), (20, 30, 22, 18, 12)),
    Protocol("T1w", "PIR", (2.0, 1.3, 1.3), (24, 42, 22, 26, 75)),
    Protocol("T2w", "LPI", (2.0, 2.0, 2.0), (30, 45, 35, 30, 60), dtype="float32"),
    Protocol("T1w", "RAS", (1.8, 1.8, 1.8), (24, 38, 26, 28, 40), (18, -12, 8)),
    Protocol("T2w", "RSP", (1.4, 3.0, 1.4), (24, 30, 24, 22, 50)),
    Protocol("T1w", "ASL", (2.0, 2.0, 2.0), (7, 8, 7, 7, 7)),
    Protocol("T2w", "LPS", (1.5, 1.5, 3.0), (26, 36, 30, 24, 25), (-14, 8, 15)),
    Protocol("T1w", "SRP", (2.5, 2.5, 2.5), (35, 55, 40, 40, 90), dtype="float32"),
)


def write_dataset(
    root: Path, subjects: int = 10, seed: int = 0, spacing_scale: float = 1.0
) -> Path:
    """Write a raw dataset, its one label, and the truth of the other scans beside it.

    Parameters
    ----------
    root : Path
        Folder of the dataset. The truth goes to the folder named ``<root>-truth``.
    subjects : int
        Number of heads, one scan each; past ten the protocols repeat with new heads.
    seed : int
        Equal seeds give equal bytes, and the first heads do not depend on `subjects`.
    spacing_scale : float
        Factor on the voxel sizes; 2 or more is quick, for tests.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    FileExistsError
        If either folder exists.
    """
    truth = root.parent / f"{root.name}-truth"
    names = [f"sub-{number:02d}" for number in range(1, subjects + 1)]
    maker = "singlestrip_bids.demo"
    labels = write_descriptions(root, truth, names, "Phantom heads", maker, ABOUT, "CC0")
    template = load_template(1.5 * min(max(spacing_scale, 1.0), 2.0))
    for index, name in enumerate(names):
        protocol = PROTOCOLS[index % len(PROTOCOLS)]
        rng = np.random.default_rng([seed, index])
        data, mask, affine = scan_head(template, protocol, rng, spacing_scale)
        scan = f"{name}/anat/{name}_{protocol.contrast}.nii.gz"
        write_image(root / scan, data, affine)
        space = "" if protocol.contrast == "T1w" else f"_space-{protocol.contrast}"
        target = labels if index == 0 else truth
        write_mask(target / name / "anat" / f"{name}{space}_desc-brain_mask", mask, affine, scan)
    return root


def scan_head(
    template: Template, protocol: Protocol, rng: np.random.Generator, spacing_scale: float = 1.0
) -> tuple[NDArray[Any], NDArray[np.uint8], Matrix]:
    """Draw a head and scan it; return the scan (X, Y, Z), its brain mask and the affine."""
    head = paint_head(template, draw_anatomy(protocol.contrast, rng), rng)
    pose = draw_pose(rng)
    affine, shape = scan_grid(template, protocol, pose, spacing_scale)
    sizes, step = nib.affines.voxel_sizes(affine), float(template.affine[0, 0])
    parts = [max(1, round(float(size) / (step + 0.1))) for size in sizes]  # samples a voxel
    fine = [(np.arange(n * f) + 0.5) / f - 0.5 for n, f in zip(shape, parts, strict=True)]
    i, j, k = np.ix_(*[line.astype(np.float32) for line in fine])
    mm = tuple(line * np.float32(size) for line, size in zip((i, j, k), sizes, strict=True))
    matrix = np.linalg.inv(template.affine) @ (np.linalg.inv(pose) @ affine)
    points = np.empty((3, i.size, j.size, k.size), np.float32)
    for row, point in zip(matrix[:3].astype(np.float32), points, strict=True):
        point[:] = row[0] * i + row[1] * j + row[2] * k + row[3]
        point += np.float32(7.0 / step) * waves(mm, 3, (100.0, 220.0), rng)  # a smooth warp
    sampled = (
        ndimage.map_coordinates(head, points, order=1, mode="nearest"),
        ndimage.map_coordinates(template.mask, points, order=1),
    )
    blocks = [count for pair in zip(shape, parts, strict=True) for count in pair]
    clean, share = (  # means: the partial volume
        one.reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32) for one in sampled
    )
    return acquire(clean, affine, protocol.dtype, rng), (share > 0.5).astype(np.uint8), affine


def draw_pose(rng: np.random.Generator) -> Matrix:
    """Draw size, shape, tilt and place of a head: template mm to world mm, (4, 4).

    Scales are .85 to 1.15, shears up to .05, rotations up to 15 degrees, shifts up to 20 mm.
    """
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = rng.uniform(-0.05, 0.05, 3)
    turn = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True).as_matrix()
    pose = np.eye(4)
    # One common factor more than three apart: heads differ in size before they differ in shape.
    scales = np.clip(rng.uniform(0.9, 1.1) * rng.uniform(0.95, 1.05, 3), 0.85, 1.15)
    pose[:3, :3] = turn @ shear @ np.diag(scales)
    pose[:3, 3] = CENTRE_MM - pose[:3, :3] @ CENTRE_MM + rng.uniform(-20, 20, 3)
    return pose


def scan_grid(
    template: Template, protocol: Protocol, pose: Matrix, spacing_scale: float = 1.0
) -> tuple[Matrix, tuple[int, ...]]:
    """Return the affine and shape of a field of view that holds the posed brain."""
    turn = Rotation.from_euler("xyz", protocol.oblique_deg, degrees=True).as_matrix()
    inside = np.argwhere(template.mask > 0.5)[::7]
    world = nib.affines.apply_affine(pose @ template.affine, inside) @ turn
    side, front, back, top, bottom = protocol.margin_mm
    lower = world.min(axis=0) - np.array([side, back, bottom])
    upper = world.max(axis=0) + np.array([side, front, top])
    voxel = np.array(protocol.voxel_mm) * spacing_scale
    count = np.ceil((upper - lower) / voxel).astype(int)
    straight = np.diag([*voxel, 1.0])
    straight[:3, 3] = (lower + upper) / 2 - voxel * (count - 1) / 2
    ornt = nib.orientations.axcodes2ornt(protocol.axes)
    back_to_ras = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    affine = straight @ nib.orientations.inv_ornt_aff(back_to_ras, tuple(count))
    rotation = np.eye(4)
    rotation[:3, :3] = turn
    return rotation @ affine, tuple(int(count[int(axis)]) for axis in ornt[:, 0])


def acquire(
    clean: Array,
    affine: Matrix,
    dtype: str,
    rng: np.random.Generator,
    bias: float = 0.2,
    noise: tuple[float, float] = (0.015, 0.035),
) -> NDArray[Any]:
    """Return a scan (X, Y, Z) with a bias field, Rician noise, and the scanner's units.

    ``clean`` is the signal between about 0 and 1, ``bias`` the largest departure of the field from
    1, ``noise`` the least and largest standard deviation in each channel.
    """
    sizes = nib.affines.voxel_sizes(affine)
    lines = [
        (np.arange(n) * size).astype(np.float32)
        for n, size in zip(clean.shape, sizes, strict=True)
    ]
    field = waves(np.ix_(*lines), 4, (150.0, 500.0), rng)
    signal = clean * (1 + np.float32(bias) * field / np.abs(field).max())
    sigma = rng.uniform(*noise)
    real, imaginary = (
        rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma) for _ in range(2)
    )
    noisy = np.hypot(signal - BACKGROUND + real, imaginary) * np.float32(rng.uniform(400, 1500))
    return noisy.astype(dtype) if dtype == "float32" else np.rint(noisy).astype(dtype)


def write_image(path: Path, data: NDArray[Any], affine: Matrix) -> None:
    """Write a gzipped NIfTI image without a time stamp, sform and qform both set."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    files.write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def write_mask(stem: Path, mask: NDArray[np.uint8], affine: Matrix, scan: str) -> None:
    """Write a mask and its sidecar."""
    write_image(stem.with_name(f"{stem.name}.nii.gz"), mask, affine)
    fields = {"Type": "Brain", "Sources": [f"bids:raw:{scan}"]}
    files.write_json(stem.with_name(f"{stem.name}.json"), fields)


def write_descriptions(
    root: Path, truth: Path, names: Sequence[str], title: str, maker: str, about: str, terms: str
) -> Path:
    """Write what a raw dataset, its labels and the truth need besides images; return the labels.

    Raises
    ------
    FileExistsError
        If the dataset or the truth exists.
    """
    for folder in (root, truth):
        if folder.exists():
            raise FileExistsError(f"{folder} exists: remove it, or write somewhere else")
    labels, name = root / "derivatives" / "manual", "dataset_description.json"
    common = {"BIDSVersion": "1.10.0", "License": terms, "Authors": [maker]}
    files.write_json(root / name, {"Name": title, "DatasetType": "raw", **common})
    about_masks = {"Name": f"{title}: brain masks", "DatasetType": "derivative"}
    for folder, raw in ((labels, "../.."), (truth, f"../{root.name}")):
        links = {"GeneratedBy": [{"Name": maker}], "DatasetLinks": {"raw": raw}}
        files.write_json(folder / name, {**about_masks, **links, **common})
    files.write_text(root / "participants.tsv", "\n".join(["participant_id", *names]) + "\n")
    files.write_text(root / "README", about)
    return labels
