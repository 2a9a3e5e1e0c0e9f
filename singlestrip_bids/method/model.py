"""A trained model as a folder: networks in safetensors and ``model.json``, its card."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from ..bids.label import Label
from ..bids.ratings import Ratings
from ..bids.scans import Scan
from ..config import PRESETS, AutoencoderConfig, MethodConfig, NetworkConfig
from ..errors import BadData, NoInput, ScanFailed
from ..image import nifti
from ..image.brain import Brain, Parts
from ..image.frame import Frame
from ..image.grid import Conformed, Grid, halved, restore_mask, restore_most
from ..image.head import refuse_stripped
from ..image.masks import Mask, dice
from ..image.nifti import Image
from ..image.structures import Shares, Structure, doubled, fill_gaps, most, overlaps
from ..machine.files import load_tensors, read_json, sha256, write_json
from ..machine.runtime import Runtime
from .classes import Source
from .expected_dice import Calibration, Segmentation, bettered, bettered_structure, segment
from .fine import draw, edge_of
from .inference import mask_from
from .networks import Autoencoder, UNet
from .orientation import STEADIER, Doubt, doubt
from .propagation import LABEL_FILE, finer, hear, kept, propagate_labels
from .training import load_weights

LOG = logging.getLogger("singlestrip_bids")

CARD = "model.json"
AUTOENCODER = "autoencoder.safetensors"
_MALFORMED = (LookupError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError)
FORMAT = 2  # of the card; others are refused


@dataclass(frozen=True)
class Model:
    """Networks on their device, and what is needed to apply them."""

    folder: Path  # where it was read from
    network: UNet  # makes masks
    autoencoder: Autoencoder  # judges their shape
    calibration: Calibration  # from evidence to an expected Dice
    frame: Frame  # how scans are brought to the networks' grid
    card: dict[str, Any]  # of ``model.json``: settings, inputs, versions, checksums
    runtime: Runtime  # where the networks are
    labels: tuple[Source, ...] = ()  # labelled scans to be propagated; none if that is not wanted
    fine: UNet | None = None  # draws the border in voxels half as large
    usual: float | None = None  # expected Dice of unlabelled scans in the mean, if there were any
    structures: tuple[tuple[Structure, Calibration | None], ...] = ()  # that it tells apart

    @property
    def draft(self) -> bool:
        """Whether its networks have seen phantoms alone, so that its masks are drafts."""
        return bool(self.card.get("phantoms"))

    def mask(self, scan: str | Path | nib.Nifti1Image) -> Brain:
        """Find the brain in one scan.

        Parameters
        ----------
        scan : path or nibabel image
            NIfTI, with its skull; of a 4D one the mean.

        Returns
        -------
        Brain
            Its ``mask`` and ``probability`` are nibabel images on the scan's own grid.

        Raises
        ------
        BadData
            The scan cannot be read, or it is already skull-stripped.
        ScanFailed
            The network found no brain.
        """
        in_memory = not isinstance(scan, str | Path)
        image = nifti.from_memory(scan) if in_memory else nifti.load(Path(scan))
        return self.find(image, self.frame.conform(image))

    def find(self, image: Image, conformed: Conformed) -> Brain:
        """Find the brain in an image that is on the networks' grid already; raises as `mask`."""
        seen = segment(self.network, self.autoencoder, conformed, self.runtime)
        refuse_stripped(image.path, conformed, seen.mask)
        found, share = replace(conformed, data=seen.probability), dict[str, float]()
        shares = seen.shares
        if self.labels:
            said = propagate_labels(self.labels, conformed, self.runtime, seen.mask)
            found, shares, share["PropagatedWeight"] = hear(found, shares, said)
        if self.fine:
            fine = self.frame.conform_finer(image, conformed)
            least = edge_of(self.frame.grid)
            drawn = draw(self.fine, fine, found, shares, least, self.runtime)
            found, shares, share["FineWeight"] = drawn
        mask = restore_mask(found.data, found.affine, image)
        if not mask.any():
            raise ScanFailed(
                f"{image.path}: the network found no brain; look at the scan, or label one like "
                "it."
            )
        expected, *interval = self.calibration.expect(seen.evidence)
        turned = self._doubt(image, conformed, seen, expected)
        if turned:
            LOG.warning("%s: %s", image.path, turned.words)
            low = turned.agreement - (expected - interval[0])
            expected = min(expected, turned.agreement)
            interval[0] = max(min(interval[0], low), 0.0)
        elif any(share.values()):
            agreed = _agreement(seen.mask, conformed, found)
            votes = 1 - math.prod(1 - weight for weight in share.values())
            expected, *interval = bettered((expected, *interval), agreed, votes)
            share["NetworkAgreement"] = agreed
        return Brain(
            image,
            mask,
            found,
            replace(conformed, data=seen.rebuilt.astype(np.float32)),
            expected,
            (interval[0], interval[1]),
            {
                "QualityScore": seen.evidence.score,
                "MildContrastAgreement": seen.evidence.mild,
                "StrongContrastAgreement": seen.evidence.strong,
                **share,
            },
            seen.way,
            turned.words if turned else "",
            None if shares is None else self._segment(shares, seen, conformed, image, mask),
        )

    def _segment(
        self, shares: Shares, seen: Segmentation, conformed: Conformed, image: Image, mask: Mask
    ) -> Parts:
        """Tell the structures within a mask on the grid of the scan."""
        fine = shares.shape[1:] != conformed.data.shape
        affine = halved(conformed.affine) if fine else conformed.affine
        numbers = fill_gaps(restore_most(shares, affine, image), mask)
        assert seen.numbers is not None
        before, after = seen.numbers, most(shares, seen.mask)
        before = before if before.shape == after.shape else doubled(before)
        agreed = overlaps(before, after, len(self.structures))
        none = np.bincount(before.ravel(), minlength=len(agreed) + 1)[1:] == 0
        agreed = np.where(np.isnan(agreed), none, agreed)  # where none is left
        lines = zip(self.structures, seen.by_structure, agreed.tolist(), strict=True)
        expected = [
            bettered_structure(line.expect(evidence), agreement) if line else None
            for (_, line), evidence, agreement in lines
        ]
        named = tuple(structure for structure, _ in self.structures)
        return Parts(named, numbers, tuple(expected), shares, affine)

    def _doubt(
        self, image: Image, conformed: Conformed, seen: Segmentation, expected: float
    ) -> Doubt | None:
        """Look at a scan from all sides if less can be expected of it than of the pool."""
        usual = self.usual
        if self.frame.turned:  # no orientation is wrong
            return None
        if image.is_placed and usual is not None and 1 - expected < STEADIER * (1 - usual):
            return None
        return doubt(self.network, conformed, seen.mask, seen.evidence, self.runtime)

    def stamp(self, scan: Path) -> dict[str, str]:
        """Return the sidecar fields that tell what an output is made of: checksums."""
        stamp = {
            "ModelSHA256": self.card["sha256"][self.card["network"]],
            "ModelCardSHA256": sha256(self.folder / CARD),  # with the calibration
            "SourceSHA256": sha256(scan),
        }
        if LABEL_FILE in self.card["sha256"]:
            stamp["LabelSHA256"] = self.card["sha256"][LABEL_FILE] if self.labels else ""
        return stamp


