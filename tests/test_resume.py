"""Finished scans are skipped, crashes are kept, and a run can be repeated from its record."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import MODEL, scan

from singlestrip_bids import cli, group
from singlestrip_bids.errors import BadData, NoInput
from singlestrip_bids.machine import runlog


def mask(bids: Path, trained: Path, out: Path, *words: str) -> int:
    command = [str(bids), str(out), "participant", "--model", str(trained / MODEL)]
    return cli.main([*command, *words])


def times(out: Path, name: str = "*_mask.nii.gz") -> dict[str, int]:
    return {path.parts[-3]: path.stat().st_mtime_ns for path in out.rglob(name)}


def logs(out: Path) -> list[Path]:
    folders = [path for path in (out / "logs").iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: path.stat().st_mtime_ns)


def spoil(bids: Path, *subjects: str) -> None:
    for subject in subjects:
        scan(bids, subject).write_bytes(b"not an image")


def test_only_what_has_changed_is_made_anew(bids, trained, tmp_path, capfd):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    before = times(out)
    sidecar = next((out / "sub-02").rglob("*_mask.json"))
    card = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**card, "ModelSHA256": "of another model"}))
    image = nib.load(scan(bids, "03"))
    data = np.asarray(image.dataobj).astype(np.float32) * 2
    nib.save(nib.Nifti1Image(data, image.affine), scan(bids, "03"))
    next((out / "sub-04").rglob("*_mask.nii.gz")).unlink()
    assert mask(bids, trained, out) == 0
    assert "1 scans were finished before; --overwrite" in capfd.readouterr().err
    after = times(out)
    assert [name for name in before if before[name] == after[name]] == ["sub-01"]
    assert json.loads(sidecar.read_text())["ModelSHA256"] == card["ModelSHA256"]

    assert mask(bids, trained, out, "--participant-label", "01", "02", "--output", "probseg") == 0
    soft = times(out, "*_probseg.nii.gz")
    assert set(soft) == {"sub-01", "sub-02"}
    assert "finished before" not in capfd.readouterr().err
    sidecar.write_text("{")
    assert mask(bids, trained, out, "--output", "probseg") == 0
    last = times(out, "*_probseg.nii.gz")
    assert [name for name in soft if soft[name] == last[name]] == ["sub-01"]

    assert mask(bids, trained, out, "--participant-label", "01", "--overwrite") == 0
    assert times(out)["sub-01"] > after["sub-01"]


def test_what_an_earlier_model_has_left_is_named(bids, trained, tmp_path, capfd):
    out, words = tmp_path / "out", ("--participant-label", "01")
    assert mask(bids, trained, out, *words, "--output", "probseg") == 0
    (path,) = out.rglob("*_probseg.json")
    path.write_text(re.sub('"ModelSHA256": "[^"]*"', '"ModelSHA256": "x"', path.read_text()))
    assert "earlier model" not in capfd.readouterr().err
    assert mask(bids, trained, out, *words, "--overwrite") == 0
    assert f"{path}: of an earlier model" in capfd.readouterr().err


def test_what_is_of_an_earlier_scan_is_named(bids, trained, tmp_path, capfd):
    out, words = tmp_path / "out", ("--participant-label", "01")
    assert mask(bids, trained, out, *words, "--output", "brain") == 0
    image = nib.load(scan(bids, "01"))  # as if it were defaced
    nib.save(nib.Nifti1Image(0.9 * image.get_fdata(), image.affine), scan(bids, "01"))
    capfd.readouterr()
    assert mask(bids, trained, out, *words) == 0
    said = capfd.readouterr().err
    assert "_desc-brain_T1w.json: of an earlier model or scan than the mask" in said


def test_a_crash_file_for_each_bad_scan(bids, trained, tmp_path, capfd):
    spoil(bids, "01", "03")
    gone = scan(bids, "02")
    gone.unlink()
    gone.symlink_to(f"../../.git/annex/objects/aa/bb/{gone.name}")
    out = tmp_path / "out"
    assert mask(bids, trained, out) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    ending = said.partition("3 of 4 scans have no mask")[2]
    (folder,) = logs(out)
    crashes = sorted(folder.glob("crash-*.txt"), key=lambda path: path.name.split("sub-")[1])
    for subject, crash in zip(("01", "02", "03"), crashes, strict=True):
        assert str(scan(bids, subject)) in ending
        assert str(crash) in ending
        assert f"sub-{subject}" in crash.name
        assert "Traceback" in crash.read_text()
        assert str(scan(bids, subject)) in crash.read_text()
    assert f"datalad get {gone}" in ending
    assert set(times(out)) == {"sub-04"}


def test_stop_on_first_crash(bids, trained, tmp_path, capfd):
    spoil(bids, "02", "03")
    out = tmp_path / "out"
    assert mask(bids, trained, out, "--stop-on-first-crash") == 1
    assert "2 of 4 scans were looked at" in capfd.readouterr().err
    assert set(times(out)) == {"sub-01"}
    assert len(list(logs(out)[0].glob("crash-*"))) == 1
    shutil.copytree(trained / MODEL, out / MODEL)
    (out / MODEL / "model.json").unlink()
    command = [str(bids), str(out), "group", "participant", "--sloppy", "--stop-on-first-crash"]
    assert cli.main(command) == 1
    assert "Stopped at the first scan that failed" in capfd.readouterr().err
    assert not (out / MODEL / "model.json").exists()
    assert len(list(logs(out)[-1].glob("crash-*"))) == 1


def test_what_a_run_leaves(heads, trained):
    (folder,) = logs(trained)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "versions.json", "command.txt",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["preset"] in ("quick", "standard")
    assert config["options"]["device"] != "auto"
    assert config["options"]["sloppy"] is True
    assert config["settings"]["bids_dir"] == str(heads)
    card = json.loads((trained / MODEL / "model.json").read_text())
    assert config["settings"]["method"] == card["method"]
    assert json.loads((folder / "versions.json").read_text())["torch"]
    command = (folder / "command.txt").read_text()
    assert command == f"singlestrip-bids {heads} {trained} group participant --sloppy\n"


def test_the_record_gives_the_same_options(tmp_path):
    words = [
        *(
            "in",
            "out",
            "group",
            "--preset",
            "quick",
            "--sloppy",
            "--rounds",
            "2",
            "--set",
            "steps=7",
        ),
        *("--modalities", "T1w", "bold", "--set", "voxel_size=3.5", "--border-mm", "-1.5"),
        *("--participant-label", "01", "02", "--session-id", "a", "--random-seed", "4"),
        *("-d", "mine=some/where", "other", "--label-mask", "m.nii", "--output", "brain"),
    ]
    first = cli.parse(words)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"options": cli.options_of(first)}, default=str))
    again = cli.parse(["in", "out", "group", "--config-file", str(path)])
    assert cli.options_of(again) == cli.options_of(first)
    assert first.set == ["steps=7", "voxel_size=3.5"]
    assert first.derivatives == [Path("some/where").absolute(), Path("other").absolute()]
    other = cli.parse(["in", "out", "group", "--config-file", str(path), "--set", "steps=9"])
    assert other.set == ["steps=7", "voxel_size=3.5", "steps=9"]  # the last one counts
    assert (other.rounds, other.modalities) == (2, ["T1w", "bold"])


def test_ratings_are_kept_with_the_record(tmp_path):
    (tmp_path / "bids").mkdir()
    rated = tmp_path / "mine.tsv"
    rated.write_text("scan\trating\nsub-02/anat/sub-02_T1w.nii.gz\treject\n")
    words = [str(tmp_path / "bids"), str(tmp_path / "out"), "group", "--ratings", str(rated)]
    assert cli.main(words) == 16
    (folder,) = logs(tmp_path / "out")
    copy = json.loads((folder / "config.json").read_text())["options"]["ratings"]
    assert copy == str(folder / "ratings.tsv")
    assert (folder / "ratings.tsv").read_bytes() == rated.read_bytes()


def test_a_run_is_repeated_from_its_record(heads, trained, tmp_path):
    file = tmp_path / "filter.json"
    file.write_text('{"t1w": {"subject": ["01", "02", "03"]}, "t2w": {"subject": "02"}}')
    first, again = tmp_path / "first", tmp_path / "again"
    words = ("--bids-filter-file", str(file), "--border-mm", "3", "--omp-nthreads", "1")
    assert mask(heads, trained, first, *words) == 0
    file.unlink()
    config = logs(first)[0] / "config.json"
    assert cli.main([str(heads), str(again), "participant", "--config-file", str(config)]) == 0
    for out in (first, again):
        assert len(list(out.rglob("*_mask.nii.gz"))) >= 4
    for path in first.rglob("*_mask.nii.gz"):
        assert (again / path.relative_to(first)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["--omp-nthreads", "2"], 2),
        (["--nprocs", "3"], 3),
        (["--n-cpus", "3", "--omp-nthreads", "2"], 2),
        (["--nthreads", "1", "--omp-nthreads", "2"], 1),
    ],
)
def test_the_number_of_threads_is_settled(tmp_path, words, number):
    """And written down, before the dataset is looked at."""
    (tmp_path / "bids").mkdir()
    before = torch.get_num_threads()
    try:
        assert cli.main([str(tmp_path / "bids"), str(tmp_path / "out"), "group", *words]) == 16
        assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    (folder,) = logs(tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["options"]["omp_nthreads"] == number


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        ("{", 65, "not readable JSON"),
        ('{"rounds": 3}', 65, "has no options"),
        ('{"options": {"rounds": {}}}', 65, "rounds is {}"),
        ('{"options": {"label_mask": "\\u0000"}}', 65, "null character"),
        ('{"options": {"rounds": "many"}}', 64, "config.json): error: argument --rounds"),
        ('{"options": {"steps": 40}}', 64, "--steps is gone: use --set steps=N"),
        ('{"options": {"colour": "red"}}', 64, "--colour=red"),
        ('{"options": {"levels": ["x"]}}', 64, "--levels"),
    ],
)
def test_bad_records(tmp_path, capfd, content, code, word):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert cli.main(["in", "out", "group", "--config-file", str(path)]) == code
    said = capfd.readouterr().err
    assert word in said
    assert "Traceback" not in said


def test_missing_record(tmp_path, capfd):
    assert cli.main(["in", "out", "group", "--config-file", str(tmp_path / "x")]) == 66
    assert "(--config-file) is not there" in capfd.readouterr().err


def test_an_error_nobody_foresaw(heads, tmp_path, capfd, monkeypatch):
    def fail(*_):
        [].pop()

    monkeypatch.setattr(group, "run", fail)
    out = tmp_path / "out"
    assert cli.main([str(heads), str(out), "group", "--sloppy"]) == 1
    said = capfd.readouterr().err
    (crash,) = logs(out)[0].glob("crash-*.txt")
    assert "IndexError('pop from empty list')" in said
    assert str(crash) in said
    assert "Traceback" not in said
    assert "[].pop()" in crash.read_text()


class TestReportCrash:
    def test_a_known_error_is_its_message(self, tmp_path):
        note = runlog.report_crash(tmp_path, "sub-01.nii.gz", BadData("sub-01.nii.gz: cut"))
        (crash,) = tmp_path.iterdir()
        assert note == f"sub-01.nii.gz: cut [{crash}]"

    def test_any_other_names_the_scan(self):
        note = runlog.report_crash(None, Path("/x/sub-01.nii.gz"), IndexError("pop"))
        assert note == "/x/sub-01.nii.gz: IndexError('pop')"

    def test_two_at_once(self, tmp_path):
        for _ in range(2):
            runlog.report_crash(tmp_path, "a.nii", NoInput("gone"))
        assert len(list(tmp_path.iterdir())) == 2


def test_a_fault_before_the_levels_is_a_message(heads, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no driver")

    monkeypatch.setattr("singlestrip_bids.machine.runtime.start", broken)
    assert cli.main([str(heads), str(tmp_path / "out"), "group"]) == 1
    assert "no driver" in capsys.readouterr().err
