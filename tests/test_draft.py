"""No label yet: drafts by the model that ships, and the page in which one is corrected."""

from __future__ import annotations

import json

import nibabel as nib
import pytest

import singlestrip_bids
from singlestrip_bids import cli, draft
from singlestrip_bids.bids.derivatives import Derivatives, sidecar_path
from singlestrip_bids.bids.scans import find_scans
from singlestrip_bids.config import PHANTOM
from singlestrip_bids.image import nifti
from singlestrip_bids.image.masks import dice
from singlestrip_bids.machine import files
from singlestrip_bids.report.subject import LOW_DICE, correction


def truth_of(heads, scan):
    name = Derivatives(heads).mask(scan).name
    known = heads / "derivatives", heads.with_name(f"{heads.name}-truth")
    (found,) = (path for folder in known for path in folder.rglob(name))
    return nib.load(found).get_fdata() > 0


@pytest.fixture(scope="module")
def drafted(heads, tmp_path_factory):
    out = tmp_path_factory.mktemp("drafted") / "out"
    call = [str(heads), str(out), "participant", "--model", "phantom"]
    assert cli.main(call) == 0
    return out


def test_the_model_that_ships_is_small_and_whole():
    card = files.read_json(PHANTOM / "model.json")
    assert card["phantoms"] and not card["label"] and not card["unlabelled"]
    assert sum(path.stat().st_size for path in PHANTOM.iterdir()) < 4_000_000
    assert (PHANTOM / card["network"]).stat().st_size < 3_000_000
    for name, checksum in card["sha256"].items():
        assert files.sha256(PHANTOM / name) == checksum


def test_masks_without_a_label_or_a_training(heads, drafted):
    for scan in find_scans(heads):
        path = Derivatives(drafted).mask(scan)
        assert dice(nib.load(path).get_fdata() > 0, truth_of(heads, scan)) > 0.6
        fields = json.loads(sidecar_path(path).read_text())
        assert fields["Description"].startswith("Draft of a brain mask")
        assert "Correct it" in fields["Draft"]
        assert "phantoms alone" in fields["ExpectedDiceDescription"]
    assert not (drafted / "code/singlestrip/model.json").exists()


def test_pages_and_methods_say_draft(drafted):
    page = (drafted / "sub-01.html").read_text()
    assert "has seen no real image" in page
    prose = (drafted / "logs/CITATION.md").read_text()
    assert "Drafts of brain masks" in prose and "@pumba" in prose
    group = (drafted / "group.html").read_text()
    assert "trained on phantoms alone" in group and "labelled" not in group.split("<main")[1]


def test_a_doubtful_mask_has_a_page_in_which_it_is_corrected(heads, trained):
    doubted = 0
    for scan in find_scans(heads):
        out = Derivatives(trained)
        fields = json.loads(sidecar_path(out.mask(scan)).read_text())
        page, doubtful = correction(out, scan.relative), fields["ExpectedDice"] < LOW_DICE
        assert page.is_file() == doubtful
        link = out.address(page)
        assert (f'href="{link}"' in out.page(f"sub-{scan.subject}").read_text()) == doubtful
        doubted += doubtful
    assert doubted, "a network of seconds makes poor masks"


def test_the_same_word_from_python(heads):
    scan = next(iter(find_scans(heads)))
    brain = singlestrip_bids.load_model("phantom", "cpu").mask(scan.path)
    assert brain.voxels.any()


def test_a_draft_is_written_with_its_page(heads, tmp_path, capfd):
    out = tmp_path / "out"
    call = [str(heads), str(out), "group", "--draft-label", "--label-subject", "sub-02"]
    assert cli.main(call) == 0
    page = (out / draft.PAGE).read_text()
    assert "sub-02_desc-brain_mask.nii.gz" in page and "derivatives/manual/sub-02/anat" in page
    found = draft.draft_path(Derivatives(out), "sub-02_desc-brain_mask.nii.gz")
    scan = next(scan for scan in find_scans(heads) if scan.subject == "02")
    mask = nifti.load_mask(found, nifti.load(scan.path))
    assert dice(mask, truth_of(heads, scan)) > 0.6
    assert not (out / "code/singlestrip/model.json").exists(), "nothing is trained"
    assert "correct the draft of sub-02/" in capfd.readouterr().err


def test_a_subject_that_is_not_there_is_named(heads, tmp_path, capfd):
    call = [str(heads), str(tmp_path / "out"), "group", "--draft-label", "--label-subject", "99"]
    assert cli.main(call) == 18
    assert "no scan of sub-99 is selected" in capfd.readouterr().err


def test_it_goes_with_the_group_level_alone(heads, tmp_path, capsys):
    call = [str(heads), str(tmp_path / "out"), "group", "participant", "--draft-label"]
    assert cli.main(call) == 64
    assert "--draft-label goes with the group level alone" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--draft-label", "--suggest-label"])
def test_heads_are_taken_to_be_upright(heads, tmp_path, capsys, option):
    call = [str(heads), str(tmp_path / "out"), "group", option, "--any-orientation"]
    assert cli.main(call) == 64
    assert f"{option} expects upright heads" in capsys.readouterr().err


def test_a_training_may_begin_with_its_weights(heads, tmp_path):
    settings = ["steps=2", "trials=4", "quality.epochs=1"]
    call = [str(heads), str(tmp_path / "out"), "group", "--rounds", "0", "--init", "phantom"]
    call += ["--preset", "quick", "--set", *settings, "--participant-label", "01"]
    assert cli.main(call) == 0
    card = files.read_json(tmp_path / "out/code/singlestrip/model.json")
    assert card["method"]["init"] == "phantom"


def test_weights_of_another_network_are_refused(heads, tmp_path, capfd):
    call = [str(heads), str(tmp_path / "out"), "group", "--sloppy", "--init", "phantom"]
    assert cli.main(call) == 64
    assert "--init phantom goes with the network of --preset quick" in capfd.readouterr().err
