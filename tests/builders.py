"""Tiny BIDS datasets for the tests."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from singlestrip_bids import cli
from singlestrip_bids.bids import fmriprep, outputs
from singlestrip_bids.bids.outputs import Masked, Request
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.config import PRESETS, RunConfig
from singlestrip_bids.image import nifti
from singlestrip_bids.image.brain import Brain
from singlestrip_bids.image.grid import Conformed, Grid, conform

HEADS = Path(__file__).parents[2] / "shared" / "data" / "heads"
SHAPE = (5, 6, 7)
AFFINE = np.diag([-1.0, 1.5, 2.0, 1.0])
OTHER_AFFINE = np.diag([-1.0, 1.5, 2.5, 1.0])
SCANS = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_T2w.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_acq-lo_run-01_T1w.nii.gz",
    "sub-02/ses-1/func/sub-02_ses-1_task-rest_bold.nii.gz",
    "sub-02/ses-2/anat/sub-02_ses-2_FLAIR.nii",
    "sub-03/perf/sub-03_asl.nii.gz",
)  # of a small dataset with sessions
MODEL = Path("code/singlestrip")
ORIENTATIONS = [
    "".join(codes)
    for signs in itertools.product("LR", "PA", "SI")
    for codes in itertools.permutations(signs)
]
STAMP = {"ModelSHA256": "m", "ModelCardSHA256": "c", "SourceSHA256": "s"}
VALIDATOR = shutil.which("bids-validator-deno", path=sysconfig.get_path("scripts"))
LABEL = Path("derivatives/manual/sub-01/anat/sub-01_desc-brain_mask.nii.gz")


def write_nifti(path: Path, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> Path:
    """Write a small image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def write_description(folder: Path, **fields: object) -> None:
    """Write a dataset_description.json."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"Name": "test", "BIDSVersion": "1.10.0", **fields}
    (folder / "dataset_description.json").write_text(json.dumps(content))


def make_dataset(root: Path, scans: Iterable[str]) -> Path:
    """Write a raw dataset of scans such as `sub-01/anat/sub-01_T1w.nii.gz`."""
    write_description(root, DatasetType="raw")
    for scan in scans:
        write_nifti(root / scan)
    return root


def add_mask(root: Path, name: str, dataset: str = "manual", **grid) -> Path:
    """Write a brain mask such as `sub-01/anat/sub-01` into one of a dataset's derivatives."""
    path = root / "derivatives" / dataset / f"{name}_desc-brain_mask.nii.gz"
    return write_nifti(path, **grid)


