"""What the participant level writes of a scan: one table, and what is finished by it.

To add an output, add a row to `OUTPUTS`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..config import RunConfig
from ..errors import BadData
from ..image import nifti
from ..image.brain import COVERAGE, Brain
from ..image.masks import move_border, signed_distance
from ..image.structures import Structure
from ..machine.files import read_json, write_json
from .derivatives import Derivatives, bids_uri, provenance, sidecar_path
from .dseg import write_table
from .scans import Scan

LOG = logging.getLogger("singlestrip_bids")


@dataclass(frozen=True)
class Request:
    """What a run is to write."""

    config: RunConfig
    for_fmriprep: frozenset[Scan] = frozenset()  # those whose masks are handed to fMRIPrep
    structures: tuple[Structure, ...] = ()  # that the model tells apart

    @property
    def out(self) -> Derivatives:
        """The output dataset."""
        return Derivatives(self.config.output_dir)


@dataclass(frozen=True)
class Masked:
    """A scan whose brain was found."""

    scan: Scan
    brain: Brain
    stamp: Mapping[str, str]  # checksums of model and scan: what the outputs are made of
    network: str  # file name of the network
    seconds: float  # how long reading and computing took
    draft: bool = False  # whether the network has seen phantoms alone


@dataclass(frozen=True)
class Output:
    """One kind of image that can be written of a scan."""

    name: str
    wanted: Callable[[Scan, Request], bool]  # whether it is asked for of a scan
    path: Callable[[Scan, Request], Path]  # where it goes
    make: Callable[[Brain, Request], nib.Nifti1Image]  # the image, of the brain
    fields: Callable[[Masked, Request], dict[str, Any]]  # of its JSON sidecar
    table: bool = False  # whether a look-up table belongs to it


def _asked(name: str) -> Callable[[Scan, Request], bool]:
    """Say whether ``--output`` names it."""
    return lambda scan, request: name in request.config.output


def _described(**about: Any) -> Callable[[Masked, Request], dict[str, Any]]:
    """Make a sidecar of provenance, checksums and fixed fields."""
    return lambda done, request: {**provenance(done.scan), **done.stamp, **about}


def _mask_fields(done: Masked, request: Request) -> dict[str, Any]:
    """Make the sidecar of a mask: with the Dice to be expected and what it is read from."""
    brain, image = done.brain, done.brain.image
    joined = brain.evidence.get("PropagatedWeight", 0) > 0
    about = "Brain mask by a network trained from one labelled scan (SingleStrip)"
    about += ", joined with the propagated label" if joined else ""
    about += (
        "; its border by another, in smaller voxels." if brain.evidence.get("FineWeight") else "."
    )
    fields: dict[str, Any] = {
        "Type": "Brain",
        **provenance(done.scan),
        "Description": DRAFTED if done.draft else about,
        "Manual": False,
        "ExpectedDice": round(brain.expected_dice, 4),
        "ExpectedDiceInterval": [round(end, 4) for end in brain.interval],
        "ExpectedDiceDescription": EXPECTED_OF_DRAFT if done.draft else EXPECTED_DICE,
    }
    for name, about in EVIDENCE.items():
        if name not in brain.evidence:
            continue
        fields |= {name: round(brain.evidence[name], 4), f"{name}Description": about}
    fields |= {
        "BrainVolumeMl": float(f"{brain.volume_ml:.5g}"),
        "WorkingVoxelSizeMm": round(brain.rebuilt.voxel_size, 3),
        "Model": done.network,
    }
    if done.draft:
        fields["Draft"] = DRAFT
    if brain.out_of_memory:
        fields["OutOfMemory"] = f"The GPU's memory was full; computed {brain.out_of_memory}."
    if doubt := brain.orientation or ("" if image.is_placed else nifti.UNPLACED):
        fields["OrientationDoubt"] = doubt[0].upper() + doubt[1:]
    if image.averaged < image.volumes:
        fields["Averaged"] = (
            f"The mask is of the mean of the {image.averaged} volumes without diffusion "
            f"weighting, of {image.volumes}."
        )
    elif image.volumes > 1:
        fields["Averaged"] = f"The mask is of the mean over time of {image.volumes} volumes."
    return {**fields, **done.stamp, "ComputeSeconds": round(done.seconds, 2)}


def _moved_mask(brain: Brain, request: Request) -> nib.Nifti1Image:
    """Make the mask with its border moved by ``--border-mm``."""
    distance = request.config.border_mm or 0.0
    mask = move_border(brain.voxels, brain.image.sizes, distance)
    if not mask.any():
        LOG.warning("%s: nothing is left of the brain at this --border-mm.", brain.image.path)
    return nifti.mask_image(mask, brain.image.nifti)


def _moved_fields(done: Masked, request: Request) -> dict[str, Any]:
    distance = request.config.border_mm or 0.0
    verb = "grown" if distance > 0 else "shrunk"
    about = f"The brain mask, {verb} by {abs(distance):g} mm within its grid."
    fields = {"Description": about, "BorderMm": distance}
    return {"Type": "Brain", **provenance(done.scan), **fields, **done.stamp}


def _fmriprep_mask(brain: Brain, request: Request) -> nib.Nifti1Image:
    """Make the mask on the grid of fMRIPrep's reference: axes reordered to the closest of RAS."""
    placed = nifti.to_canonical(brain.voxels, brain.image)
    return nifti.mask_image(np.asarray(placed.dataobj), placed)


