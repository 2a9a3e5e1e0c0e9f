from __future__ import annotations

import copy
import json
import shutil
import statistics

import pytest

from benchmarks import accuracy, parts, qc
from singlestrip_bids import load_model
from singlestrip_bids.config import PRESETS
from singlestrip_bids.demo import write_dataset
from singlestrip_bids.machine.files import read_tsv

CONFIG = {
    "title": "Phantoms",
    "labels": ["01"],
    "pool": ["02", "03"],
    "inductive": ["04"],
    "cohorts": {"ours": ["02", "04"]},
    "options": ["--sloppy"],
    "arms": {
        "SL-1": ["--rounds", "0"],
        "SSL (network)": ["--pseudo-labels", "network"],
        "SSL-T": ["--pseudo-labels", "network"],
    },
    "best": {"SSL-T": {"of": "SL-1", "by": "dice", "k": 1}},
}


def row(arm: str, label: str, role: str, dice: float | None, distance: object) -> dict:
    return {
        "label": label, "arm": arm, "role": role, "scan": "s", "cohort": "T1w", "dice": dice,
        "hd95_mm": distance, "minutes": 2.0,
    }  # fmt: skip


class TestTable:
    def results(self, rows: list[dict]) -> dict:
        config = CONFIG | {"arms": {"one": [], "two": []}}
        facts = {"date": "2000-01-01", "commit": "abc", "hardware": "a machine"}
        return {**facts, "config": config, "rows": rows}

    def test_means_over_folds_and_their_spread(self):
        rows = [
            row("one", "01", "pool", 0.9, 4.0), row("one", "01", "pool", 0.8, 6.0),
            row("one", "02", "pool", 0.95, 8.0), row("two", "01", "inductive", 0.5, "inf"),
        ]  # fmt: skip
        lines = accuracy.table(self.results(rows)).splitlines()
        assert lines[2] == "| arm | T1w, pool | T1w, inductive | minutes a fold |"
        assert lines[4] == "| one | 0.900 ± 0.071 / 6.0 | - | 2.0 |"
        assert lines[5] == "| two | - | 0.500 / - | 2.0 |"
        assert "2 folds" in lines[7] and "a machine" in lines[8]

    def test_a_missing_mask_counts_as_zero(self):
        rows = [row("one", "01", "pool", 0.9, 4.0), row("one", "01", "pool", None, None)]
        assert "| one | 0.450 / 4.0 | 2.0 |" in accuracy.table(self.results(rows))

    def test_arms_not_run_yet_are_left_out(self):
        text = accuracy.table(self.results([row("two", "01", "pool", 0.9, 4.0)]))
        assert "| one |" not in text and "| two |" in text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("accuracy") / "bids", subjects=4, spacing_scale=2.5
    )


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    call = [str(folder / "config.json"), str(dataset), str(folder / "work")]
    assert accuracy.main([*call, "--out", str(folder / "table")]) == 0
    return folder


def test_every_scan_of_every_arm_has_a_row(finished):
    results = json.loads((finished / "table.json").read_text())
    found = {(r["arm"], r["scan"].split("_")[0], r["role"]) for r in results["rows"]}
    assert found == {
        (arm, f"sub-{number}", role)
        for arm in CONFIG["arms"]
        for number, role in (("02", "pool"), ("03", "pool"), ("04", "inductive"))
    }
    assert results["config"] == CONFIG
    assert {"date", "commit", "hardware", "versions"} <= results.keys()
    table = (finished / "table.md").read_text()
    assert "SSL (network)" in table
    assert "| arm | T2w, pool | ours, pool | ours, inductive | minutes" in table


def test_arms_share_the_first_network(finished):
    networks = list((finished / "work/01").rglob("sl1.safetensors"))
    assert len(networks) == 3
    assert len({path.read_bytes() for path in networks}) == 1
    curves = list((finished / "work/01").rglob("sl1_training.tsv"))
    assert len(curves) == 1, "trained once"


def test_the_oracle_trains_on_the_best_masks_alone(finished, dataset):
    first, oracle = (finished / "work/01" / arm / "code/singlestrip" for arm in ("SL-1", "SSL-T"))
    rows = qc.judge(load_model(first, device="cpu"), dataset, ["02", "03"])
    best = max(rows, key=lambda row: row["dice"])
    assert len(rows) == 2
    assert json.loads((oracle / "model.json").read_text())["unlabelled"] == [best["scan"]]


def test_an_arm_of_all_labels_runs_once(dataset, tmp_path):
    bids = shutil.copytree(dataset, tmp_path / "bids")
    shutil.copytree(dataset.parent / "bids-truth", tmp_path / "bids-truth")
    shutil.copytree(tmp_path / "bids-truth/sub-02", bids / "derivatives/manual/sub-02")
    config = CONFIG | {"labels": ["01", "02"], "pool": ["03"], "all_labels": ["SL-2"]}
    config["arms"] = {"SL-2": ["--rounds", "0"]}
    results = accuracy.run(config, bids, tmp_path / "work", tmp_path / "table")
    assert {(row["label"], row["scan"][:6]) for row in results["rows"]} == {
        ("01", "sub-03"),
        ("01", "sub-04"),
    }
    card = tmp_path / "work/01/SL-2/code/singlestrip/model.json"
    assert [each["scan"][:6] for each in json.loads(card.read_text())["label"]] == [
        "sub-01",
        "sub-02",
    ]


