"""The filter file, alone and together with the other ways to choose scans."""

from __future__ import annotations

import json

import pytest
from builders import make_dataset

from singlestrip_bids import cli
from singlestrip_bids.bids import filters
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.errors import BadData, NoInput, NothingSelected, Usage

SCANS = (
    "sub-01/ses-1/anat/sub-01_ses-1_acq-fast_run-01_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_acq-fast_run-02_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_run-1_T1w.nii.gz",
    "sub-01/ses-2/func/sub-01_ses-2_task-rest_echo-1_bold.nii.gz",
    "sub-01/ses-2/func/sub-01_ses-2_task-rest_echo-2_bold.nii.gz",
    "sub-02/anat/sub-02_part-mag_T1w.nii.gz",
    "sub-02/anat/sub-02_part-phase_T1w.nii.gz",
)


@pytest.fixture
def bids(tmp_path):
    return make_dataset(tmp_path / "bids", SCANS)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "filter.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def chosen(bids, conditions, suffixes=("T1w",), subjects=(), sessions=()):
    scans = find_scans(bids, suffixes, subjects, sessions, conditions)
    return sorted(SCANS.index(scan.relative) for scan in scans)


@pytest.mark.parametrize(
    ("conditions", "indices"),
    [
        ({}, [0, 1, 3, 6]),
        ({"acquisition": None}, [3, 6]),
        ({"acquisition": "*"}, [0, 1]),
        ({"acquisition": "fast"}, [0, 1]),
        ({"acquisition": [None, "fast"], "run": "*"}, [0, 1, 3]),
        ({"run": 1}, [0, 3]),
        ({"run": "02"}, [1]),
        ({"run": ["1", 2]}, [0, 1, 3]),
        ({"session": "ses-2"}, [3]),
        ({"session": [None, "1"]}, [0, 1, 6]),
        ({"subject": "sub-02"}, [6]),
        ({"part": ["mag", None]}, [0, 1, 3, 6]),
        ({"part": "mag", "datatype": "anat", "suffix": "T1w"}, [6]),
        ({"extension": [".nii", ".nii.gz"]}, [0, 1, 3, 6]),
    ],
)
def test_conditions(bids, file, conditions, indices):
    assert chosen(bids, filters.read(file({"t1w": conditions}))) == indices


def test_conditions_are_those_of_their_suffix(bids, file):
    both = {"T1w": {"run": 2}, "bold": {"echo": 1}, "fmap": {"datatype": "x"}, "roi": {}}
    conditions = filters.read(file(both))
    assert chosen(bids, conditions, ["all"]) == [1, 2, 4]
    assert chosen(bids, conditions, ["T2w", "bold"]) == [2, 4]


def test_together_with_subjects_and_sessions(bids, file):
    conditions = filters.read(file({"t1w": {"run": 1}}))
    assert chosen(bids, conditions, sessions=["ses-1"]) == [0]
    assert chosen(bids, conditions, ["all"], ["01"], ["2"]) == [3, 4, 5]
    assert chosen(bids, {}, sessions=["1", "ses-2"]) == [0, 1, 3]


def test_nothing_is_left(bids, file):
    with pytest.raises(NothingSelected, match=r"Of 5 images of any subject.*--bids-filter-file"):
        chosen(bids, filters.read(file({"t1w": {"run": 9}})))
    with pytest.raises(NothingSelected, match=r"ses-3, ses-4 for sub-01.* ses-1, ses-2\."):
        chosen(bids, {}, subjects=["01"], sessions=["3", "ses-4", "1"])
    with pytest.raises(NothingSelected, match="Sessions there: none"):
        chosen(bids, {}, subjects=["02"], sessions=["1"])
    with pytest.raises(NothingSelected, match="Suffixes there: T1w, T2w"):
        chosen(bids, {}, ["bold"], sessions=["1"])


def test_phase_is_refused_also_when_asked_for(bids, file, caplog):
    with pytest.raises(NothingSelected, match="none is left"):
        chosen(bids, filters.read(file({"t1w": {"part": "phase"}})), subjects=["02"])
    assert "not a magnitude image" in caplog.text


@pytest.mark.parametrize("value", ["../../outside", "/etc", "1/../..", "."])
def test_values_are_no_paths(bids, file, value):
    make_dataset(bids.parent / "outside", ["anat/sub-01_T1w.nii.gz"])
    for name in ("subject", "session", "suffix", "datatype"):
        with pytest.raises(NothingSelected):
            chosen(bids, filters.read(file({"t1w": {name: value}})))
    with pytest.raises(NothingSelected):
        chosen(bids, {}, subjects=[value])
    with pytest.raises(NothingSelected):
        chosen(bids, {}, sessions=[value])


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("{", BadData, "not readable JSON"),
        ("\x00", BadData, "not readable JSON"),
        ("[" * 100_000, BadData, "not readable JSON"),
        ([], BadData, "no JSON object"),
        ({"t1w": "1"}, BadData, "t1w needs an object"),
        ({"t1w": {"run": {"a": 1}}}, BadData, "run of t1w"),
        ({"t1w": {"run": [[1]]}}, BadData, "run of t1w"),
        ({"t1w": {"run": []}}, BadData, "run of t1w"),
        ({"t1w": {"run": True}}, BadData, "run of t1w"),
        ({"t1w": {"run": 1.5}}, BadData, "run of t1w"),
        ({"t1": {}}, Usage, "unknown query 't1'"),
        ({"t1w": {"acq": "x"}}, Usage, "unknown entity 'acq'.*acquisition"),
    ],
)
def test_bad_files(file, content, error, match):
    with pytest.raises(error, match=match):
        filters.read(file(content))


def test_missing_file(tmp_path):
    with pytest.raises(NoInput, match="not there"):
        filters.read(tmp_path / "gone.json")
    with pytest.raises(NoInput, match="not there"):
        filters.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [("{", 65, "JSON"), ({"x": {}}, 64, "query"), ({"t1w": {"run": 9}}, 18, "filter-file")],
)
def test_exit_codes(heads, trained, tmp_path, file, capfd, content, code, words):
    model = str(trained / "code/singlestrip")
    command = [str(heads), str(tmp_path / "out"), "participant", "--model", model]
    options = ["--modalities", "T1w", "--bids-filter-file", str(file(content))]
    assert cli.main([*command, *options]) == code
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_only_the_chosen_session_gets_masks(heads, trained, tmp_path):
    source = next((heads / "sub-01" / "anat").glob("*.nii.gz"))
    bids = make_dataset(tmp_path / "sessions", [])
    for session in ("1", "2"):
        place = bids / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz"
        place.parent.mkdir(parents=True)
        place.write_bytes(source.read_bytes())
    model = str(trained / "code/singlestrip")
    command = [str(bids), str(tmp_path / "out"), "participant", "--model", model]
    assert cli.main([*command, "--session-id", "2"]) == 0
    masks = [path.name for path in (tmp_path / "out").rglob("*_mask.nii.gz")]
    assert masks == ["sub-01_ses-2_desc-brain_mask.nii.gz"]
