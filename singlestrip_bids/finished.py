"""Which scans need nothing more: all that is wanted of them is there, and still true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import derivatives
from .errors import BadData
from .inputs import Scan
from .model import CARD, Model, sha256


def write_with_sidecar(path: Path, write: Callable[[], None], fields: Mapping[str, Any]) -> None:
    """Write an image and its sidecar so that a sidecar never tells of another image.

    Parameters
    ----------
    path
        The image.
    write
        Writes it.
    fields
        Of the sidecar.
    """
    derivatives.sidecar_path(path).unlink(missing_ok=True)
    write()
    derivatives.write_json(derivatives.sidecar_path(path), fields)


def stamp(scan: Scan, trained: Model) -> dict[str, str]:
    """Return the sidecar fields that tell what an output was made of: checksums."""
    return {
        "ModelSHA256": trained.card["sha256"][trained.card["network"]],
        "ModelCardSHA256": sha256(trained.folder / CARD),  # with the calibration
        "SourceSHA256": sha256(scan.path),
    }


def finished(images: Sequence[Path], scan: Scan, trained: Model) -> bool:
    """Tell whether all images of a scan are there, made by this model from this very scan.

    Where there is a sidecar, it tells the truth: see `write_with_sidecar`.
    """
    sidecars = [derivatives.sidecar_path(path) for path in images if path.is_file()]
    if len(sidecars) < len(images) or not all(path.is_file() for path in sidecars):
        return False
    wanted = stamp(scan, trained)
    try:
        return all(wanted.items() <= derivatives.read_json(path).items() for path in sidecars)
    except BadData:  # damaged
        return False


def outdated(output_dir: Path, scan: Scan, stamped: Mapping[str, str]) -> list[Path]:
    """List sidecars of a scan's images that another model than that of `stamp` has made."""
    found = []
    folder = (output_dir / scan.relative).parent
    for path in sorted(folder.glob(f"sub-{scan.subject}_*.json")):
        try:
            fields = derivatives.read_json(path)
        except BadData:  # damaged
            continue
        own = fields.get("SpatialReference") == derivatives.bids_uri(scan)
        if own and fields.get("ModelSHA256") != stamped["ModelSHA256"]:
            found.append(path)
    return found