def test_an_arm_may_start_from_a_new_network(dataset, tmp_path):
    way = ["--pseudo-labels", "network"]
    arms = {"SSL": way, "from scratch": [*way, "--preset", "quick-new"]}
    config = CONFIG | {"pool": ["02"], "inductive": [], "arms": arms, "best": {}}
    accuracy.run(config, dataset, tmp_path / "work", tmp_path / "table")
    losses = {}
    for arm in ("SSL", "from-scratch"):
        folder = tmp_path / "work/01" / arm / "code/singlestrip"
        card = json.loads((folder / "model.json").read_text())
        losses[arm] = [
            [float(row["loss"]) for row in read_tsv(folder / f"{name}_training.tsv")]
            for name in ("sl1", "round-1")
        ]
        assert card["method"]["warm_start"] == (arm == "SSL")
        names = ["sl1", "round-1"] if arm == "SSL" else ["round-1"]
        assert list(card["guard"]["standings"]) == names
    warm, cold = (statistics.mean(losses[arm][1]) for arm in ("SSL", "from-scratch"))
    assert warm < 0.9 * cold, "it goes on from SL-1"
    assert accuracy.NEW["quick-new"].finetuning == PRESETS["quick"].training
    assert "quick-new" not in PRESETS


def test_arms_and_labels_may_be_added(finished, dataset):
    more = CONFIG | {"labels": ["01", "02"], "arms": CONFIG["arms"] | {"new": []}}
    assert accuracy._continues(CONFIG, more)
    assert not accuracy._continues(more, CONFIG)
    assert not accuracy._continues(CONFIG, CONFIG | {"pool": ["02"]})
    assert not accuracy._continues(CONFIG, CONFIG | {"best": {}})


def test_finished_arms_are_not_repeated(finished, dataset):
    before = {p: p.stat().st_mtime_ns for p in (finished / "work").rglob("*") if p.is_file()}
    results = accuracy.run(CONFIG, dataset, finished / "work", finished / "table")
    assert len(results["rows"]) == 9
    assert before == {
        p: p.stat().st_mtime_ns for p in (finished / "work").rglob("*") if p.is_file()
    }


def test_another_config_does_not_mix(finished, dataset):
    other = copy.deepcopy(CONFIG)
    other["options"] = ["--sloppy", "--random-seed", "1"]
    with pytest.raises(RuntimeError, match="another config"):
        accuracy.run(other, dataset, finished / "work", finished / "table")


def test_an_arm_that_cannot_run_ends_the_experiment(dataset, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"labels": ["77"]}))
    call = [str(tmp_path / "config.json"), str(dataset), str(tmp_path / "work")]
    assert accuracy.main([*call, "--out", str(tmp_path / "table")]) == 1
    assert "ended with" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


def test_config_that_is_not_there_or_not_json(dataset, tmp_path, capsys):
    call = [
        str(tmp_path / "config.json"),
        str(dataset),
        str(tmp_path),
        "--out",
        str(tmp_path / "t"),
    ]
    assert accuracy.main(call) == 1
    assert "config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert accuracy.main(call) == 1
    assert "accuracy: " in capsys.readouterr().err


def test_labels_by_their_masks_references_in_the_dataset_and_the_parts_of_an_arm(
    dataset, tmp_path
):
    bids = shutil.copytree(dataset, tmp_path / "bids")
    shutil.copytree(dataset.parent / "bids-truth", bids / "derivatives/references")
    for subject in ("02", "03"):  # several subjects have masks that could be the label
        shutil.copytree(
            dataset.parent / f"bids-truth/sub-{subject}",
            bids / f"derivatives/manual/sub-{subject}",
        )
    mask = next((bids / "derivatives/manual/sub-01").rglob("*_desc-brain_mask.nii.gz"))
    config = CONFIG | {
        "masks": {"01": str(mask.relative_to(bids))},
        "truth": "derivatives/references",
        "arms": {"SSL": []},
        "parts": ["SSL"],
        "best": {},
    }
    results = accuracy.run(config, bids, tmp_path / "work", tmp_path / "table")
    found = {arm: {} for arm in ("SSL", *(f"SSL: {part}" for part in parts.PARTS))}
    for one in results["rows"]:
        found[one["arm"]][one["scan"]] = one["dice"]
    scans = found["SSL"].keys()
    assert len(scans) == 3 and all(part.keys() == scans for part in found.values())
    assert found["SSL: label"] != found["SSL: network"]
    table = (tmp_path / "table.md").read_text()
    assert "| SSL: label |" in table and "| SSL, less |" in table
    gaps = [found["SSL"][s] - found["SSL: network"][s] for s in scans if s[:6] != "sub-03"]
    assert f"| SSL: network | - | {statistics.mean(gaps):+.4f} (" in table