def _fmriprep_fields(done: Masked, request: Request) -> dict[str, Any]:
    fields = _mask_fields(done, request)
    about = " Voxel axes reordered to the closest of RAS, as by fMRIPrep."
    return {**fields, "Description": fields["Description"] + about}


def _dseg_fields(done: Masked, request: Request) -> dict[str, Any]:
    """Make the sidecar of a segmentation: what is known of each structure, by its name."""
    found, parts = dict[str, Any](), done.brain.parts
    assert parts is not None
    volumes = done.brain.volumes_ml
    for one, expected in zip(parts.structures, parts.expected, strict=True):
        fields: dict[str, Any] = {"Index": one.index, "Colour": one.colour}
        fields["VolumeMl"] = float(f"{volumes[one.name]:.4g}")
        if expected:
            middle, low, high = (round(value, 4) for value in expected)
            fields |= {"ExpectedDice": middle, "ExpectedDiceInterval": [low, high]}
        found[one.name] = fields
    about = "Structures of the brain, all voxels of the brain mask among them."
    return {**provenance(done.scan), "Description": about, "Structures": found, **done.stamp}


DRAFTED = "Draft of a brain mask by a network trained on phantoms alone (after PUMBA)."
DRAFT = "A draft: its network has seen no real image. Correct it before you use it."
EXPECTED_DICE = (
    f"Dice overlap with a reader's mask that can be expected, and its {COVERAGE:.0%} "
    "interval: estimated without a second label, from corrupted copies of the labelled "
    "scan and, where there are any, from unlabelled scans and corrupted copies of them "
    "under the label that registration carried over."
)
EXPECTED_OF_DRAFT = (
    f"Dice overlap with a reader's mask that can be expected, and its {COVERAGE:.0%} interval: "
    "learnt on corrupted phantoms alone. On real scans it may promise too much."
)
EVIDENCE = {
    "QualityScore": "Dice overlap of the mask with its reconstruction by an autoencoder that "
    "knows the shape of the label alone, or of phantoms; 1 is best. A rank, not an estimate of "
    "accuracy.",
    "MildContrastAgreement": "Mean Dice overlap of the mask with those of copies of the image in "
    "mildly different contrasts, every second one mirrored.",
    "StrongContrastAgreement": "Mean Dice overlap of the mask with those of copies of the image "
    "in strongly different contrasts, every second one mirrored.",
    "PropagatedWeight": "Share of the label, as registration propagates it, in the probability of "
    "which the mask is made, 0 to 2/3; the rest is the network's.",
    "FineWeight": "Share of the network that sees the brain in voxels half as large: 2/3, or 0 "
    "where it does not agree. What is above has the rest.",
    "NetworkAgreement": "Dice overlap of the mask with that of the network before label and "
    "smaller voxels changed it.",
}
DISTANCE = (
    "Signed distance to the border of the brain mask. Outside, to the centre of the nearest voxel "
    "of the mask; inside, minus that to the nearest voxel outside."
)
DSEG = Output(
    "dseg",
    wanted=lambda scan, request: True,
    path=lambda scan, request: request.out.dseg(scan),
    make=lambda brain, request: brain.segmentation,
    fields=_dseg_fields,
    table=True,
)
OUTPUTS = (
    Output(
        "mask",
        wanted=lambda scan, request: True,
        path=lambda scan, request: request.out.mask(scan),
        make=lambda brain, request: brain.mask,
        fields=_mask_fields,
    ),
    Output(
        "brain",  # of anatomical scans: elsewhere BIDS has no name
        wanted=lambda scan, request: "brain" in request.config.output and scan.datatype == "anat",
        path=lambda scan, request: request.out.brain(scan),
        make=lambda brain, request: nifti.brain_image(
            nifti.extract(brain.image, brain.voxels), brain.image.nifti
        ),
        fields=_described(
            Description="The scan, zero outside its brain mask. Intensities are not corrected.",
            SkullStripped=True,
        ),
    ),
    Output(
        "probseg",
        wanted=_asked("probseg"),
        path=lambda scan, request: request.out.image(scan, "label-brain_probseg"),
        make=lambda brain, request: nifti.probability_image(
            brain.probabilities(), brain.image.nifti
        ),
        fields=_described(
            Description="Output of the network, 0 to 1, in steps of 1/255; the mean with the "
            "propagated label where that is joined. Not calibrated."
        ),
    ),
    Output(
        "distance",
        wanted=_asked("distance"),
        path=lambda scan, request: request.out.image(scan, "desc-brain_distance"),
        make=lambda brain, request: nifti.distance_image(
            signed_distance(brain.voxels, brain.image.sizes), brain.image.nifti
        ),
        fields=_described(Description=DISTANCE, Units="mm"),
    ),
    Output(
        "border",
        wanted=lambda scan, request: request.config.border_mm is not None,
        path=lambda scan, request: request.out.mask(scan, request.config.border_mm),
        make=_moved_mask,
        fields=_moved_fields,
    ),
    Output(
        "fmriprep",
        wanted=lambda scan, request: scan in request.for_fmriprep,
        path=lambda scan, request: Derivatives(request.config.fmriprep_masks or Path()).mask(scan),
        make=_fmriprep_mask,
        fields=_fmriprep_fields,
    ),
)


