"""A model of a preset's size that nobody trained, to measure time and memory with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from singlestrip_bids import load_model
from singlestrip_bids.config import PRESETS
from singlestrip_bids.image import nifti
from singlestrip_bids.image.grid import Grid
from singlestrip_bids.machine import files
from singlestrip_bids.method import inference, model
from singlestrip_bids.method.networks import Autoencoder, UNet


def stand_in(folder: Path, like: Path, preset: str, scan: Path) -> Path:
    """Make a model of a preset's size that masks the head: random but for its last layer.

    For measurements alone. Frame and calibration are those of another model.
    """
    card = files.read_json(like / model.CARD)
    method = PRESETS[preset]
    torch.manual_seed(0)
    network, judge = UNet(method.network), Autoencoder(method.quality)
    ratio = card["method"]["size"] / method.size
    frame = replace(
        load_model(like, device="cpu").frame,
        grid=Grid(card["voxel_size_mm"] * ratio, method.size, method.network.multiple),
        head_width=card["head_width"] / ratio,
    )
    placed = frame.conform(nifti.load(scan))
    kept: list[torch.Tensor] = []
    hook = network.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.inference_mode():
        network(torch.from_numpy(placed.data)[None, None])
    hook.remove()
    target = inference.mask_from((placed.data > 0.3).astype(np.float32))
    _fit_head(network, kept[0], torch.from_numpy(target).float() * 8 - 4)
    for name, net in (("sl1", network), ("autoencoder", judge)):
        files.save_tensors(folder / f"{name}.safetensors", net.state_dict(), {})
    numbers = {"voxel_size_mm": frame.grid.voxel_size, "head_width": frame.head_width}
    changed = {"network": "sl1.safetensors", "method": method.to_dict(), **numbers}
    model.write_card(folder, {**card, **changed})
    return folder


def _fit_head(network: UNet, features: torch.Tensor, target: torch.Tensor) -> None:
    """Set the last layer to the line through its inputs that comes closest to a target."""
    with torch.no_grad():
        network.head.weight.zero_()
        flat = features[0].flatten(1).T
        terms = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
        stem = network.config.stem
        wanted = torch.nn.functional.avg_pool3d(target[None, None], stem).flatten()
        line = torch.linalg.lstsq(terms, wanted[:, None]).solution[:, 0]
        network.head.weight[:, :, 1, 1, 1] = line[:-1]
        torch.nn.init.constant_(network.get_parameter("head.bias"), float(line[-1]))
