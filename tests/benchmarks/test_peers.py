from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import accuracy, peers, score
from benchmarks.peers import TOOLS, Tool
from singlestrip_bids.bids.label import find_label
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.demo import write_dataset
from singlestrip_bids.image.masks import dice

# Programs that stand for tools: real ones, called as those are.
HEAD = """
import sys, time
import nibabel as nib, numpy as np
out, scan, mask, *label = sys.argv[1:]
image = nib.load(scan)
data = np.asarray(image.dataobj)
"""
SAVE = "nib.save(nib.Nifti1Image(found.astype(np.uint8), image.affine), mask)\n"
COUNT = "open(out, 'a').write('called\\n')\n"
BRIGHT = HEAD + COUNT + "found = data > 0.3 * data.max()\n" + SAVE
ONLY_T1W = HEAD + "if data.shape == (SHAPE):\n    sys.exit('working ...\\nthis is no T1w\\n')\n"
ONLY_T1W += "found = data > 0.3 * data.max()\n" + SAVE
CARRY = HEAD + "head, brain = (nib.load(path) for path in label)\n"
CARRY += "assert head.shape == brain.shape\n"
CARRY += "open(out, 'a').write(f'{int(np.asarray(brain.dataobj).sum())}\\n')\n"
CARRY += "found = data > 0.3 * data.max()\n" + SAVE
CROPPED = HEAD + "found = data[1:] > 0.3 * data.max()\n" + SAVE
SLOW = HEAD + "time.sleep(60)\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three heads: a labelled T1w, a T1w, a T2w."""
    folder = tmp_path_factory.mktemp("peers") / "bids"
    return write_dataset(folder, subjects=3, spacing_scale=2.5)


@pytest.fixture
def parts(dataset, tmp_path):
    """What `peers.run` wants besides the tools."""
    (label,) = find_label(dataset, label_subjects=["01"])
    return find_scans(dataset), label, truth(dataset), tmp_path / "out"


def truth(dataset: Path) -> Path:
    return dataset.parent / "bids-truth"


def program(folder: Path, text: str, *more: str) -> Tool:
    """Make a tool of a short program; nibabel stands for its package."""
    path = folder / "program.py"
    path.write_text(text)
    calls = str(folder / "calls")
    return Tool("nibabel", ("python", str(path), calls, "{scan}", "{mask}", *more))


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split()


def test_masks_are_named_as_the_app_names_them_and_scored(parts, dataset, tmp_path):
    results = peers.run({"bright": program(tmp_path, BRIGHT)}, *parts)
    masks = sorted((tmp_path / "out/bright").rglob("*.nii.gz"))
    assert [path.name for path in masks] == [
        "sub-02_desc-brain_mask.nii.gz",
        "sub-03_space-T2w_desc-brain_mask.nii.gz",
    ], "all but the labelled head"
    data = nib.load(dataset / "sub-02/anat/sub-02_T1w.nii.gz").get_fdata()
    data -= data.min()
    known = nib.load(truth(dataset) / "sub-02/anat" / masks[0].name).get_fdata() > 0
    row = results["rows"][0]
    assert row["dice"] == pytest.approx(dice(data > 0.3 * data.max(), known))
    assert row["hd95_mm"] > 0 and row["error"] is None
    assert row["seconds"] > 0 and row["processor_seconds"] > 0
    assert results["tools"]["bright"]["version"] == f"nibabel {metadata.version('nibabel')}"
    assert {"date", "commit", "hardware", "versions"} <= results.keys()
    again = score.score(tmp_path / "out/bright", truth(dataset))
    assert [r.dice for r in again] == [r["dice"] for r in results["rows"]]


def test_finished_masks_are_not_made_again(parts, tmp_path):
    tools = {"bright": program(tmp_path, BRIGHT)}
    first = peers.run(tools, *parts)
    assert len(calls(tmp_path)) == 2
    assert peers.run(tools, *parts)["rows"] == first["rows"]
    assert len(calls(tmp_path)) == 2
    next((tmp_path / "out").rglob("sub-03*.nii.gz")).unlink()
    peers.run(tools, *parts)
    assert len(calls(tmp_path)) == 3


def test_tools_are_given_the_label(parts, tmp_path):
    tool = program(tmp_path, CARRY, "{label}", "{label_mask}")
    assert tool.uses_label
    results = peers.run({"carry": tool}, *parts)
    voxels = int(nib.load(parts[1].mask).get_fdata().sum())
    assert calls(tmp_path) == [str(voxels)] * 2
    assert results["label"] == "01"


def test_masks_from_another_label_do_not_mix(parts, tmp_path):
    scans, label, references, out = parts
    tool = program(tmp_path, CARRY, "{label}", "{label_mask}")
    peers.run({"carry": tool}, *parts)
    mask = tmp_path / "sub-01_desc-better_mask.nii.gz"
    shutil.copy(label.mask, mask)
    other = type(label)(label.scan, mask)
    with pytest.raises(RuntimeError, match="carry: masks of another version, call or label"):
        peers.run({"carry": tool}, scans, other, references, out)


