"""Several jobs at once, and jobs that are killed, by real processes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from benchmarks.stress import fuzz, jobs, kills

MODEL = Path("code/singlestrip")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def masks(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.rglob("*") if p.name.endswith("mask.nii.gz")}


def test_several_jobs_write_the_same_scans_to_one_folder(heads, trained, tmp_path):
    """Worse than an array of jobs, where each has its own subjects: all write all masks."""
    out = tmp_path / "out"
    words = ["participant", "--model", str(trained / MODEL), "--overwrite"]
    together = [kills.start(kills.command(heads, out, words)) for _ in range(3)]
    for job in together:
        job.join()
    assert [job.exitcode for job in together] == [0, 0, 0]
    assert masks(out) == masks(trained)
    assert not kills.half_files(out)
    assert not kills.leftovers(out)
    assert sum(path.is_dir() for path in (out / "logs").iterdir()) == 3
    assert len(list(out.rglob("*_mask.json"))) == 4


def test_an_array_of_jobs(heads, trained, tmp_path):
    """The one of 50 jobs is benchmarks.stress.jobs."""
    found = jobs.compare(heads, trained / MODEL, tmp_path, 5)
    assert found.pop("seconds") > 0
    assert found == {
        "jobs": 5,
        "jobs that failed": 0,
        "masks": 5,
        "masks missing or not as by one process": 0,
        "sidecars": 5,
        "pages": 5,
        "records of runs": 5,
        "half files": 0,
        "hidden files": 0,
    }


@pytest.mark.parametrize("level", ["group", "participant"])
def test_killed_at_a_random_moment(heads, trained, tmp_path, level):
    """The longer run of this is benchmarks.stress.kills."""
    draw = random.Random(4)
    words = [level, "--participant-label", "01", "02"]
    words += ["--model", str(trained / MODEL)] if level == "participant" else ["--set", "steps=5"]
    (row,) = kills.rounds(heads, tmp_path, words, 1, draw)
    moment, half, _, code, same = row
    assert moment > 0
    assert (half, code, same) == (0, 0, True)


def test_half_files_are_seen(trained, tmp_path):
    """The test of the test."""
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    assert not kills.half_files(out)
    paths = [next(out.rglob(f"*{end}")) for end in (".nii.gz", ".json", ".safetensors", ".tsv")]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-3])
    (out / ".x.tmp").write_text("half")
    assert sorted(kills.half_files(out)) == sorted(map(str, paths))
    assert kills.leftovers(out) == [out / ".x.tmp"]


def test_a_short_fuzz(trained, tmp_path):
    """The longer run of this is benchmarks.stress.fuzz."""
    labels = [*fuzz.fuzz_labels(tmp_path, 30, seed=3)]
    images = [*fuzz.fuzz_images(trained / MODEL, tmp_path, 12, seed=3)]
    files = [*fuzz.fuzz_files(trained / MODEL, tmp_path, 20, seed=3)]
    assert [text for _, wrong in labels + images + files for text in wrong] == []
    assert sum(kind.startswith("image ") for kind, _ in images) == 12
    assert len({kind for kind, _ in files}) > 4


def test_faults_are_seen(tmp_path):
    (tmp_path / ".x.tmp").write_text("half")
    (tmp_path / "x.json").write_text("{")
    said = "Traceback\nERROR a.nii: KeyError('x') [crash.txt]\nERROR m: no card (KeyError('x'))"
    found = fuzz.faults(2, said, tmp_path)
    assert len(found) == 5
    assert "KeyError" in found[2]
    assert fuzz.faults(65, "ERROR a.nii: cut", tmp_path / "other") == []
