"""Mask scans with the voices of a model, each alone: its network, its propagated label, and more.

Usage: ``python -m benchmarks.parts MODEL DATASET OUT [--participant-label XX ...]``. Masks go to
``OUT/network``, ``OUT/label`` and ``OUT/prototypes`` under the names that the app gives them, for
`benchmarks.score`. ``OUT/blocks`` has those of prototypes as they are published.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from singlestrip_bids import load_model
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image import nifti
from singlestrip_bids.image.grid import restore_mask
from singlestrip_bids.method import encoders, prototypes
from singlestrip_bids.method.expected_dice import segment
from singlestrip_bids.method.model import Model
from singlestrip_bids.method.propagation import propagate_labels

PARTS = ("network", "label", "prototypes", "blocks")


def prototypes_of(model: Model, deepest: bool = False) -> prototypes.Prototypes:
    """Learn the prototypes of the labels that a model keeps, in the app's own features."""
    labels = [replace(one, classes=torch.ones_like(one.image)) for one in model.labels]
    return prototypes.learn(encoders.own(deepest, model.runtime).network, labels, model.runtime)


def mask_apart(model: Model, scans: Sequence[Scan], out: Path) -> None:
    """Write the masks of all voices of a model that keeps its label.

    Parameters
    ----------
    model : Model
        As of `load_model`.
    scans : sequence of Scan
        To be masked.
    out : Path
        Gets a folder for each voice.
    """
    known = [prototypes_of(model, deepest) for deepest in (False, True)]
    for scan in scans:
        image = nifti.load(scan.path)
        conformed = model.frame.conform(image)
        seen = segment(model.network, model.autoencoder, conformed, model.runtime)
        propagated = propagate_labels(model.labels, conformed, model.runtime).mask
        likenesses = [one.view(conformed, model.runtime).brain for one in known]
        own = [replace(conformed, data=found) for found in (seen.probability, *likenesses)]
        voices = [own[0], propagated, *own[1:]]
        for name, voice in zip(PARTS, voices, strict=True):
            mask = restore_mask(voice.data, voice.affine, image)
            path = Derivatives(out / name).mask(scan)
            nifti.save(path, nifti.mask_image(mask, image.nifti))
        print(f"{scan.name}: masked by each voice", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Mask a dataset from the command line; return 1 if that is not possible."""
    parser = argparse.ArgumentParser(description="Mask by the voices of a model, apart.")
    parser.add_argument("model", type=Path, help="the code/singlestrip folder of a run")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="gets a folder for each")
    parser.add_argument("--participant-label", nargs="+", default=[], metavar="XX")
    args = parser.parse_args(argv)
    try:
        model = load_model(args.model)
        if not model.labels:
            raise SingleStripError(f"{args.model}: this model keeps no label")
        mask_apart(model, find_scans(args.dataset, ["all"], args.participant_label), args.out)
    except (SingleStripError, OSError) as error:
        print(f"parts: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
