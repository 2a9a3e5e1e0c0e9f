"""The package as Python code uses it: train a model, load one, mask a scan."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import MODEL, listing, scan

import singlestrip_bids as ss
from singlestrip_bids.errors import NoInput, NothingSelected, ScanFailed, Usage
from singlestrip_bids.image.masks import dice
from singlestrip_bids.method import trainer

TINY = {
    "size": 32,
    "network.features": "4,8",
    "init": "random",
    "training.steps": 5,
    "finetuning.steps": 3,
    "quality.epochs": 1,
    "copies": 2,
    "trials": 4,
}


@pytest.fixture(scope="module")
def model(trained):
    return ss.load_model(trained / MODEL, device="cpu")


@pytest.fixture(scope="module")
def path(heads):
    return scan(heads, "02")


@pytest.fixture(scope="module")
def brain(model, path):
    return model.mask(path)


@pytest.fixture(scope="module")
def written(trained):
    """The mask that the participant level has written."""
    return next((trained / "sub-02/anat").glob("*_desc-brain_mask.nii.gz"))


@pytest.fixture(scope="module")
def learnt(heads, tmp_path_factory):
    """An output folder, and the model that was trained there."""
    out = tmp_path_factory.mktemp("learnt") / "out"
    return out, learn(heads, out)


def learn(bids: Path, out: Path, **options) -> ss.Model:
    options = {"preset": "quick", "settings": TINY, "device": "cpu", **options}
    return ss.train(bids, out, label_subject="01", **options)


class TestImport:
    def test_nothing_heavy_is_imported(self):
        code = (
            "import sys, singlestrip_bids; "
            "print(*{'torch', 'numpy', 'nibabel', 'bids'} & sys.modules.keys())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout.decode().split() == []

    def test_all_names_are_there(self):
        from singlestrip_bids import Brain, Model
        from singlestrip_bids.image import brain
        from singlestrip_bids.method import model

        assert (Brain, Model) == (brain.Brain, model.Model)
        assert all(hasattr(ss, name) for name in ss.__all__)
        with pytest.raises(AttributeError, match="no attribute 'Head'"):
            ss.Head  # noqa: B018


class TestMask:
    def test_a_path_and_an_image_give_the_same(self, model, brain, path):
        assert isinstance(model, ss.Model)
        assert isinstance(brain, ss.Brain)
        stored = nib.load(path)
        in_memory = nib.Nifti1Image(np.asanyarray(stored.dataobj), stored.affine, stored.header)
        for given in (str(path), stored, in_memory):
            other = model.mask(given)
            np.testing.assert_array_equal(other.mask.get_fdata(), brain.mask.get_fdata())
            np.testing.assert_array_equal(
                other.probability.get_fdata(), brain.probability.get_fdata()
            )
            assert other.expected_dice == brain.expected_dice
            assert other.interval == brain.interval

    def test_the_mask_lies_on_the_grid_of_the_scan(self, brain, path):
        stored, mask = nib.load(path), brain.mask
        assert isinstance(mask, nib.Nifti1Image)
        assert mask.shape == stored.shape
        np.testing.assert_array_equal(mask.affine, stored.affine)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asanyarray(mask.dataobj))) == {0, 1}
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj) > 0, brain.voxels)
        millilitres = brain.voxels.sum() * abs(np.linalg.det(stored.affine[:3, :3])) / 1000
        assert brain.volume_ml == pytest.approx(millilitres)

    def test_the_probability_lies_there_too(self, brain, path):
        stored, probability = nib.load(path), brain.probability
        assert probability.shape == stored.shape
        np.testing.assert_array_equal(probability.affine, stored.affine)
        values = probability.get_fdata()
        assert 0 <= values.min() < 0.5 < values.max() <= 1
        assert dice(values > 0.5, brain.voxels) > 0.9  # the mask is its largest part

    def test_it_is_what_the_app_writes(self, brain, written, tmp_path):
        brain.save(tmp_path / "mask.nii.gz")
        assert (tmp_path / "mask.nii.gz").read_bytes() == written.read_bytes()
        card = written.with_name(written.name.replace(".nii.gz", ".json"))
        fields = json.loads(card.read_text())
        assert round(brain.expected_dice, 4) == fields["ExpectedDice"]
        assert [round(end, 4) for end in brain.interval] == fields["ExpectedDiceInterval"]
        assert float(f"{brain.volume_ml:.5g}") == fields["BrainVolumeMl"]
        low, high = brain.interval
        assert 0 <= low <= brain.expected_dice <= high <= 1

    def test_save_makes_the_folder_and_replaces(self, brain, written, tmp_path):
        place = tmp_path / "new" / "mask.nii.gz"
        for _ in range(2):
            brain.save(str(place))
        assert place.read_bytes() == written.read_bytes()
        assert [p.name for p in place.parent.iterdir()] == ["mask.nii.gz"]

    @pytest.mark.parametrize("name", ["mask.nii", "mask.mgz", "mask"])
    def test_save_writes_nothing_else(self, brain, tmp_path, name):
        with pytest.raises(Usage, match=r"\.nii\.gz; name the file so"):
            brain.save(tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_the_scan_is_left_alone(self, heads, untouched, brain):
        assert listing(heads) == untouched


class TestLoad:
    def test_no_model(self, tmp_path):
        with pytest.raises(NoInput, match="no model"):
            ss.load_model(tmp_path)

    def test_no_such_device(self, trained):
        with pytest.raises(Usage, match="abacus"):
            ss.load_model(trained / MODEL, device="abacus")

    def test_a_path_as_text(self, trained):
        assert ss.load_model(str(trained / MODEL), device="cpu").card["format"]


@pytest.mark.slow
class TestTrain:
    def test_it_returns_a_model_that_is_on_disk(self, learnt):
        out, model = learnt
        assert isinstance(model, ss.Model)
        assert model.folder == out / MODEL
        assert model.card == json.loads((out / MODEL / "model.json").read_text())
        method = model.card["method"]
        assert (method["preset"], method["size"]) == ("quick", 32)
        assert (method["training"]["steps"], method["finetuning"]["steps"]) == (5, 3)
        assert model.card["label"][0]["scan"].startswith("sub-01/")
        assert len(model.card["unlabelled"]) == 3
        assert (out / "group.html").is_file()
        again = ss.load_model(out / MODEL, device="cpu").network.state_dict()
        weights = model.network.state_dict()
        assert weights.keys() == again.keys()
        assert all(weights[name].equal(value) for name, value in again.items())

    def test_a_second_call_trains_nothing(self, heads, learnt, monkeypatch):
        out, model = learnt

        def fit(*_, **__):
            raise AssertionError("it trains")

        monkeypatch.setattr(trainer, "fit", fit)
        networks = {p: p.stat().st_mtime_ns for p in (out / MODEL).glob("*.safetensors")}
        assert len(networks) == 5  # and the label
        assert learn(heads, out).card == model.card
        assert {p: p.stat().st_mtime_ns for p in networks} == networks
        with pytest.raises(AssertionError, match="it trains"):
            learn(heads, out, random_seed=1)

    def test_scans_that_cannot_be_used_are_named_and_the_model_is_there(self, bids, tmp_path):
        scan(bids, "03").write_bytes(b"no image")
        out = tmp_path / "out"
        with pytest.raises(ScanFailed, match="1 of 3 unlabelled scans could not be used"):
            learn(bids, out)
        assert ss.load_model(out / MODEL, device="cpu").card["network"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"preset": "fast"}, "No preset 'fast'"),
            ({"settings": {"colour": 3}}, "no setting 'colour'"),
            ({"settings": {"training.steps": 0}}, "1 or more"),
            ({"device": "abacus"}, "abacus"),
        ],
    )
    def test_of_the_caller(self, heads, tmp_path, options, word):
        with pytest.raises(Usage, match=word):
            learn(heads, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    def test_output_within_the_dataset(self, bids):
        with pytest.raises(Usage, match="inside the input dataset"):
            learn(bids, bids / "code")
        assert not (bids / "code").exists()

    def test_no_scan_of_the_labelled_subject(self, heads, tmp_path):
        with pytest.raises(NoInput, match="sub-77"):
            ss.train(heads, tmp_path / "out", label_subject="77", preset="quick")


def test_the_examples_are_true(heads, trained, tmp_path, monkeypatch):
    (tmp_path / "study").symlink_to(heads)
    (tmp_path / "out").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(ss).failed == 0
    assert (tmp_path / "sub-02_mask.nii.gz").is_file()


def test_strings_and_lists_are_taken_as_meant(tmp_path, heads):
    with pytest.raises(NothingSelected, match="has no FLAIR image"):
        ss.train(heads, tmp_path / "out", modalities="FLAIR")
    with pytest.raises(Usage, match=r"network\.features=4,x"):
        ss.train(heads, tmp_path / "out", settings={"network.features": ["4", "x"]})
