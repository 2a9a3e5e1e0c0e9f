"""Series as one volume: their mean, or that of the volumes without diffusion weighting."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from builders import ramp

from singlestrip_bids.errors import BadData
from singlestrip_bids.image.nifti import load


class TestMean:
    def test_mean_over_time(self, scan):
        data = np.random.default_rng(0).random((4, 5, 6, 7)).astype(np.float32)
        image = load(scan(data))
        np.testing.assert_allclose(image.data, data.mean(axis=3), rtol=1e-5)
        assert image.volumes == 7

    @pytest.mark.parametrize("extra", [(1,), (1, 1)])
    def test_trailing_singletons(self, scan, extra):
        image = load(scan(ramp(4, 5, 6, *extra)))
        np.testing.assert_array_equal(image.data, ramp(4, 5, 6))
        assert image.volumes == 1

    def test_series_with_a_trailing_singleton(self, scan):
        image = load(scan(ramp(4, 5, 6, 3, 1)))
        np.testing.assert_allclose(image.data, ramp(4, 5, 6, 3).mean(axis=3))
        assert image.volumes == 3

    def test_some_not_finite_in_a_series(self, scan):
        data = ramp(4, 5, 6, 2)
        data[0, 0, 0, 0] = np.nan
        assert np.isfinite(load(scan(data)).data).all()


class TestDiffusion:
    """Of a diffusion series, the volumes without weighting."""

    @pytest.fixture
    def dwi(self, scan):
        rng = np.random.default_rng(0)
        return scan(rng.random((4, 5, 6, 4)).astype("f4"), name="sub-01_dwi.nii.gz")

    @pytest.mark.parametrize(
        ("table", "chosen"),
        [
            ("0 1000 5 2000\n", [0, 2]),
            ("1000\n0\n1000\n1000", [1]),
            ("\ufeff50 51 51.5 1e3", [0]),
            ("1000 2000 1000 2000", [0, 1, 2, 3]),
        ],
    )
    def test_mean_of_low_b_values(self, dwi, table, chosen):
        dwi.with_name("sub-01_dwi.bval").write_text(table)
        image = load(dwi)
        data = nib.load(dwi).get_fdata()
        np.testing.assert_allclose(image.data, data[..., chosen].mean(-1), rtol=1e-5)
        assert (image.volumes, image.averaged) == (4, len(chosen))

    @pytest.mark.parametrize(
        ("tables", "chosen"),
        [
            ({"dwi.bval": "0 9 900 900"}, [0, 1]),
            ({"dwi.bval": "0 9 900 900", "sub-01/sub-01_dwi.bval": "900 0 900 900"}, [1]),
            (
                {
                    "sub-01/dwi/sub-01_dwi.bval": "900 0 900 900",
                    "sub-01/dwi/sub-01_dir-AP_dwi.bval": "900 900 0 0",
                },
                [2, 3],
            ),
            ({"sub-01/dwi/sub-01_run-1_dwi.bval": "0 9 900 900"}, [0, 1, 2, 3]),
            ({"sub-01/dwi/sub-01_sbref.bval": "0 9 900 900"}, [0, 1, 2, 3]),
            ({"../dwi.bval": "0 9 900 900"}, [0, 1, 2, 3]),
        ],
        ids=["dataset", "nearest", "closest", "other run", "other suffix", "above the dataset"],
    )
    def test_tables_are_inherited(self, tmp_path, caplog, tables, chosen):
        data = np.random.default_rng(0).random((4, 5, 6, 4)).astype("f4")
        path = tmp_path / "study/sub-01/dwi/sub-01_dir-AP_part-mag_dwi.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        for name, values in tables.items():
            (tmp_path / "study" / name).write_text(values)
        np.testing.assert_allclose(load(path).data, data[..., chosen].mean(-1), rtol=1e-5)
        assert (f"{path}: no .bval holds for it" in caplog.text) == (len(chosen) == 4)

    @pytest.mark.parametrize("table", ["0 1000", "0 0 0 nan", "0 0 0 x", "", "\x00"])
    def test_a_table_that_does_not_fit(self, dwi, table):
        path = dwi.with_name("sub-01_dwi.bval")
        path.write_text(table)
        with pytest.raises(BadData, match="b-values") as caught:
            load(dwi)
        assert str(path) in str(caught.value)
