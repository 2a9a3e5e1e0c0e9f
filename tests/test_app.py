"""The whole app on small generated heads: what a user types, and what then lies on the disk."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import listing
from safetensors.numpy import load_file

from singlestrip_bids import cli

MODEL = Path("code/singlestrip")
LABEL = Path("derivatives/manual/sub-01/anat/sub-01_desc-brain_mask.nii.gz")


def scan(bids: Path, subject: str) -> Path:
    return next((bids / f"sub-{subject}" / "anat").glob("*.nii.gz"))


@pytest.fixture
def bids(heads, tmp_path):
    return Path(shutil.copytree(heads, tmp_path / "bids"))


def run(bids: Path, out: Path, *words: str) -> int:
    return cli.main([str(bids), str(out), *words, "--sloppy"])


def weights(out: Path) -> dict[str, np.ndarray]:
    """All networks of a model, whichever of them is used."""
    paths = sorted((out / MODEL).glob("*.safetensors"))
    return {f"{p.stem} {name}": w for p in paths for name, w in load_file(p).items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_group_leaves_networks_card_curves_and_scores(heads, trained):
    folder = trained / MODEL
    card = json.loads((folder / "model.json").read_text())
    guard = card["guard"]
    assert set(guard["standings"]) == {"sl1", "round-1"}
    assert card["network"] == f"{guard['kept']}.safetensors"
    assert card["self_trained"] == (guard["kept"] == "round-1")
    assert guard["reason"].startswith("round-1 is ")
    assert card["label"][0]["scan"] == "sub-01/anat/sub-01_T1w.nii.gz"
    assert card["method"]["seed"] == 0
    assert set(card["versions"]) >= {"torch", "singlestrip-bids", "numpy"}
    curve = table(folder / "sl1_training.tsv")
    assert len(curve) == card["method"]["training"]["steps"]
    assert all(0 < float(row["loss"]) < 1 for row in curve)  # thirty noisy steps: no trend yet
    rates = [float(row["learning_rate"]) for row in curve]
    assert rates[0] > rates[len(rates) // 2] > rates[-1]
    rows = table(folder / "scores.tsv")
    assert [row["scan"].split("/")[0] for row in rows] == ["sub-02", "sub-03", "sub-04"]
    assert all(float(row["volume_ml"]) > 0 for row in rows)
    assert all(0 < float(row["agreement"]) < 1 for row in rows)
    assert not list(folder.rglob("*.checkpoint"))


@pytest.mark.parametrize("way", ["network", "registration"])
def test_pseudo_labels_by_one_way_alone(heads, trained, tmp_path, way):
    out = tmp_path / "out"
    shutil.copytree(trained / MODEL, out / MODEL)  # the first network is the same
    assert run(heads, out, "group", "--pseudo-labels", way) == 0
    rows = table(out / MODEL / "scores.tsv")
    assert [row["agreement"] for row in rows] == ["n/a"] * 3
    assert [row["volume_ml"] for row in rows] != [
        row["volume_ml"] for row in table(trained / MODEL / "scores.tsv")
    ]
    assert not same(weights(out), weights(trained))


def test_every_scan_has_a_mask_on_its_own_grid(heads, trained):
    for subject in ("01", "02", "03", "04"):
        image = nib.load(scan(heads, subject))
        masks = list((trained / f"sub-{subject}").rglob("*_desc-brain_mask.nii.gz"))
        assert len(masks) == 1
        mask = nib.load(masks[0])
        assert mask.shape == image.shape
        assert np.array_equal(mask.affine, image.affine)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
        card = json.loads(Path(str(masks[0]).replace(".nii.gz", ".json")).read_text())
        assert 0 <= card["QualityScore"] <= 1
        assert 0 <= card["MirrorAgreement"] <= 1
        low, high = card["ExpectedDiceInterval"]
        assert 0 <= low < high <= 1
        assert 0 <= card["ExpectedDice"] <= 1
        volume = np.asarray(mask.dataobj).sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert card["BrainVolumeMl"] == pytest.approx(volume, abs=0.1)


def test_nothing_is_written_into_the_dataset(heads, untouched, trained):
    """By group and participant; and by whatever other tests have run before."""
    assert listing(heads) == untouched


def test_a_read_only_dataset_is_enough(heads, tmp_path):
    """On a disk that the kernel lets nobody write to: root may write where permissions say no."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare cannot make a namespace to mount the dataset in")
    app = [sys.executable, "-m", "singlestrip_bids.cli", str(heads), str(tmp_path / "out")]
    app += ["group", "participant", "--sloppy", "--steps", "2", "--participant-label", "01"]
    script = (
        f"mount --bind '{heads}' '{heads}' && mount -o remount,bind,ro '{heads}' || exit 99; "
        f"touch '{heads}/x' 2>/dev/null && exit 98; exec {shlex.join(app)}"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if done.returncode == 99:
        pytest.skip("bind mounts are not possible here")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("*_mask.nii.gz"))) == 1


