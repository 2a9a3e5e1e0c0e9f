from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.config import PRESETS, SynthesisConfig, sloppy
from singlestrip_bids.demo import write_dataset
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import Conformed, Grid
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine.files import read_tsv
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method import propagation
from singlestrip_bids.method.expected_dice import Calibration, Evidence
from singlestrip_bids.method.guard import (
    APART,
    HARDEST,
    LABEL,
    Standing,
    Verdict,
    choose,
    severity,
)
from singlestrip_bids.method.networks import Autoencoder
from singlestrip_bids.method.pose import find_start
from singlestrip_bids.method.pseudolabels import Guess, rank
from singlestrip_bids.method.trainer import Trained, Trainer

METHOD = sloppy(PRESETS["quick"])
CPU = Runtime(torch.device("cpu"), bfloat16=False)


class Bright(nn.Module):
    """Takes what is brighter than a level for brain."""

    def __init__(self, level: float):
        super().__init__()
        self.level = level
        self.config, self.parts = METHOD.network, ()

    def forward(self, image: Tensor) -> Tensor:
        smooth = nn.functional.avg_pool3d(image, 3, stride=1, padding=1)
        return 20 * (smooth - self.level)


def networks(**levels: float) -> list[Trained]:
    """SL-1 and, if given, the network of the first round, by their levels."""
    return [Trained(name.replace("_", "-"), Bright(level), "") for name, level in levels.items()]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    method = replace(METHOD, trials=6, finetuning_synthesis=replace(MILD, gamma=0.1))
    frame = Frame(Grid(8.0, 32, METHOD.network.multiple), 1500.0, 22.0)
    return Trainer(tmp_path_factory.mktemp("m"), tmp_path_factory.mktemp("w"), method, frame, CPU)


MILD = SynthesisConfig(real_fraction=1.0, mild=1.0, dark_air_probability=1.0, bias=0.1)


@pytest.fixture(scope="module")
def sources(trainer):
    """A bright brain in a dark head."""
    place = np.indices((32, 32, 32)) - 15.5
    radius = np.sqrt((place**2).sum(0))
    rng = np.random.default_rng(0)
    image = np.where(radius < 8, 0.9, np.where(radius < 12, 0.2, 0.02))
    image = (image + rng.normal(0, 0.02, image.shape)).clip(0, 1).astype(np.float32)
    conformed = Conformed(image, np.eye(4), np.ones_like(image, dtype=bool))
    return [trainer.source(conformed, (radius < 8).astype(np.float32))]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("heads") / "bids", subjects=3, spacing_scale=4)
    return find_scans(root, ("T1w", "T2w"), ())


@pytest.fixture(scope="module", autouse=True)
def ranked(trainer, pool, autoencoder):
    """Pseudo-masks on disk, as the first round leaves them: no registration."""
    guess = Guess(np.ones((32, 32, 32), bool))
    rank(trainer, pool, lambda conformed: guess, autoencoder, "round-1", "key")


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(METHOD.quality).eval()


def test_a_ruined_network_does_not_replace_the_first(trainer, sources, pool, autoencoder, caplog):
    both = networks(sl1=0.5, round_1=0.05)
    verdict = choose(trainer, pool, sources, both, autoencoder)
    assert verdict.name == "sl1"
    assert verdict.standings["sl1"].copies > verdict.standings["round-1"].copies + 0.1
    assert "round-1" in verdict.reason
    assert "is worse than sl1" in verdict.reason
    assert "Guard: sl1 is kept" in caplog.text


def test_an_equal_network_replaces_the_first(trainer, sources, pool, autoencoder):
    both = networks(sl1=0.5, round_1=0.5)
    verdict = choose(trainer, pool, sources, both, autoencoder)
    assert verdict.name == "round-1"
    assert verdict.standings["sl1"] == verdict.standings["round-1"]
    assert verdict.to_dict()["kept"] == "round-1"


def test_what_was_seen_is_kept_in_tables(trainer, sources, pool, autoencoder):
    both = networks(sl1=0.5, round_1=0.3)
    verdict = choose(trainer, pool, sources, both, autoencoder)
    for name, standing in verdict.standings.items():
        copies = read_tsv(trainer.folder / f"{name}_copies.tsv")
        sample = read_tsv(trainer.folder / f"{name}_sample.tsv")
        of = {LABEL, *(scan.relative for scan in pool)}
        assert {row["of"] for row in copies} == of
        numbers = [str(number) for number in range(1, trainer.method.trials + 1)]
        assert [row["copy"] for row in copies] == 2 * numbers, "from mild to hard, of both kinds"
        assert [row["scan"] for row in sample] == [scan.relative for scan in pool]
        dices = [float(row["dice"]) for row in copies if row["of"] == LABEL]
        assert np.mean(dices) == pytest.approx(standing.copies, abs=1e-4)
        expected = [float(row["expected"]) for row in sample]
        assert np.mean(expected) == pytest.approx(standing.pool, abs=1e-4)
        for row in sample:  # one line for both networks
            seen = Evidence(*(float(row[key]) for key in ("score", "mild", "strong")))
            said = verdict.calibration.expect(seen)[0]
            assert float(row["expected"]) in (0, pytest.approx(said, abs=1e-3))
    overlaps = [one.dice for one in verdict.apart]
    assert len(overlaps) == min(len(pool), APART)
    assert overlaps == sorted(overlaps)
    assert overlaps[0] == dice(*verdict.apart[0].masks) < 1
    assert verdict.to_dict()["apart"][0]["scan"] == verdict.apart[0].scan.relative


