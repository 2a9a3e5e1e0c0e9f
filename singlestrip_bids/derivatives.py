"""The output dataset: file names, images, sidecars and descriptions.

Names of what BIDS names are built here, and all writing is done here. Every file is written under
a temporary hidden name in its folder and then renamed: a killed job leaves no half file, and jobs
that share a folder do not disturb each other.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import nibabel as nib
import numpy as np

from . import __version__
from .errors import BadData, CannotCreate, IOFailed, Usage

if TYPE_CHECKING:
    from .inputs import Scan

TOOL = "singlestrip-bids"
BIDS_VERSION = "1.10.0"
RAW = "raw"
"""Name of the input dataset in `DatasetLinks` and so in every BIDS URI."""

# BIDS has no suffix for maps of distances, and no rule for masks in perf yet
BIDSIGNORE = "*.html\nlogs\nlog\nfigures\n*_distance.*\nperf\n"
README = """\
# Brain masks by singlestrip-bids

`sub-*/` holds one brain mask for each scan, on the scan's own grid, with a JSON sidecar.
`code/singlestrip/` holds the trained model and the tables about its training.
The masks are predictions: look at them before you rely on them.
"""

_AFTER_SPACE = ("split-", "recording-", "chunk-")  # BIDS order: ..._part_space_chunk_desc
_GEOMETRY = (
    *("dim_info", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c"),
    *("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def model_dir(output_dir: Path) -> Path:
    """Return the folder of the model, its card and its tables."""
    return output_dir / "code" / "singlestrip"


def log_dir(output_dir: Path, run_id: str) -> Path:
    """Return the folder of what a run leaves for tracing it."""
    return output_dir / "logs" / run_id


def mask_path(output_dir: Path, scan: Scan, border_mm: float | None = None) -> Path:
    """Return where a scan's brain mask goes; different for every scan.

    The name keeps the scan's entities. The main contrast of a folder (T1w, bold, asl, dwi)
    gives no `space-` entity, every other one does: `sub-01_space-T2w_desc-brain_mask.nii.gz`.
    A mask whose border was moved says so: `desc-brainPlus2mm`, `desc-brainMinus1p5mm`.
    """
    desc = "brain"
    if border_mm is not None:
        millimetres = f"{abs(border_mm):g}".replace(".", "p")
        desc += f"{'Plus' if border_mm > 0 else 'Minus'}{millimetres}mm"
    return _derivative(output_dir, scan, f"desc-{desc}_mask", scan.mask_space)


def probability_path(output_dir: Path, scan: Scan) -> Path:
    """Return where the brain probability of a scan goes; named as its mask is."""
    return _derivative(output_dir, scan, "label-brain_probseg", scan.mask_space)


def distance_path(output_dir: Path, scan: Scan) -> Path:
    """Return where the signed distance to a brain's border goes; named as the mask is."""
    return _derivative(output_dir, scan, "desc-brain_distance", scan.mask_space)


def brain_path(output_dir: Path, scan: Scan) -> Path:
    """Return where a scan without its skull goes: `sub-01_desc-brain_T2w.nii.gz`."""
    return _derivative(output_dir, scan, f"desc-brain_{scan.suffix}", None)


def figure_path(output_dir: Path, relative: str, desc: str, extension: str) -> Path:
    """Return where a picture goes, such as `sub-01/figures/sub-01_desc-scan_T1w.jpg`."""
    name, suffix = Path(relative).name.split(".")[0].rsplit("_", 1)
    folder = output_dir / relative.rpartition("/")[0].split("/")[0] / "figures"
    return folder / f"{name}_desc-{desc}_{suffix}{extension}"


def report_path(output_dir: Path, name: str) -> Path:
    """Return where a page goes; it is named after a subject, or `group`."""
    return output_dir / f"{name}.html"


def citation_path(output_dir: Path, extension: str) -> Path:
    """Return where the methods text goes."""
    return output_dir / "logs" / f"CITATION{extension}"


def mask_sidecars(output_dir: Path, subject: str = "*") -> list[Path]:
    """List the sidecars of the brain masks that are there, sorted by path."""
    name = "*_desc-brain_mask.json"
    within = (f"sub-{subject}/*/{name}", f"sub-{subject}/ses-*/*/{name}")
    return sorted(path for pattern in within for path in output_dir.glob(pattern))


