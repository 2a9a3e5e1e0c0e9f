"""A derivative dataset of this app: where everything in it lies, and what describes it.

Names of what BIDS names are built here alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..errors import Usage
from ..machine.files import check_content, read_json, write_json, write_text
from .scans import Scan

TOOL = "singlestrip-bids"
BIDS_VERSION = "1.10.0"
RAW = "raw"  # name of the input dataset in `DatasetLinks` and so in every BIDS URI
# BIDS has no suffix for maps of distances, and no rule for masks in perf yet
BIDSIGNORE = "*.html\nlogs\nlog\nfigures\n*_distance.*\nperf\nvolumes.tsv\n"
README = """\
# Brain masks by singlestrip-bids

`sub-*/` holds one brain mask for each scan, on the scan's own grid, with a JSON sidecar.
`code/singlestrip/` holds the trained model and the tables about its training.
The masks are predictions: look at them before you rely on them.
"""
_AFTER_SPACE = ("split-", "recording-", "chunk-")  # BIDS order: ..._part_space_chunk_desc


@dataclass(frozen=True)
class Derivatives:
    """Where everything lies in a dataset of masks, of which ``root`` is the output folder."""

    root: Path

    @property
    def model_dir(self) -> Path:
        """Folder of the model, its card and its tables."""
        return self.root / "code" / "singlestrip"

    def log_dir(self, run_id: str) -> Path:
        """Return the folder of what a run leaves for tracing it."""
        return self.root / "logs" / run_id

    def mask(self, scan: Scan, border_mm: float | None = None) -> Path:
        """Return where a scan's brain mask goes; different for every scan.

        The name keeps the scan's entities. The main contrast of a folder (T1w, bold, asl, dwi)
        gives no `space-` entity, every other one does: `sub-01_space-T2w_desc-brain_mask.nii.gz`.
        A mask whose border was moved says so: `desc-brainPlus2mm`, `desc-brainMinus1p5mm`.
        """
        desc = "brain"
        if border_mm is not None:
            millimetres = f"{abs(border_mm):g}".replace(".", "p")
            desc += f"{'Plus' if border_mm > 0 else 'Minus'}{millimetres}mm"
        return self.image(scan, f"desc-{desc}_mask")

    def image(self, scan: Scan, ending: str) -> Path:
        """Return where an image on a scan's grid goes, such as `label-brain_probseg`."""
        return self._of_scan(scan, ending, scan.mask_space)

    def dseg(self, scan: Scan) -> Path:
        """Return where the structures of a scan's brain go."""
        return self.image(scan, "dseg")

    @property
    def volumes(self) -> Path:
        """Table of the volumes of all structures in all scans."""
        return self.root / "volumes.tsv"

    def brain(self, scan: Scan) -> Path:
        """Return where a scan without its skull goes: `sub-01_desc-brain_T2w.nii.gz`."""
        return self._of_scan(scan, f"desc-brain_{scan.suffix}", None)

    def figure(self, relative: str, desc: str, extension: str) -> Path:
        """Return where a picture goes, such as `sub-01/figures/sub-01_desc-scan_T1w.jpg`."""
        name, suffix = Path(relative).name.split(".")[0].rsplit("_", 1)
        folder = self.root / relative.rpartition("/")[0].split("/")[0] / "figures"
        return folder / f"{name}_desc-{desc}_{suffix}{extension}"

    def address(self, path: Path) -> str:
        """Return a path as pages in the root refer to it; empty if nothing is there."""
        return path.relative_to(self.root).as_posix() if path.is_file() else ""

    def page(self, name: str) -> Path:
        """Return where a page goes; it is named after a subject, or `group`."""
        return self.root / f"{name}.html"

    def citation(self, extension: str) -> Path:
        """Return where the methods text goes."""
        return self.root / "logs" / f"CITATION{extension}"

    def mask_sidecars(self, subject: str = "*") -> list[Path]:
        """List the sidecars of the brain masks that are there, sorted by path."""
        name = "*_desc-brain_mask.json"
        within = (f"sub-{subject}/*/{name}", f"sub-{subject}/ses-*/*/{name}")
        return sorted(path for pattern in within for path in self.root.glob(pattern))

    def dseg_sidecar(self, mask_sidecar: Path) -> Path:
        """Return the sidecar of the segmentation that belongs to a mask."""
        return mask_sidecar.with_name(mask_sidecar.name.replace("_desc-brain_mask.", "_dseg."))

    def _of_scan(self, scan: Scan, ending: str, space: str | None) -> Path:
        """Name an image made from a scan, after the entities of the scan."""
        parts = scan.name.split("_")[:-1]
        if space is not None:
            later = [index for index, part in enumerate(parts) if part.startswith(_AFTER_SPACE)]
            parts.insert(min(later, default=len(parts)), f"space-{space}")
        return (self.root / scan.relative).parent / f"{'_'.join(parts)}_{ending}.nii.gz"

    def start(self, bids_dir: Path, readme: str = README) -> None:
        """Make the folder a BIDS derivative dataset of the scans in ``bids_dir``.

        Writes `dataset_description.json`, and `.bidsignore` and `README.md` unless they are there.
        Running it again, or in several jobs at once, does no harm. Raises as `check` does.
        """
        self.check(bids_dir)
        tool: dict[str, Any] = {"Name": TOOL, "Version": __version__}
        tool |= {"Container": container} if (container := _container()) else {}
        description = {
            "Name": "Brain masks by singlestrip-bids",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [tool],
            "DatasetLinks": {RAW: _link(self.root, bids_dir)},
        }
        write_json(self.root / "dataset_description.json", description)
        for name, text in ((".bidsignore", BIDSIGNORE), ("README.md", readme)):
            if not (self.root / name).exists():
                write_text(self.root / name, text)

    def check(self, bids_dir: Path) -> None:
        """Raise `Usage` if writing here would touch the input or another dataset."""
        output = self.root.resolve()
        subjects = any(output.glob("sub-*"))  # asked first: another job writes the description
        check_outside(self.root, "output", bids_dir)
        if (subjects or (output / "dataset_description.json").exists()) and not made_here(output):
            raise Usage(
                f"The output folder {self.root} holds another dataset: it has no "
                f"dataset_description.json that names {TOOL}. Choose an empty or new folder."
            )


