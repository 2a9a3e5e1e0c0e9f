from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes

from benchmarks.poses import STACKS, WHOLE, Field, main, turned

SMALL = Field(4.0, 48, 0.8, 4.0, 3.0, 1)
SHAPE = (44, 52, 48)


def head() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A brain in a dark skull in a bright scalp, voxels of 3 mm."""
    grid = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    radius = np.sqrt(sum((x / r) ** 2 for x, r in zip(grid, (18, 22, 17), strict=True)))
    data = np.select([radius < 0.8, radius < 0.9, radius < 1], [600, 50, 1000], 0)
    pair = data.astype(np.float32), (radius < 0.8).astype(np.uint8)
    return tuple(nib.Nifti1Image(one, np.diag([3.0, 3, 3, 1])) for one in pair)


@pytest.mark.parametrize("thickness", [1, 3])
def test_a_brain_keeps_its_volume_at_its_size(thickness):
    scan, mask = head()
    field = Field(4.0, 48, 0.8, 4.0, 3.0, thickness)
    image, brain, affine = turned(scan, mask, field, np.random.default_rng(0))
    assert image.shape == brain.shape == (48, 48, 48 // thickness)
    np.testing.assert_allclose(voxel_sizes(affine), [4, 4, 4 * thickness])
    volume = brain.sum() * np.prod(voxel_sizes(affine))
    wanted = np.asarray(mask.dataobj).sum() * 27 * 0.8**3
    assert volume == pytest.approx(wanted, rel=0.1)
    assert np.median(image[brain]) == pytest.approx(600, rel=0.1)


def test_no_two_lie_alike_and_other_tissue_is_around():
    rng = np.random.default_rng(0)
    (one, first, _), (other, second, _) = (turned(*head(), SMALL, rng) for _ in range(2))
    assert (first != second).any()
    middle = [np.argwhere(brain).mean(0) for brain in (first, second)]
    assert np.abs(middle[0] - middle[1]).max() > 0.5
    assert (one[4:-4, 4:-4, 4:-4] > 200).mean() > 0.6
    assert one[0].max() < 200 > other[0].max()


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.poses.WHOLE", SMALL)
    for number in (1, 2):
        for folder, name, image in zip(
            ("c", "c-truth"), ("T1w", "desc-brain_mask"), head(), strict=True
        ):
            path = tmp_path / folder / f"sub-A0{number}" / "anat" / f"sub-A0{number}_{name}.nii.gz"
            path.parent.mkdir(parents=True)
            nib.save(image, path)
    call = [str(tmp_path / "c"), str(tmp_path / "out"), "A01", "A02"]
    assert main(call) == 0
    labels = [p.name for p in (tmp_path / "out" / "derivatives").rglob("*_mask.nii.gz")]
    assert labels == ["sub-A01_space-T2w_desc-brain_mask.nii.gz"]
    assert len(list((tmp_path / "out-truth").rglob("*_mask.nii.gz"))) == 2
    assert main(call) == 1
    assert "exists" in capsys.readouterr().err
    assert main([call[0], str(tmp_path / "other"), "A01", "A09"]) == 1
    assert "sub-A09: 0 files" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert WHOLE.thickness == 1 < STACKS.thickness
