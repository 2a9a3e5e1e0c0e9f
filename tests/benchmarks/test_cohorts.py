from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from benchmarks.cohorts import (
    COHORTS,
    FLUID,
    TISSUE_OF,
    age,
    brain_of,
    main,
    paint,
    render,
    write_cohorts,
)
from benchmarks.score import score
from singlestrip_bids.bids.dseg import read_table
from singlestrip_bids.image.masks import dice

SHAPE = (44, 52, 48)
VOXEL = 2.0


def head(ventricle: float = 0.25) -> np.ndarray:
    """A small label map of nested ellipsoids: skin, bone, fluid, cortex, white, ventricle."""
    grid = np.indices(SHAPE).astype(float) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    radius = np.sqrt(sum((x / r) ** 2 for x, r in zip(grid, (18, 22, 17), strict=True)))
    labels = np.zeros(SHAPE, np.int16)
    for limit, label in ((1.0, 511), (0.93, 515), (0.86, FLUID), (0.8, 3), (0.62, 2)):
        labels[radius < limit] = label
    labels[radius < ventricle] = 4
    return labels


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("LIA"), SHAPE) @ np.diag(
        [VOXEL, VOXEL, VOXEL, 1]
    )
    for number in range(1, 11):
        labels = head(0.2 + number / 100)
        labels[2:4, 2:4, 2:4] = 3  # a stray part, as real label maps have
        image = nib.Nifti1Image(labels, affine)
        nib.save(image, folder / f"sub-{number:02d}_dseg.nii.gz")
    return folder


@pytest.fixture(scope="module")
def dataset(maps, tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts") / "bids"
    return write_cohorts(sorted(maps.glob("*.nii.gz")), root, ["A", "B", "C"])


def test_names_by_cohort_and_map(dataset):
    scans = sorted(p.name for p in dataset.glob("sub-*/*/*.nii.gz"))
    assert scans == [
        *(f"sub-A0{n}_T1w.nii.gz" for n in range(1, 9)),
        "sub-B09_T1w.nii.gz", "sub-B10_T1w.nii.gz",
        "sub-C09_m0scan.nii.gz", "sub-C10_m0scan.nii.gz",
    ]  # fmt: skip
    assert json.loads((dataset / "dataset_description.json").read_text())["DatasetType"] == "raw"


def test_truth_of_all_by_structure(dataset):
    truth = dataset.parent / "bids-truth"
    paths = sorted(truth.rglob("*_dseg.nii.gz"))
    assert len(paths) == 12
    assert (truth / "sub-C09/perf/sub-C09_space-m0scan_dseg.nii.gz") in paths
    names = {1: "ventricles", 2: "cerebellum", 3: "brain-stem", 4: "rest"}
    for path in paths:
        mask = path.with_name(path.name.replace("_dseg", "_desc-brain_mask"))
        numbers = np.asarray(nib.load(path).dataobj)
        np.testing.assert_array_equal(numbers > 0, np.asarray(nib.load(mask).dataobj) > 0)
        table = read_table(path.with_name(path.name.replace(".nii.gz", ".tsv")))
        assert {index: one.name for index, one in table.items()} == names
        assert {4} <= set(np.unique(numbers)) <= {0, *names}


def test_truth_of_all_and_labels_of_cohort_a(dataset):
    truth = dataset.parent / "bids-truth"
    labels = dataset / "derivatives" / "manual"
    assert len(list(truth.rglob("*_mask.nii.gz"))) == 12
    assert {p.parts[-3] for p in labels.rglob("*_mask.nii.gz")} == {
        f"sub-A0{n}" for n in range(1, 9)
    }
    assert (truth / "sub-C09/perf/sub-C09_space-m0scan_desc-brain_mask.nii.gz").is_file()
    assert all(row.dice == 1 for row in score(truth, truth))


def test_grids(dataset):
    for cohort in COHORTS.values():
        number = cohort.maps[0]
        name = next(n for n, c in COHORTS.items() if c is cohort)
        path = next(dataset.glob(f"sub-{name}{number:02d}/*/*.nii.gz"))
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine) == tuple(cohort.axes)
        world = nib.as_closest_canonical(image).header.get_zooms()
        np.testing.assert_allclose(world, cohort.voxel_mm, rtol=1e-5)
        mask = nib.load(next((dataset.parent / "bids-truth" / path.parts[-3]).rglob("*.nii.gz")))
        np.testing.assert_allclose(mask.affine, image.affine)
        assert mask.shape == image.shape


