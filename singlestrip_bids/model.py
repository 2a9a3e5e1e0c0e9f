"""A trained model as a folder: networks in safetensors and ``model.json``, its card."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import checkpoints
from .calibration import Calibration
from .config import NetworkConfig, QualityConfig
from .derivatives import read_json, write_json
from .errors import BadData, NoInput
from .frame import Frame
from .networks import Autoencoder, UNet
from .runtime import Runtime

CARD = "model.json"
AUTOENCODER = "autoencoder.safetensors"
_MALFORMED = (LookupError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError)
FORMAT = 2  # of the card; others are refused


@dataclass(frozen=True)
class Model:
    """Networks on their device, and what is needed to apply them."""

    folder: Path
    network: UNet
    autoencoder: nn.Module
    quality: QualityConfig
    calibration: Calibration
    frame: Frame
    card: dict[str, Any]


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """Checksum of plain data: what decides the result of a stage."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card of the networks in a folder, with their checksums: the model is complete.

    Parameters
    ----------
    folder : Path
        Holds the network named in the card and the autoencoder.
    card : dict
        Plain data: ``network`` (file name), ``voxel_size_mm``, ``brain_ml`` and ``head_width`` (of
        the label), ``calibration``, ``method`` and what the reader should know.
    """
    names = (card["network"], AUTOENCODER)
    checksums = {name: sha256(folder / name) for name in names}
    whole = {"format": FORMAT, **card, "autoencoder": AUTOENCODER, "sha256": checksums}
    write_json(folder / CARD, whole)


def retract(folder: Path) -> None:
    """Remove the card before a network changes: without one there is no model."""
    (folder / CARD).unlink(missing_ok=True)


def read_card(folder: Path) -> dict[str, Any] | None:
    """Read the card of a model alone; None if there is no model.

    Raises
    ------
    BadData
        Damaged, foreign, or of another version.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    card = read_json(path)
    found = card.get("format")
    if not isinstance(found, int):
        raise BadData(f"{path}: not a card of this app; train again.")
    if found > FORMAT:
        raise BadData(f"{path}: written by a newer version (format {found}); update.")
    if found < FORMAT:
        raise BadData(
            f"{path}: written by an older version (format {found}); run the group level again: "
            "it keeps the networks and learns the expected Dice anew."
        )
    return card


def confirm(folder: Path) -> None:
    """Set the date of the card to now, by which scripts see that a run has left a model."""
    write_json(folder / CARD, read_json(folder / CARD))


def made_of(folder: Path) -> str:
    """Return the fingerprint of what a finished model was made of; empty if there is none."""
    try:
        return str((read_card(folder) or {}).get("fingerprint", ""))
    except BadData:  # it is made anew
        return ""


def preset_of(folder: Path) -> str:
    """Return the preset with which training was begun in a folder; empty if none was."""
    path = folder / AUTOENCODER  # which is trained first
    try:
        return str(checkpoints.load(path)[1].get("preset", "")) if path.is_file() else ""
    except BadData:  # it is trained anew
        return ""


def read_table(folder: Path, name: str) -> list[dict[str, str]]:
    """Read a table of a model, such as ``scores``; empty if there is none."""
    path = folder / f"{name}.tsv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def load(folder: Path, runtime: Runtime) -> Model:
    """Read a model that the group level has written.

    Raises
    ------
    NoInput
        No model in the folder.
    BadData
        A card or a network that is damaged, foreign, or of another version.
    """
    path, card = folder / CARD, read_card(folder)
    if card is None:
        raise NoInput(
            f"{folder}: no model ({CARD}) here; run the group level first, or pass --model with "
            "the code/singlestrip folder of an earlier run."
        )
    try:
        method = card["method"]
        quality = QualityConfig(**method["quality"])
        shape = NetworkConfig(
            **{**method["network"], "features": tuple(method["network"]["features"])}
        )
        network = UNet(shape)
        autoencoder = Autoencoder(quality.latent, quality.slice_size)
        for net, name in ((network, card["network"]), (autoencoder, card["autoencoder"])):
            _read(net, folder, name, card["sha256"][name])
        calibration = Calibration(**{k: float(v) for k, v in card["calibration"].items()})
        lengths = (float(card[name]) for name in ("voxel_size_mm", "brain_ml", "head_width"))
        voxel_size, brain_ml, head_width = lengths
        frame = Frame(voxel_size, int(method["size"]), shape.multiple, brain_ml, head_width)
        _check_numbers(calibration, frame)
    except _MALFORMED as error:
        raise BadData(f"{path}: not a card of this app ({error!r}); train again.") from error
    return Model(
        folder,
        runtime.take(network),
        runtime.take(autoencoder),
        quality,
        calibration,
        frame,
        card,
    )


def _check_numbers(calibration: Calibration, frame: Frame) -> None:
    """Raise `ValueError` for numbers that no training gives."""
    if not all(abs(value) < 100 for value in astuple(calibration)):  # NaN is not
        raise ValueError(f"impossible {calibration}")
    grid = 0.001 < frame.voxel_size < 1000 and 1 < frame.size <= 1024
    if not (grid and 0 < frame.brain_ml < 1e6 and 0 < frame.head_width < 1e4):
        raise ValueError(f"impossible {frame}")


def _read(network: nn.Module, folder: Path, name: str, checksum: str) -> None:
    path = folder / Path(name).name
    tensors, _ = checkpoints.load(path)
    if sha256(path) != checksum:
        raise BadData(f"{path}: not the network its card was written for; train again.")
    checkpoints.restore(path, network, tensors)
