from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from benchmarks.phantoms import write_dataset
from singlestrip_bids.config import PRESETS, sloppy
from singlestrip_bids.errors import CannotCreate
from singlestrip_bids.frame import Frame
from singlestrip_bids.inputs import find_scans
from singlestrip_bids.networks import Autoencoder
from singlestrip_bids.ranking import Guess, masks_of, pseudo_label, rank
from singlestrip_bids.runtime import Runtime
from singlestrip_bids.stage import Stage

METHOD = sloppy(PRESETS["quick"])
CPU = Runtime(torch.device("cpu"), bfloat16=False)


class Middle:
    """Takes the middle of the grid for the brain, and counts."""

    def __init__(self, edge: int = 8):
        self.calls = 0
        self.edge = edge

    def __call__(self, conformed):
        self.calls += 1
        mask = np.zeros(conformed.data.shape, bool)
        middle = [n // 2 for n in mask.shape]
        mask[tuple(slice(m - self.edge // 2, m + self.edge // 2) for m in middle)] = True
        return Guess(mask, carried=~mask, agreement=0.9)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("h") / "bids", subjects=3, spacing_scale=4)


@pytest.fixture
def pool(bids):
    return find_scans(bids, ("T1w", "T2w"), ())


@pytest.fixture
def stage(tmp_path):
    frame = Frame(8.0, 32, METHOD.network.multiple, 1500.0, 22.0)
    return Stage(tmp_path / "model", tmp_path / "work", METHOD, frame, CPU)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(METHOD.quality.latent, METHOD.quality.slice_size).eval()


def test_a_ranking_that_was_stopped_goes_on(stage, pool, autoencoder):
    first, again = Middle(), Middle()
    before = rank(stage, pool[:2], first, autoencoder, "round-1", "key")
    drawn = []

    def draw(scan, conformed, guess):
        drawn.append((scan.relative, conformed.data.shape == guess.mask.shape))

    after = rank(stage, pool, again, autoencoder, "round-1", "key", draw=draw)
    assert drawn == [(scan.relative, True) for scan in pool[2:]]
    assert first.calls == 2
    assert again.calls == len(pool) - 2
    assert after[:2] == before
    assert all(candidate.kept for candidate in after)


@pytest.mark.parametrize("change", ["key", "round", "scan", "damage"])
def test_a_mask_made_from_something_else_is_made_again(stage, pool, autoencoder, change):
    rank(stage, pool, Middle(), autoencoder, "round-1", "key")
    if change == "scan":
        shutil.copy(pool[1].path, pool[0].path)
    if change == "damage":
        next((stage.work / "round-1").iterdir()).write_bytes(b"half a file")
    key = "other" if change == "key" else "key"
    name = "round-2" if change == "round" else "round-1"
    again = Middle()
    rank(stage, pool, again, autoencoder, name, key)
    assert again.calls == (len(pool) if change in ("key", "round") else 1)


def test_the_kept_masks_become_sources(stage, pool, autoencoder):
    rank(stage, pool, Middle(), autoencoder, "round-1", "key")
    sources = pseudo_label(stage, pool, "round-1")
    assert len(sources) == len(pool)
    for source in sources:
        assert source.mask.sum() == 8**3
        brain = source.classes[source.mask > 0]
        rest = source.classes[source.mask == 0]
        assert not set(brain.unique().tolist()) & set(rest.unique().tolist())


def test_a_bad_scan_gets_a_note_and_is_tried_again(stage, pool, autoencoder, caplog):
    pool[0].path.write_bytes(b"no image")
    ranked = rank(stage, pool, Middle(), autoencoder, "round-1", "key")
    assert str(pool[0].path) in ranked[0].note
    assert not ranked[0].kept
    assert [candidate.kept for candidate in ranked[1:]] == [True] * (len(pool) - 1)
    again = Middle()
    rank(stage, pool, again, autoencoder, "round-1", "key")
    assert again.calls == 0
    assert caplog.text.count(pool[0].name) >= 2


def test_a_disk_that_fails_is_not_the_fault_of_a_scan(stage, pool, autoencoder):
    stage.work.write_text("no folder")
    with pytest.raises(CannotCreate):
        rank(stage, pool, Middle(), autoencoder, "round-1", "key")


def test_masks_come_back_from_disk(stage, pool, autoencoder):
    rank(stage, pool[:1], Middle(), autoencoder, "round-1", "key")
    masks = masks_of(stage, pool[0], "round-1")
    assert masks.keys() == {"mask", "carried"}
    assert masks["mask"].sum() == 8**3
    assert (masks["mask"] ^ masks["carried"]).all()