def affine_of(turn: np.ndarray, sizes: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(sizes)
    affine[:3, 3] = origin
    return affine


def axes(codes: str) -> np.ndarray:
    """Directions of voxel axes named such as LAS: a signed permutation (3, 3)."""
    ornt = nib.orientations.axcodes2ornt(codes)
    matrix = np.zeros((3, 3))
    for voxel_axis, (world_axis, sign) in enumerate(ornt):
        matrix[int(world_axis), voxel_axis] = sign
    return matrix


def turned(codes: str, degrees: tuple[float, ...] = (9, -12, 20)) -> np.ndarray:
    """Directions of axes named such as LAS, turned by angles about x, y and z (3, 3)."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ axes(codes)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def put_scan(root: Path, name: str, source: Path, volumes: int = 1) -> Path:
    """Copy a scan into a dataset under a new name, repeated to a series if wished."""
    image = nib.load(source)
    data = np.asarray(image.dataobj)
    data = np.stack([data] * volumes, axis=-1) if volumes > 1 else data
    copy = nib.Nifti1Image(data, image.affine)
    copy.header.set_xyzt_units("mm", "sec")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(copy, path)
    return path


def listing(root: Path) -> dict[str, tuple[int, int, str]]:
    """All that lies below a folder, itself included: mode, time of the last change, content."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        state = path.lstat()
        plain = path.is_file() and not path.is_symlink()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if plain else ""
        found[str(path.relative_to(root))] = (state.st_mode, state.st_mtime_ns, content)
    return found


def scan(bids: Path, subject: str) -> Path:
    """The one scan of a subject of the generated heads."""
    return next((bids / f"sub-{subject}" / "anat").glob("*.nii.gz"))


def run(bids: Path, out: Path, *words: str) -> int:
    """The smallest run of the app; its exit code."""
    return cli.main([str(bids), str(out), *words, "--sloppy"])


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def found(image: nifti.Image, mask: np.ndarray, **options: object) -> Brain:
    """What a model returns that finds this mask."""
    conformed = conform(mask.astype(np.float32), image.affine, Grid(2.0, 8, 4))
    evidence = dict.fromkeys(outputs.EVIDENCE, 0.9)
    rebuilt = replace(conformed, data=(conformed.data > 0.5).astype(np.float32))
    return Brain(image, mask, conformed, rebuilt, 0.9, (0.8, 0.95), evidence, **options)


def complaints(dataset: Path) -> set[tuple[str, str]]:
    """Codes and places of all errors and warnings.

    Who the authors of a dataset are, its owner has to say.
    """
    done = subprocess.run(
        [VALIDATOR, str(dataset), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    found = {(issue["code"], issue["location"]) for issue in issues}
    return {(code, place) for code, place in found if code != "TOO_FEW_AUTHORS"}


def masked(scan: Scan, mask: np.ndarray | None = None, **options: object) -> Masked:
    """A scan with a mask, that of all voxels if none is given."""
    image = nifti.load(scan.path)
    mask = np.ones(image.data.shape, bool) if mask is None else mask
    return Masked(scan, found(image, mask, **options), STAMP, "sl1.safetensors", 1.0)


def participant_config(bids: Path, **options: object) -> RunConfig:
    """Options of a participant level that writes beside its dataset."""
    return RunConfig(
        bids_dir=bids,
        output_dir=bids.parent / "out",
        levels=("participant",),
        method=PRESETS["quick"],
        **{"modalities": ("T1w", "T2w"), **options},
    )


def hand_over(config: RunConfig, mask: np.ndarray | None = None) -> list[str]:
    """Write a mask for each scan chosen for fMRIPrep; return the masks in the view."""
    scans = find_scans(config.bids_dir, config.modalities)
    request = Request(config, fmriprep.start(config, scans))
    for one in sorted(request.for_fmriprep, key=str):
        outputs.write(masked(one, mask), request)
    view = config.fmriprep_masks
    return sorted(str(path.relative_to(view)) for path in view.rglob("*.nii.gz"))


def image_of(data: np.ndarray, affine: np.ndarray | None = None) -> nifti.Image:
    """An image as if read, without a look at its voxels."""
    data = data.astype(np.float32)
    affine = np.eye(4) if affine is None else affine
    return nifti.Image(Path("scan.nii.gz"), data, nib.Nifti1Image(data, affine))


ELLIPSOID = (48, 56, 52)
RADII = (15, 19, 17)


def ellipsoid(zoom: float = 1.0, shift: int = 0, noise: float = 0.02) -> np.ndarray:
    """An ellipsoid with a brighter one in it, in noise."""
    place = np.indices(ELLIPSOID).T - (np.array(ELLIPSOID) - 1) / 2 - [shift, 0, 0]
    radius = np.sqrt(((place / (np.array(RADII) * zoom)) ** 2).sum(-1)).T
    data = np.where(radius < 0.7, 0.9, np.where(radius < 1, 0.5, 0.0))
    rng = np.random.default_rng(0)
    return np.abs(data + rng.normal(0, noise, ELLIPSOID)).clip(0, 1).astype(np.float32)


def conformed_of(data: np.ndarray, inside: np.ndarray | None = None) -> Conformed:
    inside = np.ones(data.shape, bool) if inside is None else inside
    return Conformed(np.where(inside, data, np.float32(0)), np.eye(4), inside)


def seen_at(data: np.ndarray, voxel_size: float) -> nifti.Image:
    return image_of(data, np.diag([voxel_size] * 3 + [1.0]))