def _agreement(mask: Mask, conformed: Conformed, found: Conformed) -> float:
    """Dice of a network's mask with the probability that it became, cut at one half."""
    before = finer(replace(conformed, data=mask.astype(np.float32)), found.data.shape)
    return dice(before.data > 0.5, mask_from(found.data))


def facts(
    labels: Sequence[Label],
    pool: Sequence[Scan],
    ratings: Ratings,
    frame: Frame,
    method: MethodConfig,
    extended: bool,
) -> dict[str, Any]:
    """Say what a model is learnt from, for its card; ``pool`` are the unlabelled scans.

    ``extended`` tells whether the field of view of a labelled head was.
    """
    return {
        "label": [label.checksums for label in labels],
        "unlabelled": [scan.relative for scan in pool],
        "ratings": ratings.to_dict(),
        "voxel_size_mm": frame.grid.voxel_size,
        "brain_ml": frame.brain_ml,
        "head_width": frame.head_width,
        "continued": extended,
        "method": method.to_dict(),
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card of the networks in a folder, with their checksums: the model is complete.

    It is plain data: ``network`` (file name), ``voxel_size_mm``, ``brain_ml`` and ``head_width``
    (of the label), ``calibration``, ``method`` and what the reader should know.
    """
    names = [card["network"], AUTOENCODER, *([card["fine"]] if card.get("fine") else [])]
    names += [LABEL_FILE] if card.get("label_kept") else []
    checksums = {name: sha256(folder / name) for name in names}
    whole = {"format": FORMAT, **card, "autoencoder": AUTOENCODER, "sha256": checksums}
    write_json(folder / CARD, whole)


def retract(folder: Path) -> None:
    """Remove the card before a network changes: without one there is no model."""
    (folder / CARD).unlink(missing_ok=True)


def read_card(folder: Path) -> dict[str, Any] | None:
    """Read the card of a model alone; None if there is none. `BadData` is raised as by `load`."""
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
        return str(load_tensors(path)[1].get("preset", "")) if path.is_file() else ""
    except BadData:  # it is trained anew
        return ""


def suited_preset(runtime: Runtime, folder: Path | None) -> str:
    """Choose the preset where none is given: that of a training begun in a folder, if any."""
    suited = "standard" if runtime.device.type == "cuda" else "quick"
    begun = preset_of(folder) if folder else suited
    if begun not in PRESETS:
        return suited
    if begun != suited:
        LOG.info("Preset %s, with which the model here was begun; --preset changes it.", begun)
    return begun


def load(folder: Path, runtime: Runtime, propagation: bool = True) -> Model:
    """Read a model that the group level has written.

    With ``propagation`` its masks are joined with the propagated label, if the model keeps one.

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
        method, told = card["method"], card.get("structures", [])
        shape = NetworkConfig(
            **{**method["network"], "features": tuple(method["network"]["features"])}
        )
        network = UNet(shape, len(told))
        autoencoder = Autoencoder(AutoencoderConfig(**method["quality"]), len(told))
        named = [(network, card["network"]), (autoencoder, card["autoencoder"])]
        fine = UNet(shape, len(told)) if card.get("fine") else None
        named += [(fine, card["fine"])] if fine else []
        for net, name in named:
            source_path, tensors = _read(folder, name, card["sha256"][name])
            load_weights(source_path, net, tensors)
        labels, turned = tuple[Source, ...](), bool(method.get("any_orientation"))
        if propagation and card.get("label_kept"):
            tensors = _read(folder, LABEL_FILE, card["sha256"][LABEL_FILE])[1]
            labels = kept(tensors, len(told), turned)
        pool = card["guard"]["standings"][Path(card["network"]).stem]["pool"]
        usual = None if pool is None else float(pool)
        calibration = _calibration(card["calibration"])
        structures = tuple(map(_structure, told))
        lengths = (float(card[name]) for name in ("voxel_size_mm", "brain_ml", "head_width"))
        voxel_size, brain_ml, head_width = lengths
        grid = Grid(voxel_size, int(method["size"]), shape.multiple)
        fitted = bool(card.get("phantoms"))
        frame = Frame(grid, brain_ml, head_width, fitted=fitted, turned=turned)
        _check_numbers(calibration, frame)
    except _MALFORMED as error:
        raise BadData(f"{path}: not a card of this app ({error!r}); train again.") from error
    networks = runtime.take(network), runtime.take(autoencoder)
    if fine:
        runtime.take(fine)
    return Model(
        folder, *networks, calibration, frame, card, runtime, labels, fine, usual, structures
    )


def _calibration(fields: Mapping[str, Any]) -> Calibration:
    return Calibration(**{name: float(value) for name, value in fields.items()})


def _structure(fields: Mapping[str, Any]) -> tuple[Structure, Calibration | None]:
    """Read a structure of a card, and what can be expected of it, if that is known."""
    line, (index, name, colour) = (
        fields["calibration"],
        (fields[key] for key in ("index", "name", "colour")),
    )
    return Structure(int(index), str(name), str(colour)), line and _calibration(line)


def _check_numbers(calibration: Calibration, frame: Frame) -> None:
    """Raise `ValueError` for numbers that no training gives."""
    if not all(abs(value) < 100 for value in astuple(calibration)):  # NaN is not
        raise ValueError(f"impossible {calibration}")
    grid = 0.001 < frame.grid.voxel_size < 1000 and 1 < frame.grid.size <= 1024
    if not (grid and 0 < frame.brain_ml < 1e6 and 0 < frame.head_width < 1e4):
        raise ValueError(f"impossible {frame}")


def _read(folder: Path, name: str, checksum: str) -> tuple[Path, dict[str, Tensor]]:
    """Read tensors for which the card was written, and say from where."""
    path = folder / Path(name).name
    tensors, _ = load_tensors(path)
    if sha256(path) != checksum:
        raise BadData(f"{path}: not the file its card was written for; train again.")
    return path, tensors