def test_harm_of_either_kind_is_named():
    before = Standing(0.90, 0.80)
    assert Standing(0.895, 0.795).harms(before) == []
    assert Standing(0.95, 0.78).harms(before) == ["unlabelled scans (0.780 against 0.800)"]
    assert Standing(0.80, 0.85).harms(before) == ["copies of the label (0.800 against 0.900)"]
    assert Standing(0.90, None).harms(Standing(0.90, None)) == []


def test_a_loss_that_is_outweighed_is_told():
    standings = {"sl1": Standing(0.90, 0.80, 0.92), "round-1": Standing(0.88, 0.80, 0.945)}
    line = Calibration(0.5, 0.4, -0.1, -0.5, 0.4)
    assert Verdict("round-1", line, standings).reason == (
        "round-1 is worse than sl1 on copies of the label (0.880 against 0.900), but better by "
        "more on the propagated label."
    )


def test_a_loss_on_copies_is_outweighed_by_a_gain_on_the_propagated_label():
    before = Standing(0.90, 0.80, 0.92)
    assert Standing(0.88, 0.80, 0.945).harms(before) == []
    assert Standing(0.88, 0.80, 0.935).harms(before) == [
        "copies of the label (0.880 against 0.900)"
    ]
    assert Standing(0.88, 0.80).harms(Standing(0.90, 0.80)) == [
        "copies of the label (0.880 against 0.900)"
    ]
    assert Standing(0.95, 0.85, 0.90).harms(before) == [
        "the propagated label (0.900 against 0.920)"
    ]


def test_alone_it_is_not_compared(trainer, sources, autoencoder):
    verdict = choose(trainer, [], sources, networks(sl1=0.5), autoencoder)
    assert verdict.name == "sl1"
    assert verdict.standings["sl1"].pool is None
    assert verdict.reason == "There is no other network."
    assert verdict.apart == []
    assert read_tsv(trainer.folder / "sl1_sample.tsv") == []


def test_alone_it_has_second_opinions_too(trainer, sources, pool, autoencoder):
    alone = choose(trainer, pool, sources, networks(sl1=0.5), autoencoder)
    assert alone.name == "sl1" and alone.apart == []
    assert 0 <= alone.standings["sl1"].pool < alone.standings["sl1"].copies
    opinions = [float(row["opinion"]) for row in read_tsv(trainer.folder / "sl1_sample.tsv")]
    assert len(opinions) == len(pool) and all(0 <= opinion <= 1 for opinion in opinions)


def test_where_heads_lie_as_they_like_they_are_sought_around_the_brain(
    trainer, sources, pool, autoencoder, monkeypatch
):
    around = list[Tensor]()

    def spied(origin, scan, where):
        around.append(where.cpu())
        return find_start(origin, scan, where)

    monkeypatch.setattr(propagation, "find_start", spied)
    turned = replace(trainer, frame=replace(trainer.frame, turned=True))
    choose(turned, pool, [replace(sources[0], turned=True)], networks(sl1=0.5), autoencoder)
    masks = [Bright(0.5)(torch.from_numpy(turned.conform(s).data)[None, None]) > 0 for s in pool]
    assert len(around) == len(pool)
    for where, mask in zip(around, masks, strict=True):
        assert dice(where.numpy(), mask[0, 0].numpy()) > 0.8


def test_a_mask_of_implausible_volume_counts_for_nothing(trainer, sources, pool, autoencoder):
    small = replace(trainer, frame=replace(trainer.frame, brain_ml=1.0))
    both = networks(sl1=0.5, round_1=0.5)
    verdict = choose(small, pool, sources, both, autoencoder)
    assert verdict.standings["sl1"].pool == 0


def test_what_is_expected_is_learnt_under_the_propagated_label(
    trainer, sources, pool, autoencoder, tmp_path
):
    place = np.indices((32, 32, 32)) - 15.5
    ball = (place**2).sum(0) < 64
    both = networks(sl1=0.5, round_1=0.5)

    def verdict_with(propagated, name):
        other = replace(trainer, work=tmp_path / name)
        guess = Guess(ball, propagated)
        rank(other, pool, lambda conformed: guess, autoencoder, "round-1", "key")
        return choose(other, pool, sources, both, autoencoder)

    centred, aside, absent = (
        verdict_with(propagated, name)
        for name, propagated in (
            ("a", ball),
            ("b", np.roll(ball, 8, 0)),
            ("c", np.zeros_like(ball)),
        )
    )
    best, worse, none = (one.standings["sl1"] for one in (centred, aside, absent))
    assert worse.pool < best.pool - 0.02
    assert best.copies == worse.copies == none.copies
    label_alone = choose(trainer, [], sources, both, autoencoder)
    assert absent.calibration == label_alone.calibration != centred.calibration


def test_copies_get_harder():
    assert severity(MILD, 0) == MILD
    worst = severity(MILD, 1)
    assert {name: getattr(worst, name) for name in HARDEST} == pytest.approx(HARDEST)
    half = severity(MILD, 0.5)
    assert MILD.noise < half.noise < worst.noise
