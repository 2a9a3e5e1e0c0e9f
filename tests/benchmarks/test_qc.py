from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.qc import JUDGES, compare, main, table
from singlestrip_bids import cli
from singlestrip_bids.demo import write_dataset

BOUNDS = {"low": 0.6, "high": 1.0, "low_written": 0.65, "high_written": 0.95}
DICE = [0.5, 0.7, 0.92, 0.95, 0.97]


def rows(said: list[float], label: str = "sub-01") -> list[dict]:
    judged = [dict.fromkeys(JUDGES, value) for value in said]
    return [
        {"label": label, **dict.fromkeys(("dice", "dice_written"), truth), **BOUNDS, **each}
        for truth, each in zip(DICE, judged, strict=True)
    ]


class TestCompare:
    def test_a_judge_who_knows(self):
        found = compare(rows(DICE), "expected")
        assert found == pytest.approx(
            {"pearson": 1, "spearman": 1, "mae": 0, "top_half": 1, "auroc": 1}
        )

    def test_a_judge_who_is_always_wrong(self):
        found = compare(rows(DICE[::-1]), "expected")
        assert found["spearman"] == pytest.approx(-1)
        assert found["top_half"] == 0
        assert found["auroc"] == 0
        assert found["mae"] == pytest.approx((0.47 + 0.25 + 0 + 0.25 + 0.47) / 5)

    def test_a_judge_who_says_the_same_of_all(self):
        found = compare(rows([0.8] * 5), "expected")
        assert found["pearson"] is None
        assert found["spearman"] is None
        assert found["auroc"] == 0.5

    def test_no_bad_mask_no_auroc(self):
        good = [row for row in rows(DICE) if row["dice"] > 0.9]
        assert compare(good, "expected")["auroc"] is None


def test_table_is_the_mean_over_folds():
    both = rows(DICE) + rows(DICE[::-1], label="sub-02")
    facts = {"date": "today", "commit": "abc", "hardware": "none", "rows": both}
    text = table(facts)
    pearson = (1 + np.corrcoef(DICE, DICE[::-1])[0, 1]) / 2
    assert f"| expected | {pearson:.3f} | 0.000 | 0.144 | 0.500 | 0.500 |" in text
    assert f"| written | {pearson:.3f} | 0.000 | 0.144 | 0.500 | 0.500 |" in text
    good = "10, Dice 0.500 to 0.970, 4 of them below 0.9"
    assert f"of the network: {good}; 80% lie within" in text
    assert f"written: {good}; 60% lie within their interval, whose median width is 0.300" in text


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("qc") / "heads", subjects=3, spacing_scale=4)


@pytest.mark.slow
def test_judges_all_scans_but_the_label(heads, tmp_path, capsys):
    assert cli.main([str(heads), str(tmp_path / "out"), "group", "--sloppy", "--rounds", "0"]) == 0
    model = tmp_path / "out" / "code" / "singlestrip"
    call = [str(heads), str(model), "--out", str(tmp_path / "qc")]
    assert main([*call, "--subjects", "02", "03"]) == 0
    found = json.loads((tmp_path / "qc.json").read_text())["rows"]
    assert [row["scan"].split("/")[0] for row in found] == ["sub-02", "sub-03"]
    for row in found:
        assert all(0 <= row[name] <= 1 for name in (*JUDGES, "dice", *BOUNDS))
        assert row["low"] < row["high"]
        assert row["low_written"] < row["high_written"]
        assert np.isfinite(row["tta"])
    assert (tmp_path / "qc.md").read_text() in capsys.readouterr().out
    assert main([*call, "--subjects", "02", "--swell", "50"]) == 0
    (other,) = json.loads((tmp_path / "qc.json").read_text())["rows"]
    assert other["volume"] != found[0]["volume"]