def test_mask_lies_where_the_labels_say(maps, dataset):
    source = nib.load(sorted(maps.glob("*.nii.gz"))[0])
    mask = nib.load(next((dataset / "derivatives/manual/sub-A01").rglob("*.nii.gz")))
    points = np.argwhere(np.asarray(mask.dataobj) > 0)
    world = nib.affines.apply_affine(mask.affine, points)
    back = np.rint(nib.affines.apply_affine(np.linalg.inv(source.affine), world)).astype(int)
    labels = np.asarray(source.dataobj)[tuple(back.T)]
    assert ((labels > 0) & (labels < 500)).mean() > 0.97
    volume = len(points) * abs(np.linalg.det(mask.affine[:3, :3]))
    expected = (head(0.21) < 500)[head(0.21) > 0].sum() * VOXEL**3
    assert volume == pytest.approx(expected, rel=0.03)


def test_distortion_moves_the_mask_with_the_image():
    affine = np.diag([VOXEL] * 3 + [1.0])
    fields = vars(COHORTS["C"]) | {"atrophy_mm": (0, 0)}
    bent, straight = (
        render(head(), affine, type(COHORTS["C"])(**fields | {"distortion_mm": d}), rng())
        for d in (6.0, 0.0)
    )
    assert 0.8 < dice(bent[1], straight[1]) < 0.99
    inside = bent[0][bent[1] > 0].mean()
    assert inside > 3 * bent[0][bent[1] == 0].mean()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestAge:
    def test_ventricles_grow_and_cortex_thins_within_the_same_brain(self):
        young = head()
        old = age(young, 2.0, rng())
        assert np.isin(old, (4,)).sum() > 1.5 * np.isin(young, (4,)).sum()
        assert (age(young, 5.0, rng()) == FLUID).sum() > (young == FLUID).sum()
        brain = [(x > 0) & (x < 500) for x in (young, old)]
        np.testing.assert_array_equal(*brain)

    def test_none(self):
        np.testing.assert_array_equal(age(head(), 0.0, rng()), head())


def test_paint_keeps_the_order_of_tissues():
    labels, tissues = head(), COHORTS["A"].tissues
    image = paint(labels, tissues, rng())
    means = {name: image[np.isin(labels, TISSUE_OF[name])].mean() for name in ("csf", "white")}
    assert image[labels == 515].mean() < means["csf"] < image[labels == 3].mean() < means["white"]
    assert means["white"] == pytest.approx(tissues["white"], rel=0.12)
    assert image[labels == 2].std() / means["white"] == pytest.approx(0.03, abs=0.02)


def test_same_seed_same_bytes_other_seed_other_bytes(maps, dataset, tmp_path):
    paths = sorted(maps.glob("*.nii.gz"))[:1]
    again, other = (write_cohorts(paths, tmp_path / str(s), ["A"], s) for s in (0, 1))
    scan = "sub-A01/anat/sub-A01_T1w.nii.gz"
    assert (again / scan).read_bytes() == (dataset / scan).read_bytes()
    assert (other / scan).read_bytes() != (dataset / scan).read_bytes()


def test_command_line(maps, tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no label map" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main([str(maps), str(tmp_path / "out")]) == 1
    assert "exists" in capsys.readouterr().err


def test_the_brain_ends_below_cerebellum_and_stem():
    labels = head()
    labels[20:24, 24:28, 0:10] = FLUID  # of the spinal canal, joined to the brain
    whole = brain_of(labels, VOXEL)
    assert whole[..., 0].any(), "a map without a stem is not cut"
    labels[20:24, 24:28, 12:14] = 16
    cut = brain_of(labels, VOXEL)
    first = 12 - round(5 / VOXEL)
    assert not cut[..., :first].any() and cut[..., first].any()
    assert (cut[..., first:] == whole[..., first:]).all()
