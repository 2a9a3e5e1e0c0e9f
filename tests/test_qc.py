from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import shapes, spoil
from benchmarks.phantoms import write_dataset
from benchmarks.qc import JUDGES, compare, main, table
from singlestrip_bids import cli, runtime
from singlestrip_bids.config import QualityConfig

DICE = [0.5, 0.7, 0.92, 0.95, 0.97]


def rows(said: list[float], label: str = "sub-01") -> list[dict]:
    judged = [dict.fromkeys(JUDGES, value) for value in said]
    return [
        {"label": label, "dice": truth, "low": 0.6, "high": 1.0, **each}
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
    assert "2 labels; 10 masks, Dice 0.500 to 0.970, 4 of them below 0.9. 80% lie" in text


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("qc") / "heads", subjects=3, spacing_scale=4)


@pytest.mark.slow
def test_judges_all_scans_but_the_label(heads, tmp_path, capsys, monkeypatch):
    assert cli.main([str(heads), str(tmp_path / "out"), "group", "--sloppy", "--rounds", "0"]) == 0
    spoil.spoil(heads, ["02"], tmp_path / "spoilt")
    monkeypatch.setattr(shapes, "STEPS", 2)
    model = tmp_path / "out" / "code" / "singlestrip"
    call = [str(heads), str(model), "--out", str(tmp_path / "qc"), "--autoencoders"]
    assert main([*call, "--subjects", "02", "03", "--spoilt", str(tmp_path / "spoilt")]) == 0
    found = json.loads((tmp_path / "qc.json").read_text())["rows"]
    spoilt = [f"sub-02{way}" for way in sorted(spoil.WAYS)]
    assert [row["scan"].split("/")[0] for row in found] == ["sub-02", "sub-03", *spoilt]
    for row in found:
        assert all(0 <= row[name] <= 1 for name in (*JUDGES, "dice", "low", "high"))
        assert row["low"] < row["high"]
        assert np.isfinite(row["tta"])
    assert (tmp_path / "qc.md").read_text() in capsys.readouterr().out


class TestSpoil:
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        mask = np.zeros((24, 24, 20), bool)
        mask[6:18, 6:18, 4:16] = True
        data = np.where(mask, 0.8, 0.0).astype(np.float32)
        data[4:20, 4:20, 2:18] += 0.2
        return data, mask

    @pytest.mark.parametrize("way", spoil.WAYS)
    def test_each_way_changes_the_scan_and_keeps_it_beside_its_mask(self, way):
        data, mask = self.head()
        affine = np.diag([3.0, 3, 4, 1])
        made, kept, moved = spoil.WAYS[way](data, mask, affine, np.random.default_rng(0))
        assert made.shape == kept.shape
        assert made.dtype == np.float32 and np.isfinite(made).all()
        assert made.shape != data.shape or np.abs(made - data).mean() > 0.01
        place = moved[:3, :3] @ np.argwhere(kept).T + moved[:3, 3:]
        before = affine[:3, :3] @ np.argwhere(mask).T
        assert {tuple(p) for p in place.T} <= {tuple(p) for p in before.T}
        assert kept.sum() / mask.sum() == pytest.approx(7 / 12 if way == "crop" else 1)

    def test_another_dataset_is_not_overwritten(self, heads, tmp_path, capsys):
        (tmp_path / "there").mkdir()
        assert spoil.main([str(heads), "02", "--out", str(tmp_path / "there")]) == 1
        assert "exists" in capsys.readouterr().err


class TestShapes:
    @pytest.mark.parametrize("train", [shapes.three_planes, shapes.volumetric])
    def test_knows_the_mask_from_a_broken_one(self, train, monkeypatch):
        monkeypatch.setattr(shapes, "STEPS", 40)
        monkeypatch.setattr(shapes, "EDGE", 32)
        x, y, z = np.ogrid[-32:32, -32:32, -32:32]
        brain = (x / 8) ** 2 + (y / 10) ** 2 + (z / 7) ** 2 < 1
        judge = train(brain, QualityConfig(64, epochs=40), runtime.start("cpu"))
        broken = brain & (np.random.default_rng(0).random(brain.shape) < 0.5)
        assert judge(brain) > judge(broken) + 0.1
        assert judge(np.zeros_like(brain)) == 0