def _derivative(output_dir: Path, scan: Scan, ending: str, space: str | None) -> Path:
    """Name an image made from a scan, after the entities of the scan."""
    parts = scan.name.split("_")[:-1]
    if space is not None:
        later = [index for index, part in enumerate(parts) if part.startswith(_AFTER_SPACE)]
        parts.insert(min(later, default=len(parts)), f"space-{space}")
    folder = (output_dir / scan.relative).parent
    return folder / f"{'_'.join(parts)}_{ending}.nii.gz"


def sidecar_path(image: Path) -> Path:
    """Return the JSON file beside a `.nii` or `.nii.gz` image."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def bids_uri(scan: Scan) -> str:
    """Return the BIDS URI of a scan of the input dataset."""
    return f"bids:{RAW}:{scan.relative}"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, making its folder.

    Raises
    ------
    CannotCreate
        If the folder or a file in it cannot be made.
    IOFailed
        If writing breaks off; no half file is left.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("xb")
    except OSError as error:
        raise CannotCreate(
            f"Cannot create a file in {path.parent}: {error}. Choose a folder you can write to."
        ) from error
    try:
        with stream:
            stream.write(data)
        temporary.replace(path)
    except OSError as error:
        raise IOFailed(
            f"Cannot write {path}: {error}. Check the space left and that it is no folder."
        ) from error
    finally:  # after the renaming there is nothing left to remove
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically, numpy values and paths among it.

    Raises
    ------
    ValueError
        For NaN or infinity, which JSON does not have: store None.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    write_text(path, text + "\n")


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a BIDS table atomically.

    Parameters
    ----------
    path
        The `.tsv` file.
    rows
        A mapping a row. None, NaN and absent keys become `n/a`, floats get four decimals.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def write_mask(path: Path, mask: np.ndarray, reference: nib.Nifti1Image) -> None:
    """Write a brain mask as uint8 on the grid of its scan, as `.nii.gz`.

    The geometry fields of the header are copied bit by bit, so that the affine stays the same
    whichever of qform, sform, both or none is set. Equal masks give equal bytes.

    Parameters
    ----------
    path
        Output file.
    mask
        Boolean or 0/1, shape (X, Y, Z).
    reference
        The scan, 3D or 4D (X, Y, Z, T).
    """
    image = _on_grid(np.asarray(mask, bool).astype(np.uint8), reference)
    image.header["cal_max"] = 1
    _write_nifti(path, image, zlib.Z_RLE)  # a mask is long runs: half the time


def write_probability(path: Path, probability: np.ndarray, reference: nib.Nifti1Image) -> None:
    """Write a brain probability (X, Y, Z) in [0, 1] in steps of 1/255, geometry as of a mask.

    What is above one half stays above it, and all else stays at or below it.
    """
    steps = np.ceil(np.asarray(probability, np.float32) * 255 - 0.5)
    image = _on_grid(steps.astype(np.uint8), reference)
    image.header.set_slope_inter(1 / 255, 0)
    image.header["cal_max"] = 1
    _write_nifti(path, image)


def write_distance(path: Path, distance: np.ndarray, reference: nib.Nifti1Image) -> None:
    """Write distances in mm (X, Y, Z) as float32, geometry as of a mask."""
    _write_nifti(path, _on_grid(np.asarray(distance, np.float32), reference))


def write_brain(path: Path, data: np.ndarray, reference: nib.Nifti1Image) -> None:
    """Write a scan without its skull, 3D or 4D, with the scan's own header.

    Header extensions are left out: they may name the person.
    """
    header = reference.header.copy()
    header.extensions.clear()
    header.set_data_dtype(data.dtype)
    _write_nifti(path, type(reference)(data, None, header))


def _on_grid(voxels: np.ndarray, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Give voxels (X, Y, Z) the geometry of a scan, field by field, and nothing else of it."""
    if voxels.shape != reference.shape[:3]:
        raise ValueError(f"{voxels.shape} voxels are not on the grid {reference.shape}")
    image = type(reference)(voxels, None)
    for name in _GEOMETRY:
        image.header[name] = reference.header[name]
    image.header["pixdim"][:4] = reference.header["pixdim"][:4]  # qfac and the voxel size
    return image


def _write_nifti(
    path: Path, image: nib.Nifti1Image, strategy: int = zlib.Z_DEFAULT_STRATEGY
) -> None:
    """Write a `.nii.gz` without its name or the time in it: equal images give equal bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS, strategy=strategy)
    write_bytes(path, packer.compress(image.to_bytes()) + packer.flush())


def sidecar(scan: Scan, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON fields of a scan's mask: its source, its grid, and `fields`."""
    return {"Type": "Brain", **provenance(scan), **fields}


