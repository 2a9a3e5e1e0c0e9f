"""What other ways of training SL-1 buy: one label, the same steps, scored on scans with a truth.

Usage: ``python -m benchmarks.variants DATASET LABEL SUBJECT... --out RESULTS [--steps 300]``.
Every variant changes one thing of `quick`. Masks are compared with those in ``<DATASET>-truth``
on the grids of the scans. With ``--slab`` the label's field of view ends where its brain does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor, nn

from benchmarks.record import facts, line, write
from singlestrip_bids import derivatives, runtime, volume
from singlestrip_bids.config import ALL_MODALITIES, PRESETS, SynthesisConfig
from singlestrip_bids.continuation import continued
from singlestrip_bids.frame import Frame, head_width
from singlestrip_bids.inference import conform_image
from singlestrip_bids.inputs import Scan, find_scans
from singlestrip_bids.labelled import find_label
from singlestrip_bids.losses import soft_dice
from singlestrip_bids.metrics import dice, hausdorff95
from singlestrip_bids.networks import UNet
from singlestrip_bids.runtime import Runtime
from singlestrip_bids.stage import Stage
from singlestrip_bids.synthesis import Source, training_batch
from singlestrip_bids.training import fit

FAR = 5.0  # voxels at which the signed distance is cut off
DECAY = 0.99  # of the average of the weights, a step

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def overlap(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Soft Dice: the app's loss."""
    return soft_dice(network(image).sigmoid(), target)


