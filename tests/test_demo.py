"""The painted heads, and the demonstration on them."""

import io
import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from benchmarks.score import score
from singlestrip_bids.demo import __main__ as demo
from singlestrip_bids.demo.dataset import PROTOCOLS, draw_pose, scan_grid, write_dataset
from singlestrip_bids.demo.head import TISSUES, draw_anatomy, load_template

COARSE = 2.5


def _files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _pairs(root):
    masks = [*(root / "derivatives/manual").rglob("*mask.nii.gz")]
    masks += sorted((root.parent / f"{root.name}-truth").rglob("*mask.nii.gz"))
    for path in masks:
        (scan,) = (root / path.name.split("_")[0] / "anat").glob("*.nii.gz")
        yield nib.load(scan), nib.load(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "raw"
    return write_dataset(root, subjects=3, seed=5, spacing_scale=COARSE)


def test_layout(dataset):
    truth = dataset.parent / "raw-truth"
    assert sorted(_files(dataset)) == [
        "README",
        "dataset_description.json",
        "derivatives/manual/dataset_description.json",
        "derivatives/manual/sub-01/anat/sub-01_desc-brain_mask.json",
        "derivatives/manual/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "participants.tsv",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-03/anat/sub-03_T2w.nii.gz",
    ]
    assert [name for name in sorted(_files(truth)) if name.endswith(".nii.gz")] == [
        "sub-02/anat/sub-02_desc-brain_mask.nii.gz",
        "sub-03/anat/sub-03_space-T2w_desc-brain_mask.nii.gz",
    ]
    kinds = [
        json.loads((folder / "dataset_description.json").read_text())["DatasetType"]
        for folder in (dataset, dataset / "derivatives/manual", truth)
    ]
    assert kinds == ["raw", "derivative", "derivative"]
    lines = (dataset / "participants.tsv").read_text().splitlines()
    assert lines == ["participant_id", "sub-01", "sub-02", "sub-03"]
    assert [row.dice for row in score(truth, truth)] == [1.0, 1.0]


def test_same_seed_same_bytes(dataset, tmp_path):
    write_dataset(tmp_path / "raw", subjects=1, seed=5, spacing_scale=COARSE)
    again, first = _files(tmp_path / "raw"), _files(dataset)
    assert again.pop("participants.tsv") != first["participants.tsv"]
    assert all(first[name] == content for name, content in again.items())
    other = write_dataset(tmp_path / "other", subjects=1, seed=6, spacing_scale=COARSE)
    scan = "sub-01/anat/sub-01_T1w.nii.gz"
    assert (other / scan).read_bytes() != first[scan]
    with pytest.raises(FileExistsError, match="exists"):
        write_dataset(tmp_path / "raw", subjects=1)


def test_scan_and_mask_share_a_grid(dataset):
    for image, mask in _pairs(dataset):
        assert image.shape == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        for one in (image, mask):
            assert int(one.header["sform_code"]) == int(one.header["qform_code"]) == 1
            np.testing.assert_allclose(one.get_qform(), one.get_sform(), atol=1e-3)
        assert image.get_data_dtype() == np.int16
        assert set(np.unique(mask.dataobj)) == {0, 1}


def test_brain_is_one_piece_of_human_size_inside_the_head(dataset):
    for image, mask in _pairs(dataset):
        data, inside = image.get_fdata(), np.asarray(mask.dataobj) > 0
        litres = inside.sum() * np.prod(mask.header.get_zooms()) / 1e6
        assert 1.0 < litres < 2.7
        pieces = np.bincount(ndimage.label(inside)[0].ravel())[1:]
        assert pieces.max() > 0.99 * inside.sum()
        air = np.median(data[:2, :2, :2])
        assert (data[inside] > 3 * air).mean() > 0.99
        edge = inside.copy()
        edge[1:-1, 1:-1, 1:-1] = False
        assert not edge.any()


def test_intensity_alone_does_not_separate_the_brain(dataset):
    image, mask = next(_pairs(dataset))
    data, inside = image.get_fdata(), np.asarray(mask.dataobj) > 0
    low, high = np.percentile(data[inside], [5, 95])
    outside = (data > low) & (data < high) & ~inside
    assert outside.sum() > 0.2 * inside.sum()


def test_contrasts_differ(dataset):
    ratios = []
    for image, mask in _pairs(dataset):
        inside = np.asarray(mask.dataobj) > 0
        data = image.get_fdata()
        deep = ndimage.binary_erosion(inside, iterations=4)
        rim = inside & ~ndimage.binary_erosion(inside)
        ratios.append(data[deep].mean() / data[rim].mean())
    assert ratios[0] > 1.1
    assert ratios[1] > 1.1
    assert ratios[2] < 0.9


def test_protocols_vary():
    assert len({protocol.axes for protocol in PROTOCOLS}) >= 6
    assert sum(any(protocol.oblique_deg) for protocol in PROTOCOLS) >= 2
    assert {protocol.contrast for protocol in PROTOCOLS} == set(TISSUES)
    assert any(max(protocol.voxel_mm) >= 4 * min(protocol.voxel_mm) for protocol in PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_grid_holds_the_brain(protocol):
    brain, pose = load_template(3.0), draw_pose(np.random.default_rng(1))
    affine, shape = scan_grid(brain, protocol, pose)
    assert "".join(nib.aff2axcodes(affine)) == protocol.axes
    assert sorted(nib.affines.voxel_sizes(affine).round(4)) == sorted(protocol.voxel_mm)
    world = nib.affines.apply_affine(pose @ brain.affine, np.argwhere(brain.mask > 0.5))
    index = nib.affines.apply_affine(np.linalg.inv(affine), world)
    assert (index > 0).all()
    assert (index < np.array(shape) - 1).all()


def test_draws_keep_their_ranges():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = draw_pose(rng)
        stretch = np.linalg.svd(pose[:3, :3], compute_uv=False)
        assert 0.8 < stretch.min() < stretch.max() < 1.22
        means = draw_anatomy("T1w", rng).tissues
        for name, mean in TISSUES["T1w"].items():
            assert 0.92 * mean <= means[name] <= 1.08 * mean


TINY = [
    "size=32",
    "init=random",
    "network.features=4,8",
    "quality.slice_size=64",
    "quality.epochs=2",
    "trials=4",
]


def test_the_whole_way(tmp_path, monkeypatch, capsys):
    coarse = partial(write_dataset, spacing_scale=COARSE)
    monkeypatch.setattr(demo, "write_dataset", coarse)
    call = [str(tmp_path), "--subjects", "3", "--set", "steps=10", *TINY]
    assert demo.main(call) == 0
    said = capsys.readouterr().out
    truth = {
        row.scan: row.dice for row in score(tmp_path / "singlestrip", tmp_path / "bids-truth")
    }
    assert f"sub-02_T1w   {truth['sub-02']:.3f}" in said
    assert f"mean of T2w  {truth['sub-03_space-T2w']:.3f}" in said
    assert "sub-01_T1w  " not in said, "the labelled one is no test"
    card = json.loads((tmp_path / "singlestrip/code/singlestrip/model.json").read_text())
    assert (card["method"]["preset"], card["method"]["training"]["steps"]) == ("quick", 10)
    assert Image.open(tmp_path / "masks.jpg").width > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bids", "bids-label", "bids-truth", "masks.jpg", "singlestrip",
    ]  # fmt: skip
    assert "The draft has a Dice of 0." in said
    assert (tmp_path / "singlestrip/label.html").is_file()
    assert _files(tmp_path / "bids-label") == _files(tmp_path / "bids/derivatives")
    before = _files(tmp_path / "bids")
    assert demo.main(call) == 0
    assert "Painting" not in capsys.readouterr().out
    assert _files(tmp_path / "bids") == before


def test_wrong_settings_are_refused_before_anything_is_painted(tmp_path, capsys):
    assert demo.main([str(tmp_path / "out"), "--set", "nonsense=1"]) == 64
    assert "no setting 'nonsense'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dataset_half_painted_is_painted_anew(tmp_path, monkeypatch):
    def interrupted(root, subjects):
        write_dataset(root, 1, spacing_scale=4)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo._paint(tmp_path / "bids", 2)
    assert not (tmp_path / "bids").exists()
    monkeypatch.setattr(demo, "write_dataset", partial(write_dataset, spacing_scale=4))
    demo._paint(tmp_path / "bids", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bids", "bids-label", "bids-truth",
    ]  # fmt: skip


def _row(name, kind, dice, expected, size=(30, 20)):
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "JPEG")
    return demo.Compared(name, kind, dice, expected, stream.getvalue())


def test_table_and_picture():
    rows = [
        _row("sub-01_T1w", demo.LABEL, 0.99, 0.98),
        _row("sub-02_T1w", "T1w", 0.9, 0.8),
        _row("sub-03_T2w", "T2w", 0.8, 0.9, (40, 10)),
        _row("sub-04_T1w", "T1w", 0.7, 0.7),
    ]
    assert demo.table(rows).splitlines() == [
        "scan          Dice  expected",
        "sub-02_T1w   0.900     0.800",
        "sub-03_T2w   0.800     0.900",
        "sub-04_T1w   0.700     0.700",
        "mean of T1w  0.800     0.750",
        "mean of T2w  0.800     0.900",
        "mean of all  0.800     0.800",
    ]
    picture = np.asarray(Image.open(io.BytesIO(demo.draw(rows[:3]))))
    assert picture.shape == (2 * (20 + demo.CAPTION), 80, 3)
    assert picture[demo.CAPTION + 10, 5, 0] > 200 and picture[demo.CAPTION + 10, 35, 0] < 50
    assert picture[36 + demo.CAPTION + 5, 35, 0] > 200, "the third is below the first"