def provenance(scan: Scan) -> dict[str, Any]:
    """Return the JSON fields that say which scan an image is made from and lies on."""
    return {"Sources": [bids_uri(scan)], "SpatialReference": bids_uri(scan)}


def write_dataset(output_dir: Path, bids_dir: Path, readme: str = README) -> None:
    """Make the output folder a BIDS derivative dataset.

    Writes `dataset_description.json`, and `.bidsignore` and `README.md` unless they are there.
    Running it again, or in several jobs at once, does no harm. Raises as `check_output` does.

    Parameters
    ----------
    output_dir, bids_dir
        The two datasets.
    readme
        What to write to `README.md`.
    """
    check_output(output_dir, bids_dir)
    tool: dict[str, Any] = {"Name": TOOL, "Version": __version__}
    tool |= {"CodeURL": url} if (url := _code_url()) else {}
    tool |= {"Container": container} if (container := _container()) else {}
    description = {
        "Name": "Brain masks by singlestrip-bids",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [tool],
        "DatasetLinks": {RAW: _link(output_dir, bids_dir)},
    }
    write_json(output_dir / "dataset_description.json", description)
    for name, text in ((".bidsignore", BIDSIGNORE), ("README.md", readme)):
        if not (output_dir / name).exists():
            write_text(output_dir / name, text)


def check_outside(folder: Path, what: str, bids_dir: Path) -> None:
    """Raise `Usage` if a folder to write to is inside the input, other than its derivatives."""
    place, raw = folder.resolve(), bids_dir.resolve()
    if place.is_relative_to(raw) and not place.is_relative_to(raw / "derivatives"):
        raise Usage(
            f"The {what} folder {folder} is inside the input dataset {bids_dir}. "
            f"Choose one outside, or {bids_dir / 'derivatives' / 'singlestrip'}."
        )


def check_output(output_dir: Path, bids_dir: Path) -> None:
    """Raise `Usage` if writing to a folder would touch the input or another dataset."""
    output = output_dir.resolve()
    subjects = any(output.glob("sub-*"))  # asked first: another job writes the description first
    check_outside(output_dir, "output", bids_dir)
    if (subjects or (output / "dataset_description.json").exists()) and not made_here(output):
        raise Usage(
            f"The output folder {output_dir} holds another dataset: it has no "
            f"dataset_description.json that names {TOOL}. Choose an empty or new folder."
        )


def made_here(folder: Path) -> bool:
    """Tell whether a dataset was made by this program, by its `GeneratedBy`."""
    description = folder / "dataset_description.json"
    made_by = read_json(description).get("GeneratedBy") if description.is_file() else None
    tools = made_by if isinstance(made_by, list) else [made_by]
    return any(isinstance(tool, dict) and tool.get("Name") == TOOL for tool in tools)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    BadData
        If it cannot be read, or is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path} is not readable JSON: {error}. Correct the file.") from error
    if not isinstance(content, dict):
        raise BadData(f"{path} holds no JSON object. Correct the file.")
    return content


def _link(output_dir: Path, bids_dir: Path) -> str:
    """Return the input as a relative path, or as a file URI where only the root is shared."""
    output, raw = output_dir.resolve(), bids_dir.resolve()
    if os.path.commonpath([output, raw]) == output.anchor:
        return raw.as_uri()
    return quote(Path(os.path.relpath(raw, output)).as_posix())


def _code_url() -> str | None:
    """Return the home of the source code from the package's metadata, if it says so."""
    try:
        entries = metadata.metadata(TOOL).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    urls = dict(entry.split(", ", 1) for entry in entries)
    return next((urls[key] for key in ("Source", "Repository", "Homepage") if key in urls), None)


def _container() -> dict[str, str]:
    """Return type and tag of the image this runs in; its recipe sets the variable of the tag."""
    tag = os.environ.get("SINGLESTRIP_CONTAINER")
    kind = "singularity" if "APPTAINER_CONTAINER" in os.environ else "docker"
    return {"Type": kind, "Tag": tag} if tag else {}


def _cell(value: object) -> str:
    """Write one table cell."""
    if value is None:
        return "n/a"
    if isinstance(value, float | np.floating):
        return "n/a" if math.isnan(value) else f"{value:.4f}"
    return " ".join(str(value).split()) or "n/a"


def _plain(value: object) -> object:
    """Turn numpy values and paths into what JSON has."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