def distance(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Regress the signed distance to the border, negative inside, in voxels (SynthStrip)."""
    wanted = torch.stack([_signed_distance(t[0]) for t in target.cpu().numpy()])[:, None]
    return F.mse_loss(-network(image), wanted.to(image.device)) / FAR**2


def _signed_distance(target: NDArray[np.float32]) -> Tensor:
    brain = target > 0.5
    if not brain.any():
        return torch.full(target.shape, FAR)
    outside = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    return torch.from_numpy((outside - 0.5 * np.sign(outside)).clip(-FAR, FAR).astype(np.float32))


class Supervised(UNet):
    """U-Net with a head at every level of its decoder, for training (deep supervision)."""

    def __init__(self, network: UNet) -> None:
        super().__init__(network.config)
        self.load_state_dict(network.state_dict())
        widths = self.config.features[-2:0:-1]
        self.side = nn.ModuleList(nn.Conv3d(width, 1, 1) for width in widths)
        self.seen: list[Tensor] = []
        for block, side in zip(self.decoder, self.side, strict=False):
            block.register_forward_hook(partial(self._look, side))

    def _look(self, side: nn.Module, block: nn.Module, inputs: object, out: Tensor) -> None:
        if self.training:
            self.seen.append(side(out))


def deep(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Soft Dice at every level, each half as much as the finer one."""
    assert isinstance(network, Supervised)
    network.seen.clear()
    loss = overlap(network, image, target)
    for depth, logits in enumerate(network.seen[::-1], 1):
        small = F.interpolate(target, list(logits.shape[2:]), mode="area")
        loss = loss + 0.5**depth * soft_dice(logits.sigmoid(), small)
    return loss


@dataclass(frozen=True)
class Variant:
    """One way of training, and what it is."""

    about: str
    loss: Loss = overlap
    wrap: Callable[[UNet], UNet] = lambda network: network
    average: bool = False
    flips: bool = False
    changes: tuple[tuple[str, Any], ...] = ()  # of the synthesis
    continued: bool = False

    def synthesis(self, ranges: SynthesisConfig) -> SynthesisConfig:
        """Ranges of the training images."""
        return replace(ranges, **dict(self.changes))


VARIANTS = {
    "quick": Variant("as the app trains, the image seen once"),
    "flips": Variant("the same network, mean of image and mirror image", flips=True),
    "synthetic": Variant(
        "synthetic images alone, as in the paper", changes=(("real_fraction", 0.0),)
    ),
    "continued": Variant(
        "half of the images with the head continued beyond its field of view, mean of both images",
        flips=True,
        continued=True,
    ),
    "average": Variant("exponential moving average of the weights", average=True),
    "deep": Variant("deep supervision", loss=deep, wrap=Supervised),
    "distance": Variant("signed distance instead of a probability", loss=distance),
}


def train(variant: Variant, stage: Stage, origin: Source) -> UNet:
    """Train one network; the same seed for all variants."""
    torch.manual_seed(0)
    network = variant.wrap(UNet(stage.method.network)).to(stage.runtime.device)
    average = [p.detach().clone() for p in network.parameters()]
    ranges, settings = variant.synthesis(stage.method.synthesis), stage.method.training
    further = continued(origin, stage.method.size) if variant.continued else None
    heads = [origin, further or origin]

    def loss(network: nn.Module, generators: Sequence[Generator]) -> Tensor:
        for mean, now in zip(average, network.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - DECAY)
        origins = heads * (settings.batch_size // 2)
        image, target = training_batch(generators[0], origins, stage.method.size, ranges)
        return variant.loss(network, image, target)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        fit(network, loss, settings, stage.runtime, checkpoint, variant.about, 0, variant.about)
    if variant.average:
        with torch.no_grad():
            for mean, now in zip(average, network.parameters(), strict=True):
                now.copy_(mean)
    return network


@torch.inference_mode()
def mask_of(network: UNet, scan: Scan, stage: Stage, flips: bool) -> NDArray[np.bool_]:
    """Mask a scan on its own grid; what is interpolated is the network's output."""
    image = volume.load(scan.path)
    conformed = stage.conform(scan)
    seen = torch.from_numpy(conformed.data).to(stage.runtime.device)[None, None]
    out = network(seen)
    if flips:
        out = (out + network(seen.flip(2)).flip(2)) / 2
    logits = np.where(conformed.inside, out[0, 0].float().cpu().numpy().clip(-FAR, FAR), -FAR)
    return volume.clean(volume.restore(logits, conformed.affine, image) > 0)


def prepare(
    dataset: Path, label: str, steps: int, machine: Runtime, work: Path, slab: bool = False
) -> tuple[Stage, Source]:
    """Read the label and settle the grid, as the app does."""
    quick = PRESETS["quick"]
    method = replace(quick, training=replace(quick.training, steps=steps))
    (labelled,) = find_label(dataset, label_subjects=[label])
    image = volume.load(labelled.scan.path)
    mask = volume.load_mask(labelled.mask, image)
    if slab:
        image, mask = _cut(image, mask)
    size = volume.working_voxel_size(mask, image.affine, method.size)
    grid = size, method.size, method.network.multiple
    conformed = conform_image(image, *grid)
    brain_ml = volume.millilitres(mask, image.affine)
    frame = Frame(*grid, brain_ml, head_width(conformed)[0])
    stage = Stage(work, work, method, frame, machine)
    return stage, stage.source(conformed, volume.conform(mask, image.affine, *grid).data)


def _cut(image: volume.Image, mask: volume.Mask) -> tuple[volume.Image, volume.Mask]:
    """Let the field of view of a scan end at the lower end of its brain."""
    codes = nib.aff2axcodes(image.affine)
    axis = next(number for number, code in enumerate(codes) if code in "SI")
    planes = np.argwhere(mask)[:, axis]
    first, last = (planes.min(), None) if codes[axis] == "S" else (0, planes.max() + 1)
    kept = tuple(slice(first, last) if number == axis else slice(None) for number in range(3))
    cut = replace(image, data=image.data[kept], nifti=image.nifti.slicer[kept])
    return cut, mask[kept]


def run(
    dataset: Path,
    label: str,
    subjects: Sequence[str],
    steps: int,
    names: Sequence[str],
    out: Path,
    slab: bool = False,
) -> dict[str, Any]:
    """Train the variants, score them and write ``<out>.json`` and ``<out>.md``."""
    machine = runtime.start("auto", None)
    stage, origin = prepare(dataset, label, steps, machine, out.parent, slab)
    scans = find_scans(dataset, ALL_MODALITIES, subjects)
    truth = dataset.with_name(f"{dataset.name}-truth")
    results = {
        **facts(),
        "label": label,
        "steps": steps,
        "slab": slab,
        "rows": list[dict[str, Any]](),
    }
    networks: dict[tuple[Any, ...], tuple[UNet, float]] = {}
    for name in names:
        variant = VARIANTS[name]
        key = variant.loss, variant.average, variant.changes, variant.continued
        if key not in networks:
            began = time.process_time()
            networks[key] = train(variant, stage, origin), time.process_time() - began
        network, seconds = networks[key]
        network.eval()
        for scan in scans:
            image = volume.load(scan.path)
            known = volume.load_mask(derivatives.mask_path(truth, scan), image)
            mask = mask_of(network, scan, stage, variant.flips)
            far = hausdorff95(mask, known, image.sizes.tolist())
            results["rows"].append(
                {"variant": name, "scan": scan.name, "contrast": scan.suffix,
                 "dice": dice(mask, known), "hd95_mm": far, "training_processor_seconds": seconds}
            )  # fmt: skip
        write(results, table(results), out)
    return results


def table(results: dict[str, Any]) -> str:
    """Make a Markdown table: mean Dice and HD95 of each contrast."""
    rows = results["rows"]
    contrasts = sorted({row["contrast"] for row in rows}, reverse=True)
    head = ["variant", *contrasts, "all", "least", "training, processor minutes"]
    lines = [line(head), line(["---"] * len(head))]
    for name in dict.fromkeys(row["variant"] for row in rows):
        of_name = [row for row in rows if row["variant"] == name]
        sets = [[r for r in of_name if r["contrast"] == c] for c in contrasts] + [of_name]
        cells = [
            f"{statistics.mean(r['dice'] for r in some):.3f} / "
            f"{statistics.mean(r['hd95_mm'] for r in some):.1f}"
            for some in sets
        ]
        least = f"{min(r['dice'] for r in of_name):.3f}"
        minutes = f"{of_name[0]['training_processor_seconds'] / 60:.1f}"
        lines.append(line([f"{name}: {VARIANTS[name].about}", *cells, least, minutes]))
    lines += [
        "",
        f"Mean Dice / mean HD95 in mm; label {results['label']}"
        f"{', cut below its brain' if results['slab'] else ''}, {results['steps']} steps, one "
        f"seed. {results['date']}, commit {results['commit']}, {results['hardware']}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare variants from the command line."""
    parser = argparse.ArgumentParser(description="Compare ways of training SL-1.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("label", help="labelled subject")
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT", help="to score")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--slab", action="store_true", help="cut the label below its brain")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, required=True, help="results, without an ending")
    args = parser.parse_args(argv)
    what = args.dataset, args.label, args.subjects, args.steps, args.variants
    results = run(*what, args.out, args.slab)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