def of_structures(structures: Sequence[Structure]) -> tuple[Output, ...]:
    """List what is written where a model tells structures apart."""
    if not structures:
        return ()
    shares = [
        Output(
            f"probseg of {name}",
            wanted=_asked("probseg"),
            path=partial(_share_path, name),
            make=partial(_share_image, n),
            fields=_described(
                Description=f"What network and propagated label give to {structures[n - 1].name}, "
                "0 to 1, in steps of 1/255. Not calibrated."
            ),
        )
        for n, name in enumerate(label_names(structures), 1)
    ]
    return (DSEG, *shares)


def _share_path(name: str, scan: Scan, request: Request) -> Path:
    return request.out.image(scan, f"label-{name}_probseg")


def _share_image(number: int, brain: Brain, request: Request) -> nib.Nifti1Image:
    return nifti.probability_image(brain.share(number), brain.image.nifti)


def label_names(structures: Sequence[Structure]) -> list[str]:
    """Name structures as BIDS has it: letters and digits; with the index where that is not enough.

    ``brain`` is the mask's own.
    """
    short = [re.sub("[^a-zA-Z0-9]", "", one.name) for one in structures]
    twice = {name for name in short if short.count(name) > 1 or name in ("", "brain")}
    return [
        f"{name}{one.index}" if name in twice else name
        for name, one in zip(short, structures, strict=True)
    ]


def _table_path(image: Path) -> Path:
    return sidecar_path(image).with_suffix(".tsv")


def wanted(scan: Scan, request: Request) -> list[tuple[Output, Path]]:
    """List what is asked for of a scan, and where it goes."""
    kinds = [o for o in (*OUTPUTS, *of_structures(request.structures)) if o.wanted(scan, request)]
    return [(output, output.path(scan, request)) for output in kinds]


def write(done: Masked, request: Request) -> None:
    """Write all that is asked for; a sidecar never tells of another image."""
    for output, path in wanted(done.scan, request):
        image = output.make(done.brain, request)
        sidecar_path(path).unlink(missing_ok=True)
        if output.table:
            write_table(_table_path(path), request.structures)
        nifti.save(path, image)
        write_json(sidecar_path(path), output.fields(done, request))


def finished(scan: Scan, request: Request, stamp: Callable[[Path], Mapping[str, str]]) -> bool:
    """Tell whether all that is asked for is there, made by this model from this very scan.

    Where there is a sidecar, it tells the truth (see `write`); ``stamp`` makes the checksums it
    must hold.
    """
    asked = wanted(scan, request)
    sidecars = [sidecar_path(path) for _, path in asked]
    tables = [_table_path(path) for output, path in asked if output.table]
    if not all(path.is_file() for path in [*(path for _, path in asked), *sidecars, *tables]):
        return False
    try:
        made_of = stamp(scan.path)
        return all(made_of.items() <= read_json(path).items() for path in sidecars)
    except BadData:  # damaged
        return False


def outdated(done: Masked, request: Request) -> list[Path]:
    """List sidecars of a scan's images that another model has made, or from another scan."""
    found = []
    folder = request.out.mask(done.scan).parent
    for path in sorted(folder.glob(f"sub-{done.scan.subject}_*.json")):
        try:
            fields = read_json(path)
        except BadData:  # damaged
            continue
        own = fields.get("SpatialReference") == bids_uri(done.scan)
        if own and not done.stamp.items() <= fields.items():
            found.append(path)
    return found
