"""What users get wrong: the app names the file, the fact and the remedy, and does the rest."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import LABEL, MODEL, listing, run, scan, table


def complaint(capfd, code: int, expected: int, *words: str) -> None:
    said = capfd.readouterr().err
    assert code == expected, said
    assert "Traceback" not in said
    for word in words:
        assert word in said, said


def test_labelled_subject_that_is_not_there(bids, tmp_path, capfd):
    code = run(bids, tmp_path / "out", "group", "--label-subject", "77")
    complaint(capfd, code, 66, "sub-77", "sub-01")


def test_work_folder_in_the_dataset(bids, tmp_path, capfd):
    code = run(bids, tmp_path / "out", "group", "--work-dir", str(bids / "work"))
    complaint(capfd, code, 64, f"The work folder {bids / 'work'} is inside", "Choose one outside")


def test_two_masks_of_one_subject(bids, tmp_path, capfd):
    second = bids / "derivatives/manual/sub-01/anat/sub-01_run-2_desc-brain_mask.nii.gz"
    shutil.copy(bids / LABEL, second)
    code = run(bids, tmp_path / "out", "group", "--label-subject", "01")
    complaint(capfd, code, 64, str(second), "--label-mask")


def test_masks_of_several_subjects_and_none_named(bids, tmp_path, capfd):
    other = bids / "derivatives/manual/sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    other.parent.mkdir(parents=True)
    image = nib.load(scan(bids, "02"))
    nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine).to_filename(other)
    code = run(bids, tmp_path / "out", "group")
    complaint(capfd, code, 64, "sub-01", "sub-02", "--label-subject")


def rewrite(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    image = nib.load(path)
    nib.Nifti1Image(data, image.affine if affine is None else affine).to_filename(path)


def test_empty_label(bids, tmp_path, capfd):
    rewrite(bids / LABEL, np.zeros(nib.load(bids / LABEL).shape, np.uint8))
    complaint(capfd, run(bids, tmp_path / "out", "group"), 65, LABEL.name, "empty")


def test_label_on_another_grid(bids, tmp_path, capfd):
    data = np.asarray(nib.load(bids / LABEL).dataobj)
    rewrite(bids / LABEL, data[:-3])
    code = run(bids, tmp_path / "out", "group", "--label-subject", "01")
    complaint(capfd, code, 65, LABEL.name, "grid")


def test_labelled_scan_without_a_head(bids, tmp_path, capfd):
    path = scan(bids, "01")
    image = nib.load(path)
    noise = np.random.default_rng(0).random(image.shape[:3]).astype(np.float32)
    nib.Nifti1Image(noise**99, image.affine).to_filename(path)  # specks, none beside another
    complaint(capfd, run(bids, tmp_path / "out", "group"), 65, "sub-01_T1w", "no head is found")


def test_stripped_labelled_scan(bids, tmp_path, capfd):
    mask = np.asarray(nib.load(bids / LABEL).dataobj)
    rewrite(scan(bids, "01"), np.asarray(nib.load(scan(bids, "01")).dataobj) * mask)
    complaint(capfd, run(bids, tmp_path / "out", "group"), 65, "sub-01_T1w", "skull-stripped")


def test_stripped_scan_is_refused_and_the_others_done(bids, trained, tmp_path, capfd):
    mask = np.asarray(nib.load(bids / LABEL).dataobj)
    rewrite(scan(bids, "01"), np.asarray(nib.load(scan(bids, "01")).dataobj) * mask)
    out = tmp_path / "out"
    code = run(bids, out, "participant", "--model", str(trained / MODEL))
    complaint(capfd, code, 1, "sub-01_T1w", "skull-stripped", "1 of 4 scans")
    assert len(list(out.rglob("*_mask.nii.gz"))) == 3


def test_no_unlabelled_scan_makes_sl1_the_model(bids, tmp_path, capfd):
    out = tmp_path / "out"
    code = run(bids, out, "group", "--participant-label", "01")
    complaint(capfd, code, 0, "NO UNLABELLED SCAN", "SL-1")
    card = json.loads((out / MODEL / "model.json").read_text())
    assert card["network"] == "sl1.safetensors"
    assert not card["self_trained"]


def test_participant_without_a_model(bids, tmp_path, capfd):
    code = run(bids, tmp_path / "out", "participant")
    complaint(capfd, code, 66, "group", "--model")


def test_unknown_participant(bids, tmp_path, capfd):
    code = run(bids, tmp_path / "out", "group", "--participant-label", "99")
    complaint(capfd, code, 18, "sub-99")


def test_folder_that_is_no_dataset(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    complaint(capfd, run(tmp_path / "empty", tmp_path / "out", "group"), 16)
    complaint(capfd, run(tmp_path / "nowhere", tmp_path / "out", "group"), 66, "nowhere")


def damage(bids: Path) -> dict[str, str]:
    """Make bad scans of new subjects; return a word of the complaint by subject."""
    good = nib.load(scan(bids, "02"))
    data = np.asarray(good.dataobj).astype(np.float32)
    bad = {
        "zeros": (np.zeros_like(data), "every voxel is 0"),
        "nan": (np.full_like(data, np.nan), "no voxel is finite"),
        "five": (np.stack([np.stack([data] * 2, -1)] * 2, -1), "5 dimensions"),
        "complex": (data.astype(np.complex64), "complex"),
        "rgb": (np.zeros(data.shape, [(c, "u1") for c in "RGB"]), "RGB"),
        "mask": ((data > data.mean()).astype(np.uint8), "a mask, it seems"),
    }
    for name, (array, _) in bad.items():
        path = bids / f"sub-{name}/anat/sub-{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.Nifti1Image(array, good.affine).to_filename(path)
    for name, content in (
        ("cut", scan(bids, "02").read_bytes()[:20000]),
        ("text", b"not an image"),
        ("nothing", b""),
    ):
        path = bids / f"sub-{name}/anat/sub-{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return {name: word for name, (_, word) in bad.items()} | {
        name: f"sub-{name}_T1w" for name in ("cut", "text", "nothing")
    }


def test_bad_scans_are_named_and_all_others_done(bids, trained, tmp_path, capfd):
    words = damage(bids)
    before, out = listing(bids), tmp_path / "out"
    code = run(bids, out, "participant", "--model", str(trained / MODEL))
    complaint(capfd, code, 1, f"{len(words)} of {len(words) + 4} scans", *words.values())
    assert len(list(out.rglob("*_mask.nii.gz"))) == 4
    code = run(bids, out, "group")
    complaint(capfd, code, 1, *words.values())
    notes = {
        row["scan"].split("/")[0][4:]: row["note"] for row in table(out / MODEL / "scores.tsv")
    }
    assert {name for name, note in notes.items() if note != "n/a"} == set(words)
    assert (out / MODEL / "model.json").is_file()
    assert listing(bids) == before


def test_a_bad_scan_where_none_is_ranked(bids, tmp_path, capfd):
    scan(bids, "03").write_bytes(b"not an image")
    out = tmp_path / "out"
    for _ in range(2):  # what failed is tried again
        code = run(bids, out, "group", "--rounds", "0", "--set", "steps=2")
        complaint(capfd, code, 1, "1 of 3 unlabelled scans could not be used", "sub-03_T2w")
        assert json.loads((out / MODEL / "model.json").read_text())["network"] == "sl1.safetensors"
    code = run(bids, out, "group", "--rounds", "0", "--set", "steps=2", "--stop-on-first-crash")
    complaint(capfd, code, 1, "Stopped at the first scan that failed", "sub-03_T2w")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("{kept}.safetensors", lambda path: path.write_bytes(path.read_bytes()[:1000])),
        ("model.json", lambda path: path.write_text("{")),
        ("model.json", lambda path: path.write_text('{"format": 99}')),
        ("autoencoder.safetensors", Path.unlink),
    ],
)
def test_damaged_model(bids, trained, tmp_path, capfd, name, change):
    model = Path(shutil.copytree(trained / MODEL, tmp_path / "model"))
    name = name.format(**json.loads((model / "model.json").read_text())["guard"])
    change(model / name)
    code = run(bids, tmp_path / "out", "participant", "--model", str(model))
    complaint(capfd, code, 66 if change is Path.unlink else 65, name)