def test_a_scan_on_which_a_tool_fails_counts_as_zero(parts, dataset, tmp_path):
    shape = nib.load(dataset / "sub-03/anat/sub-03_T2w.nii.gz").shape
    tool = program(tmp_path, ONLY_T1W.replace("(SHAPE)", str(shape)))
    results = peers.run({"T1w alone": tool}, *parts)
    good, bad = results["rows"]
    assert good["dice"] > 0 and good["error"] is None
    assert bad["dice"] == 0 and bad["error"] == "exit code 1: this is no T1w"
    text = peers.table(results)
    half = good["dice"] / 2
    assert f"| 0.000 / - | {good['dice']:.3f} / {good['hd95_mm']:.1f} | {half:.3f} /" in text
    assert "- T1w alone, sub-03_space-T2w: exit code 1: this is no T1w" in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [(HEAD, "no mask written"), (CROPPED, "another grid"), (SLOW, "no mask after 3 s")],
)
def test_reasons_of_failures(parts, tmp_path, monkeypatch, text, reason):
    monkeypatch.setattr(peers, "LIMIT_S", 3 if text == SLOW else 60)
    scans, *others = parts
    results = peers.run({"bad": program(tmp_path, text)}, scans[:2], *others)
    (row,) = results["rows"]
    assert row["dice"] == 0 and reason in row["error"]
    assert str(parts[0][0].bids_dir) not in row["error"] and "scan.nii" not in row["error"]
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_tool_that_is_not_installed_is_named(parts, tmp_path, capsys):
    tools = {
        "absent": Tool("package-that-nobody-has", ("python", "-c", "1")),
        "no program": Tool("nibabel", ("program-that-nobody-has",)),
        "bright": program(tmp_path, BRIGHT),
    }
    results = peers.run(tools, *parts)
    named = "absent: not installed: pip install package-that-nobody-has"
    assert named in capsys.readouterr().out
    assert {row["tool"] for row in results["rows"]} == {"bright"}
    text = peers.table(results)
    assert "| absent | not installed: pip install package-that-nobody-has | - | - |" in text
    assert "| no program | not installed: pip install nibabel |" in text


def test_command_line(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TOOLS, "bright", program(tmp_path, BRIGHT))
    call = [str(dataset), str(tmp_path / "out"), "--label-subject", "01", "--tools", "bright"]
    assert peers.main([*call, "--modalities", "T2w", "--note", "Beside other work."]) == 0
    written = json.loads((tmp_path / "out/peers.json").read_text())
    assert [row["scan"] for row in written["rows"]] == ["sub-03_space-T2w"]
    assert written["note"] == "Beside other work."
    text = (tmp_path / "out/peers.md").read_text()
    assert text in capsys.readouterr().out and "Beside other work." in text
    assert peers.main([*call, "--participant-label", "77"]) == 1
    assert "peers: " in capsys.readouterr().err


def test_accuracy_puts_peers_beside_its_arms(dataset, tmp_path, monkeypatch):
    carry = tmp_path / "carry"
    carry.mkdir()
    monkeypatch.setitem(TOOLS, "bright", program(tmp_path, BRIGHT))
    monkeypatch.setitem(TOOLS, "carry", program(carry, CARRY, "{label}", "{label_mask}"))
    monkeypatch.setitem(TOOLS, "absent", Tool("package-that-nobody-has", ("python",)))
    config = {
        "title": "Peers alone", "labels": ["01"], "pool": ["02"], "inductive": ["03"],
        "options": [], "arms": {}, "peers": ["bright", "carry", "absent"],
    }  # fmt: skip
    results = accuracy.run(config, dataset, tmp_path / "work", tmp_path / "table")
    found = [(row["arm"], row["label"], row["role"]) for row in results["rows"]]
    assert found == [
        ("bright", None, "pool"), ("bright", None, "inductive"),
        ("carry", "01", "pool"), ("carry", "01", "inductive"),
    ]  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    assert "| bright |" in text and "| carry |" in text and "over 1 folds" in text
    assert "Not installed: absent (pip install package-that-nobody-has)." in text
    assert accuracy.run(config, dataset, tmp_path / "work", tmp_path / "table") == results
    assert len(calls(tmp_path)) == 2 and len(calls(carry)) == 2
    with pytest.raises(ValueError, match="no peers named"):
        accuracy.run(config | {"peers": ["magic"]}, dataset, tmp_path, tmp_path / "other")


def test_every_tool_writes_the_mask_of_the_scan():
    for tool in TOOLS.values():
        assert "{scan}" in tool.command and "{mask}" in tool.command
    assert {name for name, tool in TOOLS.items() if tool.uses_label} == {"ants-2mm", "ants-1mm"}


@pytest.mark.parametrize(
    ("name", "least"),
    # niimath looks for the skull of a real head: here its mask need only lie where the brain is
    [("deepbet", 0.95), ("ants-2mm", 0.85), ("niimath", 0.7)],
)
def test_real_tools(parts, name, least):
    if missing := TOOLS[name].missing():
        pytest.skip(f"{name}: not installed: {missing}")
    scans, *others = parts
    (row,) = peers.run({name: TOOLS[name]}, scans[:2], *others)["rows"]
    assert row["error"] is None and row["dice"] > least
    assert np.isfinite(float(row["hd95_mm"]))
