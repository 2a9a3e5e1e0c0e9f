from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.config import PRESETS, sloppy
from singlestrip_bids.demo import write_dataset
from singlestrip_bids.errors import CannotCreate
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import Grid
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.networks import Autoencoder
from singlestrip_bids.method.orientation import Doubt
from singlestrip_bids.method.pseudolabels import (
    Candidate,
    Guess,
    masks_of,
    pseudo_label,
    rank,
    top_k,
)
from singlestrip_bids.method.trainer import Trainer

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
        return Guess(mask, propagated=~mask, agreement=0.9)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("h") / "bids", subjects=3, spacing_scale=4)


@pytest.fixture
def pool(bids):
    return find_scans(bids, ("T1w", "T2w"), ())


@pytest.fixture
def trainer(tmp_path):
    frame = Frame(Grid(8.0, 32, METHOD.network.multiple), 1500.0, 22.0)
    return Trainer(tmp_path / "model", tmp_path / "work", METHOD, frame, CPU)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(METHOD.quality).eval()


def test_a_ranking_that_was_stopped_goes_on(trainer, pool, autoencoder):
    first, again = Middle(), Middle()
    before = rank(trainer, pool[:2], first, autoencoder, "round-1", "key")
    drawn = []

    def draw(scan, conformed, guess):
        drawn.append((scan.relative, conformed.data.shape == guess.mask.shape))

    after = rank(trainer, pool, again, autoencoder, "round-1", "key", draw=draw)
    assert drawn == [(scan.relative, True) for scan in pool[2:]]
    assert first.calls == 2
    assert again.calls == len(pool) - 2
    assert after[:2] == before
    assert all(candidate.kept for candidate in after)


@pytest.mark.parametrize("change", ["key", "round", "scan", "damage"])
def test_a_mask_made_from_something_else_is_made_again(trainer, pool, autoencoder, change):
    rank(trainer, pool, Middle(), autoencoder, "round-1", "key")
    if change == "scan":
        shutil.copy(pool[1].path, pool[0].path)
    if change == "damage":
        next((trainer.work / "round-1").iterdir()).write_bytes(b"half a file")
    key = "other" if change == "key" else "key"
    name = "round-2" if change == "round" else "round-1"
    again = Middle()
    rank(trainer, pool, again, autoencoder, name, key)
    assert again.calls == (len(pool) if change in ("key", "round") else 1)


def test_the_kept_masks_become_sources(trainer, pool, autoencoder):
    rank(trainer, pool, Middle(), autoencoder, "round-1", "key")
    sources = pseudo_label(trainer, pool, "round-1")
    assert len(sources) == len(pool)
    for source in sources:
        assert source.mask.sum() == 8**3
        brain = source.classes[source.mask > 0]
        rest = source.classes[source.mask == 0]
        assert not set(brain.unique().tolist()) & set(rest.unique().tolist())


def test_a_bad_scan_gets_a_note_and_is_tried_again(trainer, pool, autoencoder, caplog):
    pool[0].path.write_bytes(b"no image")
    ranked = rank(trainer, pool, Middle(), autoencoder, "round-1", "key")
    assert str(pool[0].path) in ranked[0].note
    assert not ranked[0].kept
    assert [candidate.kept for candidate in ranked[1:]] == [True] * (len(pool) - 1)
    again = Middle()
    rank(trainer, pool, again, autoencoder, "round-1", "key")
    assert again.calls == 0
    assert caplog.text.count(pool[0].name) >= 2


def test_a_disk_that_fails_is_not_the_fault_of_a_scan(trainer, pool, autoencoder):
    trainer.work.write_text("no folder")
    with pytest.raises(CannotCreate):
        rank(trainer, pool, Middle(), autoencoder, "round-1", "key")