def test_the_record_of_a_run_gives_its_model_and_another_seed_another(heads, trained, tmp_path):
    record = str(min(trained.glob("logs/*/config.json")))
    again, other = tmp_path / "again", tmp_path / "other"
    assert cli.main([str(heads), str(again), "group", "--config-file", record]) == 0
    words = ["--config-file", record, "--random-seed", "7"]
    assert cli.main([str(heads), str(other), "group", *words]) == 0
    assert same(weights(trained), weights(again))
    cards = [json.loads((out / MODEL / "model.json").read_text()) for out in (trained, again)]
    assert cards[0] == cards[1]
    assert not same(weights(trained), weights(other))


def test_a_finished_stage_is_not_repeated(heads, trained, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    before = {p: p.stat().st_mtime_ns for p in (out / MODEL).glob("*.safetensors")}
    (out / MODEL / "round-1.safetensors").unlink()
    assert run(heads, out, "group") == 0
    after = {p: p.stat().st_mtime_ns for p in before}
    assert [p.name for p in before if before[p] != after[p]] == ["round-1.safetensors"]
    assert same(weights(out), weights(trained))


def test_a_finished_model_is_left_as_it_is(heads, trained, tmp_path, capfd):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    card, copies = out / MODEL / "model.json", out / MODEL / "sl1_copies.tsv"
    before, made = card.read_bytes(), copies.stat().st_mtime_ns
    os.utime(card, (0, 0))
    assert run(heads, out, "group") == 0
    assert "finished before" in capfd.readouterr().err
    assert (card.read_bytes(), copies.stat().st_mtime_ns) == (before, made)
    assert card.stat().st_mtime > 0  # scripts see by its date that this run has a model

    card.write_text(card.read_text().replace('"fingerprint": "', '"fingerprint": "x'))
    assert run(heads, out, "group") == 0
    assert card.read_bytes() == before
    assert copies.stat().st_mtime_ns > made


def start(bids: Path, out: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "singlestrip_bids.cli", str(bids), str(out), "group"]
    return subprocess.Popen(
        [*command, "--sloppy", "--steps", "150", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")},
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_result(heads, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start(heads, straight)
    assert process.wait(300) == 0, process.stderr.read()
    codes = []
    for kind, checkpoint in ((signal.SIGTERM, "sl1"), (signal.SIGKILL, "round-1")):
        process = start(heads, killed)
        stage = killed / MODEL / f"{'autoencoder' if checkpoint == 'sl1' else 'sl1'}.safetensors"
        while process.poll() is None and not stage.exists():
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(kind)
        codes.append(process.wait(60))
        assert not (killed / MODEL / "model.json").exists()
        assert not list(killed.rglob(".*.tmp"))
    assert codes == [75, -signal.SIGKILL]
    process = start(heads, killed)
    assert process.wait(300) == 0
    assert same(weights(straight), weights(killed))


def test_sigterm_saves_and_says_so(heads, tmp_path):
    process = start(heads, tmp_path / "out", "--steps", "100000")
    while not (tmp_path / "out" / "dataset_description.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(2.0)
    process.terminate()
    assert process.wait(60) == 75
    assert "the same command goes on from here" in process.stderr.read()
    assert list((tmp_path / "out" / MODEL / "work").glob("*.checkpoint"))


# what users get wrong ---------------------------------------------------------------------------


def complaint(capfd, code: int, expected: int, *words: str) -> None:
    said = capfd.readouterr().err
    assert code == expected, said
    assert "Traceback" not in said
    for word in words:
        assert word in said, said


def test_labelled_subject_that_is_not_there(bids, tmp_path, capfd):
    code = run(bids, tmp_path / "out", "group", "--label-subject", "77")
    complaint(capfd, code, 66, "sub-77", "sub-01")


def test_two_masks_of_one_subject(bids, tmp_path, capfd):
    second = bids / "derivatives/other/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    second.parent.mkdir(parents=True)
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
        "nan": (np.full_like(data, np.nan), "not finite"),
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
        code = run(bids, out, "group", "--rounds", "0", "--steps", "2")
        complaint(capfd, code, 1, "1 of 3 unlabelled scans could not be used", "sub-03_T2w")
        assert json.loads((out / MODEL / "model.json").read_text())["network"] == "sl1.safetensors"
    code = run(bids, out, "group", "--rounds", "0", "--steps", "2", "--stop-on-first-crash")
    complaint(capfd, code, 1, "Stopped at the first scan that failed", "sub-03_T2w")


def test_mask_of_a_series_is_that_of_its_mean(bids, trained, tmp_path):
    image = nib.load(scan(bids, "02"))
    data = np.asarray(image.dataobj).astype(np.float32)
    path = bids / "sub-02/func/sub-02_task-rest_bold.nii.gz"
    path.parent.mkdir()
    series = np.stack([data * gain for gain in (0.5, 1.0, 1.5)], -1)
    nib.Nifti1Image(series, image.affine).to_filename(path)
    weighted = np.stack([data, np.roll(data, 9, 0), data], -1)
    path = bids / "sub-02/dwi/sub-02_dwi.nii.gz"
    path.parent.mkdir()
    nib.Nifti1Image(weighted, image.affine).to_filename(path)
    path.with_name("sub-02_dwi.bval").write_text("0 1000 5\n")
    out = tmp_path / "out"
    words = ("--participant-label", "02", "--modalities", "all", "--model", str(trained / MODEL))
    assert run(bids, out, "participant", *words) == 0
    masks = {p.parent.name: nib.load(p) for p in out.rglob("*_mask.nii.gz")}
    assert masks["func"].shape == data.shape
    assert np.array_equal(np.asarray(masks["func"].dataobj), np.asarray(masks["anat"].dataobj))
    card = json.loads(next((out / "sub-02/func").glob("*mask.json")).read_text())
    assert "mean over time of 3 volumes" in card["Averaged"]
    assert np.array_equal(np.asarray(masks["dwi"].dataobj), np.asarray(masks["anat"].dataobj))
    card = json.loads(next((out / "sub-02/dwi").glob("*mask.json")).read_text())
    assert "2 volumes without diffusion weighting, of 3" in card["Averaged"]


def test_doubtful_masks_are_named(heads, trained, tmp_path, capfd):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    for threshold, named in (("1", 4), ("0", 0)):
        assert run(heads, out, "participant", "--qc-threshold", threshold) == 0
        said = capfd.readouterr().err
        assert ("4 of 4 masks have an expected Dice below" in said) == bool(named)
        assert sum(f"{path.name}" in said for path in heads.glob("sub-*/anat/*.gz")) == named


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


def test_two_labelled_subjects_both_train(bids, tmp_path):
    truth = Path(str(bids) + "-truth")
    other = bids / "derivatives/manual/sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    other.parent.mkdir(parents=True)
    image = nib.load(scan(bids, "02"))
    middle = np.zeros(image.shape, np.uint8)
    middle[tuple(slice(n // 4, 3 * n // 4) for n in image.shape)] = 1
    nib.Nifti1Image(middle, image.affine).to_filename(other)
    assert not truth.exists()
    out = tmp_path / "out"
    assert run(bids, out, "group", "--label-subject", "01", "sub-02") == 0
    card = json.loads((out / MODEL / "model.json").read_text())
    assert [label["scan"].split("/")[0] for label in card["label"]] == ["sub-01", "sub-02"]
    assert {row["scan"][:6] for row in table(out / MODEL / "scores.tsv")} == {"sub-03", "sub-04"}
