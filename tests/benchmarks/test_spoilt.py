from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from benchmarks.spoilt import FAULTS, main
from singlestrip_bids.demo import write_dataset

SUBJECT = "02"


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """All scans of one subject, without and with every fault: (data, mask), by fault."""
    root = tmp_path_factory.mktemp("spoilt")
    write_dataset(root / "heads", subjects=2, spacing_scale=4)
    assert main([str(root / "heads"), str(root / "out"), SUBJECT]) == 0
    assert main([str(root / "heads"), str(root / "out"), SUBJECT]) == 1  # it is there

    def read(folder: str, fault: str) -> tuple[np.ndarray, np.ndarray]:
        places = root / folder, root / f"{folder}-truth"
        (scan,), (mask,) = (
            sorted(place.glob(f"sub-{SUBJECT}{fault}/*/*.nii.gz")) for place in places
        )
        image, brain = (nib.as_closest_canonical(nib.load(path)) for path in (scan, mask))
        np.testing.assert_allclose(image.affine, brain.affine)
        return np.asarray(image.dataobj, np.float32), np.asarray(brain.dataobj) > 0

    return {"": read("heads", ""), **{fault: read("out", fault) for fault in FAULTS}}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_the_scan_and_keeps_its_truth(spoilt, fault):
    (data, brain), (made, within) = spoilt[""], spoilt[fault]
    assert made.shape == within.shape
    assert np.isfinite(made).all()
    if fault == "cut":
        assert made.shape[2] < data.shape[2]
        assert 0.5 * brain.sum() < within.sum() < 0.9 * brain.sum()
        np.testing.assert_array_equal(within, brain[:, :, : within.shape[2]])
    elif fault == "turn":
        np.testing.assert_array_equal(np.rot90(made, -1), data)
        np.testing.assert_array_equal(np.rot90(within, -1), brain)
    else:
        np.testing.assert_array_equal(within, brain)
        assert np.abs(made - data)[brain].mean() > 0.005 * np.percentile(data, 99)


def test_an_unknown_subject_writes_nothing(tmp_path, capsys):
    write_dataset(tmp_path / "heads", subjects=1, spacing_scale=4)
    assert main([str(tmp_path / "heads"), str(tmp_path / "out"), "99"]) == 1
    assert "99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
