"""Write generated scans as a raw BIDS dataset with masks, and put them through a scanner."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks.head import BACKGROUND, Array, waves

Matrix = NDArray[np.float64]


def acquire(
    clean: Array,
    affine: Matrix,
    dtype: str,
    rng: np.random.Generator,
    bias: float = 0.2,
    noise: tuple[float, float] = (0.015, 0.035),
) -> NDArray[Any]:
    """Return the scan with a bias field, Rician noise, and the scanner's units.

    Parameters
    ----------
    clean : ndarray
        Signal between about 0 and 1, shape (X, Y, Z).
    affine : ndarray
        Voxel index to world mm, shape (4, 4).
    dtype : str
        Of the result.
    rng : numpy.random.Generator
        Source of every draw.
    bias : float
        Largest departure of the field from 1.
    noise : tuple of float
        Least and largest standard deviation of the noise in each channel.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def write_mask(stem: Path, mask: NDArray[np.uint8], affine: Matrix, scan: str) -> None:
    """Write a mask and its sidecar."""
    write_image(stem.with_name(f"{stem.name}.nii.gz"), mask, affine)
    write_json(
        stem.with_name(f"{stem.name}.json"), {"Type": "Brain", "Sources": [f"bids:raw:{scan}"]}
    )


def write_descriptions(
    root: Path, truth: Path, names: Sequence[str], title: str, maker: str, about: str, terms: str
) -> Path:
    """Write what a raw dataset, its labels and the truth beside it need besides their images.

    Returns
    -------
    Path
        Folder of the labels.

    Raises
    ------
    FileExistsError
        If the dataset or the truth exists.
    """
    for folder in (root, truth):
        if folder.exists():
            raise FileExistsError(f"{folder} exists: remove it, or write somewhere else")
    labels = root / "derivatives" / "manual"
    common = {"BIDSVersion": "1.10.0", "License": terms, "Authors": [maker]}
    root.mkdir(parents=True)
    write_json(root / "dataset_description.json", {"Name": title, "DatasetType": "raw", **common})
    for folder, raw in ((labels, "../.."), (truth, f"../{root.name}")):
        folder.mkdir(parents=True)
        write_json(
            folder / "dataset_description.json",
            {
                "Name": f"{title}: brain masks",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": maker}],
                "DatasetLinks": {"raw": raw},
                **common,
            },
        )
    (root / "participants.tsv").write_text("\n".join(["participant_id", *names]) + "\n")
    (root / "README").write_text(about)
    return labels


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")
