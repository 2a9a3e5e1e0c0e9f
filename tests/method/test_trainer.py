"""The threshold is moved where the labelled scan's mask is too large, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from singlestrip_bids.config import PRESETS, sloppy
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import Conformed, Grid
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.classes import source
from singlestrip_bids.method.inference import AUGMENTED, mask_from, predict
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.trainer import Trainer, settle

SIZE = 32
METHOD = sloppy(PRESETS["quick"])


def fading() -> np.ndarray:
    """1 at the centre, half of it at 10 voxels."""
    away = np.sqrt(sum((x - 15.5) ** 2 for x in np.mgrid[:SIZE, :SIZE, :SIZE]))
    return np.clip(1 - away / 20, 0, 1).astype(np.float32)


class Round(UNet):
    """Whatever the image, brain is what is close to its centre: logits from 10 to -10."""

    def __init__(self) -> None:
        super().__init__(METHOD.network)
        self.head = nn.Conv3d(1, 1, 1)
        nn.init.constant_(self.head.weight, 20)
        nn.init.constant_(self.head.bias, -10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.from_numpy(fading()).expand_as(image))


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    frame = Frame(Grid(1.0, SIZE, 8), 1000.0, 20.0)
    machine = Runtime(torch.device("cpu"), bfloat16=False)  # whose logits are coarse
    return Trainer(tmp_path, tmp_path, METHOD, frame, machine)


def ball(radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A scan, and its label."""
    return fading(), fading() > 1 - radius / 20


def settled(trainer: Trainer, *radii: float) -> tuple[float, float]:
    """The threshold found, and the volume of the masks after it, as a multiple of the labels'."""
    network, pairs = Round(), [ball(radius) for radius in radii]
    classes = torch.ones(SIZE, SIZE, SIZE)
    sources = [
        source(classes, torch.from_numpy(image), torch.from_numpy(label).float())
        for image, label in pairs
    ]
    found = settle(trainer, network, sources)
    seen = [Conformed(image, np.eye(4), np.ones(image.shape, bool)) for image, _ in pairs]
    volume = sum(mask_from(predict(network, c, trainer.runtime, AUGMENTED)).sum() for c in seen)
    return found, float(volume / sum(label.sum() for _, label in pairs))


def test_masks_too_large_are_cut_higher(trainer):
    found, volume = settled(trainer, 9.0)
    assert 0.65 < found < 0.8  # the logit of a voxel at 9 is 1, that is .73
    assert volume == pytest.approx(1, abs=0.03)
    assert settled(trainer, 10.0)[1] == pytest.approx(1, abs=0.03)


def test_masks_too_small_stay(trainer):
    found, volume = settled(trainer, 12.0)
    assert found == 0.5
    assert volume == pytest.approx((10 / 12) ** 3, abs=0.03)


def test_of_several_processes_the_first_one_decides(trainer, monkeypatch):
    monkeypatch.setattr(Runtime, "gather", lambda _, value: [0.6, value])
    found, volume = settled(trainer, 9.0)
    assert found == 0.6
    assert volume > 1.05


def test_there_is_a_limit(trainer):
    found, volume = settled(trainer, 4.0)
    assert found == pytest.approx(0.8, abs=1e-3)
    assert volume > 2


def test_of_several_labels_the_sum_counts(trainer):
    found, volume = settled(trainer, 9.0, 10.0)
    assert 0.5 < found < settled(trainer, 9.0)[0]
    assert volume == pytest.approx(1, abs=0.03)