class TestPoses:
    """Scans of far less agreement than most are looked at from all sides."""

    @staticmethod
    def ranked(trainer, pool, autoencoder, turned, always=()):
        class Doubtful(Middle):
            def __call__(self, conformed):
                made = super().__call__(conformed)
                return replace(made, agreement=0.5 if self.calls == 1 else 0.95)

        seen = []

        def look(conformed, mask):
            seen.append((conformed.data.shape, mask.sum()))
            return Doubt(0.4, "the header may name the axes wrongly.") if turned else None

        call = rank(trainer, pool, Doubtful(), autoencoder, "round-1", "key", always, look=look)
        return call, seen

    def test_one_that_is_turned_does_not_train_and_is_named(self, trainer, pool, autoencoder):
        ranked, seen = self.ranked(trainer, pool, autoencoder, turned=True)
        assert seen == [((32, 32, 32), 8**3)]
        assert ranked[0].note == f"{pool[0].path}: the header may name the axes wrongly."
        assert [c.kept for c in ranked] == [False] + [True] * (len(pool) - 1)
        assert [c.scan for c in ranked] == [scan.relative for scan in pool]

    def test_one_that_is_upright_trains(self, trainer, pool, autoencoder):
        ranked, seen = self.ranked(trainer, pool, autoencoder, turned=False)
        assert len(seen) == 1
        assert all(c.kept and not c.note for c in ranked)

    def test_one_that_a_person_accepted_is_not_looked_at(self, trainer, pool, autoencoder):
        accepted = [pool[0].relative]
        ranked, seen = self.ranked(trainer, pool, autoencoder, True, accepted)
        assert not seen
        assert ranked[0].kept


def test_masks_come_back_from_disk(trainer, pool, autoencoder):
    rank(trainer, pool[:1], Middle(), autoencoder, "round-1", "key")
    masks = masks_of(trainer, pool[0], "round-1")
    assert masks.keys() == {"mask", "propagated"}
    assert masks["mask"].sum() == 8**3
    assert (masks["mask"] ^ masks["propagated"]).all()


candidates = st.lists(
    st.builds(
        Candidate,
        scan=st.text("abc", min_size=1, max_size=4),
        score=st.sampled_from([0.0, 0.5, 0.9, 0.91]),
        agreement=st.sampled_from([None, 0.4, 0.95]),
        volume_ml=st.sampled_from([0.0, 1.0, 1500.0]),
    ),
    unique_by=lambda c: c.scan,
    max_size=12,
)


def kept(given_: list[Candidate], k: int) -> list[str]:
    return [c.scan for c in top_k(given_, k) if c.kept]


def test_best_scores_in_the_order_given():
    pool = [
        Candidate(*row, None, 1500) for row in (("c", 0.8), ("a", 0.95), ("d", 0.7), ("b", 0.9))
    ]
    assert kept(pool, 3) == ["c", "a", "b"]
    assert kept(pool, 0) == []
    assert [c.scan for c in top_k(pool, 3)] == ["c", "a", "d", "b"]


def test_ties_by_name_whatever_the_order():
    pool = [Candidate(name, 0.9, None, 1500) for name in "dbca"]
    assert set(kept(pool, 2)) == set(kept(pool[::-1], 2)) == {"a", "b"}


def test_agreement_counts_as_much_as_the_score():
    pool = [Candidate("a", 0.97, 0.80, 1500), Candidate("b", 0.95, 0.90, 1500)]
    assert kept(pool, 1) == ["b"]
    assert [c.rank for c in pool] == [pytest.approx(0.885), pytest.approx(0.925)]


def test_each_contrast_by_its_share():
    scores = {"T1w": (0.99, 0.98, 0.97, 0.96), "T2w": (0.5, 0.4), "bold": (0.1,)}
    pool = [
        Candidate(f"sub-{i}/anat/sub-{i}_{suffix}.nii.gz", score, None, 1500)
        for suffix, row in scores.items()
        for i, score in enumerate(row)
    ]
    names = [name.split("/")[-1].split(".")[0] for name in kept(pool, 4)]
    assert names == ["sub-0_T1w", "sub-1_T1w", "sub-0_T2w", "sub-0_bold"]
    assert len(kept(pool, 7)) == 7
    assert {c.contrast for c in pool} == set(scores)


def test_empty_mask_is_never_kept():
    pool = [Candidate("a", 1.0, None, 0), Candidate("b", 0.1, None, 3)]
    assert kept(pool, 10) == ["b"]


def test_earlier_choice_is_forgotten():
    pool = [Candidate("a", 0.2, None, 3, kept=True), Candidate("b", 0.9, None, 3)]
    assert kept(pool, 1) == ["b"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pool=candidates, k=st.integers(0, 14))
def test_properties(pool, k):
    marked = top_k(pool, k)
    assert [(c.scan, c.score, c.volume_ml, c.note) for c in marked] == [
        (c.scan, c.score, c.volume_ml, c.note) for c in pool
    ]
    usable = [c for c in marked if c.volume_ml > 0]
    chosen = [c for c in marked if c.kept]
    assert len(chosen) == min(k, len(usable))
    assert all(c.volume_ml > 0 for c in chosen)
    left = [c for c in usable if not c.kept]
    assert all((-c.rank, c.scan) < (-d.rank, d.scan) for c in chosen for d in left)
