"""How many steps a budget of time has room for."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from builders import MODEL, run

from singlestrip_bids.config import PRESETS, semisam_o1
from singlestrip_bids.machine.files import save_tensors
from singlestrip_bids.method.budget import LEAST, MARGIN, MOST, Rates, fitted
from singlestrip_bids.method.pupil import SCANS as SCANS_OF_FINE

QUICK = PRESETS["quick"]
RATES = Rates(step=0.2, epoch=0.15, guess=0.5, opinion=3.5, copy=0.3, fine=0.3)
SCANS = 23


@pytest.mark.parametrize("minutes", [5, 10, 20])
def test_the_time_is_used_and_not_exceeded(minutes):
    plan = fitted(QUICK, RATES, SCANS, 60 * minutes)
    assert RATES.total(plan, SCANS) == pytest.approx(60 * minutes * MARGIN, rel=0.01)
    before = QUICK.finetuning.steps / QUICK.training.steps
    assert plan.finetuning.steps / plan.training.steps == pytest.approx(before, rel=0.05)


def test_a_slower_machine_takes_fewer_steps():
    slow = replace(RATES, step=0.6, fine=0.9)
    plans = [fitted(QUICK, rates, SCANS, 1200) for rates in (RATES, slow)]
    assert plans[1].training.steps < plans[0].training.steps / 2


def test_little_time_takes_from_the_autoencoder_and_the_copies_first():
    plan = fitted(QUICK, RATES, SCANS, 240)
    assert (plan.quality.epochs, plan.trials, plan.fine_steps) == (100, 20, 0)
    assert plan.training.steps > LEAST * QUICK.training.steps
    assert RATES.total(plan, SCANS) <= 240


def test_then_the_fine_network_goes():
    plan = fitted(QUICK, RATES, SCANS, 480)
    assert plan.fine_steps / QUICK.fine_steps == pytest.approx(plan.training.steps / 300, rel=0.05)
    pupils = RATES.total(plan, 500) - RATES.total(replace(plan, fine_steps=0), 500)
    assert pupils == pytest.approx(plan.fine_steps * 0.3 + SCANS_OF_FINE * 4.0)


def test_no_time_is_the_least_that_makes_sense():
    plan = fitted(QUICK, RATES, SCANS, 1)
    assert plan.training.steps == LEAST * QUICK.training.steps
    assert RATES.total(plan, SCANS) > 1


def test_a_night_is_not_spent_on_a_coarse_grid():
    plan = fitted(QUICK, RATES, SCANS, 8 * 3600)
    assert plan.training.steps == MOST * QUICK.training.steps
    assert plan.quality.epochs == QUICK.quality.epochs


def test_what_a_run_takes():
    alone = replace(QUICK, rounds=0)
    steps = 300 * 0.2 + 500 * 0.15
    assert RATES.total(alone, 0) == pytest.approx(steps + 60 * 0.3)
    network = replace(QUICK, pseudo_labels="network", trials=10)
    own = steps + 700 * 0.2 + 30 * 0.5 + 24 * 3.5 + 2 * (20 + 24) * 0.3
    own += 700 * 0.3 + 30 * 0.5  # the fine network
    assert RATES.total(network, 30) == pytest.approx(own)
    rounds = RATES.total(semisam_o1(QUICK), 30)  # three, as long as the first; one network judged
    own = 4 * 300 * 0.2 + 500 * 0.15 + (3 + 2) * 30 * 0.5 + 24 * 3.5 + (120 + 24) * 0.3
    assert rounds == pytest.approx(own)


def test_a_run_ends_in_time_and_keeps_its_plan(heads, tmp_path, capfd):
    pace = tmp_path / MODEL / "work" / "pace"  # left by a run that was stopped while planning
    other = {"network.weight": torch.zeros(3), "history": torch.zeros(1)}
    save_tensors(pace, other, {"fingerprint": "pace of the network"})
    began = time.monotonic()
    assert run(heads, tmp_path, "group", "--time", "40s") == 0
    assert not pace.exists()
    took = time.monotonic() - began
    said = capfd.readouterr().err
    assert "Plan: " in said
    card = json.loads((tmp_path / MODEL / "model.json").read_text())
    plan = json.loads((tmp_path / MODEL / "plan.json").read_text())
    assert plan["seconds"] == 40
    assert plan["plan"]["steps"][0] == card["method"]["training"]["steps"] > 30
    assert took < 40
    before = (tmp_path / MODEL / "sl1.safetensors").stat().st_mtime_ns
    assert run(heads, tmp_path, "group", "--time", "40s") == 0
    assert "The plan of the earlier run is kept" in capfd.readouterr().err
    assert (tmp_path / MODEL / "sl1.safetensors").stat().st_mtime_ns == before
    (record, *_) = tmp_path.glob("logs/*/config.json")
    assert run(heads, tmp_path, "group", "--config-file", str(record)) == 0
    assert "The plan of the earlier run is kept" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["0m", "soon", "30", "1.5h", "m", "10m5h"])
def test_times_that_are_none(heads, tmp_path, capfd, text):
    assert run(heads, tmp_path, "group", "--time", text) == 64
    assert f"{text} is no time such as 45m or 1h30m" in capfd.readouterr().err
