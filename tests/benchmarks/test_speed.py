"""The benchmark of time and memory, on tiny scans."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import speed
from singlestrip_bids.config import NetworkConfig
from singlestrip_bids.method.networks import UNet


def test_measures_a_process(tmp_path):
    work = "import time; a = bytearray(80 << 20); time.sleep(0.3)"
    row = speed.measure([sys.executable, "-c", work], tmp_path)
    assert row["wall_s"] >= 0.3
    assert row["peak_mib"] >= 80
    assert "error" not in row
    assert "exit code 3" in speed.measure([sys.executable, "-c", "exit(3)"], tmp_path)["error"]


def test_a_peak_is_not_that_of_the_parent(tmp_path):
    filled = bytearray(b"x" * (300 << 20))
    assert speed.measure([sys.executable, "-c", ""], tmp_path)["peak_mib"] < len(filled) >> 20


def test_masks_copies_of_a_scan(heads, trained, tmp_path):
    scan = sorted(heads.glob("sub-02/anat/*T1w.nii.gz")) or sorted(heads.rglob("*T1w.nii.gz"))
    row = speed.mask(tmp_path, scan[0], trained / "code/singlestrip", 2)
    assert "error" not in row, row
    assert len(list((tmp_path / "out").glob("sub-*/anat/*_mask.nii.gz"))) == 2
    assert 100 < row["peak_mib"] < 4000


def test_stages_and_the_floor(heads, trained, tmp_path):
    scan = sorted(heads.rglob("anat/*T1w.nii.gz"))[0]
    rows = speed.stages(tmp_path, scan, trained / "code/singlestrip")
    assert [row["stage"] for row in rows][:3] == ["read", "conform", "network, four times"]
    by_stage = {row["stage"]: row for row in rows}
    floor = by_stage["floor of the network"]
    assert floor["gflop"] > 0
    assert floor["achieved"] > 0
    assert by_stage["mask by thin slabs"]["dice"] > 0.998


@pytest.mark.parametrize("given", [[], [{"a": 1}, {"b": 2.5}]])
def test_table(given):
    lines = speed.table(given).splitlines()
    assert len(lines) == 2 + len(given)
    if given:
        assert lines[0] == "| a | b |"
        assert lines[-1] == "|  | 2.5 |"


def test_operations_are_counted():
    network = UNet(NetworkConfig(features=(4, 4)))
    whole, half = 2 * 27 * 8**3, 2 * 27 * 4**3  # of one channel to another, on either level
    counted = whole * (1 * 4 + 4 * 4) + half * (4 * 4 + 4 * 4)  # down
    counted += whole * (8 * 4 + 4 * 4 + 4 * 1)  # up, and the head
    assert speed.flops(network, (8, 8, 8)) == counted


def test_help_says_how(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--help"])
    assert "--parts" in capsys.readouterr().out


def test_paths_are_made_for_each_subject(tmp_path):
    scan = tmp_path / "x.nii.gz"
    scan.write_bytes(b"")
    root = speed.dataset(tmp_path / "bids", scan, 3)
    assert len(list(root.glob("sub-*/anat/*_T1w.nii.gz"))) == 3
    assert all(Path(path).is_symlink() for path in root.glob("sub-*/anat/*"))


def test_steps_by_one_process_and_by_two(tmp_path):
    rows = speed.scaling(tmp_path, "quick", 1)
    assert [row["processes"] for row in rows] == [1, 2]
    for row in rows:
        assert row["steps_per_s"] > 0, row
