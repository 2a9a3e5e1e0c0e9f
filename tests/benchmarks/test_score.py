import json

import nibabel as nib
import numpy as np
import pytest

from benchmarks.score import main, score, table

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def _write(root, name, mask, affine=AFFINE, expected=None):
    path = root / name.split("_")[0] / "anat" / f"{name}_desc-brain_mask.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.asarray(mask, np.uint8), affine).to_filename(path)
    if expected is not None:
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        sidecar.write_text(
            json.dumps({"ExpectedDice": expected, "ExpectedDiceInterval": [0.4, 0.9]})
        )
    return path


@pytest.fixture
def mask():
    out = np.zeros((10, 10, 10))
    out[3:7, 3:7, 3:7] = 1
    return out


@pytest.fixture
def trees(tmp_path):
    return tmp_path / "derivatives", tmp_path / "truth"


def test_scores_means_and_contrasts(trees, mask, tmp_path, capsys):
    found, truth = trees
    for name in ("sub-01", "sub-02_space-T2w", "sub-03_ses-a_acq-x_space-T2w"):
        _write(truth, name, mask)
        _write(found, name, mask, expected=0.5 if name == "sub-01" else None)
    _write(found, "sub-03_ses-a_acq-x_space-T2w", np.roll(mask, 1, 0))
    _write(found, "sub-09", mask)
    rows = score(found, truth)
    assert [row.contrast for row in rows] == ["T1w", "T2w", "T2w"]
    assert [row.dice for row in rows] == [1.0, 1.0, 0.75]
    assert [row.hd95_mm for row in rows] == [0.0, 0.0, 2.0]
    assert [row.expected for row in rows] == [0.5, None, None]
    assert (rows[0].low, rows[0].high) == (0.4, 0.9)
    text = table(rows).splitlines()
    assert text[-4:] == [
        "mean T1w (n = 1)              1.0000     0.00    0.5000        -",
        "mean T2w (n = 2)              0.8750     1.00         -        -",
        "mean overall (n = 3)          0.9167     0.67    0.5000        -",
        "Dice within its expected interval: 0 of 1",
    ]
    out = tmp_path / "rows.json"
    assert main([str(found), str(truth), "--json", str(out)]) == 0
    assert "mean overall" in capsys.readouterr().out
    assert json.loads(out.read_text())[2]["dice"] == 0.75


def test_missing_predictions_set_the_exit_code(trees, mask, capsys):
    found, truth = trees
    _write(truth, "sub-01", mask)
    _write(truth, "sub-02", mask)
    _write(found, "sub-01", mask)
    assert main([str(found), str(truth)]) == 1
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if "missing" in line] == [
        ["sub-02", "missing"]
    ]


def test_prediction_elsewhere_is_found_by_name(trees, mask):
    found, truth = trees
    _write(truth, "sub-01", mask)
    _write(found / "app", "sub-01", mask)
    assert score(found, truth)[0].dice == 1.0
    _write(found / "other", "sub-01", mask)
    assert "2 predictions" in score(found, truth)[0].error


def test_a_reference_below_the_derivatives_is_no_prediction(tmp_path, mask):
    _write(tmp_path / "manual", "sub-01", mask)
    assert score(tmp_path, tmp_path / "manual")[0].error == "missing"


def test_grids_must_agree(trees, mask, capsys):
    found, truth = trees
    moved = AFFINE.copy()
    moved[0, 3] = 1
    for name, data, affine in (
        ("sub-01", mask[:9], AFFINE),
        ("sub-02", mask, moved),
        ("sub-03", mask, AFFINE + 1e-6),
        ("sub-04", np.stack([mask, mask], -1), AFFINE),
    ):
        _write(truth, name, mask)
        _write(found, name, data, affine)
    rows = score(found, truth)
    assert "shape" in rows[0].error
    assert "affines disagree by 1.00 mm" in rows[1].error
    assert rows[2].dice == 1.0
    assert "not that of a volume" in rows[3].error
    assert main([str(found), str(truth)]) == 1
    assert "mean overall (n = 1)" in capsys.readouterr().out


def test_empty_and_broken_predictions(trees, mask, tmp_path):
    found, truth = trees
    _write(truth, "sub-01", mask)
    _write(truth, "sub-02", mask)
    _write(found, "sub-01", np.zeros_like(mask))
    path = _write(found, "sub-02", mask)
    path.write_bytes(path.read_bytes()[:60])
    empty, broken = score(found, truth)
    assert (empty.dice, empty.hd95_mm, empty.error) == (0.0, float("inf"), None)
    assert broken.error
    out = tmp_path / "rows.json"
    assert main([str(found), str(truth), "--json", str(out)]) == 1
    assert json.loads(out.read_text())[0]["hd95_mm"] == "inf"


def test_folders_without_references_are_refused(trees, capsys):
    found, truth = trees
    assert main([str(found), str(truth)]) == 1
    found.mkdir()
    truth.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file"):
        score(found, truth)
    assert "is not a folder" in capsys.readouterr().err
