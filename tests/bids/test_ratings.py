"""Ratings by eye: read from what the page exports, and heeded by the group level."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from singlestrip_bids import cli
from singlestrip_bids.bids import ratings
from singlestrip_bids.errors import BadData, NoInput
from singlestrip_bids.method.pseudolabels import Candidate, top_k

MODEL = Path("code/singlestrip")
ROWS = [
    {"scan": "sub-02/anat/sub-02_T1w.nii.gz", "rating": "reject", "comment": 'cut "off'},
    {"scan": "sub-03/anat/sub-03_T1w.nii.gz", "rating": "accept", "comment": ""},
    {"scan": "sub-04/anat/sub-04_T1w.nii.gz", "rating": "", "comment": "hm"},
]


def as_tsv(rows) -> str:
    lines = [list(ROWS[0]), *([cell or "n/a" for cell in row.values()] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


@pytest.mark.parametrize(("name", "text"), [("r.tsv", as_tsv(ROWS)), ("r.json", json.dumps(ROWS))])
def test_both_kinds_of_export_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = ratings.read(tmp_path / name)
    assert found.rejected == {ROWS[0]["scan"]}
    assert found.accepted == {ROWS[1]["scan"]}


def test_no_file_no_ratings(tmp_path):
    assert ratings.read(None) == ratings.Ratings()
    with pytest.raises(NoInput, match="--ratings"):
        ratings.read(tmp_path / "nowhere.tsv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.tsv", "scan\tverdict\na\taccept\n"),
        ("r.tsv", "scan\trating\na\tmaybe\n"),
        ("r.tsv", "scan\trating\na\taccept\na\treject\n"),
        ("r.json", "{"),
        ("r.json", "[1]"),
        ("r.json", '{"scan": "a"}'),
    ],
)
def test_other_files_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadData, match=name):
        ratings.read(tmp_path / name)


def test_accepted_ones_are_kept_besides_the_best():
    candidates = [Candidate(f"s{n}_T1w.nii", 1 - n / 10, None, 1000.0) for n in range(5)]
    candidates.append(Candidate("empty_T1w.nii", 0.0, None, 0.0))
    kept = top_k(candidates, 2, always={"s4_T1w.nii", "empty_T1w.nii", "elsewhere"})
    assert [c.scan for c in kept if c.kept] == ["s0_T1w.nii", "s1_T1w.nii", "s4_T1w.nii"]


LABELLED = "sub-01/anat/sub-01_T1w.nii.gz"


def test_group_heeds_ratings(heads, trained, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(trained / MODEL, out / MODEL)  # the first network is the same
    with (trained / MODEL / "scores.tsv").open() as stream:
        before = list(csv.DictReader(stream, delimiter="\t"))
    by_rank = sorted(before, key=lambda row: float(row["score"]) + float(row["agreement"]))
    worst, best = by_rank[0]["scan"], by_rank[-1]["scan"]
    said = [{"scan": best, "rating": "reject"}, {"scan": worst, "rating": "accept"}]
    said += [{"scan": LABELLED, "rating": "accept"}, {"scan": "sub-99/x", "rating": "reject"}]
    (tmp_path / "ratings.json").write_text(json.dumps(said))
    words = ["--sloppy", "--top-k", "1", "--ratings", str(tmp_path / "ratings.json")]
    assert cli.main([str(heads), str(out), "group", *words]) == 0
    assert "2 of its scans are not among the unlabelled ones" in capfd.readouterr().err
    with (out / MODEL / "scores.tsv").open() as stream:
        after = {row["scan"]: row["kept"] for row in csv.DictReader(stream, delimiter="\t")}
    assert best not in after
    assert after[worst] == "True"
    assert len(after) == 2
    card = json.loads((out / MODEL / "model.json").read_text())
    assert card["ratings"] == {"accepted": [worst], "rejected": [best]}
    assert best not in card["unlabelled"]
    prose = " ".join((out / "logs/CITATION.md").read_text().split())
    assert "1 rejected scan was left out beforehand, and 1 accepted one was kept" in prose
