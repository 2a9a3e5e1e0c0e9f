"""The whole app on small generated heads: what a user types, and what then lies on the disk."""

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
import torch
from builders import MODEL, listing, run, scan, table
from safetensors.numpy import load_file

from singlestrip_bids import cli
from singlestrip_bids.machine.files import sha256
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.model import suited_preset


def weights(out: Path) -> dict[str, np.ndarray]:
    """All networks of a model, whichever of them is used."""
    paths = sorted((out / MODEL).glob("*.safetensors"))
    return {f"{p.stem} {name}": w for p in paths for name, w in load_file(p).items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


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
    assert 0.5 <= card["threshold"] <= 0.8
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


def test_label_whose_field_of_view_ends_at_the_brain(heads, trained, tmp_path, capfd):
    assert json.loads((trained / MODEL / "model.json").read_text())["continued"] is False
    data, out = tmp_path / "heads", tmp_path / "out"
    shutil.copytree(heads, data)
    (mask,) = data.glob("derivatives/*/sub-01/anat/*_desc-brain_mask.nii.gz")
    label = nib.load(mask)
    lowest = int(np.argwhere(np.asarray(label.dataobj))[:, 2].min())
    for path in (mask, scan(data, "01")):
        cut = nib.load(path).slicer[:, :, lowest:]
        nib.save(cut, path)
    assert run(data, out, "group", "--rounds", "0") == 0
    assert "ends close to its brain" in capfd.readouterr().err
    assert json.loads((out / MODEL / "model.json").read_text())["continued"] is True
    assert "its field of view was extended beyond, as" in (
        out / "logs" / "CITATION.md"
    ).read_text().replace("\n", " ")


@pytest.mark.parametrize("way", ["network", "registration", "prototypes"])
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


def test_pseudo_labels_by_all_ways_together(heads, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained / MODEL, out / MODEL)
    assert run(heads, out, "group", "--pseudo-labels", "all") == 0
    rows, before = (table(one / MODEL / "scores.tsv") for one in (out, trained))
    assert [row["agreement"] for row in rows] == [row["agreement"] for row in before]
    assert [row["volume_ml"] for row in rows] != [row["volume_ml"] for row in before]


@pytest.mark.parametrize("reading", ["volumes", "regions"])
def test_semisam_o1(heads, tmp_path, reading):
    """Prototypes, then rounds from new networks with refined pseudo-labels of all scans."""
    out = tmp_path / "out"
    way = ["--method", "semisam-o1", "--set", "features=levels", f"refinement={reading}"]
    assert run(heads, out, "group", *way) == 0
    card = json.loads((out / MODEL / "model.json").read_text())
    assert card["network"] == "round-3.safetensors"
    assert card["encoder"]["name"] == "phantom"
    rows = table(out / MODEL / "scores.tsv")
    assert [row["round"] for row in rows] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert {row["kept"] for row in rows if float(row["volume_ml"])} == {"True"}
    assert card["guard"]["kept"] == "round-3"  # a method of its own: SL-1 is no candidate
    text = " ".join((out / "logs" / "CITATION.md").read_text().split())
    assert "SemiSAM-O1" in text and "moving average" in text
    before = weights(out)
    assert run(heads, out, "group", *way) == 0
    assert same(weights(out), before)  # finished stages are taken from disk


def test_any_orientation(heads, tmp_path):
    """A head that lies on its side is masked; no header is doubted, no head is resized."""
    out, bids = tmp_path / "out", tmp_path / "bids"
    shutil.copytree(heads, bids)
    path = scan(bids, "02")
    image = nib.load(path)
    turned = np.rot90(np.asarray(image.dataobj), axes=(1, 2))
    nib.save(nib.Nifti1Image(np.ascontiguousarray(turned), image.affine), path)
    few = ["--set", "trials=4", "fine_steps=0"]
    assert run(bids, out, "group", "participant", "--any-orientation", *few) == 0
    card = json.loads((out / MODEL / "model.json").read_text())
    method = card["method"]
    assert method["any_orientation"] is True
    ranges = [method[name]["rotation_deg"] for name in ("synthesis", "finetuning_synthesis")]
    assert ranges == [180.0, 180.0]
    assert not any(row["note"] != "n/a" for row in table(out / MODEL / "scores.tsv"))
    for path in out.rglob("*desc-brain_mask.json"):
        fields = json.loads(path.read_text())
        assert "OrientationDoubt" not in fields
        assert fields["WorkingVoxelSizeMm"] == pytest.approx(card["voxel_size_mm"])


def test_an_encoder_of_ones_own(heads, trained, tmp_path, capfd):
    out, file = tmp_path / "out", trained / MODEL / "sl1.safetensors"
    shutil.copytree(trained / MODEL, out / MODEL)
    way = ["--pseudo-labels", "prototypes", "--encoder", str(file)]
    assert run(heads, out, "group", *way) == 0
    card = json.loads((out / MODEL / "model.json").read_text())
    assert card["encoder"] == {"name": file.name, "sha256": sha256(file)}
    assert run(heads, out, "group", "--encoder", str(file)) == 64
    assert "--encoder goes with --pseudo-labels prototypes" in capfd.readouterr().err
    assert run(heads, out, "group", *way[:3], str(scan(heads, "01"))) == 65
    assert "more than weights, or damaged" in capfd.readouterr().err
    assert json.loads((out / MODEL / "model.json").read_text()) == card  # nothing is lost


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
        assert 0 <= card["StrongContrastAgreement"] <= 1
        assert 0 <= card["MildContrastAgreement"] <= 1
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
    app += ["group", "participant", "--sloppy", "--set", "steps=2", "--participant-label", "01"]
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
    words = ["--config-file", record, "--random-seed", "7", "--work-dir", str(tmp_path / "work")]
    assert cli.main([str(heads), str(other), "group", *words]) == 0
    (own,) = (tmp_path / "work").iterdir()  # other trainings may have theirs beside it
    assert len(list((own / "round-1").iterdir())) == 3
    assert not (other / MODEL / "work").exists()
    assert same(weights(trained), weights(again))
    cards = [json.loads((out / MODEL / "model.json").read_text()) for out in (trained, again)]
    assert cards[0] == cards[1]
    assert not same(weights(trained), weights(other))


def test_a_training_goes_on_with_its_preset_on_another_device(trained, tmp_path):
    gpu = Runtime(torch.device("cuda"), bfloat16=True)
    assert suited_preset(gpu, trained / MODEL) == "quick"
    assert suited_preset(gpu, tmp_path / MODEL) == "standard"
    assert suited_preset(gpu, None) == "standard"  # to mask


def test_levels_come_in_their_order():
    assert cli.parse(["in", "out", "participant", "group"]).levels == ["group", "participant"]


def test_a_finished_stage_is_not_repeated(heads, trained, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    before = {p: p.stat().st_mtime_ns for p in (out / MODEL).glob("*.safetensors")}
    (out / MODEL / "round-1.safetensors").unlink()
    assert run(heads, out, "group") == 0
    after = {p: p.stat().st_mtime_ns for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed == {"label.safetensors", "round-1.safetensors"}
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
        [*command, "--sloppy", "--set", "steps=150", *words],
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
    process = start(heads, tmp_path / "out", "--set", "steps=100000")
    while not (tmp_path / "out" / "dataset_description.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(2.0)
    process.terminate()
    assert process.wait(60) == 75
    assert "the same command goes on from here" in process.stderr.read()
    assert list((tmp_path / "out" / MODEL / "work").glob("*.checkpoint"))


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