def sidecar_path(image: Path) -> Path:
    """Return the JSON file beside a `.nii` or `.nii.gz` image."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def bids_uri(scan: Scan) -> str:
    """Return the BIDS URI of a scan of the input dataset."""
    return f"bids:{RAW}:{scan.relative}"


def provenance(scan: Scan) -> dict[str, Any]:
    """Return the JSON fields that say which scan an image is made from and lies on."""
    return {"Sources": [bids_uri(scan)], "SpatialReference": bids_uri(scan)}


def check_outside(folder: Path, what: str, bids_dir: Path) -> None:
    """Raise `Usage` if a folder to write to is inside the input, other than its derivatives."""
    place, raw = folder.resolve(), bids_dir.resolve()
    if place.is_relative_to(raw) and not place.is_relative_to(raw / "derivatives"):
        raise Usage(
            f"The {what} folder {folder} is inside the input dataset {bids_dir}. "
            f"Choose one outside, or {bids_dir / 'derivatives' / 'singlestrip'}."
        )


def made_here(folder: Path) -> bool:
    """Tell whether a dataset was made by this program, by its `GeneratedBy`."""
    description, made_by = folder / "dataset_description.json", None
    if description.is_file() or description.is_symlink():
        check_content(description)
        made_by = read_json(description).get("GeneratedBy")
    tools = made_by if isinstance(made_by, list) else [made_by]
    return any(isinstance(tool, dict) and tool.get("Name") == TOOL for tool in tools)


def _link(output_dir: Path, bids_dir: Path) -> str:
    """Return the input as a relative path, or as a file URI where only the root is shared."""
    output, raw = output_dir.resolve(), bids_dir.resolve()
    if os.path.commonpath([output, raw]) == output.anchor:
        return raw.as_uri()
    return quote(Path(os.path.relpath(raw, output)).as_posix())


def _container() -> dict[str, str]:
    """Return type and tag of the image this runs in; its recipe names it by a variable."""
    name = os.environ.get("SINGLESTRIP_CONTAINER")
    kind = "singularity" if "APPTAINER_CONTAINER" in os.environ else "docker"
    return {"Type": kind, "Tag": f"{name}:{__version__}"} if name else {}
